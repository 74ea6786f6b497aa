"""Cuts a text into pieces of words that a vocabulary knows, in any language, without a Python loop over its letters.

A word is a run of letters of one alphabet, a run of digits, or a run of a script that puts no spaces between words
(Han, kana, Thai, ...). A word that is a piece is one; of any other the longest piece is taken from its beginning on,
and again from where that ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from signals.neural import lexer
from signals.neural.lexer import U64
from signals.text.view import nfkc, slices

LONGEST: Final = 16
"""Letters of a piece, at most."""
_SIZES: Final = np.arange(1, LONGEST + 1)[:, None]
_CHUNK: Final = 4096
"""Code points that are looked at together: what is made for each of them times LONGEST stays small."""
_BUCKETS: Final = 17
"""Bits of a hash that say where it is looked for."""


class Bag(NamedTuple):
    """The pieces of a text that say something: known ones of more than one letter, or of scripts in which one letter
    does (Han, Korean, …). Their rows in the vocabulary, int32 [n]; how many letters the text has (digits are none), and
    how many of them lie in such pieces."""

    rows: NDArray[np.int32]
    letters: int
    known: int


class Vocabulary:
    """The pieces, in order, and where their hashes lie. A piece that begins with a space stands at the beginning of a
    word only."""

    def __init__(self, pieces: list[str]) -> None:
        """ValueError when they are too long, or empty."""
        begins = np.array([piece.startswith(" ") for piece in pieces])
        plain = [piece.removeprefix(" ") for piece in pieces]
        sizes = np.array([len(piece) for piece in plain])
        if not pieces or sizes.min() < 1 or sizes.max() > LONGEST:
            raise ValueError("vocabulary: a piece is empty or too long")
        codes = _codes("".join(plain))
        starts = np.cumsum(sizes) - sizes
        at = np.arange(len(codes)) - np.repeat(starts, sizes)
        sums = np.add.reduceat(codes * lexer.POWERS[at], starts)
        sums[begins] += lexer.FIRST
        keys = lexer.mix(sums)
        order = np.argsort(keys)
        self._keys, self._rows = keys[order], order.astype(np.int32)
        counts = np.bincount((self._keys >> np.uint64(64 - _BUCKETS)).astype(np.int64), minlength=1 << _BUCKETS)
        self._first = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
        self._deepest = int(counts.max())

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, sums: U64) -> NDArray[np.int32]:
        """The row of each hash (not yet mixed; overwritten), -1 for what is no piece."""
        keys = lexer.mix(sums)
        places = (keys >> np.uint64(64 - _BUCKETS)).astype(np.int64)
        first = self._first.take(places)
        last = self._first.take(places + 1)
        found = np.full(len(keys), -1, np.int32)
        left = np.flatnonzero(last > first)
        for _ in range(self._deepest):
            at = first.take(left)
            same = self._keys.take(at) == keys.take(left)
            hits = left[same]
            found[hits] = self._rows.take(at[same])
            left = left[~same]
            first[left] += 1
            left = left[last.take(left) > first.take(left)]
            if not len(left):
                break
        return found

    def bags(self, text: str) -> Iterator[Bag]:
        """The pieces of `text`, of some thousand letters at a time."""
        for part in slices(text, _CHUNK):  # what one letter becomes may be eighteen
            codes = _codes(nfkc(part).lower())
            for first in range(0, len(codes), _CHUNK):
                yield self._bag(codes[first : first + _CHUNK])

    def _bag(self, codes: U64) -> Bag:
        kinds = lexer.kinds(codes)
        cuts = np.flatnonzero(np.concatenate(([True], kinds[1:] != kinds[:-1])))
        kept = kinds.take(cuts) > 0
        starts = cuts[kept]
        sizes = np.append(cuts[1:], len(codes))[kept] - starts
        if not len(starts):
            return _NOTHING
        before = np.zeros(len(codes) + 1, np.uint64)
        np.cumsum(codes * lexer.POWERS[: len(codes)], out=before[1:])
        spaced = kinds.take(starts) != lexer.RUN  # in a script without spaces no piece begins with one
        marks = np.where(spaced, lexer.FIRST, np.uint64(0))
        whole = np.full(len(starts), -1, np.int32)
        short = np.flatnonzero(sizes <= LONGEST)
        at, end = starts.take(short), (starts + sizes).take(short)
        whole[short] = self.find((before.take(end) - before.take(at)) * lexer.INVERSES.take(at) + marks.take(short))
        letters = kinds.take(starts) != lexer.DIGITS
        rest = np.flatnonzero(whole < 0)
        speaking = ~spaced | (kinds.take(starts) == lexer.HANGUL)  # elsewhere one letter says nothing
        told = (whole >= 0) & ((sizes > 1) | speaking)
        known = int(sizes[told & letters].sum())
        total = int(sizes[letters].sum())
        rows = whole[told]
        if len(rest):
            more, lengths, owners = self._pieces(before, starts.take(rest), sizes.take(rest), marks.take(rest))
            told = (lengths > 1) | speaking.take(rest).take(owners)
            rows = np.concatenate((rows, more[told]))
            known += int(lengths[told & letters.take(rest).take(owners)].sum())
        return Bag(rows, total, known)

    def _pieces(
        self, before: U64, starts: NDArray[np.int64], sizes: NDArray[np.int64], marks: U64
    ) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
        """The longest pieces of some words, from the beginning of each: their rows, lengths, and which word's."""
        owners = np.repeat(np.arange(len(starts)), sizes)
        heads = np.cumsum(sizes) - sizes
        at = np.arange(len(owners)) - heads.take(owners) + starts.take(owners)
        left = (starts + sizes).take(owners) - at
        inverses, base = lexer.INVERSES.take(at), before.take(at)
        best, length = np.full(len(at), -1, np.int32), np.ones(len(at), np.int64)
        firsts = heads[marks > 0]
        size, place = np.nonzero(_SIZES[: int(left.max())] <= left)
        marked, first = np.nonzero(_SIZES[: int(left.max())] <= left.take(firsts))
        sizes, places = np.concatenate((size, marked)) + 1, np.concatenate((place, firsts.take(first)))
        sums = (before.take(at.take(places) + sizes) - base.take(places)) * inverses.take(places)
        sums[len(size) :] += lexer.FIRST
        found = self.find(sums)
        # In both parts the longer come later; what begins the word goes before what is no longer than it.
        for part in (slice(len(size)), slice(len(size), None)):
            hits = np.flatnonzero(found[part] >= 0)
            rows, hit, long = found[part].take(hits), places[part].take(hits), sizes[part].take(hits)
            kept = long >= length.take(hit)
            best[hit[kept]] = rows[kept]
            length[hit[kept]] = long[kept]
        jumps, walked, step = length.tolist(), [], 0
        while step < len(jumps):
            walked.append(step)
            step += jumps[step]
        walk = np.array(walked)
        walk = walk[best.take(walk) >= 0]
        return best.take(walk), length.take(walk), owners.take(walk)


_NOTHING: Final = Bag(np.zeros(0, np.int32), 0, 0)


def _codes(text: str) -> U64:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
