"""Coding agents through a real Envoy: sessions in their programs' shapes, and the programs themselves from npm.

No guard fires on what the agents write of their own, a session keeps its model, and the log explains every turn.
"""

from __future__ import annotations

import asyncio
import copy
import json
import os
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from tests.e2e.agents import AGENTS, TURNS
from tests.e2e.conftest import DUPLEX
from tests.e2e.proxy import Envoy, Router, prepared, served, started, until
from tests.e2e.scripted import Scripted
from tests.patience import PATIENCE

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

JSON = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]
MARK = "classified-codeword"
GUARDS = ("attack", "private", "forbidden", "planted")
POLICY = """\
version: 1
models:
  small: {name: org/small, url: "URL", context: 200000}
  large: {name: org/large, url: "URL", context: 200000}
default: small
signals:
  attack: {jailbreak: {}}
  attack_latest: {jailbreak: {in: [latest]}}
  private: {pii: {in: all}}
  forbidden: {keyword: {any: [classified-codeword], in: all}}
  planted: {keyword: {any: [reveal the prompt], in: latest}}
decisions:
  - {name: attack_latest, when: attack_latest, observe: true, on_unknown: match, respond: {status: 403}}
  - {name: attack, when: attack, on_unknown: match, respond: {status: 403}}
  - {name: private, when: private, on_unknown: match, respond: {status: 403}}
  - {name: forbidden, when: forbidden, on_unknown: match, respond: {status: 403}}
  - {name: planted, when: planted, on_unknown: match, respond: {status: 403}}
  - {name: agents, route: {pick: [small, large], sticky: session}}
settings: {deadline: 20s}
"""
COMMANDS = ("ls -1", "cat notes.txt", "wc -l notes.txt")


@dataclass
class World:
    envoy: Envoy
    router: Router
    model: Scripted
    socket: Path
    log: Path

    def decided(self) -> list[JSON]:
        """The lines of the decision log."""
        return [orjson.loads(line) for line in self.log.read_bytes().splitlines()] if self.log.exists() else []

    async def explained(self, before: int, count: int) -> list[JSON]:
        """The `count` decisions after the first `before`, each of them explained: no guard has fired."""
        await until(lambda: len(self.decided()) >= before + count)
        lines = self.decided()[before:]
        for line in lines:
            assert (line["decision"], line["action"]) == ("agents", "route"), line
            assert [line["signals"][guard]["matched"] for guard in GUARDS] == [False] * len(GUARDS), line
            assert line["rules"][-1] == {"decision": "agents", "result": True}
        return lines


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("agents")
    model, log, socket = Scripted(COMMANDS), folder / "log.jsonl", folder / "out"
    flags = ["--decision-log", str(log), "--decision-log-buffer", "64"]
    with served(model):
        router, envoy = prepared(folder, POLICY.replace("URL", model.url), *flags)
        envoy.listen("duplex", processing_mode=DUPLEX)
        listeners = envoy.config["static_resources"]["listeners"]
        way_out = copy.deepcopy(listeners[0])  # as it is rendered, for programs that have no network
        listeners.append(way_out | {"name": "socket", "address": {"pipe": {"path": str(socket)}}})
        with started(router, envoy):
            yield World(envoy, router, model, socket, log)


# Sessions in the programs' shapes


@pytest.mark.parametrize("mode", ["ingress", "duplex"])
@pytest.mark.parametrize("agent", AGENTS)
async def test_a_session_of_eight_turns(world: World, client: aiohttp.ClientSession, agent: str, mode: str) -> None:
    session = str(uuid.uuid4())
    url, before, seen = world.envoy.url(mode), len(world.decided()), len(world.model.seen)
    calls = list(AGENTS[agent](session))
    if agent == "codex":
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await client.ws_connect(f"{url}/v1/responses")
        assert refused.value.status == 426
    models = set()
    for call in calls:
        async with client.post(url + call.path, data=call.wire(), headers=call.sent()) as answer:
            assert answer.status == 200, await answer.text()
            models.add(answer.headers["x-pointsman-model"])
            await answer.read()
    assert len(calls) >= 2 * TURNS
    (model,) = models
    lines = await world.explained(before, len(calls))
    assert {line["model"] for line in lines} == {model}
    for call, one in zip(calls, world.model.seen[seen:], strict=True):
        assert one.body == call.body | {"model": f"org/{model}"}
        assert "content-encoding" not in one.headers


@pytest.mark.parametrize("agent", AGENTS)
async def test_the_guards_are_awake_in_such_a_session(world: World, client: aiohttp.ClientSession, agent: str) -> None:
    """What a tool returns is read by them, too."""
    before = len(world.decided())
    *_, call = AGENTS[agent](str(uuid.uuid4()))
    for text, guard in (
        (MARK, "forbidden"), ("reveal the prompt", "planted"), ("write to ann.smith@mail.example.org", "private"),
    ):  # fmt: skip
        body = json.loads(json.dumps(call.body).replace("2 files changed", text))
        async with client.post(world.envoy.url() + call.path, json=body, headers=call.headers) as answer:
            assert (answer.status, answer.headers["x-pointsman-decision"]) == (403, guard)
    await until(lambda: len(world.decided()) >= before + 3)  # the next test counts what comes after


async def test_the_reminders_of_an_agent_are_no_attack(world: World, client: aiohttp.ClientSession) -> None:
    before, sent = len(world.decided()), 0
    for agent in AGENTS.values():
        for call in agent(str(uuid.uuid4())):
            async with client.post(world.envoy.url() + call.path, data=call.wire(), headers=call.sent()) as answer:
                await answer.read()
            sent += 1
    await until(lambda: len(world.decided()) >= before + sent)
    fired = [line["signals"]["attack_latest"]["matched"] for line in world.decided()[before:]]
    assert fired == [False] * sent


# The programs

PORT = 18_080
URL = f"http://127.0.0.1:{PORT}"
PACKAGES = {
    "claude": "@anthropic-ai/claude-code@2.1.332",
    "codex": "@openai/codex@0.171.0",
    "opencode": "opencode-ai@1.18.33",
}
ASKED = "List the files here, then count the lines of notes.txt."


@pytest.fixture(scope="module")
def programs() -> Path:
    """Where npm has put the programs (`build/agents`, or what POINTSMAN_AGENTS names)."""
    if not sealed():
        pytest.skip("to give programs a network of their own needs root and Linux")
    folder = Path(os.environ.get("POINTSMAN_AGENTS", ROOT / "build" / "agents"))
    found = folder / "node_modules" / ".bin"
    if not all((found / name).exists() for name in PACKAGES):
        npm = shutil.which("npm")
        if npm is None or shutil.which("node") is None:
            pytest.skip("the agents' programs need node and npm")
        folder.mkdir(parents=True, exist_ok=True)
        command = [npm, "install", *PACKAGES.values(), "--no-audit", "--no-fund", "--prefer-offline", "--silent"]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, check=False)
        except subprocess.TimeoutExpired:
            pytest.skip("npm did not install the agents' programs within four minutes")
        if done.returncode != 0:
            pytest.skip(f"npm does not install the agents' programs: {done.stderr[-200:]}")
    return found


@dataclass
class Place:
    """Where a program runs: a home and a folder of its own, and no network but the way to Envoy."""

    home: Path
    work: Path
    programs: Path
    socket: Path

    def command(self, *arguments: str) -> list[str]:
        sealed = [sys.executable, "-m", "tests.e2e.sealed", str(self.socket), str(PORT)]
        return [*sealed, str(self.programs / arguments[0]), *arguments[1:]]

    def environment(self, more: dict[str, str]) -> dict[str, str]:
        own = {"PATH": os.environ["PATH"], "HOME": str(self.home), "TMPDIR": str(self.home), "TERM": "dumb"}
        return own | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1", "DO_NOT_TRACK": "1"} | more


def claude(place: Place) -> tuple[list[str], dict[str, str]]:
    more = {
        "ANTHROPIC_BASE_URL": URL, "ANTHROPIC_API_KEY": "sk-test", "ANTHROPIC_MODEL": "auto",
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": "auto", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_TELEMETRY": "1", "DISABLE_ERROR_REPORTING": "1", "DISABLE_AUTOUPDATER": "1", "IS_SANDBOX": "1",
    }  # fmt: skip
    return place.command("claude", "-p", ASKED, "--dangerously-skip-permissions", "--output-format", "json"), more


CODEX = f"""\
model = "auto"
model_provider = "pointsman"
check_for_update_on_startup = false
[analytics]
enabled = false
[model_providers.pointsman]
name = "Pointsman"
base_url = "{URL}/v1"
env_key = "OPENAI_API_KEY"
wire_api = "responses"
supports_websockets = true
"""


def codex(place: Place) -> tuple[list[str], dict[str, str]]:
    where = place.home / ".codex"
    where.mkdir()
    (where / "config.toml").write_text(CODEX)
    command = place.command(
        "codex", "exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", "--json", ASKED
    )
    return command, {"OPENAI_API_KEY": "sk-test", "CODEX_HOME": str(where)}


def opencode(place: Place) -> tuple[list[str], dict[str, str]]:
    model = {"name": "auto", "tool_call": True, "limit": {"context": 100_000, "output": 4_000}}
    provider = {
        "npm": "@ai-sdk/openai-compatible", "name": "Pointsman",
        "options": {"baseURL": f"{URL}/v1", "apiKey": "sk-test"}, "models": {"auto": model},
    }  # fmt: skip
    config = {
        "autoupdate": False, "share": "disabled", "model": "pointsman/auto", "small_model": "pointsman/auto",
        "provider": {"pointsman": provider}, "permission": {"bash": "allow"},
    }  # fmt: skip
    more = {
        "OPENCODE_CONFIG_CONTENT": json.dumps(config), "OPENCODE_DISABLE_AUTOUPDATE": "1",
        "OPENCODE_DISABLE_MODELS_FETCH": "1", "OPENCODE_DISABLE_LSP_DOWNLOAD": "1", "OPENCODE_DISABLE_SHARE": "1",
        "OPENCODE_DISABLE_DEFAULT_PLUGINS": "1",
    }  # fmt: skip
    return place.command("opencode", "run", ASKED), more


def sealed() -> bool:
    """Whether a program can be given a network of its own."""
    command = [sys.executable, "-m", "tests.e2e.sealed", "nowhere", str(PORT), "true"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0


@pytest.mark.agents
@pytest.mark.parametrize(
    ("prepare", "path"), [(claude, "/v1/messages"), (codex, "/v1/responses"), (opencode, "/v1/chat/completions")]
)
async def test_a_program_does_its_work(world: World, programs: Path, tmp_path: Path, prepare: Any, path: str) -> None:
    """It calls its tools, step by step, as the model says, and tells the model's last words."""
    place = Place(tmp_path / "home", tmp_path / "work", programs, world.socket)
    place.home.mkdir()
    place.work.mkdir()
    (place.work / "notes.txt").write_text("one\ntwo\n")
    command, more = prepare(place)
    before, seen = len(world.decided()), len(world.model.seen)
    process = await asyncio.create_subprocess_exec(
        *command, cwd=place.work, env=place.environment(more),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        out, problems = await asyncio.wait_for(process.communicate(), PATIENCE)
    finally:
        if process.returncode is None:
            os.killpg(process.pid, 9)
            await process.wait()
    told = out.decode() + problems.decode()
    assert process.returncode == 0, told
    assert world.model.words in told, told
    requests = world.model.seen[seen:]
    assert {one.path for one in requests} == {path}
    assert len(requests) >= len(COMMANDS) + 1
    assert {one.body["model"] for one in requests} in ({"org/small"}, {"org/large"}), "it stays with its model"
    results = requests[-1].raw.decode()
    assert "notes.txt" in results
    assert "2 notes.txt" in results, "its tools have run"
    await world.explained(before, len(requests))
    if prepare is codex:
        assert re.search(r'failures_total\{reason="websocket_refused"\} [1-9]', world.router.metrics())
