from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import ValidationError

from panel.spec import PanelSpec
from tests.panel.fakes import says, table, until
from tests.stepwise.fakes import Fault

VOTE = {"vote": ["a", "b", "c"]}
AGREE = {"agree": "a", "then": ["b", ["a", "b", "c"]]}


def three(*texts: str) -> list[Any]:
    return [says(name, text) for name, text in zip("abc", texts, strict=True)]


@pytest.mark.parametrize("stream", [True, False])
async def test_the_majority_wins(stream: bool) -> None:
    async with table(three("Answer: 1", "so it is 2. Answer: 2", "Answer: 2.0"), VOTE) as made:
        given = await made.ask(stream=stream)
    assert given.text in ("so it is 2. Answer: 2", "Answer: 2.0")
    assert given.headers["x-pointsman-panel"] == "vote"
    assert sorted(call[:2] for call in given.calls) == [("a", "vote"), ("b", "vote"), ("c", "vote")]
    assert sum(released for _, _, released in given.calls) == 1


async def test_among_equals_the_earlier_member_wins() -> None:
    async with table(three("Answer: 1", "Answer: 2", "Answer: 3"), VOTE) as made:
        texts = {(await made.ask()).text for _ in range(5)}
    assert texts == {"Answer: 1"}


async def test_votes_weigh_what_the_cards_say() -> None:
    cards = {"a": {"quality": 0.9}, "b": {"quality": 0.4}, "c": {"quality": 0.4}}
    async with table(three("Answer: 1", "Answer: 2", "Answer: 2"), {**VOTE, "cards": cards}) as made:
        given = await made.ask()
    assert given.text == "Answer: 1"


async def test_a_vote_that_is_decided_cancels_what_is_out() -> None:
    slow = says("c", "Answer: 9", released=asyncio.Semaphore(0))
    async with table([says("a", "Answer: 2"), says("b", "Answer: 2"), slow], VOTE) as made:
        given = await made.ask()
        await until(lambda: not slow.connections)
    assert given.text == "Answer: 2"
    assert slow.gone == 1


@pytest.mark.parametrize("kind", ["kill", "garbage", "badjson", "cut", "error", "status", "html", "silent", "hang"])
@pytest.mark.parametrize("after", [0, 1])
async def test_a_member_that_fails_does_not_vote(kind: str, after: int) -> None:
    block = {**VOTE, "budget": {"each": 0.3}}
    async with table(three("Answer: 1", "Answer: 2", "Answer: 2"), block) as made:
        made.models["a"].faults[0] = Fault(kind, after)
        given = await made.ask()
    assert given.text == "Answer: 2"


async def test_without_a_quorum_there_is_no_answer() -> None:
    async with table(three("Answer: 1", "Answer: 2", "Answer: 2"), {**VOTE, "quorum": 2}) as made:
        for name in "ab":
            made.models[name].faults[-2] = Fault("status", status=500)
        given = await made.ask()
        made.models["a"].faults.clear()
        other = await made.ask()
    assert (given.status, other.status) == (502, 200)


async def test_samples_differ_by_their_seeds_and_are_the_same_again() -> None:
    block = {"vote": ["a"], "samples": 3}
    async with table([says("a", "Answer: 1", "Answer: 2", "Answer: 2")], block) as made:
        given = await made.ask()
        await made.ask(seed=40, temperature=0.2)
        asked = [(body["seed"], body["temperature"]) for body in made.models["a"].requests]
    assert given.text == "Answer: 2"
    assert sorted(asked[:3]) == [(0, 0.7), (1, 0.7), (2, 0.7)]
    assert {temperature for _, temperature in asked[3:]} == {0.2}
    assert {seed for seed, _ in asked[3:]} <= {40, 41, 42}


async def test_a_client_that_leaves_ends_every_call() -> None:
    models = [says(name, "Answer: 1", released=asyncio.Semaphore(0)) for name in "abc"]
    async with table(models, VOTE) as made:
        asking = asyncio.create_task(made.ask(stream=True))
        await until(lambda: all(model.requests for model in models))
        asking.cancel()
        await asyncio.wait([asking])
        await until(lambda: not any(model.connections for model in models))
    assert len(made.charged) == 1


async def test_a_budget_of_calls_bounds_the_vote() -> None:
    async with table(three("Answer: 1", "Answer: 2", "Answer: 2"), {**VOTE, "budget": {"calls": 1}}) as made:
        given = await made.ask()
    assert (given.text, made.asked) == ("Answer: 1", {"a": 1, "b": 0, "c": 0})


# agree


async def test_samples_that_agree_are_the_answer() -> None:
    async with table(three("Answer: 1", "Answer: 2", "Answer: 3"), AGREE) as made:
        given = await made.ask()
    assert (given.text, made.asked) == ("Answer: 1", {"a": 3, "b": 0, "c": 0})
    assert [call[1] for call in given.calls] == ["sample"] * 3


async def test_a_little_disagreement_asks_one_and_streams_it() -> None:
    models = [says("a", "Answer: 1", "Answer: 1", "Answer: 4"), says("b", "Answer: 2"), says("c", "Answer: 3")]
    async with table(models, AGREE) as made:
        given = await made.ask(stream=True)
    assert (given.text, made.asked) == ("Answer: 2", {"a": 3, "b": 1, "c": 0})
    assert given.calls[-1] == ("b", "alone", True)


async def test_a_total_disagreement_asks_all() -> None:
    models = [
        says("a", "Answer: 1", "Answer: 4", "Answer: 5", "Answer: 3"),
        says("b", "Answer: 2"),
        says("c", "Answer: 3"),
    ]
    async with table(models, AGREE) as made:
        given = await made.ask()
    assert (given.text, made.asked) == ("Answer: 3", {"a": 4, "b": 1, "c": 1})


async def test_when_the_others_fail_the_first_one_s_majority_answers() -> None:
    models = [says("a", "Answer: 1", "Answer: 1", "Answer: 4"), says("b", "Answer: 2"), says("c", "Answer: 3")]
    async with table(models, AGREE) as made:
        made.models["b"].faults[-2] = Fault("kill")
        given = await made.ask()
    assert given.text == "Answer: 1"


async def test_when_the_first_one_fails_all_vote() -> None:
    async with table(three("Answer: 1", "Answer: 2", "Answer: 2"), AGREE) as made:
        made.models["a"].faults[-2] = Fault("status", status=500)
        given = await made.ask()
    assert given.text == "Answer: 2"


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"vote": ["a"]}, "vote needs several members, or samples"),
        ({"vote": ["a", "a"]}, "vote names a model twice"),
        ({**VOTE, "quorum": 4}, "only 3 answers"),
        ({**VOTE, "until": {"sure": 0.5}}, "vote does not take until"),
        ({**VOTE, "answers": "poem"}, "answers"),
        ({"agree": "a"}, "agree needs `then`"),
        ({**AGREE, "samples": 1}, "agree needs two"),
        ({"agree": "a", "then": [["b", "b"]]}, "names a model twice"),
        ({**VOTE, "agree": "a"}, "exactly one kind"),
    ],
)
def test_what_a_block_cannot_say(block: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        PanelSpec.model_validate(block)


def test_models_are_found_wherever_a_block_names_them() -> None:
    assert list(PanelSpec.mentions(AGREE)) == [
        (("agree",), "a"),
        (("then", 0), "b"),
        (("then", 1, 0), "a"),
        (("then", 1, 1), "b"),
        (("then", 1, 2), "c"),
    ]
    assert PanelSpec.model_validate(AGREE).models == ("a", "b", "c")


@pytest.mark.parametrize("stream", [True, False])
async def test_a_request_that_is_nested_too_deeply_is_the_client_s_fault(stream: bool) -> None:
    deep: Any = {}
    for _ in range(300):
        deep = {"properties": {"a": deep}}
    tools = [{"type": "function", "function": {"name": "look", "parameters": deep}}]
    async with table(three("Answer: 1", "Answer: 1", "Answer: 1"), VOTE) as made:
        given = await made.ask(tools=tools, stream=stream)
        assert made.asked == {"a": 0, "b": 0, "c": 0}
    assert (given.status, "nested too deeply" in given.raw.decode()) == (400, True)
