"""Whatever a peer says, in whatever order: no spurious message, no exception, nothing after the end of the stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.exchange import Exchange
from proto import ext_proc_pb2
from tests.extproc.envoy import Service, chat, clause, engine, word
from tests.volume import few_and_many

MODES = ext_proc_pb2.ProcessingMode.BodySendMode
DUPLEX = MODES.FULL_DUPLEX_STREAMED
POLICY = engine(
    clause("guard", "evil", "respond", status=403, message="No."),
    clause("code", "traceback", "route"),
    signals=[word("evil"), word("traceback")],
    max_body=500,
)
PATHS = ["/v1/chat/completions", "/v1/messages", "/v1/models", "/v1/models/x", "/static", ""]
BODIES = [chat("hi"), chat("evil"), chat("a traceback"), chat(model="large"), chat(model="?"), b"", b"{", b"x" * 400]


class Peer:
    """A stream that checks what is sent against what was asked."""

    metadata: Mapping[str, str] = {}

    def __init__(self, mode: int, response_mode: int, no_wait: bool) -> None:
        self.duplex = {"request": mode == DUPLEX, "response": response_mode == DUPLEX}
        self.terms = ext_proc_pb2.ProtocolConfiguration(
            request_body_mode=mode,  # type: ignore[arg-type]
            response_body_mode=response_mode,  # type: ignore[arg-type]
            send_body_without_waiting_for_header_response=no_wait,
        )
        self.unanswered: dict[str, list[str]] = {"request": [], "response": []}
        self.came = {"request": b"", "response": b""}
        self.given = {"request": b"", "response": b""}
        self.answered = False
        self.finished: int | None = None

    def finish(self, status: int = 0, message: str = "") -> None:
        self.finished = status if self.finished is None else self.finished

    async def drain(self) -> None: ...

    def send(self, message: bytes) -> None:
        assert self.finished is None, "a message after the end of the stream"
        reply = ext_proc_pb2.ProcessingResponse.FromString(message)
        kind = reply.WhichOneof("response")
        assert kind is not None
        if kind == "immediate_response":
            assert not self.answered
            assert self.unanswered["request"], "nothing was asked"
            self.answered = True
            return
        side, part = kind.split("_")
        if side == "request":
            assert not self.answered, "a reply to a request that was answered"
        if self.duplex[side] and part == "body":
            mutation = getattr(reply, kind).response.body_mutation
            assert mutation.WhichOneof("mutation") == "streamed_response"
            assert f"{side}_headers" not in self.unanswered[side], "a body before its headers"
            assert len(mutation.streamed_response.body) <= 62_000
            self.given[side] += mutation.streamed_response.body
            return
        assert self.unanswered[side], f"spurious {kind}"
        assert self.unanswered[side].pop(0) == kind

    def say(self, exchange: Exchange, kind: str, **fields: Any) -> None:
        side, part = kind.split("_")
        if kind == "response_headers":
            self.unanswered["request"].clear()  # Envoy has its response, and waits for none of these any more
        if not (self.duplex[side] and part == "body"):
            self.unanswered[side].append(kind)
        message = ext_proc_pb2.ProcessingRequest()
        getattr(message, kind).SetInParent()
        for name, value in fields.items():
            if name == "headers":
                for key, text in value.items():
                    getattr(message, kind).headers.headers.add(key=key, raw_value=text.encode())
            else:
                setattr(getattr(message, kind), name, value)
        message.protocol_config.CopyFrom(self.terms)
        exchange.message(message.SerializeToString())


STEPS = st.one_of(
    st.tuples(
        st.just("request_headers"),
        st.sampled_from(PATHS),
        st.sampled_from(["POST", "GET", "HEAD"]),
        st.booleans(),
        st.sampled_from(["", "application/json", "text/plain"]),
    ),
    st.tuples(st.just("request_body"), st.sampled_from(BODIES), st.booleans()),
    st.tuples(st.just("request_trailers")),
    st.tuples(st.just("response_headers"), st.booleans()),
    st.tuples(st.just("response_body"), st.sampled_from(BODIES), st.booleans()),
    st.tuples(st.just("response_trailers")),
    st.tuples(st.just("half_closed")),
)
# The start of most real streams; without it few random ones would get as far as a decision.
HEADERS = st.tuples(
    st.just("request_headers"), st.sampled_from(PATHS[:2]), st.just("POST"), st.just(False), st.just("application/json")
)


def take(peer: Peer, exchange: Exchange, step: tuple[Any, ...]) -> None:
    kind, *more = step
    if kind == "half_closed":
        exchange.half_closed()
    elif kind == "request_headers":
        path, method, end, content_type = more
        fields = {":path": path, ":method": method, "content-type": content_type, "x-pointsman-route": "large"}
        peer.say(exchange, kind, headers=fields, end_of_stream=end)
    elif kind == "response_headers":
        peer.say(exchange, kind, headers={":status": "200"}, end_of_stream=more[0])
    elif kind.endswith("_body"):
        peer.say(exchange, kind, body=more[0], end_of_stream=more[1])
    else:
        peer.say(exchange, kind)


@pytest.mark.no_cover
@pytest.mark.parametrize("mode", [m for m in MODES.values() if m != MODES.GRPC])
@few_and_many(50, 250)
def test_any_order_of_messages(mode: int, examples: int) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(
        st.one_of(HEADERS, HEADERS, STEPS), st.lists(STEPS, max_size=8), st.sampled_from([0, 1, 2, 4]), st.booleans()
    )
    def holds(first: Any, rest: list[Any], response_mode: int, no_wait: bool) -> None:
        peer = Peer(mode, response_mode, no_wait and mode == MODES.STREAMED)
        service = Service(POLICY)
        exchange = Exchange(service, peer)
        for step in [first, *rest]:
            if peer.finished is not None:
                break
            if step[0] == "request_headers" and step is not first:
                continue  # headers come once, and first
            take(peer, exchange, step)
        exchange.half_closed()
        exchange.closed()
        assert peer.finished is not None
        assert "error" not in service.failures
        assert all(trace.decision.fallback is None for trace in service.traces)
        assert len(service.traces) <= 1

    holds()


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=4), st.binary(max_size=30))
def test_any_bytes(messages: list[bytes], tail: bytes) -> None:
    """Random bytes, and random bytes behind a whole message (protobuf merges what follows)."""
    whole = ext_proc_pb2.ProcessingRequest()
    whole.request_headers.headers.headers.add(key=":path", raw_value=b"/v1/chat/completions")

    class Deaf(Peer):
        def send(self, message: bytes) -> None:
            ext_proc_pb2.ProcessingResponse.FromString(message)

    for data in ([*messages], [whole.SerializeToString() + tail, *messages]):
        peer = Deaf(MODES.BUFFERED, 0, False)
        exchange = Exchange(Service(POLICY), peer)
        for message in data:
            exchange.message(message)
        exchange.half_closed()
        exchange.closed()
        assert peer.finished is not None
