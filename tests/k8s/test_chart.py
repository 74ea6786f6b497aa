"""The Helm chart: what it renders for many sets of values is what an API server would take, and fits together."""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
import sys
from typing import Any

import pytest

from cli.main import main
from tests import yamls
from tests.extproc.live import router
from tests.k8s.objects import (
    BUILT_IN,
    K8S,
    VERSIONS,
    accepted,
    by_name,
    charted,
    helm,
    kustomize,
    needs_crds,
    needs_kubectl,
    serve_arguments,
    validate,
)
from tests.ports import free_port

helm_python = pytest.importorskip("helm_python", reason="helm-python-sdk is not installed")

POLICY = K8S / "base" / "policy.yaml"
ISSUER = {"name": "pointsman", "kind": "Issuer"}
ALL_MONITORING = {
    "serviceMonitor": {"enabled": True, "interval": "30s", "labels": {"release": "prometheus"}},
    "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
    "dashboard": {"enabled": True, "annotations": {"grafana_folder": "Models"}},
}
PLACED = {
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "pool", "operator": "In", "values": ["routers"]}]}
    ]}}},
    "tolerations": [{"key": "dedicated", "operator": "Equal", "value": "routers", "effect": "NoSchedule"}],
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}}
    ],
    "priorityClassName": "system-cluster-critical",
    "runtimeClassName": "nvidia",
}  # fmt: skip
MODELS = {
    "extraVolumes": [{"name": "models", "persistentVolumeClaim": {"claimName": "models", "readOnly": True}}],
    "extraVolumeMounts": [{"name": "models", "mountPath": "/models", "readOnly": True}],
    "initContainers": [
        {"name": "fetch", "image": "busybox", "volumeMounts": [{"name": "models", "mountPath": "/models"}]}
    ],
}
CASES = yamls.dump_all([{"cases": [{"name": "hello", "request": {}, "expect": {"model": "small"}}]}])
MTLS = {"tls": {"secretName": "pointsman-tls", "clientSans": ["envoy.pointsman"]}}
CERTIFICATES = {"certManager": {"enabled": True, "issuerRef": ISSUER}}
SETS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "global": {"global": {"storageClass": "fast"}, "enabled": True},
    "name-override": {"nameOverride": "router"},
    "fullname-override": {"fullnameOverride": "llm-router"},
    "long-name": {"fullnameOverride": "a" * 80},
    "labels": {"commonLabels": {"app.kubernetes.io/part-of": "platform"}, "podLabels": {"tier": "edge"}},
    "annotations": {
        "podAnnotations": {"sidecar.istio.io/inject": "true", "prometheus.io/scrape": "false"},
        "service": {"annotations": {"a": "b"}},
        "adminService": {"annotations": {"c": "d"}},
    },
    "image": {"image": {"repository": "registry.example/pointsman", "tag": "1.2", "pullPolicy": "Always"}},
    "digest": {"image": {"digest": "sha256:" + "0" * 64, "pullSecrets": [{"name": "registry"}]}},
    "service-account": {"serviceAccount": {"create": True, "annotations": {"role": "arn"}}},
    "named-service-account": {"serviceAccount": {"create": True, "name": "routers"}},
    "anothers-service-account": {"serviceAccount": {"name": "routers"}},
    "placed": PLACED,
    "spread-nowhere": {"topologySpreadConstraints": []},
    "gpu": {"gpu": {"enabled": True}},
    "gpu-placed": {"gpu": {"enabled": True, "resources": {"limits": {"nvidia.com/gpu": "2"}}}, **PLACED},
    "no-limits": {"resources": {"limits": None}},
    "models": MODELS,
    "environment": {
        "extraEnv": [{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "zai"}}}],
        "extraEnvFrom": [{"secretRef": {"name": "more"}}],
        "extraArgs": ["--log-level=debug"],
    },
    "slow-start": {"startupSeconds": 600, "terminationGracePeriodSeconds": 300, "workers": 4},
    "existing-policy": {"existingConfigMap": "mine"},
    "cases": {"cases": CASES},
    "openshift": {
        "podSecurityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": None},
        "securityContext": {"runAsNonRoot": True},
    },
    "fixed-size": {"autoscaling": {"enabled": False}, "replicas": 5},
    "none": {"autoscaling": {"enabled": False}, "replicas": 0},
    "streams": {"autoscaling": {"streams": 200, "minReplicas": 3, "maxReplicas": 3}},
    "keda": {"keda": {"enabled": True}},
    "keda-alone": {"keda": {"enabled": True, "decisionsPerPod": 500}, "autoscaling": {"enabled": False}},
    "no-budget": {"podDisruptionBudget": {"enabled": False}},
    "budget": {"podDisruptionBudget": {"maxUnavailable": "25%"}},
    "no-network-policy": {"networkPolicy": {"enabled": False}},
    "open-network": {
        "networkPolicy": {
            "gatewayNamespaceLabels": {"kubernetes.io/metadata.name": "edge"},
            "extraIngress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}],
            "extraEgress": [{"ports": [{"port": 6379, "protocol": "TCP"}]}],
        }
    },
    "stepwise": {"stepwise": {"enabled": True, "modelPorts": [8000, 8001]}},
    "mutual-tls": MTLS,
    "certificates": CERTIFICATES,
    "certificates-into": {**CERTIFICATES, "tls": {"secretName": "mine", "clientSans": ["a", "b"]}},
    "monitoring": ALL_MONITORING,
    "service-monitor": {"serviceMonitor": {"enabled": True}},
    "all": {
        **ALL_MONITORING, **PLACED, **MODELS, **CERTIFICATES, "keda": {"enabled": True}, "gpu": {"enabled": True},
        "cases": CASES, "serviceAccount": {"create": True}, "stepwise": {"enabled": True},
    },
}  # fmt: skip
RENDERED = {
    "envoy-gateway": ["--for", "envoy-gateway"],
    "envoy-gateway-joined": ["--for", "envoy-gateway", "--gateway", "edge/public", "--host", "llm.example.com"],
    "istio": ["--for", "istio"],
    "istio-gateway-api": ["--for", "istio", "--gateway-api"],
}


def rendered(options, name="pointsman", namespace="pointsman"):
    """What `pointsman render` prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["render", str(POLICY), *options, "--namespace", namespace, "--service", name]) == 0
    return out.getvalue()


def deployment(values, release="pointsman"):
    (found,) = [resource for resource in helm(values, release) if resource["kind"] == "Deployment"]
    return found


def pod_of(values):
    return deployment(values)["spec"]["template"]["spec"]


def test_there_are_sets_of_values_enough():
    assert len(SETS) >= 30
    known = yamls.load((K8S / "chart" / "values.yaml").read_text())
    unused = set(known) - {key for values in SETS.values() for key in values}
    assert unused == {"policy", "gateway"}, "other tests set these"


@pytest.mark.slow
@needs_crds
@pytest.mark.parametrize("release", ["pointsman", "edge"])
@pytest.mark.parametrize("name", SETS)
def test_what_the_chart_renders_is_what_an_api_server_takes(name, release):
    resources = helm(SETS[name], release)
    assert len(by_name(resources)) == len(resources), "two of one name"
    for resource in resources:
        accepted(resource)
        metadata = resource["metadata"]
        assert metadata["namespace"] == "pointsman"
        assert len(metadata["name"]) <= 63
        assert metadata["labels"]["app.kubernetes.io/instance"] == release
        assert metadata["labels"]["app.kubernetes.io/managed-by"] == "Helm"


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_the_chart_passes_strict_validation(version):
    for name in ("defaults", "all"):
        resources = [resource for resource in helm(SETS[name]) if resource["apiVersion"] in BUILT_IN]
        assert {"Deployment", "Service", "ConfigMap", "Pod"} <= {resource["kind"] for resource in resources}
        for resource in resources:
            validate(resource, version)


@pytest.mark.parametrize("name", SETS)
def test_what_the_chart_renders_fits_together(name):
    found = by_name(helm(SETS[name], "edge"))
    (workload,) = [resource for (kind, _), resource in found.items() if kind == "Deployment"]
    labels = workload["spec"]["template"]["metadata"]["labels"]
    selectors = [workload["spec"]["selector"]["matchLabels"]]
    for (kind, _), resource in found.items():
        spec = resource.get("spec", {})
        if kind == "Service":
            selectors.append(spec["selector"])
            names = {port["name"] for port in workload["spec"]["template"]["spec"]["containers"][0]["ports"]}
            assert {port["targetPort"] for port in spec["ports"]} <= names
        elif kind in ("PodDisruptionBudget", "PodMonitor"):
            selectors.append(spec["selector"]["matchLabels"])
        elif kind == "NetworkPolicy":
            selectors.append(spec["podSelector"]["matchLabels"])
        elif kind in ("HorizontalPodAutoscaler", "ScaledObject"):
            assert spec["scaleTargetRef"]["name"] == workload["metadata"]["name"]
    for selector in selectors:
        assert selector.items() <= labels.items()
        assert selector["app.kubernetes.io/instance"] == "edge"
    scaled = {kind for kind, _ in found} & {"HorizontalPodAutoscaler", "ScaledObject"}
    assert len(scaled) <= 1
    assert ("replicas" in workload["spec"]) is not bool(scaled)
    pod = workload["spec"]["template"]["spec"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in [*pod["containers"], *pod.get("initContainers", ())]:
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
    (policy,) = [volume["configMap"]["name"] for volume in pod["volumes"] if volume["name"] == "policy"]
    assert (("ConfigMap", policy) in found) is (name != "existing-policy")
    args = serve_arguments(pod)
    assert args.admin_host == [service for kind, service in found if kind == "Service" and service.endswith("-admin")]
    assert pod["terminationGracePeriodSeconds"] > args.drain_wait + args.grace
    secrets = [volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume]
    made = {
        spec["secretName"]
        for (kind, _), spec in ((key, r.get("spec")) for key, r in found.items())
        if kind == "Certificate"
    }
    assert bool(args.tls_cert) is bool(secrets)
    assert not made or set(secrets) < made
    for (kind, _), resource in found.items():
        if kind == "Pod":
            assert resource["metadata"]["labels"]["app.kubernetes.io/component"] == "test"
            assert not selectors[0].items() <= resource["metadata"]["labels"].items(), "a Service would take it"
    if ("PrometheusRule", "edge-pointsman") in found:
        (alert,) = [
            r
            for g in found["PrometheusRule", "edge-pointsman"]["spec"]["groups"]
            for r in g["rules"]
            if "up{" in r["expr"]
        ]
        assert 'job="edge-pointsman-admin"' in alert["expr"]
        assert ("Service", "edge-pointsman-admin") in found


@pytest.mark.parametrize(
    ("values", "release", "name"),
    [
        ({}, "pointsman", "pointsman"),
        ({}, "edge", "edge-pointsman"),
        ({}, "my-pointsman", "my-pointsman"),
        ({"nameOverride": "router"}, "edge", "edge-router"),
        ({"fullnameOverride": "llm"}, "edge", "llm"),
    ],
)
def test_objects_are_named_by_the_release(values, release, name):
    assert deployment(values, release)["metadata"]["name"] == name


def test_two_releases_in_one_namespace_share_nothing():
    one, other = helm(release="one"), helm(release="two")
    assert not by_name(one).keys() & by_name(other).keys()
    (first,), (second,) = (
        [r["spec"]["selector"]["matchLabels"] for r in rs if r["kind"] == "Deployment"] for rs in (one, other)
    )
    assert first != second


def test_values_are_where_they_belong():
    pod = pod_of({**PLACED, **MODELS, "gpu": {"enabled": True}, "image": {"pullSecrets": [{"name": "registry"}]}})
    for key in ("nodeSelector", "affinity", "priorityClassName", "runtimeClassName", "topologySpreadConstraints"):
        assert pod[key] == PLACED[key]
    assert [toleration["key"] for toleration in pod["tolerations"]] == ["nvidia.com/gpu", "dedicated"]
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert pod["initContainers"] == MODELS["initContainers"]
    assert MODELS["extraVolumes"][0] in pod["volumes"]
    (container,) = pod["containers"]
    assert MODELS["extraVolumeMounts"][0] in container["volumeMounts"]
    assert container["resources"]["limits"] == {"memory": "4Gi", "nvidia.com/gpu": "1"}
    assert "topologySpreadConstraints" not in pod_of({"topologySpreadConstraints": []})
    assert pod_of({})["containers"][0]["resources"]["limits"] == {"memory": "512Mi"}
    assert "runAsUser" not in pod_of(SETS["openshift"])["securityContext"]
    annotations = deployment(SETS["annotations"])["spec"]["template"]["metadata"]["annotations"]
    assert (annotations["prometheus.io/scrape"], annotations["sidecar.istio.io/inject"]) == ("false", "true")
    labels = deployment(SETS["labels"])["spec"]["template"]["metadata"]["labels"]
    assert (labels["tier"], labels["app.kubernetes.io/component"]) == ("edge", "router")
    assert pod_of({"serviceAccount": {"name": "routers"}})["serviceAccountName"] == "routers"


@pytest.mark.parametrize(
    ("values", "image"),
    [
        ({}, "ghcr.io/example/pointsman:0.1.0"),
        ({"gpu": {"enabled": True}}, "ghcr.io/example/pointsman:0.1.0-gpu"),
        ({"image": {"tag": "x"}}, "ghcr.io/example/pointsman:x"),
        ({"image": {"tag": "x", "digest": "sha256:" + "a" * 64}}, "ghcr.io/example/pointsman@sha256:" + "a" * 64),
    ],
)
def test_the_image_is_named_by_its_tag_or_its_digest(values, image):
    assert pod_of(values)["containers"][0]["image"] == image


def test_the_policys_cases_lie_beside_it():
    found = by_name(helm({"cases": CASES}))["ConfigMap", "pointsman-policy"]["data"]
    assert found == {"policy.yaml": POLICY.read_text(), "policy.cases.yaml": CASES}
    assert set(by_name(helm())["ConfigMap", "pointsman-policy"]["data"]) == {"policy.yaml"}


def test_the_scale_is_its_own_or_the_autoscalers():
    def scale(**values):
        found = by_name(helm({"replicas": 5, **values}))
        kinds = {kind for kind, _ in found} & {"HorizontalPodAutoscaler", "ScaledObject"}
        return found["Deployment", "pointsman"]["spec"].get("replicas"), kinds

    def metrics(**autoscaling):
        found = by_name(helm({"autoscaling": autoscaling}))["HorizontalPodAutoscaler", "pointsman"]
        return [metric["type"] for metric in found["spec"]["metrics"]]

    assert scale() == (None, {"HorizontalPodAutoscaler"})
    assert scale(autoscaling={"enabled": False}) == (5, set())
    assert scale(keda={"enabled": True}) == (None, {"ScaledObject"})
    assert metrics() == ["Resource"]
    assert metrics(streams=200) == ["Resource", "Pods"]


@needs_kubectl
def test_certificates_are_those_that_the_component_and_the_guide_name():
    found = by_name(helm(CERTIFICATES))
    server, envoy = (found["Certificate", name]["spec"] for name in ("pointsman", "pointsman-envoy"))
    backend = by_name(kustomize(K8S / "overlays" / "mtls"))["Backend", "pointsman-router"]["spec"]
    assert backend["tls"]["sni"] in server["dnsNames"]
    assert backend["tls"]["clientCertificateRef"]["name"] == envoy["secretName"]
    pod = found["Deployment", "pointsman"]["spec"]["template"]["spec"]
    assert serve_arguments(pod).tls_client_san == envoy["dnsNames"]
    assert server["secretName"] in [volume.get("secret", {}).get("secretName") for volume in pod["volumes"]]
    with pytest.raises(helm_python.HelmError, match="issuerRef"):
        helm({"certManager": {"enabled": True}})


# What Helm has everywhere and kustomize nowhere, or names by the release.
_HELMS = ("helm.sh/chart", "app.kubernetes.io/instance", "app.kubernetes.io/version", "app.kubernetes.io/managed-by")


def without_helms_labels(value, selector=False):
    if isinstance(value, list):
        return [without_helms_labels(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {key: item for key, item in value.items() if key not in _HELMS}
    if "app.kubernetes.io/component" in kept and (selector or "app.kubernetes.io/part-of" not in kept):
        kept.pop("app.kubernetes.io/name", None)  # in selectors, and so on pods
    return {key: without_helms_labels(item, key in ("selector", "matchLabels")) for key, item in kept.items()}


@needs_kubectl
@pytest.mark.parametrize(
    ("folder", "values"),
    [
        ("base", {}),
        ("overlays/gpu", {"gpu": {"enabled": True}}),
        ("overlays/stepwise", {"stepwise": {"enabled": True}}),
        (
            "overlays/mtls",
            {
                **MTLS,
                "networkPolicy": {
                    "gatewayNamespaceLabels": {
                        "pointsman.dev/gateway": None,  # takes the default away
                        "kubernetes.io/metadata.name": "envoy-gateway-system",
                    }
                },
            },
        ),
    ],
)
def test_kustomize_and_helm_give_the_same_workload(folder, values):
    plain = by_name(kustomize(K8S / folder))
    plain = {key: resource for key, resource in plain.items() if resource["apiVersion"] in BUILT_IN}  # no gateway's
    plain.pop(("Namespace", "pointsman"))  # Helm installs into a namespace that is there
    found = {key: without_helms_labels(resource) for key, resource in by_name(helm(values)).items() if key[0] != "Pod"}
    assert found == plain


@needs_kubectl
def test_kustomize_and_helm_give_the_same_monitoring():
    values = {name: {"enabled": True} for name in ("serviceMonitor", "prometheusRule", "dashboard", "keda")}
    plain, found = by_name(kustomize(K8S / "overlays" / "monitoring")), by_name(helm(values))
    for kind in ("ServiceMonitor", "PrometheusRule", "ScaledObject"):
        assert without_helms_labels(found[kind, "pointsman"]["spec"]) == plain[kind, "pointsman"]["spec"]
    charts, components = (each["ConfigMap", "pointsman-dashboard"] for each in (found, plain))
    assert charts["data"] == components["data"]
    assert components["metadata"]["labels"].items() <= charts["metadata"]["labels"].items()


@pytest.mark.slow
@needs_crds
@pytest.mark.parametrize("options", RENDERED.values(), ids=RENDERED)
def test_the_gateways_objects_are_those_that_render_prints(options):
    text = rendered(options)
    found = by_name(helm({"gateway": {"manifests": text}}))
    wanted = by_name(yamls.load_all(text))
    assert wanted
    for key, resource in wanted.items():
        charted = found[key] if key in found else pytest.fail(f"{key} is not in the chart")
        labels = charted["metadata"].pop("labels")
        assert labels["app.kubernetes.io/instance"] == "pointsman"
        assert labels.items() >= resource["metadata"].pop("labels").items()
        assert charted == resource
        accepted({**charted, "metadata": {"name": key[1], "labels": labels}})
    assert len(found) == len(by_name(helm())) + len(wanted)
    as_list = rendered([*options, "-o", "json"])
    assert by_name(helm({"gateway": {"manifests": as_list}})).keys() == found.keys()


@pytest.mark.parametrize("options", [RENDERED["envoy-gateway"], RENDERED["istio"]], ids=["envoy-gateway", "istio"])
def test_objects_that_were_rendered_for_another_service_are_refused(options):
    text = rendered(options)
    for release, namespace in [("edge", "pointsman"), ("pointsman", "models")]:
        name = "pointsman" if release == "pointsman" else "edge-pointsman"
        with pytest.raises(helm_python.HelmError, match=f"render them with --namespace {namespace} --service {name}"):
            helm({"gateway": {"manifests": text}}, release, namespace)
        fitting = rendered(options, name, namespace)
        assert helm({"gateway": {"manifests": fitting}}, release, namespace)
    with pytest.raises(helm_python.HelmError, match="not what `pointsman render` prints"):
        helm({"gateway": {"manifests": "a: [b"}})


@pytest.mark.parametrize(
    "values",
    [
        {"replica": 3},
        {"replicas": -1},
        {"policy": ""},
        {"image": {"tag": "x", "name": "y"}},
        {"image": {"digest": "latest"}},
        {"stepwise": {"modelPorts": []}},
        {"tls": {"secret": "pointsman-tls"}},
    ],
)
def test_the_chart_refuses_values_that_it_does_not_know(values):
    with pytest.raises(helm_python.HelmError):
        helm(values)


def keys(values, path=()):
    """The path of each key whose value is a map, at whatever depth, and of the map of all."""
    yield path
    for key, below in values.items():
        if isinstance(below, dict) and below:
            yield from keys(below, (*path, key))


FREE = {"resources", "gpu.resources", "podSecurityContext", "securityContext"}  # Kubernetes' own, checked above
TEXTS = {"networkPolicy.gatewayNamespaceLabels", "networkPolicy.monitoringNamespaceLabels", "dashboard.labels"}


def test_every_value_is_in_the_schema_and_a_misspelt_one_is_refused_wherever_it_stands():
    values = yamls.load((K8S / "chart" / "values.yaml").read_text())
    helm(values)
    tried = 0
    for path in keys(values):
        name = ".".join(path)
        if name in TEXTS or any(name == free or name.startswith(f"{free}.") for free in FREE):
            continue
        misspelt = {"enabledd": True}
        for key in reversed(path):
            misspelt = {key: misspelt}
        with pytest.raises(helm_python.HelmError, match="enabledd"):
            helm(misspelt)
        tried += 1
    assert tried > 10


def test_null_takes_any_default_away():
    """Nothing is required, since Helm drops what is set to null before it asks the schema."""
    values = yamls.load((K8S / "chart" / "values.yaml").read_text())
    schema = (K8S / "chart" / "values.schema.json").read_text()
    assert '"required"' not in schema
    for key in (
        "cases",
        "commonLabels",
        "podAnnotations",
        "nodeSelector",
        "tolerations",
        "extraEnv",
        "priorityClassName",
    ):
        assert key in values
        assert deployment({key: None})["kind"] == "Deployment"


def test_the_chart_passes_helms_own_lint():
    report = helm_python.lint(str(K8S / "chart"))
    assert report["errors"] == []
    assert [message for message in report["messages"] if message["severity"] > 1] == []


@pytest.mark.parametrize("name", ["defaults", "all", "no-network-policy"])
def test_the_notes_name_what_there_is(name):
    values = SETS[name] | (
        {"gateway": {"manifests": rendered(RENDERED["istio"], "edge-pointsman")}} if name == "all" else {}
    )
    notes = charted(values, "edge")["NOTES.txt"]
    found = by_name(helm(values, "edge"))
    assert ("ConfigMap", re.search(r"get configmap (\S+)", notes)[1]) in found
    assert ("Service", re.search(r"--service (\S+)", notes)[1]) in found
    assert ("kubectl label namespace" in notes) is (name != "no-network-policy")
    assert ("reuse-values" in notes) is (name == "all")
    assert "<no value>" not in notes


@pytest.mark.e2e
@pytest.mark.parametrize("pod", ["ready", "serving"])
async def test_helm_test_passes_with_a_router_and_fails_without(tmp_path, pod):
    (test,) = [r for r in helm() if r["metadata"]["name"] == f"pointsman-test-{pod}"]
    assert test["metadata"]["annotations"]["helm.sh/hook"] == "test"
    (container,) = test["spec"]["containers"]
    port, admin_port = free_port(), free_port()
    listen, admin = f"127.0.0.1:{port}", f"127.0.0.1:{admin_port}"

    async def outcome():
        code = container["args"][0].replace("pointsman-admin:8080", admin).replace("pointsman:50051", listen)
        run = await asyncio.create_subprocess_exec(
            sys.executable, *container["command"][1:], code, stderr=asyncio.subprocess.PIPE
        )
        await run.communicate()
        return run.returncode

    assert await outcome() != 0
    async with router(POLICY, tmp_path, listen=listen, admin_port=admin_port):
        assert await outcome() == 0
