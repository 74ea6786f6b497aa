"""Text to tokens and back.

The vocabulary is fixed: bytes (so that any text can be read), the words of the problem generator, a few signs, and
digits **with their place**: the number 37 is read from right to left as "7 ones, 3 tens, no hundreds". Least
significant digit first is the order in which sums are carried; the place lets a small network line up two numbers at
once (the idea of McLeish et al., "Transformers Can Do Arithmetic with the Right Embeddings", arXiv 2405.17399, moved
into the vocabulary); and because every number has at least three places, the operands of a sum always lie at the
same distance, which rotary positions find quickly. A client never sees it: ``Stream`` gives numbers back in reading
order, each digit with its own log probability (an absent digit is a token without text).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Generic, TypeVar

T = TypeVar("T")

SPECIAL = ("<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
PAD, SYSTEM, USER, ASSISTANT, END = range(5)
RECENT = 3  # tokens before each position that the networks see beside it (``model.py``)
PLACES = 8  # longest run of digits read as one number; a longer one is read as bytes
_PIECE = re.compile(r"\n\n| [-+*/=] |\d+| ?[A-Za-z]+| ?[^\sA-Za-z\d]|\s")
_SPECIAL = re.compile("|".join(re.escape(s) for s in SPECIAL[1:]))
_BYTES = len(SPECIAL)
_DIGITS = _BYTES + 256
_ABSENT = _DIGITS + 10 * PLACES  # "no tens", "no hundreds", ...
_WIDTH = 3  # places that every number has


def pieces(text: str) -> list[str]:
    """`text` cut where tokens may meet; joined again it is `text`."""
    return _PIECE.findall(text)


class Tokenizer:
    """Bytes, digits with their place, and the given `words`.

    words: the multi-character pieces that get a token of their own, in vocabulary order.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        first = _ABSENT + _WIDTH
        self._ids = {word: first + i for i, word in enumerate(self.words)}
        self.size = first + len(self.words)

    @cached_property
    def _raw(self) -> list[bytes]:
        table = [s.encode() for s in SPECIAL] + [bytes([i]) for i in range(256)]
        table += [str(d).encode() for _ in range(PLACES) for d in range(10)] + [b""] * _WIDTH
        return table + [w.encode() for w in self.words]

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of `text`. With `special`, ``<|user|>`` and its like are read as the control tokens they name;
        without it they are plain text, so that a message cannot forge a turn."""
        if not special:
            return self._encode(text)
        ids: list[int] = []
        at = 0
        for found in _SPECIAL.finditer(text):
            ids += self._encode(text[at : found.start()])
            ids.append(SPECIAL.index(found.group()))
            at = found.end()
        return ids + self._encode(text[at:])

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for piece in _PIECE.findall(text):
            known = self._ids.get(piece)
            if known is not None:
                ids.append(known)
            elif piece.isascii() and piece.isdigit() and len(piece) <= PLACES:
                ids += [_DIGITS + 10 * place + int(digit) for place, digit in enumerate(reversed(piece))]
                ids += [_ABSENT + place for place in range(len(piece), _WIDTH)]
            else:
                ids += [_BYTES + byte for byte in piece.encode("utf-8", errors="replace")]
        return ids

    def place(self, token: int) -> int | None:
        """The place (0 = ones) of a digit or absent digit, None for every other token."""
        if _DIGITS <= token < _ABSENT:
            return (token - _DIGITS) // 10
        return token - _ABSENT if _ABSENT <= token < _ABSENT + _WIDTH else None

    def raw(self, token: int) -> bytes:
        """The bytes that `token` stands for; a control token gives none."""
        return b"" if token < len(SPECIAL) else self._raw[token]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, numbers in reading order; broken UTF-8 becomes U+FFFD."""
        stream: Stream[int] = Stream(self)
        out = [token for i in ids for token in stream.push(i, i)] + stream.flush()
        return b"".join(self.raw(i) for i in out).decode("utf-8", errors="replace")


class Stream(Generic[T]):
    """Puts generated tokens into reading order: the digits of a number are held until the number is over."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._held: list[T] = []

    def push(self, token: int, item: T) -> list[T]:
        """Takes the next generated token, with what the caller wants back for it.

        Returns the items of the tokens that can now be read, in reading order (at most ``PLACES`` + 1).
        """
        place = self._tokenizer.place(token)
        if place is not None and place == len(self._held):
            self._held.append(item)
            return []
        done = self.flush()
        if place is not None:
            self._held = [item]
            return done
        return [*done, item]

    def flush(self) -> list[T]:
        """What is still held, in reading order."""
        done, self._held = self._held[::-1], []
        return done


def render(tokenizer: Tokenizer, messages: Sequence[tuple[str, str]], *, open_turn: bool = True) -> list[int]:
    """Token ids of a conversation.

    messages: (role, text), the roles being system, user and assistant. With `open_turn` an assistant's turn is opened
    at the end; without it the last message stays open, to be continued.
    """
    ids: list[int] = []
    for i, (role, text) in enumerate(messages):
        ids.append({"system": SYSTEM, "user": USER, "assistant": ASSISTANT}[role])
        ids += tokenizer.encode(text)
        if open_turn or i < len(messages) - 1:
            ids.append(END)
    if open_turn:
        ids.append(ASSISTANT)
    return ids
