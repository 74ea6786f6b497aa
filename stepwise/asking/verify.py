"""The large model's mark for a step, by one token of its own: a digit that it writes, or how likely the step is to it.

The digit is after SpecReason (Pan et al., arXiv 2504.07891), where the large model gives each drafted step a score from
0 to 9. The mark is the expected digit, by the digits' probabilities, so that one token gives a finer scale than ten
levels. The likelihood is the geometric mean of the probabilities that the large model gives the step's own tokens. It
asks nothing of the model, and of the server that it tells them: vLLM does, by `prompt_logprobs`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from stepwise.asking.continuation import Continuation, build
from stepwise.policy import Marks
from stepwise.strategy import NoJudgement
from stepwise.thoughts import NONE
from upstream.endpoint import JSON, ContinuationMode
from upstream.tokens import TOP, of_prompt

_DIGITS = list("0123456789")
_QUESTION = (
    "Here is a partial solution of my question:\n\n{done}\n\nIts next step is:\n\n{step}\n\n"
    "How likely is it that this step is correct? Reply with one digit from 0 (surely wrong) to 9 (surely correct)."
)


class Drafted(NamedTuple):
    """What is to be marked: `step`, after `done`, the beginning of the answer to the chat completion `call`."""

    call: JSON
    done: str
    step: str


def request(
    kind: Marks, drafted: Drafted, mode: ContinuationMode | None, template: str | None = None
) -> tuple[str, JSON]:
    """Path and body of the request that gives the mark. mode, template: how the large model continues a prefix.

    A digit is asked for in a chat completion, but of a model that goes on by completions: that may be one that thinks
    first, so its thoughts are over before the one token that is asked for. Raises UpstreamError like
    `stepwise.asking.continuation.build`.
    """
    call, done, step = drafted
    if kind == "likelihood":
        return _whole(build(mode, call, done + step, Continuation(1, template=template)), prompt_logprobs=0)
    question = _QUESTION.format(done=done.strip() or "(nothing yet)", step=step.strip())
    asked: JSON = {"messages": [*call["messages"], {"role": "user", "content": question}], "temperature": 0}
    way = mode if mode is ContinuationMode.COMPLETIONS and template is not None else None
    return _whole(build(way, asked, NONE if way else "", Continuation(1, top_logprobs=TOP, template=template)))


def _whole(asked: tuple[str, JSON], **more: int) -> tuple[str, JSON]:
    """A request from `build`, whose answer is not to be streamed."""
    path, body = asked
    del body["stream"], body["stream_options"]
    return path, {**body, **more}


def mark(kind: Marks, answer: JSON, step: str) -> float:
    """The mark of `step` in the answer to `request`, 0..1. Raises NoJudgement when it holds none."""
    try:
        if kind == "digit":
            return _digit(answer)
        return likelihood(((one.text, one.logprob or 0.0) for one in of_prompt(answer)), step)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise NoJudgement("verify_garbage", f"the large model gave no mark: {error!r}") from error


def likelihood(backwards: Iterable[tuple[str, float]], step: str) -> float:
    """The geometric mean of the probabilities of the tokens that are `step`; 1 for white space alone.

    backwards: text and log probability of each token, the last one first; those before the step's are not looked at.
    White space counts for nothing when they are compared, since chat templates trim it. Raises ValueError when the
    tokens do not end in `step`.
    """
    text = "".join(step.split())
    end, total, count = len(text), 0.0, 0
    tokens = iter(backwards)
    while end:
        token, logprob = next(tokens, (None, 0.0))
        if token is None:
            raise ValueError("the prompt does not end in the step")
        token = "".join(token.split())
        # The first one may begin before the step.
        if not (text.endswith(token, 0, end) or token.endswith(text[:end])):
            raise ValueError("the prompt ends otherwise than in the step")
        end = max(0, end - len(token))
        total += logprob
        count += 1
    return math.exp(total / count) if count else 1.0


def _digit(answer: JSON) -> float:
    choice = answer["choices"][0]
    told = choice.get("logprobs") or {}
    first = (told.get("content") or [{}])[0]  # a chat completion's way, and a completion's
    tops = {str(top["token"]): top["logprob"] for top in first.get("top_logprobs") or ()}
    tops = tops or (told.get("top_logprobs") or [None])[0] or {}
    marks = {token.strip(): math.exp(min(0.0, logprob)) for token, logprob in tops.items()}
    marks = {digit: p for digit, p in marks.items() if digit in _DIGITS}
    if sum(marks.values()) < 0.5:  # no log probabilities, or it would rather have said something else
        said = choice["text"] if "text" in choice else choice["message"]["content"]
        marks = {_DIGITS[_DIGITS.index(said.strip())]: 1.0}
    return sum(int(digit) * p for digit, p in marks.items()) / sum(marks.values()) / 9
