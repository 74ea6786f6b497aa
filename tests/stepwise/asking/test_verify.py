"""The large model's marks: what is asked for, and what is read from the answer."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwise.asking.verify import Drafted, likelihood, mark, request
from stepwise.policy import MARKS
from stepwise.strategy import NoJudgement
from upstream.client import UpstreamError
from upstream.endpoint import ContinuationMode

CALL = {"messages": [{"role": "user", "content": "12 + 3?"}], "temperature": 0.7, "stream": True, "stop": ["x"]}
DRAFTED = Drafted(CALL, "First.\n\n", "12 + 3 = 15\n\n")
TOKENS = [("First", -9.0), (".\n\n", -9.0), ("12", -0.1), (" +", -0.2), (" 3", -0.3), (" = 15", -0.4), ("\n\n", -1.0)]


def told(tokens: list[tuple[str, float]]) -> list[Any]:
    """As vLLM tells a prompt's tokens."""
    places = [{str(i): {"logprob": p, "rank": 1, "decoded_token": t}} for i, (t, p) in enumerate(tokens)]
    return [None, *places]


def test_a_digit_is_asked_for_in_a_message() -> None:
    path, body = request("digit", DRAFTED, ContinuationMode.FINAL_MESSAGE)
    assert path == "/v1/chat/completions"
    assert (body["max_tokens"], body["temperature"], len(body["messages"])) == (1, 0, 2)
    assert "12 + 3 = 15" in body["messages"][1]["content"]
    assert not body.keys() & {"stream", "stream_options", "prompt_logprobs"}


def test_a_likelihood_is_that_of_the_step_as_the_answers_end() -> None:
    path, body = request("likelihood", DRAFTED, ContinuationMode.FINAL_MESSAGE)
    assert path == "/v1/chat/completions"
    assert body["messages"][-1] == {"role": "assistant", "content": "First.\n\n12 + 3 = 15\n\n"}
    assert (body["prompt_logprobs"], body["max_tokens"], body["continue_final_message"]) == (0, 1, True)
    assert not body.keys() & {"stream", "stream_options", "stop"}
    path, body = request("likelihood", DRAFTED, ContinuationMode.COMPLETIONS)
    assert (path, body["prompt"]) == ("/v1/completions", "12 + 3?\n\nFirst.\n\n12 + 3 = 15\n\n")
    with pytest.raises(UpstreamError, match="cannot continue"):
        request("likelihood", DRAFTED, None)


@pytest.mark.parametrize("chat", [True, False])
def test_the_likelihood_is_the_geometric_mean_over_the_steps_tokens_alone(chat: bool) -> None:
    answer: dict[str, Any] = {"choices": [{"text": "x"}]}
    (answer if chat else answer["choices"][0])["prompt_logprobs"] = told(TOKENS)
    assert mark("likelihood", answer, DRAFTED.step) == pytest.approx(math.exp(-(0.1 + 0.2 + 0.3 + 0.4 + 1) / 5))
    # A template may have trimmed the end.
    (answer if chat else answer["choices"][0])["prompt_logprobs"] = told(TOKENS[:-1])
    assert mark("likelihood", answer, DRAFTED.step) == pytest.approx(math.exp(-0.25))


@pytest.mark.parametrize(
    "answer",
    [
        {"choices": [{"message": {"content": "7"}}]},
        {"choices": []},
        {"prompt_logprobs": [None, {}]},
        {"prompt_logprobs": [None, {"1": {"logprob": None, "decoded_token": "15"}}]},
        {"prompt_logprobs": told(TOKENS[4:])},
        {"prompt_logprobs": told([*TOKENS, ("and", -0.1)])},
        {"prompt_logprobs": told([*TOKENS[:5], (" = 16", -0.1)])},
        {"prompt_logprobs": "none"},
    ],
)
def test_where_the_prompts_end_is_not_told_there_is_no_mark(answer: dict[str, Any]) -> None:
    with pytest.raises(NoJudgement):
        mark("likelihood", answer, DRAFTED.step)


@given(st.lists(st.tuples(st.text("ab \n", max_size=4), st.floats(-5, 0)), max_size=12), st.integers(0, 12))
def test_however_the_text_is_cut_into_tokens_they_are_found(tokens: list[tuple[str, float]], at: int) -> None:
    step = "".join(text for text, _ in tokens[at:])
    found = likelihood(reversed([("before", -50.0), *tokens]), step)
    if not step.strip():
        assert found == 1.0
        return
    # Tokens without letters at its beginning are as good as none.
    first = next(i for i in range(at, len(tokens)) if tokens[i][0].strip())
    assert found == pytest.approx(math.exp(sum(p for _, p in tokens[first:]) / len(tokens[first:])))


def test_probabilities_over_1_count_as_1() -> None:
    tops = [{"token": digit, "logprob": 1000.0} for digit in "19"]
    answer = {"choices": [{"message": {"content": "9"}, "logprobs": {"content": [{"top_logprobs": tops}]}}]}
    assert mark("digit", answer, "") == pytest.approx(5 / 9)
    assert mark("likelihood", {"prompt_logprobs": told([("12", 1000.0)])}, "12") == 1


def test_every_kind_of_mark_is_between_0_and_1() -> None:
    answer = {"choices": [{"message": {"content": "9"}}], "prompt_logprobs": told([("15", 0.3)])}
    assert [mark(kind, answer, "15") for kind in MARKS] == [1.0, 1.0]
