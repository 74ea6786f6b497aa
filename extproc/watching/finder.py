"""Finds the texts of one answer's events, and what those that follow have in common with one that was taken apart."""

from __future__ import annotations

import re
from typing import Any, Final

import orjson

from extproc.watching.runs import Alike
from extproc.watching.shape import AnswerShape, AnswerText
from extproc.watching.sse import BOM, Event

REPEATS: Final = re.compile(rb'logprobs|obfuscation|_index"|Index"|token_ids|"audio"')
"""Whether `AnswerShape.forget` may have something to do."""
_PROBE: Final = "\u2603"
_TRIES: Final = 8
"""In some APIs every event has a number, and no two are alike."""


class Likeness:
    """What events have in common with one that was taken apart, and its only text. `fields` are those of such an event.
    `repeats`: each of them may have something for `AnswerShape.forget`. `alone`: the text is shown as one with no
    other."""

    __slots__ = ("alike", "alone", "channel", "fields", "repeats", "text")

    def __init__(self, alike: Alike, fields: dict[str, Any], text: AnswerText, repeats: bool) -> None:
        self.alike = alike
        self.fields = fields
        self.text = text
        self.channel = text.channel
        self.alone = not text.joins
        self.repeats = repeats


class TextFinder:
    """Finds the texts of one answer's events. The next events mostly differ from one with one text in that text alone
    (`known`), and need not be taken apart."""

    __slots__ = ("_json", "_shape", "_tries", "known")

    def __init__(self, shape: AnswerShape, json: bool) -> None:
        self.known: Likeness | None = None
        self._shape = shape
        self._json = json
        self._tries = 0  # events that might have been the first of several alike, and were not

    def texts(self, fields: dict[str, Any]) -> list[AnswerText]:
        return self._shape.texts(fields, self._json)

    def hit(self) -> None:
        """There are events that are like the one that is known."""
        self._tries = 0

    def learn(self, event: Event, text: AnswerText) -> None:
        """`event` has only this text, and nothing ends with it: the next ones may be like it."""
        if self._tries < _TRIES and not self._shape.repeats():  # else its course has to see every event
            self._tries += 1
            self.known = self._likeness(event, text) or self.known

    def _likeness(self, event: Event, text: AnswerText) -> Likeness | None:
        """What events have in common with this one, whose only text is `text`; None where that is not plain to see."""
        said: str = text.holder[text.key]
        data = event.data
        lead, found, trail = event.raw.partition(data)
        before, quoted, after = data.partition(b'"%b"' % said.encode())
        if not said or text.whole or not quoted or not found or event.other:
            return None
        if b"\n" in data or not trail.endswith(b"\n"):  # a carriage return may not be all of its line's end
            return None
        if lead.startswith(BOM):  # no other event may begin with it
            return None
        before, after = before + b'"', b'"' + after
        try:  # the same letters may be a key, or another string, whose place is none that is shown
            fields = orjson.loads(before + _PROBE.encode() + after)
            probed = self.texts(fields)
        except ValueError:
            return None
        if [(one.channel, one.code, one.whole, one.holder[one.key]) for one in probed] != [
            (text.channel, text.code, False, _PROBE)
        ]:
            return None
        repeats = REPEATS.search(before) is not None or REPEATS.search(after) is not None
        return Likeness(Alike(event.name, (lead, trail), (before, after)), fields, probed[0], repeats)
