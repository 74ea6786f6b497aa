"""The one reader of `usage`: how many tokens an answer says that it took, in any API's shape.

OpenAI's chat and completions say `prompt_tokens` and `completion_tokens`; its responses, and Anthropic's messages, say
`input_tokens` and `output_tokens`; Gemini's `usageMetadata` says `promptTokenCount`, `candidatesTokenCount` and, beside
these, `thoughtsTokenCount`. Our own writers add what else there is to say under `pointsman`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from json import JSONDecoder
from typing import Any, Final, NamedTuple

import orjson

_DECODER = JSONDecoder()
_PROMPT = ("prompt_tokens", "input_tokens", "promptTokenCount")
_COMPLETION = ("completion_tokens", "output_tokens", "candidatesTokenCount")
_THOUGHTS = ("thoughtsTokenCount",)
"""Tokens of Gemini's thoughts, which its answer's own count leaves out."""
_CACHED = ("cachedContentTokenCount", "prompt_cache_hit_tokens")
"""Gemini's and DeepSeek's names for what OpenAI has in `prompt_tokens_details` or `input_tokens_details`."""
_DETAILS = ("prompt_tokens_details", "input_tokens_details", "completion_tokens_details", "output_tokens_details")
_READ, _WRITTEN = ("cache_read_input_tokens",), ("cache_creation_input_tokens",)
_WRITES: Final = ("cache_write_tokens", "cache_creation_tokens")
"""OpenRouter's and LiteLLM's names, in OpenAI's details, for what Anthropic has in `cache_creation_input_tokens`."""
_KEYS: Final = ("usage", "usageMetadata")
_EVENTS: Final = 64
"""How many of the last events of a stream that speak of a usage are read."""
_TRIES: Final = 8
_SPACE: Final = 16
"""Characters between a key and its value."""
_MOST: Final = 10**9
"""Tokens: a greater count is not believed, since no answer has as many."""


_NOTHING: Final = re.compile(rb',\s*"usage"\s*:\s*null(?=\s*[,}])|(?<=\{)\s*"usage"\s*:\s*null\s*(?:,|(?=\}))')
"""The member `usage: null` with one comma. A quote after a comma or a brace begins a key: within a string it would have
a backslash."""


class Usage(NamedTuple):
    """Tokens of one answer; None for what it does not say.

    `cached` of the `prompt` were in the server's cache, and `written` of it were put there; `reasoning` of the
    `completion` are no part of the text.
    """

    prompt: int | None
    completion: int | None
    cached: int | None = None
    reasoning: int | None = None
    written: int | None = None


class TokenCounts(NamedTuple):
    """Tokens of one answer, both counts known; `cached` and `written` as in `Usage`."""

    prompt: int
    completion: int
    cached: int = 0
    written: int = 0


class Spent(NamedTuple):
    """What an answer took: tokens (see `Usage`), and money in the unit of the prices.

    `course` is how a writer came to it: who wrote what, without any of its text.
    """

    prompt: int
    completion: int
    money: float
    cached: int | None = None
    reasoning: int | None = None
    written: int | None = None
    course: Mapping[str, Any] | None = None


def read(said: object) -> Usage:
    """The counts of one `usage` object. Anything other than a whole number from 0 on counts as not stated."""
    if not isinstance(said, dict):
        return Usage(None, None)
    prompt, completion = _first(said, _PROMPT), _first(said, _COMPLETION)
    thoughts = _first(said, _THOUGHTS)
    if completion is not None:
        completion += thoughts or 0
    elif thoughts is not None:
        completion = thoughts
    reasoning = thoughts
    cached, beside = _first(said, _CACHED), _first(said, _WRITTEN)
    written = beside
    for key in _DETAILS:
        details = said.get(key)
        if isinstance(details, dict):
            cached = _first(details, ("cached_tokens",)) if cached is None else cached
            reasoning = _first(details, ("reasoning_tokens",)) if reasoning is None else reasoning
            written = _first(details, _WRITES) if written is None else written
    if "prompt_tokens" not in said:
        found = _first(said, _READ)
        cached = cached if found is None else found
        if prompt is not None:  # Anthropic's `input_tokens` leave these out; details are of what the count has
            prompt += (found or 0) + (beside or 0)
    cached = _at_most(cached, prompt)
    fresh = None if prompt is None else prompt - (cached or 0)
    return Usage(prompt, completion, cached, _at_most(reasoning, completion), _at_most(written, fresh))


def unasked(event: bytes, data: bytes) -> bytes:
    """One event of a stream, whose data this is, as a server sends it that nobody has asked for the usage (OpenAI's
    `stream_options`): without `usage: null`, and b'' where it says a usage and has no choices."""
    if b'"usage"' not in data or b'"choices"' not in data:
        return event
    bare, found = _NOTHING.subn(b"", event)
    if found:
        return bare
    try:
        fields = orjson.loads(data)
    except orjson.JSONDecodeError:
        return event
    if not isinstance(fields, dict) or not isinstance(fields.get("usage"), dict):
        return event
    return b"" if fields.get("choices") == [] else event  # a server that says it beside a choice says it unasked


def _at_most(part: int | None, whole: int | None) -> int | None:
    return part if part is None or whole is None else min(part, whole)


def counts(said: object) -> TokenCounts | None:
    """The counts of one `usage` object; None unless it says both."""
    prompt, completion, cached, _, written = read(said)
    return None if prompt is None or completion is None else TokenCounts(prompt, completion, cached or 0, written or 0)


def timed(said: object) -> TokenCounts | None:
    """The counts in one `timings` object of llama.cpp's server, which has them in every piece of a stream that asks for
    `timings_per_token`; None unless it says them. What it read anew and what it had in its cache are apart there."""
    if not isinstance(said, dict):
        return None
    read, cached, completion = (_first(said, (name,)) for name in ("prompt_n", "cache_n", "predicted_n"))
    return None if read is None or completion is None else TokenCounts(read + (cached or 0), completion, cached or 0)


def last(end: bytes, ours: bool = False) -> tuple[Usage, float | None]:
    """What the end of an answer's body says; `ours`: a writer's, which says it in a comment where no client asked, and
    beside it the money that it has cost (None for all others).

    The last `usage` that is an object counts: streams repeat it, and Anthropic's grows. What the last one does not
    state is taken from the one before.
    """
    found = Usage(None, None)
    money: float | None = None
    for said in _objects(end, ours):
        given = read(said)
        if found.prompt is None:
            found = found._replace(prompt=given.prompt, cached=given.cached, written=given.written)
        if found.completion is None:
            found = found._replace(completion=given.completion, reasoning=given.reasoning)
        money = _cost(said) if ours and money is None else money
        if found.prompt is not None and found.completion is not None and (money is not None or not ours):
            break
    return found, money


def _cost(said: dict[str, object]) -> float | None:
    ours = said.get("pointsman")
    money = ours.get("cost") if isinstance(ours, dict) else None
    if isinstance(money, (int, float)) and not isinstance(money, bool) and money >= 0:
        return float(money)
    return None


def _objects(body: bytes, comments: bool) -> Iterator[dict[str, object]]:
    """The `usage` objects in the end of an answer, the last one first.

    In a stream, and in an answer that is there whole, only those where the API puts them are taken, since what a client
    sent and the server repeats (tools, metadata) may hold anything. Where the beginning of an answer is missing, the
    last few that can be found are taken.
    """
    starts = (b"data:", b":") if comments else (b"data:",)
    streamed = body.startswith(starts) or any(b"\n" + start in body for start in starts)
    read = streamed
    for text in _lines(body, starts) if streamed else (body,):
        try:
            event = orjson.loads(text)
        except orjson.JSONDecodeError:  # the end of a stream, or not whole
            continue
        read = True
        yield from _placed(event)
    if not read:
        yield from _found(body)


def _lines(body: bytes, starts: tuple[bytes, ...]) -> Iterator[bytes]:
    """What those lines of a stream say that speak of a usage, the last one first. All others, which are nearly all of
    it, are not even cut out."""
    end = len(body)
    for _ in range(_EVENTS):
        at = body.rfind(b'"usage', 0, end)
        if at < 0:
            return
        end = body.rfind(b"\n", 0, at) + 1
        if body.startswith(starts, end):
            stop = body.find(b"\n", at)
            yield body[body.index(b":", end) + 1 : len(body) if stop < 0 else stop]


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
