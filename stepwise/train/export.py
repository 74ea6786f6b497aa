"""Writes a trained network as a policy file (docs/stepwise.md, "The policy file") and checks that both agree."""

from __future__ import annotations

import json
import subprocess
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stepwise import features
from stepwise.policy import FORMATS, CalibrationRow, Marks
from stepwise.steps import Ends, StepLimits
from stepwise.train.net import Net

PARITY = 1e-5


@dataclass(frozen=True)
class About:
    """What the file states about itself. small, large: served names; limits: where steps end; token_budget: of
    `features.State`; commit: of the training code."""

    small: str
    large: str
    limits: StepLimits
    token_budget: int
    commit: str

    def metadata(self) -> dict[str, str]:
        limits = {"min_tokens": self.limits.min_tokens, "max_tokens": self.limits.max_tokens}
        blank = self.limits.ends is Ends.BLANK
        return {
            "pointsman.features": json.dumps(list(features.NAMES)),
            "pointsman.features_version": json.dumps(features.VERSION),
            "pointsman.pair": json.dumps({"small": self.small, "large": self.large}),
            "pointsman.steps": json.dumps(limits if blank else {**limits, "ends": self.limits.ends}),
            "pointsman.commit": self.commit,
            "pointsman.token_budget": json.dumps(self.token_budget),
        }


class Promised(NamedTuple):
    """What a file promises: the kappa table, on how many questions, and at which temperature, it was calibrated, and
    how the large model marked drafts for the rows that ask."""

    rows: Sequence[CalibrationRow] = ()
    size: int = 0
    marks: Marks | None = None
    temperature: float = 0.0


class _Keep(nn.Module):
    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.net(x))


def export(net: Net, path: Path, about: About, vectors: NDArray[np.float32]) -> float:
    """Writes the file and returns the largest difference from `net` over `vectors` [n, WIDTH].

    Raises ValueError when that is above 1e-5 (and leaves no file).
    """
    part = path.with_suffix(".part")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecation notes
        torch.onnx.export(
            _Keep(net.eval()), (torch.zeros(2, features.WIDTH),), str(part), dynamo=False, opset_version=18,
            input_names=["features"], output_names=["keep"],
            dynamic_axes={"features": {0: "batch"}, "keep": {0: "batch"}},
        )  # fmt: skip
    model = onnx.load(str(part))
    onnx.helper.set_model_props(model, about.metadata())
    onnx.save(model, str(part))
    promising(part, part, Promised())
    with torch.no_grad():
        expected = torch.sigmoid(net(torch.from_numpy(vectors))).numpy()
    difference = float(np.abs(expected - run(part, vectors)).max(initial=0.0))
    if difference > PARITY:
        part.unlink()
        raise ValueError(f"{path}: the exported network differs by {difference:.1e} from the trained one")
    part.replace(path)
    return difference


def promising(path: Path, out: Path, promised: Promised) -> None:
    """Writes the policy file `path` to `out` with other promises."""
    model = onnx.load(str(path))
    said = {entry.key: entry.value for entry in model.metadata_props}
    asks = any(row.ask is not None for row in promised.rows)
    # The older format where it will do: then versions that know no other can read the file, too.
    old = "ends" not in json.loads(said["pointsman.steps"]) and not asks
    for key in ("pointsman.marks", "pointsman.temperature"):
        said.pop(key, None)
    said |= {
        "pointsman.format": FORMATS[0] if old else FORMATS[1],
        "pointsman.kappa": json.dumps([row.to_json() for row in promised.rows]),
        "pointsman.calibration_size": json.dumps(promised.size),
        **({"pointsman.marks": json.dumps(promised.marks)} if asks else {}),
        **({"pointsman.temperature": json.dumps(promised.temperature)} if promised.temperature else {}),
    }
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, said)
    onnx.save(model, str(out))


def run(path: Path, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """P(keep) [n] of the policy file for features [n, WIDTH]."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    keep: NDArray[np.float32] = session.run(["keep"], {"features": vectors[:, : session.get_inputs()[0].shape[1]]})[0]
    return keep


def commit() -> str:
    """The commit of the code in the working directory; "unknown" outside a repository."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "unknown"
