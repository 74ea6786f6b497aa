"""Which frame may come when: the states of a connection and of its streams, and what a frame does in each of them.

The two tables are RFC 9113 sections 3.4, 5.1, 5.1.1, 6 and 6.8 as a server sees them that never pushes. The core
(`core`) looks every frame up here, except for the frames that make up nearly all traffic: a DATA frame on an open
stream and the HEADERS of a new one. It handles these as the tables say without looking, and
`tests/extproc/transport/test_states.py` sends every frame in every state and compares what happens with the tables, and
the tables with those of the `h2` library.
"""

from __future__ import annotations

from typing import Final

from extproc.transport import frames

# --- streams: what a stream's number stands for ---

CONNECTION: Final = 0  # number 0 is the connection itself
EVEN: Final = 1  # only a server opens streams with even numbers, and this one opens none
IDLE: Final = 2  # a higher number than any yet: nothing was sent on it
BEYOND: Final = 3  # a higher number than our last GOAWAY takes: nothing on it is answered
OPEN: Final = 4
HALF_CLOSED: Final = 5  # the client has said END_STREAM; RFC 9113 calls it "half-closed (remote)"
RESET: Final = 6  # closed by our RST_STREAM a short while ago: what was on its way is dropped
CLOSED: Final = 7

STATES: Final = (
    "stream 0",
    "an idle stream (only a server opens even numbers)",
    "an idle stream",
    "a stream beyond the last GOAWAY",
    "an open stream",
    "a stream that the client has ended",
    "a stream that was reset",
    "a closed stream",
)

# --- what happens to a stream: the ten kinds of frame received, all others together, and what we send ---

OTHER: Final = 10
SENT_END: Final = 11  # END_STREAM of ours
SENT_RESET: Final = 12  # RST_STREAM of ours
_EVENTS: Final = 13

KINDS: Final = (
    "DATA",
    "HEADERS",
    "PRIORITY",
    "RST_STREAM",
    "SETTINGS",
    "PUSH_PROMISE",
    "PING",
    "GOAWAY",
    "WINDOW_UPDATE",
    "CONTINUATION",
    "a frame of an unknown kind",
)

# --- what is done ---

TAKE: Final = 0
DROP: Final = 1  # read for what it does to the connection (flow control, HPACK), counted as a frame without a request
REFUSE: Final = 2  # an error of the stream: RST_STREAM with STREAM_CLOSED
FAULT: Final = 3  # an error of the connection: GOAWAY with PROTOCOL_ERROR
CLOSED_FAULT: Final = 4  # an error of the connection: GOAWAY with STREAM_CLOSED


class Cell:
    """What one event does in one state: the `act`, and the states that follow."""

    def __init__(self, act: int, then: int, ended: int) -> None:
        """`then`: the state after it; `ended`: the state after it where it carries END_STREAM."""
        self.act = act
        self.then = then
        self.ended = ended


def _to(then: int, ended: int | None = None) -> Cell:
    return Cell(TAKE, then, then if ended is None else ended)


def _stay(state: int, act: int) -> Cell:
    return Cell(act, state, state)


def _table() -> tuple[Cell, ...]:
    cells: list[Cell] = []
    for state in range(len(STATES)):
        take, drop, fault = _stay(state, TAKE), _stay(state, DROP), _stay(state, FAULT)
        refuse, dead = Cell(REFUSE, RESET, RESET), _stay(state, CLOSED_FAULT)
        opens, carries = _to(OPEN, HALF_CLOSED), _to(OPEN, HALF_CLOSED)
        trails = _to(RESET, HALF_CLOSED)  # trailers have to end the stream
        resets = _to(RESET)
        # Where we end a stream that the client has not ended, "half-closed (local)" lasts for no time: RST_STREAM with
        # NO_ERROR follows at once (RFC 9113 section 8.1). A malformed PRIORITY resets an idle stream, which stays idle.
        rows = {
            #            DATA     HEADERS  PRIORITY RST_STREAM   WINDOW_UPDATE we end       we reset
            CONNECTION: (fault,   fault,   fault,   fault,       take,         fault,       fault),
            EVEN:       (fault,   fault,   drop,    fault,       fault,        fault,       take),
            IDLE:       (fault,   opens,   drop,    fault,       fault,        fault,       take),
            BEYOND:     (drop,    drop,    drop,    drop,        drop,         fault,       fault),
            OPEN:       (carries, trails,  drop,    _to(CLOSED), take,         resets,      resets),
            HALF_CLOSED:(refuse,  refuse,  drop,    _to(CLOSED), take,         _to(CLOSED), resets),
            RESET:      (drop,    drop,    drop,    drop,        drop,         fault,       fault),
            CLOSED:     (refuse,  dead,    drop,    drop,        drop,         fault,       resets),
        }  # fmt: skip
        data, head, priority, rst_stream, window_update, we_end, we_reset = rows[state]
        whole = take if state == CONNECTION else fault  # SETTINGS, PING and GOAWAY concern the connection alone
        # No client may push; CONTINUATION is taken only where the phase expects it.
        cells += (data, head, priority, rst_stream, whole, fault, whole, whole, window_update, fault, drop)
        cells += (we_end, we_reset)
    return tuple(cells)


_CELLS: Final = _table()


def cell(state: int, event: int) -> Cell:
    """What `event` does in `state`: a kind of frame (those above 9 are `OTHER`), `SENT_END` or `SENT_RESET`."""
    return _CELLS[state * _EVENTS + event]


# --- the connection: which frame its peer has to send next ---

PREFACE: Final = 0  # no frame at all but the preface
GREETING: Final = 1  # SETTINGS that acknowledge nothing; then READY
READY: Final = 2  # any but CONTINUATION; HEADERS without END_HEADERS lead to BLOCK
BLOCK: Final = 3  # CONTINUATION of the same stream; one with END_HEADERS leads back to READY

ANY: Final = -1
EXPECTED: Final = (ANY, frames.SETTINGS, ANY, frames.CONTINUATION)
"""The one kind of frame that a phase takes."""

UNEXPECTED: Final = ("", "the first frame is not SETTINGS", "", "a frame inside a header block")
"""What is said of any other; it is a PROTOCOL_ERROR of the connection."""

# --- the end of a connection, which only moves forward ---

STAYING: Final = 0
WARNED: Final = 1  # one side has said GOAWAY; new streams are served, since they may have been on their way
LEAVING: Final = 2  # the last stream that is served is settled
GONE: Final = 3  # nothing is read any more
