"""The token estimate of a whole request, shared by everything that needs its size."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from zlib import adler32

import numpy as np
import orjson

from signals.facts import Facts
from signals.request import Request

WEIGHTS = Path(__file__).parent.parent / "models" / "tokens.json"
"""o200k tokens that each byte value stands for, fitted by signals/train/tokens.py."""

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


class ByteWeights:
    """Estimates o200k tokens as a sum over the bytes of UTF-8 text, one table look-up a byte (1 µs a kilobyte).

    The weights are rounded to 128 levels, so that `bytes.translate` looks them up and a checksum adds them: the low
    half of an Adler-32 (RFC 1950) is the sum of the bytes modulo 65,521, which 512 of them cannot reach.
    `python -m signals.train.tokens` prints how far off the estimate is, language by language.
    """

    def __init__(self, path: Path = WEIGHTS) -> None:
        weights = np.array(json.loads(path.read_bytes()))
        self._least = float(weights.min())
        self._step = max(float(weights.max()) - self._least, 1e-9) / 127
        self._levels = np.rint((weights - self._least) / self._step).astype(np.uint8).tobytes()

    def count(self, text: str) -> int:
        """Estimate for `text`; at least a token for every sixteen bytes, none for no text."""
        data = text.encode(errors="replace")
        size = len(data)
        levels = data.translate(self._levels)
        if size <= 512:
            total = adler32(levels, 0) & 0xFFFF
        elif size <= 8192:
            total = 0
            for at in range(0, size, 512):
                total += adler32(levels[at : at + 512], 0) & 0xFFFF
        else:  # numpy adds long texts sooner
            total = int(np.add.reduce(np.frombuffer(levels, np.uint8), dtype=np.uint64))
        return max(round(total * self._step + size * self._least), (size + 15) // 16)


def whole(request: Request, count: Callable[[str], int]) -> int:
    """Input tokens of a request by a counter of text: messages, tools, calls, token ids, images, audio, PDFs."""
    text = request.spoken()
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
    """Quick input: the estimated input tokens of a request."""

    def compute(self, facts: Facts) -> int:
        return whole(facts.request, _weights().count)


@cache
def _weights() -> ByteWeights:
    return ByteWeights()


estimate = Estimate()
