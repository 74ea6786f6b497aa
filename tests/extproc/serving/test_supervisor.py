"""`pointsman serve --workers N`: what the parent does for its workers, and what it answers for them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys

import aiohttp
import pytest

from tests.extproc.live import Load, alive, chat, children, digest, eventually, policy, proxied, router, swap
from tests.patience import PATIENCE

pytestmark = pytest.mark.e2e


async def test_a_supervisor_restarts_a_dead_worker_and_keeps_its_counts(folder, tmp_path):
    async with proxied(folder, tmp_path, "--workers", "2") as (running, base):
        async with Load(base, 4) as load_:
            await load_.more(40)
        await asyncio.sleep(1.2)  # a heartbeat takes the counts over
        before = (await running.metrics())["pointsman_decision_duration_seconds_count{}"]
        assert before >= 40
        for worker in children(running.process.pid):
            os.kill(worker, signal.SIGKILL)

        async def restarted() -> bool:
            samples = await running.metrics()
            return (samples["pointsman_workers{}"], samples["pointsman_worker_restarts_total{}"]) == (2, 2)

        await eventually(restarted)
        async with aiohttp.ClientSession() as session, session.post(f"{base}/v1/chat/completions", json=chat()) as got:
            assert got.status == 200
        samples = await running.metrics()
        assert samples["pointsman_decision_duration_seconds_count{}"] == before + 1
        status, ready = await running.get("/readyz")
        assert (status, ready["agree"], len(ready["workers"])) == (200, True, 2)
        decisions = (await running.get("/debug/decisions"))[1]["decisions"]
        assert [each["model"] for each in decisions] == ["small"]
        workers = children(running.process.pid)
        assert await running.stop() == 0
    assert not any(map(alive, workers))


async def test_no_question_to_the_admin_port_ends_a_worker(folder, tmp_path, monkeypatch):
    broken = (
        "recent = s.Worker.recent\n"
        "def answer(self, limit):\n"
        "    assert limit != 13\n"
        "    return recent(self, limit)\n"
        "s.Worker.recent = answer"
    )
    monkeypatch.setattr("tests.extproc.live.POINTSMAN", _patched(broken, module="s"))
    async with router(folder / "policy.yaml", tmp_path, "--workers", "2") as running:
        before = children(running.process.pid)
        for limit in (13, 10**30):
            assert await running.get(f"/debug/decisions?limit={limit}") == (200, {"decisions": []})
        await asyncio.sleep(1.2)  # a heartbeat
        assert children(running.process.pid) == before
        assert "question_failed" in running.log.read_text()


async def test_workers_die_with_a_supervisor_that_is_killed(folder, tmp_path):
    async with router(folder / "policy.yaml", tmp_path, "--workers", "2", listen="127.0.0.1:0") as running:
        workers = children(running.process.pid)
        assert len(workers) == 2
        running.process.kill()

        async def gone() -> bool:
            return not any(map(alive, workers))

        await eventually(gone)


async def test_interrupt_ends_all_soon_with_status_0(folder, tmp_path):
    flags = ("--workers", "2", "--drain-wait", "60", "--grace", "60")
    async with router(folder / "policy.yaml", tmp_path, *flags) as running:
        workers = children(running.process.pid)
        for pid in (*workers, running.process.pid):  # what Ctrl-C at a terminal does
            os.kill(pid, signal.SIGINT)
        assert await asyncio.wait_for(running.process.wait(), PATIENCE) == 0
        assert not any(map(alive, workers))


async def test_a_worker_that_hangs_is_killed_and_replaced(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("tests.extproc.live.POINTSMAN", _patched("HUNG_S = 0.5"))
    async with router(folder / "policy.yaml", tmp_path, "--workers", "2") as running:
        first = children(running.process.pid)
        os.kill(first[0], signal.SIGSTOP)

        async def replaced() -> bool:
            samples = await running.metrics()
            return (samples["pointsman_workers{}"], samples["pointsman_worker_restarts_total{}"]) == (2, 1)

        await eventually(replaced)
        assert not alive(first[0])
        assert "worker_hung" in running.log.read_text()
        assert await running.stop() == 0


async def test_workers_that_never_come_up_end_it(folder, tmp_path, monkeypatch):
    broken = "Worker.start = lambda self, listen: (_ for _ in ()).throw(RuntimeError('no luck'))"
    code = f"from extproc.serving.server import Worker; {broken}"
    monkeypatch.setattr("tests.extproc.live.POINTSMAN", _patched(code))
    with pytest.raises(AssertionError, match="workers_do_not_start"):
        async with router(folder / "policy.yaml", tmp_path, "--workers", "2"):
            pass


async def test_a_worker_that_missed_a_reload_is_told_again(folder, tmp_path, monkeypatch):
    """The first message that gives worker 0 the new policy is lost."""
    lost = (
        "told = s.Supervisor._tell; missed = []\n"
        "async def tell(self, slot):\n"
        "    if slot.index == 0 and not missed:\n"
        "        missed.append(slot)\n"
        "        return False\n"
        "    return await told(self, slot)\n"
        "s.Supervisor._tell = tell"
    )
    monkeypatch.setattr("tests.extproc.live.POINTSMAN", _patched(lost, module="s"))
    async with router(folder / "policy.yaml", tmp_path, "--workers", "2") as running:
        swap(folder, policy(note="new"))
        await running.reloaded(1)

        async def agreed() -> bool:
            _, ready = await running.get("/readyz")
            return ready["agree"] and ready["policy"] == digest(policy(note="new"))

        await eventually(agreed)
        messages = [json.loads(line) for line in running.log.read_text().splitlines()]
        assert {m["workers"] for m in messages if m["event"] == "policy_loaded" and "workers" in m} == {1}


async def test_a_worker_that_dies_while_one_reloads_changes_nothing(folder, tmp_path):
    """Reloads and deaths cross each other; in the end all workers run the last policy."""
    async with router(folder / "policy.yaml", tmp_path, "--workers", "2") as running:
        for turn in range(6):
            swap(folder, policy(note=turn))
            await asyncio.sleep(0.03 * turn)
            for worker in children(running.process.pid)[:1]:
                os.kill(worker, signal.SIGKILL)
            await running.reloaded(turn + 1)

        async def agreed() -> bool:
            status, ready = await running.get("/readyz")
            return status == 200 and ready["agree"] and ready["policy"] == digest(policy(note=5))

        await eventually(agreed)
        assert await running.stop() == 0


async def test_two_workers_share_a_port_over_tcp_with_either_transport(folder, tmp_path):
    for transport in ("http2", "grpcio"):
        place = tmp_path / transport
        place.mkdir()
        flags = ("--workers", "2", "--transport", transport)
        async with router(folder / "policy.yaml", place, *flags, listen="127.0.0.1:0") as running:
            _, ready = await running.get("/readyz")
            (address,) = {worker["address"] for worker in ready["workers"]}
            assert int(address.rpartition(":")[2]) > 0
            assert await running.stop() == 0


def _patched(code: str, module: str = "") -> list[str]:
    """A command like `pointsman` with something in `extproc.serving.supervisor` changed first."""
    setting = f"import extproc.serving.supervisor as s\n{code if module else code.replace('HUNG_S', 's.HUNG_S')}"
    return [sys.executable, "-c", f"{setting}\nimport sys\nfrom cli.main import main\nsys.exit(main(sys.argv[1:]))"]


async def test_neural_signals_answer_in_forked_workers(tmp_path):
    """Inference threads do not survive a fork: each worker must start its own."""
    mount = tmp_path / "policy"
    mount.mkdir()
    guard = "{name: guard, when: bad, on_unknown: match, respond: {status: 403, message: no}}"
    swap(
        mount,
        f"version: 1\nmodels: {{small: {{name: s}}}}\ndefault: small\nsettings: {{deadline: 10s}}\n"
        f"signals: {{bad: {{jailbreak: {{at_least: 0.8}}}}}}\ndecisions: [{guard}]\n",
    )
    async with proxied(mount, tmp_path, "--workers", "2") as (running, base), aiohttp.ClientSession() as session:
        for _ in range(4):
            async with session.post(f"{base}/v1/chat/completions", json=chat("How do I bake bread?")) as answer:
                assert answer.status == 200
        assert not any("unknown_total" in name for name in await running.metrics())
