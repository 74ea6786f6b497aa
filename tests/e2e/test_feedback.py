"""Grades through a real Envoy: of every API, whole and streamed, once, from whoever asked; and what they change."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import openai
import pytest
import requests
from aiohttp import web
from google import genai

from config.watch import load
from tests.extproc.live import ROOT, echoes, envoy, router
from tests.extproc.watching.streams import plainly

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


def _snippets() -> list[tuple[str, str]]:
    """Language and text of what the docs say of SDKs."""
    page = (ROOT / "docs/choices.md").read_text()
    return re.findall(r"```(python|js)\n(.*?)```", page.partition("## Grades")[2].partition("\n## ")[0], re.DOTALL)


async def _gemini(request: web.Request) -> web.Response:
    content = {"role": "model", "parts": [{"text": "Hello"}]}
    answer = {"candidates": [{"content": content, "finishReason": "STOP"}], "responseId": "of-gemini"}
    return web.json_response(answer)


@pytest.fixture
async def google(tmp_path: Path) -> AsyncIterator[str]:
    """The base URL of an Envoy before a model that speaks Gemini's API."""
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY)
    engine = load(policy).engine
    served = web.Application()
    served.router.add_post("/{path:.*}", _gemini)
    runner = web.AppRunner(served)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with AsyncExitStack() as stack:
        stack.push_async_callback(runner.cleanup)
        serving = await stack.enter_async_context(router(policy, tmp_path))
        yield await stack.enter_async_context(
            envoy(engine, serving.listen, dict.fromkeys(engine.models, url), tmp_path)
        )


def _run(snippet: str, base: str, **names: Any) -> None:
    exec(snippet.replace("https://gateway", base), {"messages": TEXT, "requests": requests, **names})


async def test_the_docs_way_to_grade_with_openai_s_and_anthropic_s_sdks(client: Client) -> None:
    python = [text for language, text in _snippets() if language == "python"]
    assert len(python) == 3
    with (
        openai.OpenAI(base_url=f"{client.base}/v1", api_key="k") as chat,
        anthropic.Anthropic(base_url=client.base, api_key="k") as message,
    ):
        await asyncio.to_thread(_run, python[0], client.base, client=chat)
        await asyncio.to_thread(_run, python[1], client.base, client=message)
        answer = await asyncio.to_thread(chat.chat.completions.create, model="auto", messages=TEXT)
        told = {"id": answer.id, "score": 1.0}
        await asyncio.to_thread(chat.post, "/feedback", body=told, cast_to=object)
        with pytest.raises(openai.ConflictError, match="graded already"):
            await asyncio.to_thread(chat.post, "/feedback", body=told, cast_to=object)


@pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")  # Google's own
async def test_the_docs_way_to_grade_with_google_s_sdk(google: str) -> None:
    snippet = [text for language, text in _snippets() if language == "python"][2]
    with genai.Client(api_key="k", http_options=plainly(google)) as client:
        await asyncio.to_thread(_run, snippet, google, client=client)
    again = await asyncio.to_thread(
        requests.post, f"{google}/v1/feedback", json={"id": "of-gemini", "score": 1}, timeout=60
    )
    assert again.json()["error"]["code"] == "graded_already"


OPENAI_NODE = "6.49.0"


@pytest.mark.slow
async def test_the_docs_way_to_grade_with_openai_s_sdk_for_node(client: Client, tmp_path: Path) -> None:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("OpenAI's SDK for Node needs node and npm")
    command = [npm, "install", f"openai@{OPENAI_NODE}", "--no-audit", "--no-fund", "--prefer-offline", "--silent"]
    installed = await asyncio.to_thread(subprocess.run, command, cwd=tmp_path, capture_output=True, text=True)
    if installed.returncode != 0:
        pytest.skip(f"npm does not install OpenAI's SDK: {installed.stderr[-200:]}")
    (snippet,) = (text for language, text in _snippets() if language == "js")
    script = tmp_path / "grade.mjs"
    script.write_text(f"""\
import OpenAI from "openai";
const client = new OpenAI({{baseURL: "{client.base}/v1", apiKey: "k"}});
const messages = {json.dumps(TEXT)};
{snippet}
console.log(answer.id);
""")
    ran = await asyncio.to_thread(subprocess.run, [node, str(script)], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert await client.grade(None, id=ran.stdout.strip(), score=1) == (409, "graded_already")
