"""How many pages a document has, as far as that can be seen without reading it."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final

MOST: Final = 16 * 2**20
"""Characters of base64 in which pages are counted; a longer document is judged by its size."""
PER_PAGE: Final = 75_000
"""Bytes that are taken for one page where pages cannot be counted: our guess, for text with some pictures."""
_START: Final = "JVBERi"  # "%PDF" in base64
_PAGE: Final = re.compile(rb"/Type\s{0,8}/Page(?![A-Za-z])")  # ISO 32000-2, 7.7.3.3


def pages(data: str) -> int:
    """The pages of the document in `data`, base64 or a `data:` URL of it; a PDF has one at least.

    A PDF's page objects are counted. Where they are compressed, where `data` is not whole base64, and in all other
    documents, the size decides.
    """
    if data.startswith("data:"):
        data = data.partition(",")[2]
    counted = 0
    if data.startswith(_START) and len(data) <= MOST:
        try:
            counted = sum(1 for _ in _PAGE.finditer(base64.b64decode(data)))
        except (binascii.Error, ValueError):
            counted = 0
    by_size = round(len(data) * 3 / 4 / PER_PAGE)
    return counted or (max(1, by_size) if data.startswith(_START) else by_size)
