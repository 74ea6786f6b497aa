"""Keywords in text: folding, word bounds, and one Aho–Corasick automaton for all keywords of a policy.

Aho and Corasick, "Efficient string matching: an aid to bibliographic search", CACM 18 (1975): one pass over the text
finds every keyword, however many there are. ahocorasick_rs searches 1 and 32 KB for 20 and 1,000 keywords 1.7 to 5
times as quickly as pyahocorasick (measured side by side).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

from ahocorasick_rs import BytesAhoCorasick

from signals.background import rest
from signals.reading import Unavailable
from signals.text.hits import Searcher
from signals.text.view import nfkc, slices, stream_safe

_CHUNK = 8 * 1024
"""Bytes searched at a time, so that the list of matches stays short however long and repetitive the text is."""

MOST = 20_000
"""The most keywords of a policy: each has one bit of the integer that says what was found."""
MOST_LETTERS = 1 << 20
"""The most characters of all keywords together: the automaton takes some 300 bytes for each."""
_PLACES = 10_000
"""Places of keywords in one text that are looked at."""
LONGEST = 1000
"""The most characters of one keyword, folded: every chunk overlaps the next one by this much."""
_SLICE = 32 * 1024
"""Bytes changed in one call, so that none holds the interpreter for long."""
_FOLDED = 4096
"""Characters folded in one call: one character may become eighteen."""

_ASCII_SPACE = b"\t\n\v\f\r"
_SPACED = bytes(0x20 if byte in _ASCII_SPACE else byte for byte in range(256))
_SPACED_LOWER = bytes(byte + 32 if 65 <= byte <= 90 else _SPACED[byte] for byte in range(256))

_WORD = bytes(byte < 128 and (chr(byte).isalnum() or byte == 0x5F) for byte in range(256))

_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1100, 0x11FF),  # Hangul letters
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x30FF),  # Han iteration marks, kana
    (0x3130, 0x318F),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xAC00, 0xD7FF),  # Hangul: words are spaced, but particles cling to them
    (0xF900, 0xFAFF),
    (0xFF66, 0xFFDC),
    (0x20000, 0x3FFFF),
)
"""Code points of scripts that write words without spaces, or with endings that a keyword does not name."""


"""Where there may be that many combining marks in a row, which are neither letters nor space."""
_SPACES = re.compile(rb"  +")
_RUNS = re.compile(r"\s\s")


def fold(text: str) -> str:
    """`text` as it is compared without regard to case: NFKC and full case folding (Unicode 3.13, D145 with NFKC).

    So 'Straße' equals 'STRASSE', full-width 'ＡＩ' equals 'ai', composed letters equal decomposed ones. One rule is not
    Unicode's: 'İ' counts as a plain 'i', which is what writers of Turkish expect of ISTANBUL and İSTANBUL alike.

    Raises `Unavailable` (`too_long`) for a long text that would more than double, which no written language does: some
    characters stand for up to eighteen others.
    """
    if text.isascii():
        return text.lower()
    if len(text) <= _FOLDED:
        return nfkc(nfkc(text).casefold().replace("i\u0307", "i"))
    parts = []
    room = _FOLDED
    for part in slices(text, _FOLDED):
        folded = fold(part)
        room += 2 * len(part) - len(folded)
        if room < 0:
            raise Unavailable("too_long")
        parts.append(folded)
    return "".join(parts)


@lru_cache(4096)
def _clings(char: str) -> bool:
    """Whether a letter beside `char` belongs to the same word."""
    if not (char.isalnum() or unicodedata.category(char)[0] == "M"):
        return False
    code = ord(char)
    return not any(low <= code <= high for low, high in _UNSPACED)


def _clings_at(data: bytes, at: int) -> bool:
    """Whether the UTF-8 character that holds byte `at` clings to its neighbours."""
    byte = data[at]
    if byte < 0x80:
        return _WORD[byte] == 1
    start = at
    while data[start] & 0xC0 == 0x80:
        start -= 1
    end = at + 1
    while end < len(data) and data[end] & 0xC0 == 0x80:
        end += 1
    return _clings(data[start:end].decode(errors="replace"))


def bounded(data: bytes, start: int, end: int) -> bool:
    """Whether the UTF-8 text `data[start:end]` begins and ends at a word's bounds."""
    if start and _clings_at(data, start - 1) and _clings_at(data, start):
        return False
    return not (end < len(data) and _clings_at(data, end) and _clings_at(data, end - 1))


class Keyword(NamedTuple):
    """One string to look for. `whole`: only as a whole word. `exact`: upper and lower case are different."""

    text: str
    whole: bool
    exact: bool


class Automaton(Searcher):
    """All keywords that were added, in one automaton. `add` them, `freeze`, then search.

    White space of any kind and length is one space, in keywords as in text. A keyword that is `exact` is first looked
    for in the folded text; where it is found there, the text is searched again as it was written (NFC).
    """

    def __init__(self) -> None:
        self._ids: dict[Keyword, int] = {}
        self._listed: list[list[tuple[int, Keyword]]] = []
        self._whole: list[bool] = []
        self._longest = self._size = 0
        self._phrases = False
        self._search: BytesAhoCorasick | None = None

    def add(self, keyword: Keyword) -> int:
        """The keyword's number. ValueError when it is nothing but white space, or when there are too many keywords."""
        keyword = keyword._replace(text=" ".join(keyword.text.split()))
        if not keyword.text:
            raise ValueError("a keyword is empty")
        number = self._ids.get(keyword)
        if number is None:
            size = len(fold(keyword.text))
            if size > LONGEST:
                raise ValueError(f"a keyword has more than {LONGEST} characters: {keyword.text[:20]!r}…")
            if len(self._ids) >= MOST or self._size + size > MOST_LETTERS:
                raise ValueError(f"the policy has over {MOST} keywords, or over {MOST_LETTERS} characters of them")
            self._size += size
            number = self._ids[keyword] = len(self._ids)
        return number

    def freeze(self) -> None:
        """Build the automaton of what was added so far."""
        strings: dict[bytes, list[tuple[int, Keyword]]] = {}
        for keyword, number in self._ids.items():
            string = " ".join(fold(keyword.text).split()).encode(errors="replace")
            strings.setdefault(string, []).append((1 << number, keyword))
        self._listed = list(strings.values())
        self._whole = [all(keyword.whole for _, keyword in listed) for listed in self._listed]
        self._longest = max(map(len, strings), default=0)
        self._phrases = any(b" " in string for string in strings)
        self._search = BytesAhoCorasick(list(strings)) if strings else None

    def scan(self, text: str) -> int:
        """The numbers of the keywords in `text`, as the bits of an integer."""
        data = self._folded(text)
        matches = self._matches(data)
        if not matches:
            return 0
        written: bytes | None = None
        found = settled = 0
        done: set[int] = set()
        for index, start, end in matches:
            if index in done:
                continue
            # A part of another word, as most matches in an attacker's text are: said quickly where both are ASCII.
            if self._whole[index] and start and _WORD[data[start - 1]] and _WORD[data[start]]:
                continue
            open_ = False
            for bit, keyword in self._listed[index]:
                if settled & bit:
                    continue
                if keyword.whole and not bounded(data, start, end):
                    open_ = True
                    continue
                settled |= bit
                if keyword.exact:
                    if written is None:
                        written = self._written(text)
                    if not _written_in(written, keyword):
                        continue
                found |= bit
            if not open_:
                done.add(index)
                if len(done) == len(self._listed):
                    break
        return found

    def places(self, text: str, bits: int) -> list[tuple[int, int]]:
        """Where the keywords with these `bits` are in `text`: characters, overlapping ones too.

        Slower than `scan`, for texts in which that has found something. Where folding does something to the text that
        cannot be followed back, the place is all of it. `Unavailable` (`too_many`) where there are very many.
        """
        data, origin = self._mapped(text)
        found: list[tuple[int, int]] = []
        for index, start, end in self._matches(data):
            for bit, keyword in self._listed[index]:
                if not bit & bits or (keyword.whole and not bounded(data, start, end)):
                    continue
                span = (start, end) if origin is None else (origin[start][0], origin[end - 1][1])
                if keyword.exact and not _written_in(
                    self._written(text[span[0] : span[1]]), keyword._replace(whole=False)
                ):
                    continue
                found.append(span)
                if len(found) > _PLACES:
                    raise Unavailable("too_many")
                break
        return found

    def _mapped(self, text: str) -> tuple[bytes, list[tuple[int, int]] | None]:
        """What `scan` searches, and for each of its bytes the characters that it comes from; None: the same place."""
        if text.isascii() and not (self._phrases and _RUNS.search(text)):
            return text.encode().translate(_SPACED_LOWER), None
        data = bytearray()
        origin: list[tuple[int, int]] = []
        at, size = 0, len(text)
        while at < size:
            end = at + 1
            while end < size and unicodedata.category(text[end])[0] == "M":
                end += 1
            part = _changed(fold(text[at:end]).encode(errors="replace"), _SPACED)
            if part == b" " and self._phrases and data.endswith(b" "):
                origin[-1] = (origin[-1][0], end)
            else:
                data += part
                origin += [(at, end)] * len(part)
            at = end
        whole = self._folded(text)
        if data.split() != whole.split():  # characters that change with their neighbours
            return whole, [(0, size)] * len(whole)
        return bytes(data), origin

    def _matches(self, data: bytes) -> Iterable[tuple[int, int, int]]:
        search = self._search
        if search is None:
            return ()
        if len(data) <= _CHUNK:
            return search.find_matches_as_indexes(data, overlapping=True)
        return self._chunked(search, data)

    def _chunked(self, search: BytesAhoCorasick, data: bytes) -> Iterator[tuple[int, int, int]]:
        for base in range(0, len(data), _CHUNK):
            # Matches that begin in the next chunk are left to it.
            window = data[base : base + _CHUNK + self._longest - 1]
            for index, start, end in search.find_matches_as_indexes(window, overlapping=True):
                if start < _CHUNK:
                    yield index, base + start, base + end
            rest()

    def _folded(self, text: str) -> bytes:
        if not text.isascii():
            return self._squeezed(_changed(fold(text).encode(errors="replace"), _SPACED))
        return self._squeezed(_changed(text.encode(), _SPACED_LOWER))

    def _written(self, text: str) -> bytes:
        composed = "".join([unicodedata.normalize("NFC", stream_safe(part)) for part in slices(text)])
        return self._squeezed(_changed(composed.encode(errors="replace"), _SPACED))

    def _squeezed(self, data: bytes) -> bytes:
        # Runs of spaces matter only to keywords of several words.
        if not self._phrases or b"  " not in data:
            return data
        if len(data) <= _SLICE:
            return b" ".join(data.split())
        parts = []
        spaced = False
        for at in range(0, len(data), _SLICE):
            part = _SPACES.sub(b" ", data[at : at + _SLICE])
            if spaced and part.startswith(b" "):
                part = part[1:]
            if part:
                spaced = part.endswith(b" ")
                parts.append(part)
            rest()
        return b"".join(parts)


def _changed(data: bytes, table: bytes) -> bytes:
    """`data.translate(table)`."""
    if len(data) <= _SLICE:
        return data.translate(table)
    parts = []
    for at in range(0, len(data), _SLICE):
        parts.append(data[at : at + _SLICE].translate(table))
        rest()
    return b"".join(parts)


def _written_in(data: bytes, keyword: Keyword) -> bool:
    string = unicodedata.normalize("NFC", keyword.text).encode(errors="replace")
    start = data.find(string)
    while start >= 0:
        if not keyword.whole or bounded(data, start, start + len(string)):
            return True
        start = data.find(string, start + 1)
    return False
