from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from config.resources import Resources
from panel.kinds.rank import bradley_terry, reliability
from panel.spec import PanelSpec
from signals.state.store import Store, Valkey
from tests.panel.fakes import calls, says, table
from tests.patience import PATIENCE
from tests.signals.state.test_store import Server, eventually, needs_server, server  # noqa: F401
from tests.stepwise.fakes import FakeModel, Fault

RANK = {"rank": ["a", "b", "c"], "judges": ["j"]}


class Judge(FakeModel):
    """Prefers the answer with the greatest number, or always the one that is shown first."""

    fair = True

    async def _answer(self, reader: Any, sink: Any, path: str, body: Any, *more: Any) -> bool:
        first, second = re.findall(r"Answer [AB]:\n\nAnswer: (\d+)", body["messages"][-1]["content"])
        verdict = "A" if not self.fair or int(first) > int(second) else "B"
        self.write = lambda prefix, number: f"I prefer {verdict}."
        return await super()._answer(reader, sink, path, body, *more)


def four(*texts: str, fair: bool = True) -> list[Any]:
    judge = Judge("j", lambda prefix, number: "")
    judge.fair = fair
    return [*(says(name, text) for name, text in zip("abc", texts, strict=True)), judge]


@pytest.mark.parametrize("stream", [True, False])
async def test_the_answer_that_the_judge_prefers_is_released(stream: bool) -> None:
    async with table(four("Answer: 1", "Answer: 9", "Answer: 5"), RANK) as made:
        given = await made.ask(stream=stream, stop=["zzz"], max_tokens=99)
        judged = made.models["j"].requests
    assert (given.text, given.headers["x-pointsman-model"], made.asked["j"]) == ("Answer: 9", "b", 6)
    assert all((body["max_tokens"], body["temperature"], "stop" in body) == (16, 0, False) for body in judged)


async def test_answers_that_say_the_same_are_judged_once() -> None:
    async with table(four("Answer: 1", "so 4. Answer: 4", "Answer: 4.0"), RANK) as made:
        two = await made.ask()
        asked = made.asked["j"]
    assert (two.text, asked) == ("so 4. Answer: 4", 2)
    async with table(four("Answer: 4", "Answer: 4", "Answer: 4"), RANK) as made:
        one = await made.ask()
    assert (one.text, made.asked["j"]) == ("Answer: 4", 0)


async def test_a_judge_that_goes_by_the_order_says_nothing_and_counts_less_from_then_on() -> None:
    async with table(four("Answer: 1", "Answer: 9", "Answer: 9", fair=False), RANK) as made:
        store = made.panel.room.store
        before = await reliability(store, ["j"])
        given = await made.ask()
        after = await reliability(store, ["j"])
    assert given.text == "Answer: 9"  # more members gave it
    assert (before["j"], round(after["j"], 3)) == (0.5, 0.333)


async def test_where_the_judges_leave_a_tie_the_answer_of_a_vote_wins() -> None:
    block = {**RANK, "cards": {"a": {"quality": 0.4}, "b": {"quality": 0.5}, "c": {"quality": 0.7}}}
    for texts, wins in (((1, 9, 5), "Answer: 5"), ((9, 9, 5), "Answer: 9"), ((1, 1, 1), "Answer: 1")):
        async with table(four(*(f"Answer: {text}" for text in texts), fair=False), block) as made:
            assert (await made.ask()).text == wins


async def learned(store: Store) -> float:
    """What a worker with this store knows of the judge after one answer of it."""
    async with table(four("Answer: 1", "Answer: 9", "Answer: 9", fair=False), RANK, store=store) as made:
        await made.ask()
        return (await reliability(store, ["j"]))["j"]


@needs_server
async def test_what_is_known_of_a_judge_is_shared_by_workers_and_survives_their_restart(server: Server) -> None:  # noqa: F811
    async def known(store: Store, at: float) -> bool:
        return round((await reliability(store, ["j"]))["j"], 3) == at

    one, other = Valkey(server.url, timeout=PATIENCE), Valkey(server.url, timeout=PATIENCE)
    await learned(one)
    assert await eventually(lambda: known(other, 0.333))
    await learned(other)
    await one.close()
    await other.close()
    after = Valkey(server.url, timeout=PATIENCE)
    assert await known(after, 0.25)
    await after.close()


async def test_what_is_known_of_a_judge_survives_a_reload_without_a_store() -> None:
    resources = Resources()
    await learned(resources.store(None, Path()))
    assert await learned(resources.store(None, Path())) == 0.25


@pytest.mark.parametrize("broken", ["a", "j"])
async def test_whoever_fails_is_done_without(broken: str) -> None:
    async with table(four("Answer: 1", "Answer: 9", "Answer: 5"), RANK) as made:
        made.models[broken].faults[-2] = Fault("status", status=500)
        given = await made.ask()
    assert given.text == ("Answer: 9" if broken == "a" else "Answer: 1")


async def test_without_a_quorum_there_is_no_answer() -> None:
    async with table(four("Answer: 1", "Answer: 9", "Answer: 5"), {**RANK, "quorum": 3}) as made:
        made.models["a"].faults[-2] = Fault("kill")
        given = await made.ask()
    assert given.status == 502


async def test_answers_that_call_tools_are_judged_and_one_is_released() -> None:
    tools = [{"type": "function", "function": {"name": "look"}}]
    places = zip("abc", ("here", "there", "here"), strict=True)
    models = [calls(name, "", ("1", "look", json.dumps({"place": place}))) for name, place in places]
    judge = says("j", "A", "B")  # whatever is shown second, then first: the same answer both times
    async with table([*models, judge], RANK) as made:
        given = await made.ask(tools=tools)
        shown, other = judge.requests
    (call,) = given.body["choices"][0]["message"]["tool_calls"]
    assert (call["function"]["name"], given.headers["x-pointsman-model"]) == ("look", "a")
    assert call["function"]["arguments"] == '{"place": "here"}'
    assert (shown["tools"], shown["tool_choice"]) == (tools, "none")
    ours, theirs = ('(calls a tool: look {"place":"' + place + '"})' for place in ("here", "there"))
    assert f"Answer A:\n\n{ours}\n\nAnswer B:\n\n{theirs}" in shown["messages"][-1]["content"]
    assert f"Answer A:\n\n{theirs}\n\nAnswer B:\n\n{ours}" in other["messages"][-1]["content"]


def test_strengths_follow_the_comparisons() -> None:
    strengths = bradley_terry({(0, 1): 2.0, (1, 2): 2.0, (0, 2): 2.0}, 3)
    assert strengths[0] > strengths[1] > strengths[2] > 0
    assert sum(strengths) == pytest.approx(1)
    assert bradley_terry({}, 3) == pytest.approx([1 / 3] * 3)
    # Maximum likelihood for two: the odds of their strengths are those of their wins, the prior of 0.1 included.
    one, other = bradley_terry({(0, 1): 2.9, (1, 0): 0.9}, 2)
    assert one / other == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"rank": ["a"]}, "rank needs several members"),
        ({"rank": ["a", "a"]}, "names a model twice"),
        ({**RANK, "judges": ["j", "j"]}, "judges: a model is named twice"),
        ({**RANK, "quorum": 4}, "only 3 answers"),
    ],
)
def test_what_a_block_cannot_say(block: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        PanelSpec.model_validate(block)


def test_the_members_judge_themselves_unless_others_are_named() -> None:
    spec = PanelSpec.model_validate({"rank": ["a", "b"]})
    assert [(call.model, call.why, call.times) for call in spec.planned()] == [
        ("a", "draft", 1),
        ("b", "draft", 1),
        ("a", "judge", 2),
        ("b", "judge", 2),
    ]
    assert (spec.models, spec.fallback) == (("a", "b"), "b")
