"""A model that is killed, hangs or goes bad under load, in a real router behind a real Envoy: no request fails, the
guard refuses, and `/metrics` tells."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from pathlib import Path

import aiohttp
import pytest

from tests.extproc.live import START_S, chat, eventually, proxied, swap
from tests.signals.neural import models

POLICY = """\
version: 1
models: {small: {name: s}}
default: small
signals: {attack: {jailbreak: {at_least: 0.8}}}
decisions: [{name: guard, when: attack, on_unknown: match, respond: {status: 403, message: no}}]
settings: {deadline: 300ms, inference: {hang: 500ms}}
"""
# `pointsman` with a shipped model that does what a file says.
BROKEN = """\
import dataclasses, pathlib, sys, time
from signals.neural.heads import Heads
healthy, mode = Heads.run, pathlib.Path({mode!r})
def run(self, texts, *more):
    while (wanted := mode.read_text()) == "hangs":
        time.sleep(0.02)
    if wanted == "is killed":
        raise SystemExit
    if wanted == "fails":
        raise RuntimeError
    return healthy(self, texts, *more)
def corrupt(model):
    session = model._session
    class Session:
        def run(self, names, given):
            factor = float("nan") if mode.read_text() == "is corrupt" else 1
            return [out * factor for out in session.run(names, given)]
    model._session = Session()
def init(self, *given, start=Heads.__init__):
    start(self, *given)
    corrupt(self)
Heads.run, Heads.__init__ = run, init
from cli.main import main
sys.exit(main(sys.argv[1:]))
"""


class Clients:
    """Closed-loop clients that count the statuses they get."""

    def __init__(self, base: str) -> None:
        self._base = base
        self.seen: Counter[int] = Counter()

    async def __aenter__(self) -> Clients:
        self._session = aiohttp.ClientSession()
        self._tasks = [asyncio.create_task(self._client()) for _ in range(8)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        gone = await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._session.close()
        assert all(isinstance(error, asyncio.CancelledError) for error in gone), gone

    async def _client(self) -> None:
        while True:
            text = chat("How do I bake bread?")
            async with self._session.post(f"{self._base}/v1/chat/completions", json=text) as answer:
                await answer.read()
                self.seen[answer.status] += 1

    async def only(self, status: int) -> None:
        """Wait until 50 answers in a row have this status; any but 200 and 403 is a failure."""
        self.seen.clear()
        async with asyncio.timeout(START_S):
            while self.seen[status] < 50:
                if self.seen.total() > self.seen[status]:
                    assert set(self.seen) <= {200, 403}, self.seen
                    self.seen.clear()
                await asyncio.sleep(0.01)


@pytest.mark.slow
async def test_a_model_that_breaks_under_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mount, mode = tmp_path / "policy", tmp_path / "mode"
    mount.mkdir()
    swap(mount, POLICY)
    mode.write_text("works")
    monkeypatch.setattr("tests.extproc.live.POINTSMAN", [sys.executable, "-c", BROKEN.format(mode=str(mode))])
    async with proxied(mount, tmp_path) as (running, base), Clients(base) as clients:
        await clients.only(200)
        for broken, reasons in (
            ("is killed", {"error"}),
            ("fails", {"error"}),
            ("is corrupt", {"error"}),
            ("hangs", {"deadline", "timeout"}),
        ):
            before = await running.metrics()

            async def told(before: dict[str, float] = before, reasons: set[str] = reasons) -> bool:
                samples = await running.metrics()
                names = (
                    [f"pointsman_inference_refused_total{{model=shipped,reason={reason}}}" for reason in reasons],
                    [f"pointsman_signal_unknown_total{{reason={reason},signal=attack}}" for reason in reasons],
                )
                return all(sum(samples.get(n, 0) - before.get(n, 0) for n in each) > 0 for each in names)

            mode.write_text(broken)
            await clients.only(403)
            await eventually(told)
            mode.write_text("works")
            await clients.only(200)


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["overwritten", "cut", "removed"])
async def test_a_file_that_is_damaged_under_load(tmp_path: Path, harm: str) -> None:
    """The model in memory goes on, and a policy that would need the file again is refused."""
    mount, model = tmp_path / "policy", models.mood(tmp_path / "mood")
    mount.mkdir()
    text = (
        POLICY.replace("jailbreak: {at_least: 0.8}", f"classifier: {{path: '{model}', label: bad, at_least: 0.9}}")
        + "# before the damage\n"
    )
    swap(mount, text)
    file = model / "onnx" / "model.onnx"
    async with proxied(mount, tmp_path) as (running, base), Clients(base) as clients:
        await clients.only(200)
        if harm == "overwritten":
            file.write_bytes(b"no model at all" * 1000)
        elif harm == "cut":
            file.write_bytes(file.read_bytes()[:100])
        else:
            file.unlink()
        swap(mount, text.replace("before", "after"))
        await running.reloaded(1)
        await clients.only(200)
        assert (await running.metrics())["pointsman_config_last_reload_successful{}"] == 0
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{base}/v1/chat/completions", json=chat("bad bad")) as answer,
        ):
            assert answer.status == 403
