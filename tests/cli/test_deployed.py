"""`validate --rendered` finds what would route wrongly, drop or refuse requests in a deployed set."""

import copy
from functools import cache
from pathlib import Path

import pytest

from cli.called import CalledWrongly
from cli.gateways import envoy, envoy_gateway, istio
from cli.gateways.deployed import check
from cli.gateways.kubernetes import Cluster, Front
from cli.gateways.place import Place
from cli.main import main
from config.build import build
from config.load import parse
from tests import yamls

POLICY = """\
version: 1
models:
  small: {url: "http://small.models.svc:8000"}
  large: {url: "http://large.models.svc:8000"}
default: small
signals: {gold: {header: {name: x-tier, in: [gold]}}}
decisions:
  - {name: gold, when: gold, route: large}
"""


@pytest.fixture(scope="module")
def engine():
    return build(parse(POLICY))


ON_80 = Place(listen="0.0.0.0:80")
RENDERED = {
    "envoy": cache(lambda engine: [envoy.render(engine, Place())]),
    "envoy-gateway": cache(lambda engine: envoy_gateway.render(engine, Place(), Cluster())),
    "istio": cache(lambda engine: istio.render(engine, ON_80, Cluster())),
    "istio-gateway-api": cache(lambda engine: istio.render(engine, ON_80, Cluster(front=Front(gateway_api=True)))),
}
# Tests change what they get.
SETS = {target: lambda engine, render=render: copy.deepcopy(render(engine)) for target, render in RENDERED.items()}


def found(engine, folder, objects):
    (folder / "gateway.yaml").write_text(yamls.dump_all(objects))
    return [(problem.code, problem.severity) for problem in check(engine, folder)]


@pytest.mark.parametrize("target", SETS)
def test_what_render_writes_is_right(engine, tmp_path, target):
    assert found(engine, tmp_path, SETS[target](engine)) == []


@pytest.mark.parametrize("unread", ["refuse", "pass"])
@pytest.mark.parametrize("target", ["envoy", "envoy-gateway", "istio"])
def test_base_paths_fallbacks_credentials_and_origins_are_right(tmp_path, target, unread):
    models = """{
      small: {name: s, url: 'http://s.models.svc:8000', base_path: /api/v4, fallback: [twin, large]},
      twin: {name: s, url: 'http://t.models.svc:8000/api/v4', base_path: /api/v4},
      large: {url: 'https://l.example.com/v1',
              credential: {header: authorization, prefix: '', from: {secret: large, key: credential}}}}"""
    text = f"version: 1\nmodels: {models}\ndefault: small\npaths: [{{match: /v1/audio/*, to: small}}]\n"
    made = build(parse(text + f"settings: {{unread: {unread}}}\n"))
    place = Place(origins=("*",), secrets="/secrets")
    if target == "envoy":
        objects = [envoy.render(made, place)]
    else:
        objects = (envoy_gateway if target == "envoy-gateway" else istio).render(made, place, Cluster())
    assert found(made, tmp_path, objects) == []


OPENED = POLICY + "paths: [{match: /rerank*, to: large}, {match: /x}]\n"


@pytest.mark.parametrize("target", SETS)
def test_a_gateway_that_lets_every_path_on_is_found(engine, tmp_path, target):
    passing = build(parse(POLICY + "settings: {unread: pass}\n"))
    objects = SETS[target](passing)
    assert found(passing, tmp_path, objects) == []
    assert found(engine, tmp_path, objects) == [("D410", "error")]
    # The other way round it is narrower than the policy, which is no risk.
    assert found(passing, tmp_path, SETS[target](engine)) == []


NO_HEADERS = "settings: {response_headers: false}\n"
BROKE = POLICY.replace("[gold]}}}", "[gold]}}, broke: {budget: {header: x-tenant, limit: 1}}}")


@pytest.mark.parametrize("target", SETS)
def test_a_gateway_that_does_not_show_the_answers_that_are_counted_is_found(engine, tmp_path, target):
    metered, broke = build(parse(POLICY + NO_HEADERS.replace("{", "{meter: on, "))), build(parse(BROKE))
    assert (metered.shared.metered, broke.shared.metered) == (False, True)
    assert found(metered, tmp_path, SETS[target](metered)) == []
    assert found(broke, tmp_path, SETS[target](broke)) == []
    assert found(metered, tmp_path, SETS[target](engine)) == [("D412", "warning")]
    assert found(broke, tmp_path, SETS[target](engine)) == [("D412", "error")]
    kept = build(parse(POLICY.replace("route: large", "route: large, cache: {scope: all}") + NO_HEADERS))
    assert kept.caches
    assert found(kept, tmp_path, SETS[target](kept)) == []
    assert found(kept, tmp_path, SETS[target](engine)) == [("D412", "warning")]
    assert found(engine, tmp_path, SETS[target](broke)) == []


@pytest.mark.parametrize("target", SETS)
def test_a_gateway_that_does_not_hand_over_the_answers_that_are_watched_is_found(engine, tmp_path, target):
    text = POLICY.replace("[gold]}}}", "[gold]}}, leak: {pii: {in: answer}}}")
    watched = build(parse(text.replace("decisions:", "decisions:\n  - {name: m, on: answer, when: leak, mask: {}}", 1)))
    assert watched.watches == "text"
    assert found(watched, tmp_path, SETS[target](watched)) == []
    assert found(watched, tmp_path, SETS[target](engine)) == [("D412", "warning")]
    assert found(engine, tmp_path, SETS[target](watched)) == []


@pytest.mark.parametrize("target", SETS)
def test_a_path_that_the_policy_opens_and_the_gateway_does_not_is_found(engine, tmp_path, target):
    opened = build(parse(OPENED))
    assert found(opened, tmp_path, SETS[target](opened)) == []
    assert found(opened, tmp_path, SETS[target](engine)) == [("D411", "error"), ("D411", "error")]


def test_a_route_of_istio_without_the_processor_is_found(engine, tmp_path):
    objects = SETS["istio"](engine)
    next(o for o in objects if o["kind"] == "VirtualService")["spec"]["http"][-1]["name"] = "others"
    assert found(engine, tmp_path, objects) == [("D405", "error")]


@pytest.mark.parametrize("target", SETS)
def test_a_model_added_to_the_policy_lacks_its_route(engine, tmp_path, target):
    objects = SETS[target](engine)
    grown = build(parse(POLICY.replace("default:", '  huge: {url: "http://huge.models.svc:8000"}\ndefault:')))
    assert found(grown, tmp_path, objects) == [("D401", "error")]


@pytest.mark.parametrize("target", SETS)
def test_a_model_taken_from_the_policy_leaves_a_route_behind(engine, tmp_path, target):
    objects = SETS[target](engine)
    shrunk = build(parse("version: 1\nmodels: {small: {url: 'http://small.models.svc:8000'}}\ndefault: small\n"))
    assert found(shrunk, tmp_path, objects) == [("D401", "warning")]


@pytest.mark.parametrize("target", SETS)
def test_longer_bodies_than_the_buffer_get_413(engine, tmp_path, target):
    objects = SETS[target](engine)
    roomy = build(parse(POLICY + "settings: {max_body: 64MiB}\n"))
    assert found(roomy, tmp_path, objects) == [("D403", "error")]


@pytest.mark.parametrize("target", SETS)
def test_stepwise_decisions_need_full_duplex(engine, tmp_path, target):
    objects = SETS[target](engine)
    step = "  - {name: math, stepwise: {small: small, large: large}}\n"
    assert ("D404", "error") in found(build(parse(POLICY + step)), tmp_path, objects)


STEPWISE = POLICY.replace(
    "route: large}", "stepwise: {small: small, large: large}}\nsettings: {max_body: 8MiB, response_headers: false}"
)
BESIDE = Place(steps="0.0.0.0:50052")
BESIDE_SETS = {
    "envoy": lambda engine: [envoy.render(engine, BESIDE)],
    "envoy-gateway": lambda engine: envoy_gateway.render(engine, BESIDE, Cluster()),
    "istio": lambda engine: istio.render(engine, BESIDE, Cluster()),
    "istio-gateway-api": lambda engine: istio.render(engine, BESIDE, Cluster(front=Front(gateway_api=True))),
}


@pytest.mark.parametrize("target", SETS)
def test_a_route_to_the_stepwise_service_takes_the_place_of_full_duplex(tmp_path, target):
    stepwise = build(parse(STEPWISE))
    objects = BESIDE_SETS[target](stepwise)
    assert found(stepwise, tmp_path, objects) == []
    text = yamls.dump_all(objects)
    assert "50052" in text
    assert "duplex" not in text.lower()
    # Without the route nobody would answer the decision; with it the buffer counts.
    assert ("D404", "error") in found(stepwise, tmp_path, yamls.load_all(text.replace("-decision", "-other")))
    bigger = build(parse(STEPWISE.replace("8MiB", "80MiB")))
    assert ("D403", "error") in found(bigger, tmp_path, yamls.load_all(text))


def test_a_service_has_no_unix_socket():
    with pytest.raises(CalledWrongly, match="--writers"):
        istio.render(build(parse(STEPWISE)), Place(steps="unix:/run/s"), Cluster())


@pytest.mark.parametrize("target", SETS)
def test_envoy_must_outwait_the_router(engine, tmp_path, target):
    objects = SETS[target](engine)
    patient = build(parse(POLICY + "settings: {deadline: 3s}\n"))
    assert found(patient, tmp_path, objects) == [("D409", "error")]


def changed(objects, old, new):
    text = yamls.dump_all(objects)
    assert old in text
    return list(yamls.load_all(text.replace(old, new)))


@pytest.mark.parametrize("target", SETS)
def test_a_dropped_metadata_namespace_is_found(engine, tmp_path, target):
    objects = SETS[target](engine)
    old = {"envoy-gateway": "writableNamespaces:\n      - pointsman"}.get(target)
    if old is None:
        text = yamls.dump_all(objects)
        start = text.index("receiving_namespaces")
        old = text[start : text.index("pointsman", start) + len("pointsman")]
    assert found(engine, tmp_path, changed(objects, old, old.replace("pointsman", "other"))) == [("D408", "error")]


@pytest.mark.parametrize("target", SETS)
def test_a_clients_route_header_that_gets_through_is_found(engine, tmp_path, target):
    objects = changed(SETS[target](engine), "x-pointsman-route\n", "x-other\n") if target == "envoy-gateway" else None
    if objects is None:
        objects = changed(SETS[target](engine), "remove: x-pointsman-route", "remove: x-other")
    assert ("D406", "warning") in found(engine, tmp_path, objects)


def test_a_missing_buffer_policy_means_32_kib(engine, tmp_path):
    objects = [o for o in SETS["envoy-gateway"](engine) if o["kind"] != "ClientTrafficPolicy"]
    assert set(found(engine, tmp_path, objects)) == {("D403", "error"), ("D406", "warning")}


def test_on_a_gateway_of_others_the_room_for_bodies_is_that_of_our_routes(engine, tmp_path):
    """The client's own header gets through there, which `render` says, too."""
    joined = Cluster(front=Front(name="public", namespace="edge"))
    objects = envoy_gateway.render(engine, Place(), joined)
    assert found(engine, tmp_path, objects) == [("D406", "warning")]
    assert check(engine, tmp_path)[0].message.endswith("render it with --section, for a listener that is ours alone")
    (policy,) = [o for o in objects if o["kind"] == "BackendTrafficPolicy"]
    policy["spec"]["requestBuffer"]["limit"] = "1Mi"
    assert set(found(engine, tmp_path, objects)) == {("D403", "error"), ("D406", "warning")}


@pytest.mark.parametrize("limit", [None, 1024])
@pytest.mark.parametrize("target", ["envoy", "envoy-gateway"])
def test_few_requests_at_a_time_are_found(engine, tmp_path, target, limit):
    objects = SETS[target](engine)
    if target == "envoy":
        (router,) = [c for c in objects[0]["static_resources"]["clusters"] if c["name"] == "pointsman"]
        breakers = router["circuit_breakers"]["thresholds"][0]
        key = "max_requests"
    else:
        (policy,) = [o for o in objects if o["kind"] == "EnvoyExtensionPolicy"]
        breakers = policy["spec"]["extProc"][0]["backendSettings"]["circuitBreaker"]
        key = "maxParallelRequests"
    breakers[key] = limit
    if limit is None:
        del breakers[key]
    assert found(engine, tmp_path, objects) == [("D413", "warning")]


def test_a_route_without_the_processor_is_found(engine, tmp_path):
    objects = SETS["envoy-gateway"](engine)
    extra = copy.deepcopy(next(o for o in objects if o["kind"] == "HTTPRoute"))
    extra["metadata"]["name"] = "older"
    assert set(found(engine, tmp_path, [*objects, extra])) == {("D405", "error"), ("D416", "warning")}


def test_no_default_route_and_no_response_phase_are_found(engine, tmp_path):
    objects = SETS["envoy-gateway"](engine)
    route = next(o for o in objects if o["kind"] == "HTTPRoute")
    route["spec"]["rules"].pop()
    policy = next(o for o in objects if o["kind"] == "EnvoyExtensionPolicy")
    del policy["spec"]["extProc"][0]["processingMode"]["response"]
    assert found(engine, tmp_path, objects) == [("D402", "error"), ("D407", "warning")]


def test_the_ai_gateway_overlay_routes_by_served_names(tmp_path, capsys):
    root = Path(__file__).parents[2] / "k8s"
    assert (
        main(["validate", str(root / "base" / "policy.yaml"), "--rendered", str(root / "components" / "ai-gateway")])
        == 0
    )


def test_the_command_reports_like_any_other_problem(engine, tmp_path, capsys):
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY)
    deployed = tmp_path / "deployed"
    deployed.mkdir()
    assert main(["validate", str(policy), "--rendered", str(deployed)]) == 2
    assert "no external processor" in capsys.readouterr().err
    objects = [o for o in SETS["envoy-gateway"](engine) if o["kind"] != "HTTPRoute"]
    (deployed / "gateway.yaml").write_text(yamls.dump_all(objects))
    assert main(["validate", str(policy), "--rendered", str(deployed)]) == 1
    assert "gateway.yaml:" in capsys.readouterr().out
    (deployed / "gateway.yaml").write_text("a: [")
    assert main(["validate", str(policy), "--rendered", str(deployed)]) == 2


def test_what_is_no_folder_of_yaml_is_said_to_be_none(tmp_path, capsys):
    (tmp_path / "policy.yaml").write_text(POLICY)
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd").mkdir()
    for name, content, words in (
        ("nodir", None, "--rendered PATH: there is no such folder"),
        ("empty", None, "--rendered PATH: no external processor, since no YAML file"),
        ("odd/latin.yaml", b"a: \xff", "PATH: not YAML: the file is not UTF-8"),
        ("odd/tab.yaml", b"a:\n\tb: 1\n", "PATH:2:1: Y001 not valid YAML: a tab stands here"),
        ("odd/control.yaml", b"a: \x01\n", "PATH: not YAML: a control character is in it"),
        ("odd/list.yaml", b"kind: List\nitems: 3\n", "PATH: no external processor in its YAML files"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        assert main(["validate", str(tmp_path / "policy.yaml"), "--rendered", str(tmp_path / name)]) == 2
        shown = capsys.readouterr().err
        assert words.replace("PATH", str(tmp_path / name)) in shown
        assert shown.count("\n") == 1


@pytest.mark.parametrize(
    ("target", "old", "new"),
    [
        ("envoy", "  listeners:", "  listeners: x\n  others:"),
        ("envoy-gateway", "  rules:", "  rules: x\n  others:"),
        ("istio", "  http:", "  http: 3\n  others:"),
        ("envoy", "num_retries: 2", "num_retries: two"),
        ("istio", "attempts: 2", "attempts: two"),
    ],
)
def test_a_value_of_another_kind_is_told_with_its_file(engine, tmp_path, target, old, new):
    objects = changed(SETS[target](engine), old, new)
    with pytest.raises(ValueError, match=r"gateway\.yaml.*: a value in it is not of the kind that its schema says"):
        found(engine, tmp_path, objects)


@pytest.mark.parametrize("target", SETS)
def test_null_is_as_good_as_left_out(engine, tmp_path, target):
    objects = SETS[target](engine)
    extra = {"apiVersion": "x/v1", "kind": "HTTPRoute", "metadata": None, "spec": {"rules": None}}
    plain = {**extra, "metadata": {}, "spec": {}}
    assert found(engine, tmp_path, [*objects, extra]) == found(engine, tmp_path, [*objects, plain])
