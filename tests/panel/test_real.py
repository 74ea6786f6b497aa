"""Judges, planners and writers on a real server with a real small model: that its replies are read, not that they are
wise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from examples.llama import MISSING, Llama, llama
from panel.answer import Panel
from panel.kinds.plan import letters
from panel.spec import PanelSpec
from tests.patience import PATIENCE
from upstream.client import ModelClient
from upstream.writer import Call, Means

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"{' and '.join(MISSING)}: `make real` installs them"),
]

KINDS: dict[str, dict[str, Any]] = {
    "rank": {"rank": ["a", "b"], "judges": ["c"]},
    "merge": {"merge": ["a", "b"], "writer": "c"},
    "rounds": {"rounds": ["a", "b"], "planner": "c"},
    "plan": {
        "plan": {
            "short": {"model": "a", "about": "short questions"},
            "steps": {"model": "b", "prompt": "Think step by step.", "about": "sums"},
        },
        "planner": "c",
    },
}
QUESTION = "A shop sells pens at 3 dollars. Tom buys 4 pens and a book for 7 dollars. How much does he pay?"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llama]:
    with llama(tmp_path_factory.mktemp("llama")) as running:
        yield running


@pytest.mark.parametrize("kind", KINDS)
async def test_a_real_model_judges_plans_and_writes(server: Llama, kind: str) -> None:
    block = {**KINDS[kind], "budget": {"seconds": PATIENCE, "each": PATIENCE}}
    panel = PanelSpec.model_validate(block).build(Means(dict.fromkeys("abc", server.patient), Path()))
    body = {"max_tokens": 40, "temperature": 1.5, "messages": [{"role": "user", "content": QUESTION}]}
    async with await panel.answer(Call({"model": "auto", **body}, {})) as answer:
        said = orjson.loads(b"".join([part async for part in answer.body]))
    await panel.close()
    assert answer.status == 200
    assert said["choices"][0]["message"]["content"].strip()
    calls = said["usage"]["pointsman"]["calls"]
    assert not [call for call in calls if "error" in call]
    assert all(call["prompt_tokens"] > 0 for call in calls)
    assert "c" in {call["model"] for call in calls}
    assert isinstance(panel, Panel)
    assert panel.metrics.unjudged == {}


async def test_the_letters_of_a_real_planner_have_probabilities(server: Llama) -> None:
    client = ModelClient(server.patient)
    ask = "A: sums\nB: poems\n\nWhich one is 3 + 4? Reply with its letter alone: A or B."
    body = {"temperature": 0, "max_tokens": 8, "stream": True, "logprobs": True, "top_logprobs": 5}
    stream = await client.open("/v1/chat/completions", {**body, "messages": [{"role": "user", "content": ask}]})
    entries: list[Any] = []
    while (piece := await stream.next()) is not None:
        entries += [token.raw for token in piece.tokens]
    await client.close()
    shares = letters(entries, 2)
    assert 0 < sum(shares) <= 1.001
