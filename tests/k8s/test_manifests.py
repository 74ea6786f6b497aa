"""Every manifest we ship is what an API server would take, and says the same wherever it is said twice."""

import copy
import itertools
import os
import re
import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from tests import yamls
from tests.k8s import crd
from tests.k8s.objects import (
    BUILT_IN,
    K8S,
    ROOT,
    VERSIONS,
    by_name,
    kustomize,
    needs_crds,
    needs_kubectl,
    serve_arguments,
    validate,
)
from tests.patience import PATIENCE

OVERLAYS = sorted(path.name for path in (K8S / "overlays").iterdir())
GATEWAYS = ("ai-gateway", "envoy-gateway", "istio", "sidecar")  # one of them, and before what is done to it
COMPONENTS = (*GATEWAYS, *sorted({path.name for path in (K8S / "components").iterdir()} - set(GATEWAYS)))
APART = [*itertools.combinations(GATEWAYS, 2), ("fixed-size", "keda")]
GUIDE = "https://github.com/example/pointsman/blob/main/docs/operate.md"


@pytest.fixture(scope="module")
def manifests():
    """Overlay name → its objects; `base` too."""
    folders = {"base": K8S / "base"} | {name: K8S / "overlays" / name for name in OVERLAYS}
    return {name: kustomize(folder) for name, folder in folders.items()}


@pytest.mark.slow
@needs_kubectl
@pytest.mark.parametrize("version", VERSIONS)
def test_built_in_objects_pass_strict_validation(manifests, version):
    seen = 0
    for resources in manifests.values():
        for resource in resources:
            if resource["apiVersion"] in BUILT_IN:
                validate(resource, version)
                seen += 1
    assert seen > 50


@pytest.mark.slow
@needs_kubectl
@needs_crds
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_custom_resources_pass_their_schemas_and_rules(manifests, overlay):
    for resource in manifests[overlay]:
        if resource["apiVersion"] in BUILT_IN:
            continue
        assert crd.problems(resource) == [], (resource["kind"], resource["metadata"]["name"])


@pytest.mark.slow
@needs_crds
@pytest.mark.parametrize("unread", ["refuse", "pass"])
def test_rendered_base_paths_fallbacks_and_origins_pass_their_schemas_and_rules(unread):
    from cli.gateways import envoy_gateway, istio
    from cli.gateways.kubernetes import Cluster, Front
    from cli.gateways.place import Place
    from config.build import build
    from config.load import parse

    models = """{
      small: {name: s, url: 'http://s.models.svc:8000', base_path: /api/v4, fallback: [twin, large],
              per_try_timeout: 20s, health_check: /health},
      twin: {name: s, url: 'http://t.models.svc:8000/api/v4', base_path: /api/v4},
      large: {url: 'https://l.example.com/v1',
              credential: {header: authorization, prefix: '', from: {secret: large, key: credential}}}}"""
    engine = build(parse(f"version: 1\nmodels: {models}\ndefault: small\nsettings: {{unread: {unread}}}\n"))
    place = Place(origins=("https://a.example.com", "*"), secrets="/secrets")
    hosts, joined = ("a.example.com",), {"name": "public", "namespace": "shared"}
    for target, front in [
        (envoy_gateway, Front()),
        (envoy_gateway, Front(hosts=hosts, tls="cert", class_name="public")),
        (envoy_gateway, Front(**joined, hosts=hosts)),
        (envoy_gateway, Front(**joined, section="llm")),
        (istio, Front()),
        (istio, Front(hosts=hosts, tls="cert")),
        (istio, Front(name="edge/public", namespace="edge")),
        (istio, Front(gateway_api=True, tls="cert")),
        (istio, Front(**joined, gateway_api=True, hosts=hosts, section="llm")),
    ]:
        seen = set()
        for resource in target.render(engine, place, Cluster(front=front)):
            seen.add(resource["kind"])
            assert crd.problems(resource) == [], resource["kind"]
        if target is envoy_gateway:
            assert ("EnvoyPatchPolicy" in seen) is (front.name is None)
            assert {"SecurityPolicy", "ReferenceGrant"} <= seen
        else:
            assert ("HTTPRoute" in seen) is front.gateway_api
            assert "EnvoyFilter" in seen


@needs_crds
@pytest.mark.parametrize("steps", [None, "0.0.0.0:50052"])
@pytest.mark.parametrize(
    "more",
    [
        "paths: [{match: /rerank*, to: large}, {match: /a.b$c}, {match: /x}]",
        "settings: {unread: pass}",
        "settings: {body_timeout: 3600s, deadline: 60s}",
    ],
)
def test_rendered_objects_pass_their_schemas_and_rules(more, steps):
    """With what the shipped policy does not have: paths before a model's own, opened ones, long times."""
    from cli.gateways import envoy_gateway, istio
    from cli.gateways.kubernetes import Cluster
    from cli.gateways.place import Place
    from config.build import build
    from config.load import parse

    models = "{small: {url: 'http://s.models.svc:8000/base'}, large: {url: 'https://l.example.com/v1'}}"
    engine = build(parse(f"version: 1\nmodels: {models}\ndefault: small\n{more}\n"))
    for target in (envoy_gateway, istio):
        for resource in target.render(engine, Place(steps=steps), Cluster()):
            assert crd.problems(resource) == [], resource["kind"]


MUTATIONS = [
    ("base", "Deployment", ("spec", "template", "spec", "containers", 0, "securtyContext"), {}),
    ("base", "Deployment", ("spec", "revisionHistoryLimit"), "two"),
    ("base", "NetworkPolicy", ("spec", "ingres"), []),
    ("base", "HorizontalPodAutoscaler", ("spec", "minReplica"), 2),
]
CUSTOM_MUTATIONS = [
    ("envoy-gateway", "EnvoyExtensionPolicy", ("spec", "extProc", 0, "messageTimeOut"), "1s"),
    ("envoy-gateway", "EnvoyExtensionPolicy", ("spec", "extProc", 0, "processingMode", "request", "body"), "Bufered"),
    ("envoy-gateway", "EnvoyExtensionPolicy", ("spec", "extProc", 0, "backendRefs", 0, "kind"), "Pod"),
    ("envoy-gateway", "ClientTrafficPolicy", ("spec", "connection", "bufferLimt"), "1Mi"),
    ("envoy-gateway", "HTTPRoute", ("spec", "rules", 0, "backendRef"), []),
    ("mtls", "Backend", ("spec", "endpoints", 0, "ip"), {"address": "10.0.0.1", "port": 80}),
    ("istio", "EnvoyFilter", ("spec", "configPatches", 0, "patch", "operation"), "INSERT"),
    ("istio", "EnvoyFilter", ("spec", "targetRefs"), [{"kind": "Gateway", "name": "x"}]),
    ("envoy-gateway", "ReferenceGrant", ("spec", "form"), []),
    ("envoy-gateway", "BackendTrafficPolicy", ("spec", "circuitBreaker", "maxStreams"), 1),
    ("istio", "VirtualService", ("spec", "http", 0, "retires"), {}),
    ("ai-gateway", "AIGatewayRoute", ("spec", "rules", 0, "backendRefs", 0, "named"), "x"),
    ("inference-pool", "InferencePool", ("spec", "targetPorts"), []),
    ("monitoring", "ScaledObject", ("spec", "trigers"), []),
    ("monitoring", "PrometheusRule", ("spec", "groups", 0, "rules", 0, "expression"), "1"),
]


def mutated(resources, kind, path, value):
    resource = copy.deepcopy(next(r for r in resources if r["kind"] == kind))
    place = resource
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    return resource


@pytest.mark.e2e
@needs_kubectl
@pytest.mark.parametrize(("overlay", "kind", "path", "value"), MUTATIONS)
def test_a_mistake_in_a_built_in_object_is_found(manifests, overlay, kind, path, value):
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(mutated(manifests[overlay], kind, path, value), VERSIONS[-1])


@needs_kubectl
@needs_crds
@pytest.mark.parametrize(("overlay", "kind", "path", "value"), CUSTOM_MUTATIONS)
def test_a_mistake_in_a_custom_resource_is_found(manifests, overlay, kind, path, value):
    assert crd.problems(mutated(manifests[overlay], kind, path, value)) != []


@needs_kubectl
@needs_crds
def test_fail_open_with_a_duplex_body_is_found_by_the_rule_of_envoy_gateway(manifests):
    policy = mutated(manifests["envoy-gateway"], "EnvoyExtensionPolicy", ("spec", "extProc", 0, "failOpen"), True)
    assert crd.problems(policy) == []
    policy["spec"]["extProc"][0]["processingMode"]["request"]["body"] = "FullDuplexStreamed"
    assert any("FailOpen must be false" in problem for problem in crd.problems(policy))


@needs_kubectl
def test_the_workload_keeps_to_the_restricted_pod_security_standard(manifests):
    for overlay, resources in manifests.items():
        pod = next(r for r in resources if r["kind"] == "Deployment")["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 65532
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True, overlay
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert "limits" in container["resources"]
            for mount in container["volumeMounts"]:
                assert "subPath" not in mount


@needs_kubectl
def test_the_grace_period_is_longer_than_the_drain(manifests):
    pod = next(r for r in manifests["base"] if r["kind"] == "Deployment")["spec"]["template"]["spec"]
    args = dict(a.removeprefix("--").split("=") for a in pod["containers"][0]["args"] if a.startswith("--"))
    assert pod["terminationGracePeriodSeconds"] > int(args["drain-wait"]) + int(args["grace"])


@needs_kubectl
def test_mutual_tls_is_asked_for_on_one_side_as_it_is_offered_on_the_other(manifests):
    """`serve` takes the router's flags, their files lie in the mounted Secret, and Envoy expects the name in it."""
    found = {key: resource.get("spec") for key, resource in by_name(manifests["mtls"]).items()}
    pod = found[("Deployment", "pointsman")]["template"]["spec"]
    args = serve_arguments(pod)
    (secret,) = [volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume]
    (mounted,) = [mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"] if mount["name"] == "tls"]
    assert [args.tls_cert, args.tls_key, args.tls_client_ca] == [
        f"{mounted}/{f}" for f in ("tls.crt", "tls.key", "ca.crt")
    ]
    backend = found[("Backend", "pointsman-router")]
    assert backend["endpoints"][0]["fqdn"]["hostname"] == backend["tls"]["sni"]
    (processor,) = found[("EnvoyExtensionPolicy", "pointsman")]["extProc"]
    assert [ref["name"] for ref in processor["backendRefs"]] == ["pointsman-router"]
    guide = (ROOT / "docs" / "operate.md").read_text()
    blocks = [yamls.load_all(block) for block in re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)]
    certificates = {
        each["spec"]["secretName"]: each["spec"]["dnsNames"]
        for block in blocks
        for each in block
        if each.get("kind") == "Certificate"
    }
    assert certificates == {
        secret: [backend["tls"]["sni"]],
        backend["tls"]["clientCertificateRef"]["name"]: args.tls_client_san,
    }


@pytest.fixture(scope="module")
def combined(tmp_path_factory):
    """The objects of the base with the components of these names."""
    root = tmp_path_factory.mktemp("combined")

    def built(*names):
        folder = root / "-".join(names)
        if not folder.exists():
            folder.mkdir()
            there = [os.path.relpath(K8S / "components" / name, folder.resolve()) for name in names]
            base = os.path.relpath(K8S / "base", folder.resolve())
            made = {"kind": "Kustomization", "resources": [base], "components": there}
            (folder / "kustomization.yaml").write_text(yaml.safe_dump(made))
        return by_name(kustomize(folder))

    return built


def pairs():
    """Those of components that go together: each component is in one or two, and in the tests of volume in the rest."""
    for one, two in itertools.combinations(range(len(COMPONENTS)), 2):
        pair = COMPONENTS[one], COMPONENTS[two]
        if pair not in APART:
            many = two - one not in (1, len(COMPONENTS) - len(GATEWAYS))
            yield pytest.param(pair, id="+".join(pair), marks=pytest.mark.volume if many else ())


@pytest.mark.slow
@needs_kubectl
@pytest.mark.parametrize("pair", [*pairs()])
def test_components_can_be_combined(combined, pair):
    base, both, alone = by_name(kustomize(K8S / "base")), combined(*pair), [combined(name) for name in pair]
    gone = {("HorizontalPodAutoscaler", "pointsman")} if set(pair) & {"fixed-size", "keda"} else set()

    def known(found):  # what has the hash of its content in its name
        return {(kind, re.sub(r"^(pointsman-envoy)-.*", r"\1", name)) for kind, name in found}

    assert known(both) == (known(alone[0]) | known(alone[1])) - gone
    for resource in both.values():
        assert resource["kind"] == "Namespace" or resource["metadata"]["namespace"], resource["metadata"]["name"]
        if resource["apiVersion"] in BUILT_IN:
            validate(resource, VERSIONS[-1])
    for key in base.keys() & both.keys():  # what only one of them changes is as that one leaves it
        changed = [one[key] for one in alone if one.get(key) != base[key]]
        if len(changed) == 1:
            assert both[key] == changed[0], key


@needs_kubectl
def test_nothing_sets_a_scaled_deployment_back(manifests):
    for name, resources in manifests.items():
        scaled = [r for r in resources if r["kind"] in ("HorizontalPodAutoscaler", "ScaledObject")]
        (deployment,) = [r for r in resources if r["kind"] == "Deployment"]
        assert len(scaled) == 1, name
        assert "replicas" not in deployment["spec"], name


@needs_kubectl
@pytest.mark.parametrize(
    ("overlay", "target", "options"), [("envoy-gateway", "envoy-gateway", []), ("istio", "istio", [])]
)
def test_the_shipped_gateway_is_what_render_writes(overlay, target, options, capsys):
    from cli.main import main

    assert main(["render", str(K8S / "base" / "policy.yaml"), "--for", target, *options]) == 0
    assert capsys.readouterr().out == (K8S / "components" / overlay / "gateway.yaml").read_text()


def test_the_sidecars_envoy_is_what_render_writes(capsys):
    from cli.main import main

    policy = str(K8S / "base" / "policy.yaml")
    assert main(["render", policy, "--for", "envoy", "--router", "unix:/run/pointsman/ext_proc.sock"]) == 0
    assert capsys.readouterr().out == (K8S / "components" / "sidecar" / "envoy.yaml").read_text()


def test_the_shipped_policy_is_valid_and_the_chart_carries_the_same():
    from config.load import check

    text = (K8S / "base" / "policy.yaml").read_text()
    policy, problems = check(text)
    assert policy is not None
    assert problems == []
    assert yamls.load((K8S / "chart" / "values.yaml").read_text())["policy"] == text


promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


@pytest.fixture
def rules(tmp_path):
    resource = yamls.load((K8S / "chart" / "files" / "rules.yaml").read_text())
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump(resource["spec"]))
    shutil.copy(Path(__file__).parent / "rules_test.yaml", tmp_path)
    return path


def run_promtool(*arguments):
    return subprocess.run(
        ["promtool", *arguments], capture_output=True, text=True, timeout=PATIENCE, env={**os.environ, "TZ": "UTC"}
    )


@promtool
def test_alert_rules_pass_promtool(rules):
    checked = run_promtool("check", "rules", str(rules))
    assert checked.returncode == 0, checked.stdout + checked.stderr


@promtool
def test_alerts_fire_when_they_should_and_not_before(rules):
    tested = run_promtool("test", "rules", str(rules.parent / "rules_test.yaml"))
    assert tested.returncode == 0, tested.stdout + tested.stderr


@promtool
def test_a_broken_expression_is_found(rules):
    rules.write_text(rules.read_text().replace("absent(up", "absnt(up"))
    assert run_promtool("check", "rules", str(rules)).returncode != 0


def test_every_metric_that_rules_and_dashboard_use_exists():
    from extproc.records.metrics import FAMILIES

    known = set(FAMILIES)
    for name in ("chart/files/rules.yaml", "chart/files/dashboard.json", "components/keda/scaledobject.yaml"):
        used = set(re.findall(r"\bpointsman_[a-z_]+", (K8S / name).read_text()))
        used = {re.sub(r"_(bucket|sum|count)$", "", metric) for metric in used}
        assert used <= known, (name, used - known)
        assert used


def test_every_alert_has_a_paragraph_in_the_operators_guide():
    resource = yamls.load((K8S / "chart" / "files" / "rules.yaml").read_text())
    guide = (ROOT / "docs" / "operate.md").read_text().lower()
    for rule in resource["spec"]["groups"][0]["rules"]:
        assert f"### {rule['alert'].lower()}\n" in guide
        assert rule["annotations"]["runbook_url"] == f"{GUIDE}#{rule['alert'].lower()}"


@pytest.mark.parametrize(("lock", "extra"), [("cpu", "cpu"), ("cuda", "cuda")])
def test_the_lock_pins_every_dependency_of_the_image(lock, extra):
    import re
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras[extra], *extras["redis"], *extras["otel"]]
    pinned = {line.partition("==")[0] for line in (ROOT / "requirements" / f"{lock}.txt").read_text().splitlines()}
    names = {re.split(r"[\[<>=!~; ]", requirement)[0].lower() for requirement in wanted}
    assert names <= {name.lower() for name in pinned}
