{{- define "pointsman.labels" -}}
app.kubernetes.io/name: pointsman
app.kubernetes.io/part-of: pointsman
{{- end -}}
{{- define "pointsman.selector" -}}
app.kubernetes.io/component: router
{{- end -}}
{{- define "pointsman.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default (printf "%s%s" .Chart.AppVersion (ternary "-gpu" "" .Values.gpu.enabled)) }}
{{- end -}}
