"""Answers that leak what they must not, through a real Envoy: watched, masked, cut; read by the official SDKs."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import openai
import orjson
import pytest
from aiohttp import web

from extproc.watching.sse import encode
from tests.e2e.proxy import Envoy, Observed, hosted, prepared, started, until
from tests.extproc.watching.streams import chunk
from tests.extproc.watching.test_array import array, element, told
from tests.extproc.watching.test_joined import messages as joined_messages
from tests.extproc.watching.test_joined import responses as joined_responses
from tests.extproc.watching.test_joined import streamed
from tests.extproc.watching.test_watch import (
    CARD,
    IBAN,
    KEY,
    SECRETS,
    WORDS,
    cut_up,
    encoded,
    masked,
    shown,
    stream_of,
    whole,
)
from tests.patience import PATIENCE
from tests.volume import few_and_many
from upstream.events import DONE

pytestmark = pytest.mark.e2e

POLICY = """\
version: 1
models:
  small: {url: "http://UPSTREAM"}
default: small
signals:
  leak: {pii: {in: answer, types: [card, iban]}}
  words: {keyword: {in: answer, any: [project falcon]}}
  key: {regex: {in: answer, any: ["AK-[0-9]{8}"]}}
  far: {remote: {in: answer, url: "http://UPSTREAM", model: judge, timeout: 0.5}}
  mortal: {remote: {in: answer, url: "http://MORTAL", model: judge}}
  cuts: {header: {name: x-do, in: [cut]}}
  masks: {header: {name: x-do, in: [mask]}}
  responds: {header: {name: x-do, in: [respond]}}
  flags: {header: {name: x-do, in: [flag]}}
  asks: {header: {name: x-do, in: [far]}}
  open: {header: {name: x-do, in: [open]}}
  dies: {header: {name: x-do, in: [dies]}}
  goes: {header: {name: x-do, in: [goes]}}
decisions:
  - name: cut
    on: answer
    when: {all: [cuts, {any: [leak, words, key]}]}
    on_unknown: match
    window: 64
    cut: {message: "This answer ends here."}
  - {name: mask, on: answer, when: {all: [masks, {any: [leak, words, key]}]}, on_unknown: match, window: 64, mask: {}}
  - name: instead
    on: answer
    when: {all: [responds, words]}
    on_unknown: match
    window: 64
    respond: {status: 451, message: "Not this answer."}
  - {name: seen, on: answer, when: {all: [flags, words]}, flag: {}}
  - {name: far, on: answer, when: {all: [asks, far]}, on_unknown: match, window: 64, cut: {message: "Too far."}}
  - {name: open, on: answer, when: {all: [open, far]}, on_unknown: skip, window: 64, cut: {}}
  - {name: dies, on: answer, when: {all: [dies, mortal]}, on_unknown: match, window: 64, cut: {message: "Too far."}}
  - {name: goes, on: answer, when: {all: [goes, mortal]}, on_unknown: skip, window: 64, cut: {}}
settings: {deadline: 1s}
"""
TEXT = f"so {CARD} and {IBAN} and {KEY} and {WORDS}; the rest is fine."


@dataclass
class Upstream:
    """Answers with what the test has put here, in pieces of `size` bytes."""

    body: bytes = b""
    size: int = 10**9
    pause: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    sent: int = 0
    gone: int = 0
    endless: bytes = b""
    trailers: bool = False
    judged: int = 0
    hangs: bool = False
    asked: dict[str, str] = field(default_factory=dict)
    rest: bytes = b""
    """What comes behind the body, once `resumed` is set."""
    resumed: threading.Event = field(default_factory=threading.Event)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        await request.read()
        self.asked = {name.lower(): value for name, value in request.headers.items()}
        self.sent = 0
        response = web.StreamResponse(headers={"content-type": "text/event-stream", **self.headers})
        await response.prepare(request)
        try:
            if (place := request.headers.get("x-split")) is not None:
                await response.write(self.body[: int(place)])
                await asyncio.sleep(0.001)  # else Envoy gives both pieces at once
                await response.write(self.body[int(place) :])
                return response
            for at in range(0, len(self.body), self.size):
                await response.write(self.body[at : at + self.size])
                if self.size < 10**9:
                    await asyncio.sleep(self.pause)
            if self.rest:
                while not self.resumed.is_set():  # noqa: ASYNC110 (the test that sets it runs in another thread)
                    await asyncio.sleep(0.01)
                await response.write(self.rest)
            while self.endless:
                await response.write(self.endless)
                self.sent += len(self.endless)
                await asyncio.sleep(0)
        except (ConnectionError, asyncio.CancelledError):
            self.gone += 1
            raise
        return response

    async def judge(self, request: web.Request) -> web.StreamResponse:
        self.judged += 1
        texts = (await request.json())["inputs"][0]["data"]
        if self.hangs:
            await asyncio.sleep(60)
        scores = [1.0 if WORDS in text else 0.0 for text in texts]
        output = {"name": "scores", "datatype": "FP32", "shape": [len(texts), 1], "data": scores}
        return web.json_response({"model_name": "judge", "outputs": [output]})

    async def about(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({})


class MortalJudge:
    """A judge in a process of its own, which can be killed."""

    CODE = """
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Judge(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        texts = json.loads(self.rfile.read(int(self.headers["content-length"])))["inputs"][0]["data"]
        output = {"name": "scores", "datatype": "FP32", "shape": [len(texts), 1], "data": [0.0] * len(texts)}
        self.say({"model_name": "judge", "outputs": [output]})

    def do_GET(self):
        self.say({})

    def say(self, what):
        said = json.dumps(what).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *said):
        pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
print(server.server_port, flush=True)
server.serve_forever()
"""

    def __init__(self) -> None:
        self._process = subprocess.Popen([sys.executable, "-c", self.CODE], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.address = f"127.0.0.1:{int(self._process.stdout.readline())}"

    def kill(self) -> None:
        assert self._process.stdout is not None
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(PATIENCE)
        self._process.stdout.close()


@dataclass
class World(Observed):
    envoy: Envoy
    upstream: Upstream
    mortal: MortalJudge

    def url(self, listener: str = "ingress") -> str:
        return self.envoy.url(listener)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("watching")
    upstream = Upstream()
    app = web.Application()
    app.router.add_post("/v2/models/judge/infer", upstream.judge)
    app.router.add_get("/v2/{path:.*}", upstream.about)
    app.router.add_post("/{path:.*}", upstream.answer)
    log = folder / "log.jsonl"
    mortal = MortalJudge()
    with ExitStack() as stack:
        stack.callback(mortal.kill)
        there = stack.enter_context(hosted(app, handler_cancellation=True))
        policy = POLICY.replace("UPSTREAM", there).replace("MORTAL", mortal.address)
        router, envoy = prepared(folder, policy, "--decision-log", str(log))
        for name, mode in (("none", "NONE"), ("streamed", "STREAMED")):
            envoy.listen(name, processing_mode={"response_body_mode": mode, "response_trailer_mode": "SKIP"})
        with started(router, envoy):
            yield World(router, log, envoy, upstream, mortal)


@pytest.fixture(autouse=True)
def fresh(world: World) -> None:
    found = world.upstream
    found.pause = 0.0
    found.body, found.size, found.headers, found.endless, found.hangs = b"", 10**9, {}, b"", False
    found.rest = b""
    found.resumed.clear()


PATHS = {"chat": "chat/completions", "completions": "completions", "messages": "messages", "responses": "responses"}


def asked(api: str, stream: bool = True) -> dict[str, Any]:
    body: dict[str, Any] = {"model": "auto", "stream": stream}
    if api == "completions":
        return {**body, "prompt": "hi"}
    if api == "responses":
        return {**body, "input": "hi"}
    return {**body, "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}


async def post(
    world: World, client: aiohttp.ClientSession, api: str, do: str, listener: str = "ingress", stream: bool = True
) -> tuple[int, dict[str, str], bytes]:
    headers = {"x-do": do, "accept-encoding": "gzip"}
    url = f"{world.url(listener)}/v1/{PATHS[api]}"
    async with client.post(url, json=asked(api, stream), headers=headers) as response:
        return response.status, {name.lower(): value for name, value in response.headers.items()}, await response.read()


@pytest.mark.parametrize("api", PATHS)
@pytest.mark.parametrize("do", ["cut", "respond"])
async def test_an_answer_that_ends_early_ends_at_the_same_place_however_it_is_split(
    world: World, client: aiohttp.ClientSession, api: str, do: str
) -> None:
    """Also where the value is in the middle of an event, and where `respond` just takes, or just does not take, the
    place of the answer."""
    for before in (3, 7, 8, 300):
        text = "it goes on " * 30
        text = f"{text[: before - 1]} {WORDS}, and {text}"
        shows: dict[int, set[Any]] = {}
        for events, size in ((5, 10**9), (5, 700), (50, 10**9), (50, 97)):
            stream = encoded(api, stream_of(api, text, [events]))
            world.upstream.body, world.upstream.size = stream, max(size, len(stream) // 300)
            status, _, out = await post(world, client, api, do)
            assert b"falcon" not in out
            texts = sorted(shown(out).items(), key=str) if status == 200 else ()
            # Of completions the choices take turns, and the pieces are their turns.
            shows.setdefault(events if api == "completions" else 0, set()).add((status, tuple(texts)))
        for shown_so in shows.values():
            assert len(shown_so) == 1
            if api != "completions":
                assert {status for status, _ in shown_so} == {451 if do == "respond" and before < 8 else 200}


@pytest.mark.parametrize("listener", ["ingress", "none", "streamed"])
@pytest.mark.parametrize("api", PATHS)
async def test_a_leak_is_masked_however_it_is_split(
    world: World, client: aiohttp.ClientSession, api: str, listener: str
) -> None:
    for number, size in enumerate((1, 3, 17, 400, 10**9)):
        stream = encoded(api, stream_of(api, TEXT, [number + 1, 5]))
        world.upstream.body, world.upstream.size = stream, max(size, len(stream) // 300)
        status, _, out = await post(world, client, api, "mask", listener)
        assert status == 200
        assert world.upstream.asked["accept-encoding"] == "identity"
        assert shown(out) == {key: masked(said) for key, said in shown(stream).items()}
        for secret in SECRETS:
            assert secret.encode() not in out
    fine = encoded(api, stream_of(api, "nothing to hide, " * 9, [4]))
    world.upstream.body = fine
    assert (await post(world, client, api, "mask", listener))[2] == fine
    assert (await post(world, client, api, "none", listener))[2] == fine


def leaks(shape: str) -> tuple[str, dict[str, Any], bytes, Callable[[bytes], Any], Any]:
    """A call, the stream that answers it, how a client reads it, and what it may read of it. In `blocks` every value is
    divided between two blocks that clients show as one text."""
    api, _, blocks = shape.partition(" ")
    if api == "gemini":
        path = "/v1beta/models/auto:streamGenerateContent" + ("?alt=sse" if blocks == "sse" else "")
        parts = list(cut_up(TEXT, [23]))
        body = array(parts) if blocks != "sse" else b"".join(encode("", element(part)) for part in parts)
        want = masked(TEXT) + ("." if blocks != "sse" else "")
        return path, {"contents": [{"parts": [{"text": "hi"}]}]}, body, gemini, want
    path = f"/v1/{PATHS[api]}"
    if blocks:
        parts = list(cut_up(TEXT, [11]))
        events = joined_messages(parts, [99]) if api == "messages" else joined_responses([parts], [99])
        return path, asked(api), encoded(api, events), streamed, masked(TEXT)
    stream = encoded(api, stream_of(api, TEXT, [23]))
    return path, asked(api), stream, shown, {key: masked(said) for key, said in shown(stream).items()}


def gemini(stream: bytes) -> str:
    if stream.startswith(b"["):
        return told(stream)
    said = [line[6:] for line in stream.splitlines() if line.startswith(b"data: ")]
    return told(b"[" + b",".join(said) + b"]")


@few_and_many(16, 10**9)
@pytest.mark.parametrize("shape", [*PATHS, "messages blocks", "responses blocks", "gemini array", "gemini sse"])
async def test_a_leak_that_is_split_at_any_byte_never_gets_out(
    world: World, client: aiohttp.ClientSession, shape: str, examples: int
) -> None:
    path, body, stream, read, want = leaks(shape)
    world.upstream.body = stream
    if shape == "gemini array":
        world.upstream.headers = {"content-type": "application/json"}

    async def ask(places: Iterator[int]) -> None:
        for place in places:
            headers = {"x-do": "mask", "x-split": str(place)}
            async with client.post(world.url() + path, json=body, headers=headers) as response:
                out = await response.read()
            assert response.status == 200, place
            assert read(out) == want, place
            assert not any(secret.encode() in out for secret in SECRETS), place

    places = iter(range(1, len(stream), max(1, len(stream) // examples)))
    await asyncio.gather(*(ask(places) for _ in range(8)))


@pytest.mark.parametrize("api", PATHS)
@pytest.mark.parametrize("do", ["mask", "cut"])
async def test_the_official_sdks_read_every_stream_to_its_end(world: World, api: str, do: str) -> None:
    world.upstream.body = encoded(api, stream_of(api, "x" * 300 + TEXT, [4]))
    world.upstream.size = 100
    base, headers = f"{world.url()}/v1", {"x-do": do}
    said = ""
    if api == "messages":
        async with anthropic.AsyncAnthropic(api_key="x", base_url=world.url(), default_headers=headers) as sdk:
            messages: Any = asked(api)["messages"]
            async with sdk.messages.stream(model="auto", max_tokens=9, messages=messages) as events:
                async for _ in events:
                    pass
                final = await events.get_final_message()
            said, reason = final.model_dump_json(), final.stop_reason
            assert (reason == "refusal") == (do == "cut")
    else:
        async with openai.AsyncOpenAI(api_key="x", base_url=base, default_headers=headers) as sdk2:
            if api == "chat":
                turn: Any = asked(api)["messages"]
                reasons = set()
                async for chunk in await sdk2.chat.completions.create(model="auto", messages=turn, stream=True):
                    said += chunk.model_dump_json()
                    reasons |= {choice.finish_reason for choice in chunk.choices}
                assert ("content_filter" in reasons) == (do == "cut")
            elif api == "completions":
                async for part in await sdk2.completions.create(model="auto", prompt="hi", stream=True):
                    said += part.model_dump_json()
            else:
                last: Any = None
                async for event in await sdk2.responses.create(model="auto", input="hi", stream=True):
                    said += event.model_dump_json()
                    last = event
                assert last.type == ("response.incomplete" if do == "cut" else "response.completed")
    for secret in SECRETS:
        assert secret not in said
    assert ("This answer ends here." in said) == (do == "cut")


async def test_a_cut_ends_the_answer_and_the_upstream_is_let_go(world: World, client: aiohttp.ClientSession) -> None:
    world.upstream.body = encoded("chat", stream_of("chat", "a" * 200 + TEXT + "b" * 200, [9]))[:-14]
    world.upstream.endless = b": more\n\n" * 100
    before = world.upstream.gone
    status, _, out = await post(world, client, "chat", "cut")
    assert status == 200
    assert out.endswith(b"data: [DONE]\n\n")
    assert b"1111" not in out
    await until(lambda: world.upstream.gone > before)


async def test_a_respond_before_anything_was_sent_has_its_own_status(
    world: World, client: aiohttp.ClientSession
) -> None:
    stream = encoded("chat", stream_of("chat", f"it is {WORDS} then", [3]))
    for world.upstream.body, kind in ((stream, "text/event-stream"), (whole(WORDS), "application/json")):
        world.upstream.headers = {"content-type": kind}
        status, headers, out = await post(world, client, "chat", "respond")
        assert status == 451
        assert json.loads(out)["error"]["message"] == "Not this answer."
        assert headers["x-pointsman-answer"] == "instead"
    world.upstream.body = encoded("chat", stream_of("chat", "x " * 250 + WORDS + " y" * 50, [3]))
    world.upstream.headers, world.upstream.size, world.upstream.pause = {}, 2000, 0.01
    status, _, out = await post(world, client, "chat", "respond")
    assert status == 200
    assert b"Not this answer." in out
    assert b"falcon" not in out


async def test_a_whole_answer_is_masked_or_cut(world: World, client: aiohttp.ClientSession) -> None:
    world.upstream.body, world.upstream.headers = whole(TEXT), {"content-type": "application/json"}
    status, headers, out = await post(world, client, "chat", "mask", stream=False)
    assert status == 200
    assert orjson.loads(out) == orjson.loads(whole(masked(TEXT)))
    assert headers["x-pointsman-answer"] == "mask"
    status, headers, out = await post(world, client, "chat", "cut", stream=False)
    assert {choice["message"]["content"] for choice in orjson.loads(out)["choices"]} == {"This answer ends here."}
    assert headers["x-pointsman-answer"] == "cut"
    status, headers, out = await post(world, client, "chat", "flag", stream=False)
    assert out == whole(TEXT)
    assert headers["x-pointsman-answer"] == "seen"
    await until(lambda: world.lines()[-1].get("answer", {}).get("decision") == "seen")
    assert world.lines()[-1]["answer"]["action"] == "flag"
    metrics = await asyncio.to_thread(world.router.metrics)
    samples = [line for line in metrics.splitlines() if line.startswith("pointsman_answer_decisions_total{")]
    assert any('decision="seen"' in line and 'action="flag"' in line for line in samples)


@pytest.mark.parametrize("kind", ["gzip", "text", "broken"])
async def test_what_cannot_be_read_is_not_shown_under_match(
    world: World, client: aiohttp.ClientSession, kind: str
) -> None:
    world.upstream.body = b"secret that nobody can read"
    world.upstream.headers = {
        "gzip": {"content-encoding": "br"},
        "text": {"content-type": "text/plain"},
        "broken": {"content-type": "application/json"},
    }[kind]
    status, _, out = await post(world, client, "chat", "mask")
    assert status == 502
    assert b"secret" not in out
    async with client.post(
        f"{world.url()}/v1/chat/completions", json=asked("chat"), headers={"x-do": "open"}
    ) as response:
        assert response.status == 200


async def test_a_judge_far_away_holds_the_answer_until_it_has_spoken(
    world: World, client: aiohttp.ClientSession
) -> None:
    stream = encoded("chat", stream_of("chat", "word " * 100, [5]))
    world.upstream.body, world.upstream.size = stream, 500
    assert (await post(world, client, "chat", "far"))[2] == stream
    assert world.upstream.judged > 2
    world.upstream.body = encoded("chat", stream_of("chat", "word " * 60 + WORDS + " word" * 60, [5]))
    out = (await post(world, client, "chat", "far"))[2]
    assert b"Too far." in out
    assert b"falcon" not in out


async def test_a_judge_that_hangs_follows_on_unknown(world: World, client: aiohttp.ClientSession) -> None:
    stream = encoded("chat", stream_of("chat", "word " * 40, [5]))
    world.upstream.body, world.upstream.hangs = stream, True
    out = (await post(world, client, "chat", "far"))[2]
    assert b"word" not in out
    assert b"Too far." in out
    assert (await post(world, client, "chat", "open"))[2] == stream


def halves(world: World) -> tuple[bytes, bytes]:
    """An answer whose second half waits for `resumed`."""
    early = encoded("chat", [chunk({"content": "early "}) for _ in range(200)]).removesuffix(DONE)
    late = encoded("chat", [chunk({"content": "late "}) for _ in range(200)])
    world.upstream.body, world.upstream.rest = early, late
    return early, late


async def begun(world: World, client: aiohttp.ClientSession, do: str) -> tuple[aiohttp.ClientResponse, bytes]:
    """An answer of which a part has come: its judge has spoken."""
    headers = {"x-do": do}
    response = await client.post(f"{world.url()}/v1/chat/completions", json=asked("chat"), headers=headers)
    return response, await response.content.readany()


async def gathered(response: aiohttp.ClientResponse, pieces: list[bytes]) -> None:
    while piece := await response.content.readany():
        pieces.append(piece)


async def test_a_judge_that_is_killed_in_the_middle_follows_on_unknown(
    world: World, client: aiohttp.ClientSession
) -> None:
    early, late = halves(world)
    closed, first = await begun(world, client, "dies")
    opened, other = await begun(world, client, "goes")
    world.mortal.kill()
    world.upstream.resumed.set()
    out = first + await closed.read()
    assert b"Too far." in out
    assert b"late" not in out
    text = shown(out)[0, "content"]
    assert shown(early)[0, "content"].startswith(text.removesuffix("\n\nToo far."))
    assert other + await opened.read() == early + late


async def test_a_router_that_is_killed_in_the_middle_lets_nothing_by_unjudged(
    world: World, client: aiohttp.ClientSession
) -> None:
    early, _ = halves(world)
    response, out = await begun(world, client, "far")
    await asyncio.to_thread(world.router.stop, signal.SIGKILL)
    world.upstream.resumed.set()
    pieces: list[bytes] = []
    with pytest.raises(aiohttp.ClientPayloadError):
        await gathered(response, pieces)
    response.close()
    assert early.startswith(out + b"".join(pieces))
    await asyncio.to_thread(world.router.start)
    world.upstream.rest = b""
    for _ in range(int(10 * PATIENCE)):
        if (await post(world, client, "chat", "none"))[0] == 200:
            return
        await asyncio.sleep(0.1)
    raise AssertionError("the router does not answer again")


async def test_a_client_that_leaves_frees_everything(world: World, client: aiohttp.ClientSession) -> None:
    world.upstream.endless = encoded("chat", stream_of("chat", "word " * 20, [50]))[:-14]
    before = world.upstream.gone
    for do in ("mask", "far"):
        status = 0
        while status != 200:  # a router that an overloaded machine makes late is passed over by Envoy
            response, _ = await begun(world, client, do)
            status = response.status
            response.close()
        before += 1
        await until(lambda count=before: world.upstream.gone >= count)  # type: ignore[misc]
    await until(lambda: "pointsman_streams_inflight 0" in world.router.metrics())
    assert world.upstream.gone >= before


@pytest.mark.parametrize("size", [60_000_000, pytest.param(1_000_000_000, marks=pytest.mark.volume)])
async def test_an_endless_answer_takes_bounded_memory(world: World, size: int) -> None:
    event = b'data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n'
    world.upstream.endless = event % (b"word " * 2000) * 8
    body = json.dumps(asked("chat")).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", world.envoy.port("ingress"))
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-do: mask\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    pid = world.router.pid
    took, most, first = 0, 0, 0
    try:
        while took < size:
            took += len(await asyncio.wait_for(reader.read(1 << 20), PATIENCE))
            most = max(most, memory(pid))
            first = first or (most if took > 4_000_000 else 0)
        assert most < first + 30_000
        before = -1
        while before != world.upstream.sent:  # nobody reads any more: it stops
            before = world.upstream.sent
            assert before < took + 100_000_000
            await asyncio.sleep(1.0)
        assert memory(pid) < first + 30_000
    finally:
        writer.transport.abort()


def memory(pid: int) -> int:
    """KiB of the process and its children."""
    total = 0
    for one in [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]:
        lines = Path(f"/proc/{one}/status").read_text().splitlines()
        total += next((int(line.split()[1]) for line in lines if line.startswith("VmRSS")), 0)
    return total
