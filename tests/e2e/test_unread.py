"""Nothing walks around a guard: what carries the marked text is refused before any model server answers it.

The guard reads `in: all` with `on_unknown: match`. Every request of the first part carries the marked text: it is right
that the router or Envoy refuses it, and wrong that a server of any kind shows it to a model. Requests of the second
part are understood and carry other text: they reach the right model with the right path and body.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import brotli
import h2.config
import h2.connection
import h2.events
import orjson
import pytest
import zstandard

from tests.e2e.conftest import DUPLEX
from tests.e2e.proxy import Envoy, Router, Upstream, prepared, served, started
from tests.e2e.servers import Records, echo_server, express_server, tiny_server
from tests.extproc.requests.test_body import PLACES
from tests.patience import PATIENCE

pytestmark = pytest.mark.e2e

MARK = "classified-codeword"
POLICY = """\
version: 1
models:
  small: {name: org/small, url: "http://SMALL"}
  large: {name: org/large, url: "http://LARGE"}
default: small
signals:
  forbidden: {keyword: {any: [classified-codeword], in: all}}
  code: {keyword: {any: [traceback, refactor]}}
decisions:
  - {name: guard, when: forbidden, on_unknown: match, respond: {status: 403, message: "Refused by policy."}}
  - {name: code, when: code, route: large}
paths:
  - {match: /open/*, to: small}
"""
CHAT = "/v1/chat/completions"
MODES = ("buffered", "duplex")
JSON = ("content-type", "application/json")
OURS = {400, 403, 404, 405, 408, 413, 415, 426, 503}
ENVOYS = {0, 400, 403, 404, 501, 505}
"""Statuses with which Envoy itself refuses what is no HTTP (0: it cuts the connection), or another protocol."""


class Case(NamedTuple):
    """One request as it stands on the wire."""

    label: str
    raw: bytes


def http(path: str, body: bytes = b"", *headers: tuple[str, str], method: str = "POST", label: str = "") -> Case:
    lines = [f"{method} {path} HTTP/1.1", "host: gateway", "connection: close"]
    lines += [f"{name}: {value}" for name, value in headers]
    if body or method in ("POST", "PUT"):
        lines.append(f"content-length: {len(body)}")
    head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
    return Case(label or f"{method} {path} {headers}", head + body)


def chat(text: str = MARK, **fields: Any) -> bytes:
    return orjson.dumps({"model": "auto", "messages": [{"role": "user", "content": text}], **fields})


@dataclass
class Gate:
    """The router, an Envoy with a listener for each server and mode, and the servers (a text: why one is not there)."""

    envoy: Envoy
    router: Router
    upstreams: dict[str, Upstream]
    servers: dict[str, Records | str]

    def server(self, name: str) -> Records:
        server = self.servers[name]
        if isinstance(server, str):
            pytest.skip(server)
        return server

    def reached(self, server: str) -> int:
        """How many requests Envoy has sent to the server."""
        return int(self.envoy.admin(f"/stats?filter=^cluster.up-{server}.upstream_rq_total$").split()[-1])

    @contextmanager
    def unreached(self, server: str) -> Iterator[None]:
        """What runs inside sends nothing to the server."""
        records = self.server(server)
        before, seen = self.reached(server), len(records.texts())
        yield
        assert records.texts()[seen:] == []
        assert self.reached(server) == before

    @contextmanager
    def unshown(self, server: str) -> Iterator[None]:
        """What runs inside makes the server show the marked text to nobody."""
        records = self.server(server)
        seen = len(records.texts())
        yield
        assert [text for text in records.texts()[seen:] if MARK in text] == []


SERVERS = ("fastapi", "express", "echo", "tinylm")


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    from tests.e2e.fastapis import fastapi_server  # FastAPI takes seconds to import

    folder = tmp_path_factory.mktemp("unread")
    upstreams = {name: Upstream(name) for name in ("small", "large")}
    with served(*upstreams.values()) as loop:
        servers = {
            "fastapi": fastapi_server(),
            "express": express_server(folder),
            "echo": echo_server(loop),
            "tinylm": tiny_server(loop),
        }
        text = POLICY.replace("SMALL", upstreams["small"].address).replace("LARGE", upstreams["large"].address)
        router, envoy = prepared(folder, text)
        envoy.listen("duplex", processing_mode=DUPLEX)
        for name, server in servers.items():
            if isinstance(server, Records):
                stand_in(envoy, name, server.address)
        try:
            with started(router, envoy):
                yield Gate(envoy, router, upstreams, servers)
        finally:
            for server in servers.values():
                if isinstance(server, Records):
                    server.stop()


def stand_in(envoy: Envoy, name: str, address: str) -> None:
    """Listeners whose models are all the server at `address`."""
    static = envoy.config["static_resources"]
    cluster = next(one for one in static["clusters"] if one["name"] == "model-small")
    cluster = copy.deepcopy(cluster)
    cluster["name"] = cluster["load_assignment"]["cluster_name"] = f"up-{name}"
    host, _, port = address.partition(":")
    where = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]
    where["socket_address"] = {"address": host, "port_value": int(port)}
    static["clusters"].append(cluster)
    for mode in MODES:
        envoy.listen(f"{name}_{mode}", processing_mode=DUPLEX if mode == "duplex" else {})
        listener = json.dumps(static["listeners"].pop())
        listener = re.sub(r'"cluster": "model-(small|large)"', f'"cluster": "up-{name}"', listener)
        static["listeners"].append(json.loads(listener))


# The client


class Answer(NamedTuple):
    status: int
    body: bytes
    ours: bool = False
    """Whether it is the router's, which names its policy, or Envoy's own."""


async def send(port: int, raw: bytes) -> Answer:
    """Send bytes; the status and the body of what comes back until the connection ends (0: nothing)."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    got = b""
    try:
        writer.write(raw)
        async with asyncio.timeout(PATIENCE):
            while piece := await reader.read(65_536):
                got += piece
                if got.startswith(b"HTTP/1.1 101"):
                    break
    except ConnectionError:
        pass
    finally:
        writer.close()
    while got.startswith(b"HTTP/1.1 100"):
        got = got.partition(b"\r\n\r\n")[2]
    head, _, body = got.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" in head.lower():
        body = b"".join(body.split(b"\r\n")[1::2])
    return Answer(int(head.split()[1]) if head else 0, body, b"\r\nx-pointsman-policy:" in head.lower())


async def every(port: int, cases: Sequence[Case]) -> list[Answer]:
    gap = asyncio.Semaphore(32)

    async def one(case: Case) -> Answer:
        async with gap:
            return await send(port, case.raw)

    return await asyncio.gather(*[one(case) for case in cases])


_COUNTED = re.compile(r"^pointsman_(failures_total|decisions_total)\{(.*)\} ([0-9.e+]+)$", re.M)


def counted(gate: Gate) -> Counter[str]:
    """Refusals by reason, and `guard` for those that the guard made."""
    found: Counter[str] = Counter()
    for name, labels, value in _COUNTED.findall(gate.router.metrics()):
        label = re.search(r'(?:reason|decision)="([^"]*)"', labels)
        if label is not None and (name == "failures_total" or label[1] == "guard"):
            found[label[1]] += int(float(value))
    return found


async def refused(gate: Gate, server: str, mode: str, cases: Sequence[Case]) -> None:
    """Every case is refused and counted, in an API's shape unless Envoy refuses it; none reaches a server."""
    with gate.unreached(server):
        await _refused(gate, server, mode, cases)


async def _refused(gate: Gate, server: str, mode: str, cases: Sequence[Case]) -> None:
    before = await asyncio.to_thread(counted, gate)
    answers = await every(gate.envoy.port(f"{server}_{mode}"), cases)
    ours, codes = 0, Counter[str]()
    for case, answer in zip(cases, answers, strict=True):
        shape = error(answer)
        assert shape is not None or not answer.body or answer.status in ENVOYS, (case.label, answer)
        if not answer.ours:
            assert answer.status in ENVOYS, (case.label, answer)
        else:
            assert shape is not None or "HEAD" in case.label, (case.label, answer)
            assert answer.status in OURS, (case.label, answer)
            ours += 1
            code = (shape or {}).get("code")
            codes[code if isinstance(code, str) else ""] += 1  # Google's is the status
    grown: Counter[str] = Counter()
    for _ in range(50):  # a worker tells what it counts a moment later
        grown = await asyncio.to_thread(counted, gate) - before
        if sum(grown.values()) >= ours:
            break
        await asyncio.sleep(0.1)
    assert sum(grown.values()) == ours, (grown, codes)
    del codes[""], codes["policy_refusal"]
    assert codes <= grown


def error(answer: Answer) -> dict[str, Any] | None:
    """The error in the shape of OpenAI, Anthropic or Google; None where it is none of these."""
    try:
        found = json.loads(answer.body)["error"]
    except (ValueError, KeyError, TypeError):
        return None
    assert found["status" if found.get("code") == answer.status else "type"], answer
    assert found["message"], answer
    assert MARK not in answer.body.decode(), answer
    return found if isinstance(found, dict) else None


anywhere = pytest.mark.parametrize(("server", "mode"), [(server, mode) for server in SERVERS for mode in MODES])
once = pytest.mark.parametrize(("server", "mode"), [("fastapi", "buffered"), ("express", "duplex")])


# Paths

DISGUISED = [
    CHAT + end
    for end in (
        "", "%0a", "%0A%0d", "/", "//", "/.", "/./", "%00", "%20", "%09", "%2f", ";x", ";x=y/", "%3b", "%3Fx=y",
        "?x=/v1/models", "?x=%2e%2e", "/x/..", "/x/%2e%2e", "/%2e%2e/completions", "/%252e%252e/completions", "%5c",
        "\\", "%23x", "%25%30%61", "%250a", "%25250a", "%c0%af", "%ef%bc%8f", "%c2%a0", "%e2%80%8b", ".json", "::",
        "*", "%", "%zz",
    )
] + [
    "/V1/chat/completions", "/v1/Chat/Completions", "/V1/CHAT/COMPLETIONS/", "//v1//chat//completions",
    "/v1/chat%2fcompletions", "/v1/chat%2Fcompletions%2f", "/v1%2fchat%2fcompletions", "/%2fv1/chat/completions",
    "/v1/%63hat/completions", "/v1/%2563hat/completions", "/v1/%252563hat/completions", "/%76%31/chat/completions",
    "/v1/./chat/./completions", "/./v1/chat/completions", "/../v1/chat/completions", "/v1/x/../chat/completions",
    "/v1/x/%2e%2e/chat/completions", "/v1/x/.%2e/chat/completions", "/v1/x%2f..%2fchat/completions",
    "/v1\\chat\\completions", "/v1%5cchat%5ccompletions", "/v1;a=b/chat;c/completions", "/v1/chat;/completions",
    "/v1/models/../chat/completions", "/v1/models/%2e%2e/chat/completions", "/v1/models%2f..%2fchat%2fcompletions",
    "/open/../v1/chat/completions", "/open/%2e%2e/generate", "/open/..%2fgenerate", "/open/x;/../../generate",
    "/open/x%2f..%2f..%2fgenerate", "/open/..\\generate", "/chat/completions", "/proxy/v1/chat/completions",
    "/api/v3/chat/completions", "/api/paas/v4/chat/completions", "/compatible-mode/v1/chat/completions",
    "/openai/v1/chat/completions", "/v1beta/openai/chat/completions", "/v1beta/openai/v1/chat/completions",
    "/openai/deployments/small/chat/completions?api-version=2024-10-21", "/deployments/small/chat/completions",
    "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21", "/OpenAI/Deployments/small/Chat/Completions",
    "/v1/chat/completions/123", "/v1/" + "x/../" * 40 + "chat/completions", "/" + "%2f" * 200 + "v1/chat/completions",
    "http://elsewhere" + CHAT, "http://elsewhere/generate", "/v1/chat/completions?/../../generate", CHAT + "#/generate",
]  # fmt: skip
"""Spellings that one server or another takes for the path of a chat completion, or of something that it serves."""

CALLS: list[tuple[str, dict[str, Any]]] = [
    *((path, {"prompt": MARK, "model": "auto"}) for path in ("/v1/completions", "/completions", "/v1/completions%0a")),
    *((path, {"input": MARK}) for path in ("/v1/embeddings", "/embeddings", "/v1/Embeddings/", "/v1/embeddings%0a")),
    *((path, {"input": MARK}) for path in ("/v1/responses", "/responses", "/v1/responses%0a", "/v1/RESPONSES")),
    *((f"{path}/compact", {"input": MARK}) for path in ("/v1/responses", "/responses")),
    *((f"{path}/input_tokens", {"input": MARK}) for path in ("/v1/responses", "/responses")),
    *(
        (f"{path}{tail}", {"max_tokens": 9, "messages": [{"role": "user", "content": MARK}]})
        for path in ("/v1/messages", "/messages", "/anthropic/v1/messages", "/V1/messages")
        for tail in ("", "/", "%0a", "?beta=true", "/count_tokens", "/Count_Tokens", "/count_tokens%0a")
    ),
]  # fmt: skip

OTHERS = [
    "/v1/messages/batches", "/v1/images/generations", "/v1/images/edits", "/v1/audio/speech",
    "/v1/audio/transcriptions", "/v1/moderations", "/v1/batches", "/v1/files", "/v1/realtime", "/v1/rerank", "/rerank",
    "/v1/score", "/score", "/v1/tokenize", "/tokenize", "/detokenize", "/generate", "/generate_stream", "/invocations",
    "/completion", "/api/chat", "/api/generate", "/api/embed", "/pooling", "/classify", "/infill",
    "/v2/models/m/infer", "/v1/complete", "/v1/threads/t/messages", "/", "/*", "/v1", "/v1/", "/v1/chat",
    "/v1beta/models/gemini:embedContent", "/v1beta/tunedModels/m:generateContent", "/v1/responses/r",
    "/v1/responses/r/cancel",
    "/v1/responses/r/input_items", "/v1/responses/r/other", "/v1/models", "/v1/models/m", "/model/m/invoke", "/openx",
    "/open", "/v1/chat/completions.", "/v1/chatcompletions", "/v1/chat/completion", "/v1/v1", "/v1/messages/x",
    "/v1/embeddings/x",
]  # fmt: skip


@anywhere
async def test_no_spelling_of_a_path_walks_around_a_guard(gate: Gate, server: str, mode: str) -> None:
    cases = [http(path, chat(), JSON) for path in DISGUISED]
    cases += [http(path, orjson.dumps(fields), JSON) for path, fields in CALLS]
    await refused(gate, server, mode, cases)


@anywhere
async def test_other_servers_paths_are_refused_whatever_they_carry(gate: Gate, server: str, mode: str) -> None:
    everything = {"prompt": MARK, "input": MARK, "text": MARK, "query": MARK, "documents": [MARK], "inputs": MARK}
    batch = {"requests": [{"custom_id": "a", "params": orjson.loads(chat())}]}
    body = orjson.dumps({**everything, **batch, **orjson.loads(chat())})
    await refused(gate, server, mode, [http(path, body, JSON) for path in OTHERS])


@once
async def test_other_methods_and_upgrades_are_refused(gate: Gate, server: str, mode: str) -> None:
    paths = (CHAT, "/v1/responses", "/v1/messages", "/v1/models", "/generate", "/v1/realtime", "/v1/responses/r")
    methods = ("GET", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "QUERY", "PROPFIND", "TRACE", "post", "Post")
    cases = [
        http(path, chat(), JSON, method=method)
        for path in paths
        for method in methods
        if (path, method) != ("/v1/models", "GET")  # the list, which we answer; its body goes nowhere
        and (path, method) != ("/v1/models", "HEAD")
    ]
    mask = bytes(4)
    frame = b"\x81" + bytes([0x80 | 126]) + len(chat()).to_bytes(2, "big") + mask + chat()
    for path in (*paths[:3], "/v1/realtime", "/v1/responses/r", "/v1/Responses/", "/responses", "/ws"):
        for method in ("GET", "POST"):
            for name in ("websocket", "WebSocket", "h2c, websocket"):
                upgrade = (("upgrade", name), ("connection", "upgrade"), ("sec-websocket-version", "13"))
                key = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
                raw = http(path, b"", *upgrade, key, method=method).raw
                raw = raw.replace(b"connection: close\r\n", b"").replace(b"content-length: 0\r\n", b"")
                cases.append(Case(f"{method} {path} {name}", raw + frame))
    await refused(gate, server, mode, cases)


# Content types and encodings

TYPES = [
    "text/plain", "text/plain; charset=utf-8", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
    "text/json", "application/octet-stream", "application/x-ndjson", "application/jsonl", "application/ld+json",
    "application/vnd.api+json", "application/cbor", "application/xml", "text/html", "image/png",
    "application/csp-report", "x", "*/*", " ", "APPLICATION/JSON", "application/json;", "application/json; x=y",
    "application/json;charset=utf8", "application/json,text/plain", "application/json; charset=utf-16",
    "application/json; charset=utf-7", "application/json; charset    =    utf-7",
    "application/json; charset*=us-ascii''utf-7", 'application/json; charset*0="utf-"; charset*1="7"', "json", ",",
    ";",
]  # fmt: skip


@anywhere
async def test_no_content_type_walks_around_a_guard(gate: Gate, server: str, mode: str) -> None:
    seven = chat("+" + base64.b64encode(MARK.encode("utf-16-be")).decode().rstrip("=") + "-")
    cases = [http(CHAT, chat(), ("content-type", kind)) for kind in TYPES]
    cases.append(http(CHAT, chat()))
    cases.append(http(CHAT, chat(), JSON, JSON, label="two types"))
    cases.append(http(CHAT, chat(), ("content-type", "text/plain"), JSON, label="two types"))
    cases.append(http(CHAT, chat(), JSON, ("content-type", "application/x-www-form-urlencoded"), label="two types"))
    form = f"model=auto&prompt={MARK}&messages[0][content]={MARK}".encode()
    parts = f'--x\r\ncontent-disposition: form-data; name="prompt"\r\n\r\n{MARK}\r\n--x--\r\n'.encode()
    cases.append(http(CHAT, form, ("content-type", "application/x-www-form-urlencoded"), label="a form"))
    cases.append(http(CHAT, form, label="a form without a type"))
    cases.append(http(CHAT, parts, ("content-type", "multipart/form-data; boundary=x"), label="parts"))
    cases.append(http(CHAT, MARK.encode(), ("content-type", "text/plain"), label="text"))
    cases += [http(CHAT, seven, ("content-type", kind), label=f"seven {kind}") for kind in TYPES if "7" in kind[:32]]
    await refused(gate, server, mode, cases)


@anywhere
async def test_what_two_readers_would_read_two_ways_goes_on_as_one(gate: Gate, server: str, mode: str) -> None:
    """JSON in UTF-8 that is a form, too, or text in UTF-7 to whoever looks at the type: it goes on as JSON."""
    seven = chat("+" + base64.b64encode(MARK.encode("utf-16-be")).decode().rstrip("=") + "-")
    form = chat("hi", a=f"&prompt={MARK.replace('-', '%2d')}&b=")
    odd = [kind for kind in TYPES if "utf-" in kind and kind.rpartition("=")[0].split("charset")[1].strip(" =")]
    cases = [http(CHAT, seven, ("content-type", kind)) for kind in (*odd, "application/json; charset          =utf-7")]
    cases += [http(CHAT, form, ("content-type", "application/x-www-form-urlencoded"))]
    with gate.unshown(server):
        answers = await every(gate.envoy.port(f"{server}_{mode}"), cases)
    assert {answer.status for answer in answers} <= {200, 415}
    assert 200 in {answer.status for answer in answers}


def squeeze(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


PACKED: list[tuple[str, bytes]] = [
    ("gzip", gzip.compress(chat())),
    ("GZip", gzip.compress(chat())),
    ("x-gzip", gzip.compress(chat())),
    ("gzip", gzip.compress(chat()[:20]) + gzip.compress(chat()[20:])),
    ("gzip", gzip.compress(chat()) + b"trailing"),
    ("gzip", gzip.compress(chat())[:-4]),
    ("gzip", chat()),
    ("deflate", zlib.compress(chat())),
    ("deflate", squeeze(chat())),
    ("br", brotli.compress(chat())),
    ("zstd", zstandard.compress(chat())),
    ("zstd", zstandard.compress(chat()[:20]) + zstandard.compress(chat()[20:])),
    ("identity", chat()),
    ("Identity", chat()),
    ("identity, identity", chat()),
    ("identity, gzip", gzip.compress(chat())),
    ("", chat()),
    (" , ", chat()),
    ("gzip, gzip", gzip.compress(gzip.compress(chat()))),
    ("gzip, br", brotli.compress(gzip.compress(chat()))),
    ("gzip;q=1", gzip.compress(chat())),
    ("compress", chat()),
    ("dcb", chat()),
    ("utf-8", chat()),
    ("aes128gcm", chat()),
    ("none", chat()),
]


@anywhere
async def test_no_encoding_walks_around_a_guard(gate: Gate, server: str, mode: str) -> None:
    cases = [http(CHAT, body, JSON, ("content-encoding", name)) for name, body in PACKED]
    twice = gzip.compress(gzip.compress(chat()))
    cases.append(
        http(CHAT, twice, JSON, ("content-encoding", "gzip"), ("content-encoding", "gzip"), label="two headers")
    )
    cases.append(http(CHAT, gzip.compress(chat()), JSON, label="gzip that nothing says"))
    await refused(gate, server, mode, cases)


# Places, keys and readings of JSON

LONG = "A" * 600
ESCAPED = '{"q": "\\u0063lassified\\u002dcodeword"}'
B64 = base64.b64encode(MARK.encode()).decode()
WIDE = base64.b64encode(MARK.encode("utf-16")).decode()


def parts(*content: Any, role: str = "user") -> bytes:
    return chat("hi", messages=[{"role": role, "content": list(content)}])


def text(value: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": value, **more}


def file(data: str) -> bytes:
    return parts(text("hi"), {"type": "file", "file": {"filename": "a", "file_data": data}})


def anthropic(*content: Any) -> tuple[str, bytes]:
    return "/v1/messages", orjson.dumps({"model": "auto", "max_tokens": 9, **orjson.loads(parts(*content))})


def call(arguments: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": arguments}}]}


HIDDEN: list[tuple[str, bytes]] = [
    (CHAT, chat(f"data:,{MARK}/{LONG}")),
    (CHAT, chat(f"data:text/plain;base64,{MARK}/{LONG}")),
    (CHAT, chat("hi", documents=[{"data": f"{MARK}/{LONG}"}])),
    (CHAT, chat("hi", messages=[{"role": "user", "content": "hi"}, call(ESCAPED)])),
    (CHAT, chat("hi", messages=[{"role": "user", "content": "hi"}, call(f'{{"a": "\\"{MARK}"}}')])),
    (CHAT, parts(text("classified-"), text("codeword"))),
    (CHAT, parts("classified-", "codeword")),
    (CHAT, parts(text("hi", cache_control={"type": MARK}))),
    (CHAT, parts(text("hi", Text=MARK))),
    (CHAT, parts({"type": "TEXT", "text": MARK})),
    (CHAT, chat("hi", messages=[{"role": "User", "content": MARK}])),
    (CHAT, file(f"data:text/plain;base64,{B64}")),
    (CHAT, file(f"data:text/plain;BASE64,{B64}")),
    (CHAT, file(f"data:text/plain,{MARK.replace('-', '%2d')}")),
    (CHAT, file(f"data:text/plain;charset=utf-16;base64,{WIDE}")),
    (CHAT, file(f"data:application/pdf;base64,{B64}")),
    (CHAT, file(B64)),
    (CHAT, chat("hi", chat_template="{{ 'classified' ~ '-codeword' }}")),
    (CHAT, chat("hi", prompt_token_ids=[1, 2])),
    (CHAT, chat("hi", input_ids=[1, 2])),
    ("/v1/completions", orjson.dumps({"prompt": [1, 2, 3]})),
    ("/v1/completions", orjson.dumps({"prompt": [[1, 2], [3]]})),
    ("/v1/completions", orjson.dumps({"prompt": ["a", [1]]})),
    ("/v1/completions", orjson.dumps({"prompt_embeds": "AA=="})),
    ("/v1/embeddings", orjson.dumps({"input": [1, 2, 3]})),
    ("/v1/responses", orjson.dumps({"input": "hi", "previous_response_id": "r"})),
    ("/v1/responses", orjson.dumps({"input": "hi", "conversation": "c"})),
    ("/v1/responses", orjson.dumps({"prompt": {"id": "p", "variables": {"q": MARK}}})),
    ("/v1/responses", orjson.dumps({"prompt": {"id": "p"}})),
    ("/v1/responses", orjson.dumps({"input": [{"type": "item_reference", "id": "m"}]})),
    ("/v1/responses", orjson.dumps({"input": [{"type": None, "role": "user", "content": MARK}]})),
    ("/v1/responses", orjson.dumps({"input": [{"type": 7, "role": "user", "content": MARK}]})),
    ("/v1/responses", orjson.dumps({"input": [{"type": "Message", "role": "user", "content": MARK}]})),
    ("/v1/responses", orjson.dumps({"input": [{"type": "new", "content": [{"anything": MARK}]}]})),
    ("/v1/responses", orjson.dumps({"input": [{"type": "compaction", "encrypted_content": LONG}]})),
    anthropic({"type": "document", "source": {"type": "base64", "media_type": "text/plain", "data": B64}}),
    anthropic({"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": B64}}),
    anthropic({"type": "document", "source": {"type": "file", "file_id": "f"}}),
    anthropic({"type": "document", "source": {"type": "url", "url": "https://example.org"}}),
    anthropic({"type": "tool_use", "id": "t", "name": "f", "input": {"data": f"{MARK}/{LONG}"}}),
    anthropic({"type": "container_upload", "file_id": "f"}),
]
"""Text in places and forms that a reader may miss, and text that is not there to be read."""


@anywhere
async def test_no_place_of_a_body_walks_around_a_guard(gate: Gate, server: str, mode: str) -> None:
    cases = [http(path, orjson.dumps({"model": "auto", **fields}), JSON, label=str(fields)) for path, fields in PLACES]
    cases += [http(path, body, JSON, label=body.decode()) for path, body in HIDDEN]
    await refused(gate, server, mode, cases)


BAD = b'{"role":"user","content":"classified-codeword"}'
GOOD = b'{"role":"user","content":"hi"}'
READINGS: list[bytes] = [
    # Keys
    b'{"model":"auto","messages":[%b],"messages":[%b]}' % (BAD, GOOD),
    b'{"model":"auto","messages":[%b],"messages":[%b]}' % (GOOD, BAD),
    b'{"model":"auto","messages":[%b],"mess\\u0061ges":[%b]}' % (BAD, GOOD),
    b'{"model":"auto","Messages":[%b],"messages":[%b]}' % (BAD, GOOD),
    b'{"model":"auto","me\xc5\xbf\xc5\xbfages":[%b],"messages":[%b]}' % (BAD, GOOD),
    b'{"model":"auto","messages":[{"role":"user","content":"classified-codeword","content":"hi"}]}',
    b'{"model":"auto","messages":[{"role":"user","Content":"classified-codeword","content":"hi"}]}',
    b'{"model":"auto","messages":[{"role":"user","content":[{"type":"text","text":"classified-codeword","text":"hi"}]}]}',
    b'{"model":"auto","messages":[%b],"messages\\u0000":[%b]}' % (GOOD, BAD),
    b'{"model":"auto","messages":[%b]," messages":[%b]}' % (GOOD, BAD),
    b'{"model":"auto","messages":[%b],"x":{"a":"classified-codeword","a":1}}' % GOOD,
    # What is no JSON to some
    b"\xef\xbb\xbf" + chat(),
    chat().decode().encode("utf-16"),
    chat().decode().encode("utf-16-le"),
    chat().decode().encode("utf-16-be"),
    chat().decode().encode("utf-32"),
    chat().decode().encode("utf-32-be"),
    chat() + chat(),
    chat("hi") + b"\n" + chat(),
    chat() + b"\0",
    b"// comment\n" + chat(),
    chat()[:-1] + b",}",
    chat()[:-1] + b',"temperature":NaN}',
    chat()[:-1] + b',"temperature":Infinity}',
    chat()[:-1] + b',"temperature":01}',
    chat()[:-1] + b',"temperature":1e999}',
    chat()[:-1] + b',"seed":' + b"9" * 5000 + b"}",
    chat()[:-1] + b',"x":"\\ud800"}',
    chat()[:-1] + b',"x":"\xff"}',
    chat()[:-1] + b',"x":"\t"}',
    chat()[:-1] + b",'x':1}",
    b"[%b]" % chat(),
    b'"classified-codeword"',
    orjson.dumps(chat().decode()),
    b"",
    b" ",
    b"null",
    b"{}",
    chat()[:-1] + b',"x":' + b"[" * 2000 + b"]" * 2000 + b"}",
    chat()[:-1] + b',"x":' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}",
    b'{"model":"auto","messages":{"role":"user","content":"classified-codeword"}}',
    b'{"model":"auto","messages":"classified-codeword"}',
    b'{"model":["auto"],"messages":[%b]}' % BAD,
    b'{"model":{"classified-codeword":1},"messages":[%b]}' % BAD,
    b'{"model":"","messages":[%b]}' % BAD,
    b'{"model":"nobody","messages":[%b]}' % BAD,
    b'{"messages":[%b]}' % BAD,
    b'{"model":null,"messages":[%b]}' % BAD,
    b'{"model":"auto","messages":[%b],"stream":true}' % BAD,
]


@anywhere
async def test_no_reading_of_json_walks_around_a_guard(gate: Gate, server: str, mode: str) -> None:
    await refused(gate, server, mode, [http(CHAT, body, JSON, label=repr(body[:200])) for body in READINGS])


# HTTP itself


def chunked(path: str, body: bytes, *lines: str, trailers: str = "") -> bytes:
    head = "\r\n".join(
        (f"POST {path} HTTP/1.1", "host: x", "content-type: application/json", "connection: close", *lines)
    )
    pieces = b"".join(b"%x\r\n%b\r\n" % (len(body[at : at + 9]), body[at : at + 9]) for at in range(0, len(body), 9))
    return head.encode() + b"\r\ntransfer-encoding: chunked\r\n\r\n" + pieces + b"0\r\n" + trailers.encode() + b"\r\n"


def tricks() -> list[Case]:
    aside = (
        "x-original-url",
        "x-rewrite-url",
        "x-http-method-override",
        "x-method-override",
        "x-forwarded-prefix",
        "x-http-method",
    )
    hosts = ("", "localhost", "gateway:80", "gateway@evil", "a b", "[::1]", "x-pointsman-route")
    plain = http(CHAT, chat(), JSON).raw
    get = http("/v1/responses/r", b"", method="GET").raw
    head, _, _ = plain.partition(b"\r\n\r\n")
    return [
        *(http(CHAT, chat(), JSON, (name, value)) for name in aside for value in ("/generate", "GET", "PUT")),
        *(http("/v1/responses/r", chat(), JSON, (name, "/generate")) for name in aside),
        *(
            http(CHAT, chat(), JSON, (f"x-pointsman-{name}", "large"))
            for name in ("route", "decision", "model", "hop", "policy")
        ),
        *(Case(f"host {host}", plain.replace(b"host: gateway", f"host: {host}".encode())) for host in hosts),
        Case("no host", plain.replace(b"host: gateway\r\n", b"")),
        Case("two hosts", plain.replace(b"host: gateway", b"host: a\r\nhost: b")),
        Case("http/1.0", plain.replace(b"HTTP/1.1", b"HTTP/1.0")),
        Case("expect", plain.replace(b"host: gateway", b"host: gateway\r\nexpect: 100-continue")),
        Case("chunked", chunked(CHAT, chat())),
        Case("trailers", chunked(CHAT, chat(), trailers="content-type: text/plain\r\nx-original-url: /generate\r\n")),
        http(CHAT, gzip.compress(chat()), JSON, ("transfer-encoding", "gzip"), label="transfer-encoding"),
        Case("chunked twice", chunked(CHAT, chat(), "transfer-encoding: chunked")),
        Case("chunked, identity", chunked(CHAT, chat()).replace(b": chunked", b": chunked, identity")),
        Case("xchunked", chunked(CHAT, chat()).replace(b": chunked", b": xchunked")),
        Case("length and chunks", chunked(CHAT, chat(), "content-length: 4")),
        Case("two lengths", head + b"\r\ncontent-length: 0\r\n\r\n" + chat()),
        Case("short length", http(CHAT, chat("hi"), JSON).raw[:-1] + plain),
        Case("folded type", plain.replace(b"application/json", b"application/json\r\n ; charset=utf-7")),
        Case("space before colon", plain.replace(b"content-type:", b"content-type :")),
        Case("bare line feeds", plain.replace(b"\r\n", b"\n")),
        Case("nul in path", plain.replace(CHAT.encode(), CHAT.encode() + b"\0")),
        Case("bytes in path", plain.replace(CHAT.encode(), CHAT.encode() + b"\xc3\xa9")),
        Case("tab in path", plain.replace(CHAT.encode(), CHAT.encode() + b"\t")),
        Case("no slash", plain.replace(CHAT.encode(), CHAT[1:].encode())),
        Case("asterisk", plain.replace(CHAT.encode(), b"*")),
        Case("connect", plain.replace(b"POST " + CHAT.encode(), b"CONNECT gateway:80")),
        Case("get with chunks", chunked("/v1/responses/r", chat()).replace(b"POST", b"GET")),
        Case("delete with chunks", chunked("/v1/responses/r", chat()).replace(b"POST", b"DELETE")),
        Case("a second request in a first", get.replace(b"connection: close", b"content-length: 0") + plain),
    ]


@anywhere
async def test_no_trick_of_http_walks_around_a_guard(gate: Gate, server: str, mode: str) -> None:
    """Each is refused or goes on without the marked text. Who counts it differs: Envoy refuses some itself."""
    cases = tricks()
    with gate.unshown(server):
        answers = await every(gate.envoy.port(f"{server}_{mode}"), cases)
    for case, answer in zip(cases, answers, strict=True):
        first = case.label in ("short length", "a second request in a first")  # a request before it is answered
        assert answer.status in (OURS | ENVOYS | ({200, 404, 405} if first else set())), (case.label, answer)
        assert MARK.encode() not in answer.body, case.label


async def http2(port: int, headers: list[tuple[str, str]], body: bytes, trailers: list[tuple[str, str]]) -> int | None:
    """The status of one HTTP/2 request, written as given; None where the stream or the connection was reset."""
    config = h2.config.H2Configuration(validate_outbound_headers=False, normalize_outbound_headers=False)
    peer = h2.connection.H2Connection(config=config)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        peer.initiate_connection()
        peer.send_headers(1, headers)
        if body:
            peer.send_data(1, body)
        if trailers:
            peer.send_headers(1, trailers, end_stream=True)
        else:
            peer.end_stream(1)
        writer.write(peer.data_to_send())
        async with asyncio.timeout(PATIENCE):
            while data := await reader.read(65_536):
                for event in peer.receive_data(data):
                    if isinstance(event, h2.events.ResponseReceived):
                        return int(dict(event.headers or [])[b":status"])
                    if isinstance(event, (h2.events.StreamReset, h2.events.ConnectionTerminated)):
                        return None
                writer.write(peer.data_to_send())
    except ConnectionError:
        pass
    finally:
        writer.close()
    return None


def plain_headers(**other: str | None) -> list[tuple[str, str]]:
    pseudo = {"method": "POST", "scheme": "http", "authority": "gateway", "path": CHAT} | other
    return [*((f":{name}", value) for name, value in pseudo.items() if value is not None), JSON]


@once
async def test_no_trick_of_http2_walks_around_a_guard(gate: Gate, server: str, mode: str) -> None:
    with gate.unshown(server):
        await every_http2(gate.envoy.port(f"{server}_{mode}"))


async def every_http2(port: int) -> None:
    paths = (
        "chat",
        "*",
        "",
        CHAT[1:],
        "//" + CHAT,
        CHAT + " ",
        CHAT + "#x",
        CHAT + "\n",
        CHAT + "\0",
        "http://x" + CHAT,
        "/é" + CHAT,
    )
    tried = [
        plain_headers(),
        *(plain_headers(path=path) for path in paths),
        *(plain_headers(method=method) for method in ("GET", "get", "PRI", "", "CONNECT", "POST ", "QUERY")),
        plain_headers(method="CONNECT", protocol="websocket"),
        plain_headers(scheme="ftp"),
        plain_headers(authority=None),
        plain_headers(path=None),
        [*plain_headers(), (":path", "/generate")],
        [*plain_headers()[:4], (":path", "/generate"), JSON],
        [*plain_headers(), ("transfer-encoding", "chunked")],
        [*plain_headers(), ("content-length", "4")],
        [*plain_headers(), ("Content-Type", "text/plain")],
        [*plain_headers(), ("host", "other")],
        [*plain_headers(), ("cookie", "a=b"), ("cookie", "c=d")],
        [*plain_headers(), ("x-original-url", "/generate")],
    ]
    trailers = [("content-encoding", "gzip"), ("x-original-url", "/generate")]
    asked = [(headers, end) for headers in tried for end in ([], trailers)]
    answers = await asyncio.gather(*[http2(port, headers, chat(), end) for headers, end in asked])
    for (headers, _), status in zip(asked, answers, strict=True):
        assert status is None or status in OURS | ENVOYS, (headers, status)
    assert answers[:2] == [403, 403]


# What is understood


async def posted(gate: Gate, mode: str, case: Case) -> tuple[int, dict[str, Any]]:
    listener = "ingress" if mode == "buffered" else "duplex"
    answer = await send(gate.envoy.port(listener), case.raw)
    assert answer.body, (case.label, answer)
    return answer.status, json.loads(answer.body)


UNDERSTOOD = [
    *(
        (path, CHAT)
        for path in DISGUISED
        if "open" not in path[:6] and "elsewhere" not in path and "#" not in path and "generate" not in path
        if not path.endswith(
            ("%00", "%23x", "%c0%af", "%ef%bc%8f", "%e2%80%8b", ".json", "::", "*", "%", "%zz", "completions/123")
        )
        if not path.startswith(("/proxy", "/api", "/compat", "/openai", "/OpenAI", "/v1beta", "/deploy"))
        and "?" not in path
    ),
    ("/proxy/v1/chat/completions", "/proxy/v1/chat/completions"),
    ("/api/paas/v4/chat/completions", "/api/paas/v4/chat/completions"),
    ("/v1beta/openai/chat/completions", "/v1beta/openai/chat/completions"),
    ("/v1/chat/completions?a=b", "/v1/chat/completions?a=b"),
    ("/chat/completions?a=b", "/v1/chat/completions?a=b"),
]


@pytest.mark.parametrize("mode", MODES)
async def test_every_spelling_reaches_the_model_at_the_plain_path(gate: Gate, mode: str) -> None:
    assert len(UNDERSTOOD) > 40
    for path, wanted in UNDERSTOOD:
        status, answer = await posted(gate, mode, http(path, chat("a traceback"), JSON))
        assert status == 200, (path, answer)
        echo = answer["echo"]
        assert (echo["upstream"], echo["path"]) == ("large", wanted), path
        assert json.loads(echo["body"]) == json.loads(chat("a traceback", model="org/large"))


@pytest.mark.parametrize("mode", MODES)
async def test_an_azure_deployment_is_the_model(gate: Gate, mode: str) -> None:
    for prefix in ("/openai/deployments/large", "/openai/deployments/org/large", "/deployments/org%2Flarge"):
        body = orjson.dumps({"messages": [{"role": "user", "content": "hi"}]})
        status, answer = await posted(gate, mode, http(f"{prefix}/chat/completions?api-version=2024-10-21", body, JSON))
        assert status == 200, answer
        assert (answer["echo"]["upstream"], answer["echo"]["path"]) == ("large", CHAT)
        assert json.loads(answer["echo"]["body"])["model"] == "org/large"
    unknown = http("/openai/deployments/nobody/chat/completions?api-version=1", chat("hi"), JSON)
    status, answer = await posted(gate, mode, unknown)
    assert (status, answer["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("mode", MODES)
async def test_every_content_type_and_encoding_reaches_the_model_as_plain_json(gate: Gate, mode: str) -> None:
    body = chat("a traceback")
    wanted = chat("a traceback", model="org/large").decode()
    cases = [http(CHAT, body, ("content-type", kind)) for kind in TYPES if "utf-" not in kind]
    cases += [http(CHAT, body), http(CHAT, body, JSON, JSON)]
    packers: dict[str, Callable[[bytes], bytes]] = {
        "gzip": gzip.compress,
        "x-gzip": gzip.compress,
        "deflate": zlib.compress,
        "Deflate": squeeze,
        "br": brotli.compress,
        "zstd": zstandard.compress,
        "identity, gzip": gzip.compress,
        "Identity": bytes,
        "": bytes,
    }
    for name, pack in packers.items():
        cases.append(http(CHAT, pack(body), JSON, ("content-encoding", name)))
        # Already at its model, so that nothing but the encoding changes.
        named = pack(wanted.encode())
        cases.append(http(CHAT, named, ("content-encoding", name)))
    for case in cases:
        status, answer = await posted(gate, mode, case)
        assert status == 200, (case.label, answer)
        echo = answer["echo"]
        assert (echo["upstream"], echo["body"]) == ("large", wanted), case.label
        assert echo["headers"].get("content-encoding", "").lower() in ("", "identity")
        assert re.fullmatch(r"application/json(; ?charset=utf-?8)?", echo["headers"]["content-type"].lower()), (
            case.label
        )
        assert int(echo["headers"].get("content-length", len(wanted))) == len(wanted)


@pytest.mark.parametrize("mode", MODES)
async def test_what_is_asked_about_a_call_goes_where_the_call_would(gate: Gate, mode: str) -> None:
    turn = {"messages": [{"role": "user", "content": "a traceback"}]}
    for path, fields in (
        ("/v1/messages/count_tokens", turn),
        ("/messages/count_tokens?beta=true", turn),
        ("/v1/responses/compact", {"input": "a traceback"}),
        ("/v1/responses/input_tokens", {"input": "a traceback"}),
    ):
        status, answer = await posted(gate, mode, http(path, orjson.dumps({"model": "auto", **fields}), JSON))
        assert status == 200, (path, answer)
        echo = answer["echo"]
        assert (echo["upstream"], echo["path"].removeprefix("/v1")) == ("large", path.removeprefix("/v1"))
        assert json.loads(echo["body"]) == {"model": "org/large", **fields}


@pytest.mark.parametrize("mode", MODES)
async def test_stored_responses_reach_the_model_server(gate: Gate, mode: str) -> None:
    for method, path, wanted in (
        ("GET", "/v1/responses/resp_1", "/v1/responses/resp_1"),
        ("GET", "/v1/responses/resp_1?include=x", "/v1/responses/resp_1?include=x"),
        ("GET", "/responses/resp_1/", "/v1/responses/resp_1"),
        ("GET", "/v1/Responses/Resp_1/Input_Items", "/v1/responses/Resp_1/input_items"),
        ("DELETE", "/v1/responses/resp_1", "/v1/responses/resp_1"),
        ("POST", "/v1/responses/resp_1/cancel", "/v1/responses/resp_1/cancel"),
    ):
        status, answer = await posted(gate, mode, http(path, method=method))
        assert status == 200, (path, answer)
        assert (status, answer["upstream"], answer["method"], answer["path"]) == (200, "small", method, wanted)


@pytest.mark.parametrize("mode", MODES)
async def test_a_stored_response_is_fetched_from_the_model_of_its_session(gate: Gate, mode: str) -> None:
    session = ("x-session-id", f"s-{mode}")
    body = orjson.dumps({"model": "auto", "input": "a traceback"})
    assert (await posted(gate, mode, http("/v1/responses", body, JSON, session)))[1]["echo"]["upstream"] == "large"
    for method, path in (("GET", "/v1/responses/r"), ("POST", "/v1/responses/r/cancel"), ("DELETE", "/v1/responses/r")):
        status, answer = await posted(gate, mode, http(path, b"", session, method=method))
        assert (status, answer["upstream"], answer["path"]) == (200, "large", path)


async def test_openings_are_open_and_nothing_around_them(gate: Gate) -> None:
    status, answer = await posted(gate, "buffered", http("/open/x", chat(), JSON))
    assert (status, answer["echo"]["upstream"]) == (200, "small")
    for path in ("/open/../x", "/open/%2e%2e/x", "/OPEN/x", "/open", "/open/x;y", "/openx"):
        status, answer = await posted(gate, "buffered", http(path, chat(), JSON))
        assert (status, answer.get("error", answer).get("code")) == (404, "unknown_path"), path


@pytest.mark.parametrize("mode", MODES)
async def test_what_models_say_of_our_headers_reaches_no_client(gate: Gate, mode: str) -> None:
    """On answers that are passed on: the upstream sets `x-pointsman-model: spoofed`."""
    listener = "ingress" if mode == "buffered" else "duplex"
    for case in (http("/v1/responses/r", method="GET"), http("/open/x", method="GET"), http(CHAT, chat("hi"), JSON)):
        reader, writer = await asyncio.open_connection("127.0.0.1", gate.envoy.port(listener))
        writer.write(case.raw)
        head = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        assert head.startswith(b"HTTP/1.1 200")
        assert b"spoofed" not in head
