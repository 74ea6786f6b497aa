"""The key of a session: the same over all turns of an agent, another for every other conversation."""

from __future__ import annotations

import random
import string
import time
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from extproc.requests.body import parse
from extproc.requests.paths import read
from signals.request import Message, Request
from signals.state.session import USUAL, Sessions, session_key

JSON = dict[str, Any]
AGENTS, TURNS = 10, 8


def call(path: str, body: JSON, **headers: str) -> Request:
    target = read(path)
    assert target is not None
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return parse(target, named, {}, orjson.dumps(body))


def key(request: Request) -> str:
    return USUAL.key(request)


NONCES: dict[str, Callable[[random.Random], str]] = {
    "hex": lambda r: f"{r.getrandbits(20):05x}",
    "letters of hex": lambda r: "".join(r.choice("abcdef") for _ in range(8)),
    "uuid": lambda r: "-".join(f"{r.getrandbits(32):08x}"[:n] for n in (8, 4, 4, 4, 8)),
    "base62": lambda r: "".join(r.choice(string.ascii_letters + string.digits) for _ in range(22)),
    "number": lambda r: str(r.randrange(10**12)),
    "time": lambda r: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(r.randrange(2**31))),
    "day": lambda r: time.strftime("%A, %B %d, %Y", time.gmtime(r.randrange(2**31))),
}


def claude_code(nonce: str, session: int, turn: int) -> JSON:
    """A turn of Claude Code without any id: its billing line, reminders and cache marks differ from turn to turn."""
    billing = f"x-anthropic-billing-header: cc_version=2.1.0.aaa; cc_entrypoint=cli; cch={nonce};"
    reminder = f"<system-reminder>\nToday is {nonce}. You have {turn} todos.\n</system-reminder>\n"
    first: list[JSON] = [{"type": "text", "text": reminder}, {"type": "text", "text": f"fix issue {session}"}]
    messages: list[JSON] = [{"role": "user", "content": first}]
    for number in range(turn):
        use = {"type": "tool_use", "id": f"toolu_{number}", "name": "Bash", "input": {"command": "ls"}}
        result: JSON = {"type": "tool_result", "tool_use_id": f"toolu_{number}", "content": f"file{number}"}
        messages += [{"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    messages[-1]["content"][-1]["cache_control"] = {"type": "ephemeral"}
    system = [
        {"type": "text", "text": billing},
        {"type": "text", "text": "You are a coding agent. Be brief.", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": f"Request id: {nonce}\n<env>\nToday's date: {nonce}\nTurn: {turn}\n</env>"},
    ]
    return {"model": "auto", "max_tokens": 100, "system": system, "messages": messages}


def codex(nonce: str, session: int, turn: int) -> JSON:
    """A turn of a Codex-like agent on the Responses API, without any id."""

    def said(text: str) -> JSON:
        return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}

    items = [
        said("# AGENTS.md instructions for /repo\n\n<INSTRUCTIONS>\nRun the tests.\n</INSTRUCTIONS>"),
        said(f"<environment_context>\n<cwd>/repo</cwd>\n<current_date>{nonce}</current_date>\n</environment_context>"),
        said(f"fix issue {session}"),
    ]
    for number in range(turn):
        items.append({"type": "function_call", "call_id": f"c{number}", "name": "shell", "arguments": "{}"})
        items.append({"type": "function_call_output", "call_id": f"c{number}", "output": nonce})
    return {"model": "auto", "instructions": f"You are a coding agent.\nSession: {nonce}", "input": items}


def chat(nonce: str, session: int, turn: int) -> JSON:
    system = f"You are a helpful assistant. The time is {nonce}. Nonce={nonce} (request {nonce})"
    messages = [{"role": "system", "content": system}, {"role": "user", "content": f"Tell me about {session}."}]
    for number in range(turn):
        messages += [{"role": "assistant", "content": f"It is {number}."}, {"role": "user", "content": nonce}]
    return {"model": "auto", "messages": messages}


SHAPES = [("/v1/messages", claude_code), ("/v1/responses", codex), ("/v1/chat/completions", chat)]


@pytest.mark.parametrize("nonce", NONCES)
@pytest.mark.parametrize(("path", "shape"), SHAPES)
def test_agents_without_an_id_keep_their_key_whatever_nonce_they_write(path: str, shape: Any, nonce: str) -> None:
    fresh = random.Random(nonce)
    sessions = [
        {key(call(path, shape(NONCES[nonce](fresh), session, turn))) for turn in range(TURNS)}
        for session in range(AGENTS)
    ]
    assert all(len(keys) == 1 for keys in sessions)
    assert len(set.union(*sessions)) == AGENTS


def _claude_id(session: str) -> list[tuple[JSON, dict[str, str]]]:
    user = f"user_{'ab' * 32}_account_6c1f0a52-0000-4000-8000-000000000000_session_{session}"
    told = orjson.dumps({"device_id": "d", "account_uuid": "", "session_id": session}).decode()
    return [
        ({"metadata": {"user_id": user}}, {}),
        ({"metadata": {"user_id": told}}, {}),
        ({"metadata": {"user_id": told}}, {"x_claude_code_session_id": session}),
        ({}, {"x_claude_code_session_id": session}),
        ({"metadata": {"session_id": session}}, {}),
    ]


def test_claude_code_s_session_is_one_in_all_its_spellings() -> None:
    one, other = "11111111-2222-3333-4444-000000000001", "11111111-2222-3333-4444-000000000002"

    def keys(session: str) -> set[str]:
        given = enumerate(_claude_id(session))
        return {key(call("/v1/messages", claude_code("a", turn, turn) | f, **h)) for turn, (f, h) in given}

    assert len(keys(one)) == len(keys(other)) == 1
    assert keys(one) != keys(other)


@pytest.mark.parametrize(
    ("fields", "headers"),
    [
        ({}, {"x_session_id": "s"}),
        ({}, {"session_id": "s"}),
        ({}, {"x_session_affinity": "s"}),
        ({}, {"x_opencode_session": "s"}),
        ({"prompt_cache_key": "s"}, {}),
        ({"prompt_cache_key": "s"}, {"session_id": "s"}),
        ({"conversation": "s"}, {}),
        ({"conversation": {"id": "s"}}, {}),
        ({"previous_response_id": "s"}, {}),
        ({"user": "s"}, {}),
    ],
)
def test_agents_and_apis_name_the_session_in_their_own_place(fields: JSON, headers: dict[str, str]) -> None:
    keys = {key(call("/v1/responses", codex("a", turn, turn) | fields, **headers)) for turn in range(3)}
    assert keys == {key(call("/v1/responses", {"input": "x"}, x_session_id="s"))}


def test_codex_wrote_its_header_with_an_underscore() -> None:
    target = read("/v1/responses")
    assert target is not None
    for header in ("session_id", "conversation_id"):
        request = parse(target, {header: "s"}, {}, b'{"input": "x"}')
        assert USUAL.key(request) == key(call("/v1/responses", {"input": "x"}, x_session_id="s"))
        assert USUAL.named(request.headers) == USUAL.key(request)


@pytest.mark.parametrize(
    "fields",
    [
        {"metadata": {"user_id": "alice"}},
        {"metadata": {"user_id": "user_alice_session_"}},
        {"metadata": {"user_id": "{" * 100}},
        {"metadata": {"user_id": '{"session_id": 7}'}},
        {"metadata": {"session_id": 7}},
        {"metadata": "s"},
        {"prompt_cache_key": ["s"]},
        {"conversation": {"id": {}}},
        {"user": ""},
    ],
)
def test_what_names_no_session_is_passed_over(fields: JSON) -> None:
    plain = chat("a", 1, 0)
    assert key(call("/v1/chat/completions", plain | fields)) == key(call("/v1/chat/completions", plain))


def test_a_policy_names_places_of_its_own_after_the_well_known_ones() -> None:
    own = Sessions((("header", ("x-chat",)), ("field", ("metadata", "chat"))))
    body = chat("a", 1, 0)
    named = USUAL.key(call("/v1/chat/completions", body, x_session_id="s"))
    assert own.key(call("/v1/chat/completions", body, x_chat="s")) == named
    assert own.named({"x-chat": "s"}) == named
    assert own.key(call("/v1/chat/completions", body | {"metadata": {"chat": "s"}})) == named
    assert own.key(call("/v1/chat/completions", body | {"metadata": {"chat": "s"}}, x_chat="t")) != named
    assert own.key(call("/v1/chat/completions", body | {"prompt_cache_key": "s"}, x_chat="t")) == named
    assert own.key(call("/v1/chat/completions", body | {"user": "s", "metadata": {"chat": {}}})) == named
    assert own.named({"accept": "s"}) == ""


def test_conversations_that_begin_otherwise_differ() -> None:
    def one(system: str, said: str) -> str:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": said}]
        return key(call("/v1/chat/completions", {"messages": messages}))

    keys = [
        one("You help the people of Acme.", "hi"),
        one("You help the people of Globex.", "hi"),
        one("You help the people of Acme.", "hello"),
        one("You help the people of Acme.", "task 1"),
        one("You help the people of Acme.", "task 2"),
        one("", "hi"),
        one("Du hilfst den Leuten von Müller.", "hi"),
        one("你帮助用户。", "hi"),
    ]
    assert len(set(keys)) == len(keys)


def test_a_picture_without_a_word_begins_a_conversation_too() -> None:
    image = {"type": "image_url", "image_url": {"url": "https://x"}}
    turns = [{"role": "system", "content": "You see."}, {"role": "user", "content": [image]}]
    first = key(call("/v1/chat/completions", {"messages": turns}))
    turns += [{"role": "assistant", "content": "A cat."}, {"role": "user", "content": "And now?"}]
    assert key(call("/v1/chat/completions", {"messages": turns})) == first != ""


def test_a_key_is_of_one_length_and_tells_nothing() -> None:
    for name in ("s", "x" * 100_000, "line\nbreak", "\ud800"):
        found = USUAL.named({"x-session-id": name})
        assert len(found) == 32
        assert int(found, 16) >= 0
    assert USUAL.named({"x-session-id": ""}) == ""
    assert USUAL.key(Request("chat", b"", {}, None, ())) == ""


def test_a_reminder_that_never_ends_is_what_the_user_said() -> None:
    keys = {
        key(call("/v1/chat/completions", {"messages": [{"role": "user", "content": text}]}))
        for text in ("<env>what is this tag?", "<env>what is that tag?", "<env></env>", "what is this tag?")
    }
    assert len(keys) == 4


@pytest.mark.parametrize(
    "piece", ["<env>", "<env></env>", "</env>", "a-", "date: ", "abcdef", "<", "x=", "\n", "-", "é’"]
)
def test_the_beginning_takes_time_in_proportion(piece: str) -> None:
    def cost(size: int) -> float:
        text = piece * (size // len(piece))
        body = {"messages": [{"role": "system", "content": text}, {"role": "user", "content": text}]}
        request = call("/v1/chat/completions", body)
        return min(_timed(lambda: key(request)) for _ in range(3))

    small, large = cost(50_000), cost(200_000)
    assert large < 8 * small + 0.002


def _timed(work: Callable[[], object]) -> float:
    started = time.thread_time()
    work()
    return time.thread_time() - started


def test_the_session_key_is_found_where_clients_put_it() -> None:
    messages = (Message("system", "You help."), Message("user", "hi"))

    def key(headers: dict[str, str] | None = None, **fields: object) -> str:
        return session_key(Request("chat", b"{}", fields, "auto", messages, headers or {}))

    def named(name: str) -> str:
        return key({"x-session-id": name})

    assert key({"x-session-id": "h"}, user="u") == named("h")
    assert key(metadata={"session_id": "m"}, user="u") == named("m")
    assert key(metadata={"other": 1}, prompt_cache_key="p", user="u") == named("p")
    assert key(user="u") == named("u")
    assert key(user="", metadata=3) == key()
    assert len({named("h"), named("m"), named("p"), named("u"), key(), key(user="v")}) == 6


def test_a_growing_conversation_keeps_its_key() -> None:
    first = (Message("user", "What is 2 + 2?"),)
    later = (*first, Message("assistant", "4"), Message("user", "And 3 + 3?"))
    keys = {session_key(Request("chat", b"", {}, None, messages)) for messages in (first, later)}
    assert len(keys) == 1
