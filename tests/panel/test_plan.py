from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from panel.kinds.plan import letters
from panel.spec import PanelSpec
from tests.panel.fakes import ASK, says, table
from tests.stepwise.fakes import FakeModel, Fault

PLAN = {
    "plan": {
        "direct": {"model": "a", "about": "short sums"},
        "steps": {"model": "b", "prompt": "Work step by step."},
        "careful": {"model": "c"},
    },
    "planner": "p",
    "sure": 0.7,
}


class Planner(FakeModel):
    """Gives the letters these probabilities."""

    shares: dict[str, float]

    def _entry(self, token: str, top: int = 5) -> dict[str, Any]:
        tops = [{"token": f" {letter}", "logprob": math.log(share)} for letter, share in self.shares.items()]
        return {"token": token, "logprob": tops[0]["logprob"], "top_logprobs": tops[:top]}


def four(shares: dict[str, float], *texts: str, **more: Any) -> list[FakeModel]:
    best = max(shares, key=lambda letter: shares[letter])
    planner = Planner("p", lambda prefix, number: f"Answer: {best}", **more)
    planner.shares = shares
    return [*(says(name, text) for name, text in zip("abc", texts, strict=True)), planner]


TEXTS = ("Answer: 1", "Answer: 2", "Answer: 2")


@pytest.mark.parametrize("stream", [True, False])
async def test_a_sure_planner_s_way_is_gone_alone(stream: bool) -> None:
    async with table(four({"B": 0.9, "A": 0.1}, *TEXTS), PLAN) as made:
        given = await made.ask(stream=stream, stop=["zzz"])
        (planned,), (asked,) = made.models["p"].requests, made.models["b"].requests
    assert (given.text, given.calls) == ("Answer: 2", [("p", "plan", False), ("b", "alone", True)])
    assert asked["messages"] == [{"role": "system", "content": "Work step by step."}, *ASK]
    assert planned["messages"][:-1] == ASK
    shown = planned["messages"][-1]["content"]
    assert "A: direct (short sums), by a: quality 1 of 1; price 1 in, 2 out\nB: steps, by b: " in shown
    assert (planned["temperature"], planned["max_tokens"], "stop" in planned) == (0, 8, False)


async def test_two_ways_that_agree_are_enough_for_a_planner_that_is_torn() -> None:
    async with table(four({"C": 0.5, "B": 0.4, "A": 0.1}, *TEXTS), PLAN) as made:
        given = await made.ask()
    assert given.text == "Answer: 2"
    assert given.calls == [("p", "plan", False), ("c", "check", True), ("b", "check", False)]


async def test_two_ways_that_do_not_agree_are_settled_by_the_others() -> None:
    async with table(four({"A": 0.5, "B": 0.4, "C": 0.1}, *TEXTS), PLAN) as made:
        given = await made.ask()
    assert given.text == "Answer: 2"
    assert given.calls == [
        ("p", "plan", False), ("a", "check", False), ("b", "check", True), ("c", "vote", False),
    ]  # fmt: skip


@pytest.mark.parametrize("why", ["unsure", "silent", "dead", "barred"])
async def test_all_ways_are_gone_where_the_planner_does_not_know(why: str) -> None:
    shares = {"A": 0.34, "B": 0.33, "C": 0.33} if why == "unsure" else {"A": 1.0}
    cards = {name: {"trust": ["x"]} for name in "abc"} | {"p": {"trust": ["y"]}}
    block: dict[str, Any] = {**PLAN, "cards": cards, **({"trust": {"header": "t"}} if why == "barred" else {})}
    async with table(four(shares, *TEXTS, top=-1 if why == "silent" else 5), block) as made:
        if why == "dead":
            made.models["p"].faults[-2] = Fault("kill")
        given = await made.ask(headers={"t": "x"})
        unjudged = made.panel.metrics.unjudged
    assert given.text == "Answer: 2"
    assert [call[:2] for call in given.calls if call[1] != "plan"] == [("a", "vote"), ("b", "vote"), ("c", "vote")]
    assert unjudged == ({"no_logprobs": 1} if why == "silent" else {})
    assert made.asked["p"] == (0 if why == "barred" else 1)


@pytest.mark.parametrize("shares", [{"A": 1.0}, {"A": 0.5, "B": 0.5}])
async def test_a_way_that_fails_is_done_without(shares: dict[str, float]) -> None:
    async with table(four(shares, *TEXTS), PLAN) as made:
        made.models["a"].faults[-2] = Fault("kill")
        given = await made.ask()
    assert (given.status, given.text) == (200, "Answer: 2")


async def test_a_single_way_that_may_see_the_request_needs_no_plan() -> None:
    cards = {name: {"trust": ["x" if name == "b" else "y"]} for name in "abcp"}
    async with table(four({"A": 1.0}, *TEXTS), {**PLAN, "cards": cards, "trust": {"header": "t"}}) as made:
        given = await made.ask(stream=True, headers={"t": "x"})
        none = await made.ask(headers={"t": "z"})
    assert (given.text, made.asked) == ("Answer: 2", {"a": 0, "b": 1, "c": 0, "p": 0})
    assert none.status == 403


async def test_tools_are_shown_to_the_ways_and_not_to_the_planner() -> None:
    async with table(four({"A": 1.0}, *TEXTS), PLAN) as made:
        await made.ask(tools=[{"type": "function", "function": {"name": "f"}}])
        (planned,), (asked,) = made.models["p"].requests, made.models["a"].requests
    assert "tools" not in planned
    assert asked["tools"]


def test_letters_are_read_at_the_first_token_that_is_one() -> None:
    def entry(token: str, *tops: tuple[str, float]) -> dict[str, Any]:
        return {
            "token": token,
            "logprob": -1.0,
            "top_logprobs": [{"token": t, "logprob": math.log(p)} for t, p in tops],
        }

    entries = [entry("The"), entry(" B", (" B", 0.5), ("B", 0.25), ("A", 0.125), ("Z", 0.1)), entry("A", ("A", 1.0))]
    assert letters(entries, 3) == pytest.approx([0.125, 0.75, 0.0])
    assert letters([{"token": "A", "logprob": -0.5}], 2) == pytest.approx([math.exp(-0.5), 0.0])
    assert letters([entry("C", ("C", 1.0))], 2) == [0.0, 0.0]
    assert letters([], 2) == [0.0, 0.0]


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"plan": PLAN["plan"]}, "plan needs a `planner`"),
        ({"plan": {"a": {"model": "x"}}, "planner": "p"}, "at least 2"),
        ({"plan": {"a": {"model": "x"}, "b": {"model": "y", "temper": 1}}, "planner": "p"}, "Extra inputs"),
        ({**PLAN, "sure": 1.5}, "less than or equal to 1"),
        ({**PLAN, "samples": 2}, "plan does not take samples"),
    ],
)
def test_what_a_block_cannot_say(block: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        PanelSpec.model_validate(block)


def test_models_are_found_wherever_a_block_names_them() -> None:
    assert list(PanelSpec.mentions(PLAN)) == [
        (("planner",), "p"),
        (("plan", "direct", "model"), "a"),
        (("plan", "steps", "model"), "b"),
        (("plan", "careful", "model"), "c"),
    ]
    spec = PanelSpec.model_validate(PLAN)
    assert (spec.models, spec.fallback) == (("p", "a", "b", "c"), "c")
    assert [(call.model, call.why, call.always) for call in spec.planned()] == [
        ("p", "plan", True),
        ("a", "vote", False),
        ("b", "vote", False),
        ("c", "vote", False),
    ]
