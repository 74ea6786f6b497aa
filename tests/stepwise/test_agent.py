"""Agent loops: a model or an effort for each request, within a session's budget."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from signals.reading import Unavailable
from signals.state.store import Memory
from stepwise import agent
from stepwise.agent import NAMES, Agent, LoopChoice, Spend, conversation, rule
from stepwise.policy import StepPolicyError
from stepwise.spec import StepwiseSpec
from tests.stepwise.onnxes import metadata, write
from upstream.endpoint import Endpoint
from upstream.usage import TokenCounts

ENDS = {
    "small": Endpoint("http://127.0.0.1:9", "tiny", price_input=1.0, price_output=2.0),
    "large": Endpoint("http://127.0.0.1:9", "huge", price_input=10.0, price_output=20.0),
}


def call(name: str, **arguments: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": function}]}


def result(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": "1", "content": text, **more}


def body(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": "Fix the build."}, *messages],
        "tools": [{"type": "function"}],
        **more,
    }


STUCK = body(*[call("run", cmd="make"), result("Error: no such file")] * 3)
SMOOTH = body(call("ls"), result("a.py b.py"), call("cat", file="a.py"), result("print(1)"))


def an_agent(folder: Path = Path(), spend: Spend | None = None, **more: Any) -> Agent:
    spec = StepwiseSpec.model_validate({"small": "small", "large": "large", "per": "request", **more})
    return Agent(spec.loop(folder), ENDS, spend)


def test_the_conversation_becomes_numbers() -> None:
    seen = dict(zip(NAMES, map(float, conversation(STUCK, ["small", None, "large"], "large", 0.25, 0.7)), strict=True))
    assert (seen["turns"], seen["user_turns"], seen["tool_results"]) == (3.0, 1.0, 3.0)
    assert (seen["tool_errors"], seen["recent_tool_errors"], seen["errors_in_a_row"]) == (3.0, 3.0, 3.0)
    assert seen["repeated_calls"] == 2.0
    assert (seen["large_share"], seen["since_large"]) == (0.5, 0.0)
    assert (seen["spent_share"], seen["difficulty"]) == (0.25, pytest.approx(0.7))
    smooth = dict(zip(NAMES, map(float, conversation(SMOOTH, [], "large", 0.0, 0.5)), strict=True))
    assert (smooth["tool_errors"], smooth["repeated_calls"], smooth["since_large"]) == (0.0, 0.0, 2.0)


def test_a_tool_s_own_flag_beats_its_words() -> None:
    errors = NAMES.index("tool_errors")
    assert conversation(body(call("x"), result("no error here", is_error=False)), [], "large", 0, 0.5)[errors] == 0
    assert conversation(body(call("x"), result("fine", is_error=True)), [], "large", 0, 0.5)[errors] == 1


async def test_without_a_policy_trouble_speaks_for_the_large_model() -> None:
    chooser = an_agent()
    assert (await chooser.choose(SMOOTH)).model == "small"
    assert (await chooser.choose(STUCK)).model == "large"
    assert (await chooser.choose(body(), difficulty=1.0)).model == "large"
    assert rule(conversation(SMOOTH, [], "large", 0, 0.5)) > rule(conversation(STUCK, [], "large", 0, 0.5))


async def test_effort_rises_with_trouble_and_the_model_stays() -> None:
    chooser = an_agent(choose="effort")
    stuck = body(*[call("run", cmd="make"), result("Error: no such file")] * 8)
    choices = [await chooser.choose(what, difficulty=d) for what, d in ((SMOOTH, 0.5), (body(), 0.95), (stuck, 0.9))]
    assert [choice.effort for choice in choices] == ["low", "medium", "high"]
    assert {choice.model for choice in choices} == {"large"}


async def test_a_trained_policy_decides_by_the_same_interface(tmp_path: Path) -> None:
    meta = metadata(NAMES, features_version=agent.VERSION)
    write(tmp_path / "loop.onnx", names=NAMES, weights={"tool_errors": -2.0}, bias=3.0, meta=meta)
    chooser = an_agent(tmp_path, policy="loop")
    first, second = await chooser.choose(SMOOTH), await chooser.choose(STUCK)
    await chooser.close()
    assert (first.model, first.reason, second.model) == ("small", "policy", "large")
    write(tmp_path / "steps.onnx")
    with pytest.raises(StepPolicyError, match="other features"):
        an_agent(tmp_path, policy="steps")


async def test_a_policy_that_fails_leaves_the_large_model(tmp_path: Path) -> None:
    meta = metadata(NAMES, features_version=agent.VERSION)
    write(tmp_path / "loop.onnx", names=NAMES, bias=float("nan"), meta=meta)
    chooser = an_agent(tmp_path, policy="loop")
    choice = await chooser.choose(SMOOTH)
    await chooser.close()
    assert (choice.model, choice.reason) == ("large", "policy_not_a_probability")


async def test_near_the_end_of_its_budget_a_session_gets_the_small_model_and_then_nothing() -> None:
    spend = Spend()
    chooser = an_agent(spend=spend, budget={"session": 0.02})
    dear = await chooser.choose(STUCK, "s")
    assert (dear.model, dear.reason) == ("large", "rule")
    await spend.reserve("s", 0.02 - dear.reserved - 0.001, 1.0)
    cheap = await chooser.choose(STUCK, "s")
    assert (cheap.model, cheap.reason) == ("small", "budget")
    assert cheap.max_tokens is not None
    none = await chooser.choose(STUCK, "s")
    assert (none.model, none.reason) == (None, "budget_exhausted")
    assert (await chooser.choose(STUCK, "another")).model == "large"
    assert (await chooser.choose(STUCK)).model == "large"  # no session, no budget to keep to


async def test_what_was_reserved_and_not_used_is_given_back() -> None:
    spend = Spend()
    chooser = an_agent(spend=spend, budget={"session": 1.0})
    choice = await chooser.choose(SMOOTH, "s")
    assert await spend.spent("s") == pytest.approx(choice.reserved) != 0
    chooser.settle("s", choice, TokenCounts(100, 10))
    assert await spend.spent("s") == pytest.approx(120e-6)


@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 400) | st.none(), st.floats(0, 1)), min_size=1, max_size=25),
    st.floats(0.0005, 0.05),
)
@settings(max_examples=40, deadline=None)
async def test_whatever_the_models_do_a_session_never_costs_more_than_its_budget(
    requests: list[tuple[bool, int | None, float]], limit: float
) -> None:
    chooser = an_agent(budget={"session": limit})
    cost = 0.0
    waiting: list[tuple[LoopChoice, int, int]] = []
    for stuck, asked, used in requests:
        request = {**(STUCK if stuck else SMOOTH), **({"max_tokens": asked} if asked else {})}
        choice = await chooser.choose(request, "s")
        if choice.model is None:
            continue
        most = choice.max_tokens if choice.max_tokens is not None else asked
        assert most is not None
        # The worst case for the prompt: a token for every byte that is shown.
        prompt = sum(len(json.dumps(request[part], ensure_ascii=False).encode()) for part in ("messages", "tools"))
        waiting.append((choice, prompt, most))
        cost += ENDS[choice.model].cost(prompt, most)
        if used < 0.5:  # the answer comes back, shorter than it could have been
            done, prompt, most = waiting.pop(0)
            assert done.model is not None
            short = int(most * used)
            cost -= ENDS[done.model].cost(prompt, most) - ENDS[done.model].cost(prompt, short)
            chooser.settle("s", done, TokenCounts(prompt, short))
        assert cost <= limit + 1e-9


async def test_two_requests_at_once_cannot_both_take_the_last_of_the_budget() -> None:
    chooser = an_agent(budget={"session": 0.002})
    choices = await asyncio.gather(*(chooser.choose({**SMOOTH, "max_tokens": 500}, "s") for _ in range(5)))
    assert sum(choice.reserved for choice in choices) <= 0.002


async def test_when_nobody_knows_what_was_spent_nothing_is_let_through() -> None:
    class Down(Memory):
        async def number(self, key: str) -> float:
            raise Unavailable("store_down")

    chooser = an_agent(spend=Spend(Down()), budget={"session": 1.0})
    choice = await chooser.choose(SMOOTH, "s")
    assert (choice.model, choice.reason) == (None, "budget_unknown")
    assert (await chooser.choose(SMOOTH)).model == "small"


async def test_sessions_share_a_store_under_names_that_tell_nothing() -> None:
    store = Memory()
    one, two = Spend(store), Spend(store)
    assert await one.reserve("my secret session " * 100, 1.0, 1.5)
    assert not await two.reserve("my secret session " * 100, 1.0, 1.5)
    assert all(len(key) < 100 and "secret" not in key for key in store._kept)
