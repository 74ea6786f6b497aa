"""Model servers of the frameworks that people use, which keep what they would show a model.

Each reads a request in its own way: which paths it routes, which content types and encodings it reads, what it makes of
a key that stands twice. `shown` is what would stand in a prompt then.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import gzip
import json
import shutil
import subprocess
import zlib
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import brotli
import zstandard
from aiohttp import web

from examples.echo.server import Echo
from examples.tinylm.engine import WEIGHTS, Engine
from examples.tinylm.server import Server as Tiny
from examples.tinylm.shapes import Shape
from tests.e2e.proxy import Loop, fetch
from tests.patience import PATIENCE

MODEL = "org/small"
EXPRESS = "5.3.0"

ROUTES = (
    "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/responses/compact",
    "/v1/responses/input_tokens", "/v1/messages", "/v1/messages/count_tokens", "/v1/messages/batches",
    "/v1/images/generations", "/v1/images/edits", "/v1/audio/speech", "/v1/audio/transcriptions", "/v1/moderations",
    "/v1/batches", "/v1/files", "/v1/realtime", "/v1/rerank", "/rerank", "/v1/score", "/score", "/v1/tokenize",
    "/tokenize", "/detokenize", "/generate", "/generate_stream", "/invocations", "/completion", "/api/chat",
    "/api/generate", "/api/embed", "/chat/completions", "/completions", "/embeddings", "/responses", "/messages",
    "/pooling", "/classify", "/infill", "/v2/models/m/infer", "/v1beta/openai/chat/completions",
    "/openai/v1/chat/completions", "/v1/complete", "/openai/deployments/{name}/chat/completions",
    "/v1/threads/{name}/messages", "/v1/models/{name}", "/v1/responses/{name}", "/v1/responses/{name}/cancel",
    "/v1/responses/{name}/input_items", "/v1beta/models/{name}",
)  # fmt: skip
"""What servers of language models answer, ours and others'."""


class Records:
    """What reached one server and would be shown to a model: path and reading."""

    def __init__(self, name: str, address: str, read: Callable[[], list[tuple[str, Any]]], stop: Callable[[], None]):
        self.name = name
        self.address = address
        self.read = read
        self.stop = stop

    def texts(self) -> list[str]:
        """One text for each request that was answered."""
        return [f"{path} {shown(body)}" for path, body in self.read()]


def shown(body: Any) -> str:
    """All text of a body that a model may be shown: strings, keys, parts joined, what JSON and base64 hold."""
    found: list[str] = []
    stack = [body]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            found += value
            stack += value.values()
        elif isinstance(value, list):
            parts = [one["text"] for one in value if isinstance(one, dict) and isinstance(one.get("text"), str)]
            found.append("".join(parts))
            stack += value
        elif isinstance(value, str):
            found.append(value)
            if value[:1] in ("{", "["):
                with contextlib.suppress(ValueError, RecursionError):
                    stack.append(json.loads(value))
            packed = value.rpartition(",")[2] if value.lower().startswith("data:") else value
            with contextlib.suppress(binascii.Error, ValueError):
                found.append(base64.b64decode(packed, validate=True).decode(errors="replace"))
    return "\n".join(found).replace("\0", "")


def reading(body: bytes, content_type: str, encoding: str) -> Any:
    """A body as Python servers read it, encodings undone; a list of two readings where a key stands twice."""
    for one in reversed([one.strip().lower() for one in encoding.split(",")]):
        body = _DECODERS.get(one, bytes)(body)
    if "x-www-form-urlencoded" in content_type:
        return [list(pair) for pair in parse_qsl(body.decode(errors="replace"))]
    firsts: list[Any] = []

    def first(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        kept = dict(reversed(pairs))
        if len(kept) < len(pairs):
            firsts.append(kept)
        return dict(pairs)

    try:
        if "utf-7" in content_type.replace(" ", "").lower():
            return [json.loads(body.decode("utf-7")), json.loads(body)]
        # What `request.json()` does: any UTF, with or without a byte order mark.
        return [json.loads(body, object_pairs_hook=first), *firsts]
    except (ValueError, RecursionError):
        return body.decode(errors="replace")


_DECODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.decompress,
    "x-gzip": gzip.decompress,
    "deflate": zlib.decompress,
    "br": brotli.decompress,
    "zstd": lambda body: zstandard.ZstdDecompressor().decompressobj().decompress(body),
}


# Express: case and trailing slashes do not matter, escapes are undone once, bodies are inflated

_EXPRESS = """
const express = require('express');
const app = express(), seen = [];
app.use((req, res, next) => {
  const other = req.get('x-original-url') || req.get('x-rewrite-url');
  if (other) req.url = other;
  req.method = req.get('x-http-method-override') || req.get('x-method-override') || req.method;
  next();
});
app.use(express.json({limit: '50mb', strict: false, type: ['json', '+json']}));
app.use(express.urlencoded({limit: '50mb', extended: true}));
app.use(express.text({limit: '50mb', type: () => true}));
app.get('/-/seen', (req, res) => res.json(seen));
const answer = (req, res) => {
  seen.push([req.method + ' ' + req.path, req.body === undefined ? null : req.body]);
  res.json({object: 'chat.completion', model: 'org/small', choices: []});
};
for (const path of JSON.parse(process.argv[2])) app.all(path.replace('{name}', ':name'), answer);
const server = app.listen(0, '127.0.0.1', () => console.log(server.address().port));
server.on('upgrade', (req, socket) => {
  seen.push(['UPGRADE ' + req.url, 'an upgrade got through']);
  socket.end('HTTP/1.1 101 Switching Protocols\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n\\r\\n');
});
"""


def express_server(folder: Path) -> Records | str:
    """The real Express from npm, or why it cannot be had."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        return "Express needs node and npm"
    command = [npm, "install", f"express@{EXPRESS}", "--no-audit", "--no-fund", "--prefer-offline", "--silent"]
    try:
        installed = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return "npm did not install Express within a minute"
    if installed.returncode != 0:
        return f"npm does not install Express: {installed.stderr[-200:]}"
    script = folder / "server.cjs"
    script.write_text(_EXPRESS)
    process = subprocess.Popen([node, str(script), json.dumps(ROUTES)], cwd=folder, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = f"127.0.0.1:{process.stdout.readline().strip()}"

    def read() -> list[tuple[str, Any]]:
        return [(path, body) for path, body in json.loads(fetch(f"http://{address}/-/seen"))]

    def stop() -> None:
        process.terminate()
        process.wait(PATIENCE)
        assert process.stdout is not None
        process.stdout.close()

    return Records("express", address, read, stop)


# The servers that ship


@contextlib.contextmanager
def recorded(seen: list[tuple[str, Any]], path: str, body: bytes) -> Iterator[None]:
    """Record a call before its answer is written, since who has it may look at once; none that is refused."""
    try:
        one = (path, json.loads(body))
    except ValueError:
        yield
        return
    seen.append(one)
    try:
        yield
    except BaseException:
        seen.remove(one)
        raise


class _Echo(Echo):
    def __init__(self, seen: list[tuple[str, Any]], model: str) -> None:
        super().__init__(model)
        self._seen = seen

    async def _call(self, path: str, body: bytes, writer: StreamWriter) -> None:
        with recorded(self._seen, path, body):
            await super()._call(path, body, writer)


def echo_server(loop: Loop, model: str = MODEL) -> Records:
    seen: list[tuple[str, Any]] = []
    echo = _Echo(seen, model)

    async def serve(reader: StreamReader, writer: StreamWriter) -> None:
        await echo.serve(reader, writer)

    server = loop.run(asyncio.start_server(serve, "127.0.0.1", 0))
    host, port = server.sockets[0].getsockname()[:2]

    async def stop() -> None:
        server.close()

    return Records("echo", f"{host}:{port}", lambda: list(seen), lambda: loop.run(stop()))


class _Tiny(Tiny):
    def __init__(self, engine: Engine, seen: list[tuple[str, Any]]) -> None:
        super().__init__([engine])
        self.engines = {MODEL: engine}
        self._seen = seen

    async def _answer(
        self, request: web.Request, *, chat: bool, shape: type[Shape] | None = None
    ) -> web.StreamResponse:
        with recorded(self._seen, request.path, await request.read()):
            return await super()._answer(request, chat=chat, shape=shape)


def tiny_server(loop: Loop) -> Records:
    seen: list[tuple[str, Any]] = []
    engine = Engine("small", WEIGHTS)
    runner = web.AppRunner(_Tiny(engine, seen).application(), access_log=None, shutdown_timeout=1.0)

    async def start() -> None:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()

    loop.run(start())
    host, port = runner.addresses[0][:2]

    def stop() -> None:
        loop.run(runner.cleanup())
        engine.close()

    return Records("tinylm", f"{host}:{port}", lambda: list(seen), stop)
