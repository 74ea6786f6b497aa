"""What is metered is asked for, and what nobody has asked for is hidden; a writer's answer is counted once."""

from __future__ import annotations

import asyncio
import json
from math import ceil
from typing import Any

import orjson
import pytest

from config.build import build
from config.load import parse
from config.resources import Resources
from decisions.decision import Trace
from decisions.engine import Engine
from extproc.meter import Meter
from extproc.records.metrics import merge
from signals.request import Request
from tests.extproc.envoy import BUFFERED, DUPLEX, STREAMED, Envoy, Service, chat, expect_refusal, set_headers
from tests.extproc.test_exchange import Steps
from tests.proto.oracle import ext_proc
from upstream.answer import Answer
from upstream.usage import Spent
from upstream.writer import Charge

POLICY = """\
version: 1
models:
  small: {price: {input: 1, output: 2, cache_write: 1.25}, url: "http://127.0.0.1:1"}
  large: {price: {input: 10, output: 20}, url: "http://127.0.0.1:1"}
default: small
signals: {spent: {budget: {header: x-tenant, limit: 100}}, hard: {keyword: {any: [prove]}}}
decisions:
  - {name: spent, when: spent, respond: {status: 402}}
  - {name: hard, when: hard, stepwise: {small: small, large: large}}
settings: {meter: on}
"""
SAID = {"usage": {"prompt_tokens": 10, "completion_tokens": 7, "prompt_tokens_details": {"cache_write_tokens": 4}}}
STREAM = (
    b'data: {"choices":[{"delta":{"content":"a"}}],"usage":null}\n\n'
    b"data: " + json.dumps({"choices": [], **SAID}).encode() + b"\n\ndata: [DONE]\n\n"
)
SHOWN = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\ndata: [DONE]\n\n'
TYPE = {"content_type": "text/event-stream; charset=utf-8"}


def world(policy: str = POLICY) -> Service:
    resources = Resources()
    return Service(build(parse(policy), resources), meter=Meter(resources.loads))


async def sent(service: Service, body: bytes, mode: Any = DUPLEX, **terms: Any) -> tuple[Envoy, dict[str, Any]]:
    """The stream of one request, and the body that the model gets."""
    envoy = Envoy(service, mode, **terms)
    envoy.request(body, x_tenant="acme")
    await envoy.settled()
    if mode == DUPLEX:
        return envoy, orjson.loads(envoy.upstream_body())
    mutation = envoy.sent[-1].request_body.response.body_mutation
    return envoy, orjson.loads(body if mutation is None else mutation.body)


def shown(envoy: Envoy, pieces: list[bytes], mode: Any) -> bytes:
    """What the client gets of an answer that comes in these pieces."""
    out = b""
    for at, piece in enumerate(pieces):
        said = ext_proc.HttpBody(body=piece, end_of_stream=at == len(pieces) - 1)
        for message in envoy.say(response_body=said):
            changes = message.response_body.response
            mutation = None if changes is None else changes.body_mutation
            if mode == DUPLEX:
                out += mutation.streamed_response.body
            elif mutation is None:
                out += piece
            else:
                out += mutation.body or b""  # none: it was cleared
    return out


@pytest.mark.parametrize("mode", [STREAMED, DUPLEX, BUFFERED])
@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
async def test_a_stream_is_asked_for_its_usage_which_its_client_never_sees(mode: Any, size: int) -> None:
    service = world()
    envoy, body = await sent(service, chat(stream=True, stream_options={"x": 1}), response_body_mode=mode)
    assert body["stream_options"] == {"x": 1, "include_usage": True}
    (head,) = envoy.response(**TYPE, content_length=str(len(STREAM)))
    assert "content-length" in head.response_headers.response.header_mutation.remove_headers
    pieces = [STREAM[at : at + size] for at in range(0, len(STREAM), size)] if mode != BUFFERED else [STREAM]
    assert shown(envoy, pieces, mode) == SHOWN
    envoy.exchange.closed()
    (outcome,) = service.outcomes
    assert (outcome.prompt, outcome.completion, outcome.written) == (10, 7, 4)
    assert outcome.money == pytest.approx((6 * 1 + 4 * 1.25 + 7 * 2) / 1e6)


async def test_what_is_left_of_a_stream_goes_out_before_its_trailers() -> None:
    envoy, _ = await sent(world(), chat(stream=True), response_body_mode=DUPLEX)
    envoy.response(**TYPE)
    left = b'data: {"choices":[{"delta":{"content":"b"}}]}'
    out = b""
    for message in envoy.say(response_body=ext_proc.HttpBody(body=STREAM + left)):
        out += message.response_body.response.body_mutation.streamed_response.body
    *pieces, last = envoy.say(response_trailers=ext_proc.HttpTrailers())
    assert last.response_trailers is not None
    for message in pieces:
        streamed = message.response_body.response.body_mutation.streamed_response
        assert not streamed.end_of_stream
        out += streamed.body
    assert out == SHOWN + left


@pytest.mark.parametrize(
    ("fields", "terms", "policy"),
    [
        ({"stream": True, "stream_options": {"include_usage": True}}, {"response_body_mode": STREAMED}, POLICY),
        ({}, {"response_body_mode": STREAMED}, POLICY),
        ({"stream": True}, {}, POLICY),  # the gateway does not show the answer, so nothing could be hidden in it
        (
            {"stream": True},
            {"response_body_mode": STREAMED},
            POLICY.replace("small: {price", "small: {stream_usage: false, price"),
        ),
        (
            {"stream": True},
            {"response_body_mode": STREAMED},
            POLICY.replace("small: {price", "small: {fallback: [large], price").replace(
                "large: {price", "large: {stream_usage: false, price"
            ),
        ),
        (
            {"stream": True},
            {"response_body_mode": STREAMED},
            POLICY.replace("signals: {spent: {budget: {header: x-tenant, limit: 100}}, ", "signals: {")
            .replace("  - {name: spent, when: spent, respond: {status: 402}}\n", "")
            .replace("meter: on", "meter: off"),
        ),
    ],
)
async def test_nobody_is_asked_in_vain(fields: dict[str, Any], terms: dict[str, Any], policy: str) -> None:
    body = chat(**fields)
    envoy, got = await sent(world(policy), body, BUFFERED, **terms)
    assert got.get("stream_options") == orjson.loads(body).get("stream_options")
    if not terms:
        return
    envoy.response(**TYPE)
    assert shown(envoy, [STREAM], STREAMED) == STREAM


@pytest.mark.parametrize("more", [{"content_type": "application/json"}, {**TYPE, "content_encoding": "gzip"}])
async def test_what_is_no_stream_that_can_be_read_goes_on_as_it_is(more: dict[str, str]) -> None:
    envoy, _ = await sent(world(), chat(stream=True), response_body_mode=STREAMED)
    envoy.response(**more)
    assert shown(envoy, [STREAM], STREAMED) == STREAM


# A writer's answer, within the exchange


class Paid(Steps):
    """A writer that says what it has taken when its answer is closed, or when it fails."""

    def __init__(self, *pieces: bytes | Exception, fails: bool = False) -> None:
        super().__init__(*pieces)
        self.fails = fails

    async def answer(self, trace: Trace, request: Request, charge: Charge | None = None) -> Answer | None:
        assert charge is not None
        bill = Spent(100, 10, 0.5, 40)
        if self.fails:
            charge(bill)
            raise ZeroDivisionError
        body = self.body()

        async def paid() -> Any:
            try:
                async for piece in body:
                    yield piece
            finally:
                await asyncio.sleep(0)  # as a connection that takes its time to close
                charge(bill)

        return Answer(200, {"content-type": "text/event-stream", "x-pointsman-model": "small+large"}, paid())


async def left(engine: Engine, request: Request) -> float:
    score = (await engine.decide(request)).readings["spent"].score
    assert score is not None
    return score


@pytest.mark.parametrize("fate", ["complete", "broken", "client leaves"])
async def test_a_writers_answer_is_counted_and_charged_once(fate: str) -> None:
    service = world()
    service.answerer = Paid(*[b"x"] * 300, *([ZeroDivisionError()] if fate == "broken" else []))
    envoy = Envoy(service, DUPLEX)
    envoy.request(chat("prove it"), x_tenant="acme")
    request = envoy.exchange._request
    assert request is not None
    task = envoy.exchange._task
    assert task is not None
    if fate == "client leaves":
        while len(envoy.sent) < 3:  # noqa: ASYNC110 - the exchange has no event for a test to wait for
            await asyncio.sleep(0)
    else:
        await envoy.settled()
    envoy.exchange.closed()
    await asyncio.wait([task])
    await asyncio.sleep(0)
    (outcome,) = service.outcomes
    assert (outcome.prompt, outcome.completion, outcome.money, outcome.cached) == (100, 10, 0.5, 40)
    assert (outcome.status, outcome.trace.decision.name) == (200, "hard")
    assert outcome.first_byte is not None
    assert await left(service.engine, request) == pytest.approx(1 - 0.5 / 100)


async def test_what_a_failed_writer_took_is_paid_with_the_plain_answer() -> None:
    service = world()
    service.answerer = Paid(fails=True)
    envoy = Envoy(service, DUPLEX, response_body_mode=STREAMED)
    envoy.request(chat("prove it"), x_tenant="acme")
    await envoy.settled()
    envoy.response()
    shown(envoy, [json.dumps(SAID).encode()], STREAMED)
    envoy.exchange.closed()
    (outcome,) = service.outcomes
    assert outcome.money == pytest.approx(0.5 + (10 * 10 + 7 * 20) / 1e6)
    assert (outcome.prompt, outcome.completion) == (110, 17)


# Refusals

LIMITS = """\
version: 1
models: {small: {price: {input: 1, output: 2}}}
default: small
signals:
  hourly: {budget: {header: x-tenant, limit: 1, per: hour}}
  daily: {budget: {header: x-tenant, limit: 2, per: day}}
  rich: {budget: {header: x-tenant, limit: 1, per: hour, remaining: {at_least: 0.1}}}
  session: {budget: {limit: 1, per: session}}
  bad: {keyword: {any: [bad]}}
decisions:
  - {name: refused, when: RULE, respond: {status: 429, message: The budget is spent.}}
"""


@pytest.mark.parametrize(
    ("rule", "spent", "text", "seconds"),
    [
        ("hourly", 1.0, "hi", 3600),
        ("{not: rich}", 1.0, "hi", 3600),
        ("{signal: hourly, at_most: 0.5}", 0.6, "hi", 3600),
        ("{any: [hourly, daily]}", 1.0, "hi", 3600),
        ("{any: [hourly, daily]}", 2.0, "hi", 3600),  # the first settles it: the other is not read
        ("{any: [daily, hourly]}", 2.0, "hi", 86_400),
        ("{any: [hourly, bad]}", 1.0, "bad", None),  # tomorrow it is as bad
        ("{any: [hourly, bad]}", 0.0, "bad", None),
        ("{all: [hourly, bad]}", 1.0, "bad", 3600),
        ("session", 1.0, "hi", None),
        ("bad", 1.0, "bad", None),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
async def test_a_refusal_by_a_budget_says_when_to_come_again(
    rule: str, spent: float, text: str, seconds: int | None, path: str
) -> None:
    service = world(LIMITS.replace("RULE", rule))
    body = orjson.loads(chat(text))
    if path == "/v1/responses":
        body = {"model": "auto", "input": text}
    for ask in (True, False):
        envoy = Envoy(service)
        envoy.request(orjson.dumps(body | {"max_tokens": 5}), path, x_tenant="acme", x_session_id="s")
        await envoy.settled()
        request = envoy.exchange._request
        assert request is not None
        if ask:
            service.engine.charge(request, spent)
    given = expect_refusal(envoy.sent[-1], 429)
    assert given
    headers = set_headers(envoy.sent[-1].immediate_response.headers)
    left = None if seconds is None else str(ceil(seconds - request.received % seconds))  # periods are those of UTC
    assert headers.get("retry-after") == left


async def test_the_policys_own_retry_after_stands() -> None:
    service = world(LIMITS.replace("RULE", "hourly").replace("spent.}", "spent., headers: {Retry-After: '7'}}"))
    for _ in range(2):
        envoy = Envoy(service)
        envoy.request(chat(), x_tenant="acme")
        await envoy.settled()
        request = envoy.exchange._request
        assert request is not None
        service.engine.charge(request, 1.0)
    assert set_headers(envoy.sent[-1].immediate_response.headers)["retry-after"] == "7"


def test_of_several_workers_the_least_share_counts() -> None:
    name = "pointsman_budget_remaining"
    found = merge([{name: [(("a",), 0.5), (("b",), 1.0)]}, {name: [(("a",), 0.25)]}])
    assert dict(found[name]) == {("a",): 0.25, ("b",): 1.0}
