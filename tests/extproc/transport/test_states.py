"""The tables of `states`: every frame is sent in every state, and what a connection does is what its cell says."""

from __future__ import annotations

from itertools import product

import pytest
from h2.stream import StreamInputs, StreamState, _transitions

from extproc.transport import frames, states
from extproc.transport.frames import ACK, END_HEADERS, END_STREAM, PADDED, frame
from extproc.transport.seam import Stream, TransportLimits
from tests.extproc.transport.conftest import METHOD, Recorder, head, silent, text
from tests.extproc.transport.memory import InMemory

GREETING = frames.PREFACE + frames.settings({}) + frame(frames.SETTINGS, ACK, 0)
HEAD = head(first=False)
PING = frame(frames.PING, 0, 0, b"alive or")
NUMBERS = {
    states.CONNECTION: 0,
    states.EVEN: 2,
    states.IDLE: 101,
    states.BEYOND: 101,
    states.OPEN: 3,
    states.HALF_CLOSED: 5,
    states.RESET: 7,
    states.CLOSED: 9,
}
PAYLOADS = {
    frames.PRIORITY: bytes(5),
    frames.RST_STREAM: bytes(4),
    frames.PUSH_PROMISE: bytes(4),
    frames.PING: bytes(8),
    frames.GOAWAY: bytes(8),
    frames.WINDOW_UPDATE: b"\0\0\0\1",
}
ENDS = (frames.DATA, frames.HEADERS)


def connected() -> tuple[InMemory, dict[int, Recorder]]:
    """A connection whose streams 3, 5, 7 and 9 are open, half-closed, reset and closed."""
    made: dict[int, Recorder] = {}

    def handler(stream: Stream) -> Recorder:
        recorder = Recorder(stream, silent)
        made[stream.number] = recorder  # type: ignore[attr-defined]
        return recorder

    running = InMemory({METHOD: handler}, TransportLimits())
    running.feed(GREETING)
    running.feed(frame(frames.HEADERS, END_HEADERS, 1, head()) + frames.rst_stream(1, 0))
    for number in (3, 5, 7, 9):
        flags = END_HEADERS | (END_STREAM if number in (5, 9) else 0)
        running.feed(frame(frames.HEADERS, flags, number, HEAD))
    made[7].stream.finish()
    made[9].stream.finish()
    running.loop.run()
    running.wire.take()
    return running, made


def in_state(state: int) -> tuple[InMemory, dict[int, Recorder], int]:
    """A connection, its receivers, and the number of a stream of theirs that is in a state."""
    running, made = connected()
    if state == states.BEYOND:
        running.connection.start_drain()
        running.loop.run()
        (ping,) = (found for found in running.wire.take() if found.kind == frames.PING)
        running.feed(frame(frames.PING, ACK, 0, ping.payload))
        running.wire.take()
    number = NUMBERS[state]
    assert stands(running, number) == state
    return running, made, number


def stands(running: InMemory, number: int) -> int:
    stream = running.connection.streams.get(number)
    return running.connection.numbers.state(number) if stream is None else stream.state


def bytes_of(kind: int, number: int, state: int, end: bool, padded: bool) -> bytes:
    """A well-formed frame."""
    payload = PAYLOADS.get(kind, b"")
    flags = END_STREAM if end else 0
    if kind == frames.HEADERS:
        flags |= END_HEADERS
        payload = HEAD if state in (states.IDLE, states.BEYOND) else b"\0" + text("a") + text("b")
    elif kind == frames.DATA:
        payload = b"\0\0\0\0\2hi"
    elif kind == frames.CONTINUATION:
        flags = END_HEADERS
    if padded:
        return frame(kind, flags | PADDED, number, b"\1" + payload + b"\0")
    return frame(kind, flags, number, payload)


CASES = [
    (state, kind, end, padded)
    for state, kind in product(range(len(states.STATES)), range(states.OTHER + 1))
    for end, padded in (product((False, True), (False, True)) if kind in ENDS else [(False, False)])
]


@pytest.mark.parametrize(
    ("state", "kind", "end", "padded"),
    CASES,
    ids=[
        f"{states.KINDS[kind]}{' and the end' * end}{', padded,' * padded} on {states.STATES[state]}"
        for state, kind, end, padded in CASES
    ],
)
def test_a_frame_does_what_its_cell_says(state: int, kind: int, end: bool, padded: bool) -> None:
    """Padded frames take the slow path, others the fast one where there is one: both have to do the same."""
    running, made, number = in_state(state)
    before = {known: list(recorder.events) for known, recorder in made.items()}
    flood, unacked = running.connection.flood.count, running.connection.inflow.unacked
    sent = bytes_of(kind, number, state, end, padded)
    running.feed(sent)
    cell = states.cell(state, kind)
    written = running.wire.take()
    if cell.act >= states.FAULT:
        expected = frames.PROTOCOL_ERROR if cell.act == states.FAULT else frames.STREAM_CLOSED
        assert [(found.kind, found.code) for found in written] == [(frames.GOAWAY, expected)]
        assert states.KINDS[kind].encode() in written[0].payload
        assert not running.wire.open
        running.lose()
        running.check_empty()
        return
    assert running.wire.open
    assert stands(running, number) == (cell.ended if end else cell.then)
    told = {known: recorder.events[len(before.get(known, [])) :] for known, recorder in made.items()}
    resets = [(found.stream, found.code) for found in written if found.kind == frames.RST_STREAM]
    if kind == frames.DATA:
        assert running.connection.inflow.unacked - unacked == len(sent) - 9  # dropped or not (section 6.9)
    if cell.act == states.TAKE:
        assert told.get(number, []) == expected_events(state, kind, end)
        assert resets == ([(number, frames.PROTOCOL_ERROR)] if cell.then == states.RESET and not end else [])
    else:
        assert running.connection.flood.count == flood + 1
        assert resets == ([(number, frames.STREAM_CLOSED)] if cell.act == states.REFUSE else [])
        assert not [events for known, events in told.items() if events and known != number]
        assert told.get(number, []) == (["closed"] if state == states.HALF_CLOSED and cell.act == states.REFUSE else [])
    running.feed(PING)
    assert [found.payload for found in running.wire.take() if found.kind == frames.PING] == [b"alive or"]
    running.lose()
    running.check_empty()


def expected_events(state: int, kind: int, end: bool) -> list[str]:
    """What the receiver of the frame's stream hears of it."""
    if kind == frames.RST_STREAM:
        return ["closed"]
    if kind == frames.DATA:
        return ["message", "half_closed"] if end else ["message"]
    if kind == frames.HEADERS:
        return ["half_closed"] if end else [] if state == states.IDLE else ["closed"]
    return []


@pytest.mark.parametrize("number", [3, 5])
@pytest.mark.parametrize("event", [states.SENT_END, states.SENT_RESET], ids=["we end it", "we reset it"])
def test_what_we_send_does_what_its_cell_says(number: int, event: int) -> None:
    running, made = connected()
    cell = states.cell(stands(running, number), event)
    stream = made[number].stream
    if event == states.SENT_END:
        stream.finish()
    else:
        stream.reset(frames.CANCEL)  # type: ignore[attr-defined]
    running.loop.run()
    assert stands(running, number) == cell.then
    resets = [found.code for found in running.wire.take() if found.kind == frames.RST_STREAM]
    expected = frames.NO_ERROR if event == states.SENT_END else frames.CANCEL
    assert resets == ([expected] if cell.then == states.RESET else [])
    assert made[number].events[-1] == "closed"


# --- the `h2` library's table ---

THEIRS = {
    states.IDLE: StreamState.IDLE,
    states.OPEN: StreamState.OPEN,
    states.HALF_CLOSED: StreamState.HALF_CLOSED_REMOTE,
    states.RESET: StreamState.CLOSED,
    states.CLOSED: StreamState.CLOSED,
}
INPUTS = {
    frames.DATA: StreamInputs.RECV_DATA,
    frames.HEADERS: StreamInputs.RECV_HEADERS,
    frames.RST_STREAM: StreamInputs.RECV_RST_STREAM,
    frames.WINDOW_UPDATE: StreamInputs.RECV_WINDOW_UPDATE,
}
REFUSALS = ("reset_stream_on_error", "recv_on_closed_stream")


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("state", [states.IDLE, states.OPEN, states.HALF_CLOSED, states.CLOSED])
def test_what_is_received_leads_where_h2_goes(state: int, kind: int) -> None:
    ours = states.cell(state, kind)
    function, then = _transitions.get((THEIRS[state], INPUTS[kind]), (None, None))
    refused = then is None or (function is not None and function.__name__ in REFUSALS)
    assert (ours.act >= states.REFUSE) == refused
    if refused:
        return
    if (state, kind) != (states.OPEN, frames.HEADERS):  # h2 asks elsewhere that trailers end the stream
        assert THEIRS[ours.then] == then
    if kind in ENDS:
        assert THEIRS[ours.ended] == _transitions[then, StreamInputs.RECV_END_STREAM][1]


@pytest.mark.parametrize("state", [states.OPEN, states.HALF_CLOSED])
def test_what_is_sent_leads_where_h2_goes(state: int) -> None:
    _, reset = _transitions[THEIRS[state], StreamInputs.SEND_RST_STREAM]
    assert THEIRS[states.cell(state, states.SENT_RESET).then] == reset
    _, ended = _transitions[THEIRS[state], StreamInputs.SEND_END_STREAM]
    if ended == StreamState.HALF_CLOSED_LOCAL:  # where RST_STREAM follows at once
        _, ended = _transitions[ended, StreamInputs.SEND_RST_STREAM]
    assert THEIRS[states.cell(state, states.SENT_END).then] == ended


# --- the phases ---


@pytest.mark.parametrize("kind", range(11))
def test_only_settings_may_come_first(kind: int) -> None:
    running = InMemory({}, TransportLimits())
    running.feed(frames.PREFACE)
    running.wire.take()
    assert running.connection.phase == states.GREETING
    running.feed(bytes_of(kind, 0 if kind in (4, 6, 7) else 1, states.IDLE, False, False))
    if kind == frames.SETTINGS:
        assert running.connection.phase == states.READY
        assert running.wire.open
    else:
        (goaway,) = running.wire.take()
        assert goaway.code == frames.PROTOCOL_ERROR
        assert states.UNEXPECTED[states.GREETING].encode() in goaway.payload


@pytest.mark.parametrize("kind", range(11))
def test_only_continuation_may_come_within_a_block(kind: int) -> None:
    running, _ = connected()
    running.feed(frame(frames.HEADERS, 0, 101, HEAD[:5]))
    assert running.connection.phase == states.BLOCK
    running.feed(bytes_of(kind, 101, states.IDLE, False, False))
    if kind == frames.CONTINUATION:
        assert running.connection.phase == states.READY
    else:
        (goaway,) = (found for found in running.wire.take() if found.kind == frames.GOAWAY)
        assert goaway.code == frames.PROTOCOL_ERROR
        assert states.UNEXPECTED[states.BLOCK].encode() in goaway.payload


def test_a_stream_beyond_the_last_goaway_may_be_given_up_by_its_client() -> None:
    """It was on its way when GOAWAY was said; a RST_STREAM for it ended the connection once."""
    running, made, number = in_state(states.BEYOND)
    running.feed(frame(frames.HEADERS, END_HEADERS, number, HEAD) + frames.rst_stream(number, frames.CANCEL))
    assert running.wire.open
    assert number not in made
    assert [found.kind for found in running.wire.take()] == []
    assert 3 in running.connection.streams


@pytest.mark.parametrize("state", range(1, len(states.STATES)), ids=states.STATES[1:])
def test_a_malformed_priority_resets_its_stream_where_the_table_allows_it(state: int) -> None:
    running, _, number = in_state(state)
    running.feed(frame(frames.PRIORITY, 0, number, bytes(4)))
    cell = states.cell(state, states.SENT_RESET)
    written = [(found.kind, found.stream, found.code) for found in running.wire.take()]
    allowed = cell.act == states.TAKE
    assert written == ([(frames.RST_STREAM, number, frames.FRAME_SIZE_ERROR)] if allowed else [])
    assert stands(running, number) == (cell.then if allowed else state)
    assert running.wire.open
