"""A real server with a real small model, as both models of a pair: what it can do, what it is asked, what comes out.

`python -m bench.real` asks 30 questions, and takes the times.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import real
from examples.llama import MISSING, PATIENCE, Llama, llama
from stepwise.asking.continuation import Continuation, build
from stepwise.asking.probe import marks, probe
from stepwise.asking.ready import Stepwise
from stepwise.policy import MARKS
from upstream.client import ModelClient
from upstream.endpoint import ContinuationMode
from upstream.tokens import TOP

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"{' and '.join(MISSING)}: `make real` installs them"),
]

QUESTIONS = (
    "Explain in three short paragraphs why the sky is blue.",
    "A shop sells pens at 3 dollars. Tom buys 4 pens and a book for 7 dollars. How much does he pay?",
)
THINKS = (
    "{%- for m in messages -%}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant\n{{ '<think>\n' }}{%- endif -%}"
)
"""The model's own template, but that it begins the answer with a thought."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llama]:
    with llama(tmp_path_factory.mktemp("llama")) as running:
        yield running


@pytest.fixture
async def both(server: Llama, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stepwise]:
    monkeypatch.setattr("stepwise.asking.ready._PROBE", PATIENCE)
    stepwise = real.pair(server)
    await stepwise.start()
    yield stepwise
    await stepwise.close()


async def test_the_probe_finds_what_this_server_can_do(server: Llama) -> None:
    upstream = ModelClient(server.patient)
    found = await probe(upstream, {})
    assert found.mode is ContinuationMode.FINAL_MESSAGE
    assert (found.top_logprobs, found.usage, found.running_usage, found.stop_reason) == (TOP, True, True, False)
    assert found.thoughts == ""
    assert found.template is not None
    assert "<|im_start|>" in found.template
    for kind in MARKS:  # this model rates nothing with a digit, and this server tells nothing of its prompt
        assert not await marks(upstream, kind, {}, found)
    await upstream.close()


async def test_answers_have_clean_borders_and_cost_no_request_that_is_not_told(server: Llama, both: Stepwise) -> None:
    redos = 0
    for question in QUESTIONS:
        found, whole = await real.answer(server, both, question, 120)
        ours = whole["usage"]["pointsman"]
        models = ours["models"]
        redos += ours["redos"]
        assert len(found.steps) >= 2
        assert not found.whole
        assert not ours["estimated"]  # although most streams were cut off
        last_was_rewritten = ours["steps"][-1]["model"] == "large"
        assert models["small"]["requests"] == 1 + ours["redos"] - last_was_rewritten
        assert models["large"]["requests"] == ours["redos"]
        assert found.told == found.logged
        assert whole["choices"][0]["message"]["content"].strip()
        assert found.clean
    assert redos


async def test_a_stream_that_is_cut_off_is_counted_as_the_server_counts(server: Llama) -> None:
    upstream = ModelClient(server.patient)
    for question, prefix in ((QUESTIONS[0], ""), (QUESTIONS[1], "Each pen costs 3 dollars, so that 4 pens cost")):
        request: dict[str, Any] = {"messages": [{"role": "user", "content": question}], "temperature": 0}
        mode = ContinuationMode.FINAL_MESSAGE
        path, body = build(mode, request, prefix, Continuation(60, top_logprobs=5, running_usage=True))
        stream = await upstream.open(path, body)
        for _ in range(5):
            await stream.next()
        stream.close()
        del body["stream"], body["stream_options"]
        whole = await upstream.ask(path, {**body, "max_tokens": 1})
        assert stream.counts is not None
        assert stream.counts.prompt == whole["usage"]["prompt_tokens"]
        assert abs(stream.counts.completion - stream.received) <= 1
    await upstream.close()


async def test_a_client_that_leaves_stops_the_model(server: Llama, both: Stepwise) -> None:
    before = await real.finished(server)
    assert await real.cancelled(server, both, QUESTIONS[0]) >= 0
    async with asyncio.timeout(PATIENCE):
        while server.finished <= before:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    last = server.log.read_text(errors="replace").rsplit("stop processing: n_tokens = ", 1)[1]
    assert int(last.split(",")[0]) < 1000


async def test_a_model_whose_template_begins_its_thoughts_is_continued_within_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By completions, with the template that the server tells."""
    monkeypatch.setattr("stepwise.asking.ready._PROBE", PATIENCE)
    with llama(tmp_path, THINKS) as server:
        stepwise = real.pair(server)
        await stepwise.start()
        known = stepwise.records()["small"]
        assert (known.modes, known.thoughts) == ({"completions": "honoured"}, "text")
        assert (known.top_logprobs, known.running_usage) == (TOP, True)
        found, whole = await real.answer(server, stepwise, QUESTIONS[1], 80)
        await stepwise.close()
    assert whole["choices"][0]["message"]["content"].startswith("<think>\n")
    assert {model for model, _ in found.steps} == {"small", "large"}
    assert found.clean
    assert found.told == found.logged
