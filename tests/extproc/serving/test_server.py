"""The life of `pointsman serve`, as processes: start, readiness, reload under load, drain, what the metrics tell."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest

from config.watch import Loaded, load
from decisions.catalogue import Catalogue
from decisions.engine import Clause, Engine, Ruleset
from decisions.model import Model
from decisions.rule import Leaf
from examples.echo.server import Echo
from extproc.serving.server import Options, Worker, _transport
from extproc.transport.tls import TlsFiles
from proto import ext_proc_pb2 as pb
from signals.facts import Facts
from signals.reading import Reading
from signals.signal import Signal
from tests.extproc.live import (
    POINTSMAN,
    ROOT,
    START_S,
    Load,
    chat,
    digest,
    echoes,
    envoy,
    eventually,
    policy,
    proxied,
    router,
    swap,
)
from tests.patience import PATIENCE
from tests.stepwise.fakes import FakeModel, writer

pytestmark = pytest.mark.e2e

PROCESS = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"
NAMES = {"small": "Qwen/Qwen3-8B", "large": "Qwen/Qwen3-72B"}


async def test_ready_names_the_policy_and_the_listener_answers(folder, tmp_path):
    async with router(folder / "policy.yaml", tmp_path, listen="127.0.0.1:0") as running:
        status, body = await running.get("/readyz")
        assert (status, body["policy"]) == (200, digest(policy()))
        assert (await running.get("/policy"))[1] == policy()
        assert (await running.get("/livez"))[0] == 200
        assert await running.stop() == 0
        events = [json.loads(line) for line in running.log.read_text().splitlines()]
        assert [event["event"] for event in events] == ["ready", "draining", "stopped"]
        assert events[0]["listen"].startswith("127.0.0.1:")


@pytest.mark.parametrize(
    ("text", "flags", "says"),
    [
        ("version: 1\nmodels: {}\n", (), "policy.yaml:2:9: P1"),
        (policy(), ("--listen", "nowhere"), "write host:port"),
        (policy(), ("--tls-cert", "x.pem"), "--tls-key"),
        (policy(), ("--transport", "http2", "--tls-cert", "x", "--tls-key", "y"), "http2 transport has no TLS"),
        (policy(), ("--workers", "2", "--transport", "grpcio"), "cannot share a Unix socket"),
    ],
)
async def test_a_start_that_cannot_succeed_says_why_and_ends(tmp_path, text, flags, says):
    (tmp_path / "policy.yaml").write_text(text)
    with pytest.raises(AssertionError, match=says):
        async with router(tmp_path / "policy.yaml", tmp_path, *flags):
            pass


async def test_drain_says_not_serving_and_finishes_what_is_open(folder, tmp_path):
    flags = ("--drain-wait", "0.5", "--grace", "10")
    async with (
        router(folder / "policy.yaml", tmp_path, *flags) as running,
        grpc.aio.insecure_channel(running.listen) as channel,
    ):
        call = channel.stream_stream(PROCESS)()
        await call.write(_headers())
        assert (await running.get("/readyz"))[1]["streams"] == 1
        running.process.send_signal(signal.SIGTERM)
        await running.until(ready=False)
        health = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert await health(b"") == b"\x08\x02"  # status: NOT_SERVING
        fresh = channel.stream_stream(PROCESS)()  # Envoy may not have noticed yet: new streams are still taken
        await fresh.write(_headers())
        await asyncio.sleep(1.0)  # the wait is over, the stream is not
        assert running.process.returncode is None
        for each in (call, fresh):
            await each.write(_body())
            reply = pb.ProcessingResponse.FromString(await each.read())
            assert reply.WhichOneof("response") == "request_headers"
            await each.done_writing()
        assert await asyncio.wait_for(running.process.wait(), START_S) == 0


async def test_interrupt_ends_soon_with_status_0(folder, tmp_path):
    async with router(folder / "policy.yaml", tmp_path, "--drain-wait", "60", "--grace", "60") as running:
        assert await asyncio.wait_for(running.stop(signal.SIGINT), PATIENCE) == 0


async def test_a_drain_under_load_loses_no_request(folder, tmp_path):
    """Two routers behind one Envoy; one is drained and goes away while requests are running."""
    engine = load(folder / "policy.yaml").engine
    (tmp_path / "a").mkdir()
    async with proxied(folder, tmp_path, "--drain-wait", "0.3") as (running, base):
        async with router(folder / "policy.yaml", tmp_path / "a") as successor, Load(base) as load_:
            await load_.more(100)
            # The successor takes the path over, as a new pod is in the Service before the old one is told to go.
            (tmp_path / "a" / "router.sock").rename(tmp_path / "router.sock")
            running.process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(running.process.wait(), START_S) == 0
            await load_.more(200)
            assert (await successor.metrics())["pointsman_decision_duration_seconds_count{}"] > 0
        assert load_.failures == []
    assert engine.policy == digest(policy())


@pytest.mark.no_cover
@pytest.mark.parametrize(("workers", "times"), [(1, 40), (2, 40), pytest.param(1, 200, marks=pytest.mark.volume)])
async def test_reloads_under_load_fail_no_request_and_mix_no_policies(folder, tmp_path, workers, times):
    """Good and broken policies alternate; each answer's hash, model header and answering model belong together."""
    expected = {digest(policy()): "small"}
    async with proxied(folder, tmp_path, "--workers", str(workers)) as (running, base), Load(base) as load_:
        await load_.more(20)
        for turn in range(times):
            if turn % 2:
                swap(folder, policy(note=turn).replace("route: large", "route: nowhere"))
            else:
                default = ("small", "large")[turn // 2 % 2]
                swap(folder, policy(default, turn))
                expected[digest(policy(default, turn))] = default
            await running.reloaded(turn + 1)
            await load_.more(1)
        samples = await running.metrics()
        status, ready = await running.get("/readyz")
    assert load_.failures == []
    assert samples["pointsman_config_reloads_total{result=accepted}"] == times / 2
    assert samples["pointsman_config_reloads_total{result=rejected}"] == times / 2
    assert samples["pointsman_config_last_reload_successful{}"] == 0
    assert status == 200
    assert ready["policy"] in expected  # the last good one is in force
    assert ready.get("agree", True) is True
    for _, policy_hash, model, answered in load_.answers:
        assert policy_hash in expected
        assert (model, answered) == (expected[policy_hash], NAMES[expected[policy_hash]])
    assert len({policy_hash for _, policy_hash, _, _ in load_.answers}) > times / 10


class Broken(Signal):
    """A detector that is down."""

    kind = "broken"

    def __init__(self, name: str) -> None:
        self.name = name

    def read(self, facts: Facts) -> Reading:
        raise RuntimeError("the detector is down")


async def test_a_broken_guard_refuses_a_broken_rule_falls_through_and_metrics_tell(tmp_path):
    models = {key: Model(key, name) for key, name in NAMES.items()}
    clauses = {
        "guard": Clause("guarded", Leaf("guard"), "respond", None, on_unknown="match", status=403, message="no"),
        "rule": Clause("routed", Leaf("rule"), "route", models["large"]),
    }

    def built(*names: str) -> Engine:
        used = [clauses[name] for name in names]
        signals = {name: Broken(name) for name in names}
        return Engine("sha256:x", Catalogue(models, "small"), Ruleset(used, signals))

    listen = f"unix:{tmp_path}/router.sock"
    engine = built("guard", "rule")
    worker = Worker(Loaded(b"", engine), Options(policy=tmp_path / "none.yaml", listen=listen))
    await worker.start(listen)
    async with AsyncExitStack() as stack:
        upstreams = await stack.enter_async_context(echoes(engine))
        base = await stack.enter_async_context(envoy(engine, listen, upstreams, tmp_path))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        async with session.post(f"{base}/v1/chat/completions", json=chat()) as answer:
            assert answer.status == 403
            assert (await answer.json())["error"]["message"] == "no"
        assert await worker.reload(lambda: Loaded(b"", built("rule")))
        async with session.post(f"{base}/v1/chat/completions", json=chat()) as answer:
            assert (answer.status, (await answer.json())["model"]) == (200, NAMES["small"])
    await worker.drain(0, 0)
    assert dict(worker.metrics.unknown) == {("guard", "error"): 1, ("rule", "error"): 1}
    assert worker.metrics.decisions[("guarded", "", "respond")] == 1
    assert worker.metrics.decisions[("", "small", "default")] == 1
    recent = worker.recent(10)
    assert [each["decision"] for each in recent] == [None, "guarded"]
    assert "Hello" not in json.dumps(recent)  # no prompt text


async def test_an_old_engine_is_closed_when_its_last_holder_is_gone(folder):
    first, second = load(folder / "policy.yaml"), load(folder / "policy.yaml")
    closed: list[str] = []
    first.engine.shared.close = lambda: closed.append("first")  # type: ignore[method-assign]
    worker = Worker(first, Options(policy=folder / "policy.yaml", listen="127.0.0.1:0"))
    del first
    await worker.start("127.0.0.1:0")
    stream_keeps = worker._policies.current
    assert await worker.reload(lambda: second)
    assert closed == []
    del stream_keeps
    assert closed == ["first"]
    await worker.drain(0, 0)


def test_tls_is_served_by_grpcio():
    from extproc.transport.grpcio import GrpcioServer

    options = Options(policy=Path("p"), listen="127.0.0.1:0", tls=TlsFiles("cert.pem", "key.pem", "ca.pem"))
    assert isinstance(_transport(options, {}), GrpcioServer)


async def test_sighup_reloads_without_waiting_for_the_poll(folder, tmp_path):
    async with router(folder / "policy.yaml", tmp_path, "--poll", "3600") as running:
        swap(folder, policy(note="new"))
        running.process.send_signal(signal.SIGHUP)
        await running.reloaded(1)
        assert (await running.get("/readyz"))[1]["policy"] == digest(policy(note="new"))


def _headers() -> bytes:
    names = {":method": "POST", ":path": "/v1/chat/completions", ":authority": "x", "content-type": "application/json"}
    request = pb.ProcessingRequest()
    for name, value in names.items():
        request.request_headers.headers.headers.add(key=name, raw_value=value.encode())
    request.protocol_config.request_body_mode = pb.ProcessingMode.FULL_DUPLEX_STREAMED
    return request.SerializeToString()


def _body() -> bytes:
    body = json.dumps(chat()).encode()
    return pb.ProcessingRequest(request_body=pb.HttpBody(body=body, end_of_stream=True)).SerializeToString()


async def test_a_stepwise_policy_brings_its_answers_and_takes_them_along(tmp_path):
    """Each policy has answers of its own, closed when the last exchange that began with it has ended."""
    echo = await asyncio.start_server(Echo(NAMES["small"]).serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{echo.sockets[0].getsockname()[1]}"
    file = tmp_path / "policy.yaml"
    file.write_text(
        f"version: 1\nmodels: {{small: {{name: {NAMES['small']}, url: '{url}'}}, large: {{name: l, url: '{url}'}}}}\n"
        "default: small\ndecisions: [{name: steps, stepwise: {small: small, large: large, strategy: always-large}}]\n"
    )
    worker = Worker(load(file), Options(policy=file, listen="127.0.0.1:0"))
    await worker.start("127.0.0.1:0")
    first = worker._policies.current
    assert first.answerer is not None
    answerer: Any = first.answerer
    closed: list[str] = []

    really_close = answerer.close

    async def close() -> None:
        closed.append("first")
        await really_close()

    answerer.close = close
    assert await worker.reload(lambda: load(file))
    assert worker._policies.current.answerer is not first.answerer
    await asyncio.sleep(0)
    assert closed == []
    del first
    await asyncio.sleep(0)
    assert closed == ["first"]
    await worker.drain(0, 0)
    echo.close()


@pytest.mark.parametrize("reuse", [False, True], ids=["", "reuseport"])
@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    ("flag", "more"),
    [("--listen", ()), ("--listen", ("--transport", "grpcio")), ("--writers-listen", ()), ("--admin", ())],
    ids=["http2", "grpcio", "writers", "admin"],
)
async def test_a_taken_address_is_named(folder, tmp_path, workers, flag, more, reuse):
    """Also where who has it, as Envoy, would share it: each would get a part of the other's connections."""
    with socket.create_server(("127.0.0.1", 0), reuse_port=reuse) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        says = f"cannot listen on {address}: Address already in use; another process has this address: stop that one"
        with pytest.raises(AssertionError, match=says):
            async with router(folder / "policy.yaml", tmp_path, "--workers", workers, flag, address, *more):
                pass


async def test_a_reload_that_adds_a_model_says_that_it_may_have_no_route(folder, tmp_path):
    async with router(folder / "policy.yaml", tmp_path, "--poll", "3600") as running:
        assert "models_perhaps_without_route" not in (await running.get("/readyz"))[1]
        text = policy(note="new").replace("models: {", "models: {newcomer: {}, ", 1)
        swap(folder, text)
        running.process.send_signal(signal.SIGHUP)
        await running.reloaded(1)
        status, shown = await running.get("/readyz")
        assert (status, shown["models_perhaps_without_route"]) == (200, ["newcomer"])
        assert (await running.metrics())["pointsman_models_perhaps_without_route{}"] == 1


STEPS = """\
version: 1
models: {{small: {{name: tiny{small}}}, large: {{name: huge{large}}}}}
default: small
decisions: [{{name: steps, stepwise: {{small: small, large: large, strategy: {strategy}}}}}]
"""


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_model_without_an_address_ends_the_start_with_one_line(tmp_path, workers):
    (tmp_path / "policy.yaml").write_text(STEPS.format(small="", large="", strategy="random"))
    command = [*POINTSMAN, "serve", str(tmp_path / "policy.yaml"), "--listen", "127.0.0.1:0", "--workers", workers]
    ended = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stderr=asyncio.subprocess.PIPE)
    _, said = await ended.communicate()
    assert ended.returncode == 2
    assert said.decode().startswith("pointsman serve: model small: stepwise decisions call it, so it needs a `url:`")
    assert said.count(b"\n") == 1


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_stepwise_decision_that_does_not_work_is_in_readyz_and_a_bad_edit_is_one_line(
    folder, tmp_path, workers
):
    small, large = FakeModel("tiny", writer(["x"]), top=-1), FakeModel("huge", writer(["x"]), streams=False)
    await small.start()
    await large.start()
    urls = {"small": f", url: '{small.url}'", "large": f", url: '{large.url}'"}
    swap(folder, STEPS.format(**urls, strategy="random"))
    async with router(folder / "policy.yaml", tmp_path, "--workers", workers) as running:

        async def problems(said: str) -> bool:
            shown = (await running.get("/readyz"))[1]
            each = shown.get("workers", [shown])
            return all(said in one.get("decisions_not_as_written", {}).get("steps", "-") for one in each)

        await eventually(lambda: problems("large does not work: huge sent application/json"))
        assert {line["model"] for line in running.logged("stepwise_model_down")} == {"large"}
        large.streams = True
        swap(folder, STEPS.format(**urls, strategy="glimpse"))
        await eventually(lambda: problems("small gives no log probabilities"))
        swap(folder, STEPS.format(**urls, strategy="random"))
        await eventually(lambda: problems("-"))
        swap(folder, STEPS.format(small=urls["small"], large="", strategy="random"))
        await eventually(lambda: _true(running.logged("policy_rejected")))
        (line,) = running.logged("policy_rejected")
        assert "error" not in line
        assert line["reasons"][0].startswith("model large: stepwise decisions call it, so it needs a `url:`")
    await small.stop()
    await large.stop()


async def _true(found: object) -> bool:
    return bool(found)
