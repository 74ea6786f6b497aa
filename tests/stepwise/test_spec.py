"""The `stepwise:` block."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from stepwise.asking.ready import Stepwise, StepwiseError
from stepwise.policy import StepPolicyError
from stepwise.spec import StepwiseSpec
from stepwise.strategies.cold_start import ColdStart
from stepwise.strategies.policy import PolicyStrategy
from tests.patience import PATIENCE
from tests.stepwise.fakes import FakeModel, Pair, text_of, writer
from tests.stepwise.onnxes import metadata, write
from upstream.endpoint import ContinuationMode, Endpoint
from upstream.writer import Means

ENDS = {"small": Endpoint("http://127.0.0.1:9", "tiny"), "large": Endpoint("http://127.0.0.1:9", "huge")}


def spec(**more: Any) -> StepwiseSpec:
    return StepwiseSpec.model_validate({"small": "small", "large": "large", **more})


async def built(folder: Path, **more: Any) -> Stepwise:
    stepwise = spec(**more).stepwise(Means(ENDS, folder))
    await stepwise.close()
    return stepwise


@pytest.mark.parametrize(
    ("block", "strategy"),
    [
        ({}, "cold-start"),
        ({"strategy": "cold-start", "target": {"cost": 0.3}}, "cold-start"),
        ({"strategy": "glimpse", "threshold": 0.4}, "glimpse"),
        ({"strategy": "confidence", "share": 0.1}, "confidence"),
        ({"strategy": "verify", "threshold": 0.5}, "verify"),
        ({"strategy": "random", "p": 0.5, "seed": 3}, "random"),
        ({"strategy": "first-n", "n": 0}, "first-n"),
        ({"strategy": "always-small"}, "always-small"),
        ({"strategy": "always-large"}, "always-large"),
        ({"policy": "math"}, "policy"),
        ({"policy": "math", "target": {"accuracy_loss": 0.05}}, "policy"),
    ],
)
async def test_every_strategy_can_be_built(tmp_path: Path, block: dict[str, Any], strategy: str) -> None:
    write(tmp_path / "math.onnx")
    stepwise = await built(tmp_path, **block)
    assert stepwise._setup.strategy.name == strategy


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"colour": "red"}, "Extra inputs are not permitted"),
        ({"large": "small"}, "must be two models"),
        ({"strategy": "policy"}, "needs a policy"),
        ({"strategy": "telepathy"}, "Input should be"),
        ({"strategy": "glimpse", "n": 3}, "does not take n"),
        ({"strategy": "verify", "policy": "math"}, "does not take policy"),
        ({"target": {"accuracy_loss": 0.01}}, "needs a trained policy"),
        ({"policy": "math", "target": {}}, "exactly one of"),
        ({"policy": "math", "target": {"cost": 0.1, "accuracy_loss": 0.1}}, "exactly one of"),
        ({"policy": "math", "target": {"cost": 1.5}}, "less than or equal to 1"),
        ({"share": -0.1}, "greater than or equal to 0"),
        ({"max_redos": -1}, "greater than or equal to 0"),
        ({"budget": {"seconds": 0}}, "greater than 0"),
        ({"choose": "effort"}, "are for per: request"),
        ({"budget": {"session": 1.0}}, "are for per: request"),
        ({"per": "request", "strategy": "glimpse"}, "takes strategy policy or cold-start"),
        ({"per": "request", "choose": "effort", "efforts": ["low"]}, "at least two"),
    ],
)
def test_a_block_that_makes_no_sense_is_an_error(block: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        spec(**block)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, r"/t\.jinja: No such file"),
        ("pipe", "not a regular file"),
        (b"{% if x %}", r"/t\.jinja: no chat template: line 1"),
        (b"\xff", r"/t\.jinja: .*utf-8"),
    ],
)
async def test_a_file_that_is_no_chat_template_is_refused(
    tmp_path: Path, content: bytes | str | None, complaint: str
) -> None:
    path = tmp_path / "t.jinja"
    if content == "pipe":
        os.mkfifo(path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(StepwiseError, match=f"^templates: .*{complaint}"):
        await built(tmp_path, templates={"large": "t.jinja"})


@pytest.mark.parametrize(("target", "kappa"), [(None, 0.8), ({"accuracy_loss": 0.05}, 0.5), ({"cost": 0.4}, 0.6)])
async def test_the_target_becomes_the_policy_s_threshold(
    tmp_path: Path, target: dict[str, float] | None, kappa: float
) -> None:
    write(tmp_path / "math.onnx")
    stepwise = await built(tmp_path, policy="math", **({"target": target} if target else {}))
    strategy = stepwise._setup.strategy
    assert isinstance(strategy, PolicyStrategy)
    assert strategy.row.kappa == kappa


async def test_a_cost_is_the_cold_start_s_share(tmp_path: Path) -> None:
    stepwise = await built(tmp_path, target={"cost": 0.3})
    strategy = stepwise._setup.strategy
    assert isinstance(strategy, ColdStart)
    assert strategy.share == 0.3


async def test_the_policy_says_where_its_steps_end(tmp_path: Path) -> None:
    meta = metadata(steps=json.dumps({"min_tokens": 3, "max_tokens": 99}), token_budget=777)
    write(tmp_path / "math.onnx", meta=meta)
    setup = (await built(tmp_path, policy="math"))._setup
    assert (setup.limits.min_tokens, setup.limits.max_tokens, setup.token_budget) == (3, 99, 777)
    await built(tmp_path, policy="math", step={"min_tokens": 3})
    with pytest.raises(StepwiseError, match="trained with 3, 99 and blank; leave them out"):
        await built(tmp_path, policy="math", step={"min_tokens": 4})


async def test_a_policy_that_does_not_fit_is_an_error_at_start(tmp_path: Path) -> None:
    with pytest.raises(StepPolicyError, match=r"policy math: no such file; looked for .*math\.onnx and"):
        await built(tmp_path, policy="math")
    with pytest.raises(StepPolicyError, match=r"gone\.onnx: cannot read"):
        await built(tmp_path, policy="gone.onnx")
    write(tmp_path / "other.onnx", meta=metadata(pair=json.dumps({"small": "a", "large": "b"})))
    with pytest.raises(StepPolicyError, match="trained for a and b, but this decision has tiny and huge"):
        await built(tmp_path, policy="other.onnx")
    write(tmp_path / "strict.onnx")
    with pytest.raises(StepPolicyError, match="cannot be promised"):
        await built(tmp_path, policy="strict.onnx", target={"accuracy_loss": 0.001})


async def running(
    small: FakeModel, large: FakeModel, folder: Path, end: dict[str, Any] | None = None, **more: Any
) -> Pair:
    await small.start()
    await large.start()
    ends = {"small": small.endpoint(**(end or {})), "large": large.endpoint(**(end or {}))}
    stepwise = spec(**more).stepwise(Means(ends, folder))
    return Pair(small, large, stepwise, stepwise._setup.strategy)


async def ended(both: Pair) -> None:
    await both.stepwise.close()
    await both.quiet()
    await both.small.stop()
    await both.large.stop()


SMALL = ["one and one is two so far", "two ✗ and two is five", "three is fine as it is"]
LARGE = ["ONE and one is two so far", "TWO and two is four", "THREE is fine as it is"]


async def test_a_trained_policy_answers_end_to_end(tmp_path: Path) -> None:
    # Certain steps have min_logprob near 0; the doubtful token of the bad one has -0.5.
    write(tmp_path / "math.onnx", weights={"min_logprob": 20.0}, bias=4.0)
    both = await running(FakeModel("tiny", writer(SMALL)), FakeModel("huge", writer(LARGE)), tmp_path, policy="math")
    try:
        await both.stepwise.start()
        answers = await asyncio.gather(*(both.ask() for _ in range(16)))
    finally:
        await ended(both)
    for _, events in answers:
        assert text_of(events) == f"{SMALL[0]}\n\n{LARGE[1]}\n\n{SMALL[2]}"
        assert 0.8 < events[-1]["usage"]["pointsman"]["steps"][0]["score"] < 1
    strategy = both.strategy
    assert isinstance(strategy, PolicyStrategy)
    assert strategy.policy.answers == 0
    assert strategy.policy.items == 48


async def test_a_policy_that_fails_at_run_time_leaves_the_large_model_and_is_counted(tmp_path: Path) -> None:
    write(tmp_path / "math.onnx", weights={"min_logprob": float("nan")})
    both = await running(
        FakeModel("tiny", writer(SMALL)), FakeModel("huge", writer(LARGE)), tmp_path, policy="math", max_redos=1
    )
    try:
        _, events = await both.ask()
        assert text_of(events) == "\n\n".join(LARGE)
        assert both.stepwise.metrics.safe_side["not_a_probability"] == 2
    finally:
        await ended(both)


@pytest.mark.parametrize("top", [-1, 0, 2])
async def test_a_policy_without_its_log_probabilities_is_refused_with_the_reason(tmp_path: Path, top: int) -> None:
    write(tmp_path / "math.onnx")
    both = await running(
        FakeModel("tiny", writer(SMALL), top=top), FakeModel("huge", writer(LARGE)), tmp_path, policy="math"
    )
    try:
        with pytest.raises(StepwiseError, match="strategy policy needs 5"):
            await both.stepwise.start()
        _, events = await both.ask()  # whoever asks nevertheless gets the safe side
        assert text_of(events) == "\n\n".join(LARGE)
    finally:
        await ended(both)


async def test_a_large_model_that_cannot_be_continued_is_refused_with_what_was_tried(tmp_path: Path) -> None:
    large = FakeModel("huge", writer(LARGE), modes=frozenset(), refused=frozenset({"prefix"}))
    both = await running(FakeModel("tiny", writer(SMALL)), large, tmp_path, strategy="random")
    try:
        with pytest.raises(
            StepwiseError, match="continue_final_message: restarted; prefix: refused: huge answered 400"
        ):
            await both.stepwise.start()
    finally:
        await ended(both)


async def test_a_verifier_that_cannot_mark_is_refused_with_the_reason(tmp_path: Path) -> None:
    small, large = FakeModel("tiny", writer(["x"])), FakeModel("huge", writer(["x"]), mark="Well, ")
    await small.start()
    await large.start()
    ends = {"small": small.endpoint(), "large": large.endpoint()}
    for strategy in ("verify", "random"):
        stepwise = spec(strategy=strategy).stepwise(Means(ends, tmp_path))
        if strategy == "verify":
            with pytest.raises(StepwiseError, match="large, asked to rate a step with one digit, gave none"):
                await stepwise.start()
        else:  # nobody else wants marks
            await stepwise.start()
        await stepwise.close()
    large.mark = "9"
    stepwise = spec(strategy="verify").stepwise(Means(ends, tmp_path))
    await stepwise.start()
    await stepwise.close()
    await small.stop()
    await large.stop()


async def test_what_was_learnt_about_an_upstream_is_remembered_for_a_start_without_it(tmp_path: Path) -> None:
    small, large = FakeModel("tiny", writer(SMALL)), FakeModel("huge", writer(LARGE))
    block: dict[str, Any] = {"strategy": "random", "capabilities": "capabilities.json"}
    both = await running(small, large, tmp_path, **block)
    await both.stepwise.start()
    learnt = both.stepwise.records()
    await ended(both)
    again = spec(**block).stepwise(Means({"small": small.endpoint(), "large": large.endpoint()}, tmp_path))
    await again.start()
    assert again.records() == learnt
    assert again.metrics.upstream_errors["small", "probe_connect"] == 1
    await again.close()
    other = Endpoint("http://127.0.0.1:9", "another-model")
    third = spec(**block).stepwise(Means({"small": other, "large": large.endpoint()}, tmp_path))
    await third.start()
    assert set(third.records()) == {"large"}  # the record was another model's
    await third.close()


async def test_answers_do_not_wait_long_for_a_probe_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.stepwise.fakes import Fault

    monkeypatch.setattr("stepwise.asking.ready._PATIENCE", 0.1)
    large = FakeModel("huge", writer(LARGE), faults={-1: Fault("silent")})
    both = await running(FakeModel("tiny", writer(SMALL)), large, tmp_path, strategy="random")
    try:
        async with asyncio.timeout(PATIENCE):
            _, events = await both.ask()
        assert text_of(events) == "\n\n".join(LARGE)
        assert both.stepwise.metrics.safe_side["unprobed"] == 1
    finally:
        await ended(both)


async def test_an_upstream_that_was_down_is_probed_again_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.stepwise.fakes import Fault

    small, large = FakeModel("tiny", writer(SMALL)), FakeModel("huge", writer(LARGE), faults={-1: Fault("status")})
    both = await running(small, large, tmp_path, strategy="random", p=0.0)
    try:
        await both.stepwise.start()
        large.faults.clear()
        _, events = await both.ask()
        assert text_of(events) == "\n\n".join(LARGE)  # too soon
        monkeypatch.setattr("stepwise.asking.ready._RETRY", 0.0)
        _, events = await both.ask()
        assert text_of(events) == "\n\n".join(SMALL)
        assert both.stepwise.records()["large"].mode is ContinuationMode.FINAL_MESSAGE
    finally:
        await ended(both)
