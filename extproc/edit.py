"""JSON text with some of its members changed and every other byte as it came.

What is read here was parsed before, and no object of it holds a key twice (`extproc.jsonbody`). So only the places
of values are looked for, never their meaning: numbers keep their digits, strings their escapes, objects their order and
their spaces. Every function here is linear in its text, and raises `Refusal` (400) where that is nested too deeply for
the scanner (about a thousand levels).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import orjson

from extproc.jsonbody import too_deep

_SPACE = re.compile(rb"[ \t\r\n]*")
_COLON = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*")
_COMMA = re.compile(rb"[ \t\r\n]*,[ \t\r\n]*")
_SCALAR = re.compile(rb"[^,\]}\s]+")
_SCAN = json.JSONDecoder(strict=False, parse_int=str, parse_float=str).scan_once  # type: ignore[attr-defined]
"""The standard library's scanner: in C, one call a value. Numbers stay text, since some have too many digits."""


class Draft:
    """The text of a JSON object, and its members as they were parsed (`fields`), changed together."""

    __slots__ = ("fields", "text")

    def __init__(self, text: bytes, fields: dict[str, Any]) -> None:
        self.text = text
        self.fields = dict(fields)

    def set(self, key: str, value: Any) -> None:
        """Give the member `key` this value; a new one becomes the first."""
        self.put(key, orjson.dumps(value), value)

    def put(self, key: str, raw: bytes, value: Any) -> None:
        """As `set`, where the value is there as text already."""
        text = self.text
        if key in self.fields:
            _, start, end = _member(text, key)
            self.text = b"".join((text[:start], raw, text[end:]))
        else:
            brace = text.index(b"{") + 1
            comma = b"," if self.fields else b""
            self.text = b"".join((text[:brace], orjson.dumps(key), b":", raw, comma, text[brace:]))
        self.fields[key] = value

    def remove(self, key: str) -> None:
        """Take the member `key` away, if there is one."""
        if key not in self.fields:
            return
        text = self.text
        at, _, end = _member(text, key)
        comma = _COMMA.match(text, end)
        if comma is not None:
            self.text = text[:at] + text[comma.end() :]
        else:  # the last one: the comma before it goes too
            before = text[:at].rstrip(b" \t\r\n")
            self.text = before.removesuffix(b",") + text[end:]
        del self.fields[key]

    def raw(self, key: str) -> bytes:
        """The text of the value of `key`. Raises ValueError when there is none."""
        _, start, end = _member(self.text, key)
        return self.text[start:end]

    def inner(self, key: str) -> Draft:
        """A draft of the object that `key` holds; an empty one where it holds none."""
        value = self.fields.get(key)
        return Draft(self.raw(key), value) if isinstance(value, dict) else Draft(b"{}", {})


def elements(text: bytes) -> list[tuple[int, int]]:
    """Where the elements of the JSON array `text` begin and end."""
    letters = text.decode("latin-1")  # a letter a byte, so that places in it are places in the text
    found: list[tuple[int, int]] = []
    at = _skip(text, 1)
    while text[at] != 0x5D:  # ]
        end = _end(letters, at)
        found.append((at, end))
        comma = _COMMA.match(text, end)
        at = _skip(text, end) if comma is None else comma.end()
    return found


def first(text: bytes) -> tuple[int, int]:
    """Where the first element of the JSON array `text`, which has one, begins and ends."""
    at = _skip(text, 1)
    return at, _end(text.decode("latin-1"), at)


def prepended(text: bytes, raw: bytes) -> bytes:
    """The JSON array `text` with `raw` before its other elements."""
    comma = b"" if text[_skip(text, 1)] == 0x5D else b","
    return b"".join((text[:1], raw, comma, text[1:]))


def exchanged(text: bytes, changes: Mapping[int, bytes | None]) -> bytes:
    """The JSON array `text` with the elements at these places put anew, or taken away with their comma (None)."""
    spans = elements(text)
    kept = [index for index in range(len(spans)) if index not in changes or changes[index] is not None]
    if not kept:
        return b"[]"
    pieces = [text[: spans[0][0]]]
    for index in kept:
        start, end = spans[index]
        new = changes.get(index)
        pieces.append(text[start:end] if new is None else new)
        if index != kept[-1]:
            pieces.append(text[end : spans[index + 1][0]])
    pieces.append(text[spans[-1][1] :])
    return b"".join(pieces)


def _member(text: bytes, key: str) -> tuple[int, int, int]:
    """Where the member `key` of the object `text` begins, and where its value begins and ends.

    When the text holds the quoted key just once, and no letter as an escape, that one is the member that the parser
    saw. Anything else is walked member by member.
    """
    quoted = b'"%b"' % key.encode()
    at = text.find(quoted)
    after = at + len(quoted)
    if at >= 0 and text.find(quoted, after) < 0 and (b"\\" not in text or b"\\u00" not in text):
        colon = _COLON.match(text, after)
        if colon is not None:
            return at, colon.end(), _value_end(text, colon.end())
    letters = text.decode("latin-1")  # as in `elements`
    at = _skip(text, text.index(b"{") + 1)
    while text[at] != 0x7D:  # }
        after = _end(letters, at)
        colon = _COLON.match(text, after)
        assert colon is not None, "what was parsed has a colon after each key"
        end = _end(letters, colon.end())
        name = text[at:after]
        if name == quoted or (b"\\" in name and orjson.loads(name) == key):
            return at, colon.end(), end
        comma = _COMMA.match(text, end)
        at = _skip(text, end) if comma is None else comma.end()
    raise ValueError("no such member")


def _value_end(text: bytes, at: int) -> int:
    """Where the JSON value that begins at `at` ends; quick for what is short."""
    mark = text[at]
    if mark == 0x22:  # "
        end = text.index(b'"', at + 1) + 1
        if b"\\" not in text[at:end]:
            return end
    elif mark != 0x7B and mark != 0x5B:  # { [
        scalar = _SCALAR.match(text, at)
        assert scalar is not None, "what was parsed has a value"
        return scalar.end()
    return _end(text.decode("latin-1"), at)


def _end(letters: str, at: int) -> int:
    """Where the JSON value that begins at `at` ends. Raises `Refusal` (400) when it is nested too deeply to be read."""
    try:
        end: int = _SCAN(letters, at)[1]
    except RecursionError:
        raise too_deep() from None
    return end


def _skip(text: bytes, at: int) -> int:
    match = _SPACE.match(text, at)
    return at if match is None else match.end()
