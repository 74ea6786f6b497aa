"""`validate --rendered` finds whatever of credentials, fallbacks, tries and limits was removed or weakened by hand."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from cli.gateways import envoy, envoy_gateway, istio
from cli.gateways.deployed import problems
from cli.gateways.kubernetes import Cluster, Front
from cli.gateways.place import Place
from cli.gateways.ways import Manifest
from config.build import build
from config.load import parse
from config.problem import Problem
from decisions.engine import Engine
from tests import yamls

ROOT = Path(__file__).parents[2]
POLICY = """\
version: 1
models:
  small: {name: s, url: "http://s.models.svc:8000", fallback: [twin, large], per_try_timeout: 20s, health_check: /up}
  twin: {name: s, url: "http://twin.models.svc:8000"}
  large: {name: l, url: "https://l.example.com", credential: {from: {secret: large, key: credential}}}
default: small
"""
RENDERED: dict[str, Callable[[Engine, Place], list[dict[str, Any]]]] = {
    "envoy": lambda engine, place: [envoy.render(engine, place)],
    "envoy-gateway": lambda engine, place: envoy_gateway.render(engine, place, Cluster()),
    "istio": lambda engine, place: istio.render(engine, place, Cluster()),
    "istio-gateway-api": lambda engine, place: istio.render(engine, place, Cluster(front=Front(gateway_api=True))),
}
GONE = object()
Change = Callable[[Any], Any]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return build(parse(POLICY))


@cache
def written(target: str, policy: str, secrets: str | None) -> list[dict[str, Any]]:
    return RENDERED[target](build(parse(policy)), Place(listen="0.0.0.0:80", secrets=secrets))


def rendered(target: str, policy: str = POLICY, secrets: str | None = "/secrets") -> list[dict[str, Any]]:
    """A copy, since tests change what they get."""
    return copy.deepcopy(written(target, policy, secrets))


def said(engine: Engine, objects: list[Any]) -> list[Problem]:
    told = problems(engine, [Manifest("gateway.yaml", 1, one) for one in objects])
    assert told is not None
    return told


def found(engine: Engine, objects: list[Any]) -> set[tuple[str, str]]:
    return {(problem.code, problem.severity) for problem in said(engine, objects)}


def changed(value: Any, key: str, change: Change) -> int:
    """Put `change` of it into every place called `key` below `value` that it changes; how many these are."""
    count = 0
    if isinstance(value, dict) and key in value:
        new = change(value[key])
        count += new != value[key]
        if new is GONE:
            del value[key]
        else:
            value[key] = new
    for one in list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ():
        count += changed(one, key, change)
    return count


def gone(_: Any) -> Any:
    return GONE


def to(new: Any) -> Change:
    return lambda _: new


def without(last: str) -> Change:
    """A list without its entries that say `last`; other things as they are."""
    return lambda old: [one for one in old if last not in str(one)] if isinstance(old, list) else old


def less(old: str, new: str = "") -> Change:
    return lambda text: text.replace(old, new) if isinstance(text, str) else text


ENVOYS = [
    ("overwrite", gone, "D414"),
    ("header_value_prefix", gone, "D414"),
    ("request_mutations", without("x-api-key"), "D414"),
    ("http_filters", without("header_mutation.v3.HeaderMutation"), "D414"),
    ("clusters", lambda old: [*old[:1], *old[:0:-1]] if isinstance(old[0], str) else old, "D415"),
    ("clusters", lambda old: old[:-1] if isinstance(old[0], str) else old, "D415"),
    ("cluster", less("failover-small", "model-large"), "D415"),
    ("server_listener_name", less("2-small", "1-small"), "D415"),
    ("retry_priority", gone, "D415"),
    ("health_checks", gone, "D415"),
    ("path", less("/up", "/down"), "D415"),
    ("retry_on", less(",reset"), "D416"),
]
DIRECT = [
    ("num_retries", lambda old: 1 if int(old) == 2 else old, "D415"),
    ("retry_on", less("5xx", "gateway-error"), "D415"),
    ("retriable_status_codes", gone, "D415"),
    ("per_try_timeout", gone, "D415"),
    ("per_try_timeout", to("90s"), "D415"),
]
IN_ISTIO = [("outlierDetection", gone, "D415")]
MUTATIONS: dict[str, list[tuple[str, Change, str]]] = {
    "envoy": [
        *ENVOYS,
        *DIRECT,
        ("outlier_detection", gone, "D415"),
        ("retry_on", less("connect-failure,refused-stream", "reset"), "D416"),
        ("grpc_service", lambda old: {key: old[key] for key in old if key != "retry_policy"}, "D416"),
    ],
    "envoy-gateway": [
        ("overwrite", gone, "D414"),
        ("header", less("authorization", "x-other"), "D414"),
        ("requestHeaderModifier", lambda old: {"remove": old["remove"][:-1]}, "D414"),
        ("credentialInjection", gone, "D414"),
        ("backendRefs", without("standby"), "D415"),
        ("fallback", gone, "D415"),
        ("httpStatusCodes", gone, "D415"),
        ("numAttemptsPerPriority", gone, "D415"),
        ("passive", gone, "D415"),
        ("active", gone, "D415"),
        ("perRetry", gone, "D415"),
        ("timeout", lambda old: "90s" if old == "20000ms" else old, "D415"),
        ("triggers", without("refused-stream"), "D416"),
        ("triggers", lambda old: [one for one in old if one != "reset"], "D416"),
        ("backendSettings", lambda old: {"circuitBreaker": old["circuitBreaker"]}, "D416"),
    ],
    "istio": [
        *ENVOYS,
        *IN_ISTIO,
        ("attempts", lambda old: 1 if old == 2 else old, "D415"),
        ("retryOn", less("5xx,429", "5xx"), "D415"),
        ("retryOn", less("connect-failure,refused-stream", "reset"), "D416"),
        ("perTryTimeout", gone, "D415"),
        ("perTryTimeout", to("1m30s"), "D415"),
    ],
    "istio-gateway-api": [*ENVOYS, *IN_ISTIO, *DIRECT],
}


@pytest.mark.parametrize("target", RENDERED)
def test_what_render_writes_is_right(engine: Engine, target: str) -> None:
    assert found(engine, rendered(target)) == set()


@pytest.mark.parametrize(
    ("target", "key", "change", "code"),
    [(target, *mutation) for target, mutations in MUTATIONS.items() for mutation in mutations],
    ids=[f"{target}-{n}-{m[0]}" for target, mutations in MUTATIONS.items() for n, m in enumerate(mutations)],
)
def test_what_was_taken_out_or_weakened_is_found(
    engine: Engine, target: str, key: str, change: Change, code: str
) -> None:
    objects = rendered(target)
    assert changed(objects, key, change) > 0
    codes = found(engine, objects)
    assert (code, "error" if code == "D414" else "warning") in codes
    if code == "D414":
        assert {code for code, _ in codes} == {"D414"}


@pytest.mark.parametrize(("key", "new"), [("per_try_timeout", "3s"), ("num_retries", "3")])
def test_what_was_made_stronger_is_no_problem(engine: Engine, key: str, new: str) -> None:
    objects = rendered("envoy")
    assert changed(objects, key, to(new)) > 0
    assert found(engine, objects) == set()


@pytest.mark.parametrize("target", RENDERED)
def test_a_set_that_was_rendered_before_the_policy_asked_for_it_is_found(engine: Engine, target: str) -> None:
    before = re.sub(
        r", (fallback: \[.*?\]|per_try_timeout: \w+|health_check: /\w+|credential: {from: {.*?}})", "", POLICY
    )
    assert found(build(parse(before)), rendered(target, before)) == set()
    codes = found(engine, rendered(target, before))
    # Istio's clusters have no credential as long as nobody says where the gateway's pods find it.
    assert codes == {("D414", "warning" if target.startswith("istio") else "error"), ("D415", "warning")}


@pytest.mark.parametrize("target", ["istio", "istio-gateway-api"])
def test_a_credential_that_istio_was_not_given_is_said_to_be_missing(engine: Engine, target: str) -> None:
    objects = rendered(target, secrets=None)
    assert found(engine, objects) == {("D414", "warning")}
    assert "render with --secrets" in said(engine, objects)[0].message


def limits() -> dict[str, Any]:
    """The examples of the operator's guide by gateway."""
    guide = (ROOT / "docs" / "operate.md").read_text()
    part = guide[guide.index("\n## Limit tokens") : guide.index("\n## Watch the money")]
    plain, gateway, mesh = [yamls.load(text) for text in re.findall(r"```yaml\n(.*?)```", part, re.DOTALL)]
    return {"envoy": plain, "envoy-gateway": gateway, "istio": mesh}


def limited(target: str, *, first: bool = False) -> list[Any]:
    """A set with the example of the guide put where it says, or (plain Envoy) before the processor."""
    objects = rendered(target)
    if target != "envoy":
        return [*objects, limits()[target]]
    chain = objects[0]["static_resources"]["listeners"][0]["filter_chains"][0]
    filters = chain["filters"][0]["typed_config"]["http_filters"]
    at = next(n for n, one in enumerate(filters) if one["name"] == "envoy.filters.http.ext_proc")
    filters.insert(at if first else at + 1, limits()["envoy"])
    return objects


@pytest.mark.parametrize("target", ["envoy", "envoy-gateway", "istio"])
def test_a_limit_of_tokens_that_does_not_count_them_is_found(engine: Engine, target: str) -> None:
    assert found(engine, limited(target)) == set()
    misspelt = limited(target)
    key = "key" if target == "envoy-gateway" else "format"
    assert changed(misspelt, key, less("estimated_input_tokens", "input_tokens")) > 0
    assert found(engine, misspelt) == {("D417", "error")}
    assert "counts 'input_tokens'" in said(engine, misspelt)[0].message
    for name in ("filter_enabled", "filter_enforced") if target != "envoy-gateway" else ():
        for change in (gone, to({"default_value": {"numerator": 0}})):
            idle = limited(target)
            assert changed(idle, name, change) == 1
            assert found(engine, idle) == {("D417", "error")}
    if target == "envoy":
        assert found(engine, limited(target, first=True)) == {("D417", "error")}
