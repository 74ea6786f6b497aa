"""The large model's mark for a step, asked for as one digit and read from the probabilities of that one token.

After SpecReason (Pan et al., arXiv 2504.07891), where the large model gives each drafted step a score from 0 to 9. The
mark is the expected digit, by the digits' probabilities, so that one token gives a finer scale than ten levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from stepwise.continuation import Continuation, build
from stepwise.strategy import NoJudgement
from stepwise.thoughts import NONE
from upstream.endpoint import JSON, ContinuationMode
from upstream.tokens import TOP

_DIGITS = list("0123456789")
_QUESTION = (
    "Here is a partial solution of my question:\n\n{done}\n\nIts next step is:\n\n{step}\n\n"
    "How likely is it that this step is correct? Reply with one digit from 0 (surely wrong) to 9 (surely correct)."
)


def request(
    messages: Sequence[JSON], done: str, step: str, *, mode: ContinuationMode | None, template: str | None
) -> tuple[str, JSON]:
    """Path and body of the request for the mark of `step`, which follows the answer's beginning `done`.

    It is a chat completion, but for a model that goes on by completions (`mode`): that may be one that thinks first, so
    its thoughts are over before the one token that is asked for.
    """
    question = _QUESTION.format(done=done.strip() or "(nothing yet)", step=step.strip())
    asked: JSON = {"messages": [*messages, {"role": "user", "content": question}], "temperature": 0}
    way = mode if mode is ContinuationMode.COMPLETIONS and template is not None else None
    path, body = build(way, asked, NONE if way else "", Continuation(1, top_logprobs=TOP, template=template))
    del body["stream"], body["stream_options"]
    return path, body


def mark(answer: JSON) -> float:
    """The mark in the completion, 0..1. Raises NoJudgement when it holds none."""
    try:
        choice = answer["choices"][0]
        told = choice.get("logprobs") or {}
        first = (told.get("content") or [{}])[0]  # a chat completion's way, and a completion's
        tops = {str(top["token"]): top["logprob"] for top in first.get("top_logprobs") or ()}
        tops = tops or (told.get("top_logprobs") or [None])[0] or {}
        marks = {token.strip(): math.exp(logprob) for token, logprob in tops.items()}
        marks = {digit: p for digit, p in marks.items() if digit in _DIGITS}
        if sum(marks.values()) < 0.5:  # no log probabilities, or it would rather have said something else
            said = choice["text"] if "text" in choice else choice["message"]["content"]
            marks = {_DIGITS[_DIGITS.index(said.strip())]: 1.0}
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise NoJudgement("verify_garbage", f"the large model gave no mark: {error!r}") from error
    return sum(int(digit) * p for digit, p in marks.items()) / sum(marks.values()) / 9
