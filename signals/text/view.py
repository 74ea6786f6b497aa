"""The view of a text that detectors search: what a reader sees, without the disguises of its characters.

Invisible characters and control characters are gone; tag characters (U+E0020 to U+E007E) are readable; full-width,
mathematical, circled and small-capital letters, ligatures, Unicode's spaces, typographic quotes and dashes are plain;
Arabic vowel signs and tatweel are gone; decomposed letters are composed (NFC); a look-alike of another alphabet inside
a Latin, Cyrillic or Greek word is the letter that it stands for. Everything else stays: ordinary text of any language
comes back as it was, but for its typography.

The work is linear in the text and done in slices, so that no single call holds the interpreter for long. Nothing here
keeps state: any thread may call it.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Final, NamedTuple

import re2

from signals.background import rest

SLICE: Final = 1 << 14
"""Characters worked on at a time: a few milliseconds at the most."""
_CONTROLS: Final = bytes((*range(9), *range(14, 32), 127))
"""ASCII's control characters but for white space (tab to carriage return)."""
_UNCONTROLLED: Final = bytes(32 if code in _CONTROLS else code for code in range(256))
_SMALL: Final = 8192
_BACK: Final = 30
"""Characters that a cut may move back."""
_LOOK: Final = 1 << 16
"""Bytes of ASCII text that are looked at in one go: some ten microseconds."""

_MARK: Final = (
    "\u0300-\u034e\u0350-\u036f\u0483-\u0487\u0653-\u0655\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f"
)
_INVISIBLE: Final = (
    "\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u115f\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\ufe00-\ufe0f\ufe70-\ufe7f\ufeff\ufff0-\ufffb"
    # Arabic vowel signs and tatweel
    "\u0610-\u061a\u0640\u064b-\u0652\u0656-\u065f\u0670\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed\u08d3-\u08ff"
)
_STYLED: Final = (
    # letterlike symbols that are letters, Roman numerals, circled characters, ligatures, Arabic's and small forms
    "\u2024\u2102\u210a-\u2113\u2115\u2119-\u211d\u2124\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149"
    "\u2160-\u2188\u2460-\u24ff\ufb00-\ufb06\ufb50-\ufdc7\ufe50-\ufe6b\ufe80-\ufefc\uff01-\uff9f\uffa1-\uffee"
    # raised and lowered letters (digits of that kind are formulas)
    "\u02b0-\u02b8\u02e0-\u02e4\u1d2c-\u1d6a\u2071\u207f\u2090-\u209c"
)


def _table(*pairs: tuple[str, str]) -> dict[str, str]:
    """What characters become: every one of the first string the second."""
    return {char: plain for chars, plain in pairs for char in chars}


def _letters(chars: str, plain: str) -> dict[str, str]:
    return dict(zip(chars, plain, strict=True))


_ALPHABET: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_PLAIN: Final = (
    _table(
        ("\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a", " "),
        ("\u202f\u205f\u2800\u3000\u3164\uffa0", " "),
        ("\x85\u2028\u2029", "\n"),
        ("\xb4\u02b9\u02bb\u02bc\u02bd\u02c8\u2018\u2019\u201a\u201b\u2032\u2035", "'"),
        ("\u201c\u201d\u201e\u201f\u2033\u2036\u301d\u301e\u301f", '"'),
        ("\u02d7\u058a\u05be\u1806\u2010\u2011\u2012\u2013\u2014\u2015\u2043\u2212\u2e3a\u2e3b", "-"),
    )
    | _letters("ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢɡɑ", "abcdefghijklmnoprstuvwyzga")
    | _letters("".join(map(chr, range(0x1F150, 0x1F16A))), _ALPHABET)
    | _letters("".join(map(chr, range(0x1F170, 0x1F18A))), _ALPHABET)
    | _letters("".join(map(chr, range(0xE0020, 0xE007F))), "".join(map(chr, range(0x20, 0x7F))))
)

_BASIC: Final = _INVISIBLE + _STYLED + "".join(char for char in _PLAIN if char < "\U00010000")
_BEYOND: Final = (
    # invisible, mathematical, those in boxes, tags
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e001f\U000e007f\U000e0100-\U000e01ef"
    "\U0001d400-\U0001d7ff\U0001f110-\U0001f149\U0001f150-\U0001f169\U0001f170-\U0001f189\U000e0020-\U000e007e"
)
"""What changes, in the basic plane and beyond: two classes, since one class of both is three times as slow."""
_ONE: Final = f"(?:[{_BASIC}]|[{_BEYOND}])"


def _plain_form(char: str) -> str:
    """The plain form of one character that changes; nothing for an invisible one."""
    plain = _PLAIN.get(char)
    if plain is None:
        plain = unicodedata.normalize("NFKC", char)
        if plain == char or unicodedata.category(char)[0] in "MC":
            return ""
    return plain


_BLOCKS: Final = (
    *(range(0x3200), range(0xA700, 0xA800), range(0xFB00, 0x10000), range(0x1BC00, 0x1BD00), range(0x1D100, 0x1D800)),
    *(range(0x1F100, 0x1F200), range(0xE0000, 0xE0200)),
)
"""Where those characters are."""
_FORMS: Final = {ord(char): _plain_form(char) for char in re.findall(_ONE, "".join(map(chr, chain(*_BLOCKS))))}
_LATIN: Final = "A-Za-z"
_FOREIGN: Final = "\u0370-\u058f"
_TO_LATIN: Final = str.maketrans(
    "асԁеһіјӏорԛѕтхуԝкмнвгпАВСЕНІЈКМОРЅТХУГΑΒΕΖΗΙΚΜΝΟΡΤΥΧαεικνορτυχωօհոսցզ",
    "acdehijlopqstxywkmhbrnABCEHIJKMOPSTXYRABEZHIKMNOPTYXaeiknoptuxwohnugq",
)
_TO_CYRILLIC: Final = str.maketrans("aceijkopsxyABCEHIJKMOPSTXY", "асеіјкорѕхуАВСЕНІЈКМОРЅТХУ")
_TO_GREEK: Final = str.maketrans("aeiknoptuvxywABEHIKMNOPTXYZ", "αεικηορτυνχγωΑΒΕΗΙΚΜΝΟΡΤΧΥΖ")

_SEES: Final = re2.compile(f"[{_MARK}{_BASIC}{_BEYOND}\u1100-\u11ff\u3099\u309a]".encode())
_SEES_MARKS: Final = re2.compile(f"[{_MARK}\u1100-\u11ff\u3099\u309a]".encode())
_SEES_MIXED: Final = re2.compile(f"[{_LATIN}][{_FOREIGN}]|[{_FOREIGN}][{_LATIN}]".encode())
_CHARACTER: Final = re.compile(_ONE)
_CHARACTERS: Final = re.compile(f"{_ONE}(?:[^{_BASIC}]{{0,8}}{_ONE})*")
"""Characters that change, with the few between them: where they are many, they change in one call."""
_CLUSTER: Final = re.compile(f"[^{_MARK}]?[{_MARK}]+|[\u1100-\u11ff]+|[\u3046-\u30fd][\u3099\u309a]")
_CLUSTERS: Final = re.compile(f"(?:{_CLUSTER.pattern})+")
_HEAP: Final = re.compile(f"(?<=[{_MARK}][{_MARK}][{_MARK}])[{_MARK}]+")
_JOINER: Final = "\u034f"
"""The combining grapheme joiner, which parts marks; it is invisible, so that no view has one."""
_RUNS: Final = re.compile(r"[^\w\s]{31,}")
_LEFT_OVER: Final = re.compile(f"(?<=[A-Za-z\u0400-\u06ff])[{_MARK}]+|[\u0334-\u0338]")
_WORDS: Final = re.compile(f"[{_LATIN}{_FOREIGN}]+")
_FOREIGN_WORDS: Final = re.compile(f"(?<![{_LATIN}])[{_FOREIGN}]{{2,}}(?![{_LATIN}])")
_HAS_LATIN: Final = re.compile(f"[{_LATIN}]")
_LATIN_BYTES: Final = _ALPHABET.encode() + _ALPHABET.lower().encode()
_FOREIGN_BYTES: Final = bytes(range(0xCD, 0xD7))
"""How the UTF-8 of a letter of Greek, Cyrillic or Armenian begins."""


class _Edit(NamedTuple):
    """Characters `start` to `end` of a slice became `size` others."""

    start: int
    end: int
    size: int


_Layers = list[list[_Edit]]
"""The edits of the steps that change a slice's length, in order."""


def view(text: str) -> str:
    """`text` without disguises; the very same object where there are none."""
    if text.isascii():
        return text if _ordinary(text) else text.encode().translate(None, _CONTROLS).decode()
    if len(text) <= SLICE:
        return _undone(text)
    plain = "".join([_undone(part) for part in slices(text)])
    return text if plain == text else plain


def plain_keyword(keyword: str) -> str:
    """A keyword as the view of a text has it; itself when it is nothing but invisible characters."""
    plain = view(keyword)
    return plain if plain.strip() else keyword


def _ordinary(text: str) -> bool:
    """Whether ASCII text has no control characters but white space."""
    data = text.encode()
    if len(data) <= _SMALL:
        return data.translate(_UNCONTROLLED) == data  # twice as fast as leaving them out
    if b"\x7f" in data:
        return False
    import numpy as np  # not at the top: whoever only checks a policy need not wait for it

    for at in range(0, len(data), _LOOK):  # between two slices another thread may run
        codes = np.frombuffer(data[at : at + _LOOK], np.uint8)
        # Codes of one byte wrap around: less fourteen, those below it are the largest.
        if np.minimum.reduce(codes) < 9 or np.minimum.reduce(codes - np.uint8(14)) < 18:
            return False
        rest()
    return True


def slices(text: str, size: int = SLICE) -> Iterator[str]:
    """`text` in pieces of at most `size` characters, cut before a space or a line's end where there is one, and never
    before a combining mark that belongs to what stands before it."""
    at, end = 0, len(text)
    while end - at > size:
        cut = at + size
        border = max(text.rfind(" ", at + size // 2 + 1, cut), text.rfind("\n", at + size // 2 + 1, cut))
        if border < 0:
            border = cut
            least = max(at + 1, cut - _BACK)
            while border > least and unicodedata.category(text[border])[0] == "M":
                border -= 1
        yield text[at:border]
        rest()
        at = border
    yield text[at:]


def _undone(text: str, layers: _Layers | None = None) -> str:
    """One slice without disguises. `layers`, when given, gets the edits that were made."""
    data = text.encode(errors="replace")
    plain = text
    if _SEES.search(data):
        plain = _replaced((_CHARACTERS, _CHARACTER), _characters, plain, layers)
        data = plain.encode(errors="replace")
        if _SEES_MARKS.search(data):
            plain = _replaced((_CLUSTERS, _CLUSTER), _composed, plain, layers)
            data = plain.encode(errors="replace")
    foreign = len(data) - len(data.translate(None, _FOREIGN_BYTES))
    if foreign:
        latin = len(data) - len(data.translate(None, _LATIN_BYTES))
        if latin:
            plain = _unmixed(plain, data, latin > foreign)
    return text if plain == text else plain


def _replaced(
    patterns: tuple[re.Pattern[str], re.Pattern[str]],
    replace: Callable[[re.Match[str]], str],
    text: str,
    layers: _Layers | None,
) -> str:
    """Everything that the first pattern finds, replaced; with `layers` one by one, as the second finds it."""
    pattern, single = patterns
    if layers is None:
        return pattern.sub(replace, text)
    edits: list[_Edit] = []

    def noted(found: re.Match[str]) -> str:
        plain = replace(found)
        edits.append(_Edit(found.start(), found.end(), len(plain)))
        return plain

    plain = single.sub(noted, text)
    layers.append(edits)
    return plain


def _characters(found: re.Match[str]) -> str:
    return found[0].translate(_FORMS)


def _composed(found: re.Match[str]) -> str:
    """Letters with their marks, composed. Marks that then remain on a plain Latin, a Cyrillic or an Arabic letter are
    a disguise, as are marks that strike a letter through, and every mark on one letter from the fourth on."""
    composed = unicodedata.normalize("NFC", stream_safe(_HEAP.sub("", found[0]))).replace(_JOINER, "")
    return _LEFT_OVER.sub("", composed)


def nfkc(text: str) -> str:
    """`text` in the normalisation form of compatible characters (UAX #15), in linear time."""
    return text if unicodedata.is_normalized("NFKC", text) else unicodedata.normalize("NFKC", stream_safe(text))


def stream_safe(text: str) -> str:
    """`text` with at most 30 combining marks in a row (UAX #15, 13), since sorting n of them takes time n squared."""
    if _RUNS.search(text) is None:
        return text
    return _RUNS.sub(_broken, text)


def _broken(found: re.Match[str]) -> str:
    safe = []
    run = 0
    for char in found[0]:
        run = run + 1 if unicodedata.combining(char) else 0
        if run > 30:
            safe.append(_JOINER)
            run = 1
        safe.append(char)
    return "".join(safe)


def _unmixed(text: str, data: bytes, mostly_latin: bool) -> str:
    """`text` with the look-alikes of other alphabets as the letters they stand for. Its length stays the same."""
    if _SEES_MIXED.search(data):
        text = _WORDS.sub(lambda found: _one_alphabet(found[0], mostly_latin), text)
    return _FOREIGN_WORDS.sub(_look_alike, text) if mostly_latin else text


def _one_alphabet(word: str, mostly_latin: bool) -> str:
    """A word whose letters are of two alphabets, in the one that can write all of it."""
    if word.isascii() or _HAS_LATIN.search(word) is None:
        return word
    latin = word.translate(_TO_LATIN)
    kept = sum(map(str.isascii, word))
    other = word.translate(_TO_CYRILLIC if any("\u0400" <= char <= "\u052f" for char in word) else _TO_GREEK)
    whole = _HAS_LATIN.search(other) is None
    if not latin.isascii():
        return other if whole else word
    return other if whole and 2 * kept + mostly_latin <= len(word) else latin


def _look_alike(found: re.Match[str]) -> str:
    """A foreign word in a Latin text, every letter of which looks like a Latin one."""
    latin = found[0].translate(_TO_LATIN)
    return latin if latin.isascii() else found[0]


class Origin:
    """Where the characters of `view(text)` are in `text`. Made only where that is asked for: it is a second view."""

    def __init__(self, text: str, at_once: int = SLICE) -> None:
        self._starts: list[int] = []
        """Where each slice begins in the view."""
        self._slices: list[tuple[int, list[tuple[list[int], list[_Edit]]]]] = []
        """Where each begins in the text, and its layers, last one first: where the edits begin, and the edits."""
        at = seen = 0
        for part in slices(text, at_once):
            layers: _Layers = []
            size = len(_undone(part, layers))
            self._starts.append(seen)
            self._slices.append((at, [(_begins(edits), edits) for edits in reversed(layers)]))
            at, seen = at + len(part), seen + size
        self._size = len(text)

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Characters `start` to `end` of the view, as those of the text that they come from: whole ones, so that a
        part of a character's plain form is all of it."""
        if end <= start:
            first = self._back(start)[0] if start else 0
            return first, first
        return self._back(start)[0], self._back(end - 1)[1]

    def _back(self, at: int) -> tuple[int, int]:
        """Where the character at a place of the view begins and ends in the text."""
        number = bisect_right(self._starts, at) - 1
        base, layers = self._slices[number]
        start = at - self._starts[number]
        end = start + 1
        for begins, edits in layers:
            start, end = _before(begins, edits, start)[0], _before(begins, edits, end - 1)[1]
        return min(base + start, self._size), min(base + end, self._size)


def _begins(edits: list[_Edit]) -> list[int]:
    """Where the edits begin in what they made."""
    begins, shift = [], 0
    for edit in edits:
        begins.append(edit.start + shift)
        shift += edit.size - (edit.end - edit.start)
    return begins


def _before(begins: list[int], edits: list[_Edit], at: int) -> tuple[int, int]:
    """Where the character at a place of what the edits made was before them."""
    number = bisect_right(begins, at) - 1
    if number < 0:
        return at, at + 1
    begin, edit = begins[number], edits[number]
    if at < begin + edit.size:
        return edit.start, edit.end
    start = edit.end + at - begin - edit.size
    return start, start + 1
