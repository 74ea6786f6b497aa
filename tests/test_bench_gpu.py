"""`python -m bench.gpu`: with a CPU in the GPU's place all of it runs; without a GPU it says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import gpu, neural


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the exporter's own, where torch is
def test_everything_is_measured_and_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neural, "CONCURRENCY", (1, 8))
    monkeypatch.setattr(gpu, "BUCKETS", (1, 8, 64))
    assert gpu.main(["--on", "cpu", "--seconds", "0.05", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert set(found["parity"]) >= {"mlp", "recurrent", "second reader"}
    assert not any(found["parity"].values())
    assert [(row["network"], row["steps"]) for row in found["binding"]] == [
        (kind, size) for kind in ("mlp", "recurrent") for size in (1, 8, 64)
    ]
    assert all(row["plain_us"] > 0 < row["bound_us"] for row in found["binding"])
    assert len(found["policy"]) == 12
    assert all(row["steps_per_second"] > 0 for row in found["policy"])
    assert [row["clients"] for row in found["second reader"]] == [1, 8, 1, 8]
    assert all(row["QPS"] > 0 and not row["failed"] for row in found["second reader"])
    text = (tmp_path / "gpu.md").read_text()
    assert text.strip() == capsys.readouterr().out.strip()
    assert "| second reader | 0.0e+00 |" in text


def test_a_result_that_is_another_than_the_cpu_s_fails_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {
        "on": "cuda",
        "onnxruntime": "1",
        "seconds": 1,
        "policy": [],
        "binding": [],
        "second reader": [],
        "MiniLM": [],
    }
    for value, status in ((1e-5, 0), (2e-4, 1), (float("nan"), 1)):
        monkeypatch.setattr(gpu, "run", lambda *_, value=value: {**whole, "parity": {"mlp": value}})
        monkeypatch.setattr(gpu, "problem", lambda: None)
        assert gpu.main(["--out", str(tmp_path)]) == status
        assert ("further than 0.0001 from the CPU" in capsys.readouterr().err) is bool(status)


def test_without_a_gpu_it_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if gpu.problem() is None:
        pytest.skip("there is a GPU here")
    assert gpu.main(["--out", str(tmp_path)]) == 2
    assert "nothing to measure: device: cuda, but" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
