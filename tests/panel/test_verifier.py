"""Cascades whose drafts another model reads."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import ValidationError

from panel.certainty import MEASURES
from panel.spec import PanelSpec
from panel.verifier import messages, read
from tests.panel.fakes import ASK, Reader, calls, says, table, until
from tests.stepwise.fakes import Fault

DRAFT, LARGE = "it is ✗ 4", "IT IS FOUR"
BLOCK = {"cascade": ["small", "large"], "verifier": "large", "until": {"sure": 0.9}}


def reader(finds: float = -0.01, name: str = "large") -> Reader:
    """Finds every token that probable."""
    return Reader(name, lambda _, number: LARGE, confidence=lambda text: finds)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_draft_that_the_verifier_finds_probable_is_released(stream: bool) -> None:
    async with table([says("small", DRAFT), reader()], BLOCK) as made:
        given = await made.ask(stream=stream, stop=["zzz"], max_tokens=99)
        drafted, verified = made.models["small"].requests[0], made.models["large"].requests[0]
    assert (given.text, given.headers["x-pointsman-model"]) == (DRAFT, "small")  # however unsure its writer was
    assert given.calls == [("small", "draft", True), ("large", "verify", False)]
    assert "logprobs" not in drafted
    assert verified["messages"] == [*ASK, {"role": "assistant", "content": DRAFT}]
    assert (verified["continue_final_message"], verified["max_tokens"]) == (True, 1)
    assert "stop" not in verified
    assert "stream" not in verified
    models = given.usage["pointsman"]["models"]
    assert (models["large"]["prompt_tokens"], models["large"]["completion_tokens"]) == (14, 1)
    (spent,) = made.charged
    assert spent.money == pytest.approx(given.usage["pointsman"]["cost"])


async def test_a_draft_that_it_finds_improbable_makes_way() -> None:
    async with table([says("small", "it is 4"), reader(-2.0)], BLOCK) as made:
        given = await made.ask()
    assert given.text == LARGE
    assert [why for _, why, _ in given.calls] == ["draft", "verify", "last"]


async def test_of_two_drafts_the_surer_one_is_released_where_the_last_member_fails() -> None:
    block = {"cascade": ["small", "medium", "large"], "verifier": "reader", "until": {"sure": 0.99}}
    models = [says("small", "it is 4"), says("medium", DRAFT), says("large", LARGE)]
    unsure = Reader("reader", lambda _, number: "", confidence=lambda text: -0.1 if "✗" in text else -0.5)
    async with table([*models, unsure], block) as made:
        made.models["large"].faults[-2] = Fault("kill")
        unsure.confidence = lambda text: -1.5 if text == " 4" and len(unsure.requests) == 1 else -0.1
        given = await made.ask()
    assert given.text == DRAFT


@pytest.mark.parametrize("fault", ["kill", "status", "html"])
async def test_without_a_verifier_no_draft_is_sure(fault: str) -> None:
    block = {**BLOCK, "verifier": "reader"}
    async with table([says("small", DRAFT), says("large", LARGE), reader(name="reader")], block) as made:
        made.models["reader"].faults[-2] = Fault(fault)
        given = await made.ask()
    assert given.text == LARGE
    assert given.usage["pointsman"]["calls"][1]["error"] == (
        "garbage" if fault == "html" else fault.replace("kill", "connect")
    )


async def test_a_verifier_that_hangs_has_failed_after_its_time() -> None:
    block = {**BLOCK, "verifier": "reader", "budget": {"each": 0.3}}
    async with table([says("small", DRAFT), says("large", LARGE), reader(name="reader")], block) as made:
        made.models["reader"].faults[-2] = Fault("silent")
        given = await made.ask()
    assert (given.text, given.usage["pointsman"]["calls"][1]["error"]) == (LARGE, "timeout")


async def test_a_server_that_says_no_probabilities_of_prompts_is_counted() -> None:
    async with table([says("small", DRAFT), says("large", LARGE)], BLOCK) as made:
        given = await made.ask()
        assert made.panel.metrics.unjudged == {"no_prompt_logprobs": 1}
    assert given.text == LARGE


async def test_a_draft_that_calls_tools_is_not_verified() -> None:
    tools = [{"type": "function", "function": {"name": "look"}}]
    async with table([calls("small", "I look.", ("1", "look", "{}")), reader()], BLOCK) as made:
        given = await made.ask(tools=tools)
        assert made.panel.metrics.unjudged == {"tools": 1}
        made.models["small"].calls = ()  # type: ignore[attr-defined]
        sure = await made.ask(tools=tools)
        verified = made.models["large"].requests[-1]
    assert (given.text, sure.text) == (LARGE, "I look.")
    assert (verified["tools"], verified["tool_choice"]) == (tools, "none")


async def test_a_verifier_outside_of_the_trust_domain_reads_nothing() -> None:
    cards = {name: {"trust": ["in", "out"]} for name in ("small", "large")}
    block = {**BLOCK, "verifier": "reader", "cards": {**cards, "reader": {"trust": ["out"]}}, "trust": {"header": "x"}}
    async with table([says("small", DRAFT), says("large", LARGE), reader(name="reader")], block) as made:
        inside = await made.ask(headers={"x": "in"})
        asked = made.asked
        outside = await made.ask(headers={"x": "out"})
    assert (inside.text, asked["reader"]) == (LARGE, 0)
    assert outside.text == DRAFT


async def test_a_client_that_leaves_ends_the_reading() -> None:
    model = reader()
    model.faults[-2] = Fault("silent")
    async with table([says("small", DRAFT), model], BLOCK) as made:
        asking = asyncio.create_task(made.ask(stream=True))
        await until(lambda: bool(model.requests))
        asking.cancel()
        await asyncio.wait([asking])
        await until(lambda: not model.connections)
        assert model.gone == 1
        assert made.panel.metrics.answers["cascade", "cancelled"] == 1
    assert len(made.charged) == 1


async def test_a_calibration_is_of_one_verifier(tmp_path: Any) -> None:
    (tmp_path / "curve.json").write_text(
        '{"by": "least", "model": "small", "verifier": "other", "curve": [[0.1, 0.9]]}'
    )
    until_ = {"sure": 0.9, "calibration": "curve.json"}
    with pytest.raises(ValueError, match="the calibration has the verifier other, and not large"):
        async with table([says("small", DRAFT), reader()], {**BLOCK, "until": until_}, tmp_path):
            pass
    (tmp_path / "curve.json").write_text(
        '{"by": "least", "model": "small", "verifier": "large", "curve": [[0.1, 0.9]]}'
    )
    async with table([says("small", DRAFT), reader(-2.0)], {**BLOCK, "until": until_}, tmp_path) as made:
        given = await made.ask()
    assert given.text == DRAFT  # exp(-2) is over 0.1


def test_a_verifier_is_a_model_of_the_panel() -> None:
    spec = PanelSpec.model_validate({**BLOCK, "verifier": "reader"})
    assert spec.models == ("small", "reader", "large")
    assert spec.fallback == "large"
    assert [(call.model, call.why, call.always, call.times) for call in spec.planned()] == [
        ("small", "draft", True, 1),
        ("reader", "verify", False, 1),
        ("large", "last", False, 1),
    ]
    assert (("verifier",), "large") in [*PanelSpec.mentions(BLOCK)]
    with pytest.raises(ValidationError, match="cannot be by margin"):
        PanelSpec.model_validate({**BLOCK, "until": {"sure": 0.9, "by": "margin"}})
    with pytest.raises(ValidationError, match="vote does not take verifier"):
        PanelSpec.model_validate({"vote": ["a", "b"], "verifier": "a"})


# Where the draft stands in a prompt


def prompt(*tokens: tuple[str, float] | None) -> dict[str, Any]:
    """The answer of a server whose prompt has these tokens."""
    entries = [
        None
        if one is None
        else {str(at): {"logprob": one[1], "rank": 1, "decoded_token": one[0]}, "9": {"logprob": 0.0}}
        for at, one in enumerate(tokens)
    ]
    return {"prompt_logprobs": entries}


@pytest.mark.parametrize(
    ("tokens", "text", "read_", "least"),
    [
        ((None, ("<bot>", -9.0), ("it", -0.1), (" is", -0.2), (" 4", -0.3)), "it is 4\n", 3, -0.3),
        (
            (None, ("<bot>", -9.0), ("\n it", -0.1), (" is", -0.2)),
            " it is",
            2,
            -0.2,
        ),  # the first one has more before it
        ((None, ("go", -9.0), ("go", -0.5), ("go", -0.5)), "gogo", 2, -0.5),  # no more than the draft
        ((None, (":", -9.0), ("a ", -0.1), ("\ufffd", -0.2), ("\ufffd", -0.3), (" b", -0.1)), "a ♞ b", 4, -0.3),
        ((None, (":", -9.0), ("\ufffd", -0.2), ("", -0.3), ("é", -0.1)), "♞é", 2, -0.3),
        ((None, (":", -9.0), ("1", -0.1), ("2", -0.1), ("", -0.6)), "12", 3, -0.6),
    ],
)
def test_the_tokens_of_a_draft_are_found_at_the_end_of_the_prompt(
    tokens: Any, text: str, read_: int, least: float
) -> None:
    found = read(prompt(*tokens), text)
    assert found is not None
    assert (found.tokens, found.least) == (read_, least)
    assert 0 < MEASURES["mean"].read(found) < 1


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ({}, "it"),
        ({"prompt_logprobs": None}, "it"),
        ({"prompt_logprobs": "it"}, "it"),
        (prompt(), "it"),
        (prompt(None, (":", -9.0), ("so", -0.1)), "it"),
        (prompt(None, ("s", -9.0)), "it is"),  # a prompt that was cut
        (prompt(None, (":", -9.0)), "   "),
        ({"prompt_logprobs": [None, {}]}, "it"),
        ({"prompt_logprobs": [None, {"1": {"decoded_token": 1, "logprob": 0}}]}, "it"),
        ({"prompt_logprobs": [None, {"1": {"decoded_token": "it", "logprob": True}}]}, "it"),
        ({"prompt_logprobs": [None, {"1": {"decoded_token": "it"}}]}, "it"),
    ],
)
def test_a_prompt_without_the_draft_says_nothing(answer: Any, text: str) -> None:
    assert read(answer, text) is None


def test_a_draft_loses_the_spaces_that_templates_drop() -> None:
    assert messages({"messages": ASK}, " it\n")[-1] == {"role": "assistant", "content": "it"}
