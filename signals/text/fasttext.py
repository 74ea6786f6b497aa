"""Reads a quantised fastText classifier and asks it, with numpy alone.

The library that does both has no wheel for every Python and processor that we run on.

The file is what fastText's `quantize` writes: version 12, supervised, one sigmoid per label (`-loss ova`), a product
quantiser for the input vectors (Joulin et al. 2016, FastText.zip; facebookresearch/fastText `src/fasttext.cc`,
`dictionary.cc`, `quantmatrix.cc`). The answers are the library's: the same labels, the same steps of the sigmoid.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MAGIC, _VERSION = 793_712_314, 12
_OVA, _SUPERVISED = 4, 3
_END = "</s>"
"""The word that fastText puts where a line ends."""
_FNV_OFFSET, _FNV_PRIME = np.uint32(2_166_136_261), np.uint32(16_777_619)
_LIMIT, _STEP = 8.0, 1 / 32
"""fastText's sigmoid is a table that goes from minus to plus the limit in these steps; beyond, it is 0 or 1."""


class FastText:
    """A linear classifier over a line's words and their letter sequences."""

    def __init__(self, path: Path) -> None:
        """OSError when `path` cannot be read, ValueError when it is not such a classifier."""
        try:
            self._load(_Reader(path.read_bytes()))
        except (struct.error, ValueError, IndexError) as error:
            raise ValueError(f"{path}: wrong file format: {error}") from None

    def _load(self, file: _Reader) -> None:
        magic, version = file.take("ii")
        if (magic, version) != (_MAGIC, _VERSION):
            raise ValueError(f"it does not begin as a fastText model of version {_VERSION} does")
        width, _, _, _, _, word_ngrams, loss, kind, bucket, shortest, longest, _, _ = file.take("12id")
        if (kind, loss, word_ngrams) != (_SUPERVISED, _OVA, 1):
            raise ValueError("only classifiers of single words with the loss ova are read")
        if not 2 <= shortest <= longest <= 8 or not 0 < bucket <= 1 << 24:
            raise ValueError("only sequences of 2 to 8 letters in at most 2^24 buckets are read")
        self._spans = np.arange(shortest - 1, longest)[:, None]
        self._bucket = np.uint32(bucket)

        entries, words, labels, _, kept = file.take("iiiqq")
        if entries != words + labels or min(words, labels) < 0 or kept < 0:
            raise ValueError("its numbers of words and labels contradict each other")
        names = [file.entry() for _ in range(entries)]
        self._words = {name: row for row, name in enumerate(names[:words])}
        self.labels = [name.removeprefix("__label__") for name in names[words:]]
        # Letter sequences are known by a hash; those that quantising left out have the number after the last row.
        pairs = file.array(np.int32, 2 * kept).reshape(-1, 2)
        if kept and (pairs.min() < 0 or pairs[:, 0].max() >= bucket or pairs[:, 1].max() >= kept):
            raise ValueError("it names letter sequences that it does not have")
        self._none = words + kept
        self._rows: NDArray[np.int32] = np.full(bucket, self._none, np.int32)
        self._rows[pairs[:, 0]] = words + pairs[:, 1]

        if file.take("?") != (True,):
            raise ValueError("its input vectors are not quantised")
        self._vectors = _quantised(file)
        if self._vectors.shape != (self._none, width):
            raise ValueError(f"its vectors are {self._vectors.shape}, not {(self._none, width)}")
        if file.take("?") != (False,):
            raise ValueError("its output vectors are quantised")
        height, across = file.take("qq")
        if (height, across) != (labels, width):
            raise ValueError(f"its output vectors are {(height, across)}, not {(labels, width)}")
        self._output = file.array(np.float32, height * across).reshape(height, across) / np.float32(_STEP)

    def likeliest(self, line: str, most: int) -> list[tuple[str, float]]:
        """The `most` likeliest labels for one line of words, best first, each with a probability of its own.

        A label stands without the file's `__label__`; the probability is from 0 to 1 and one hundred-thousandth. A line
        of which nothing is known has none. Time is linear in the length of `line`.
        """
        scores = self._scores(line)
        if scores is None:
            return []
        best = scores.argsort()[: -most - 1 : -1]
        return [(self.labels[at], one) for at, one in zip(best.tolist(), _sigmoid(scores[best]).tolist(), strict=True)]

    def probabilities(self, line: str) -> NDArray[np.float32] | None:
        """The same for all of `labels`, in their order; None for a line of which nothing is known."""
        scores = self._scores(line)
        return None if scores is None else _sigmoid(scores)

    def _scores(self, line: str) -> NDArray[np.float32] | None:
        """By label: the step of the sigmoid's table."""
        words = line.split()
        if not words:
            return None
        rows = self._sequences(words)
        rows = rows[rows != self._none]
        known = np.array([row for word in (*words, _END) if (row := self._words.get(word)) is not None], np.intp)
        count = len(rows) + len(known)
        if not count:
            return None
        total = np.add.reduce(self._vectors.take(rows, 0)) + np.add.reduce(self._vectors.take(known, 0))
        scores: NDArray[np.float32] = self._output @ total * np.float32(1 / count) + _MIDDLE
        return scores

    def _sequences(self, words: list[str]) -> NDArray[np.int32]:
        """The rows of all words' letter sequences, each word between `<` and `>`: FNV-1a hashes of their UTF-8."""
        text = np.frombuffer(f"<{'><'.join(words)}>".encode(), np.int8)
        size = len(text)
        # A byte 0b10xxxxxx goes on with a character. A sequence ends where a later one begins, in the same word.
        edges = np.flatnonzero(text >= -64)
        chars = len(edges)
        word = np.zeros(chars + 1, np.intp)
        np.cumsum(text[edges] == ord("<"), out=word[:-1])
        last = np.arange(chars) + self._spans
        same = word.take(last, mode="clip") == word[:-1]
        edges = np.append(edges, size)
        start = edges[:-1]
        lengths = edges.take(last + 1, mode="clip") - start
        # hashes[n, i]: of the n + 1 bytes from byte i on. fastText takes bytes as signed.
        most = int(lengths.max())
        signed = np.zeros(size + most, np.uint32)
        signed[:size] = text.astype(np.uint32)
        hashes = np.empty((most, size), np.uint32)
        running = _FNV_OFFSET
        for n in range(most):
            running = np.bitwise_xor(running, signed[n : n + size], out=hashes[n])
            running *= _FNV_PRIME
        found = hashes.ravel().take(((lengths - 1) * size + start)[same])
        rows: NDArray[np.int32] = self._rows[found % self._bucket]
        return rows


class _Reader:
    """Takes little-endian values from the beginning of a file on."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, format: str) -> tuple[Any, ...]:
        """The values of one `struct` format."""
        values = struct.unpack_from(f"<{format}", self._data, self._at)
        self._at += struct.calcsize(f"<{format}")
        return values

    def array(self, kind: type[Any], size: int) -> NDArray[Any]:
        """The next `size` values of one NumPy type."""
        if size < 0:
            raise ValueError("it gives a negative size")
        values = np.frombuffer(self._data, np.dtype(kind).newbyteorder("<"), size, self._at)
        self._at += values.nbytes
        return values

    def entry(self) -> str:
        """One word or label; its count and its type, which follow, are for training only."""
        end = self._data.index(b"\0", self._at)
        name = self._data[self._at : end].decode()
        self._at = end + 1 + struct.calcsize("<qb")
        return name


def _quantised(file: _Reader) -> NDArray[np.float32]:
    """The rows of a product-quantised matrix, each with its own norm if the file has norms."""
    normed, rows, _, size = file.take("?qqi")
    codes = file.array(np.uint8, size)
    vectors = _decoded(file, codes, rows)
    return vectors * _decoded(file, file.array(np.uint8, rows), rows) if normed else vectors


def _decoded(file: _Reader, codes: NDArray[np.uint8], rows: int) -> NDArray[np.float32]:
    """The vectors of a product quantiser: each code names one of 256 values for its few dimensions."""
    width, parts, step, last = file.take("4i")
    if rows < 0 or parts < 1 or codes.size != rows * parts or last != step or width != parts * step:
        raise ValueError("its quantised vectors do not have the size that they say")
    centroids = file.array(np.float32, width * 256).reshape(parts, 256, step)
    return centroids[np.arange(parts), codes.reshape(rows, parts)].reshape(rows, width)


_MIDDLE = np.float32(_LIMIT / _STEP + 1)
_SIGMOID: NDArray[np.float32] = np.array(
    [0, *(1 / (1 + np.exp(-np.arange(-_LIMIT, _LIMIT, _STEP)))), 1], np.float32
) + np.float32(1e-5)
"""With the hundred-thousandth that the library adds before it takes a logarithm."""


def _sigmoid(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    return _SIGMOID.take(scores.astype(np.intp), mode="clip")
