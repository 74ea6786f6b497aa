"""What the stepwise policy costs: features, queue and network for each step, beside the time that a step takes.

Three tables, in one run on one machine:

1. 64 concurrent answers over `examples/tinylm`: latency of a judgement (features + queue + network) against the time of
   a step in the same answers, and the first text of a stepwise answer against that of the small model alone: when every
   draft is kept, and when the large model marks every one of them first.
2. The network alone at 1 to 4,096 concurrent steps, for each device that is there: steps a second and p99.
3. The splitter's cost for a token.

    python -m bench.stepwise --out bench/out
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from stepwise import features
from stepwise.answer import Steps
from stepwise.asking.pair import PairModel, Setup
from stepwise.asking.ready import Stepwise, unknown
from stepwise.features import State
from stepwise.policy import CalibrationRow, Device, KappaPair, StepPolicy, StepPolicyError
from stepwise.steps import End, Splitter, Step
from stepwise.strategies.policy import PolicyStrategy
from stepwise.strategy import AnswerContext, Draft, Judgement, Run, StepJudge, Strategy
from upstream.client import ModelClient
from upstream.endpoint import Endpoint
from upstream.tokens import TOP, Token
from upstream.writer import Call

CONCURRENT = (1, 8, 64, 512, 4096)
KEEP = CalibrationRow("cost", 0.0, kappa=0.0, delta=0.1)
"""Every draft is kept."""
ASK = KEEP._replace(ask=KappaPair(0.0, 1.01, 0.0))
"""The large model marks every draft, and every one is kept."""
_HIDDEN = 64


def network(path: Path, recurrent: bool) -> Path:
    """A policy of the usual size (features → 64 → 64 → 1, or a 64-wide recurrent layer between) with random weights."""
    rng = np.random.default_rng(0)

    def weights(name: str, *shape: int) -> Any:
        return onnx.numpy_helper.from_array((rng.normal(size=shape) * 0.1).astype(np.float32), name)

    nodes = [
        helper.make_node("Sub", ["features", "mean"], ["centred"]),
        helper.make_node("Mul", ["centred", "scale"], ["normal"]),
        helper.make_node("Gemm", ["normal", "w1", "b1"], ["a1"]),
        helper.make_node("Tanh", ["a1"], ["h1"]),
    ]
    constants = [weights("mean", features.WIDTH), weights("scale", features.WIDTH)]
    constants += [weights("w1", features.WIDTH, _HIDDEN), weights("b1", _HIDDEN), weights("w2", _HIDDEN, _HIDDEN)]
    constants += [
        weights("b2", _HIDDEN),
        weights("w3", _HIDDEN, 1),
        onnx.numpy_helper.from_array(np.array([1]), "axis"),
    ]
    inputs = [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", features.WIDTH])]
    outputs = [helper.make_tensor_value_info("keep", TensorProto.FLOAT, ["batch"])]
    if recurrent:  # h' = tanh(W h1 + U h): the cost of a gated layer is three times this matrix, and still nothing
        inputs.append(helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["batch", _HIDDEN]))
        outputs.append(helper.make_tensor_value_info("hidden_out", TensorProto.FLOAT, ["batch", _HIDDEN]))
        constants.append(weights("u", _HIDDEN, _HIDDEN))
        nodes += [
            helper.make_node("Gemm", ["h1", "w2", "b2"], ["fresh"]),
            helper.make_node("MatMul", ["hidden", "u"], ["old"]),
            helper.make_node("Add", ["fresh", "old"], ["a2"]),
            helper.make_node("Tanh", ["a2"], ["hidden_out"]),
        ]
    else:
        nodes += [helper.make_node("Gemm", ["h1", "w2", "b2"], ["a2"]), helper.make_node("Tanh", ["a2"], ["h2"])]
    nodes += [
        helper.make_node("MatMul", ["hidden_out" if recurrent else "h2", "w3"], ["a3"]),
        helper.make_node("Squeeze", ["a3", "axis"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["keep"]),
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "policy", inputs, outputs, constants),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    about = {
        "format": "1",
        "features": json.dumps(features.NAMES),
        "features_version": str(features.VERSION),
        "pair": json.dumps({"small": "tinylm-small", "large": "tinylm-large"}),
        "steps": json.dumps({"min_tokens": 8, "max_tokens": 512}),
        "kappa": json.dumps([{"kind": "cost", "target": 0.0, "kappa": 0.0, "delta": 0.1}]),
        "marks": json.dumps("likelihood"),
        "calibration_size": "0",
        "commit": "bench",
    }
    helper.set_model_props(model, {f"pointsman.{key}": value for key, value in about.items()})
    onnx.save(model, str(path))
    return path


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclass(frozen=True)
class LatencyRow:
    """One device, network and number of concurrent steps. `p99_us` is of one step, its queueing included.

    `way`: inline (on the event loop, one step at a time) or batched (a thread with a queue).
    """

    device: str
    way: str
    network: str
    concurrent: int
    steps_per_second: float
    p50_us: float
    p99_us: float
    mean_batch: float


async def closed_loop(policy: StepPolicy, kind: str, concurrent: int, seconds: float) -> LatencyRow:
    """So many answers that each ask again as soon as they were answered."""
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(concurrent, features.WIDTH)).astype(np.float32)
    latencies: list[float] = []
    policy.answers = concurrent
    end = time.perf_counter() + seconds

    async def one(vector: np.ndarray[Any, np.dtype[np.float32]]) -> None:
        hidden = None
        started = 0.0
        while started < end:
            started = time.perf_counter()
            await asyncio.sleep(0)  # all steps are there at once: waiting for the others' turns counts
            _, hidden = await policy.keep(vector, hidden)
            latencies.append(time.perf_counter() - started)

    await asyncio.gather(*(one(vector) for vector in vectors[: min(concurrent, 64)]))  # warm up
    latencies.clear()
    batches, items = policy.batches, policy.items
    end = time.perf_counter() + seconds
    started = time.perf_counter()
    await asyncio.gather(*map(one, vectors))
    took = time.perf_counter() - started
    return LatencyRow(
        device=policy.device,
        way="inline" if policy.inline else "batched",
        network=kind,
        concurrent=concurrent,
        steps_per_second=len(latencies) / took,
        p50_us=1e6 * percentile(latencies, 0.5),
        p99_us=1e6 * percentile(latencies, 0.99),
        mean_batch=(policy.items - items) / (policy.batches - batches),
    )


class Timed(Strategy):
    """A policy strategy that keeps every draft and notes how long each judgement and each step took.

    `cpu`: the judgement's own processor time, which other processes on the machine do not disturb.
    """

    name = "policy"
    needs_top = TOP

    def __init__(self, policy: StepPolicy) -> None:
        self._inner = PolicyStrategy(policy, KEEP)
        self.judgements: list[float] = []
        self.cpu: list[float] = []
        self.steps: list[float] = []

    def begin(self, context: AnswerContext) -> Run:
        return _TimedRun(self, self._inner.begin(context))


class _TimedRun(StepJudge):
    def __init__(self, rule: Timed, inner: Run) -> None:
        self._rule = rule
        self._inner = inner
        self._last = time.perf_counter()

    async def judge(self, draft: Draft) -> Judgement:
        started, cpu = time.perf_counter(), time.thread_time()
        features.draft(draft.step, draft.state)  # the session has just done this: its time belongs to the judgement
        await self._inner.judge(draft)
        now = time.perf_counter()
        self._rule.cpu.append(time.thread_time() - cpu)
        self._rule.judgements.append(now - started)
        self._rule.steps.append(now - self._last)
        self._last = now
        return Judgement(True)

    def close(self) -> None:
        self._inner.close()


@asynccontextmanager
async def tinylm() -> AsyncIterator[str]:
    """The address of the two example models, served by a process of their own."""
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "examples.tinylm", "--port", "0", stderr=asyncio.subprocess.PIPE
    )
    assert server.stderr is not None
    try:
        line = (await asyncio.wait_for(server.stderr.readline(), 60)).decode()
        yield line.strip().rpartition(" ")[2].removesuffix("/v1")
    finally:
        server.terminate()
        await server.communicate()


async def answers(policy: StepPolicy, concurrent: int, questions: int, rounds: int) -> dict[str, float]:
    """Single answers over tinylm beside the small model alone, then so many at a time. Times in seconds."""
    from examples.tinylm import problems

    timed = Timed(policy)
    async with tinylm() as url:
        models = []
        for name in ("small", "large"):
            end = Endpoint(url, f"tinylm-{name}")
            models.append(PairModel(name, ModelClient(end), unknown(end)))
        stepwise = Stepwise(Setup(models[0], models[1], timed))
        single, asking = (Stepwise(Setup(models[0], models[1], PolicyStrategy(policy, row))) for row in (KEEP, ASK))
        for one in (stepwise, single, asking):
            await one.start()

        def body(i: int) -> dict[str, Any]:
            question = problems.make(problems.SPLITS["dev"] + i).question
            return {"messages": [{"role": "user", "content": question}], "stream": True, "temperature": 0}

        async def stepwise_once(stepwise: Stepwise, i: int) -> float:
            """Time to the first text."""
            request = body(i)
            started = time.perf_counter()
            first = 0.0
            async with await Steps(stepwise).answer(Call(request, {})) as reply:
                async for _ in reply.body:
                    first = first or time.perf_counter() - started
            return first

        async def small_once(i: int) -> tuple[float, float]:
            """Times to the small model's first text, and to the end of its first step, without us."""
            request = body(i) | {"logprobs": True, "top_logprobs": TOP}
            started = time.perf_counter()
            stream = await models[0].upstream.open("/v1/chat/completions", request)
            splitter, first, step = Splitter(), 0.0, 0.0
            try:
                while (piece := await stream.next()) is not None:
                    now = time.perf_counter() - started
                    first = first or now
                    for token in piece.tokens:
                        step = step or (now if splitter.feed(token) else 0.0)
            finally:
                stream.close()
            return first, step or time.perf_counter() - started

        best = []  # for each question: small's first text and first step; our first text, without and with marks
        for i in range(questions):
            # Other processes only ever add time: the least of some rounds, taking turns, tells most.
            turns = [
                (*await small_once(i), await stepwise_once(single, i), await stepwise_once(asking, i))
                for _ in range(rounds)
            ]
            best.append([min(times) for times in zip(*turns, strict=True)])
        for start in range(0, 2 * concurrent, concurrent):
            await asyncio.gather(*(stepwise_once(stepwise, i) for i in range(start, start + concurrent)))
        for one in (stepwise, single, asking):
            await one.close()
    step = percentile(timed.steps, 0.5)
    alone, with_step, first_text, marked = (percentile(times, 0.5) for times in zip(*best, strict=True))
    added = percentile([ours - theirs for _, theirs, ours, _ in best], 0.5)
    added_marked = percentile([ours - theirs for _, theirs, _, ours in best], 0.5)
    return {
        "concurrent_answers": concurrent,
        "steps": len(timed.steps),
        "step_p50_s": step,
        "judgement_p50_s": percentile(timed.judgements, 0.5),
        "judgement_p99_s": percentile(timed.judgements, 0.99),
        "judgement_p99_share_of_step": percentile(timed.judgements, 0.99) / step,
        "judgement_cpu_p99_s": percentile(timed.cpu, 0.99),
        "judgement_cpu_p99_share_of_step": percentile(timed.cpu, 0.99) / step,
        "rounds": rounds,
        "small_first_text_s": alone,
        "small_first_step_s": with_step,
        "stepwise_first_text_s": first_text,
        "added_s": added,
        "first_text_ratio": 1 + added / with_step,
        "first_text_less_one_step_ratio": 1 + added / alone,
        "asking_first_text_s": marked,
        "asking_added_s": added_marked,
        "asking_first_text_ratio": 1 + added_marked / with_step,
    }


def splitter_cost() -> dict[str, float]:
    """Microseconds that the splitter takes for a token, and the features for a step of 30 tokens."""
    tops = (-0.1, -2.5, -4.0, -5.0, -6.0)
    tokens = [Token("\n\n" if i % 30 == 29 else f" w{i % 97}", -0.1, tops) for i in range(3000)]
    rounds = []
    for _ in range(9):
        splitter = Splitter()
        started = time.perf_counter()
        for token in tokens:
            splitter.feed(token)
        rounds.append((time.perf_counter() - started) / len(tokens))
    step, state = Step(tuple(tokens[:30]), End.BLANK), State()
    drafts = []
    for _ in range(300):
        started = time.perf_counter()
        features.draft(step, state)
        drafts.append(time.perf_counter() - started)
    return {
        "splitter_us_per_token": 1e6 * percentile(rounds, 0.5),
        "features_us_per_step": 1e6 * percentile(drafts, 0.5),
    }


async def run(seconds: float, with_answers: bool) -> dict[str, Any]:
    """Everything, as one JSON object."""
    rows: list[LatencyRow] = []
    missing: dict[str, str] = {}
    result: dict[str, Any] = {"onnxruntime": onnxruntime.__version__, **splitter_cost()}
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("mlp", "recurrent"):
            path = network(Path(folder) / f"{kind}.onnx", kind == "recurrent")
            ways: tuple[tuple[Device, bool], ...] = (("cpu", True), ("cpu", False), ("cuda", False))
            for device, inline in ways:
                try:
                    policy = StepPolicy(path, device=device, inline=inline)
                except StepPolicyError as error:
                    missing[device] = str(error)
                    continue
                for concurrent in CONCURRENT:
                    rows.append(await closed_loop(policy, kind, concurrent, seconds))
                policy.close()
        if with_answers:
            policy = StepPolicy(Path(folder) / "mlp.onnx", device="cpu")
            result["answers"] = await answers(policy, 64, 40, 10)
            policy.close()
    return {**result, "network": [asdict(row) for row in rows], "missing": missing}


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        f"splitter {result['splitter_us_per_token']:.1f} µs a token, "
        f"features {result['features_us_per_step']:.0f} µs a step",
        "",
        "| device | way | network | concurrent steps | steps/s | p50 µs | p99 µs | mean batch |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["network"]:
        cells = [row["device"], row["way"], row["network"], str(row["concurrent"])]
        cells += [f"{row[name]:,.0f}" for name in ("steps_per_second", "p50_us", "p99_us", "mean_batch")]
        lines.append(f"| {' | '.join(cells)} |")
    for device, reason in result["missing"].items():
        lines.append(f"| {device} | batched | – | – | – | – | – | – |")
        lines.append(f"\n{device}: {reason}")
    if found := result.get("answers"):
        ms = {name: f"{1e3 * value:.2f} ms" for name, value in found.items()}
        shares = (found["judgement_p99_share_of_step"], found["judgement_cpu_p99_share_of_step"])
        ratios = (found["first_text_ratio"], found["first_text_less_one_step_ratio"])
        lines += [
            "",
            f"{found['concurrent_answers']:.0f} concurrent answers over tinylm, {found['steps']:.0f} steps. A step:",
            f"{ms['step_p50_s']} (median). A judgement: {ms['judgement_p50_s']} (median), {ms['judgement_p99_s']} at",
            f"p99, {shares[0]:.2%} of the step; in processor time {ms['judgement_cpu_p99_s']} at p99, {shares[1]:.2%}.",
            "",
            f"One answer at a time (the best of {found['rounds']:.0f} each, median of the questions). The small model",
            f"alone: first text after {ms['small_first_text_s']}, its first step complete after",
            f"{ms['small_first_step_s']}. Stepwise: first text after {ms['stepwise_first_text_s']}, which adds",
            f"{ms['added_s']}: {ratios[0]:.2f} × the small",
            f"model alone with one step, and {ratios[1]:.2f} × its first text when the step is taken off.",
            f"Where the large model marks the first step before: after {ms['asking_first_text_s']}, which adds",
            f"{ms['asking_added_s']}: {found['asking_first_text_ratio']:.2f} × the small model alone with one step.",
        ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark, prints the tables, and writes `stepwise.json` and `stepwise.md` to `--out`."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, prog="python -m bench.stepwise", description="What the stepwise policy costs."
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="for each row of the network's table")
    parser.add_argument("--out", type=Path, default=Path("bench/out"))
    parser.add_argument("--without-tinylm", action="store_true", help="only the network and the splitter")
    options = parser.parse_args(argv)
    result = asyncio.run(run(options.seconds, not options.without_tinylm))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "stepwise.json").write_text(json.dumps(result, indent=2) + "\n")
    (options.out / "stepwise.md").write_text(table(result) + "\n")
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
