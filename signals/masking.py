"""Masks personal data and secrets in text that is to be kept: what the `pii` signal's detectors are sure of."""

from __future__ import annotations

import time
from functools import cache
from typing import Any, Final

import orjson
import re2

from signals.detectors import DETECTORS, Detector
from signals.patterns import compiled
from signals.pii import findings
from signals.reading import Unavailable

WHOLE: Final = b"[masked]"
"""Stands for a text that has too many candidates to check them all."""

_SHORTEST = 6
"""Bytes: nothing that a detector finds is shorter (`a@b.cc`)."""

_TOKEN = compiled(rb'(?s)"[^"\\]*(?:\\.[^"\\]*)*"|-?[0-9][0-9.eE+-]{10,}')
"""A string of a JSON text, or a number of so many digits that it may be an account's or a card's."""


@cache
def _detectors() -> list[tuple[Detector, Any]]:
    return [(detector, compiled(detector.pattern.encode())) for detector in DETECTORS]


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

    All checksummed types, addresses and secrets; phone numbers, names and places are not looked for. Text with too
    many candidates to check is masked whole.
    """
    data = text.encode(errors="replace")
    done = _masked(data)
    return text if done is data else done.decode(errors="replace")


def masked_json(body: bytes, until: float) -> bytes:
    """The JSON text `body` on one line, every string in it masked, names of fields and long whole numbers too.

    The text is walked, not built: its depth does not matter, and another thread waits for the interpreter no longer
    than one string takes. `body` must be JSON. Raises TimeoutError at `until` (`time.monotonic()`).
    """
    kept: list[bytes] = []
    at = 0
    search = _TOKEN.search
    found = search(body, 0)
    while found is not None:
        start, end = found.span()
        if end - start >= _SHORTEST + 2:
            token = body[start:end]
            done = _masked_token(token, until)
            if done is not token:
                kept += (body[at:start], done)
                at = end
            if time.monotonic() > until:
                raise TimeoutError("masking took too long")
        found = search(body, end)
    kept.append(body[at:] if at else body)
    return b"".join(kept).replace(b"\n", b" ").replace(b"\r", b" ")  # strings hold no raw ones


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
    detectors = _detectors()
    hits: list[int] = _candidates().Match(data)
    if len(detectors) not in hits:  # out of memory: every detector by itself
        hits = list(range(len(detectors)))
    spans: list[tuple[int, int, str]] = []
    try:
        for number, (detector, pattern) in enumerate(detectors):
            if number in hits:
                spans += [(start, end, detector.kind) for start, end, _ in findings(pattern, detector, data)]
                if time.monotonic() > until:
                    raise TimeoutError("masking took too long")
    except Unavailable:
        return WHOLE
    if not spans:
        return data
    kept: list[bytes] = []
    at = 0
    for start, end, kind in sorted(spans):
        if end <= at:
            continue
        kept.append(data[at:start] if start >= at else b"")
        kept.append(b"[%s]" % kind.encode())
        at = end
    kept.append(data[at:])
    return b"".join(kept)
