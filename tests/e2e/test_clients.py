"""Clients that are no SDK of a model's maker, on `make up`: each gets an answer at its first try, streamed and whole.

They bring hundreds of packages, so they are installed beside the tests, with pip and npm, into `build/clients`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.test_up import up
from tests.patience import PATIENCE

pytestmark = [pytest.mark.agents, pytest.mark.e2e, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("POINTSMAN_CLIENTS", ROOT / "build" / "clients"))
PYTHON = ("langchain-openai==1.7.4", "langchain-anthropic==1.7.10", "litellm==1.110.2")
NODE = ("ai@7.0.173", "@ai-sdk/openai@4.0.118", "@ai-sdk/openai-compatible@3.0.92", "@ai-sdk/anthropic@4.0.105")
ASKED = (("Hello", "this is tinylm-"), ("Work out 12 + 30 * 4.", "Answer: "))
"""A question for which the policy has no decision, and a sum, which is answered step by step."""

LANGCHAIN = """\
import json, sys
from langchain_anthropic import ChatAnthropic
from langchain_openai import ChatOpenAI
base, asked = sys.argv[1], json.loads(sys.argv[2])
made = {
    "chat": ChatOpenAI(model="auto", base_url=base + "/v1", api_key="k", max_retries=0, temperature=0),
    "responses": ChatOpenAI(
        model="auto", base_url=base + "/v1", api_key="k", max_retries=0, temperature=0, use_responses_api=True
    ),
    "messages": ChatAnthropic(model="auto", base_url=base, api_key="k", max_retries=0, temperature=0, max_tokens=200),
}
print(json.dumps([
    [name, text, client.invoke(text).text, "".join(part.text for part in client.stream(text))]
    for name, client in made.items() for text in asked
]))
"""
LITELLM = """\
import json, sys
import litellm
base, asked = sys.argv[1], json.loads(sys.argv[2])
told = []
for name, more in {
    "chat": dict(model="openai/auto", api_base=base + "/v1"), "messages": dict(model="anthropic/auto", api_base=base),
}.items():
    for text in asked:
        ask = dict(messages=[{"role": "user", "content": text}], api_key="k", temperature=0, max_tokens=200, **more)
        whole = litellm.completion(**ask, num_retries=0).choices[0].message.content
        parts = litellm.completion(**ask, num_retries=0, stream=True)
        told.append([name, text, whole, "".join(part.choices[0].delta.content or "" for part in parts)])
print(json.dumps(told))
"""
VERCEL = """\
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";
const [base, asked] = [process.argv[2], JSON.parse(process.argv[3])];
const openai = createOpenAI({ baseURL: base + "/v1", apiKey: "k" });
const made = {
  compatible: createOpenAICompatible({ name: "pointsman", baseURL: base + "/v1", apiKey: "k" })("auto"),
  chat: openai.chat("auto"),
  responses: openai.responses("auto"),
  messages: createAnthropic({ baseURL: base + "/v1", apiKey: "k" })("auto"),
};
const told = [];
for (const [name, model] of Object.entries(made)) {
  for (const prompt of asked) {
    const ask = { model, prompt, temperature: 0, maxOutputTokens: 200, maxRetries: 0 };
    const whole = (await generateText(ask)).text;
    let streamed = "";
    const onError = ({ error }) => { throw error; };
    for await (const part of streamText({ ...ask, onError }).textStream) streamed += part;
    told.push([name, prompt, whole, streamed]);
  }
}
console.log(JSON.stringify(told));
"""


def installed(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{command[0]} did not install the clients in time")
    if done.returncode != 0:
        pytest.skip(f"{command[0]} does not install the clients: {done.stderr[-200:]}")


@pytest.fixture(scope="module")
def python() -> Path:
    """A Python that has LangChain and LiteLLM."""
    found, done = FOLDER / "python" / "bin" / "python", FOLDER / "python" / ".done"
    if not done.exists() or done.read_text().split() != list(PYTHON):
        FOLDER.mkdir(parents=True, exist_ok=True)
        installed([sys.executable, "-m", "venv", "--clear", "python"], FOLDER)
        installed([str(found), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PYTHON], FOLDER)
        done.write_text(" ".join(PYTHON))
    return found


@pytest.fixture(scope="module")
def node() -> Path:
    """The folder below which a script of Node finds the Vercel AI SDK."""
    folder = FOLDER / "node"
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("the Vercel AI SDK needs node and npm")
    if not all((folder / "node_modules" / name.rpartition("@")[0]).exists() for name in NODE):
        folder.mkdir(parents=True, exist_ok=True)
        installed([npm, "install", *NODE, "--no-audit", "--no-fund", "--prefer-offline", "--silent"], folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What `make up` runs, without a policy of ours; its address."""
    with up(tmp_path_factory.mktemp("up")) as running:
        (_, (hello, _), _) = running.curls()
        yield hello[2].removesuffix("/v1/chat/completions")


def told(command: list[str], base: str, folder: Path) -> list[list[str]]:
    """What a client's program has got: API, question, whole answer, streamed answer."""
    questions = json.dumps([text for text, _ in ASKED])
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGSMITH_TRACING": "false", "LITELLM_TELEMETRY": "False"}
    done = subprocess.run(
        [*command, base, questions], cwd=folder, env={**os.environ, **quiet}, capture_output=True, text=True,
        timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found: list[list[str]] = json.loads(done.stdout.splitlines()[-1])
    return found


def answered(found: list[list[str]], apis: set[str]) -> None:
    says = dict(ASKED)
    assert {name for name, *_ in found} == apis
    assert len(found) == len(apis) * len(ASKED)
    for name, text, whole, streamed in found:
        assert says[text] in whole, (name, whole)
        assert says[text] in streamed, (name, streamed)


@pytest.mark.parametrize(
    ("program", "apis"),
    [(LANGCHAIN, {"chat", "responses", "messages"}), (LITELLM, {"chat", "messages"})],
    ids=["langchain", "litellm"],
)
def test_a_library_of_python_gets_its_answers(
    base: str, python: Path, program: str, apis: set[str], tmp_path: Path
) -> None:
    answered(told([str(python), "-c", program], base, tmp_path), apis)


def test_the_vercel_ai_sdk_gets_its_answers(base: str, node: Path) -> None:
    script = node / "ask.mjs"
    script.write_text(VERCEL)
    answered(told(["node", str(script)], base, node), {"compatible", "chat", "responses", "messages"})
