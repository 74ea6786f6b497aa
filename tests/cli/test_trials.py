"""The commands that decide a request without a network leave the state store alone, as does whoever checks a policy's
cases before it is used."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import pytest
import redis

from cli.main import main
from cli.test import gate
from config.watch import load
from tests.signals.state.test_store import Server, needs_server, server  # noqa: F401

POLICY = """\
version: 1
models: {small: {}, large: {}}
default: small
signals: {code: {keyword: {any: [traceback]}}}
decisions:
  - {name: d, when: code, route: {pick: [small, large], sticky: session}}
  - {name: e, route: small, sticky: {by: session, until: 30m}}
settings: {store: {url: "URL"}}
"""
CODE, HELLO = ({"model": "auto", "messages": [{"role": "user", "content": text}]} for text in ("a traceback", "hello"))
HEADERS = {"x-session-id": "s"}
CASES = [
    {"name": "d", "request": CODE, "headers": HEADERS, "expect": {"decision": "d", "signals": {"code": True}}},
    {"name": "e", "request": HELLO, "headers": HEADERS, "expect": {"decision": "e"}},
]


@pytest.fixture
def files(tmp_path: Path, server: Server) -> dict[str, Path]:  # noqa: F811
    """A policy with a store, and what each command decides."""
    texts = {
        "policy": POLICY.replace("URL", server.url),
        "explain": json.dumps(CODE),
        "test": json.dumps({"cases": CASES}),
        "replay": json.dumps({"request": CODE, "headers": HEADERS}) + "\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    return {name: tmp_path / name for name in texts}


@needs_server
@pytest.mark.parametrize("command", ["explain", "explain --all", "test", "replay"])
def test_a_command_moves_no_session(command: str, files: dict[str, Path], server: Server) -> None:  # noqa: F811
    name, *flags = command.split()
    given = [str(files[name]), *(("-H", "x-session-id:s") if name == "explain" else ()), *flags]
    assert main([name, str(files["policy"]), *given]) == 0
    with redis.Redis.from_url(server.url) as client:
        assert client.keys("*") == []


@needs_server
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # its connection ends with a loop
def test_cases_that_are_checked_move_no_session(files: dict[str, Path], server: Server) -> None:  # noqa: F811
    loaded = load(files["policy"])
    gate(loaded.engine, files["test"])
    loaded.close()
    del loaded
    gc.collect()
    with redis.Redis.from_url(server.url) as client:
        assert client.keys("*") == []
