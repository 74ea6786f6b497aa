"""The texts of one answer as they grow: what is kept of each, and what is masked in it.

Several texts may be shown as one: an SDK joins the text blocks of an answer, one after another, with nothing in between
(Anthropic's `get_final_text`, OpenAI's `Response.output_text`). Each is judged by itself. What is divided between two
of them is looked for in the *seam*: the end of the one and the beginning of the next.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any, Final, NamedTuple

from extproc.watching.jsontext import decode
from extproc.watching.shape import Channel

LEAD: Final = 64
"""Characters that are kept before those that are judged: they show where a word begins."""
NEVER: Final = 1 << 62
"""Where a text is judged first that is judged at its end alone."""
_BLOCKS: Final = 4096
"""Blocks of one kind whose repetitions are looked for in one answer."""


class GrownText:
    """The text of one channel. Offsets are those of its raw characters from the channel's beginning. `next`: where it
    is judged first."""

    __slots__ = (
        "_more",
        "_raw",
        "after",
        "base",
        "code",
        "end",
        "free",
        "group",
        "judged",
        "keep",
        "kept",
        "key",
        "lead",
        "masks",
        "next",
        "out",
        "read",
    )

    def __init__(self, key: Channel, code: bool, first: int) -> None:
        self.key = key
        self.code = code
        self.next = first  # where it is judged next, however its text has come
        self.base = 0  # where `raw` begins
        self.end = 0
        self._raw = ""
        self._more: list[str] = []  # what has come since; joined when it is needed, since a judge may take long
        self.lead = ""  # of JSON text before `raw` (extproc.watching.jsontext)
        self.out = 0  # what was released
        self.read = -1  # as far as it was judged last; -1: not yet
        self.judged = 0  # what begins before is known
        self.free = 0  # nothing before it goes on in another text
        self.keep = 0  # from where on it is looked at again
        self.kept = ""  # of JSON text before that, as `lead`
        self.after = 0  # characters of the same item that have come behind it
        self.masks: list[list[Any]] = []  # start, end, what is shown instead
        self.group: JoinedTexts | None = None  # those that it may be shown as one text with

    @property
    def raw(self) -> str:
        """What is kept of what was released, and what is held."""
        if self._more:
            self._raw += "".join(self._more)
            self._more.clear()
        return self._raw

    def add(self, text: str) -> None:
        self._more.append(text)
        self.end += len(text)

    def view(self, stop: int) -> str:
        """What is to be judged of the text before `stop`: its characters from `keep` on."""
        base = self.base
        return self.raw[self.keep - base : stop - base]

    def shown(self, start: int, end: int) -> str:
        """What stands there once it is masked. What takes the place of a span stands where the span begins."""
        raw, base = self.raw, self.base
        parts: list[str] = []
        at = start
        for place in range(self._from(start), len(self.masks)):
            first, last, new = self.masks[place]
            if first >= end:
                break
            if first >= at:
                parts += (raw[at - base : first - base], new)
            at = min(last, end)
        parts.append(raw[at - base : end - base])
        return "".join(parts)

    def mask(self, start: int, end: int, new: str) -> None:
        """Add a place to be masked, but for what was judged before: that may have gone out."""
        self.cover(start, end, new, self.judged)

    def cover(self, start: int, end: int, new: str, floor: int) -> None:
        """Mask a place from `floor` on; one that was known already, and has grown, stays one."""
        masks, at = self.masks, self._from(start)
        while at < len(masks) and masks[at][0] < end and masks[at][1] < floor:
            at, new = at + 1, ""  # what stands behind that may have gone out, and was shown what takes its place
        if at < len(masks) and masks[at][0] < end:
            mask = masks[at]
            if mask[0] > floor:
                mask[0] = max(min(start, mask[0]), floor)
            mask[1] = max(mask[1], end)
            while at + 1 < len(masks) and masks[at + 1][0] < mask[1]:
                mask[1] = max(mask[1], masks.pop(at + 1)[1])
        elif end > floor:
            masks.insert(at, [max(start, floor), end, new])

    def masked(self, start: int) -> int:
        """Where the first mask begins that ends behind `start`; -1 without any."""
        at = self._from(start) if self.masks else 0
        begin: int = self.masks[at][0] if at < len(self.masks) else -1
        return begin

    def _from(self, start: int) -> int:
        """Which of the masks is the first that ends behind `start`. They are disjoint and in their order."""
        at = bisect_left(self.masks, [start])
        return at - 1 if at and self.masks[at - 1][1] > start else at

    def known(self, start: int, end: int, window: int) -> int:
        """Where, between `start` and `end`, that ends which is judged, and has nothing in it that goes on in another
        text."""
        group, stop = self.group, min(end, self.judged)
        if group is None or stop <= start or group.settled(self, stop, window):
            return max(start, stop)
        least, most = start, stop - 1
        while least < most:
            middle = (least + most + 1) // 2
            if group.settled(self, middle, window):
                least = middle
            else:
                most = middle - 1
        return least

    def let_go(self, end: int) -> None:
        """What stands before `end` counts as judged."""
        self.judged = max(self.judged, end)
        if self.group is not None:
            self.group.let_go()

    def forget(self, window: int) -> None:
        """Drop what was released and is not looked at again."""
        ahead = min(self.out, self.keep) - self.base
        if ahead <= max(window, (self.end - self.base) // 4):  # not for every event: what is left moves
            return
        if self.code:
            self.lead = decode(self.raw, self.lead).lead(ahead)
        self._raw = self.raw[ahead:]
        self.base += ahead
        self.masks = [mask for mask in self.masks if mask[1] > self.base]

    def repeat(self, halves: list[Half]) -> None:
        """It says again what was said before: what was masked there at a border is masked here."""
        raw = self.raw
        for half in halves:
            at = raw.rfind(half.text) if half.last else raw.find(half.text)
            if at >= 0:
                self.cover(self.base + at, self.base + at + len(half.text), half.shown, self.base)


class Sizes(NamedTuple):
    """What the texts of one answer have in common. `window`: so many characters at the end of a text wait for what
    follows. `step`: the characters after which a text is judged again; 0 for those of an answer that came whole, which
    are judged once."""

    window: int
    step: int


class Half(NamedTuple):
    """The part of a value that one of the blocks has between which it is divided."""

    text: str
    shown: str
    """What takes its place."""
    last: bool
    """Whether it is at the block's end; else it is at its beginning."""


class _Segment(NamedTuple):
    """What a seam has of one text: from `start` in the seam, from `at` in the text."""

    start: int
    text: GrownText
    at: int
    block: Channel


class Seam(GrownText):
    """The end of one text and the beginning of the next, or of several that are short. What is masked in it is masked
    in them."""

    __slots__ = ("_open", "_segments", "_shut", "follows", "over")

    def __init__(self, group: JoinedTexts, before: GrownText, block: Channel, sizes: Sizes) -> None:
        window = sizes.window
        super().__init__(("seam", *block[:1]), before.code, before.end + sizes.step if sizes.step else NEVER)
        self.follows = before.key
        self.over = False  # it has done what it is for
        raw, lead = before.raw, before.lead
        back = 2 * window + LEAD
        if before.code:
            text = decode(raw, lead)
            skipped = text.raw(max(0, len(text.text) - back))
            self.lead = self.kept = text.lead(skipped) if skipped else lead
        else:
            skipped = max(0, len(raw) - back)
        self._raw = raw[skipped:]
        self.base = self.keep = before.base + skipped
        self.end = before.end
        self.judged = max(self.base, before.end - _held(before, window))
        self._shut = group.shut
        self.group = group
        self._segments = [_Segment(self.base, before, self.base, block)]
        self._open = -1  # where what reaches over the last border ends, as far as it has come

    def take(self, text: GrownText, said: str, block: Channel) -> None:
        """`said` has come of `text`, which has it already."""
        if self._segments[-1].text is not text:
            self._segments.append(_Segment(self.end, text, text.end - len(said), block))
        self.add(said)

    def place(self, text: GrownText, end: int) -> int | None:
        """Where that is which `text` has before `end`; None where it lies before the seam."""
        for segment in reversed(self._segments):
            if segment.text is text and segment.at < end:
                return segment.start + end - segment.at
        return None

    def mask(self, start: int, end: int, new: str) -> None:
        self.cover(start, end, new, max(self.judged, self._shut))  # what was shut has gone out

    def cover(self, start: int, end: int, new: str, floor: int) -> None:
        """Mask that in the texts; `new` stands in the first of them."""
        group = self.group
        if start < self._segments[-1].start < end or start <= self._open:
            self._open = max(self._open, end)
        stops = [*(segment.start for segment in self._segments[1:]), self.end]
        for segment, stop in zip(self._segments, stops, strict=True):
            first, last = max(start, segment.start), min(end, stop)
            if first >= last:
                continue
            text, ahead = segment.text, segment.at - segment.start
            text.cover(first + ahead, last + ahead, new, floor + ahead)
            if group is not None and group.blocks is not None and (first > start or last < end):
                at = first + ahead - text.base
                half = Half(text.raw[max(0, at) : at + last - first], new, last < end)
                if half.text and half not in group.blocks[segment.block]:
                    group.blocks[segment.block].append(half)
            new = ""

    def settle(self, window: int) -> None:
        """It was judged: it has done what it is for once nothing can begin before its last border any more."""
        group, border = self.group, self._segments[-1].start
        if group is not None and border <= self.judged and self._open <= self.judged:
            group.seam = None
            self.over = True
        self.out = self.keep
        self.forget(window)
        while len(self._segments) > 1 and self._segments[1].start <= self.base:
            del self._segments[0]


class JoinedTexts:
    """Texts of one answer that may be shown as one, in the order in which they come. `after`: characters of other texts
    that have come behind them. `shut`: where the last of them was when that was a window. `over`: nothing follows.
    `blocks`: where an answer says its texts again, those that were
    said, and what of each was masked at a border."""

    __slots__ = ("_block", "after", "blocks", "last", "over", "seam", "shut")

    def __init__(self, repeats: bool) -> None:
        self.after = 0
        self.over = False
        self.seam: Seam | None = None
        self.blocks: dict[Channel, list[Half]] | None = {} if repeats else None
        self.last: GrownText | None = None
        self.shut = 0
        self._block: Channel = ()

    def said(self, block: Channel) -> list[Half] | None:
        """What of a block was masked at a border; None where nothing was said of it yet."""
        return None if self.blocks is None else self.blocks.get(block)

    def add(self, text: GrownText, said: str, block: Channel, sizes: Sizes) -> None:
        """`said` has come of `text`, which has it already.

        Raises ValueError when there are too many blocks.
        """
        self.after = 0
        text.group = self
        if self.blocks is not None and block not in self.blocks:
            if len(self.blocks) >= _BLOCKS:
                raise ValueError("the answer has too many blocks")
            self.blocks[block] = []
        before = self.last
        if before is not text:
            if self.seam is None and before is not None:
                self.seam = Seam(self, before, self._block, sizes)
            self.shut = 0
        self.last, self._block = text, block
        if self.seam is not None:
            self.seam.take(text, said, block)

    def places(self, text: GrownText, size: int, sizes: Sizes) -> range:
        """After how many of the next `size` characters of `text` a seam is judged, until it has done what it is for."""
        if self.seam is not None:
            first = self.seam.next - self.seam.end
        elif self.last is None or self.last is text:
            return range(0)
        else:
            first = sizes.step
        return range(first, min(size, 2 * sizes.window + sizes.step), sizes.step)

    def settled(self, text: GrownText, end: int, window: int) -> bool:
        """Whether what `text` has before `end` is no part of anything that may go on in another text."""
        if end <= text.free:
            return True
        if self.seam is not None:
            at = self.seam.place(text, end)
            return at is None or at <= self.seam.judged
        return self.over or text is not self.last or end <= text.read - _held(text, window)

    def let_go(self) -> None:
        """Nothing of it is held any longer."""
        self.over, self.seam = True, None


_ESCAPE: Final = 6
"""Characters of the longest escape of JSON, which stands for one."""


def _held(text: GrownText, window: int) -> int:
    """How many raw characters at the end of a text may belong to something that goes on behind it."""
    return window * _ESCAPE if text.code else window
