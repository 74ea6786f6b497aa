"""Random frame sequences, valid and not, with the `h2` library as oracle for what a server must make of them."""

from __future__ import annotations

import os
import struct
from collections import Counter

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from extproc.transport import frames
from extproc.transport.frames import END_HEADERS, END_STREAM, PADDED, PRIORITIZED, frame
from extproc.transport.seam import Stream, TransportLimits
from tests.extproc.transport.conftest import METHOD, Frame, head, text
from tests.extproc.transport.memory import InMemory

LIMITS = TransportLimits(
    stream_window_bytes=70_000, connection_window_bytes=150_000, max_control_frames=1_000_000, max_concurrent_streams=8
)
EXAMPLES = os.environ.get("POINTSMAN_ORACLE_EXAMPLES")  # a longer, random search

BAD_BLOCKS = [
    b"\x20\x83\x86",  # no path
    b"\x20\x86\x04" + text(METHOD),  # no method
    head() + b"\0" + text("Upper") + text("x"),
    head() + b"\0" + text("connection") + text("close"),
    head() + b"\x01" + text("late"),
    b"\x20\x83" + head()[1:],
    b"\x20\x80",  # index 0
    b"\x20\xbe",  # an empty table
    b"\x20\x00\x7f",  # cut off
    b"\x3f\x01" + head()[1:],  # a table larger than announced
]


class Receiver:
    def __init__(self, machine: ServerAgainstOracle, stream: Stream) -> None:
        self.stream = stream
        self.number = stream.number  # type: ignore[attr-defined]
        self.data = b""
        self.events: Counter[str] = Counter()
        machine.receivers[self.number] = self

    def message(self, data: bytes) -> None:
        assert not self.events["closed"]
        assert not self.events["half_closed"]
        self.data += b"\0" + struct.pack(">I", len(data)) + data

    def half_closed(self) -> None:
        assert not self.events["closed"]
        self.events["half_closed"] += 1

    def closed(self) -> None:
        self.events["closed"] += 1


class ServerAgainstOracle(RuleBasedStateMachine):
    """Every frame goes to both. What h2 reports must have happened here too."""

    @initialize()
    def connect(self) -> None:
        self.receivers: dict[int, Receiver] = {}
        self.ours = InMemory({METHOD: lambda stream: Receiver(self, stream)}, LIMITS)
        self.oracle = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding=None))
        codes = h2.settings.SettingCodes
        self.oracle.local_settings = h2.settings.Settings(
            client=False,
            initial_values={
                codes.HEADER_TABLE_SIZE: 0,
                codes.MAX_CONCURRENT_STREAMS: LIMITS.max_concurrent_streams,
                codes.INITIAL_WINDOW_SIZE: LIMITS.stream_window_bytes,
                codes.MAX_FRAME_SIZE: LIMITS.max_frame_bytes,
                codes.MAX_HEADER_LIST_SIZE: LIMITS.max_header_bytes,
            },
        )
        self.oracle.initiate_connection()
        self.over = self.several_faults = False
        self.data: dict[int, bytes] = {}
        self.ended: set[int] = set()
        self.reset: set[int] = set()
        self.next_id = 1
        self.ours.wire.take()
        self.oracle.increment_flow_control_window(LIMITS.connection_window_bytes - 65_535)
        self.feed(frames.PREFACE + frames.settings({}) + frame(frames.SETTINGS, frames.ACK, 0))
        self.oracle.decoder.max_allowed_table_size = 0  # as our SETTINGS said; h2 sees no change in them
        self.oracle.max_inbound_frame_size = LIMITS.max_frame_bytes

    def feed(self, data: bytes) -> None:
        """One or more frames to both sides, and compare."""
        self.ours.feed(data)
        sent = self.ours.wire.take()
        goaway = [found for found in sent if found.kind == frames.GOAWAY]
        resets = {found.stream: found.code for found in sent if found.kind == frames.RST_STREAM}
        try:
            events = self.oracle.receive_data(data)
        except h2.exceptions.ProtocolError as error:
            # h2 may make of a stream's error one of the connection (RFC 9113 section 5.4.2), with the same code
            ours = {found.code for found in goaway} or set(resets.values())
            if int(error.error_code) not in ours and not self.known(error, ours):
                raise AssertionError(f"h2 says {error!r}, we say {ours}") from error
            self.over = True
            return
        if goaway:  # where h2 is lenient: HEADERS on a closed stream, resets and grants of an idle one
            idle = goaway[0].code == frames.PROTOCOL_ERROR and b"on an idle stream" in goaway[0].payload
            assert idle or goaway[0].code == frames.STREAM_CLOSED, goaway
            self.over = True
            return
        self.apply(events, resets)
        for found in sent:
            if found.kind == frames.WINDOW_UPDATE and (not found.stream or found.stream in self.oracle.streams):
                self.oracle.increment_flow_control_window(found.code, found.stream or None)
        self.oracle.clear_outbound_data_buffer()
        self.compare(sent)

    def known(self, error: h2.exceptions.ProtocolError, ours: set[int]) -> bool:
        """Where both are right."""
        if "Error decoding header block" in str(error):
            return ours == {frames.COMPRESSION_ERROR}  # RFC 9113 section 4.3; h2 says PROTOCOL_ERROR
        if self.several_faults and ours:
            return ours <= {frames.PROTOCOL_ERROR, frames.FRAME_SIZE_ERROR, frames.STREAM_CLOSED}
        if isinstance(error, h2.exceptions.TooManyStreamsError):
            return ours == {frames.REFUSED_STREAM}  # RFC 9113 section 5.1.2 names both
        if isinstance(error, h2.exceptions.StreamClosedError | h2.exceptions.StreamIDTooLowError):
            # h2 may call it PROTOCOL_ERROR; section 5.1 names both, and asks to drop what comes after our reset
            return ours == {frames.STREAM_CLOSED} or (not ours and bool(self.ours.connection.numbers.resets))
        return isinstance(error, h2.exceptions.DenialOfServiceError) and ours == {frames.ENHANCE_YOUR_CALM}

    def apply(self, events: list[h2.events.Event], resets: dict[int, int]) -> None:
        told: set[int] = set()
        for event in events:
            if isinstance(event, h2.events.DataReceived):
                self.data[event.stream_id] = self.data.get(event.stream_id, b"") + event.data
            elif isinstance(event, h2.events.StreamEnded):
                self.ended.add(event.stream_id)
            elif isinstance(event, h2.events.StreamReset):
                self.reset.add(event.stream_id)
                if not event.remote_reset:
                    told.add(event.stream_id)
                    late = event.stream_id in self.ended  # late and malformed is both
                    ours = resets.get(event.stream_id)
                    assert ours == int(event.error_code) or (late and ours == frames.PROTOCOL_ERROR), (event, resets)
        for number, code in resets.items():
            if number not in told:
                # what we end and h2 leaves to its user: a frame on a closed stream, unfinished messages
                assert code in (frames.NO_ERROR, frames.STREAM_CLOSED, frames.FRAME_SIZE_ERROR), (number, code)
                self.reset.add(number)
                stream = self.oracle.streams.get(number)
                if stream is not None and stream.open:
                    self.oracle.reset_stream(number, code)

    def compare(self, sent: list[Frame]) -> None:
        assert self.ours.wire.open
        for number, receiver in self.receivers.items():
            live = number in self.ours.connection.streams
            assert receiver.events["closed"] == (not live)
            if live:
                assert self.data.get(number, b"").startswith(receiver.data)
                assert receiver.events["half_closed"] == (number in self.ended)

    def some_stream(self, choice: int) -> int:
        """A number that was opened, or that was not."""
        return max(1, self.next_id - 2 * choice)

    alive = precondition(lambda self: not self.over)

    @alive
    @rule(
        end=st.booleans(),
        skip=st.sampled_from([0, 0, 0, 2, 20]),
        cut=st.integers(0, 60),
        shape=st.sampled_from(["plain", "plain", "plain", "padded", "priority", "continued"]),
    )
    def opens(self, end: bool, skip: int, cut: int, shape: str) -> None:
        number = self.next_id + skip
        self.next_id = number + 2
        block, flags = head(), END_HEADERS | (END_STREAM if end else 0)
        if shape == "continued":
            parts = frame(frames.HEADERS, flags & END_STREAM, number, block[:cut])
            self.feed(parts + frame(frames.CONTINUATION, END_HEADERS, number, block[cut:]))
        elif shape == "padded":
            self.feed(frame(frames.HEADERS, flags | PADDED, number, bytes((cut,)) + block + bytes(cut)))
        elif shape == "priority":
            self.feed(frame(frames.HEADERS, flags | PRIORITIZED, number, b"\0\0\0\0\7" + block))
        else:
            self.feed(frame(frames.HEADERS, flags, number, block))

    @alive
    @rule(choice=st.integers(0, 6), sizes=st.lists(st.integers(0, 20_000), min_size=1, max_size=3), end=st.booleans())
    def sends_messages(self, choice: int, sizes: list[int], end: bool) -> None:
        wire = b"".join(b"\0" + struct.pack(">I", size) + bytes(size) for size in sizes)
        self.feed(frame(frames.DATA, END_STREAM if end else 0, self.some_stream(choice), wire))

    @alive
    @rule(choice=st.integers(0, 6), size=st.integers(0, 60_000), cut=st.integers(0, 60_005), pad=st.integers(0, 255))
    def sends_a_message_in_two_frames(self, choice: int, size: int, cut: int, pad: int) -> None:
        wire = b"\0" + struct.pack(">I", size) + bytes(size)
        number = self.some_stream(choice)
        self.feed(frame(frames.DATA, PADDED, number, bytes((pad,)) + wire[:cut] + bytes(pad)))
        if not self.over:
            self.feed(frame(frames.DATA, 0, number, wire[cut:]))

    @alive
    @rule(choice=st.integers(0, 6))
    def ends(self, choice: int) -> None:
        self.feed(frame(frames.DATA, END_STREAM, self.some_stream(choice)))

    @alive
    @rule(choice=st.integers(0, 6), end=st.booleans(), good=st.booleans())
    def sends_trailers(self, choice: int, end: bool, good: bool) -> None:
        block = b"\x20\0" + text("x-end") + text("yes") if good else head()
        number = self.some_stream(choice)
        if number < self.next_id:
            self.feed(frame(frames.HEADERS, END_HEADERS | (END_STREAM if end else 0), number, block))

    @alive
    @rule(choice=st.integers(0, 6), code=st.sampled_from([0, 8, 99]))
    def resets(self, choice: int, code: int) -> None:
        self.feed(frames.rst_stream(self.some_stream(choice), code))

    @alive
    @rule(choice=st.integers(0, 6), increment=st.sampled_from([1, 100_000, 2**30]), whole=st.booleans())
    def grants(self, choice: int, increment: int, whole: bool) -> None:
        self.feed(frames.window_update(0 if whole else self.some_stream(choice), increment))

    @alive
    @rule(data=st.binary(min_size=8, max_size=8), answer=st.booleans())
    def pings(self, data: bytes, answer: bool) -> None:
        self.feed(frame(frames.PING, frames.ACK if answer else 0, 0, data))

    @alive
    @rule(
        values=st.dictionaries(
            st.sampled_from([1, 3, 4, 5, 6, 0x99]),
            st.sampled_from([0, 1, 16_384, 65_535, 100_000, 2**31 - 1]),
            max_size=3,
        )
    )
    def changes_settings(self, values: dict[int, int]) -> None:
        self.feed(frames.settings(values))

    @alive
    @rule(choice=st.integers(0, 6))
    def the_server_finishes(self, choice: int) -> None:
        number = self.some_stream(choice)
        receiver = self.receivers.get(number)
        if receiver is None or number not in self.ours.connection.streams:
            return
        half = number in self.ended
        receiver.stream.finish()
        self.ours.loop.run()
        kinds = [found.kind for found in self.ours.wire.take()]
        assert kinds == ([frames.HEADERS] if half else [frames.HEADERS, frames.RST_STREAM])
        self.oracle.send_headers(number, [(":status", "200"), ("grpc-status", "0")], end_stream=True)
        if not half:
            self.oracle.reset_stream(number, frames.NO_ERROR)
        self.oracle.clear_outbound_data_buffer()
        assert receiver.events["closed"] == 1

    @alive
    @rule(
        kind=st.sampled_from([frames.PRIORITY, 0x42, 0xFF]),
        flags=st.integers(0, 255),
        choice=st.integers(-2, 6),
        payload=st.binary(min_size=5, max_size=5),
    )
    def sends_what_is_ignored(self, kind: int, flags: int, choice: int, payload: bytes) -> None:
        number = self.some_stream(choice)
        if kind != frames.PRIORITY or int.from_bytes(payload[:4], "big") & frames.MAX_ID != number:
            self.feed(frame(kind, flags, number, payload))

    @alive
    @rule(block=st.sampled_from(BAD_BLOCKS))
    def sends_a_bad_block(self, block: bytes) -> None:
        self.next_id += 2
        self.feed(frame(frames.HEADERS, END_HEADERS, self.next_id - 2, block))

    @alive
    @rule(
        kind=st.integers(0, 9),
        flags=st.sampled_from([0, 1, 4, 5, 8, 0x20]),
        number=st.integers(0, 5),
        payload=st.one_of(st.binary(max_size=9), st.just(bytes(70_000))),
    )
    def sends_anything(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind in (frames.PRIORITY, frames.PUSH_PROMISE, frames.GOAWAY):
            # deprecated rules of priority; h2 forgives a push that its own settings forbid, and stops at any GOAWAY
            return
        if kind == frames.HEADERS and not flags & END_HEADERS:
            return  # h2 says nothing before the block is whole; `opens` has CONTINUATION
        if kind == frames.DATA and len(payload) < 70_000:
            return  # not gRPC messages; h2 has no opinion
        if kind == frames.SETTINGS and flags & frames.ACK and not payload:
            return  # h2 fails on an acknowledgement that nothing waits for
        self.several_faults = True  # such a frame can be wrong in more than one way
        self.feed(frame(kind, flags, number, payload))
        self.several_faults = False

    @precondition(lambda self: self.over)
    @rule()
    def connects_again(self) -> None:
        self.teardown()
        self.connect()

    def teardown(self) -> None:
        if not hasattr(self, "ours"):
            return
        self.ours.lose()
        self.ours.check_empty()
        for receiver in self.receivers.values():
            assert receiver.events["closed"] == 1


TestServerAgainstOracle = pytest.mark.slow(ServerAgainstOracle.TestCase)
TestServerAgainstOracle.settings = settings(
    max_examples=int(EXAMPLES or 100),
    stateful_step_count=40,
    deadline=None,
    derandomize=EXAMPLES is None,
    database=None,
    phases=(Phase.generate,) if EXAMPLES is None else tuple(Phase),
    suppress_health_check=list(HealthCheck),
)
