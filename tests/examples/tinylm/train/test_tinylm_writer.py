"""What is collected in this process is what the endpoints would have written."""

from __future__ import annotations

import asyncio
from collections import Counter

import numpy as np
import pytest

from examples.tinylm import problems
from examples.tinylm.server import serve
from stepwise.steps import StepLimits
from upstream.endpoint import Endpoint

pytest.importorskip("pyarrow", reason="training needs `pip install -e .[train]`")

from examples.tinylm.writer import _together, open_writer
from stepwise.train.endpoints import EndpointWriter
from stepwise.train.tree import Question, Tree
from stepwise.train.walk import follow
from tests.patience import PATIENCE

PATHS = ("", "R", "KR", "RRRRRRRR")


def ask(seed: int) -> Question:
    made = problems.make(seed, 1 + seed % 4)
    return Question(str(seed), made.question, str(made.answer))


async def test_batches_in_process_and_endpoints_grow_the_same_trees() -> None:
    limits = StepLimits()
    questions = [ask(seed) for seed in range(6)]
    here, there = ([Tree(q, limits, 4096, 30) for q in questions] for _ in range(2))
    async with serve() as running, open_writer(limits) as batches:
        slow = dict.fromkeys(("connect_timeout", "first_timeout", "idle_timeout"), PATIENCE)
        small, large = (Endpoint(running.url, f"tinylm-{size}", **slow) for size in ("small", "large"))
        async with EndpointWriter(small, large, limits, max_tokens=400) as endpoints:
            for tree in here:
                await tree.unstepped(batches)
            await asyncio.gather(*(follow(tree, path, batches) for tree in here for path in PATHS))
            # One after the other: which answers the server writes in one batch is a matter of the machine's load, and
            # of the batch are the last digits, which decide between two tokens that are nearly as likely.
            for tree in there:
                await tree.unstepped(endpoints)
                for path in PATHS:
                    await follow(tree, path, endpoints)
    for a, b in zip(here, there, strict=True):
        assert a.nodes.keys() == b.nodes.keys()
        assert a.plain is not None
        assert b.plain is not None
        assert a.plain.text == b.plain.text
        for path, node in a.nodes.items():
            other = b.nodes[path]
            assert (node.draft, node.redo, node.prefix) == (other.draft, other.redo, other.prefix)
            assert node.vector is not None
            assert node.vector == pytest.approx(other.vector, abs=2e-3)


async def test_at_a_temperature_tokens_are_drawn_by_their_probabilities() -> None:
    question, seen = Question("0", "Work out 17 * 3 + 250 - 9 * 9.", ""), Counter[str]()
    async with open_writer(StepLimits(), temperature=0.7) as writer:
        for _ in range(3):
            texts = await asyncio.gather(*(writer.small(question, "") for _ in range(64)))
            seen.update(text.tokens[0].text for text in texts)
    first = texts[0].tokens[0]
    async with open_writer(StepLimits()) as writer:
        [likely] = {text.tokens[0] for text in await asyncio.gather(*(writer.small(question, "") for _ in range(8)))}
    warm = np.exp(np.array(likely.top) / 0.7)
    assert seen[likely.text] / seen.total() == pytest.approx(warm[0] / warm.sum(), abs=0.1)
    assert likely.top == pytest.approx(first.top, abs=1e-4)  # what is told is the model's own probability


async def test_the_large_model_prefers_right_steps() -> None:
    async with open_writer(StepLimits()) as writer:
        question = Question("0", "Work out 12 + 30 * 4.", "132")
        good, read = await writer.verify(question, "", "First, 30 * 4 = 120, which leaves 12 + 120.\n\n")
        bad, _ = await writer.verify(question, "", "First, 30 * 4 = 110, which leaves 12 + 110.\n\n")
    assert read > 10
    assert good > bad + 0.1


def test_long_texts_run_few_at_a_time_for_attention_grows_with_the_square_of_their_length() -> None:
    assert _together([40] * 100) == 64
    assert _together([400] * 100) == 64
    assert _together([100] * 3 + [2000] * 100) == 3
    assert _together([2000] * 100) == 2
    assert _together([9000]) == 1
