"""JSON text inside of a string (the arguments of a tool): as its reader will read it, and masked so that valid JSON
stays valid.

The text may be a piece of a longer one. What has to be known of the text before it is told by a `lead`: the few
characters that bring a reader into the same state. RFC 8259. The work is linear in the text and the spans.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from typing import Final, NamedTuple

import orjson

_MARKS: Final = re.compile(
    r'"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\[^u]|\\(?:u[0-9a-fA-F]{0,3})?',
    re.DOTALL,
)
"""Quotation marks and escapes: two halves of a character, one, a short one, and what is no whole escape."""
_HALF: Final = re.compile(r"\\u[dD][89abAB]..")
_BEGUN: Final = re.compile(r"(?:\\(?:u(?:[dD](?:[c-fC-F][0-9a-fA-F]?)?)?)?)?")
"""What has come of a character's second half."""
_SHORT: Final = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
_STRUCTURE: Final = frozenset(' \t\r\n{}[]:,"')
_BARE: Final = re.compile(r'[^ \t\r\n{}\[\]:,"]+')
"""A number or a word outside of strings, or what is no JSON."""
_WORDS: Final = frozenset(("true", "false", "null"))
_WORD: Final = 5
"""Characters of the longest."""
_LOST: Final = "\N{REPLACEMENT CHARACTER}"


class Edit(NamedTuple):
    """What stands at `start` to `end` of a text becomes `new`."""

    start: int
    end: int
    new: str


class Decoded:
    """A piece of JSON text with the escapes of its strings decoded. Made by `decode`."""

    def __init__(self, raw: str, lead: str) -> None:
        whole = lead + raw
        self._whole, self._lead = whole, len(lead)
        self._skipped = 1 if lead[:1] == '"' else len(lead)  # an escape in it is still to be read
        self._quotes: list[int] = []
        self._starts: list[int] = []  # of escapes, in the whole text
        self._stops: list[int] = []
        self._ends: list[int] = []  # of what they stand for, in the decoded text
        parts: list[str] = []
        done = length = 0
        inside = False
        self._end = len(whole)
        """Where an escape begins that has not ended; else the end."""
        for mark in _MARKS.finditer(whole):
            start, end = mark.span()
            text = mark.group()
            if text == '"':
                inside = not inside
                self._quotes.append(start)
            elif inside:
                if _unfinished(text, whole, end):
                    self._end = start
                    break
                one = _meant(text)
                parts += (whole[done:start], one)
                length += start - done + len(one)
                done = end
                self._starts.append(start)
                self._stops.append(end)
                self._ends.append(length)
        parts.append(whole[done : self._end])
        self.text = "".join(parts)[self._skipped :]
        """The piece as it is read: with its quotation marks and brackets, and the characters that escapes stand for. An
        escape at its end that is not whole is left out."""

    def raw(self, at: int) -> int:
        """The offset in the raw piece of what is at offset `at` of `text`; of its end for the end."""
        return max(0, self._place(at) - self._lead)

    def inside(self, at: int) -> bool:
        """Whether the raw offset `at` is within a string: what is put there has to be escaped, and needs no quotes."""
        return self._within(at + self._lead)

    def lead(self, at: int) -> str:
        """What to hand to `decode` for the rest of the raw text, from the raw offset `at` on."""
        place = at + self._lead
        if place > self._end:
            return '"' + self._whole[self._end : place]
        if self._within(place):
            last = bisect_left(self._starts, place) - 1
            half = last >= 0 and self._stops[last] > place
            return '"' + self._whole[self._starts[last] : place] if half else '"'
        begun = place
        while begun > max(0, place - _WORD) and self._whole[begun - 1] not in _STRUCTURE:
            begun -= 1
        return self._whole[begun:place]

    def edits(self, spans: Iterable[tuple[int, int, str]]) -> list[Edit]:
        """What has to become of the raw piece so that the spans of `text` (start, end, what is shown instead) are gone.
        The spans are disjoint and in their order, and so are the edits.

        Within strings the text is replaced. A number or a word outside of them becomes a string, whole. Structure
        stays.
        """
        found: list[Edit] = []
        done = self._lead
        for start, end, shown in spans:
            escaped = orjson.dumps(shown).decode()
            at, stop = self._place(start), self._place(end)
            if at < self._lead:  # the rest of an escape whose beginning is gone out
                at = self._stops[bisect_right(self._starts, at) - 1]
            at = max(at, done)
            while at < stop:
                next_quote = bisect_left(self._quotes, at)
                border = self._quotes[next_quote] if next_quote < len(self._quotes) else len(self._whole)
                if next_quote % 2:
                    if at < border:
                        done = min(border, stop)
                        found.append(Edit(at - self._lead, done - self._lead, escaped[1:-1]))
                    at = border + 1
                else:
                    for first, last in self._bare(at, min(border, stop)):
                        new = escaped
                        if first < self._lead:  # its beginning is gone out
                            if self._whole[first:last] in _WORDS:
                                continue
                            new = _rest(self._whole[first : self._lead])
                        if last > done:
                            done = last
                            found.append(Edit(max(first, self._lead) - self._lead, last - self._lead, new))
                    at = border + 1
        return found

    def _place(self, at: int) -> int:
        """Where in the whole text the decoded character is."""
        at += self._skipped
        last = bisect_right(self._ends, at) - 1
        return at if last < 0 else at - self._ends[last] + self._stops[last]

    def _within(self, place: int) -> bool:
        return bisect_left(self._quotes, place) % 2 == 1

    def _bare(self, start: int, end: int) -> list[tuple[int, int]]:
        """The numbers and words, all outside of strings, that have a character between `start` and `end`."""
        whole = self._whole
        while start > 0 and whole[start - 1] not in _STRUCTURE:
            start -= 1
        found = []
        for match in _BARE.finditer(whole, start):
            if match.start() >= end:
                break
            found.append(match.span())
        return found


def decode(raw: str, lead: str = "") -> Decoded:
    """`raw`: a piece of JSON text; `lead`: what `Decoded.lead` gave for its beginning ('' at the beginning of all)."""
    return Decoded(raw, lead)


def _unfinished(escape: str, whole: str, end: int) -> bool:
    """Whether an escape may go on in the next piece."""
    if end == len(whole) and len(escape) < 6:
        return len(escape) == 1 or escape[1] == "u"
    return len(escape) == 6 and _HALF.fullmatch(escape) is not None and _BEGUN.fullmatch(whole, end) is not None


def _meant(escape: str) -> str:
    """What an escape stands for; itself when it is none."""
    if len(escape) == 2:
        return _SHORT.get(escape[1], escape[1])
    if len(escape) < 6:
        return escape
    code = int(escape[2:6], 16)
    if len(escape) == 12:
        return chr(0x10000 + ((code - 0xD800) << 10) + int(escape[8:12], 16) - 0xDC00)
    return _LOST if 0xD800 <= code < 0xE000 else chr(code)


def _rest(begun: str) -> str:
    """What ends a number or a word that has gone out in part: a number needs a digit at its end."""
    return "" if begun[-1:].isdigit() else "0"
