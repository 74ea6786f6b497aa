"""A real server with a real small model, as both models of a pair: what it can do, what it is asked, what comes out."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest

from stepwise.continuation import Continuation, build
from stepwise.pair import PairModel, Setup
from stepwise.probe import marks, probe
from stepwise.ready import Stepwise, unknown
from stepwise.steps import Ends, StepLimits
from stepwise.strategies.chance import Random
from stepwise.strategy import Strategy
from tests.patience import PATIENCE
from tests.stepwise.fakes import Pair, answer, text_of
from tests.stepwise.llama import MISSING, Llama, llama
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


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llama]:
    with llama(tmp_path_factory.mktemp("llama")) as running:
        yield running


class Real(Pair):
    """The same server as both models."""

    def __init__(self, stepwise: Stepwise, strategy: Strategy) -> None:
        self.stepwise, self.strategy = stepwise, strategy


@pytest.fixture
async def both(server: Llama, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Real]:
    monkeypatch.setattr("stepwise.ready._PROBE", PATIENCE)
    models = [PairModel(n, ModelClient(server.patient), unknown(server.patient)) for n in ("small", "large")]
    strategy = Random(0.5, seed=3)
    stepwise = Stepwise(Setup(models[0], models[1], strategy, StepLimits(ends=Ends.AUTO)))
    await stepwise.start()
    try:
        yield Real(stepwise, strategy)
    finally:
        await stepwise.close()


async def settled(server: Llama) -> int:
    """`server.finished`, once nothing is under way: an abort is noticed a token later."""
    async with asyncio.timeout(PATIENCE), aiohttp.ClientSession(server.url) as http:
        while any(slot["is_processing"] for slot in await (await http.get("/slots")).json()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await asyncio.sleep(0.2)  # for the log
    return server.finished


async def test_the_probe_finds_what_this_server_can_do(server: Llama) -> None:
    upstream = ModelClient(server.patient)
    found = await probe(upstream, {})
    assert found.mode is ContinuationMode.FINAL_MESSAGE
    assert (found.top_logprobs, found.usage, found.running_usage, found.stop_reason) == (TOP, True, True, False)
    assert not await marks(upstream, {})  # this model rates nothing with a digit
    await upstream.close()


async def test_answers_have_clean_borders_and_cost_no_request_that_is_not_told(server: Llama, both: Real) -> None:
    redos = 0
    for question in QUESTIONS:
        before = await settled(server)
        status, events = await both.ask(question, temperature=0, max_tokens=120)
        assert status == 200
        ours = events[-1]["usage"]["pointsman"]
        models = ours["models"]
        redos += ours["redos"]
        assert ours["steps"]
        assert not ours["estimated"]  # although most streams were cut off
        last_was_rewritten = ours["steps"][-1]["model"] == "large"
        assert models["small"]["requests"] == 1 + ours["redos"] - last_was_rewritten
        assert models["large"]["requests"] == ours["redos"]
        asked = models["small"]["requests"] + models["large"]["requests"]
        assert await settled(server) == before + asked
        text = text_of(events)
        assert text.strip()
        assert "\n\n\n" not in text
        assert not any(step and step[0].isspace() for step in text.split("\n\n"))
        assert not re.search(r"[a-z][.!?][A-Z]|[.!?]  \S", text), text  # a space too few or too many after a sentence
        async with aiohttp.ClientSession(server.url) as http:
            tokens = await (await http.post("/tokenize", json={"content": text})).json()
            assert (await (await http.post("/detokenize", json=tokens)).json())["content"] == text
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


async def test_a_client_that_leaves_stops_the_model(server: Llama, both: Real) -> None:
    before = await settled(server)
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": QUESTIONS[0]}], "stream": True, "temperature": 0, "max_tokens": 1500,
    }  # fmt: skip
    async with await answer(both.stepwise, body, {}) as reply:
        await anext(reply.body)
    async with asyncio.timeout(PATIENCE):
        while server.finished <= before:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    last = server.log.read_text(errors="replace").rsplit("stop processing: n_tokens = ", 1)[1]
    assert int(last.split(",")[0]) < 1000
