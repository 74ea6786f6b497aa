"""A model server for agents: it calls their tools step by step, as a script says, in the APIs of OpenAI and Anthropic.

What it is sent is kept. How far the script has come is told by the results in the request, so that it has no state
between the calls of an agent.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web

JSON = dict[str, Any]
SHELLS = ("Bash", "bash", "exec_command", "shell_command", "shell", "local_shell")
"""Names of the tool that runs a command: Claude Code's, opencode's, Codex's."""


@dataclass
class Seen:
    """One request that came."""

    path: str
    headers: dict[str, str]
    raw: bytes
    body: JSON


@dataclass
class Scripted:
    """A server whose model runs `commands` one after the other, and then says `words`."""

    commands: Sequence[str]
    words: str = "All done."
    seen: list[Seen] = field(default_factory=list)
    url: str = ""

    async def start(self) -> None:
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        body: JSON = orjson.loads(raw)
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.seen.append(Seen(request.path, headers, raw, body))
        if request.path.endswith("/count_tokens"):
            return web.json_response({"input_tokens": len(raw) // 4})
        script = _APIS[next(end for end in _APIS if request.path.endswith(end))](body, self)
        if not body.get("stream"):
            *_, whole = script
            return web.json_response(whole)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for event in script:
            kind = event.get("type")
            if kind is None or kind == "message":
                continue  # the whole answer, for those who do not stream
            name = b"" if kind == "chunk" else b"event: " + kind.encode() + b"\n"
            await response.write(name + b"data: " + orjson.dumps(event.get("chunk", event)) + b"\n\n")
        if request.path.endswith("/completions"):
            await response.write(b"data: [DONE]\n\n")
        return response

    def step(self, body: JSON, results: int) -> tuple[str, str, JSON] | None:
        """The call to make, as its id, its tool and its arguments; None when it is time for words."""
        tools = {name: tool for tool in body.get("tools") or () for name, tool in _named(tool)}
        shell = next((name for name in SHELLS if name in tools), None)
        if shell is None or results >= len(self.commands):
            return None
        wanted = tools[shell].get("properties", {})
        key = "cmd" if "cmd" in wanted else "command"
        command: Any = self.commands[results]
        if wanted.get(key, {}).get("type") == "array":
            command = ["bash", "-lc", command]
        arguments = {key: command}
        if "description" in wanted:
            arguments["description"] = "Run a command"
        return f"call_{len(self.seen)}_{results}", shell, arguments


def _named(tool: JSON) -> Iterator[tuple[str, JSON]]:
    """A tool's name and the schema of its arguments, in the form of any API."""
    inner = tool.get("function", tool)
    if "name" in inner:
        yield inner["name"], inner.get("parameters") or inner.get("input_schema") or {}


def _messages(body: JSON, model: Scripted) -> Iterator[JSON]:
    """Anthropic's events, and the whole message."""
    parts = [part for turn in body["messages"] if isinstance(turn["content"], list) for part in turn["content"]]
    call = model.step(body, sum(part.get("type") == "tool_result" for part in parts))
    usage = {"input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0}
    message: JSON = {
        "id": f"msg_{len(model.seen)}",
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "usage": usage,
    }
    block: JSON
    if call is None:
        block, reason = {"type": "text", "text": ""}, "end_turn"
        full: JSON = block | {"text": model.words}
        delta: JSON = {"type": "text_delta", "text": model.words}
    else:
        block, reason = {"type": "tool_use", "id": call[0], "name": call[1], "input": {}}, "tool_use"
        full = block | {"input": call[2]}
        delta = {"type": "input_json_delta", "partial_json": json.dumps(call[2])}
    yield {"type": "message_start", "message": message | {"content": [], "stop_reason": None, "stop_sequence": None}}
    yield {"type": "content_block_start", "index": 0, "content_block": block}
    yield {"type": "content_block_delta", "index": 0, "delta": delta}
    yield {"type": "content_block_stop", "index": 0}
    yield {"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": None}, "usage": usage}
    yield {"type": "message_stop"}
    yield message | {"content": [full], "stop_reason": reason, "stop_sequence": None}


def _responses(body: JSON, model: Scripted) -> Iterator[JSON]:
    """The events of OpenAI's Responses API, and the whole response."""
    items = body["input"] if isinstance(body["input"], list) else []
    call = model.step(body, sum(str(item.get("type")).endswith("_output") for item in items))
    usage = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}
    response: JSON = {
        "id": f"resp_{len(model.seen)}", "object": "response", "created_at": 1, "model": body["model"],
        "status": "in_progress", "output": [], "parallel_tool_calls": False, "tool_choice": "auto", "tools": [],
    }  # fmt: skip
    item: JSON
    if call is None:
        part = {"type": "output_text", "text": model.words, "annotations": []}
        item = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [part]}
    else:
        item = {
            "type": "function_call",
            "id": f"fc_{call[0]}",
            "call_id": call[0],
            "name": call[1],
            "status": "completed",
        }
        item["arguments"] = json.dumps(call[2])
    done = response | {"status": "completed", "output": [item], "usage": usage}
    yield {"type": "response.created", "sequence_number": 0, "response": response}
    yield {"type": "response.output_item.added", "sequence_number": 1, "output_index": 0, "item": item}
    if call is None:
        place = {"output_index": 0, "content_index": 0, "item_id": "msg_1", "logprobs": []}
        yield {"type": "response.output_text.delta", "sequence_number": 2, "delta": model.words, **place}
    yield {"type": "response.output_item.done", "sequence_number": 3, "output_index": 0, "item": item}
    yield {"type": "response.completed", "sequence_number": 4, "response": done}
    yield done


def _chat(body: JSON, model: Scripted) -> Iterator[JSON]:
    """The chunks of OpenAI's chat completions, and the whole completion."""
    call = model.step(body, sum(turn["role"] == "tool" for turn in body["messages"]))
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    reason = "stop" if call is None else "tool_calls"
    message: JSON = {"role": "assistant", "content": model.words}
    if call is not None:
        function = {"name": call[1], "arguments": json.dumps(call[2])}
        message = {"role": "assistant", "content": None}
        message["tool_calls"] = [{"index": 0, "id": call[0], "type": "function", "function": function}]
    about = {"id": "chatcmpl_1", "created": 1, "model": body["model"]}

    def chunk(delta: JSON, finish: str | None) -> JSON:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return {"type": "chunk", "chunk": about | {"object": "chat.completion.chunk", "choices": [choice]}}

    yield chunk(message, None)
    yield chunk({}, reason)
    last = about | {"object": "chat.completion.chunk", "choices": [], "usage": usage}
    yield {"type": "chunk", "chunk": last}
    choice = {"index": 0, "message": message, "finish_reason": reason}
    yield about | {"object": "chat.completion", "choices": [choice], "usage": usage}


_APIS = {"/messages": _messages, "/responses": _responses, "/chat/completions": _chat}
