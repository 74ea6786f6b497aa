"""The texts of one answer that grow side by side, and what of them is to be judged, in the order in which it came.

Where a text is judged depends on nothing but its own characters and those that have come before them, so that an answer
is judged alike in whichever pieces it comes: after a window, and then after every step; at its end; and where a window
of another text of the same choice has come behind it, since it is the other's turn then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Final

from extproc.watching.grown import NEVER, GrownText, Half, JoinedTexts, Sizes
from extproc.watching.held import HeldText
from extproc.watching.shape import AnswerText, Channel

_CHANNELS: Final = 256
"""Texts that grow at the same time in one answer; a real one has a few."""


class Due:
    """A text is to be judged as far as `stop`; `final`: as if it ended there. Or, where this `frees` it, nothing before
    `stop` goes on in another text. `parts`: so many places where it is judged were looked at together last, to see
    whether it has nothing anywhere."""

    __slots__ = ("final", "frees", "grown", "parts", "stop")

    def __init__(self, grown: GrownText, stop: int, final: bool, frees: bool = False) -> None:
        self.grown = grown
        self.stop = stop
        self.final = final
        self.frees = frees
        self.parts = 0


class Texts:
    """The texts of one answer. `limit`: bytes of the answer that are held at most; `repeats`: its last event says all
    texts again (`AnswerShape.repeats`)."""

    def __init__(self, sizes: Sizes, limit: int, repeats: bool) -> None:
        self.due: deque[Due] = deque()
        self.groups: dict[str | int, JoinedTexts] = {}  # texts that may be shown as one
        self._channels: dict[Channel, GrownText] = {}
        self._sizes = sizes
        self._turn = sizes.window if sizes.step else 0  # characters of another text after which it is its turn
        self._limit = limit
        self._repeats = repeats
        self._beside: set[Channel] = set()  # what stands in the event that comes, by channel and by what it joins
        self._closing: dict[Channel, None] = {}  # what ends, if it does not go on with the next text

    def add(self, found: Sequence[AnswerText]) -> list[HeldText]:
        """The texts of an event, which their channels have now. Raises ValueError where there are too many, or too
        long."""
        if len(found) > 1:  # none of them is behind another: they stand side by side
            self._beside = {text.channel for text in found if not text.whole}
            self._beside.update(text.joins[:1] for text in found)
            held = [self._add(text) for text in found]
            self._beside = set()
            return held
        return [self._add(text) for text in found]

    def _add(self, text: AnswerText) -> HeldText:
        said: str = text.holder[text.key]
        halves: list[Half] | None = None
        if text.whole:
            grown = GrownText(text.channel, text.code, NEVER)
            grown.add(said)
            self.due.append(Due(grown, grown.end, True))
            group = self._group(text)
            if group is not None and (halves := group.said(text.joins)) is None:
                self._join(group, grown, said, text.joins)
        else:
            grown = self._grow(text, said)
        return HeldText(grown, text, (grown.end - len(said), grown.end), halves)

    def add_run(self, text: AnswerText, said: str) -> GrownText:
        """The texts of successive events, which go where `text` does. Raises ValueError as `add`."""
        grown = self._channels.get(text.channel) if len(self._channels) == 1 and not self.groups else None
        if grown is None or text.joins:
            return self._grow(text, said)
        grown.after = 0
        self._lengthen(grown, said)
        return grown

    def go_on(self, channels: Sequence[Channel]) -> None:
        """These come now, and may go on: what was to end has ended, unless it is one of them. There are servers that
        say the end with every event, or before the last text."""
        if self._closing and channels:
            ends = [one for one in self._closing if all(channel[: len(one)] != one for channel in channels)]
            self._closing.clear()
            self.close(ends)

    def closes(self, beginnings: Iterable[Channel]) -> None:
        """The texts whose channels begin so end, if they do not go on with the next text."""
        for beginning in beginnings:
            if any(key[: len(beginning)] == beginning for key in self._channels):  # else there is nothing to end
                self._closing[beginning] = None

    def close(self, beginnings: Iterable[Channel]) -> None:
        """The texts whose channels begin so have ended."""
        for beginning in beginnings:
            size = len(beginning)
            for key in [key for key in self._channels if key[:size] == beginning]:
                grown = self._channels.pop(key)
                self.due.append(Due(grown, grown.end, True))
            if not size:
                for group in self.groups.values():
                    group.over = True
                    if group.seam is not None:
                        self.due.append(Due(group.seam, group.seam.end, True))
                self.groups.clear()

    def clear(self) -> None:
        """Nothing of them is wanted any more."""
        self.due.clear()
        self.groups.clear()
        self._channels.clear()

    def _grow(self, text: AnswerText, said: str) -> GrownText:
        """Add what a text says to its channel, and to the seam with the text that it is shown as one with."""
        grown = self._channels.get(text.channel)
        if grown is None:
            if len(self._channels) >= _CHANNELS:
                raise ValueError("too many texts at the same time")
            first = self._sizes.window if self._sizes.step else NEVER
            grown = self._channels[text.channel] = GrownText(text.channel, text.code, first)
        group = self._group(text)
        at = 0
        if self._turn and (len(self._channels) > 1 or self.groups):
            stops = self._behind(grown, text, len(said))
            if group is not None:
                stops += [(place, None) for place in group.places(grown, len(said), self._sizes)]
            stops.sort(key=_place)
            for place, other in stops:
                if place > at:
                    self._extend(grown, group, said[at:place], text.joins)
                    at = place
                if other is not None:
                    self._take_turn(other)
        grown.after = 0
        if at < len(said):
            self._extend(grown, group, said[at:] if at else said, text.joins)
        return grown

    def _extend(self, grown: GrownText, group: JoinedTexts | None, said: str, block: Channel) -> None:
        self._lengthen(grown, said)
        if group is not None:
            self._join(group, grown, said, block)

    def _behind(self, grown: GrownText, text: AnswerText, size: int) -> list[_Stop]:
        """So many characters come behind the other texts of the same item: those whose turn is over by that, and after
        how many of them."""
        over: list[_Stop] = []
        turn, item = self._turn, grown.key[:2]
        for other in self._channels.values():
            if other is not grown and other.key[:2] == item and other.key not in self._beside:
                if other.after < turn <= other.after + size:
                    over.append((turn - other.after, other))
                other.after += size
        own = text.joins[0] if text.joins else None
        for name, group in self.groups.items():
            if name != own and (name,) not in self._beside:
                if group.after < turn <= group.after + size:
                    over.append((turn - group.after, group))
                group.after += size
        return over

    def _take_turn(self, other: GrownText | JoinedTexts) -> None:
        if isinstance(other, GrownText):
            self.due.append(Due(other, other.end, True))
            return
        if other.seam is not None:
            self.due.append(Due(other.seam, other.seam.end, True))
        last = other.last
        if last is not None:
            other.shut = last.end
            self.due.append(Due(last, last.end, False, True))

    def _lengthen(self, grown: GrownText, said: str) -> None:
        grown.add(said)
        if grown.end - grown.base > 2 * self._limit:
            raise ValueError("too much of a text waits to be judged")
        self._wants(grown)

    def _wants(self, grown: GrownText) -> None:
        """It has grown: it may be time to judge it."""
        if grown.next > grown.end:
            return
        due = self.due
        last = due[-1] if due else None
        if last is not None and last.grown is grown and not (last.final or last.frees):
            last.stop = grown.end
        else:
            due.append(Due(grown, grown.end, False))

    def _group(self, text: AnswerText) -> JoinedTexts | None:
        """What else a text may be shown as one with."""
        if not text.joins:
            return None
        group = self.groups.get(text.joins[0])
        if group is None:
            group = self.groups[text.joins[0]] = JoinedTexts(self._repeats)
        return group

    def _join(self, group: JoinedTexts, grown: GrownText, said: str, block: Channel) -> None:
        group.add(grown, said, block, self._sizes)
        if group.seam is not None and self._sizes.step:
            self._wants(group.seam)


_Stop = tuple[int, GrownText | JoinedTexts | None]
"""After so many characters of what is said, the turn of the other is over, or a seam is judged."""


def _place(one: tuple[int, Any]) -> int:
    return one[0]
