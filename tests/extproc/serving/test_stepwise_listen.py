"""`serve --stepwise-listen`: several workers behind a real Envoy, reloads and drains under way, what is refused."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from config.watch import load
from extproc.answers import Answers
from extproc.serving import inforce
from extproc.serving.server import Options, Worker
from tests.extproc.live import START_S, chat, envoy, eventually, router, swap
from tests.stepwise.fakes import FakeModel, Fault, writer

pytestmark = pytest.mark.e2e

TEXT = ["first we add the two", "then we take one away", "that leaves what is left"]
WHOLE = "\n\n".join(TEXT)
POLICY = """\
version: 1
models: {{small: {{name: tiny, url: "{small}"}}, large: {{name: huge, url: "{large}"}}}}
default: small
decisions:
  - {{name: {name}, stepwise: {{small: small, large: large, strategy: first-n}}}}
"""


@asynccontextmanager
async def models() -> AsyncIterator[tuple[FakeModel, FakeModel]]:
    small, large = FakeModel("tiny", writer(TEXT)), FakeModel("huge", writer(TEXT))
    await small.start()
    await large.start()
    try:
        yield small, large
    finally:
        await small.stop()
        await large.stop()


def policy(pair: tuple[FakeModel, FakeModel], name: str = "steps") -> str:
    return POLICY.format(small=pair[0].url, large=pair[1].url, name=name)


@asynccontextmanager
async def behind_envoy(pair: tuple[FakeModel, FakeModel], mount: Path, folder: Path, *flags: str) -> AsyncIterator[Any]:
    """The router with its HTTP port, and Envoy's URL."""
    swap(mount, policy(pair))
    upstreams = {"small": pair[0].url, "large": pair[1].url}
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(
            router(mount / "policy.yaml", folder, "--stepwise-listen", "127.0.0.1:0", *flags)
        )

        async def ready() -> bool:
            return bool(running.logged("ready"))

        await eventually(ready)  # all workers, not only the first
        steps = running.logged("ready")[0]["stepwise"]
        engine = load(mount / "policy.yaml").engine
        yield (
            running,
            await stack.enter_async_context(envoy(engine, running.listen, upstreams, folder, steps=steps)),
        )


@pytest.mark.no_cover
async def test_reloads_under_load_lose_no_answer_whichever_worker_gives_it(folder: Path, tmp_path: Path) -> None:
    """Two workers, each with its own time of taking a new policy; decisions come and go with every reload."""
    answers: list[str] = []
    async with models() as pair, behind_envoy(pair, folder, tmp_path, "--workers", "2") as (running, base):
        stop = asyncio.Event()

        async def client(stream: bool) -> None:
            async with openai.AsyncOpenAI(base_url=f"{base}/v1", api_key="k", max_retries=0) as sdk:
                while not stop.is_set():
                    raw = await sdk.chat.completions.with_raw_response.create(**chat(), stream=stream)
                    assert raw.headers["x-pointsman-stepwise"] == "first-n"
                    answers.append(raw.headers["x-pointsman-decision"])
                    if stream:
                        text = "".join([chunk.choices[0].delta.content or "" async for chunk in raw.parse()])
                    else:
                        text = raw.parse().choices[0].message.content or ""
                    assert text == WHOLE

        async with asyncio.TaskGroup() as group:
            for number in range(6):
                group.create_task(client(number % 2 == 0))
            for turn in range(4):
                swap(folder, policy(pair, f"steps-{turn}"))
                await running.reloaded(turn + 1)
                await asyncio.sleep(0.2)
            stop.set()
        samples = await running.metrics()
    assert {"steps", "steps-0", "steps-1", "steps-2"} <= set(answers)
    # An answer is counted where it was given, and the decision where it was made.
    assert samples["pointsman_stepwise_answers_total{outcome=complete}"] == len(answers)


async def test_a_drain_finishes_the_answers_that_have_begun(folder: Path, tmp_path: Path) -> None:
    async with models() as pair, behind_envoy(pair, folder, tmp_path, "--grace", "20") as (running, base):
        pair[0].delay = 0.1
        async with openai.AsyncOpenAI(base_url=f"{base}/v1", api_key="k", max_retries=0) as sdk:
            stream = await sdk.chat.completions.create(**chat(), stream=True)
            text = (await anext(aiter(stream))).choices[0].delta.content or ""
            running.process.send_signal(signal.SIGTERM)
            text += "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert text == WHOLE
        assert await asyncio.wait_for(running.process.wait(), START_S) == 0


async def test_while_it_drains_its_health_check_says_so(folder: Path, tmp_path: Path) -> None:
    async with models() as pair:
        swap(folder, policy(pair))
        listen = f"unix:{tmp_path}/steps"
        async with (
            router(folder / "policy.yaml", tmp_path, "--stepwise-listen", listen, "--drain-wait", "20") as running,
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(f"{tmp_path}/steps")) as http,
        ):
            assert await health(http) == 200
            running.process.send_signal(signal.SIGTERM)

            async def draining() -> bool:
                return await health(http) == 503

            await eventually(draining)
            running.process.kill()


async def health(http: aiohttp.ClientSession) -> int:
    async with http.get("http://x/healthz") as reply:
        return reply.status


async def test_a_client_that_leaves_stops_the_models_through_envoy(folder: Path, tmp_path: Path) -> None:
    async with models() as pair, behind_envoy(pair, folder, tmp_path) as (running, base):
        pair[0].faults[0] = Fault("hang", 3)
        async with aiohttp.ClientSession() as http:
            reply = await http.post(f"{base}/v1/chat/completions", json={**chat(), "stream": True})
            assert TEXT[0].split()[0].encode() in await reply.content.readany()

            async def writing() -> bool:
                return pair[0].connections > 0

            await eventually(writing)
            reply.close()

            async def quiet() -> bool:
                return not pair[0].connections and not pair[1].connections

            await eventually(quiet)
        assert (await running.metrics())["pointsman_stepwise_answers_total{outcome=cancelled}"] == 1


async def test_a_client_that_reads_slowly_slows_the_model_through_envoy(folder: Path, tmp_path: Path) -> None:
    async with models() as pair, behind_envoy(pair, folder, tmp_path) as (running, base):
        pair[0].write = writer([f"step {number} " + f"{'w' * 2000} " * 40 for number in range(400)])
        block = "strategy: always-small, budget: {tokens: 1000000}}}\nsettings: {max_body: 64KiB}\n"
        swap(folder, policy(pair).replace("strategy: first-n}}\n", block))
        await running.reloaded(1)
        async with aiohttp.ClientSession(read_bufsize=4096) as http:
            reply = await http.post(f"{base}/v1/chat/completions", json={**chat(), "stream": True})
            assert reply.status == 200
            halted = -1
            while halted != pair[0].sent:  # until every buffer on the way is full
                halted = pair[0].sent
                await asyncio.sleep(0.5)
            assert 0 < halted < 0.8 * 400 * 40
            async for _ in reply.content.iter_chunked(65536):
                if pair[0].sent > halted:
                    break
            assert pair[0].sent > halted
            reply.close()


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_taken_address_is_named(folder: Path, tmp_path: Path, workers: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(AssertionError, match=f"cannot listen on {address}: Address already in use"):
            async with router(folder / "policy.yaml", tmp_path, "--workers", workers, "--stepwise-listen", address):
                pass


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_workers_share_a_unix_socket_and_leave_none_behind(folder: Path, tmp_path: Path, workers: str) -> None:
    async with models() as pair:
        swap(folder, policy(pair))

        def sockets() -> list[str]:
            return sorted(path.name for path in tmp_path.iterdir() if path.is_socket())

        flags = ("--stepwise-listen", f"unix:{tmp_path}/steps", "--workers", workers)
        async with (
            router(folder / "policy.yaml", tmp_path, *flags),
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(f"{tmp_path}/steps", force_close=True)) as http,
        ):
            headers = {"x-pointsman-decision": "steps"}
            for _ in range(8):
                async with http.post("http://x/v1/chat/completions", json=chat(), headers=headers) as reply:
                    assert (await reply.json())["choices"][0]["message"]["content"] == WHOLE
            assert sockets() == ["admin.sock", "router.sock", "steps"]
    assert sockets() == []


# --- in this process -------------------------------------------------------------------------------------------------


async def test_a_request_waits_for_the_policy_that_has_decided_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inforce, "PATIENCE_S", 5.0)
    file = folder / "policy.yaml"
    async with models() as pair:
        swap(folder, policy(pair))
        options = Options(policy=file, listen="127.0.0.1:0", stepwise_listen="127.0.0.1:0")
        worker = Worker(load(file), options)
        await worker.start(options.listen, options.stepwise_listen)
        first = worker.engine.policy
        swap(folder, policy(pair, "later"))
        later = load(file)
        asking = asyncio.create_task(ask(worker, "later", later.engine.policy))
        old = asyncio.create_task(ask(worker, "steps", first))
        assert await old == 200
        assert not asking.done()
        assert await worker.reload(lambda: later)
        assert await asking == 200
        assert await ask(worker, "steps", first) == 200  # its policy is gone, but may still have decided requests
        monkeypatch.setattr(inforce, "PATIENCE_S", 0.05)
        assert await ask(worker, "later", "sha256:0") == 200  # by its name, when nobody knows the policy
        assert await ask(worker, "never", "sha256:0") == 404
        assert await ask(worker, "steps", "") == 404
        await worker.drain(0, 1)


async def ask(worker: Worker, decision: str, policy: str) -> int:
    headers = {"x-pointsman-decision": decision} | ({"x-pointsman-policy": policy} if policy else {})
    url = f"http://{worker.stepwise_address}/v1/chat/completions"
    async with aiohttp.ClientSession() as http, http.post(url, json=chat(), headers=headers) as reply:
        await reply.read()
        return reply.status


def several(pair: tuple[FakeModel, FakeModel], count: int) -> str:
    """A policy with as many further stepwise decisions about the same models."""
    signals = ", ".join(f"s{n}: {{header: {{name: x-{n}, equals: a}}}}" for n in range(count))
    block = "stepwise: {small: small, large: large, strategy: random, seed"
    more = "".join(f"  - {{name: more-{n}, when: s{n}, {block}: {n}}}}}\n" for n in range(count))
    return policy(pair).replace("decisions:\n", f"signals: {{{signals}}}\ndecisions:\n{more}")


async def test_decisions_probe_their_models_together_and_each_of_them_once(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    async with models() as pair:
        probes = []
        for text in (policy(pair), several(pair, 4)):
            file.write_text(text)
            before = pair[0].probes + pair[1].probes
            answers = Answers([load(file).engine], tmp_path, None)
            await answers.start()
            probes.append(pair[0].probes + pair[1].probes - before)
            known = [answers.find(name).stepwise.records() for name in ("steps", "more-3") if answers.find(name)]  # type: ignore[union-attr]
            assert all(set(one) == {"small", "large"} for one in known)
            await answers.close()
        assert probes[0] == probes[1] > 0


async def test_models_that_hang_delay_a_start_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stepwise.asking.ready._PROBE", 0.5)
    file = tmp_path / "policy.yaml"
    async with models() as pair:
        for model in pair:
            model.faults[-1] = Fault("silent")
        file.write_text(several(pair, 12))
        answers = Answers([load(file).engine], tmp_path, None)
        began = asyncio.get_running_loop().time()
        await answers.start()
        assert asyncio.get_running_loop().time() - began < 5 * 0.5  # one after another it would be 13 times as long
        assert pair[0].probes == pair[1].probes == 1
        await answers.close()
