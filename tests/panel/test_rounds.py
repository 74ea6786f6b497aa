from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import ValidationError

from panel.spec import PanelSpec
from tests.panel.fakes import ASK, says, table, until
from tests.stepwise.fakes import Fault

ROUNDS = {"rounds": ["a", "b"], "planner": "p", "max": 2}


def three(*planned: str) -> list[Any]:
    return [says("a", "a knows"), says("b", "b knows"), says("p", *planned)]


@pytest.mark.parametrize("stream", [True, False])
async def test_the_planner_asks_and_writes_the_answer(stream: bool) -> None:
    planned = ("ASK a: What is two?\nASK b: And why\nis it so?", "ASK b: Really?", "It is two.")
    cards = {"a": {"about": "knows numbers", "quality": 0.5}}
    async with table(three(*planned), {**ROUNDS, "cards": cards}) as made:
        given = await made.ask(stream=stream, stop=["zzz"], max_tokens=99, seed=3)
        first, second, third = made.models["p"].requests
        (a,), b = made.models["a"].requests, made.models["b"].requests
    assert (given.text, given.headers["x-pointsman-model"]) == ("It is two.", "p")
    assert sorted(given.calls) == [
        ("a", "ask", False),
        ("b", "ask", False),
        ("b", "ask", False),
        ("p", "plan", False),
        ("p", "plan", False),
        ("p", "plan", True),
    ]
    assert (
        "- a: knows numbers; quality 0.5 of 1; price 1 in, 2 out\n- b: quality 1 of 1"
        in first["messages"][0]["content"]
    )
    assert first["messages"][1:] == ASK
    assert (first["temperature"], first["stop"]) == (0, ["zzz"])
    assert [body["messages"] for body in (a, *b)] == [
        [{"role": "user", "content": question}] for question in ("What is two?", "And why\nis it so?", "Really?")
    ]
    assert (a["max_tokens"], a["seed"], a["temperature"], "stop" in a) == (99, 3, 0, False)
    assert second["messages"][: len(first["messages"])] == first["messages"]  # so that a server's cache of it is of use
    asked, answers = second["messages"][-2:]
    assert asked == {"role": "assistant", "content": planned[0]}
    assert "a was asked: What is two?\n\na says:\n\na knows\n\nb was asked: And why\nis it so?" in answers["content"]
    assert answers["content"].endswith("Ask again, or reply with the answer.")
    assert third["messages"][-1]["content"].endswith("You cannot ask any more. Reply with the answer.")


async def test_a_planner_that_needs_no_help_answers_word_by_word() -> None:
    models = three("A short answer")  # begins like a question, but is none
    models[2].released = asyncio.Semaphore(2)
    async with table(models, ROUNDS) as made:
        answer = await made.panel.answer(made.call(stream=True))
        assert b'"content":"A"' in await anext(answer.body)
        await answer.aclose()
        await until(lambda: not models[2].connections)
    assert made.asked == {"a": 0, "b": 0, "p": 1}


async def test_an_answer_may_take_longer_than_a_call_that_nobody_sees() -> None:
    models = three("one two three four five six")
    models[2].delay = 0.1
    async with table(models, {**ROUNDS, "budget": {"each": 0.3}}) as made:
        given = await made.ask(stream=True)
    assert given.text == "one two three four five six"


async def test_a_member_that_fails_has_said_nothing_and_the_planner_goes_on() -> None:
    async with table(three("ASK a: One?\nASK b: Two?", "It is so."), ROUNDS) as made:
        made.models["a"].faults[-2] = Fault("kill")
        given = await made.ask()
        told = made.models["p"].requests[1]["messages"][-1]["content"]
    assert given.text == "It is so."
    assert "a says:\n\n(nothing)" in told
    assert "b says:\n\nb knows" in told


@pytest.mark.parametrize("planned", ["ASK c: Who?", "ASK a:", "ASK whatever"])
async def test_a_question_to_nobody_is_told_so(planned: str) -> None:
    async with table(three(planned, "Then so."), ROUNDS) as made:
        given = await made.ask()
        told = made.models["p"].requests[1]["messages"][-1]["content"]
    assert (given.text, made.asked["a"], made.asked["b"]) == ("Then so.", 0, 0)
    assert told.startswith("No line asked an assistant of the list.")


async def test_each_member_is_asked_once_in_a_round() -> None:
    async with table(three("ASK a: One?\nASK a: Two?", "Done."), ROUNDS) as made:
        await made.ask()
    assert made.asked == {"a": 1, "b": 0, "p": 2}


@pytest.mark.parametrize("why", ["endless", "dead", "barred"])
async def test_without_a_planner_the_best_member_answers(why: str) -> None:
    cards = {"a": {"quality": 0.2, "trust": ["x"]}, "b": {"quality": 0.9, "trust": ["x"]}, "p": {"trust": ["y"]}}
    block: dict[str, Any] = {**ROUNDS, "cards": cards, **({"trust": {"header": "t"}} if why == "barred" else {})}
    async with table(three("ASK a: Again?"), block) as made:
        if why == "dead":
            made.models["p"].faults[-2] = Fault("kill")
        given = await made.ask(stream=True, headers={"t": "x"})
    assert (given.text, given.headers["x-pointsman-model"]) == ("b knows", "b")
    assert given.calls[-1] == ("b", "alone", True)
    assert made.asked["p"] == {"endless": 3, "dead": 1, "barred": 0}[why]


async def test_when_nobody_is_left_the_client_gets_an_error() -> None:
    async with table(three("ASK a: What?"), ROUNDS) as made:
        for model in made.models.values():
            model.faults[-2] = Fault("status", status=500)
        given = await made.ask()
    assert given.status == 502


async def test_a_budget_of_calls_ends_the_asking() -> None:
    async with table(three("ASK a: What?\nASK b: Why?", "Never."), {**ROUNDS, "budget": {"calls": 2}}) as made:
        given = await made.ask()
    assert (given.status, made.asked) == (502, {"a": 1, "b": 0, "p": 1})


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"rounds": ["a"]}, "rounds needs a `planner`"),
        ({**ROUNDS, "rounds": ["a", "a"]}, "names a model twice"),
        ({**ROUNDS, "max": 0}, "greater than or equal to 1"),
        ({**ROUNDS, "quorum": 1}, "rounds does not take quorum"),
    ],
)
def test_what_a_block_cannot_say(block: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        PanelSpec.model_validate(block)


def test_what_is_planned() -> None:
    spec = PanelSpec.model_validate(ROUNDS)
    assert [(call.model, call.why, call.always, call.times) for call in spec.planned()] == [
        ("p", "plan", True, 3),
        ("a", "ask", False, 2),
        ("b", "ask", False, 2),
    ]
    assert (spec.models, spec.fallback) == (("a", "b", "p"), "p")
