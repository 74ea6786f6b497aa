"""The one reader of `usage`: how many tokens an answer says that it took, in any API's shape.

OpenAI's chat and completions say `prompt_tokens` and `completion_tokens`; its responses, and Anthropic's messages, say
`input_tokens` and `output_tokens`; Gemini's `usageMetadata` says `promptTokenCount`, `candidatesTokenCount` and, beside
these, `thoughtsTokenCount`. What our own writers put there beside is under `pointsman`.
"""

from __future__ import annotations

from collections.abc import Iterator
from json import JSONDecoder
from typing import Final, NamedTuple

import orjson

_DECODER = JSONDecoder()
_PROMPT = ("prompt_tokens", "input_tokens", "promptTokenCount")
_COMPLETION = ("completion_tokens", "output_tokens", "candidatesTokenCount")
_THOUGHTS = ("thoughtsTokenCount",)
"""Tokens of Gemini's thoughts, which its answer's own count leaves out."""
_KEYS: Final = ("usage", "usageMetadata")
_EVENTS: Final = 64
"""How many of the last events of a stream are read."""
_TRIES: Final = 8
_SPACE: Final = 16
"""Characters between a key and its value."""
_MOST: Final = 10**9
"""Tokens; no answer has more."""


class Usage(NamedTuple):
    """Tokens of one answer; None for what it does not say."""

    prompt: int | None
    completion: int | None


class Counts(NamedTuple):
    """Tokens of one answer, both counts known."""

    prompt: int
    completion: int


def read(said: object) -> Usage:
    """What one `usage` object says. Anything but a count that is not negative counts as not said."""
    if not isinstance(said, dict):
        return Usage(None, None)
    completion = _first(said, _COMPLETION)
    thoughts = _first(said, _THOUGHTS)
    return Usage(_first(said, _PROMPT), thoughts if completion is None else completion + (thoughts or 0))


def counts(said: object) -> Counts | None:
    """The counts of one `usage` object; None unless it says both."""
    prompt, completion = read(said)
    return None if prompt is None or completion is None else Counts(prompt, completion)


def last(end: bytes, ours: bool = False) -> tuple[Usage, float | None]:
    """What the end of an answer's body says; `ours`: a writer's, which says it in a comment where no client asked, and
    beside it the money that it has cost (None for all others).

    The last `usage` that is an object counts: streams repeat it, and Anthropic's grows. What the last one does not say
    is taken from the one before.
    """
    prompt: int | None = None
    completion: int | None = None
    money: float | None = None
    for said in _objects(end, ours):
        given = read(said)
        prompt = given.prompt if prompt is None else prompt
        completion = given.completion if completion is None else completion
        money = _cost(said) if ours and money is None else money
        if prompt is not None and completion is not None and (money is not None or not ours):
            break
    return Usage(prompt, completion), money


def _cost(said: dict[str, object]) -> float | None:
    ours = said.get("pointsman")
    money = ours.get("cost") if isinstance(ours, dict) else None
    if isinstance(money, (int, float)) and not isinstance(money, bool) and money >= 0:
        return float(money)
    return None


def _objects(body: bytes, comments: bool) -> Iterator[dict[str, object]]:
    """The `usage` objects in the end of an answer, the last one first.

    Of a stream, and of an answer that is there whole, only those where the API puts them: what a client sent and the
    server says again (tools, metadata) may hold anything. Where an answer is cut off at its beginning, the last few
    that can be found.
    """
    starts = (b"data:", b":") if comments else (b"data:",)
    lines = [line for line in body.split(b"\n") if line.startswith(starts)]
    texts = [line.partition(b":")[2] for line in lines[-_EVENTS:]] if lines else [body]
    read = False
    for text in reversed(texts):
        try:
            event = orjson.loads(text)
        except orjson.JSONDecodeError:  # the end of a stream, or not whole
            continue
        read = True
        yield from _placed(event)
    if not lines and not read:
        yield from _found(body)


def _placed(event: object) -> Iterator[dict[str, object]]:
    """The usage objects of one event, or of a whole answer: in itself, its `response` or its `message`."""
    for one in reversed(event) if isinstance(event, list) else (event,):  # Gemini streams one array, too
        if not isinstance(one, dict):
            continue
        for holder in (one, one.get("response"), one.get("message")):
            for key in _KEYS:
                said = holder.get(key) if isinstance(holder, dict) else None
                if isinstance(said, dict):
                    yield said


def _found(body: bytes) -> Iterator[dict[str, object]]:
    text = body.decode(errors="replace")
    at = len(text)
    for _ in range(_TRIES):
        at, size = max((text.rfind(f'"{key}"', 0, at), len(key) + 2) for key in _KEYS)
        if at < 0:
            return
        begin = text.find("{", at + size, at + size + _SPACE)
        try:
            value, _ = _DECODER.raw_decode(text, begin) if begin > 0 else (None, 0)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            yield value


def _first(said: dict[str, object], names: tuple[str, ...]) -> int | None:
    for name in names:
        value = said.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST:
            return value
    return None
