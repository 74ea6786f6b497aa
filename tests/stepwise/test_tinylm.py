"""The loop over two real language models and their real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from examples.tinylm import problems
from examples.tinylm.server import serve
from stepwise.asking.ready import Stepwise
from stepwise.spec import StepwiseSpec
from tests.stepwise.fakes import answer, text_of
from upstream.client import CompletionStream, ModelClient
from upstream.endpoint import ContinuationMode, Endpoint
from upstream.writer import Means

QUESTIONS = [problems.make(problems.SPLITS["dev"] + i, 1 + i % 4).question for i in range(8)]


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async with serve(("small", "large"), "127.0.0.1", 0) as running:
        yield running.url


@asynccontextmanager
async def started(
    url: str, small: str = "tinylm-small", large: str = "tinylm-large", **block: Any
) -> AsyncIterator[Stepwise]:
    ends = {
        "small": Endpoint(url, small, price_input=0.05, price_output=0.2),
        "large": Endpoint(url, large, price_input=0.9, price_output=0.9),
    }
    stepwise = StepwiseSpec.model_validate({"small": "small", "large": "large", **block}).stepwise(Means(ends, Path()))
    try:
        await stepwise.start()
        yield stepwise
    finally:
        await stepwise.close()


async def ask(stepwise: Stepwise, question: str) -> tuple[str, dict[str, Any]]:
    body = {
        "model": "auto", "messages": [{"role": "user", "content": question}], "temperature": 0, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    async with await answer(stepwise, body, {}) as reply:
        data = b"".join([part async for part in reply.body])
    events = [json.loads(event.removeprefix("data: ")) for event in data.decode().strip().split("\n\n")[:-1]]
    return text_of(events), events[-1]["usage"]


async def directly(url: str, model: str, question: str) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0}
    async with aiohttp.ClientSession() as http, http.post(f"{url}/v1/chat/completions", json=body) as reply:
        text: str = (await reply.json())["choices"][0]["message"]["content"]
        return text


async def test_the_probe_sees_what_the_server_can_do(url: str) -> None:
    async with started(url, strategy="random") as stepwise:
        records = stepwise.records()
    for record in records.values():
        assert record.mode is ContinuationMode.FINAL_MESSAGE
        assert (record.top_logprobs, record.usage, record.stop_reason) == (5, True, True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "block",
    [
        {"strategy": "random", "p": 0.5},
        {"strategy": "random", "p": 1.0},
        {"strategy": "always-small"},
    ],
)
async def test_a_model_paired_with_itself_writes_what_it_writes_alone(url: str, block: dict[str, Any]) -> None:
    # Every step goes through the harness; with p, some are rejected, written anew by its twin and handed back.
    async with started(url, large="tinylm-small", **block) as stepwise:
        for question in QUESTIONS:
            text, usage = await ask(stepwise, question)
            assert text == await directly(url, "tinylm-small", question), usage


@pytest.mark.slow
async def test_the_small_model_is_asked_once_and_once_more_for_each_redo(url: str) -> None:
    async with started(url, strategy="random", p=0.5, max_redos=30) as stepwise:
        usages = [(await ask(stepwise, question))[1] for question in QUESTIONS]
    for usage in usages:
        ours = usage["pointsman"]
        last_redone = ours["steps"][-1]["model"] == "large"  # then nobody had to go on after it
        assert ours["models"]["small"]["requests"] == 1 + ours["redos"] - last_redone
        assert usage["completion_tokens"] == sum(model["completion_tokens"] for model in ours["models"].values())


@pytest.mark.volume
async def test_prompts_that_nobody_counted_are_told_as_the_server_counts_them(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 200 answers: tinylm counts only streams that come to their end."""
    asked: list[tuple[str, str, Any]] = []
    opened = ModelClient.open

    async def open_(self: ModelClient, path: str, body: Any, *more: Any) -> CompletionStream:
        asked.append((self.endpoint.model, path, body))
        return await opened(self, path, body, *more)

    monkeypatch.setattr(ModelClient, "open", open_)
    estimated = 0
    async with started(url, strategy="random", p=0.4) as stepwise, aiohttp.ClientSession() as http:
        for seed in range(200):
            asked.clear()
            problem = problems.make(problems.SPLITS["dev"] + 100 + seed, 1 + seed % 4)
            _, usage = await ask(stepwise, problem.question)
            counted = 0
            for model, path, body in asked:
                plain = {key: value for key, value in body.items() if not key.startswith("stream")}
                async with http.post(url + path, json={**plain, "model": model, "max_tokens": 1}) as reply:
                    counted += (await reply.json())["usage"]["prompt_tokens"]
            assert usage["prompt_tokens"] == pytest.approx(counted, rel=0.03)
            estimated += usage["pointsman"]["estimated"]
            models = usage["pointsman"]["models"]
            prices = {"small": (0.05, 0.2), "large": (0.9, 0.9)}
            cost = sum(
                one["prompt_tokens"] * prices[name][0] + one["completion_tokens"] * prices[name][1]
                for name, one in models.items()
            )
            assert usage["pointsman"]["cost"] == pytest.approx(cost / 1e6, rel=1e-4)
    assert estimated > 100


@pytest.mark.slow
async def test_a_pair_without_a_trained_policy_starts_cold(url: str) -> None:
    async with started(url) as stepwise:
        answers = await asyncio.gather(*(ask(stepwise, question) for question in QUESTIONS))
    assert all(text for text, _ in answers)
    assert {usage["pointsman"]["strategy"] for _, usage in answers} == {"cold-start"}
