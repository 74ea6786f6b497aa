"""Shared state in this process and in a real Redis-compatible server, there, away and back again."""

import asyncio
import shutil
import socket
import subprocess
import time

import pytest

from signals.reading import Unavailable
from signals.state.store import Memory, Valkey
from tests.patience import PATIENCE
from tests.ports import free_port

SERVER = shutil.which("valkey-server") or shutil.which("redis-server")
needs_server = pytest.mark.skipif(SERVER is None, reason="neither valkey-server nor redis-server is installed")


class Server:
    def __init__(self, port, folder):
        self.port = port
        self.url = f"redis://127.0.0.1:{port}/0"
        self._folder = folder
        self._process = None

    def start(self):
        command = [SERVER, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self._folder)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise AssertionError("the server did not start")

    def kill(self):
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=PATIENCE)
            self._process = None


@pytest.fixture
def server(tmp_path):
    server = Server(free_port(), tmp_path)
    server.start()
    yield server
    server.kill()


async def eventually(check, seconds=PATIENCE):
    deadline = time.monotonic() + seconds
    while True:
        value = await check()
        if value or time.monotonic() > deadline:
            return value
        await asyncio.sleep(0.02)


async def test_memory_adds_and_forgets(monkeypatch):
    store = Memory()
    now = [1000.0]
    monkeypatch.setattr("signals.state.store.time.monotonic", lambda: now[0])
    store.add("a", 1.5, 10.0)
    store.add("a", 0.5, 10.0)
    assert await store.number("a") == 2.0
    assert await store.number("b") == 0.0
    now[0] += 11
    assert await store.number("a") == 0.0


async def test_memory_takes_only_within_the_limit():
    store = Memory()
    assert await store.take("a", 0.6, 1.0, 10.0)
    assert not await store.take("a", 0.6, 1.0, 10.0)
    assert await store.take("a", 0.4, 1.0, 10.0)
    assert await store.number("a") == 1.0


@needs_server
async def test_replicas_together_never_take_more_than_the_limit(server):
    one, two = Valkey(server.url, timeout=PATIENCE), Valkey(server.url, timeout=PATIENCE)
    taken = await asyncio.gather(*(store.take("a", 0.1, 1.0, 60.0) for _ in range(20) for store in (one, two)))
    assert 1 <= sum(taken) <= 10
    assert await one.number("a") == pytest.approx(0.1 * sum(taken))
    await one.close()
    await two.close()


async def test_memory_keeps_the_first_pin_and_is_bounded():
    store = Memory(limit=3)
    assert await store.pin("s", "small", 10.0) == "small"
    assert await store.pin("s", "large", 10.0) == "small"
    for number in range(5):
        store.add(f"k:{number}", 1.0, 10.0)
    assert await store.pin("s", "large", 10.0) == "small"
    for number in range(5):
        await store.keep(f"s{number}", "small", 10.0)
    assert await store.pin("s", "large", 10.0) == "large"
    assert all([await store.number(f"k:{number}") >= 1.0 for number in range(5)])
    assert store.counts()["down"] == 0.0
    await store.close()


@needs_server
async def test_two_replicas_see_one_sum(server):
    one, two = Valkey(server.url, timeout=PATIENCE), Valkey(server.url, timeout=PATIENCE)
    for _ in range(500):
        one.add("spent", 0.01, 60.0)
        two.add("spent", 0.02, 60.0)
        await asyncio.sleep(0)

    async def complete():
        return abs(await one.number("spent") - 15.0) < 1e-6

    assert await eventually(complete)
    assert await two.number("spent") == pytest.approx(15.0)
    await one.close()
    await two.close()


@needs_server
async def test_a_pin_is_one_for_all_replicas(server):
    one, two = Valkey(server.url, timeout=PATIENCE), Valkey(server.url, timeout=PATIENCE)
    assert await one.pin("session", "small", 60.0) == "small"
    assert await two.pin("session", "large", 60.0) == "small"
    await one.close()
    await two.close()


async def gone(store, key):
    end = time.monotonic() + PATIENCE
    while await store.text(key) is not None:
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("shared", [False, pytest.param(True, marks=needs_server)])
async def test_a_text_is_the_last_one_kept_until_its_time_is_over(shared, request):
    store = Valkey(request.getfixturevalue("server").url, timeout=PATIENCE) if shared else Memory()
    assert await store.text("decision") is None
    long = 10 * PATIENCE
    await store.keep("decision", "code", long)
    await store.keep("decision", "poems", long)
    assert await store.text("decision") == "poems"
    assert await store.pin("decision", "code", 0.1) == "poems"
    await gone(store, "decision")
    await store.keep("decision", "code", long)
    await store.keep("decision", "code", 0.1)
    await gone(store, "decision")
    await store.close()


@needs_server
async def test_an_outage_is_unavailable_at_once_and_loses_no_amount(server):
    store = Valkey(server.url, timeout=20.0)
    store.add("spent", 1.0, 60.0)

    async def written():
        return await store.number("spent") == 1.0

    assert await eventually(written)
    server.kill()
    with pytest.raises(Unavailable, match="store_down"):
        await store.number("spent")
    for _ in range(100):
        store.add("spent", 0.5, 60.0)
    started = time.monotonic()
    with pytest.raises(Unavailable):
        await store.number("spent")
    assert time.monotonic() - started < 10, "while the store rests, nobody waits for it"
    assert store.counts()["down"] == 1.0
    assert store.counts()["pending"] == 1.0
    server.start()  # empty: nothing is saved to disk

    async def flushed():
        try:
            # The server adds before the writer hears of it: another connection can read the sum in between.
            return await store.number("spent") == 50.0 and not store.counts()["pending"]
        except Unavailable:
            return False

    assert await eventually(flushed)
    assert store.counts() == {
        "down": 0.0,
        "failures": pytest.approx(store.counts()["failures"]),
        "pending": 0.0,
        "dropped": 0.0,
    }
    await store.close()


@needs_server
async def test_closing_writes_what_is_pending(server):
    store, other = Valkey(server.url, timeout=PATIENCE), Valkey(server.url, timeout=PATIENCE)
    store.add("spent", 2.5, 60.0)
    await store.close()
    assert await other.number("spent") == 2.5
    await other.close()


async def test_pending_amounts_are_bounded(monkeypatch):
    monkeypatch.setattr("signals.state.store.MAX_PENDING", 2)
    store = Valkey(f"redis://127.0.0.1:{free_port()}/0", timeout=0.05)
    for number in range(5):
        store.add(f"k{number}", 1.0, 60.0)
    assert store.counts()["pending"] == 2.0
    assert store.counts()["dropped"] == 3.0
    await store.close()


async def test_texts_are_dropped_by_a_pattern():
    store = Memory()
    for key in ("a:1", "a:2", "b:1", "a*:1"):
        await store.keep(key, "x", 10.0)
    assert await store.drop("a*:1") == 2
    assert await store.drop("*") == 2


@needs_server
async def test_the_server_drops_by_the_same_pattern(server):
    store = Valkey(server.url, timeout=1.0)
    for key in ("a:1", "a:2", "b:1", "[ab]:1", "a?1"):
        await store.keep(key, "x", 10.0)
    assert await store.drop("[ab]:*") == 1
    assert await store.drop("a?1") == 1
    assert await store.drop("*") == 3
    server.kill()
    with pytest.raises(Unavailable):
        await store.drop("*")
    await store.close()
