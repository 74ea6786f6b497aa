"""Two requests share an answer only where everything that shapes it is the same."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from decisions.decision import Cache, Changes, Decision
from decisions.engine import Engine
from decisions.model import Model
from extproc.apis.shape import Target
from extproc.keeping.key import Key, directives, key, scope_of, stateful, unkept, who
from extproc.requests.body import parse
from signals.request import Request
from tests.extproc.envoy import LARGE, SMALL, engine

APIS = ("chat", "completions", "messages", "responses")
TENANT = {"x-tenant": "acme"}
ENGINE = engine(tenant="x-tenant")
DECISION = Decision("faq", "route", SMALL, cache=Cache())


def asked(api: str, text: str, headers: Mapping[str, str] = TENANT, **fields: Any) -> Request:
    turn = {"role": "user", "content": text}
    every: dict[str, dict[str, Any]] = {
        "chat": {"messages": [{"role": "system", "content": "Be brief."}, turn]},
        "completions": {"prompt": text},
        "messages": {"system": "Be brief.", "messages": [turn], "max_tokens": 9},
        "responses": {"instructions": "Be brief.", "input": text, "store": False},
    }
    data = orjson.dumps({"model": "auto", "temperature": 0, **every[api], **fields})
    return parse(Target(api), dict(headers), {}, data, 1000)


def keyed(request: Request, decision: Decision = DECISION, of: Engine = ENGINE) -> Key:
    assert decision.cache is not None
    asker = who(of, request, decision.cache.scope)
    assert asker is not None
    return key(request, of, decision, asker)


NUMBERS = ("3", "30", "3.0", "3,000", "-3", "three", "III", "٣")
UNITS = ("km", "m", "miles", "kg", "°C", "°F", "EUR", "USD")
NAMES = ("Anna", "Ana", "Hanna", "ANNA", "anna", "Аnna", "Boris")
VERBS = ("is", "is not", "isn't", "was", "is never")
TONGUES = ("Is it so?", "Ist es so?", "Est-ce vrai ?", "¿Es así?", "本当ですか", "это так?")


def question(chooser: random.Random) -> list[str]:
    return [chooser.choice(part) for part in (NAMES, VERBS, NUMBERS, UNITS, TONGUES)]


@pytest.mark.slow
def test_ten_thousand_near_misses_share_no_answer() -> None:
    chooser = random.Random(15)
    for count in range(10_000):
        one = question(chooser)
        other = list(one)
        place = count % 5
        while other[place] == one[place]:
            other[place] = question(chooser)[place]
        api = APIS[count // 5 % 4]
        first, second = (keyed(asked(api, "{} {} {} {} away. {}".format(*parts))) for parts in (one, other))
        assert first.digest != second.digest, (one, other)


PARAMETERS: list[dict[str, Any]] = [
    {"temperature": 0.5}, {"top_p": 0.5}, {"max_tokens": 10}, {"n": 2}, {"seed": 1}, {"stop": ["a"]},
    {"tools": [{"type": "function", "function": {"name": "a"}}]}, {"tool_choice": "none"}, {"logprobs": True},
    {"response_format": {"type": "json_object"}}, {"reasoning_effort": "low"}, {"guided_regex": "a+"},
    {"unheard_of": 1}, {"store": False, "x": None}, {"service_tier": "flex"}, {"logit_bias": {"5": 1}},
    {"logit_bias": {"5": 2}}, {"cache_salt": "a"},
]  # fmt: skip


@pytest.mark.parametrize("api", APIS)
def test_every_parameter_counts_but_how_the_answer_is_sent(api: str) -> None:
    plain = keyed(asked(api, "hi"))
    keys = [keyed(asked(api, "hi", **fields)).digest for fields in PARAMETERS]
    assert len({plain.digest, *keys}) == 1 + len(PARAMETERS)
    for same in ({"stream": True}, {"stream_options": {"include_usage": True}}, {"model": "small"}):
        assert keyed(asked(api, "hi", **same)) == plain
    who_asks = keyed(asked(api, "hi", user="u", metadata={"user_id": "u"}))
    assert (who_asks == plain) is (api != "responses")  # which repeats it in its answer


def test_apis_models_changes_and_headers_are_told_apart() -> None:
    request = asked("chat", "hi")
    decisions = [
        DECISION,
        replace(DECISION, name="other"),
        replace(DECISION, model=LARGE),
        replace(DECISION, model=Model("small", "Qwen/Qwen3-8B", url="http://elsewhere")),
        replace(DECISION, changes=Changes(system="Be kind.")),
        replace(DECISION, changes=Changes(system="Be brief.")),
        replace(DECISION, changes=Changes(headers={"x-a": "b"})),
        replace(DECISION, changes=Changes(max_tokens=5)),
        replace(DECISION, cache=Cache(scope="all")),
    ]
    keys = {keyed(request, decision).digest for decision in decisions}
    keys |= {keyed(asked(api, "hi")).digest for api in APIS}
    keys.add(keyed(asked("messages", "hi", {**TENANT, "anthropic-beta": "context-1m"})).digest)
    assert len(keys) == len(decisions) + len(APIS)  # chat is there already, and the beta is new


def test_tenants_users_and_sessions_are_told_apart() -> None:
    def of(scope: Any, headers: Mapping[str, str], **fields: Any) -> Key | None:
        decision = replace(DECISION, cache=Cache(scope=scope))
        request = asked("chat", "hi", headers, **fields)
        asker = who(ENGINE, request, scope)
        return None if asker is None else key(request, ENGINE, decision, asker)

    assert of("tenant", {}) is None
    assert of("tenant", {"x-tenant": ""}) is None
    assert of("tenant", TENANT) != of("tenant", {"x-tenant": "umbra"})
    assert of("tenant", TENANT) == of("tenant", {**TENANT, "authorization": "Bearer a"}, user="u")
    assert of("all", {}) == of("all", TENANT)
    for scope, named in (("user", {"user": "u"}), ("session", {"prompt_cache_key": "s"})):
        assert of(scope, TENANT) is None
        assert of(scope, {}, **named) is None  # a user of no known tenant
        mine = of(scope, TENANT, **named)
        assert mine is not None
        others: list[Mapping[str, str]] = [{"x-tenant": "umbra"}, {**TENANT, "authorization": "Bearer a"}]
        others.append({**TENANT, "x-api-key": "Bearer a"})
        keys = [of(scope, headers, **named) for headers in others]
        assert len({one.digest for one in (mine, *keys) if one is not None}) == 4
        assert {one.scope for one in keys if one is not None} == {scope_of(scope, next(iter(named.values())))}


def test_a_guessed_session_is_none() -> None:
    """The beginning of a conversation, which two users may share, names no session."""
    assert who(engine(), asked("chat", "hi", {}), "session") is None


@pytest.mark.no_cover
@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.none(), max_size=4), st.randoms())
def test_the_order_of_keys_says_nothing_and_any_value_does(extra: dict[str, Any], chooser: random.Random) -> None:
    try:
        fields = {f"x-{name}": value for name, value in extra.items()}
        first = asked("chat", "hi", **fields)
    except TypeError:  # beyond 64 bits: no JSON of ours
        return
    turned = list(fields.items())
    chooser.shuffle(turned)
    assert keyed(first) == keyed(asked("chat", "hi", **dict(turned)))
    if fields:
        name = chooser.choice(list(fields))
        assert keyed(first) != keyed(asked("chat", "hi", **{**fields, name: [fields[name]]}))


def test_a_kind_of_call_that_is_not_known_is_not_kept() -> None:
    cache = Cache(any_temperature=True)
    assert unkept(asked("chat", "hi", temperature=1), cache) is None
    assert unkept(parse(Target("embeddings"), {}, {}, b'{"input": "a", "model": "b"}', 99), cache) == "api"
    count = parse(Target("messages", "count_tokens"), {}, {}, asked("messages", "hi").body, 99)
    assert unkept(count, cache) == "api"
    assert unkept(asked("chat", "hi", {"cache-control": 'no-cache, No-Store="x"'}), cache) == "no_store"


def test_tools_of_the_client_may_be_offered_and_those_of_a_server_not() -> None:
    for tools in (
        [{"type": "function", "name": "a"}], [{"name": "a", "input_schema": {}}], [{"type": "custom", "name": "a"}],
        [{"type": "bash_20250124", "name": "bash"}], [],
    ):  # fmt: skip
        assert not stateful(asked("messages", "hi", tools=tools))
    for tool in ({"type": "web_search_20250305"}, {"type": "mcp"}, {"type": 5}, {"type": "new"}, None):
        assert stateful(asked("messages", "hi", tools=[tool]))
    assert stateful(asked("messages", "hi", mcp_servers=[{"url": "http://a"}]))
    assert not stateful(asked("completions", "hi"))  # whose prompt is a text
    assert stateful(asked("responses", "hi", prompt={"id": "p"}))


def test_directives_of_a_request() -> None:
    assert directives({}) == {}
    assert directives({"cache-control": "No-Cache, max-age=5 ,x"}) == {"no-cache": "", "max-age": "5", "x": ""}


def test_a_number_that_was_not_read_whole_has_no_key() -> None:
    """Two of more than 64 bits would be the same."""
    tool = {"type": "function", "function": {"name": "f", "parameters": {"const": 0}}}
    for number in (2**64, 2**64 + 1, -(2**63) - 1):
        request = asked("chat", "hi", tools=[tool])
        data = request.body.replace(b'"const":0', b'"const":%d' % number)
        with pytest.raises(ValueError, match="too many digits"):
            keyed(parse(Target("chat"), dict(TENANT), {}, data, 1000))
    keyed(asked("chat", "hi", tools=[tool]))


def test_an_api_whose_answers_are_not_kept_makes_nobody_wait() -> None:
    data = orjson.dumps({"contents": [{"role": "user", "parts": [{"text": "hi"}]}]})
    request = parse(Target("gemini"), dict(TENANT), {}, data, 1000)
    assert unkept(request, Cache(any_temperature=True)) == "api"
