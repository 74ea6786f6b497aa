"""Mutated requests through the real `Exchange`, with a guard that reads everything: nothing marked may reach a model.

Each request is told as Envoy tells it, in BUFFERED and in FULL_DUPLEX_STREAMED mode in turn; the answers are put into
effect as Envoy does, and what the upstream would get is read as lenient servers read it (tests.fuzz.upstreams). Time is
processor time of this thread: what the event loop is held up for, work for another thread left out.
"""

from __future__ import annotations

import asyncio
import gc
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import orjson

from config.build import build
from config.load import parse
from decisions.decision import Trace
from decisions.outcome import Outcome
from extproc.exchange import Exchange
from extproc.transport.seam import Stream
from proto import ext_proc_pb2 as pb
from signals.request import Request
from tests.extproc import envoy
from tests.fuzz.grammar import Case, Grammar
from tests.fuzz.upstreams import calls, form, may_show, names, readings, shows, shows_unread

POLICY = """
version: 1
models:
  small: {name: org/small, url: "http://127.0.0.1:1"}
  large: {name: org/large, url: "http://127.0.0.1:1"}
default: small
signals:
  forbidden: {keyword: {any: [classified-codeword], in: all, whole_words: false}}
decisions:
  - {name: guard, when: forbidden, on_unknown: match, respond: {status: 403, message: "Refused by policy."}}
"""
PAUSE_S = 0.05
"""Seconds that one request may hold up the event loop."""
SHOWN = 2_000

T = TypeVar("T")


class Sent(NamedTuple):
    """What the upstream gets."""

    path: str
    method: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Service(envoy.Service):
    """The Context of an Exchange. Work for another thread is done at once, and its time is kept apart."""

    requests: list[tuple[Request, Trace]] = field(default_factory=list)
    apart_s: float = 0.0

    def record(self, outcome: Outcome, request: Request, stream: Stream) -> None:
        trace = outcome.trace
        self.requests.append((request, trace))
        if trace.decision.fallback is not None:
            self.failures.append(f"fallback {trace.decision.fallback}")

    async def apart(self, work: Callable[[], T]) -> T:
        begin = time.thread_time()
        try:
            return work()
        finally:
            self.apart_s += time.thread_time() - begin

    def unread(self, reason: str, method: str, path: str) -> None:
        pass


class Envoy:
    """One request's stream."""

    metadata: Mapping[str, str] = {}

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.finished: tuple[int, str] | None = None

    def send(self, message: bytes) -> None:
        assert self.finished is None, "a message after the end of the stream"
        self.sent.append(message)

    def finish(self, status: int = 0, message: str = "") -> None:
        self.finished = self.finished or (status, message)

    async def drain(self) -> None:
        pass

    def take(self) -> list[pb.ProcessingResponse]:
        taken, self.sent = self.sent, []
        return [pb.ProcessingResponse.FromString(message) for message in taken]


class Finding(Exception):
    """Something that must not be."""


class Driver:
    """Drives requests through one policy, and judges what becomes of each."""

    def __init__(self) -> None:
        self.service = Service(build(parse(POLICY)))
        self.worst_s = 0.0
        self.worst_apart_s = 0.0
        self.outcomes: Counter[str] = Counter()

    async def __call__(self, case: Case, duplex: bool) -> None:
        """Raises `Finding`."""
        service = self.service
        service.requests, service.failures, service.apart_s = [], [], 0.0
        begin = time.thread_time()
        try:
            sent = await self._drive(case, duplex)
        except AssertionError as error:
            raise Finding(f"an answer that Envoy would not take: {error}") from error
        taken = time.thread_time() - begin
        loop_s = taken - service.apart_s
        self.worst_s = max(self.worst_s, loop_s)
        self.worst_apart_s = max(self.worst_apart_s, service.apart_s)
        if "error" in service.failures or "unreadable_body" in service.failures:
            raise Finding(f"an exception: {service.failures}")
        if any(failure.startswith("fallback") for failure in service.failures):
            raise Finding(f"decided by default: {service.failures}")
        if service.bodies.total:
            raise Finding("bytes of a body that are still counted")
        if sent is None:
            self.outcomes[f"refused {service.failures[0]}" if service.failures else "refused by the guard"] += 1
        else:
            self._judge(sent)
        if loop_s > PAUSE_S:
            raise Finding(f"a pause of {1e3 * loop_s:.0f} ms")

    async def _drive(self, case: Case, duplex: bool) -> Sent | None:
        """What the upstream gets; None where the client gets an answer instead."""
        stream = Envoy()
        exchange = Exchange(self.service, stream)
        try:
            part = pb.HttpHeaders(end_of_stream=case.end)
            add = part.headers.headers.add
            add(key=":path", raw_value=case.path.encode())
            for name, value in case.headers:
                add(key=name, raw_value=value.encode())
            mode = pb.ProcessingMode.FULL_DUPLEX_STREAMED if duplex else pb.ProcessingMode.BUFFERED
            config = pb.ProtocolConfiguration(request_body_mode=mode)
            message = pb.ProcessingRequest(request_headers=part, protocol_config=config)
            exchange.message(message.SerializeToString())
            if not case.end and stream.finished is None and (duplex or not _refused(stream.sent)):
                size = len(case.body) // case.pieces + 1 if duplex else len(case.body) or 1
                for at in range(0, len(case.body) or 1, size):
                    end = at + size >= len(case.body)
                    body = pb.HttpBody(body=case.body[at : at + size], end_of_stream=end)
                    exchange.message(pb.ProcessingRequest(request_body=body).SerializeToString())
                    if stream.finished is not None:
                        break  # type: ignore[unreachable]  # the message may have ended the stream
            while (task := exchange._task) is not None:
                await asyncio.wait([task])
        finally:
            exchange.closed()
        if stream.finished is not None and stream.finished[0]:
            raise Finding(f"the stream was ended: {stream.finished}")
        return self._effect(case, stream, duplex)

    def _effect(self, case: Case, stream: Envoy, duplex: bool) -> Sent | None:
        """Puts the answers into effect."""
        answers = stream.take()
        assert answers or stream.finished is not None, "no answer at all"
        kinds = [answer.WhichOneof("response") for answer in answers]
        if "immediate_response" in kinds:
            assert kinds.index("immediate_response") == len(kinds) - 1, kinds
            reply = answers[-1].immediate_response
            assert 200 <= reply.status.code < 600
            if reply.body:
                orjson.loads(reply.body)
            return None
        headers: dict[str, str] = {}
        for name, value in (*case.headers, (":path", case.path)):
            headers[name] = f"{headers[name]},{value}" if name in headers else value
        body = case.body
        pieces: list[bytes] = []
        wanted = (
            ["request_headers"] if case.end or (stream.finished and not duplex) else ["request_headers", "request_body"]
        )
        assert list(dict.fromkeys(kinds)) == wanted, kinds
        for answer, kind in zip(answers, kinds, strict=True):
            common = getattr(answer, str(kind)).response
            for name in common.header_mutation.remove_headers:
                headers.pop(name, None)
            for option in common.header_mutation.set_headers:
                assert option.append_action == option.OVERWRITE_IF_EXISTS_OR_ADD
                headers[option.header.key] = option.header.raw_value.decode()
            change = common.body_mutation.WhichOneof("mutation")
            if change == "streamed_response":
                assert duplex
                assert len(common.body_mutation.streamed_response.body) <= 62_000
                pieces.append(common.body_mutation.streamed_response.body)
            elif change is not None:
                assert change == "body", change
                body = common.body_mutation.body
        if duplex and not case.end:
            body = b"".join(pieces)
        return Sent(headers[":path"], headers.get(":method", ""), headers, body)

    def _judge(self, sent: Sent) -> None:
        """Raises `Finding` where an upstream would show the marked text, or takes the request for something else."""
        path, body = sent.path, sent.body
        found = calls(path)
        if any(name.startswith("x-pointsman-") and name != "x-pointsman-route" for name in sent.headers):
            raise Finding("a header of ours that came from the client")
        if (
            "websocket" in (sent.headers.get("upgrade", ""), sent.headers.get(":protocol", ""))
            and sent.method != "POST"
        ):
            raise Finding("an upgrade was let on")
        if not self.service.requests:
            self.outcomes["passed"] += 1
            if body:
                raise Finding(f"passed on unread, and servers take its path for {found}")
            return
        request, trace = self.service.requests[0]
        model = trace.decision.model
        self.outcomes[f"routed {request.api}"] += 1
        if found != {request.api}:
            raise Finding(f"read as {request.api}, and servers take its path for {found}")
        if not set(sent.headers.get("content-encoding", "").lower().replace(" ", "").split(",")) <= {"", "identity"}:
            raise Finding("sent on with a content-encoding")
        if sent.method != "POST":
            raise Finding(f"a body with {sent.method}")
        if not may_show(body):
            fields = orjson.loads(body)
            once = body.lower().count(b'"model"') == (request.api != "gemini")  # Google's path says it
            shown = [(fields, None)] if once else [(f, None) for f in readings(body)]
        else:
            shown = [(fields, shows(fields, request.api)) for fields in readings(body)]
            if "form" in sent.headers.get("content-type", "") and form(body):
                raise Finding("a reader of forms sees the marked text")
        for fields, way in shown:
            way = shows_unread(request.api, fields) or way
            if model is None or (named := names(path, request.api, fields)) != model.name:
                raise Finding(f"a reader takes {named!r} for the model")
            if way is not None:
                raise Finding(f"the marked text is shown: {way}")


def _refused(sent: list[bytes]) -> bool:
    return bool(sent) and pb.ProcessingResponse.FromString(sent[-1]).HasField("immediate_response")


def run(inputs: int, seed: int, report: Callable[[str], None] = print) -> int:
    """Drive `inputs` requests; returns how many findings there were. Every kind of them is told of three times."""
    return asyncio.run(_run(inputs, seed, report))


async def _run(inputs: int, seed: int, report: Callable[[str], None]) -> int:
    driver, grammar = Driver(), Grammar(seed)
    gc.collect()
    gc.freeze()  # as the service does
    gc.set_threshold(20_000, 2, 1_000)
    kinds: Counter[str] = Counter()
    begin = time.monotonic()
    for number in range(1, inputs + 1):
        case = grammar.request()
        try:
            await driver(case, number % 2 == 0)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
            what = str(error) if isinstance(error, Finding) else "".join(traceback.format_exception(error)[-3:])
            kind = what.partition(" ms")[0].rstrip("0123456789")
            kinds[kind] += 1
            if kinds[kind] <= 3:
                report(f"finding in input {number}: {what}\n  {case.path[:SHOWN]!r} {case.headers}")
                report(f"  {case.body[:SHOWN]!r}")
        if number % 100_000 == 0 or number == inputs:
            pauses = f"longest pause {1e3 * driver.worst_s:.1f} ms, in a thread {1e3 * driver.worst_apart_s:.0f} ms"
            seconds = time.monotonic() - begin
            report(f"{number} inputs, {seconds:.0f} s, findings {sum(kinds.values())}, {pauses}")
    for name, count in driver.outcomes.most_common():
        report(f"{count:10} {name}")
    for name, count in kinds.most_common():
        report(f"{count:10} FINDINGS {name}")
    return sum(kinds.values())
