"""The policy file and the network at run time."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from signals.neural.service import Limits
from stepwise import features
from stepwise.policy import KappaPair, PolicyFailed, PolicyTarget, StepPolicy, StepPolicyError
from tests.patience import PATIENCE
from tests.stepwise.onnxes import ROWS, metadata, write

REDOS = features.NAMES.index("redos")


def vector(redos: float) -> np.ndarray:
    result = np.zeros(features.WIDTH, np.float32)
    result[REDOS] = redos
    return result


async def test_the_network_normalises_and_says_p_keep(tmp_path: Path) -> None:
    policy = StepPolicy(write(tmp_path / "p.onnx", weights={"redos": 2.0}, mean={"redos": 1.0}), device="cpu")
    keep, hidden = await policy.keep(vector(2.0))
    policy.close()
    assert keep == pytest.approx(1 / (1 + np.exp(-2.0)), abs=1e-6)
    assert hidden is None


@pytest.mark.parametrize("inline", [True, False])
async def test_a_recurrent_network_gets_back_its_own_state(tmp_path: Path, inline: bool) -> None:
    policy = StepPolicy(write(tmp_path / "p.onnx", hidden=3), device="cpu", inline=inline)
    first, state = await policy.keep(vector(0))
    second, state = await policy.keep(vector(0), state)
    policy.close()
    assert (first, second) == (pytest.approx(0.5), pytest.approx(1 / (1 + np.exp(-3.0)), abs=1e-6))
    assert state is not None
    assert state.tolist() == [2.0, 2.0, 2.0]


async def test_steps_of_many_answers_share_batches_and_each_gets_its_own_result(tmp_path: Path) -> None:
    policy = StepPolicy(write(tmp_path / "p.onnx", weights={"redos": 1.0}), device="cpu", wait=0.05, inline=False)
    policy.answers = 64
    results = await asyncio.gather(*(policy.keep(vector(i / 10)) for i in range(64)))
    policy.close()
    assert [keep for keep, _ in results] == pytest.approx([1 / (1 + np.exp(-i / 10)) for i in range(64)], abs=1e-6)
    assert policy.items == 64
    assert policy.batches < 16


async def test_one_answer_alone_never_waits_for_company(tmp_path: Path) -> None:
    policy = StepPolicy(write(tmp_path / "p.onnx"), device="cpu", wait=10 * PATIENCE, inline=False)
    policy.answers = 1
    async with asyncio.timeout(PATIENCE):
        keep, _ = await policy.keep(vector(0))
    policy.close()
    assert keep == pytest.approx(0.5)
    assert (policy.items, policy.batches) == (1, 1)


async def test_a_cancelled_step_disturbs_nobody(tmp_path: Path) -> None:
    policy = StepPolicy(write(tmp_path / "p.onnx"), device="cpu", wait=0.05, inline=False)
    policy.answers = 3
    tasks = [asyncio.create_task(policy.keep(vector(0))) for _ in range(2)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    keep, _ = await tasks[1]
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    policy.close()
    assert keep == pytest.approx(0.5)


async def test_what_is_no_probability_is_a_failure(tmp_path: Path) -> None:
    policy = StepPolicy(write(tmp_path / "p.onnx", weights={"redos": 1.0}), device="cpu")
    with pytest.raises(PolicyFailed, match="nan"):
        await policy.keep(vector(float("nan")))
    policy.close()


@pytest.mark.parametrize("inline", [True, False])
async def test_an_inference_that_fails_is_each_waiting_step_s_failure(tmp_path: Path, inline: bool) -> None:
    policy = StepPolicy(write(tmp_path / "p.onnx"), device="cpu", inline=inline)
    with pytest.raises(PolicyFailed, match=r"p\.onnx") as raised:
        await policy.keep(np.zeros(3, np.float32))
    assert raised.value.reason == "inference"
    assert (await policy.keep(vector(0)))[0] == pytest.approx(0.5)  # and the thread goes on
    policy.close()


@pytest.mark.parametrize("inline", [True, False])
async def test_a_closed_policy_fails_at_once(tmp_path: Path, inline: bool) -> None:
    policy = StepPolicy(write(tmp_path / "p.onnx"), device="cpu", inline=inline)
    policy.close()
    policy.close()
    with pytest.raises(PolicyFailed) as raised:
        await policy.keep(vector(0))
    assert raised.value.reason == "closed"


async def test_more_steps_than_can_wait_are_turned_away(tmp_path: Path) -> None:
    policy = StepPolicy(write(tmp_path / "p.onnx"), device="cpu", inline=False)
    policy._service._limits = Limits(queue=0)
    with pytest.raises(PolicyFailed) as raised:
        await policy.keep(vector(0))
    policy.close()
    assert raised.value.reason == "overloaded"


async def test_a_cheap_network_has_no_thread_and_a_dear_one_has_from_its_first_step_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = set(threading.enumerate())  # some of which may end meanwhile

    def added() -> set[threading.Thread]:
        return set(threading.enumerate()) - others

    cheap = StepPolicy(write(tmp_path / "p.onnx"), device="cpu")
    assert (cheap.inline, added()) == (True, set())
    monkeypatch.setattr("stepwise.policy.INLINE", 0.0)
    dear = StepPolicy(tmp_path / "p.onnx", device="cpu")
    assert (dear.inline, added()) == (False, set())  # none before workers are forked
    assert await cheap.keep(vector(0)) == await dear.keep(vector(0))
    thread = dear._service._thread
    assert thread is not None
    assert added() == {thread}
    cheap.close()
    dear.close()
    thread.join(PATIENCE)
    assert added() == set()


def test_a_loop_that_was_closed_does_not_stop_the_thread(tmp_path: Path) -> None:
    policy = StepPolicy(write(tmp_path / "p.onnx"), device="cpu", inline=False, wait=0.05)
    policy.answers = 2

    async def leave() -> None:
        task = asyncio.create_task(policy.keep(vector(0)))
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(leave())
    keep, _ = asyncio.run(policy.keep(vector(0)))
    policy.close()
    assert keep == pytest.approx(0.5)


def test_io_binding_pads_to_a_bucket_and_gives_the_same(tmp_path: Path) -> None:
    policy = StepPolicy(write(tmp_path / "p.onnx", weights={"redos": 1.0}, hidden=2), device="cpu")
    network = policy._network
    for n in (1, 3, 8, 9):
        vectors = np.stack([vector(i) for i in range(n)])
        hidden = np.full((n, 2), 0.25, np.float32)
        keep, after = network.run(vectors, hidden)
        bound = network.run_bound({"features": vectors, "hidden": hidden})
        assert np.array_equal(bound[0], keep)
        assert np.array_equal(bound[1], after)
    policy.close()
    assert set(network._bindings) == {1, 8, 64}


@pytest.mark.parametrize(
    ("target", "kappa"),
    [
        (PolicyTarget("accuracy_loss", 0.01), 0.8),
        (PolicyTarget("accuracy_loss", 0.03), 0.8),  # between two rows: the one that promises more
        (PolicyTarget("accuracy_loss", 0.2), 0.5),
        (PolicyTarget("cost", 0.4), 0.6),
    ],
)
def test_a_target_takes_the_nearest_row_that_keeps_it(tmp_path: Path, target: PolicyTarget, kappa: float) -> None:
    policy = StepPolicy(write(tmp_path / "p.onnx"), device="cpu")
    policy.close()
    assert policy.card.row(target).kappa == kappa


@pytest.mark.parametrize("target", [PolicyTarget("accuracy_loss", 0.001), PolicyTarget("cost", 0.1)])
def test_a_target_that_no_row_keeps_is_an_error_that_lists_the_rows(tmp_path: Path, target: PolicyTarget) -> None:
    policy = StepPolicy(write(tmp_path / "p.onnx"), device="cpu")
    policy.close()
    with pytest.raises(StepPolicyError, match=r"accuracy_loss: 0\.01, accuracy_loss: 0\.05, cost: 0\.4"):
        policy.card.row(target)


ASK = {"low": 0.3, "high": 0.9, "mark": 0.7}


def test_a_row_may_have_a_pair_of_thresholds_for_asking(tmp_path: Path) -> None:
    rows = [{**ROWS[0], "ask": ASK}, ROWS[1]]
    meta = metadata(format="2", kappa=json.dumps(rows), marks=json.dumps("digit"))
    policy = StepPolicy(write(tmp_path / "p.onnx", meta=meta), device="cpu")
    policy.close()
    assert policy.card.marks == "digit"
    assert [row.ask for row in policy.card.rows] == [KappaPair(0.3, 0.9, 0.7), None]
    assert [row.to_json() for row in policy.card.rows] == rows
    assert [row.kappa for row in policy.card.rows] == [0.8, 0.5]  # for versions and servers that cannot ask


def test_the_card_says_where_the_policy_comes_from(tmp_path: Path) -> None:
    policy = StepPolicy(write(tmp_path / "p.onnx", meta=metadata(token_budget=2048)), device="cpu")
    policy.close()
    card = policy.card
    assert (card.small, card.large, card.commit, card.calibration_size) == ("tiny", "huge", "0123abc", 500)
    assert (card.token_budget, card.steps.min_tokens, len(card.sha256)) == (2048, 1, 64)


async def test_a_policy_of_before_a_feature_was_added_sees_the_features_that_it_knows(tmp_path: Path) -> None:
    names = features.NAMES[: features.FIRST]
    old = StepPolicy(write(tmp_path / "old.onnx", names=names, meta=metadata(names)), device="cpu")
    new = StepPolicy(write(tmp_path / "new.onnx"), device="cpu")
    assert (old.card.width, new.card.width) == (features.FIRST, features.WIDTH)
    vector = np.ones(features.WIDTH, np.float32)
    assert (await old.keep(vector))[0] == (await new.keep(vector))[0] == pytest.approx(0.5)
    for policy in (old, new):
        policy.close()
    with pytest.raises(StepPolicyError, match=r"missing \['difficulty', 'thought'\]"):
        StepPolicy(write(tmp_path / "less.onnx", names=names[:-1], meta=metadata(names[:-1])), device="cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "3"}, "format 3, but this version reads formats 1 and 2"),
        ({"steps": json.dumps({"min_tokens": 1, "max_tokens": 3, "ends": "word"})}, "wrong shape"),
        ({"format": None}, r"pointsman\.format is missing"),
        ({"features_version": "99"}, "feature version 99 in the file"),
        ({"features": json.dumps([*features.NAMES[1:], features.NAMES[0]])}, "in another order"),
        ({"features": json.dumps([*features.NAMES[1:], "mood"])}, r"missing \['first_entropy'\], unknown \['mood'\]"),
        ({"features": "not json"}, "is not JSON"),
        ({"kappa": json.dumps([{"kind": "luck", "target": 0, "kappa": 0, "delta": 0}])}, "kind accuracy_loss or cost"),
        ({"kappa": json.dumps([{"kind": "cost"}])}, "wrong shape"),
        ({"kappa": json.dumps([ROWS[0], ROWS[0]])}, "same kind and target"),
        ({"pair": json.dumps({"small": "tiny"})}, "wrong shape"),
        ({"steps": json.dumps({"min_tokens": 9, "max_tokens": 3})}, "wrong shape"),
        ({"calibration_size": "-1"}, "must be positive"),
        ({"commit": None}, r"pointsman\.commit is missing"),
        (
            {"kappa": json.dumps([{**ROWS[0], "ask": ASK}])},
            r"need metadata pointsman\.marks: digit or likelihood, not None",
        ),
        ({"marks": json.dumps("stars")}, r"pointsman\.marks: digit or likelihood, not stars"),
        ({"kappa": json.dumps([{**ROWS[0], "ask": {**ASK, "low": 0.95}}]), "marks": '"digit"'}, "low from 0 to high"),
        ({"kappa": json.dumps([{**ROWS[0], "ask": {**ASK, "mark": "NaN"}}]), "marks": '"digit"'}, "must be finite"),
        ({"kappa": json.dumps([{**ROWS[0], "ask": {"low": 0}}]), "marks": '"digit"'}, "wrong shape"),
    ],
)
def test_metadata_that_does_not_fit_is_an_error_at_start(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    path = write(tmp_path / "p.onnx", meta=metadata(**changes))
    with pytest.raises(StepPolicyError, match=message):
        StepPolicy(path, device="cpu")


def test_a_missing_file_and_a_corrupt_one_are_errors_that_name_it(tmp_path: Path) -> None:
    with pytest.raises(StepPolicyError, match=r"gone\.onnx: cannot read the policy file"):
        StepPolicy(tmp_path / "gone.onnx")
    whole = write(tmp_path / "p.onnx").read_bytes()
    for name, data in (("noise", b"\x00\x01 not onnx"), ("half", whole[: len(whole) // 2]), ("empty", b"")):
        (tmp_path / f"{name}.onnx").write_bytes(data)
        with pytest.raises(StepPolicyError, match=rf"{name}\.onnx"):
            StepPolicy(tmp_path / f"{name}.onnx", device="cpu")


def test_a_network_of_another_shape_is_an_error(tmp_path: Path) -> None:
    narrow = write(tmp_path / "narrow.onnx", names=features.NAMES[:5], meta=metadata())
    with pytest.raises(StepPolicyError, match="does not run on"):
        StepPolicy(narrow, device="cpu")
    odd = write(tmp_path / "odd.onnx", outputs=("keep", "more"))
    with pytest.raises(StepPolicyError, match=r"outputs \['keep', 'more'\]"):
        StepPolicy(odd, device="cpu")


def test_cuda_without_a_usable_gpu_says_why(tmp_path: Path) -> None:
    path = write(tmp_path / "p.onnx")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA; whether it is usable depends on the machine")
    with pytest.raises(StepPolicyError, match="device: cuda, but this onnxruntime was built without CUDA"):
        StepPolicy(path, device="cuda")
    policy = StepPolicy(path, device="auto")
    policy.close()
    assert policy.device == "cpu"


def test_without_onnxruntime_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(StepPolicyError, match=r"install pointsman\[cpu\]"):
        StepPolicy(write(tmp_path / "p.onnx"))


@pytest.mark.gpu
async def test_on_a_gpu_the_result_is_the_same(tmp_path: Path) -> None:
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("no CUDA in this onnxruntime")
    path = write(tmp_path / "p.onnx", weights={"redos": 1.0}, hidden=2)
    cuda, cpu = StepPolicy(path, device="cuda"), StepPolicy(path, device="cpu")
    for n in (1, 5, 100):
        vectors, hidden = np.stack([vector(i / 7) for i in range(n)]), np.ones((n, 2), np.float32)
        left, right = cuda._network.run(vectors, hidden), cpu._network.run(vectors, hidden)
        assert np.allclose(left[0], right[0], atol=1e-5)
    cuda.close()
    cpu.close()
