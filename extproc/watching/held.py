"""What of an answer waits in the order in which it came, until its texts are judged."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from itertools import accumulate
from typing import Any

from extproc.watching.finder import Likeness
from extproc.watching.grown import GrownText, Half
from extproc.watching.runs import EventRun
from extproc.watching.shape import AnswerText
from extproc.watching.sse import Event


class HeldText:
    """One text of a held event: the characters from `start` to `end` of `grown`; those from `stop` on are not shown.
    `halves`: what of a block that it says again was masked at a border."""

    __slots__ = ("end", "grown", "halves", "start", "stop", "text")

    def __init__(self, grown: GrownText, text: AnswerText, place: tuple[int, int], halves: list[Half] | None) -> None:
        self.grown = grown
        self.text = text
        self.start, self.end = place
        self.stop = self.end
        self.halves = halves

    def known(self, window: int) -> int:
        """As `GrownText.known`, of what it has of the text."""
        return self.grown.known(self.start, self.end, window)


class Held:
    """Something that waits."""

    __slots__ = ()

    def size(self) -> int:
        """Its bytes."""
        raise NotImplementedError

    def said(self) -> dict[str, Any] | None:
        """The fields of an event, but for what it says where it was not taken apart."""
        return None

    def characters(self, window: int) -> int:
        """How many of its characters are judged, up to the first that is not or that may go on in another text."""
        raise NotImplementedError

    def let_go(self) -> None:
        """It waits no more: its texts count as judged."""
        raise NotImplementedError


class HeldEvent(Held):
    """An event, or what else has come, that waits for its texts to be judged; `last`: the answer ends with it.
    `alike`: it is like one before it but for its only text, and was not taken apart. `twice`: its bytes may say more
    than `fields`."""

    __slots__ = ("alike", "event", "fields", "last", "pieces", "twice")

    def __init__(
        self, event: Event, fields: dict[str, Any] | None, pieces: list[HeldText], alike: bool = False
    ) -> None:
        self.event = event
        self.fields = fields
        self.pieces = pieces
        self.alike = alike
        self.twice = False
        self.last = False

    def size(self) -> int:
        return len(self.event.raw)

    def said(self) -> dict[str, Any] | None:
        return self.fields

    def let_go(self) -> None:
        for piece in self.pieces:
            piece.grown.let_go(piece.end)

    def known(self, window: int) -> bool:
        """Whether all its texts are judged, and nothing in them goes on in another text."""
        for piece in self.pieces:
            grown = piece.grown
            if piece.end > grown.judged:
                return False
            if grown.group is not None and not grown.group.settled(grown, piece.end, window):
                return False
        return True

    def characters(self, window: int) -> int:
        count = 0
        for piece in self.pieces:
            known = piece.known(window)
            count += known - piece.start
            if known < piece.end:
                break
        return count


class HeldRun(Held):
    """Events that are alike, and whose texts are parts of one: they wait together, and the first of them go on as soon
    as they may."""

    __slots__ = ("_ends", "_raw", "_start", "_stops", "at", "grown", "like")

    def __init__(self, run: EventRun, like: Likeness, grown: GrownText) -> None:
        """`grown` has their texts already."""
        self.at = 0  # the first that waits
        self.grown = grown
        self.like = like
        self._raw = run.raw
        self._stops = run.stops  # where each event ends, in the bytes
        self._start = start = grown.end - len(run.said)
        # Where its text ends.
        self._ends = [grown.end] if len(run.sizes) == 1 else [start + end for end in accumulate(run.sizes)]

    def size(self) -> int:
        return len(self._raw) - (self._stops[self.at - 1] if self.at else 0)

    def said(self) -> dict[str, Any] | None:
        return self.like.fields

    @property
    def stop(self) -> int:
        """How many events there are, with those that have gone on."""
        return len(self._ends)

    def end(self, stop: int) -> int:
        """Where the text ends of the events before `stop`."""
        return self._ends[stop - 1] if stop else self._start

    def within(self, place: int) -> int:
        """How many of the events have texts that end at `place` at the latest."""
        return bisect_right(self._ends, place)

    def raw(self, stop: int) -> bytes:
        """The bytes of the events that wait, until `stop`."""
        if not self.at and stop == len(self._stops):
            return self._raw
        return self._raw[self._stops[self.at - 1] if self.at else 0 : self._stops[stop - 1]]

    def event(self) -> HeldEvent:
        """The first that waits, by itself."""
        raw = self.raw(self.at + 1)
        alike = self.like.alike
        piece = HeldText(self.grown, self.like.text, (self.end(self.at), self.end(self.at + 1)), None)
        return HeldEvent(Event(raw, alike.name, alike.data(raw)), None, [piece], True)

    def characters(self, window: int) -> int:
        return self.grown.known(self._start, self._ends[-1], window) - self._start

    def let_go(self) -> None:
        self.grown.let_go(self._ends[-1])

    def known(self, window: int) -> int:
        """How many of the events, with those that have gone on, are judged, and have nothing in them that goes on in
        another text."""
        last = self._ends[-1]
        known = self.grown.known(self.end(self.at), last, window)
        return len(self._ends) if known == last else self.within(known)


class Queue:
    """All that waits; `size`: the bytes of it. `counted`: of the first, before anything went on, so many were seen to
    be judged, which show `shown` characters."""

    __slots__ = ("counted", "held", "shown", "size")

    def __init__(self) -> None:
        self.held: deque[Held] = deque()
        self.counted = 0
        self.shown = 0
        self.size = 0

    def put(self, held: Held) -> None:
        self.size += held.size()
        self.held.append(held)

    def take(self) -> Held:
        """The first of them, which waits no more."""
        held = self.held.popleft()
        self.size -= held.size()
        return held
