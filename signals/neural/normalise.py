"""Undoes the light disguises in which attacks come, before the text is cut into words.

Invisible characters, full-width and mathematical letters, look-alike letters of other alphabets, letters set apart
("i g n o r e"), digits for letters ("1gn0r3") and base64. Ordinary text, in any language, comes back as it was.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import numpy as np
import re2
from numpy.typing import NDArray

from signals.neural import lexer
from signals.neural.tokenizer import Lexicon
from signals.text.view import slices, view

_APART: Final = re.compile(r"(?<!\w)[^\W_](?:([ .\-_*·])[^\W_])(?:\1[^\W_]){4,}(?!\w)")
_CHUNK: Final = re.compile(r"(?<![^\s])\S(?: \S)+(?![^\s])")
_TOKEN: Final = re.compile(r"[A-Za-z0-9@$|]+")
_LEET: Final = re.compile(r"[A-Za-z][0-9@$|]|[0-9@$|][A-Za-z]")
_ORDINAL: Final = re.compile(r"[0-9]+[A-Za-z]{1,2}")
_LEET_NUMBER: Final = re.compile(r"(?<![\w.,])[0-9]{1,4}(?![\w.,])")
_LETTERS: Final = str.maketrans("43105789@$|", "aeiostbgasl")
_BASE64: Final = re.compile(r"(?:[A-Za-z0-9+/_-]{40,}\r?\n)*[A-Za-z0-9+/_-]{24,}={0,2}")
_AT_ONCE: Final = 2048
"""Letters that are cut into words in one go."""
_LONGEST: Final = 16
# The linear-time searches that every text goes through; the rest runs only where one of them finds something.
_SEES_APART: Final = re2.compile(r"(?:\pL[ .\-_*·]){5}\pL\b")
_SEES_LEET: Final = re2.compile(r"[A-Za-z][0-9@$|]+[A-Za-z]|[0-9@$|][A-Za-z]{2}")
_SEES_BASE64: Final = re2.compile(r"[A-Za-z0-9+/_-]{24}")


def normalise(text: str, lexicon: Lexicon) -> str:
    """`text` without disguises; the very same object when there are none."""
    try:
        return _undone(text, lexicon)
    except UnicodeEncodeError:  # a lone surrogate, which UTF-8 cannot hold
        return _undone(text.encode(errors="replace").decode(), lexicon)


def _undone(text: str, lexicon: Lexicon) -> str:
    plain = view(text)
    if _SEES_BASE64.search(plain):
        plain = _BASE64.sub(_decode, plain)
        plain = view(plain)
    if _SEES_APART.search(plain):
        plain = _close_up(plain, lexicon)
    if _SEES_LEET.search(plain):
        plain = _unleet(plain, lexicon)
    return plain


def _decode(found: re.Match[str]) -> str:
    """The readable text behind a run of base64, or the run itself."""
    run = re.sub(r"\s", "", found[0]).rstrip("=")
    if len(set(run)) < 10 or run.islower() or run.isupper():
        return found[0]
    try:
        data = base64.b64decode(run + "=" * (-len(run) % 4), b"-_" if "-" in run or "_" in run else None, validate=True)
        text = data.decode()
    except (binascii.Error, ValueError):
        return found[0]
    printable = sum(map(str.isprintable, text)) + sum(map(text.count, "\t\n\r"))
    return text if printable > 0.95 * len(text) else found[0]


def _known(words: Sequence[str], lexicon: Lexicon) -> NDArray[np.bool_]:
    """Which of `words` (each a single word of letters) the lexicon holds."""
    found = lexer.words(" ".join(words))
    sizes = np.array([len(word) for word in words], np.int64)
    starts = np.cumsum(sizes + 1) - sizes - 1
    if not len(found):
        return np.zeros(len(words), np.bool_)
    at = np.minimum(np.searchsorted(found.starts, starts), len(found) - 1)
    whole = (found.starts[at] == starts) & (found.lengths[at] == sizes)
    known: NDArray[np.bool_] = whole & (lexicon.words(found.hashes)[at] > 0)
    return known


def _close_up(text: str, lexicon: Lexicon) -> str:
    """Letters set apart become words again; where the gaps between words are gone too, the likeliest words."""

    def join(found: re.Match[str]) -> str:
        return _split(found[0].replace(" ", ""), lexicon)

    parts = list(slices(text))  # so that no single call holds the interpreter for long
    if sum(len(_CHUNK.findall(part)) for part in parts) > 1 or _CHUNK.fullmatch(text.strip()):
        parts = [_CHUNK.sub(join, part) for part in parts]
    return "".join([_APART.sub(lambda found: _split(found[0].replace(found[1], ""), lexicon), part) for part in parts])


def _split(run: str, lexicon: Lexicon) -> str:
    """`run` itself when it is a known or a short word, else the words that it is made of: as few as possible, and of
    those the commonest."""
    if len(run) > _AT_ONCE:
        return " ".join([_split(run[at : at + _AT_ONCE], lexicon) for at in range(0, len(run), _AT_ONCE)])
    if len(run) < 12 or not run.isalpha() or not run.isascii() or _known([run], lexicon)[0]:
        return run
    found = lexer.substrings(run, _LONGEST)
    words_of = lexicon.words(found.ravel()).reshape(found.shape)
    # A known word costs one, and a little more the rarer it is; 0 is a word that is not known.
    rows: list[list[float]] = np.where(words_of > 0, 1.0 + lexicon.weight[words_of] / 1000, 0.0).tolist()
    cost = [0.0] + [float("inf")] * len(run)
    back = [0] * (len(run) + 1)
    for at, prices in enumerate(rows):
        so_far = cost[at]
        if run[at] not in "aAiI":
            prices[0] = 0.0
        for size, own in enumerate(prices[: len(run) - at], 1):
            # What is no word costs more than any words that its letters could make up.
            price = so_far + (own or 4.0 * size)
            if price < cost[at + size]:
                cost[at + size], back[at + size] = price, at
    cuts = [len(run)]
    while cuts[-1]:
        cuts.append(back[cuts[-1]])
    cuts.reverse()
    return " ".join(run[a:b] for a, b in pairwise(cuts))


def _unleet(text: str, lexicon: Lexicon) -> str:
    """Digits and signs for letters become letters, where two words or more turn into known ones that way."""
    tokens = dict.fromkeys(token for part in slices(text) for token in _TOKEN.findall(part))
    mixed = [token for token in tokens if _LEET.search(token)]
    plain = [word.translate(_LETTERS) for word in mixed] + [
        word.replace("1", "l").translate(_LETTERS) for word in mixed
    ]
    if not mixed:
        return text
    known = _known(plain, lexicon).reshape(2, -1)
    words = {word: plain[at if known[0, at] or not known[1, at] else at + len(mixed)] for at, word in enumerate(mixed)}
    sure = {
        word for at, word in enumerate(mixed) if known[:, at].any() and len(word) > 2 and not _ORDINAL.fullmatch(word)
    }
    if len(sure) < 2:
        return text
    few = len(sure) < max(4, 0.12 * min(len(text.split()), 200))  # a word here and there
    changed = {word: words[word] for word in sure} if few else words
    text = "".join([_TOKEN.sub(lambda found: changed.get(found[0], found[0]), part) for part in slices(text)])
    return text if few else _LEET_NUMBER.sub(lambda found: found[0].translate(_LETTERS), text)
