"""Watched answers in the exchange: handed over by Envoy or written by us, given back as far as they were judged."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import pytest

from config.build import build
from config.load import parse
from decisions.decision import Trace
from decisions.engine import Engine
from extproc.watching.sse import encode
from extproc.wire import Pairs
from signals.request import Request
from tests.extproc.envoy import BUFFERED, DUPLEX, Envoy, Service, chat
from tests.extproc.watching.streams import chunk
from tests.extproc.watching.test_watch import CARD, WORDS, whole
from tests.proto.oracle import core, ext_proc
from upstream.answer import Answer
from upstream.events import DONE
from upstream.writer import Charge

POLICY = """\
version: 1
models: {small: {url: "http://a"}, large: {url: "http://b"}}
default: small
signals:
  leak: {pii: {in: answer, types: [card]}}
  words: {keyword: {in: answer, any: [project falcon]}}
  hard: {keyword: {any: [prove]}}
decisions:
  - {name: steps, when: hard, stepwise: {small: small, large: large}}
  - {name: instead, on: answer, when: words, on_unknown: match, respond: {status: 451, message: Not this.}}
  - {name: mask, on: answer, when: leak, on_unknown: match, window: 32, mask: {}}
"""


def made() -> Engine:
    return build(parse(POLICY))


def stream(text: str) -> list[bytes]:
    parts = [text[at : at + 3] for at in range(0, len(text), 3)]
    return [*(encode("", chunk({"content": part})) for part in parts), encode("", chunk(finish="stop")), DONE]


class Writes:
    """An answerer whose writer says these pieces."""

    def __init__(self, kind: str, *pieces: bytes) -> None:
        self.kind, self.pieces, self.left = kind, pieces, 0

    async def answer(self, trace: Trace, request: Request, charge: Charge | None = None) -> Answer | None:
        return Answer(200, {"content-type": self.kind}, self._body())

    def elsewhere(self, trace: Trace, request: Request) -> Pairs | None:
        return None

    async def _body(self) -> AsyncGenerator[bytes, None]:
        try:
            for piece in self.pieces:
                yield piece
        finally:
            self.left += 1


async def written(*pieces: bytes, kind: str = "text/event-stream") -> tuple[Service, Envoy, Writes]:
    writes = Writes(kind, *pieces)
    service = Service(made(), writes)
    envoy = Envoy(service, DUPLEX)
    envoy.request(chat("prove it"))
    await envoy.settled()
    return service, envoy, writes


def said(envoy: Envoy) -> bytes:
    parts = [message.streamed_immediate_response for message in envoy.sent]
    return b"".join(part.body_response.body for part in parts if part is not None and part.body_response is not None)


async def test_an_answer_of_a_writer_is_watched() -> None:
    service, envoy, writes = await written(*stream(f"so {CARD} it is, and then some more words"))
    assert CARD[:4].encode() not in said(envoy)
    assert b"[card]" in said(envoy)
    assert said(envoy).endswith(DONE)
    assert writes.left == 1
    envoy.exchange.closed()
    assert service.outcomes[0].acted == (("mask", "mask"),)
    service, envoy, _ = await written(whole(CARD), kind="application/json")
    assert said(envoy) == whole("[card]")
    head = next(m.streamed_immediate_response.headers_response for m in envoy.sent if m.streamed_immediate_response)
    assert ("x-pointsman-answer", "mask") in [(h.key, h.raw_value.decode() or h.value) for h in head.headers.headers]


async def test_another_answer_takes_the_place_of_a_writers() -> None:
    _, envoy, writes = await written(*stream(f"it is {WORDS} and so on"))
    refusal = envoy.sent[-1].immediate_response
    assert refusal is not None
    assert int(refusal.status.code) == 451
    assert writes.left == 1


async def test_a_writers_answer_in_which_nothing_is_found_goes_on_as_it_is() -> None:
    pieces = stream("nothing to see here, " * 20)
    _, envoy, _ = await written(*pieces)
    assert said(envoy) == b"".join(pieces)


def answered(envoy: Envoy, body: bytes, end: bool = True) -> list[Any]:
    return envoy.say(response_body=ext_proc.HttpBody(body=body, end_of_stream=end))


def handed(service: Service) -> Envoy:
    envoy = Envoy(service, BUFFERED, response_body_mode=DUPLEX)
    envoy.request(chat("hello"))
    return envoy


def test_the_headers_wait_for_the_first_piece() -> None:
    service = Service(made())
    envoy = handed(service)
    assert envoy.response(content_type="text/event-stream") == []
    assert answered(envoy, encode("", chunk({"role": "assistant", "content": ""})), False) == []
    head, *bodies = answered(envoy, b"".join(stream(f"so {CARD} it is")))
    assert head.response_headers is not None
    given = b"".join(one.response_body.response.body_mutation.streamed_response.body for one in bodies)
    assert b"[card]" in given
    assert [one.response_body.response.body_mutation.streamed_response.end_of_stream for one in bodies] == [True]
    assert bodies[-1].dynamic_metadata is not None


def test_trailers_follow_the_last_piece() -> None:
    envoy = handed(Service(made()))
    envoy.response(content_type="text/event-stream")
    answered(envoy, stream("hello")[0], False)
    sent = envoy.say(response_trailers=ext_proc.HttpTrailers(trailers=core.HeaderMap()))
    assert sent[0].response_headers is not None
    assert sent[-1].response_trailers is not None
    assert not sent[1].response_body.response.body_mutation.streamed_response.end_of_stream


def test_an_answer_without_a_body_is_let_go() -> None:
    envoy = handed(Service(made()))
    head = ext_proc.HttpHeaders(
        headers=core.HeaderMap(headers=[core.HeaderValue(key=":status", raw_value=b"204")]), end_of_stream=True
    )
    [sent] = envoy.say(response_headers=head)
    assert sent.response_headers is not None


def test_a_mode_that_does_not_hand_over_is_overridden() -> None:
    envoy = Envoy(Service(made()), BUFFERED)
    envoy.request(chat("hello"))
    [head] = envoy.response(content_type="text/event-stream")
    assert head.mode_override.response_body_mode == DUPLEX
    assert int(head.mode_override.response_trailer_mode) == 1


def test_what_breaks_here_stops_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(made())
    envoy = handed(service)
    envoy.response(content_type="text/event-stream")
    monkeypatch.setattr("extproc.replying.Reply.given", lambda *_: 1 / 0)
    [stopped] = answered(envoy, b"".join(stream("hello")))
    assert stopped.immediate_response is not None
    assert int(stopped.immediate_response.status.code) == 502
    assert service.failures == ["error"]


def test_other_answers_are_given_back_as_they_are() -> None:
    envoy = Envoy(Service(made()), BUFFERED, response_body_mode=DUPLEX)
    envoy.request(b'{"model": "auto", "input": "hi"}', path="/v1/embeddings")
    [head] = envoy.response(content_type="application/json")
    assert head.response_headers is not None
    [body] = answered(envoy, b"{}")
    assert body.response_body.response.body_mutation.streamed_response.body == b"{}"
