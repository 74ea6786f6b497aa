"""The tokens of a model's text, and how certain the model was of each.

Log probabilities are natural, entropies are in nats, probabilities and margins are in 0..1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from upstream.endpoint import JSON

CHARS_PER_TOKEN = 4  # the usual rule of thumb for text whose tokens are not known
TOP = 5
"""How many top log probabilities are asked for, and used, per token: the most that nearly every server gives."""
_ROUNDING = 0.01  # log probabilities that are rounded may be over 0 by so much
FLOOR = -50.0  # upstreams write -9999 or -inf for a token that could not happen


class Token(NamedTuple):
    """One piece of streamed text.

    `logprob`: natural log of the probability of the token written, None when the upstream did not say.
    `top`: natural logs of the most probable tokens at this place, highest first; may be empty.
    `size`: how many model tokens this piece stands for (1 when the upstream gives log probabilities, estimated when
    it does not, 0 for text that we inserted ourselves). `raw`: the upstream's own record of the token, if any.
    `certainty`: what the function `certainty` gives for `logprob` and `top`, where that was computed as the token came.
    """

    text: str
    logprob: float | None = None
    top: tuple[float, ...] = ()
    size: int = 1
    raw: object = None
    certainty: tuple[float, float] | None = None


def estimate(text: str) -> int:
    """About how many tokens `text` has (at least 1), where no upstream says it."""
    return max(1, round(len(text) / CHARS_PER_TOKEN))


def entropy(top: Sequence[float]) -> float:
    """Entropy in nats of a token's distribution known by its `TOP` highest log probabilities.

    The probability that the listed tokens leave over counts as one more token. A list that sums to more than one
    (rounding) is scaled down.
    """
    total = weighted = 0.0
    for value in top[:TOP]:
        probability = math.exp(value)
        total += probability
        weighted += probability * max(value, FLOOR)
    if total >= 1.0:
        return max(0.0, math.log(total) - weighted / total)
    tail = 1.0 - total
    return -weighted - tail * math.log(tail)


def certainty(logprob: float | None, top: Sequence[float]) -> tuple[float, float]:
    """A token's entropy in nats (0 without a list), and its margin: the best token's probability minus the second's.

    Without a list the margin comes from the written token's own log probability, and is 1 when that is unknown too.
    """
    if len(top) >= 2:
        return entropy(top), math.exp(top[0]) - math.exp(top[1])
    return entropy(top), 1.0 if logprob is None else max(0.0, 2.0 * math.exp(logprob) - 1.0)


def read(text: str, logprobs: JSON | None) -> list[Token]:
    """Tokens whose texts, joined, are `text`, from the log probabilities of either API (chat or completions).

    Raises KeyError, TypeError or ValueError when `logprobs` has the shape of neither.
    """
    tokens: list[Token] = []
    if logprobs and logprobs.get("content"):
        for entry in logprobs["content"]:
            tops = (_number(other["logprob"]) for other in entry.get("top_logprobs") or ())
            tokens.append(_token(entry["token"], entry["logprob"], tops, entry))
    elif logprobs and logprobs.get("tokens"):
        names = logprobs["tokens"]
        values = logprobs.get("token_logprobs") or [None] * len(names)
        tops_of = logprobs.get("top_logprobs") or [None] * len(names)
        for name, value, top in zip(names, values, tops_of, strict=True):
            tokens.append(_token(name, value, map(_number, (top or {}).values())))
    if not tokens:
        return [Token(text, size=estimate(text))] if text else []
    if "".join(token.text for token in tokens) != text:
        # Bytes of one character spread over tokens, or special tokens: the text is what counts, the first takes it all.
        tokens = [token._replace(text=text if i == 0 else "") for i, token in enumerate(tokens)]
    return tokens


def of_prompt(answer: JSON) -> Iterator[Token]:
    """The tokens of the prompt, the last one first, from the answer to a request with `prompt_logprobs` (vLLM).

    They stand beside the choices of a chat completion, and in the choice of a completion: null or an object for each
    place, with the prompt's own token first. It ends where an entry has another shape.
    """
    said = answer.get("prompt_logprobs") or _first(answer.get("choices")).get("prompt_logprobs")
    for entry in reversed(said) if isinstance(said, list) else ():
        own = _first(list(entry.values())) if isinstance(entry, dict) else {}
        text, logprob = own.get("decoded_token"), own.get("logprob")
        if not isinstance(text, str) or not isinstance(logprob, (int, float)) or isinstance(logprob, bool):
            return
        yield Token(text, min(0.0, float(logprob)))


def _first(values: Any) -> JSON:
    """The object at the beginning of a list; an empty one where there is none."""
    first = values[0] if isinstance(values, list) and values else None
    return first if isinstance(first, dict) else {}


def _token(text: str, logprob: object, tops: Iterable[float | None], raw: object = None) -> Token:
    """One token, with what can be worked out of it alone: the model is still writing the next one."""
    own = _number(logprob)
    top = tuple(sorted((value for value in tops if value is not None), reverse=True))
    return Token(text, own, top, raw=raw, certainty=certainty(own, top))


def _number(value: object) -> float | None:
    if value is None:
        return None
    if not isinstance(value, (int, float)):
        raise TypeError("a log probability is no number")
    if value > _ROUNDING:
        raise ValueError("a log probability is over 0")
    return min(0.0, float(value))
