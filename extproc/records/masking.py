"""Masks personal data and secrets in text that is kept, as far as the `pii` signal's detectors are sure of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import cache
from typing import Any, Final

import orjson
import re2

from signals.background import rest
from signals.kinds.pii import Detection, findings
from signals.reading import Unavailable
from signals.text.detectors import DETECTORS, Detector
from signals.text.patterns import compiled
from signals.text.view import view

WHOLE: Final = b"[masked]"
"""Stands for a text that has too many candidates to check them all."""

SHOWN: Final = 2_000
"""Characters of the beginning of a text that are shown at most."""
BEYOND: Final = 2_000
"""Characters after them that are read as well: what begins in the beginning may end there."""

_SHORTEST = 6
"""Bytes of the shortest text that a detector finds (`a@b.cc`)."""

_NUMBER = compiled(rb"-?[0-9][0-9.eE+-]{10,}")
"""A number with as many digits as an account's or a card's may have."""

_BACKSLASH = 0x5C


@cache
def _detectors() -> list[tuple[Any, Detector]]:
    return [(compiled(detector.pattern.encode()), detector) for detector in DETECTORS]


@cache
def _candidates() -> re2.Set:
    """One pass that tells which detectors have candidates at all; most texts have none."""
    options = re2.Options()
    options.log_errors = False
    made = re2.Set.SearchSet(options)
    for detector in DETECTORS:
        made.Add(detector.hint or detector.pattern)
    made.Add(r"\z")  # found in every text, unless the automaton has run out of memory
    made.Compile()
    return made


def masked(text: str) -> str:
    """`text` with every finding replaced by its type in brackets, such as `[email]`.

    All types with checksums, addresses and secrets are found, disguised ones too; phone numbers, names and places are
    not looked for. Text with too many candidates to check is masked whole.
    """
    data = text.encode(errors="replace")
    done = _masked(data)
    return text if done is data else done.decode(errors="replace")


def beginning(text: str) -> str:
    """The beginning of `text`, masked; of a longer text give SHOWN + BEYOND characters.

    Of the characters after SHOWN nothing is shown: what is cut off at their end is not found.
    """
    done = masked(text)
    if len(text) <= SHOWN or done == WHOLE.decode():
        return done
    return done[: max(0, len(done) - len(masked(text[SHOWN:])))]


def masked_json(body: bytes, until: float) -> bytes:
    """The JSON text `body` on one line, every string in it masked, names of fields and long whole numbers too.

    The text is walked, not built: its depth does not matter, and another thread waits for the interpreter no longer
    than one string takes. `body` must be JSON. Raises TimeoutError at `until` (`time.monotonic()`).
    """
    kept: list[bytes] = []
    at = 0
    for start, end in _tokens(body):
        if end - start >= _SHORTEST + 2:
            token = body[start:end]
            done = _masked_token(token, until)
            if done is not token:
                kept += (body[at:start], done)
                at = end
            rest()
            if time.monotonic() > until:
                raise TimeoutError("masking took too long")
    kept.append(body[at:] if at else body)
    return b"".join(kept).replace(b"\n", b" ").replace(b"\r", b" ")  # strings hold no raw ones


def _tokens(body: bytes) -> Iterator[tuple[int, int]]:
    """Where the strings (with their quotes) and the long numbers of a JSON text begin and end.

    No regular expression finds the strings: the standard library's would hold the interpreter for the whole of a long
    one, and RE2's takes longer to call than most strings take to read. Raises ValueError where a string has no end.
    """
    at = 0
    while True:
        start = body.find(b'"', at)
        stop = start if start >= 0 else len(body)
        if stop - at > 10:
            for number in _NUMBER.finditer(body[at:stop]):
                yield at + number.start(), at + number.end()
        if start < 0:
            return
        end = start
        escaped = True
        while escaped:
            inside = end + 1
            end = body.find(b'"', inside)
            if end < 0:
                raise ValueError("a string without an end")
            at = end
            while at > inside and body[at - 1] == _BACKSLASH:
                at -= 1
            escaped = (end - at) % 2 == 1
        at = end + 1
        yield start, at


def _masked_token(token: bytes, until: float) -> bytes:
    """One string or number of a JSON text; `token` itself where nothing was found."""
    if token[:1] != b'"':
        if not token.isdigit():
            return token
        done = _masked(token, until)
        return token if done is token else b'"%s"' % done
    if b"\\" not in token:  # neither what is left nor what is put in needs an escape
        text = token[1:-1]
        done = _masked(text, until)
        return token if done is text else b'"%s"' % done
    text = orjson.loads(token).encode()
    done = _masked(text, until)
    return token if done is text else orjson.dumps(done.decode(errors="replace"))


def _masked(data: bytes, until: float = float("inf")) -> bytes:
    """UTF-8 text with its findings replaced; `data` itself where there are none. Raises TimeoutError at `until`."""
    if len(data) < _SHORTEST:
        return data
    text = data.decode(errors="replace")
    plain = view(text)
    detectors = _detectors()
    hits = _hits(data)
    if plain is not text:
        hits |= _hits(plain.encode(errors="replace"))
    found: list[Detection] = []
    try:
        for number in sorted(hits):
            found += findings(text, plain, detectors[number : number + 1])
            if time.monotonic() > until:
                raise TimeoutError("masking took too long")
    except Unavailable:
        return WHOLE
    if not found:
        return data
    kept: list[str] = []
    at = 0
    for start, end, kind, _ in sorted(found):
        if end <= at:
            continue
        kept.append(text[at:start])
        kept.append(f"[{kind}]")
        at = end
    return ("".join(kept) + text[at:]).encode(errors="replace")


def _hits(data: bytes) -> set[int]:
    """The detectors that may find something; all of them where RE2 has run out of memory."""
    found = set(_candidates().Match(data))
    every = len(_detectors())
    return found - {every} if every in found else set(range(every))
