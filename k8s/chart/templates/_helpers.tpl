{{- define "pointsman.name" -}}
{{ .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end -}}
{{/* Short enough that the longest name made of it, with -test-serving behind it, is a label (63 characters). */}}
{{- define "pointsman.fullname" -}}
{{- $name := .Values.nameOverride | default .Chart.Name -}}
{{- $release := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{ .Values.fullnameOverride | default $release | trunc 50 | trimSuffix "-" }}
{{- end -}}
{{- define "pointsman.selector" -}}
app.kubernetes.io/name: {{ include "pointsman.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}
{{- define "pointsman.labels" -}}
{{- $ours := dict
  "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-")
  "app.kubernetes.io/version" .Chart.AppVersion
  "app.kubernetes.io/managed-by" .Release.Service
  "app.kubernetes.io/part-of" "pointsman" -}}
{{ merge (include "pointsman.selector" . | fromYaml) (.Values.commonLabels | default dict) $ours | toYaml }}
{{- end -}}
{{- define "pointsman.router" -}}
{{ include "pointsman.selector" . }}
app.kubernetes.io/component: router
{{- end -}}
{{/* Metadata of an object of ours: (list CONTEXT SUFFIX MORE-LABELS). */}}
{{- define "pointsman.metadata" -}}
{{- $context := first . -}}
name: {{ include "pointsman.fullname" $context }}{{ index . 1 }}
namespace: {{ $context.Release.Namespace }}
labels: {{- merge (include "pointsman.labels" $context | fromYaml) (index . 2 | default dict) | toYaml | nindent 2 }}
{{- end -}}
{{- define "pointsman.image" -}}
{{ .Values.image.repository }}
{{- if .Values.image.digest -}}
@{{ .Values.image.digest }}
{{- else -}}
:{{ .Values.image.tag | default (printf "%s%s" .Chart.AppVersion (ternary "-gpu" "" .Values.gpu.enabled)) }}
{{- end -}}
{{- end -}}
{{/* The Secret with the router's certificate; empty: plaintext. */}}
{{- define "pointsman.tls" -}}
{{ .Values.tls.secretName | default (ternary (printf "%s-tls" (include "pointsman.fullname" .)) "" .Values.certManager.enabled) }}
{{- end -}}
{{- define "pointsman.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (ternary (include "pointsman.fullname" .) "default" .Values.serviceAccount.create) }}
{{- end -}}
{{- define "pointsman.configMap" -}}
{{ .Values.existingConfigMap | default (printf "%s-policy" (include "pointsman.fullname" .)) }}
{{- end -}}
{{/* What a container of ours has in common with the router's: (list CONTEXT NAME). */}}
{{- define "pointsman.container" -}}
{{- $context := first . -}}
name: {{ last . }}
image: {{ include "pointsman.image" $context }}
imagePullPolicy: {{ $context.Values.image.pullPolicy }}
securityContext: {{- toYaml $context.Values.securityContext | nindent 2 }}
{{- end -}}
{{/* What a pod of ours has in common with the router's. */}}
{{- define "pointsman.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext: {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
