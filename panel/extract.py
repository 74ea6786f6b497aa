"""The final answer in a text, and which answers say the same: what votes are counted over.

After self-consistency (Wang et al., arXiv 2203.11171), which takes the majority over final answers and not over texts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from typing import Final

import orjson
from rapidfuzz import fuzz

from upstream.endpoint import JSON
from upstream.toolcalls import tool_calls

READ: Final = 20_000
"""Characters of the end of a text that are looked at."""
_NUMBER: Final = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d{1,3})?|-?\.\d+")
_LED: Final = re.compile(r"(?:answer|result|solution)\b[^\n]{0,20}?(?:is|:|=)\s*([^\n]{1,200})", re.IGNORECASE)
_CHOICE: Final = re.compile(r"\(([A-J])\)|(?<![A-Za-z])(?:([B-HJ])(?![A-Za-z'])|(A)(?![A-Za-z']| [a-z]))")
_FENCE: Final = re.compile(r"```(?:json)?[^\S\n]*\n(.*?)```", re.DOTALL)
_SPACE: Final = re.compile(r"[\W_]+")

Answer = str


class WholeText(str):
    """A whole text. Unlike other answers, two that are alike say the same."""

    __slots__ = ()


def number(text: str) -> Answer | None:
    """The last number of the last line that says `answer`, or else of the text, in plain form; None without one."""
    found = _NUMBER.findall(_led(text)) or _NUMBER.findall(text[-READ:])
    return _plain_number(found[-1]) if found else None


def choice(text: str) -> Answer | None:
    """The letter of a choice (A to J): the first after the last `answer`, else the text's last one."""
    found = next(_CHOICE.finditer(_led(text)), None) or next(reversed([*_CHOICE.finditer(text[-READ:])]), None)
    return None if found is None else found[found.lastindex or 0]


def boxed(text: str) -> Answer | None:
    r"""What stands in the last `\boxed{…}`, without spaces; a number in plain form."""
    text = text[-READ:]
    at = text.rfind("\\boxed{")
    if at < 0:
        return None
    begin = at + len("\\boxed{")
    depth = 1
    for place in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if not depth:
            inner = re.sub(r"\s+", "", text[begin:place]).strip("$")
            return _plain_number(inner) or inner or None
    return None


def field(path: Sequence[str]) -> Callable[[str], Answer | None]:
    """The field at `path` of the JSON object that a text is, or has in a fence, or between its outermost braces."""

    def read(text: str) -> Answer | None:
        text = text[-READ:]
        fences = _FENCE.findall(text)
        for candidate in (fences[-1] if fences else text, text[text.find("{") : text.rfind("}") + 1]):
            try:
                value = orjson.loads(candidate)
            except orjson.JSONDecodeError:
                continue
            for key in path:
                value = value.get(key) if isinstance(value, dict) else None
            if value is not None:
                with suppress(orjson.JSONEncodeError):  # it reads more levels than it writes
                    return _plain_number(value) or orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
        return None

    return read


def words(text: str) -> Answer | None:
    """The whole text, in small letters and without punctuation."""
    return WholeText(_SPACE.sub(" ", text[-READ:].casefold()).strip()) or None


def any_answer(text: str) -> Answer | None:
    """The boxed answer; else the number after the last `answer`; else the letter there; else the whole text."""
    led = _led(text)
    found = boxed(text) or (led and (number(led) or choice(led)))
    return found or words(text)


def called(parts: Iterable[JSON]) -> Answer | None:
    """The tools that an answer calls, from the pieces of its stream: the names, and the arguments as JSON."""
    return "\n".join(f"{call.name} {_sorted(call.arguments)}" for call in tool_calls(parts)) or None


def _sorted(text: str) -> str:
    """JSON with its keys in order, so that equal objects are equal texts; what is no JSON as it stands."""
    try:
        return orjson.dumps(orjson.loads(text), option=orjson.OPT_SORT_KEYS).decode()
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):  # it reads more levels than it writes
        return text


EXTRACTORS: Final[Mapping[str, Callable[[str], Answer | None]]] = {
    "auto": any_answer,
    "number": number,
    "choice": choice,
    "boxed": boxed,
    "text": words,
}
ALIKE: Final = 90.0
"""From this similarity on (0..100, `rapidfuzz.fuzz.ratio`), two texts say the same."""
_COMPARED: Final = 2_000
"""Characters of a text that are compared: the work grows with their square."""


def same(one: Answer, other: Answer) -> bool:
    """Whether two extracted answers are one: equal, or both of them long texts that are alike."""
    if one == other:
        return True
    if not (isinstance(one, WholeText) and isinstance(other, WholeText)) or min(len(one), len(other)) < 12:
        return False
    if _NUMBER.findall(one) != _NUMBER.findall(other):  # texts that differ in a number do not say the same
        return False
    return fuzz.ratio(one[:_COMPARED], other[:_COMPARED], score_cutoff=ALIKE) > 0


def groups(answers: Sequence[Answer | None]) -> list[list[int]]:
    """The places of answers that say the same, in the order in which the first of each came. None belongs nowhere."""
    found: list[list[int]] = []
    for place, answer in enumerate(answers):
        if answer is None:
            continue
        for group in found:
            first = answers[group[0]]
            if first is not None and same(first, answer):
                group.append(place)
                break
        else:
            found.append([place])
    return found


def _led(text: str) -> str:
    found = _LED.findall(text[-READ:])
    return found[-1] if found else ""


def _plain_number(value: object) -> str | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    try:
        plain = Decimal(str(value).replace(",", ""))
    except InvalidOperation:
        return None
    if not plain.is_finite() or abs(plain.adjusted()) > 30:
        return None
    plain = plain.normalize()
    return "0" if plain == 0 else f"{plain:f}"
