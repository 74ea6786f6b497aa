"""The one reader of `usage`: how many tokens an answer says that it took, in any API's shape.

OpenAI's chat and completions say `prompt_tokens` and `completion_tokens`; its responses, and Anthropic's messages, say
`input_tokens` and `output_tokens`; Gemini's `usageMetadata` says `promptTokenCount`, `candidatesTokenCount` and, beside
these, `thoughtsTokenCount`. What our own writers put there beside is under `pointsman`.
"""

from __future__ import annotations

from collections.abc import Iterator
from json import JSONDecodeError, JSONDecoder
from typing import Final, NamedTuple

_DECODER = JSONDecoder()
_PROMPT = ("prompt_tokens", "input_tokens", "promptTokenCount")
_COMPLETION = ("completion_tokens", "output_tokens", "candidatesTokenCount")
_THOUGHTS = ("thoughtsTokenCount",)
"""Tokens of Gemini's thoughts, which its answer's own count leaves out."""
_KEYS: Final = ('"usage"', '"usageMetadata"')


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


def last(end: bytes) -> Usage:
    """What the end of an answer's body says.

    The last `usage` that is an object counts: streams repeat it, and Anthropic's grows. What the last one does not say
    is taken from the one before.
    """
    prompt: int | None = None
    completion: int | None = None
    for said in _objects(end):
        given = read(said)
        prompt = given.prompt if prompt is None else prompt
        completion = given.completion if completion is None else completion
        if prompt is not None and completion is not None:
            break
    return Usage(prompt, completion)


def cost(end: bytes) -> float | None:
    """The money that the end of a writer's answer says that it has cost; None when it does not."""
    for said in _objects(end):
        ours = said.get("pointsman")
        money = ours.get("cost") if isinstance(ours, dict) else None
        if isinstance(money, (int, float)) and not isinstance(money, bool) and money >= 0:
            return float(money)
    return None


def _objects(body: bytes) -> Iterator[dict[str, object]]:
    """The `usage` objects in the end of an answer, the last one first."""
    text = body.decode(errors="replace")
    key = max(_KEYS, key=text.rfind)
    at = len(text)
    while (at := text.rfind(key, 0, at)) >= 0:
        try:
            value, _ = _DECODER.raw_decode(text[at + len(key) :].lstrip().removeprefix(":").lstrip())
        except (JSONDecodeError, ValueError):
            continue
        if isinstance(value, dict):
            yield value


def _first(said: dict[str, object], names: tuple[str, ...]) -> int | None:
    for name in names:
        value = said.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
    return None
