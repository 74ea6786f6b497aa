"""Grades through a real Envoy: of every API, whole and streamed, once, from whoever asked; and what they change."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from config.watch import load
from tests.extproc.live import echoes, envoy, router

pytestmark = pytest.mark.e2e

JSON = dict[str, Any]

POLICY = """\
version: 1
models: {small: {name: m-small, quality: 0.6}, large: {name: m-large, quality: 0.5}}
default: small
decisions:
  - {name: learned, route: {pick: [small, large], by: {ema: {explore: 0}}}}
settings: {deadline: 2s}
"""
TEXT = [{"role": "user", "content": "Hello"}]
CALLS: dict[str, tuple[str, JSON]] = {
    "chat": ("/v1/chat/completions", {"model": "auto", "messages": TEXT}),
    "completions": ("/v1/completions", {"model": "auto", "prompt": "Hello"}),
    "messages": ("/v1/messages", {"model": "auto", "max_tokens": 9, "messages": TEXT}),
    "responses": ("/v1/responses", {"model": "auto", "input": "Hello"}),
}


class Client:
    def __init__(self, base: str, session: aiohttp.ClientSession) -> None:
        self.base = base
        self.session = session

    async def ask(self, path: str, body: JSON, **headers: str) -> tuple[str, str]:
        """The model, and the id of the answer."""
        told = {key.replace("_", "-"): value for key, value in headers.items()}
        async with self.session.post(self.base + path, json=body, headers=told) as answer:
            text = await answer.text()
            assert answer.status == 200, text
            found = re.search(r'"id": ?"([^"]+)"', text)
            assert found is not None, text
            return answer.headers["x-pointsman-model"], found[1]

    async def grade(self, session: str | None = None, **body: Any) -> tuple[int, str]:
        headers = {} if session is None else {"x-session-id": session}
        async with self.session.post(f"{self.base}/v1/feedback", json=body, headers=headers) as answer:
            told: JSON = json.loads(await answer.text())
            return answer.status, "taken" if told == {"taken": True} else told["error"]["code"]


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY)
    engine = load(policy).engine
    async with AsyncExitStack() as stack:
        serving = await stack.enter_async_context(router(policy, tmp_path))
        upstreams = await stack.enter_async_context(echoes(engine))
        base = await stack.enter_async_context(envoy(engine, serving.listen, upstreams, tmp_path))
        yield Client(base, await stack.enter_async_context(aiohttp.ClientSession()))


async def test_answers_are_graded_by_their_ids_and_models_chosen_by_their_grades(client: Client) -> None:
    for api, (path, body) in CALLS.items():
        for streamed in (False, True):
            model, answer = await client.ask(path, body | {"stream": streamed}, x_session_id=api)
            assert model == "small"
            assert await client.grade("another", id=answer, score=0) == (404, "unknown_answer"), api
            assert await client.grade(None, id=answer, score=0) == (404, "unknown_answer")
            assert await client.grade(api, id=answer, score=1) == (200, "taken"), (api, streamed, answer)
            assert await client.grade(api, id=answer, score=1) == (409, "graded_already")
    path, body = CALLS["chat"]
    for number in range(12):  # eight good grades and two of its own quality stand against them
        model, answer = await client.ask(path, body, x_session_id=f"s{number}")
        if model == "large":
            break
        assert await client.grade(f"s{number}", id=answer, score=0) == (200, "taken")
    assert 8 <= number < 12
    for wrong in (
        {"id": answer},
        {"id": 3, "score": 1},
        {"id": answer, "score": 2},
        {"id": answer, "score": 1, "x": 1},
    ):
        assert await client.grade(None, **wrong) == (400, "invalid_feedback")
    assert await client.grade(None, id="chatcmpl-nobody", score=1) == (404, "unknown_answer")
