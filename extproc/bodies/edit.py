"""JSON text with some of its members changed and every other byte as it came.

The text was parsed before, and no object in it holds a key twice (`extproc.bodies.jsonbody`). So only the places of
values are looked for, never their meaning: numbers keep their digits, strings their escapes, objects their order and
spaces.
Every function here takes time in proportion to its text, and raises `Refusal` (400) where that is nested too deeply for
the scanner (about a thousand levels).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

import orjson

from extproc.bodies.jsonbody import too_deep

_SPACE: Final = re.compile(rb"[ \t\r\n]*")
_COLON: Final = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*")
_COMMA: Final = re.compile(rb"[ \t\r\n]*,[ \t\r\n]*")
_ESCAPED: Final = re.compile(rb"\\u00[3-7]")
"""An escape that could stand for a letter of a key."""
_SCALAR: Final = re.compile(rb"[^,\]}\s]+")
_PLAIN: Final = re.compile(rb'[ \t\r\n]*("[^"\\]{1,64}")[ \t\r\n]*:[ \t\r\n]*')
"""A key without escapes, and its colon."""
_SIMPLE: Final = re.compile(rb'(?:"[^"\\]{0,64}"|[^,"{}\[\]\s]{1,64})[ \t\r\n]*,')
"""A short value without escapes or anything inside, and its comma."""
_SCAN: Final = json.JSONDecoder(strict=False, parse_int=str, parse_float=str).scan_once  # type: ignore[attr-defined]
"""The standard library's scanner: in C, one call per value. Numbers stay text, since some have too many digits."""


_dumps: Final = orjson.dumps


class JsonEdit:
    """The text of a JSON object, and its members as they were parsed (`fields`), changed together.

    Keys of members that are changed are ASCII, as all keys of these APIs are.
    """

    __slots__ = ("fields", "text")

    def __init__(self, text: bytes, fields: dict[str, Any]) -> None:
        self.text = text
        self.fields = dict(fields)

    def set(self, key: str, value: Any) -> None:
        """Give the member `key` this value; a new one becomes the first."""
        self.put(key, _dumps(value), value)

    def put(self, key: str, raw: bytes, value: Any) -> None:
        """As `set`, where the value is there as text already."""
        text = self.text
        if key in self.fields:
            _, start = _member(text, key)
            self.text = b"".join((text[:start], raw, text[_value_end(text, start) :]))
        else:
            brace = text.index(b"{") + 1
            comma = b"," if self.fields else b""
            self.text = b"".join((text[:brace], orjson.dumps(key), b":", raw, comma, text[brace:]))
        self.fields[key] = value

    def remove(self, key: str) -> None:
        """Remove the member `key`, if there is one."""
        if key not in self.fields:
            return
        text = self.text
        at, start = _member(text, key)
        end = _value_end(text, start)
        comma = _COMMA.match(text, end)
        if comma is not None:
            self.text = text[:at] + text[comma.end() :]
        else:  # the last one: the comma before it goes too
            before = text[:at].rstrip(b" \t\r\n")
            self.text = before.removesuffix(b",") + text[end:]
        del self.fields[key]

    def raw(self, key: str) -> bytes:
        """The text of the value of `key`. Raises ValueError when there is none."""
        _, start = _member(self.text, key)
        return self.text[start : _value_end(self.text, start)]

    def lead(self, key: str, words: str, element: Any) -> None:
        """Put something at the beginning of a value: `words` where it is a string, `element` where it is an array.

        `fields` keeps what it has of this value.
        """
        text = self.text
        _, start = _member(text, key)
        if text[start] == 0x22:  # "
            raw = orjson.dumps(words)[1:-1]
        else:
            empty = text[_skip(text, start + 1)] == 0x5D  # ]
            raw = orjson.dumps(element) if empty else orjson.dumps(element) + b","
        self.text = b"".join((text[: start + 1], raw, text[start + 1 :]))

    def first(self, key: str) -> tuple[int, int]:
        """Where the first element of the array that `key` holds, which has one, begins and ends."""
        _, start = _member(self.text, key)
        at = _skip(self.text, start + 1)
        return at, _value_end(self.text, at)

    def inner(self, key: str) -> JsonEdit:
        """A draft of the object that `key` holds; an empty one where it holds none."""
        value = self.fields.get(key)
        return JsonEdit(self.raw(key), value) if isinstance(value, dict) else JsonEdit(b"{}", {})


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


def exchanged(text: bytes, changes: Mapping[int, bytes | None]) -> bytes:
    """The JSON array `text` with the elements at these places replaced, or removed with their comma (None)."""
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


def _member(text: bytes, key: str) -> tuple[int, int]:
    """Where the member `key` of the object `text` begins, and where its value begins.

    Most often it is among the first, before any that holds much. When the text holds the quoted key just once, and no
    letter as an escape, that one is the member that the parser saw. Anything else is walked member by member.
    """
    quoted = b'"%b"' % key.encode()
    at = text.index(b"{") + 1
    if text.startswith(quoted, at):
        colon = _COLON.match(text, at + len(quoted))
        if colon is not None:
            return at, colon.end()
    found = _early(text, quoted)
    if found is not None:
        return found
    at = text.find(quoted)
    after = at + len(quoted)
    if at >= 0 and text.find(quoted, after) < 0 and (b"\\" not in text or _ESCAPED.search(text) is None):
        colon = _COLON.match(text, after)
        if colon is not None:
            return at, colon.end()
    letters = text.decode("latin-1")  # as in `elements`
    at = _skip(text, text.index(b"{") + 1)
    while text[at] != 0x7D:  # }
        after = _end(letters, at)
        colon = _COLON.match(text, after)
        assert colon is not None, "what was parsed has a colon after each key"
        name = text[at:after]
        if name == quoted or (b"\\" in name and orjson.loads(name) == key):
            return at, colon.end()
        end = _end(letters, colon.end())
        comma = _COMMA.match(text, end)
        at = _skip(text, end) if comma is None else comma.end()
    raise ValueError("no such member")


def _early(text: bytes, quoted: bytes) -> tuple[int, int] | None:
    """The same for a member before which there are a few others of plain and simple values, else None."""
    at = text.index(b"{") + 1
    for _ in range(8):
        member = _PLAIN.match(text, at)
        if member is None:
            return None
        if member[1] == quoted:
            return member.start(1), member.end()
        value = _SIMPLE.match(text, member.end())
        if value is None:
            return None
        at = value.end()
    return None


def _value_end(text: bytes, at: int) -> int:
    """Where the JSON value that begins at `at` ends; quick for what is short."""
    mark = text[at]
    if mark == 0x22:  # "
        end = text.index(b'"', at + 1) + 1
        if text.find(b"\\", at, end) < 0:
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
