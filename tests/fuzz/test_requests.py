"""A short run of the requests' fuzzer, and that it finds what there is to find."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from tests.fuzz import requests
from tests.fuzz.grammar import HALVES, MARK, Case
from tests.fuzz.requests import Driver, Finding
from tests.fuzz.upstreams import calls, readings, shows, shows_unread


@pytest.mark.no_cover
@pytest.mark.slow
@pytest.mark.parametrize("count", [5_000, pytest.param(15_000, marks=pytest.mark.volume)])
def test_no_mutated_request_passes_the_guard(count: int) -> None:
    lines: list[str] = []
    assert requests.run(count, 11, lines.append) == 0, "\n".join(lines)


HEADERS = ((":method", "POST"), (":authority", "api"), (":scheme", "http"), ("content-type", "application/json"))


@pytest.mark.parametrize("duplex", [False, True])
async def test_a_hole_is_found(duplex: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a parser that forgets every string, and with a path that goes on as it came."""
    body = orjson.dumps({"model": "auto", "messages": [{"role": "user", "content": MARK}]})
    case = Case("/v1/chat/completions", HEADERS, body, False, 2)
    driver = Driver()
    await driver(case, duplex)
    assert driver.outcomes == {"refused by the guard": 1}
    with monkeypatch.context() as patch:
        patch.setattr("extproc.requests.body.collect", lambda value, found, *_: None)
        patch.setattr("extproc.requests.body.unambiguous", lambda *_: None)
        with pytest.raises(Finding, match="is shown: plain"):
            await driver(case, duplex)
    with monkeypatch.context() as patch:
        patch.setattr("extproc.exchange.parse", lambda *_: 1 / 0)
        with pytest.raises(Finding, match="an exception"):
            await driver(case, duplex)


@pytest.mark.parametrize(
    ("path", "apis"),
    [
        ("/v1/chat/completions", {"chat"}),
        ("/V1/Chat/Completions/?a=b", {"chat"}),
        ("/v1/chat/completions%0a", {"chat"}),
        ("/v1/%63ompletions", {"completions"}),
        ("/v1/%2563ompletions", {"completions"}),
        ("/v1/x/..%2fmessages;a=b", {"messages"}),
        ("/v1/messages%00x", {"messages"}),
        ("/api/chat", {"other"}),
        ("/v1/models", set()),
        ("/v1beta/models/a/b:generateContent?key=k", {"gemini"}),
        ("/v1beta/Models/m%3AcountTokens", {"gemini"}),
        ("/v1/publishers/google/models/m:streamGenerateContent", {"gemini"}),
    ],
)
def test_servers_read_paths_in_their_ways(path: str, apis: set[str]) -> None:
    assert calls(path) == apis


@pytest.mark.parametrize(
    ("body", "way"),
    [
        (b'{"messages": [{"content": "%s"}]}' % MARK.encode(), "plain"),
        (b'{"messages": [{"content": "%s"}], "messages": []}' % MARK.encode(), "plain"),
        (b'{"messages": [], "Messages": [{"content": "%s"}]}' % MARK.encode(), "plain"),
        (b'{"x": {"%s": 1}}' % MARK.encode(), "plain"),
        (b'{"user": "%s"}' % MARK.encode(), None),
        (b'{"x": ["%s", {"text": "%s"}]}' % tuple(half.encode() for half in HALVES), "joined"),
        (b'{"input": [{"media_type": "text/plain", "data": "Y2xhc3NpZmllZC1jb2Rld29yZA=="}]}', "decoded"),
        (b'{"input": [{"type": "base64", "data": "AAAA/%s"}]}' % MARK.encode(), None),
        (b'{"tools": [{"url": "data:image/png;base64,%s"}]}' % MARK.encode(), "plain"),
    ],
)
def test_servers_read_bodies_in_their_ways(body: bytes, way: str | None) -> None:
    assert way in [shows(fields) for fields in readings(body)]


@pytest.mark.parametrize(
    ("api", "fields", "way"),
    [
        ("completions", {"prompt": [[[1.0]]]}, "token ids"),
        ("completions", {"prompt_embeds": "AA"}, "embeddings"),
        ("embeddings", {"input": ["a"]}, None),
        ("responses", {"previous_response_id": "r"}, "previous_response_id"),
    ],
)
def test_what_cannot_be_read_is_told(api: str, fields: dict[str, Any], way: str | None) -> None:
    assert shows_unread(api, fields) == way
