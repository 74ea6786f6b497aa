"""Answers that are given again: through an exchange, for four APIs, streamed or whole."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import orjson
import pytest

from config.build import build
from config.load import parse
from config.resources import Resources
from extproc.exchange import APART
from extproc.keeping.key import scope_of
from extproc.keeping.shelf import LONG
from extproc.meter import Meter
from extproc.watching.shapes import SHAPES
from extproc.watching.sse import Events
from tests.extproc.envoy import BUFFERED, DUPLEX, STREAMED, Envoy, Service, set_headers
from tests.proto.oracle import ext_proc
from upstream.events import DONE, event

POLICY = """\
version: 1
models:
  small: {name: tiny, price: {input: 1, output: 2}}
  large: {name: huge, price: {input: 10, output: 20}, fallback: [small]}
default: small
signals: {hard: {keyword: {any: [prove]}}}
decisions:
  - {name: hard, when: hard, route: large, cache: {scope: all, ttl: 1m}}
  - {name: faq, route: small, cache: {}, set: {headers: {x-a: b}}}
settings: {tenant: {header: x-tenant}}
"""
ACME = {"x_tenant": "acme"}
ASKED: dict[str, dict[str, Any]] = {
    "chat": {"messages": [{"role": "user", "content": "Where is Rome?"}]},
    "completions": {"prompt": "Where is Rome?"},
    "messages": {"messages": [{"role": "user", "content": "Where is Rome?"}], "max_tokens": 50},
    "responses": {"input": "Where is Rome?", "store": False},
}
PATHS = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "messages": "/v1/messages",
    "responses": "/v1/responses",
}
TWO = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
ANSWERS: dict[str, dict[str, Any]] = {
    "chat": {
        "id": "c-1", "object": "chat.completion", "created": 1, "model": "tiny", "usage": TWO,
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "In Italy."}, "finish_reason": "stop",
             "logprobs": None}
        ],
    },
    "completions": {
        "id": "c-1", "object": "text_completion", "created": 1, "model": "tiny", "usage": TWO,
        "choices": [{"index": 0, "text": "In Italy.", "finish_reason": "stop", "logprobs": None}],
    },
    "messages": {
        "id": "m-1", "type": "message", "role": "assistant", "model": "tiny", "stop_reason": "end_turn",
        "stop_sequence": None, "content": [{"type": "text", "text": "In Italy."}],
        "usage": {"input_tokens": 3, "output_tokens": 4},
    },
    "responses": {
        "id": "r-1", "object": "response", "created_at": 1, "model": "tiny", "status": "completed", "error": None,
        "incomplete_details": None, "usage": {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7},
        "output": [
            {"id": "o-1", "type": "message", "role": "assistant", "status": "completed", "content": [
                {"type": "output_text", "text": "In Italy.", "annotations": []}]}
        ],
    },
}  # fmt: skip


def world(policy: str = POLICY) -> Service:
    resources = Resources()
    return Service(build(parse(policy), resources), meter=Meter(resources.loads))


def body(api: str = "chat", **fields: Any) -> bytes:
    return orjson.dumps({"model": "auto", "temperature": 0, **ASKED[api], **fields})


async def ask(service: Service, data: bytes, api: str = "chat", mode: Any = BUFFERED, **headers: str) -> Envoy:
    """A request, as far as it goes without a model."""
    envoy = Envoy(service, mode, response_body_mode=STREAMED)
    envoy.request(data, PATHS[api], **(ACME | headers))
    await envoy.settled()
    return envoy


def answer(envoy: Envoy, data: bytes, kind: str = "application/json", status: int = 200, cut: int = 7) -> str | None:
    """The model's answer comes; gives what the client is told of the cache."""
    head = envoy.response(status, content_type=kind)
    for at in range(0, len(data), cut):
        piece = data[at : at + cut]
        envoy.say(response_body=ext_proc.HttpBody(body=piece, end_of_stream=at + cut >= len(data)))
    envoy.exchange.closed()
    return set_headers(head[0].response_headers.response.header_mutation).get("x-pointsman-cache")


def given(envoy: Envoy) -> tuple[str, bytes] | None:
    """What the client is told of the cache, and the answer; None where the request went on."""
    reply = envoy.sent[-1].immediate_response
    if reply is None:
        return None
    envoy.exchange.closed()
    return set_headers(reply.headers)["x-pointsman-cache"], reply.body


async def kept(service: Service, api: str = "chat", streamed: bool = False) -> None:
    envoy = await ask(service, body(api, stream=streamed), api)
    assert given(envoy) is None
    final = ANSWERS[api]
    data = SHAPES[api].stream(final) if streamed else orjson.dumps(final)
    assert answer(envoy, data, "text/event-stream" if streamed else "application/json") == "miss"


@pytest.mark.parametrize("api", ASKED)
@pytest.mark.parametrize("came", [False, True])
@pytest.mark.parametrize("wanted", [False, True])
async def test_an_equal_request_gets_the_same_answer_in_its_own_form(api: str, came: bool, wanted: bool) -> None:
    service = world()
    await kept(service, api, came)
    envoy = await ask(service, body(api, stream=wanted, stream_options={"include_usage": True}), api)
    found = given(envoy)
    assert found is not None
    told, data = found
    assert told == "hit; age=0"
    final = ANSWERS[api]
    if wanted:
        assembly = SHAPES[api].assembly(10**6)
        for one in Events(10**6).feed(data):
            if one.data != b"[DONE]":
                assembly.add(orjson.loads(one.data))
        assert assembly.final() is not None
        same = assembly.final()
    else:
        same = orjson.loads(data)
    texts = [text.holder[text.key] for text in SHAPES[api].texts(same)]
    assert texts == [text.holder[text.key] for text in SHAPES[api].texts(final)]
    if not wanted and not came:
        assert same == final
    assert [outcome.cache for outcome in service.outcomes] == ["miss", "hit"]
    hit = service.outcomes[1]
    assert (hit.money, hit.prompt, hit.completion, hit.status) == (0.0, 0, 0, 200)
    assert hit.reference == pytest.approx((3 * 10 + 4 * 20) / 1e6)


async def test_a_stream_says_its_usage_only_to_who_asks() -> None:
    service = world()
    await kept(service)
    plain = given(await ask(service, body(stream=True)))
    asked = given(await ask(service, body(stream=True, stream_options={"include_usage": True})))
    assert plain is not None
    assert asked is not None
    assert b"prompt_tokens" not in plain[1]
    assert b"prompt_tokens" in asked[1]


@pytest.mark.parametrize(
    ("headers", "fields", "why"),
    [
        ({"x_tenant": ""}, {}, "no_scope"),
        ({"cache_control": "no-store"}, {}, "no_store"),
        ({}, {"temperature": 0.7}, "sampled"),
        ({}, {"temperature": None}, "sampled"),
        ({}, {"temperature": True}, "sampled"),
        ({}, {"store": True}, "stateful"),
        ({}, {"web_search_options": {"a": 1}}, "stateful"),
        ({}, {"tools": [{"type": "web_search_preview"}]}, "stateful"),
        ({}, {"tools": ["?"]}, "stateful"),
    ],
)
async def test_what_is_never_kept(headers: dict[str, str], fields: dict[str, Any], why: str) -> None:
    service = world()
    for _ in range(2):
        envoy = Envoy(service, BUFFERED, response_body_mode=STREAMED)
        envoy.request(body(**fields), **(ACME | headers))
        assert envoy.exchange._task is None  # it goes on at once
        assert given(envoy) is None
        assert answer(envoy, orjson.dumps(ANSWERS["chat"])) is None
    assert [outcome.cache for outcome in service.outcomes] == [why, why]


async def test_responses_are_stored_unless_they_say_otherwise() -> None:
    service = world()
    for fields in ({"store": None}, {"store": True}, {"previous_response_id": "r"}, {"conversation": "c"}):
        envoy = await ask(service, body("responses", **fields), "responses")
        assert given(envoy) is None
        answer(envoy, orjson.dumps(ANSWERS["responses"]))
    assert {outcome.cache for outcome in service.outcomes} == {"stateful"}


async def test_no_cache_asks_anew_and_keeps_the_new_answer_and_max_age_is_heeded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service = world()
    await kept(service)
    again = await ask(service, body(), cache_control="no-cache")
    assert given(again) is None
    newer = {**ANSWERS["chat"], "id": "c-2"}
    assert answer(again, orjson.dumps(newer)) == "miss"
    found = given(await ask(service, body()))
    assert found is not None
    assert orjson.loads(found[1])["id"] == "c-2"
    now = time.time()
    monkeypatch.setattr("extproc.keeping.shelf.time.time", lambda: now + 30)
    assert given(await ask(service, body(), cache_control="max-age=20")) is None
    found = given(await ask(service, body(), cache_control="max-age=60"))
    assert found is not None
    assert found[0] == "hit; age=30"


def variants() -> dict[str, bytes]:
    final = ANSWERS["chat"]
    choice = final["choices"][0]
    return {
        "cut by a limit": orjson.dumps({**final, "choices": [{**choice, "finish_reason": "length"}]}),
        "filtered": orjson.dumps({**final, "choices": [{**choice, "finish_reason": "content_filter"}]}),
        "one of two": orjson.dumps({**final, "choices": [choice, {**choice, "index": 1, "finish_reason": None}]}),
        "not whole": orjson.dumps(final)[:-1],
        "an error": orjson.dumps({"error": {"message": "no"}}),
        "no object": b"[]",
        "empty": b"",
    }


@pytest.mark.parametrize("name", variants())
async def test_an_answer_that_is_not_whole_is_not_kept(name: str) -> None:
    service = world()
    envoy = await ask(service, body())
    answer(envoy, variants()[name])
    assert given(await ask(service, body())) is None


async def test_neither_errors_nor_coded_nor_broken_streams_nor_other_models_answers_are_kept() -> None:
    service = world()
    good = orjson.dumps(ANSWERS["chat"])
    answer(await ask(service, body()), good, status=500)
    answer(await ask(service, body()), good, kind="text/plain")
    stream = SHAPES["chat"].stream(ANSWERS["chat"])
    assert stream.endswith(DONE)
    answer(await ask(service, body()), stream[: -len(DONE)], "text/event-stream")
    answer(await ask(service, body()), event({"error": {"message": "no"}}) + stream, "text/event-stream")
    coded = await ask(service, body())
    coded.response(200, content_type="application/json", content_encoding="gzip")
    coded.say(response_body=ext_proc.HttpBody(body=good, end_of_stream=True))
    coded.exchange.closed()
    left = await ask(service, body())
    left.response(200, content_type="application/json")
    left.say(response_body=ext_proc.HttpBody(body=good))
    left.exchange.closed()
    assert given(await ask(service, body())) is None
    hard = body(messages=[{"role": "user", "content": "prove it"}])
    instead = await ask(service, hard)
    instead.response(200, content_type="application/json", x_pointsman_fallback="small")
    instead.say(response_body=ext_proc.HttpBody(body=good, end_of_stream=True))
    instead.exchange.closed()
    assert given(await ask(service, hard)) is None


async def test_an_answer_that_ends_with_trailers_is_kept() -> None:
    service = world()
    envoy = await ask(service, body())
    envoy.response(200, content_type="application/json")
    envoy.say(response_body=ext_proc.HttpBody(body=orjson.dumps(ANSWERS["chat"])))
    envoy.say(response_trailers=ext_proc.HttpTrailers())
    envoy.exchange.closed()
    assert given(await ask(service, body())) is not None


async def test_equal_requests_at_the_same_time_ask_the_model_once() -> None:
    service = world()
    first = await ask(service, body(), mode=DUPLEX)
    others = [Envoy(service, mode, response_body_mode=STREAMED) for mode in (BUFFERED, DUPLEX, DUPLEX)]
    for other in others:
        other.request(body(), **ACME)
    await asyncio.sleep(0.01)
    assert all(other.sent == [] or other.sent[-1].immediate_response is None for other in others)
    assert answer(first, orjson.dumps(ANSWERS["chat"])) == "miss"
    for other in others:
        await other.settled()
        found = given(other)
        assert found is not None
        assert found[0] == "hit; age=0"
    assert [outcome.cache for outcome in service.outcomes] == ["miss", "hit", "hit", "hit"]


@pytest.mark.parametrize("fails", ["the client leaves", "the answer is not kept", "it takes too long"])
async def test_who_waits_goes_itself(fails: str, monkeypatch: pytest.MonkeyPatch) -> None:
    service = world()
    first = await ask(service, body())
    if fails == "it takes too long":
        monkeypatch.setattr("extproc.exchange.BRIEF_S", 0.02)
    other = Envoy(service, BUFFERED, response_body_mode=STREAMED)
    other.request(body(), **ACME)
    await asyncio.sleep(0.005)
    if fails == "the client leaves":
        first.exchange.closed()
    elif fails == "the answer is not kept":
        answer(first, b"{}")
    await other.settled()
    assert given(other) is None
    assert other.sent[-1].request_body is not None
    assert answer(other, orjson.dumps(ANSWERS["chat"])) == "miss"
    assert given(await ask(service, body())) is not None
    if fails == "it takes too long":
        first.exchange.closed()
    assert not service.keeper._flights


@pytest.mark.parametrize("mode", [BUFFERED, DUPLEX])
async def test_a_body_that_is_read_in_a_thread_is_counted_once(mode: Any) -> None:
    service = world()
    long = body(messages=[{"role": "user", "content": "word " * 80_000}])
    assert len(long) > APART
    first = await ask(service, long)
    other = Envoy(service, mode, response_body_mode=STREAMED)
    other.request(long, **ACME)
    await asyncio.sleep(0.2)  # it waits for the answer of the first one, which is held as well
    assert service.bodies.total == 2 * len(long)
    other.exchange.closed()
    first.exchange.closed()
    await asyncio.sleep(0)
    assert service.bodies.total == 0


@pytest.mark.parametrize("known", ["at its head", "by its length", "by an error"])
async def test_nobody_waits_for_the_end_of_an_answer_that_is_not_kept(known: str) -> None:
    service = world(POLICY.replace("settings: {", "settings: {cache: {answer: 2KiB}, "))
    first = await ask(service, body())
    other = Envoy(service, DUPLEX, response_body_mode=STREAMED)
    other.request(body(), **ACME)
    await asyncio.sleep(0.005)
    assert other.sent == []
    kind = "text/event-stream" if known == "by an error" else "application/json"
    first.response(500 if known == "at its head" else 200, content_type=kind)
    if known != "at its head":
        piece = event({"error": {"message": "no"}}) if known == "by an error" else b" " * 4096
        first.say(response_body=ext_proc.HttpBody(body=piece))
    await asyncio.wait_for(other.settled(), 1)
    assert other.sent[0].request_headers is not None
    first.exchange.closed()
    assert not service.keeper._flights


async def test_a_waiting_client_that_leaves_frees_everything() -> None:
    service = world()
    first = await ask(service, body())
    other = Envoy(service, BUFFERED, response_body_mode=STREAMED)
    other.request(body(), **ACME)
    await asyncio.sleep(0)
    other.exchange.closed()
    await asyncio.sleep(0)
    assert service.bodies.total == 0
    answer(first, orjson.dumps(ANSWERS["chat"]))
    assert not service.keeper._flights


async def test_the_least_recently_used_makes_room_and_a_large_answer_is_not_kept() -> None:
    service = world(POLICY.replace("settings: {", "settings: {cache: {memory: 4KiB, answer: 2KiB}, "))
    final = ANSWERS["chat"]
    for number in range(20):
        envoy = await ask(service, body(seed=number))
        assert answer(envoy, orjson.dumps(final)) == "miss"
    counts = service.keeper.counts()
    assert counts["bytes"] <= 4096
    assert counts["entries"] >= 3
    assert counts["evicted_total"] == 20 - counts["entries"]
    assert given(await ask(service, body(seed=19))) is not None
    assert given(await ask(service, body(seed=0))) is None
    large = {**final, "padding": "x" * 2048}
    answer(await ask(service, body(seed=99)), orjson.dumps(large))
    assert given(await ask(service, body(seed=99))) is None


async def test_a_hit_is_judged_by_the_policy_in_force() -> None:
    guard = """\
  - {name: leak, on: answer, when: says, cut: {message: "No."}}
"""
    signals = 'signals: {says: {keyword: {any: ["in italy"], in: answer}}, '
    guarded = POLICY.replace("signals: {", signals).replace("settings:", guard + "settings:")
    service = world()
    await kept(service)
    assert given(await ask(service, body())) is not None
    service.engine = world(guarded).engine
    assert given(await ask(service, body())) is None
    service.engine = world(guarded.replace("in italy", "in france")).engine
    assert given(await ask(service, body())) is not None


@pytest.mark.parametrize("hidden", ["4111 1111 1111 1111", "\\u0034111 1111 1111 1111"])
async def test_a_hit_is_judged_as_an_answer_that_comes(hidden: str) -> None:
    """With the escapes in the arguments of its tools decoded."""
    guarded = POLICY.replace("signals: {", "signals: {leak: {pii: {in: answer, types: [card]}}, ").replace(
        "settings:", "  - {name: leak, on: answer, when: leak, mask: {}}\nsettings:"
    )
    call = {"id": "t-1", "type": "function", "function": {"name": "pay", "arguments": f'{{"to": "{hidden}"}}'}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    service = world()
    assert answer(await ask(service, body()), orjson.dumps({**ANSWERS["chat"], "choices": [choice]})) == "miss"
    assert given(await ask(service, body())) is not None
    service.engine = world(guarded).engine
    assert given(await ask(service, body())) is None


async def test_answers_are_dropped_by_decision_and_scope() -> None:
    service = world()
    engine, keeper = service.engine, service.keeper
    hard = body(messages=[{"role": "user", "content": "prove it"}])
    for data, tenant in ((body(), "acme"), (body(), "umbra"), (hard, "acme")):
        answer(await ask(service, data, x_tenant=tenant), orjson.dumps(ANSWERS["chat"]))
    assert await keeper.drop(engine, "nobody", None) == 0
    assert await keeper.drop(engine, None, scope_of("tenant", "acme")) == 1
    assert given(await ask(service, body())) is None
    assert given(await ask(service, body(), x_tenant="umbra")) is not None
    assert await keeper.drop(engine, "hard", scope_of("all", "")) == 1
    assert await keeper.drop(engine, None, None) == 1


async def test_an_observer_neither_takes_nor_leaves_answers() -> None:
    service = world()
    await kept(service)
    envoy = Envoy(service, STREAMED, observing=True)
    envoy.request(body(), **ACME)
    await envoy.settled()
    assert envoy.exchange._head.keeping is None


async def test_a_long_body_is_read_in_a_thread() -> None:
    service = world()
    long = body(messages=[{"role": "user", "content": "word " * 20_000}])
    assert len(long) > LONG
    envoy = await ask(service, long)
    assert answer(envoy, orjson.dumps(ANSWERS["chat"]), cut=1000) == "miss"
    assert given(await ask(service, long)) is not None


def test_a_policy_that_keeps_answers_asks_envoy_for_them(tmp_path: Path) -> None:
    assert world().engine.watches == "usage"
    assert world().engine.metered
    assert world(POLICY.replace("cache: {scope: all, ttl: 1m}", "").replace("cache: {}, ", "")).engine.watches == "none"


@pytest.mark.parametrize("where", ["arguments", "content"])
async def test_escapes_hide_nothing_from_who_judges_what_was_kept(where: str) -> None:
    """Arguments of tools are JSON text, as is what was asked to be JSON: it is judged as its reader will read it."""
    said = '{"place": "in \\u0049taly"}'
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": said}}
    message = {"role": "assistant", "content": said}
    if where == "arguments":
        message = {"role": "assistant", "content": None, "tool_calls": [call]}  # type: ignore[dict-item]
    ends = "tool_calls" if where == "arguments" else "stop"
    final = {**ANSWERS["chat"], "choices": [{"index": 0, "message": message, "finish_reason": ends}]}
    asked = body(response_format={"type": "json_object"})
    service = world()
    answer(await ask(service, asked), orjson.dumps(final))
    assert given(await ask(service, asked)) is not None
    guarded = POLICY.replace("signals: {", 'signals: {says: {keyword: {any: ["in italy"], in: answer}}, ').replace(
        "settings:", '  - {name: leak, on: answer, when: says, cut: {message: "No."}}\nsettings:'
    )
    service.engine = build(parse(guarded))
    assert given(await ask(service, asked)) is None


async def test_an_answer_that_says_a_key_twice_is_not_kept() -> None:
    """Only the last one would be judged when it is given again."""
    service = world()
    twice = orjson.dumps(ANSWERS["chat"]).replace(b'"content":', b'"content":"4111 1111 1111 1111","content":')
    answer(await ask(service, body()), twice)
    assert given(await ask(service, body())) is None


async def test_an_api_whose_answers_are_not_kept_makes_nobody_wait() -> None:
    service = world(POLICY.replace("cache: {}", "cache: {any_temperature: true}"))
    data = orjson.dumps({"contents": [{"role": "user", "parts": [{"text": "Where is Rome?"}]}]})
    envoys = []
    for _ in range(2):
        envoy = Envoy(service, DUPLEX, response_body_mode=STREAMED)
        envoy.request(data, "/v1beta/models/auto:generateContent", **ACME)
        await asyncio.sleep(0.05)
        envoys.append(envoy)
    assert all(envoy.sent for envoy in envoys)
    for envoy in envoys:
        envoy.exchange.closed()


SIMILAR = POLICY.replace("cache: {scope: all, ttl: 1m}", "cache: {scope: all, similar: 0.9}").replace(
    "settings: {", "settings: {deadline: 60s, "
)  # an overloaded machine is late, not wrong


def says(api: str, text: str, **fields: Any) -> bytes:
    turn = {"role": "user", "content": text}
    every: dict[str, dict[str, Any]] = {
        "chat": {"messages": [{"role": "system", "content": "Be brief."}, turn]},
        "completions": {"prompt": text},
        "messages": {"messages": [turn | {"content": [{"type": "text", "text": text}]}], "max_tokens": 50},
        "responses": {"input": [turn], "store": False},
    }
    return body(api, **{**every[api], **fields})


@pytest.mark.parametrize("api", ASKED)
async def test_a_question_put_in_another_way_gets_the_answer_where_the_policy_says_so(api: str) -> None:
    service = world(SIMILAR)
    first = await ask(service, says(api, "How do I prove that the root of 2 is irrational?"), api)
    assert given(first) is None
    assert answer(first, orjson.dumps(ANSWERS[api])) == "miss"
    for same in (
        "How do I prove that the root of 2 is irrational?",
        "how can i prove that the root of 2 is irrational",
        "How to prove that the root of 2 is irrational?",
    ):
        found = given(await ask(service, says(api, same), api))
        assert found is not None, same
        assert found[0] == "hit; age=0"
    for other in (
        "How do I prove that the root of 3 is irrational?",
        "How do I prove that the root of 2 is not irrational?",
        "Hello! Could you please tell me how I prove that the root of 2 is irrational? Many thanks!",  # too far off
        "```\nHow do I prove that the root of 2 is irrational?\n```",
    ):
        assert given(await ask(service, says(api, other), api)) is None, other


async def test_all_but_the_question_is_compared_letter_by_letter() -> None:
    service = world(SIMILAR)
    first = await ask(service, says("chat", "How do I prove that a cow is an animal?"))
    assert answer(first, orjson.dumps(ANSWERS["chat"])) == "miss"
    same = "how can I prove that a cow is an animal"
    system = [{"role": "system", "content": "be brief."}, {"role": "user", "content": same}]
    later = [*system[1:], {"role": "assistant", "content": "No."}, {"role": "user", "content": same}]
    for changed in ({"messages": system}, {"messages": later}, {"max_tokens": 5}, {"temperature": 0.0}):
        assert given(await ask(service, says("chat", same, **changed))) is None
    assert given(await ask(service, says("chat", same))) is not None
    # Without the switch the letters count.
    service = world()
    first = await ask(service, says("chat", "How do I prove it all?"))
    assert answer(first, orjson.dumps(ANSWERS["chat"])) == "miss"
    assert given(await ask(service, says("chat", "how can I prove it all"))) is None


async def test_words_that_the_embedding_does_not_know_are_compared_letter_by_letter() -> None:
    service = world(SIMILAR)
    first = await ask(service, says("chat", "prove Xyzzyq plughv frotzim gnustoq?"))
    assert answer(first, orjson.dumps(ANSWERS["chat"])) == "miss"
    assert given(await ask(service, says("chat", "Prove xyzzyq plughv frotzim gnustoq"))) is None
    assert given(await ask(service, says("chat", "prove Xyzzyq plughv frotzim gnustoq?"))) is not None


async def test_equal_questions_at_the_same_time_ask_the_model_once_however_they_are_put() -> None:
    service = world(SIMILAR)
    leads = await ask(service, says("chat", "How do I prove that snow is white?"), mode=DUPLEX)
    follows = Envoy(service, DUPLEX, response_body_mode=STREAMED)
    follows.request(says("chat", "how can i prove that snow is white"), PATHS["chat"], **ACME)
    await asyncio.sleep(0.05)
    assert answer(leads, orjson.dumps(ANSWERS["chat"])) == "miss"
    await follows.settled()
    found = given(follows)
    assert found is not None
    assert found[0].startswith("hit")
