"""The large model's mark for a step, asked for as one digit and read from the probabilities of that one token.

After SpecReason (Pan et al., arXiv 2504.07891), where the large model gives each drafted step a score from 0 to 9. The
mark is the expected digit, by the digits' probabilities, so that one token gives a finer scale than ten levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from stepwise.strategy import NoJudgement
from upstream.endpoint import JSON
from upstream.tokens import TOP

_DIGITS = list("0123456789")
_QUESTION = (
    "Here is a partial solution of my question:\n\n{done}\n\nIts next step is:\n\n{step}\n\n"
    "How likely is it that this step is correct? Reply with one digit from 0 (surely wrong) to 9 (surely correct)."
)


def request(messages: Sequence[JSON], done: str, step: str) -> JSON:
    """The body of a chat completion that asks for the mark of `step`, which follows the answer's beginning `done`."""
    question = _QUESTION.format(done=done.strip() or "(nothing yet)", step=step.strip())
    asked = [*messages, {"role": "user", "content": question}]
    return {"messages": asked, "max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": TOP}


def mark(answer: JSON) -> float:
    """The mark in the completion, 0..1. Raises NoJudgement when it holds none."""
    try:
        choice = answer["choices"][0]
        tops = ((choice.get("logprobs") or {}).get("content") or [{}])[0].get("top_logprobs") or ()
        marks = {str(top["token"]).strip(): math.exp(top["logprob"]) for top in tops}
        marks = {digit: p for digit, p in marks.items() if digit in _DIGITS}
        if sum(marks.values()) < 0.5:  # no log probabilities, or it would rather have said something else
            marks = {_DIGITS[_DIGITS.index(choice["message"]["content"].strip())]: 1.0}
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise NoJudgement("verify_garbage", f"the large model gave no mark: {error!r}") from error
    return sum(int(digit) * p for digit, p in marks.items()) / sum(marks.values()) / 9
