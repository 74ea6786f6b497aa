"""Two pretended models that count: a right answer needs every step to add what the question says.

The small one doubts, and is often wrong, at hard steps; now and then it doubts without reason.
Nothing is drawn twice: the same prefix always gets the same continuation.
"""

from __future__ import annotations

import math
import random

from stepwise.train.tree import Question, Written
from upstream.tokens import Token

LEADS = ("First we add", "Then we add", "Next we add", "Now we add")


def questions(count: int, seed: int = 0) -> list[Question]:
    """`count` questions: numbers to add, with a prime at those that are hard."""
    made = []
    for i in range(count):
        rng = random.Random(f"{seed}-{i}")
        numbers = [(rng.randint(1, 9), rng.random() < 0.2) for _ in range(rng.randint(2, 6))]
        text = " ".join(f"{n}{chr(39) if hard else ''}" for n, hard in numbers)
        made.append(Question(f"{seed}-{i}", text, str(sum(n for n, _ in numbers))))
    return made


def _token(text: str, p: float) -> Token:
    return Token(text, math.log(p), (math.log(p), math.log(max(1e-6, 0.9 * (1 - p)))))


class Pair:
    """A `stepwise.train.tree.StepWriter`."""

    marks = "likelihood"

    def __init__(self) -> None:
        self.calls = 0

    async def small(self, question: Question, prefix: str) -> Written:
        self.calls += 1
        return self._write(question, prefix, small=True, stop=False)

    async def large(self, question: Question, prefix: str, *, rest: bool = False) -> Written:
        self.calls += 1
        return self._write(question, prefix, small=False, stop=not rest)

    async def verify(self, question: Question, prefix: str, step: str) -> tuple[float, int]:
        self.calls += 1
        written = self._write(question, prefix, small=False, stop=True)
        same = step.split("=")[-1] == "".join(t.text for t in written.tokens).split("=")[-1]
        return (0.9 if same else 0.1), len(written.tokens)

    def _write(self, question: Question, prefix: str, *, small: bool, stop: bool) -> Written:
        parts = question.text.split()
        done = prefix.count("\n\n")
        total = int(prefix.split("=")[-1].split(".")[0]) if done else 0
        tokens: list[Token] = []
        for at in range(done, len(parts)):
            hard, n = parts[at].endswith("'"), int(parts[at].rstrip("'"))
            rng = random.Random(f"{question.id}-{at}-{small}")
            wrong = small and rng.random() < (0.7 if hard else 0.02)
            doubt = small and (hard or rng.random() < 0.1)
            total += n + wrong
            tokens += [_token(word, 0.6) for word in (LEADS[at % 4] + f" {n}:").split(" ")]
            tokens += [
                _token(f" {total - n} + {n} =", 0.99),
                _token(f" {total}", rng.uniform(0.3, 0.7) if doubt else 0.99),
            ]
            tokens += [_token(".", 0.99), _token("\n\n", 0.99)]
            if stop:
                return Written(tuple(tokens), False)
        tokens += [_token("Answer:", 0.99), _token(f" {total}", 0.99)]
        return Written(tuple(tokens), True)
