"""The token estimate of a whole request, shared by everything that needs its size."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final

import orjson

from signals.background import rest
from signals.facts import Facts
from signals.request import Request

if TYPE_CHECKING:
    from mypy_extensions import i64  # a number of the machine, where this is compiled

WEIGHTS = Path(__file__).parent.parent / "models" / "tokens.json"
"""By encoding: the tokens that each byte value and each pair of classes stand for, fitted by signals/train/tokens.py
(the card beside it tells how well)."""

PER_MESSAGE = 4
"""Tokens that a chat template puts around one message."""
PER_REQUEST = 3
"""Tokens that open the answer."""
PER_IMAGE = 765
"""Tokens of an image: what OpenAI counts for one of 1024 x 1024 in high detail (85 + 4 tiles of 170)."""
PER_AUDIO = 600
"""Tokens of an audio part: one minute at ten tokens per second."""
PER_PAGE = 2250
"""Tokens of a page of a PDF: the middle of the 1,500 to 3,000 that Anthropic's documentation of PDF support names."""

CLASSES: Final = tuple(
    map(
        bytes,
        (
            range(ord("a"), ord("z") + 1),
            range(ord("A"), ord("Z") + 1),
            range(ord("0"), ord("9") + 1),
            b" ",
            b"\r\n",
            b"\t",
            b"\"'{}[]():,",
            b"_",
            range(0x80, 0xC0),  # a character goes on
            range(0xC0, 0xC4),  # a Latin letter with a mark
            range(0xC4, 0xE0),  # of another alphabet
            b"\xe0",  # of India, Thai, Lao
            b"\xe1\xe2",
            range(0xE3, 0xF0),  # Chinese, Japanese, Korean
            range(0xF0, 0x100),  # emoji, mostly
        ),
    )
)
"""Kinds of bytes; all others are the sixteenth. What words cannot cross is told from what they are made of."""
_SLICE: Final = 32 * 1024
"""Bytes of which the weights are added at a time."""
_CLASS: Final = bytes(
    next((number for number, members in enumerate(CLASSES) if byte in members), len(CLASSES)) for byte in range(256)
)


def _added(data: bytes, weights: bytes) -> int:
    """The sum of the weights of all bytes but the first, each taken with the one before it."""
    total: i64 = 0
    before: i64 = data[0]
    size: i64 = len(data)
    for at in range(1, size):
        byte: i64 = data[at]
        total += weights[byte << 8 | before]
        before = byte
    return total


_SHORT: Final = 64 if isinstance(_added, FunctionType) else sys.maxsize
"""Bytes of a text up to which nothing is gained by numpy; a compiled loop is always faster."""


class ByteWeights:
    """Estimates tokens as a sum over the bytes of UTF-8 text and over its pairs of neighbours (half a µs a kilobyte).

    A byte's own weight says how words of a language are cut; the weight of a pair of `CLASSES` says what begins or goes
    on: a run of spaces is one token, three digits are one, and every change of case in base64 begins another.

    The weights are rounded to 128 levels each, so that the sum of both fits into a byte for every two bytes of text.
    Interpreted, numpy looks these sums up.
    `python -m signals.train.tokens` prints how far off the estimate is, text by kind and language by language.
    """

    def __init__(self, path: Path = WEIGHTS, encoding: str = "o200k") -> None:
        import numpy as np  # not at the top: whoever only checks a policy need not wait for it

        found = json.loads(path.read_bytes())[encoding]
        of_bytes, of_pairs = np.array(found["bytes"]), np.array(found["pairs"])
        self._step = max(float(np.ptp(of_bytes)), float(np.ptp(of_pairs)), 1e-9) / 127
        levels, pairs = (np.rint((each - each.min()) / self._step).astype(np.uint8) for each in (of_bytes, of_pairs))
        classes = np.frombuffer(_CLASS, np.uint8)
        # The later byte counts 256 times as much: little-endian.
        of_both = pairs.reshape(16, 16)[classes[None, :], classes[:, None]] + levels[:, None]
        self._levels, self._both = levels.tobytes(), of_both.tobytes()
        # Short texts feel every look-up of an attribute.
        self._weigh: Callable[..., Any] = of_both.astype(np.uint32).ravel().take
        self._numbers, self._sum_up, self._exact = np.frombuffer, np.add.reduce, np.uint32
        self._least = float(of_bytes.min() + of_pairs.min())
        self._first = -float(of_pairs.min())
        """What the first byte, which is in no pair, is given too much."""

    def count(self, text: str) -> int:
        """Estimate for `text`; at least a token for every sixteen bytes, none for no text."""
        data = text.encode("utf-8", "replace")
        size = len(data)
        if not size:
            return 0
        total = self._levels[data[0]]
        if size <= _SLICE:
            total += self._sum(data)
        else:  # piece by piece, since none of these steps lets another thread run before its end
            for at in range(0, size - 1, _SLICE):
                total += self._sum(data[at : at + _SLICE + 1])
                rest()
        estimated: int = round(total * self._step + size * self._least + self._first)
        return max(estimated, (size + 15) // 16)

    def _sum(self, data: bytes) -> int:
        """The weights, in steps, of all bytes but the first."""
        size = len(data)
        if size <= _SHORT:
            return _added(data, self._both)
        # Each byte with the next one is a number of two bytes: those at even places, then those at odd ones.
        both = self._numbers(data[: size & -2] + data[1 : size - 1 + (size & 1)], "<u2")
        weights = self._weigh(both, None, None, "clip")  # to clip is faster than to check
        return int(self._sum_up(weights, 0, self._exact))


def whole(request: Request, count: Callable[[str], int]) -> int:
    """Input tokens of a request by a counter of text: messages, tools, calls, token ids, images, audio, PDFs."""
    text = request.spoken().rstrip("\n")  # a message without text still has the line feed that parts it from others
    offered = request.asking.offered(request)
    if offered:
        text += orjson.dumps(offered).decode()
    parts = 0
    for message in request.messages:
        parts += PER_MESSAGE
        if message.images or message.audio or message.pages:
            parts += PER_IMAGE * message.images + PER_AUDIO * message.audio + PER_PAGE * message.pages
    return count(text) + parts + request.asking.token_ids(request) + PER_REQUEST


def tokens_of(text: str) -> int:
    """The estimated tokens of one text."""
    return _weights().count(text)


class Estimate:
    """Quick input: the estimated input tokens of a request, in an encoding."""

    def __init__(self, encoding: str = "o200k") -> None:
        self._encoding = encoding
        self._weights: ByteWeights | None = None

    def compute(self, facts: Facts) -> int:
        if self._weights is None:
            self._weights = _weights(self._encoding)
        return whole(facts.request, self._weights.count)


@cache
def _weights(encoding: str = "o200k") -> ByteWeights:
    return ByteWeights(encoding=encoding)


estimate = Estimate()
