from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import ValidationError

from panel.kinds.merge import PROMPTS
from panel.spec import PanelSpec
from tests.panel.fakes import says, table, until
from tests.stepwise.fakes import Fault

MERGE = {"merge": ["a", "b"], "writer": "w"}


def three() -> list[Any]:
    return [says("a", "draft of a"), says("b", "draft of b"), says("w", "the whole answer")]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("style", ["synthesis", "refine"])
async def test_the_writer_reads_all_drafts_in_the_members_order(stream: bool, style: str) -> None:
    models = three()
    models[0].delay = 0.02  # the later one is there first
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    async with table(models, {**MERGE, "style": style}) as made:
        given = await made.ask(stream=stream, messages=turns)
        (asked,) = models[2].requests
    assert (given.text, given.headers["x-pointsman-panel"]) == ("the whole answer", "merge")
    lead, question, drafts = asked["messages"]
    assert lead == {"role": "system", "content": f"Be brief.\n\n{PROMPTS[style]}"}
    assert question == turns[1]
    assert "Draft 1:\n\ndraft of a\n\nDraft 2:\n\ndraft of b\n\n" in drafts["content"]
    assert asked["temperature"] == 0
    assert given.calls == [("a", "draft", False), ("b", "draft", False), ("w", "write", True)]


async def test_the_same_drafts_give_the_same_request() -> None:
    async with table(three(), MERGE) as made:
        await made.ask()
        await made.ask()
        one, other = made.models["w"].requests
    assert one == other


async def test_the_writer_s_text_reaches_the_client_as_it_comes() -> None:
    models = three()
    models[2].released = asyncio.Semaphore(1)
    async with table(models, MERGE) as made:
        answer = await made.panel.answer(made.call(stream=True))
        assert b'"the"' in await anext(answer.body)
        await answer.aclose()
        await until(lambda: not models[2].connections)


async def test_a_member_that_fails_is_done_without() -> None:
    async with table(three(), MERGE) as made:
        made.models["a"].faults[-2] = Fault("kill")
        given = await made.ask(temperature=0.5)
        (asked,) = made.models["w"].requests
    assert given.text == "the whole answer"
    assert "Draft 1:\n\ndraft of b" in asked["messages"][-1]["content"]
    assert asked["temperature"] == 0.5


async def test_without_a_quorum_there_is_no_answer_and_without_a_writer_the_best_draft() -> None:
    block = {**MERGE, "quorum": 2, "cards": {"a": {"quality": 0.2}}}
    async with table(three(), block) as made:
        made.models["w"].faults[-2] = Fault("status", status=500)
        best = await made.ask()
        made.models["a"].faults[-2] = Fault("status", status=500)
        none = await made.ask()
        assert made.panel.unfit(made.call(tools=[{}])) == "tools"
    assert (best.text, best.headers["x-pointsman-model"]) == ("draft of b", "b")
    assert none.status == 502


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"merge": ["a"]}, "merge needs a `writer`"),
        ({**MERGE, "merge": ["a", "a"]}, "names a model twice"),
        ({**MERGE, "quorum": 3}, "only 2 drafts"),
        ({**MERGE, "style": "poem"}, "style"),
    ],
)
def test_what_a_block_cannot_say(block: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        PanelSpec.model_validate(block)
