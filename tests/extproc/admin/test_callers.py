"""Who may ask the admin port: without a token, with it, from this machine and from others."""

from __future__ import annotations

import pytest

import console
from extproc.admin.callers import Callers, Guard, secret
from extproc.admin.port import Admin
from tests.extproc.admin.test_port import FakeSource, _raw

TOKEN = "0123456789abcdef"
OPEN = ("/livez", "/readyz", "/metrics")
SHELL = ("/openapi.json", *console.FILES)
BEFORE = ("/policy", "/debug/decisions")
CLOSE = ("/console/state", "/outcomes", "/debug/decisions?follow", "/debug/decisions?limit=1&follow=")


@pytest.fixture
def token(tmp_path):
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    return file


@pytest.fixture
async def serving():
    servers = []

    async def serve(listen: str, token) -> Admin:
        server = Admin(FakeSource(), Callers(token=token))
        await server.start(listen)
        servers.append(server)
        return server

    yield serve
    for server in servers:
        await server.close()


async def _statuses(server: Admin, paths, *, more: str = "") -> set[int]:
    method = "HEAD" if any("follow" in path for path in paths) else "GET"
    return {await _raw(server, f"{method} {path} HTTP/1.1\nHost: localhost{more}") for path in paths}


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "0.0.0.0:0"])
async def test_without_the_token_there_is_only_health(serving, token, listen):
    server = await serving(listen, token)
    assert await _statuses(server, OPEN) == {200}
    assert await _statuses(server, (*BEFORE, *CLOSE)) == {401}
    for wrong in ("Bearer", f"Bearer {TOKEN}0", f"Bearer {TOKEN[:-1]}", f"bearer {TOKEN}", f"Basic {TOKEN}"):
        assert await _statuses(server, (*BEFORE, *CLOSE), more=f"\nAuthorization: {wrong}") == {401}, wrong
    twice = f"\nAuthorization: Bearer {TOKEN}" * 2
    assert await _statuses(server, BEFORE, more=twice) == {401}
    assert await _raw(server, "DELETE /cache HTTP/1.1\nHost: localhost") == 401
    assert await _raw(server, "POST /debug/tree HTTP/1.1\nHost: localhost\nContent-Length: 0") == 401


async def test_with_the_token_there_is_all(serving, token):
    server = await serving("0.0.0.0:0", token)
    with_it = f"\nAuthorization: Bearer {TOKEN}"
    assert await _statuses(server, (*OPEN, *SHELL, *BEFORE, *CLOSE), more=with_it) == {200}
    foreign = await _raw(server, f"GET /policy HTTP/1.1\nHost: evil.example{with_it}")
    assert foreign == 421


async def test_a_port_that_others_can_reach_shows_what_is_new_with_a_token_only(serving):
    server = await serving("0.0.0.0:0", None)
    assert await _statuses(server, (*OPEN, *BEFORE)) == {200}
    assert await _statuses(server, (*SHELL, *CLOSE)) == {403}
    server = await serving("127.0.0.1:0", None)
    assert await _statuses(server, (*OPEN, *SHELL, *BEFORE, *CLOSE)) == {200}


async def test_a_token_can_be_replaced_and_its_loss_opens_nothing(serving, token):
    server = await serving("127.0.0.1:0", token)
    token.write_text("fedcba9876543210")
    assert await _statuses(server, BEFORE, more=f"\nAuthorization: Bearer {TOKEN}") == {401}
    assert await _statuses(server, BEFORE, more="\nAuthorization: Bearer fedcba9876543210") == {200}
    token.write_text("")
    assert await _statuses(server, BEFORE, more="\nAuthorization: Bearer ") == {503}
    token.unlink()
    assert await _statuses(server, BEFORE, more=f"\nAuthorization: Bearer {TOKEN}") == {503}
    assert await _statuses(server, OPEN) == {200}


@pytest.mark.parametrize(
    ("content", "why"),
    [("short", "at least 16"), ("0123456789 abcdef", "without blanks"), ("0123456789ä" * 2, "ASCII")],
)
def test_a_token_that_cannot_protect_is_an_error_at_once(tmp_path, content, why):
    file = tmp_path / "token"
    file.write_text(content)
    with pytest.raises(ValueError, match=why):
        secret(file)
    with pytest.raises(ValueError, match="token"):
        Callers(token=file)
    with pytest.raises(ValueError, match="cannot be read"):
        Callers(token=tmp_path / "none")


def test_a_guard_lets_in_whom_it_says(token):
    free, held = Callers(), Callers(token=token)
    assert free.denied(Guard.CLOSE, {}, close=True) is None
    assert free.denied(Guard.CLOSE, {}, close=False).status == 403
    assert held.denied(Guard.SHELL, {}, close=False) is None
    assert held.denied(Guard.TOKEN, {}, close=True).status == 401
