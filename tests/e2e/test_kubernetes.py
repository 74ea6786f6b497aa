"""What Kubernetes does to a router that serves: a ConfigMap updated again and again, a rolling restart."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from cli.main import main
from config.watch import load
from tests.extproc.live import Load, Router, digest, echoes, envoy, eventually, mount, policy, proxied, router

pytestmark = pytest.mark.e2e

NAMES = {"small": "Qwen/Qwen3-8B", "large": "Qwen/Qwen3-72B"}
SWAPS = 100
CASES = "cases: [{name: default, expect: {model: MODEL}}]\n"


def files(turn: int) -> dict[str, str]:
    """A policy and its cases; the default model changes each time, so that those of two turns do not fit together."""
    default = ("small", "large")[turn % 2]
    return {"policy.yaml": policy(default, turn), "policy.cases.yaml": CASES.replace("MODEL", default)}


@pytest.mark.no_cover
async def test_a_config_map_is_swapped_a_hundred_times_under_load(tmp_path):
    """Swaps come faster than reloads, so many fall into the middle of one."""
    folder = tmp_path / "policy"
    folder.mkdir()
    mount(folder, files(0))
    expected = {digest(policy(("small", "large")[turn % 2], turn)): turn % 2 for turn in range(SWAPS + 1)}
    async with proxied(folder, tmp_path, "--poll", "0.02") as (running, base), Load(base, 4) as load_:
        await load_.more(20)
        for turn in range(1, SWAPS + 1):
            mount(folder, files(turn))
            await load_.more(1)
            await asyncio.sleep(0.02)
        last = digest(files(SWAPS)["policy.yaml"])

        async def in_force() -> bool:
            return (await running.get("/readyz"))[1]["policy"] == last

        await eventually(in_force)
        await load_.more(20)
        samples = await running.metrics()
    assert load_.failures == []
    assert samples["pointsman_config_last_reload_successful{}"] == 1
    for _, policy_hash, model, answered in load_.answers:
        default = ("small", "large")[expected[policy_hash]]
        assert (model, answered) == (default, NAMES[default])
    assert load_.answers[-1][1] == last
    assert len({policy_hash for _, policy_hash, _, _ in load_.answers}) >= 5  # it does not sleep through


@pytest.mark.no_cover
async def test_a_rolling_restart_of_both_replicas_fails_no_request(tmp_path):
    """SIGTERM, drain, a new process at the same address, then the same for the other; Envoy is told nothing.

    One replica has our own transport, the other grpc's, which serves TLS.
    """
    path = tmp_path / "policy.yaml"
    path.write_text(policy())
    engine = load(path).engine
    flags = ("--drain-wait", "3", "--grace", "5")  # the first is the default, for Envoy's health checks as rendered
    listen = ["127.0.0.1:0"] * 2
    async with AsyncExitStack() as stack:

        async def start(number: int, name: str) -> Router:
            folder = tmp_path / name
            folder.mkdir()
            transport = ("http2", "grpcio")[number]
            starting = router(path, folder, *flags, "--transport", transport, listen=listen[number])
            return await stack.enter_async_context(starting)

        replicas = [await start(0, "a"), await start(1, "b")]
        listen[:] = [each.address for each in replicas]
        upstreams = await stack.enter_async_context(echoes(engine))
        base = await stack.enter_async_context(envoy(engine, ",".join(listen), upstreams, tmp_path))
        load_ = await stack.enter_async_context(Load(base, 4))
        await load_.more(100)
        for number, name in enumerate(("a-again", "b-again")):
            assert await decided(replicas[number]) > 0
            assert await replicas[number].stop() == 0
            await load_.more(100)
            successor = await start(number, name)

            async def taken_up(successor: Router = successor) -> bool:
                return await decided(successor) > 0

            await eventually(taken_up)  # as a roll-out waits before it goes on
        await load_.more(100)
        assert load_.failures == []


async def decided(running: Router) -> float:
    """How many requests a router has decided."""
    return (await running.metrics()).get("pointsman_decision_duration_seconds_count{}", 0)


def test_a_first_policy_that_fails_its_own_cases_is_no_start(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("extproc.records.log.setup", lambda *_: None)
    mount(tmp_path, {**files(0), "policy.cases.yaml": files(1)["policy.cases.yaml"]})
    assert main(["serve", str(tmp_path / "policy.yaml"), "--workers", "1", "--listen", f"unix:{tmp_path}/socket"]) == 1
    assert "expected 'large', got 'small'" in capsys.readouterr().err
