"""Requests to a model, ways of continuing, and the probe."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from decisions.model import Model
from extproc.answers import endpoint
from stepwise.asking import probe
from stepwise.asking.continuation import CHAT_PATH, Continuation, Joint, build, render
from stepwise.asking.probe import Capability
from tests.stepwise.fakes import FakeModel, Fault, writer
from upstream.client import ModelClient, UpstreamError
from upstream.endpoint import ContinuationMode, Endpoint
from upstream.tokens import TOP, Token

REQUEST: dict[str, Any] = {
    "model": "auto", "messages": [{"role": "user", "content": "hi"}], "temperature": 0.3, "n": 1, "stop": None,
    "max_completion_tokens": 50, "stream_options": {"include_usage": False}, "chat_template_kwargs": {"a": 1},
}  # fmt: skip


async def found(model: FakeModel, **more: Any) -> Capability:
    await model.start()
    upstream = ModelClient(model.endpoint(**more))
    try:
        return await probe.probe(upstream, {})
    finally:
        await upstream.close()
        await model.stop()


def test_the_client_s_sampling_parameters_are_kept_and_its_shape_is_not() -> None:
    path, body = build(ContinuationMode.FINAL_MESSAGE, REQUEST, "So ", Continuation(9, ("\n\n",), top_logprobs=5))
    assert path == "/v1/chat/completions"
    assert body == {
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "So "}],
        "temperature": 0.3, "chat_template_kwargs": {"a": 1}, "stream": True, "stream_options": {"include_usage": True},
        "max_tokens": 9, "stop": ["\n\n"], "logprobs": True, "top_logprobs": 5,
        "continue_final_message": True, "add_generation_prompt": False,
    }  # fmt: skip
    assert REQUEST["messages"] == [{"role": "user", "content": "hi"}]


def test_without_a_prefix_nothing_is_continued() -> None:
    for mode in (None, ContinuationMode.FINAL_MESSAGE, ContinuationMode.PREFIX, ContinuationMode.ASSISTANT):
        _, body = build(mode, REQUEST, "")
        assert body["messages"] == REQUEST["messages"]
        assert "continue_final_message" not in body


def test_without_a_way_of_continuing_a_prefix_is_an_error() -> None:
    with pytest.raises(UpstreamError, match="cannot continue"):
        build(None, REQUEST, "So ")


def test_a_chat_template_makes_the_prompt() -> None:
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    template += "{% if add_generation_prompt %}<assistant>{% endif %}"
    path, body = build(ContinuationMode.COMPLETIONS, REQUEST, "So ", Continuation(template=template, top_logprobs=5))
    assert (path, body["prompt"], body["logprobs"]) == ("/v1/completions", "<user>hi<assistant>So ", 5)
    assert "messages" not in body
    assert "chat_template_kwargs" not in body


def test_without_a_template_the_texts_are_put_together() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}, {"type": "text", "text": "b"}]
    assert render(None, [{"role": "system", "content": "s"}, {"role": "user", "content": parts}]) == "s\n\nab\n\n"


@pytest.mark.parametrize(
    "template", ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{% for %}", "{{ 1 / 0 }}", "{{ x.y.z }}"]
)
def test_a_template_can_reach_nothing_and_its_failure_is_the_upstream_s(template: str) -> None:
    with pytest.raises(UpstreamError, match="chat template"):
        render(template, [{"role": "user", "content": "hi"}])


def joined(prefix: str, *pieces: str) -> str:
    joint = Joint(prefix)
    tokens = [token for piece in pieces for token in joint.feed(Token(piece))] + joint.finish()
    return "".join(token.text for token in tokens)


LONG = "We first add the apples and the pears, which makes twelve of them.\n\n"


def test_a_continuation_passes_untouched_and_at_once() -> None:
    joint = Joint(LONG)
    assert [token.text for token in joint.feed(Token("Then"))] == ["Then"]
    assert joined(LONG, "Then", " we", " go") == "Then we go"


def test_a_blank_line_that_the_template_trimmed_is_not_written_twice() -> None:
    assert joined(LONG, "\n", "\nThen", "\n\nEnd") == "Then\n\nEnd"
    assert joined("```\n", "\n", "x") == "\nx"


def test_a_repeated_prefix_is_cut_off() -> None:
    assert joined(LONG, LONG[:20], LONG[20:] + "Then", " we") == "Then we"


def test_a_restart_is_found_out() -> None:
    with pytest.raises(UpstreamError, match="anew") as raised:
        joined(LONG, LONG[:30], LONG[30:55], " and then something else")
    assert raised.value.kind == "restart"
    with pytest.raises(UpstreamError, match="anew"):
        joined(LONG, LONG.strip())  # stopped at the first blank line


def test_a_short_prefix_that_is_repeated_is_cut_off() -> None:
    prefix = "first we add them up\n\n"
    assert joined(prefix, prefix, "then we stop") == "then we stop"
    assert joined(prefix, "first we add ", "them up\n", "\nthen") == "then"
    # What only begins alike is no restart: too little is known to tell.
    assert joined(prefix, "first we add three") == "first we add three"
    assert joined(prefix, "first we add ") == "first we add "
    with pytest.raises(UpstreamError, match="anew"):
        joined(prefix, prefix.strip())  # it has said nothing new


def test_the_same_first_words_are_no_restart() -> None:
    assert joined(LONG, "We first add", " the plums") == "We first add the plums"
    assert joined("So.\n\n", "So.\n\n", "So") == "So.\n\nSo"


async def test_the_probe_finds_what_a_full_server_can_do() -> None:
    record = await found(FakeModel("tiny", writer(["x"]), running_usage=True))
    assert record.mode is ContinuationMode.FINAL_MESSAGE
    assert record.modes == {"continue_final_message": "honoured"}
    assert (record.top_logprobs, record.usage, record.running_usage, record.stop_reason) == (TOP, True, True, True)


async def test_the_probe_finds_what_a_poor_server_cannot_do() -> None:
    record = await found(
        FakeModel(
            "tiny",
            writer(["x"]),
            top=-1,
            usage=False,
            stop_reason=False,
            modes=frozenset(),
            refused=frozenset({"prefix"}),
        )
    )
    assert record.mode is None
    assert record.modes == {
        "continue_final_message": "restarted", "prefix": "refused: tiny answered 400",
        "assistant": "restarted", "completions": "restarted",
    }  # fmt: skip
    assert (record.top_logprobs, record.usage, record.running_usage, record.stop_reason) == (-1, False, False, False)


async def test_the_probe_counts_the_top_log_probabilities() -> None:
    assert (await found(FakeModel("tiny", writer(["x"]), top=2))).top_logprobs == 2
    assert (await found(FakeModel("tiny", writer(["x"]), top=0))).top_logprobs == 0


async def test_an_operator_s_word_beats_the_probe() -> None:
    record = await found(FakeModel("tiny", writer(["x"]), modes=frozenset()), mode=ContinuationMode.PREFIX)
    assert (record.mode, record.modes) == (ContinuationMode.PREFIX, {"prefix": "restarted"})


async def test_probes_cost_a_handful_of_requests_at_most() -> None:
    model = FakeModel("tiny", writer(["x"]), modes=frozenset())
    await found(model)
    assert model.probes <= 6


@pytest.mark.parametrize("kind", ["kill", "status", "silent", "html", "cut"])
async def test_a_server_that_cannot_be_asked_is_an_error(kind: str) -> None:
    model = FakeModel("tiny", writer(["x"]), faults={-1: Fault(kind)})
    with pytest.raises(UpstreamError):
        await found(model, first_timeout=0.2, idle_timeout=0.2)


def test_records_are_kept_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "capabilities.json"
    record = Capability("tiny", 12.5, ContinuationMode.PREFIX, {"prefix": "honoured"}, 5, True, False, True)
    assert probe.load(path) == {}
    probe.save(path, {"small": record})
    assert probe.load(path) == {"small": record}
    assert json.loads(path.read_text())["small"]["mode"] == "prefix"
    for text in ("{", "[]", '{"small": 1}', '{"small": {"mode": "telepathy"}}', "\udcff"):
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        assert probe.load(path) == {}
    assert sorted(tmp_path.iterdir()) == [path]


async def test_a_model_behind_a_unix_socket(tmp_path: Path) -> None:
    model = FakeModel("tiny", writer(["alone"]))
    model._server = await asyncio.start_unix_server(model._connection, tmp_path / "s")
    upstream = ModelClient(Endpoint("http://models", "tiny", socket=str(tmp_path / "s"), headers={"x-route": "small"}))
    stream = await upstream.open(*build(None, REQUEST, ""), {"x-route": "mine", "x-pointsman-hop": "0"})
    tokens = []
    while (piece := await stream.next()) is not None:
        tokens += piece.tokens
    stream.close()
    await upstream.close()
    await model.stop()
    assert "".join(token.text for token in tokens) == "alone"
    assert (model.heads[0]["x-route"], model.heads[0]["x-pointsman-hop"]) == ("small", "1")


async def test_an_address_that_is_none_is_an_error_of_its_own() -> None:
    for url in ("no url at all", "http://[::1", "ftp://x"):
        upstream = ModelClient(Endpoint(url, "tiny"))
        with pytest.raises(UpstreamError) as raised:
            await upstream.open("/v1/chat/completions", {})
        await upstream.close()
        assert raised.value.kind == "connect"


Serves = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def failure(serves: Serves, said: str) -> str:
    """The kind of the error, which says `said`, of the first piece of a stream that a server like this sends."""
    server = await asyncio.start_server(serves, "127.0.0.1", 0)
    upstream = ModelClient(Endpoint(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "tiny"))
    stream = await upstream.open("/v1/chat/completions", {})
    with pytest.raises(UpstreamError, match=said) as raised:
        await stream.next()
    stream.close()
    await upstream.close()
    server.close()
    await server.wait_closed()
    return raised.value.kind


async def test_an_event_without_end_is_garbage() -> None:
    async def endless(reader: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        sink.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\ndata: ")
        try:
            for _ in range(100):
                sink.write(b"x" * 65536)
                await sink.drain()
        except ConnectionError:
            pass
        finally:
            sink.close()

    assert await failure(endless, "event of over") == "garbage"


@pytest.mark.parametrize(
    "choice",
    [
        {"delta": {"content": "x"}, "finish_reason": ["stop"]},
        {"delta": {"tool_calls": [{"index": 0, "function": [1]}]}},
        {"delta": {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": {"a": 1}}}]}},
        {"delta": {"tool_calls": [{"index": "a", "function": {"name": "f"}}]}},
        {"delta": {"content": "x"}, "logprobs": {"content": [{"token": "x", "logprob": 1000.0}]}},
        {"delta": {"content": "x"}, "logprobs": {"content": [{"token": "x", "logprob": 0.5}]}},
        {
            "delta": {"content": "x"},
            "logprobs": {"content": [{"token": "x", "logprob": -1, "top_logprobs": [{"logprob": 1e308}] * 2}]},
        },
    ],
)
async def test_a_field_of_another_type_is_garbage(choice: dict[str, Any]) -> None:
    """Or whoever reads the answer later would stumble over it."""

    async def odd(reader: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        sink.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\ndata: ")
        sink.write(json.dumps({"choices": [choice]}).encode() + b"\n\n")
        sink.close()

    assert await failure(odd, "malformed event") == "garbage"


async def test_one_character_spread_over_two_tokens_stays_whole() -> None:
    from upstream.tokens import read

    entries = [{"token": "\ufffd", "logprob": -1.0}, {"token": "\ufffd", "logprob": -2.0}]
    tokens = read("é", {"content": entries})
    assert [(token.text, token.logprob) for token in tokens] == [("é", -1.0), ("", -2.0)]


@pytest.mark.parametrize(
    ("url", "base", "path"),
    [
        ("/", None, "/v1/chat/completions"),
        ("/v1", None, "/v1/chat/completions"),
        ("/proxy/v1/", None, "/proxy/v1/chat/completions"),
        ("", "/api/paas/v4", "/api/paas/v4/chat/completions"),
        ("/api/paas/v4", "/api/paas/v4", "/api/paas/v4/chat/completions"),
        ("/proxy", "", "/proxy/chat/completions"),
    ],
)
async def test_calls_go_below_the_models_base_path(url: str, base: str | None, path: str) -> None:
    seen: list[str] = []

    async def answer(request: web.BaseRequest) -> web.Response:
        seen.append(request.path)
        return web.json_response({})

    server = await asyncio.get_running_loop().create_server(web.Server(answer), "127.0.0.1", 0)
    address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    upstreams = [
        ModelClient(endpoint(Model("m", "m", url=address + url, base_path=base), None, "stepwise")),
        # Through the gateway, which puts the base path in itself.
        ModelClient(endpoint(Model("m", "m", url="http://nowhere" + url, base_path=base), address, "stepwise")),
    ]
    for upstream in upstreams:
        await upstream.ask(CHAT_PATH, {})
        await upstream.close()
    server.close()
    assert seen == [path, "/v1/chat/completions"]
