"""The policy network at run time: an ONNX file, checked when it is loaded, run in small batches off the event loop.

The format is described in docs/stepwise.md, "The policy file". A network that a CPU runs in less time than it takes to
wake a thread is run at once, on the event loop. Any other, and every one on a GPU, has a thread of its own: it takes
the steps that wait, waits a fraction of a millisecond for more when other answers are being written, and runs the
network once for all of them.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from signals import files
from signals.neural import service
from signals.reading import Unavailable
from stepwise import features
from stepwise.steps import Ends, StepLimits

_LARGEST: Final = 1 << 28
"""The most bytes of a policy file: the shipped one has some hundred thousand."""

Vector = NDArray[np.float32]
Device = Literal["auto", "cuda", "cpu"]
Kind = Literal["accuracy_loss", "cost"]

FORMATS = ("1", "2")
"""Format 2 says what ends a step, which in format 1 is a blank line, and may have thresholds for asking."""
Marks = Literal["digit", "likelihood"]
"""How the large model marks a draft: see `stepwise.asking.verify`."""
MARKS: Final[tuple[Marks, ...]] = get_args(Marks)
INLINE = 0.0002
"""Seconds for one step under which a network runs on the event loop. A thread would have to wait for the interpreter
lock twice, up to 5 ms each time while the loop is busy (`sys.getswitchinterval`)."""

BUCKETS = (1, 8, 64, 512, 4096)  # batch sizes on a GPU: buffers are allocated once for each


class StepPolicyError(ValueError):
    """A policy file that cannot be used. The message says which file, what differs and what to do."""


class PolicyFailed(RuntimeError):
    """The network could not be run for one step (`reason` is a short fixed word for counting)."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class PolicyTarget(NamedTuple):
    """What an operator asks of a policy: at most this accuracy lost, or this cost (shares of the large model's)."""

    kind: Kind
    value: float


GOAL = PolicyTarget("accuracy_loss", 0.01)
"""The target of a policy unless another is given."""


class KappaPair(NamedTuple):
    """The thresholds of a policy that may ask: a draft is rejected where P(keep) is under `low`, and kept from `high`
    on; between them the large model marks it, and it is kept from the mark `mark` on."""

    low: float
    high: float
    mark: float


class CalibrationRow(NamedTuple):
    """One calibrated promise: `kind` stays at `target` with probability 1 - `delta`, with the threshold `kappa` where
    the large model gives no marks, and with those of `ask` where it does."""

    kind: Kind
    target: float
    kappa: float
    delta: float
    ask: KappaPair | None = None

    def to_json(self) -> dict[str, Any]:
        """As it stands in the file."""
        ask = {} if self.ask is None else {"ask": self.ask._asdict()}
        return {"kind": self.kind, "target": self.target, "kappa": self.kappa, "delta": self.delta, **ask}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> CalibrationRow:
        """Raises KeyError, TypeError and ValueError when `row` is not one."""
        ask = row.get("ask")
        return cls(
            row["kind"],
            float(row["target"]),
            float(row["kappa"]),
            float(row["delta"]),
            None if ask is None else KappaPair(float(ask["low"]), float(ask["high"]), float(ask["mark"])),
        )


@dataclass(frozen=True, slots=True)
class Card:
    """What a policy file states about itself."""

    small: str
    large: str
    steps: StepLimits
    token_budget: int
    rows: tuple[CalibrationRow, ...]
    marks: Marks | None
    calibration_size: int
    commit: str
    sha256: str
    path: Path
    width: int
    """How many of the features it sees, the first ones."""
    temperature: float
    """Of the answers on which it was calibrated; 0 is greedy."""

    def of_pair(self, small: str, large: str) -> Card:
        """This card, if the policy was trained for the models of these names. Raises StepPolicyError."""
        if (self.small, self.large) != (small, large):
            raise StepPolicyError(
                f"{self.path}: trained for {self.small} and {self.large}, but this decision has {small} and {large}; "
                "train one for this pair, or use a strategy without a policy"
            )
        return self

    def row(self, target: PolicyTarget) -> CalibrationRow:
        """The thresholds for `target`: the nearest row whose bound is at least as strict.

        Raises PolicyError when no row's is.
        """
        usable = [row for row in self.rows if row.kind == target.kind and row.target <= target.value + 1e-9]
        if not usable:
            known = ", ".join(f"{row.kind}: {row.target:g}" for row in self.rows) or "none"
            raise StepPolicyError(
                f"{self.path}: target {target.kind}: {target.value:g} cannot be promised by this policy; calibrated "
                f"targets: {known}"
            )
        return max(usable, key=lambda row: row.target)


Step = tuple[Vector, Vector | None]
"""What the network is asked: the features [d], and the recurrent state [h] where there is one."""
Said = tuple[float, Vector | None]
"""What it says: P(keep), and the recurrent state after the step."""


class StepPolicy:
    """A loaded policy network. Build it at start (raises PolicyError), `close` it at the end."""

    def __init__(  # noqa: PLR0913
        self,
        path: Path,
        *,
        device: Device = "auto",
        names: Sequence[str] = features.NAMES,
        version: int = features.VERSION,
        wait: float = 0.0003,
        inline: bool | None = None,
    ) -> None:
        """`wait`: seconds that a step may wait for others to share its batch with, while others are under way.

        `inline`: run the network on the event loop, without a thread; None: if it is cheap enough (`INLINE`).
        """
        self.path = path
        self.answers = 0  # answers under way that may ask; kept by `Strategy` runs
        self.batches = 0
        self.items = 0
        try:
            data = files.read(path, _LARGEST)
        except OSError as error:
            raise StepPolicyError(f"{path}: cannot read the policy file: {error.strerror or error}") from error
        self._network = _Network(path, data, device)
        self.device = self._network.device
        self.card = _card(path, data, self._network.metadata, names, version)
        self._check(self.card.width)
        self.inline = (self.device == "cpu" and self._cost(self.card.width) < INLINE) if inline is None else inline
        self._closed = False
        limits = service.Limits(4 * BUCKETS[-1], BUCKETS[-1])
        self._service: service.Service[Step, Said] = service.Service(
            service.InferenceMetrics(path.name), self._run, limits=limits
        )
        self._service.wait, self._service.company = wait, lambda: self.answers

    @property
    def hidden_width(self) -> int:
        """Width of the recurrent state, 0 for a network without one."""
        return self._network.hidden_width

    async def keep(self, vector: Vector, hidden: Vector | None = None) -> Said:
        """P(keep) for one step and the recurrent state after it. Raises PolicyFailed."""
        if self._closed:
            raise PolicyFailed("closed", "the policy was closed")
        vector = vector[: self.card.width]
        if self.hidden_width and hidden is None:
            hidden = np.zeros(self.hidden_width, np.float32)
        if self.inline:
            keep, after = self._now(vector, hidden)
        else:
            try:
                keep, after = await self._service.ask((vector, hidden))
            except Unavailable as error:
                raise PolicyFailed(error.reason, f"{self.path.name}: {error.__cause__ or error}") from error
        if not 0.0 <= keep <= 1.0:  # also false for NaN
            raise PolicyFailed("not_a_probability", f"the policy said P(keep) = {keep}")
        return keep, after

    def close(self) -> None:
        """Ends the thread. Steps still waiting fail."""
        self._closed = True
        self._service.close()

    def _now(self, vector: Vector, hidden: Vector | None) -> Said:
        try:
            answer = self._network.run_one(vector, hidden)
        except Exception as error:
            raise PolicyFailed("inference", f"{self.path.name}: {error}") from error
        self.batches += 1
        self.items += 1
        return answer

    def _run(self, steps: list[Step]) -> list[Said]:
        """All of them in one run of the network, in the service's thread."""
        try:
            vectors = np.stack([vector for vector, _ in steps])
            hidden = np.stack([state for _, state in steps if state is not None]) if self.hidden_width else None
            keep, after = self._network.run(vectors, hidden)
        except Exception as error:
            raise Unavailable("inference") from error
        self.batches += 1
        self.items += len(steps)
        return [(float(keep[i]), None if after is None else after[i]) for i in range(len(steps))]

    def _cost(self, width: int) -> float:
        """Seconds that one step takes: the least of a few measurements, since a busy machine makes others longer."""
        vector, hidden = np.zeros(width, np.float32), np.zeros(self.hidden_width, np.float32)
        least = math.inf
        for _ in range(8):
            started = time.perf_counter()
            self._network.run_one(vector, hidden if self.hidden_width else None)
            least = min(least, time.perf_counter() - started)
        return least

    def _check(self, width: int) -> None:
        """Runs the network once, so that a wrong shape is found now."""
        network = self._network
        try:
            keep, after = network.run(np.zeros((2, width), np.float32), np.zeros((2, network.hidden_width), np.float32))
        except Exception as error:
            raise StepPolicyError(f"{self.path}: the network does not run on [2, {width}] features: {error}") from error
        if keep.shape != (2,) or (after is not None and after.shape != (2, network.hidden_width)):
            raise StepPolicyError(
                f"{self.path}: outputs must be keep [batch] and hidden_out [batch, h], not {keep.shape}"
            )


class _Network:
    """The onnxruntime session: CPU, or CUDA with buffers of fixed sizes on the device."""

    def __init__(self, path: Path, data: bytes, device: Device) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise StepPolicyError(
                f"{path}: a policy needs onnxruntime: install pointsman[cpu] or pointsman[gpu]"
            ) from error
        self._ort = onnxruntime
        available = onnxruntime.get_available_providers()
        if device == "cuda" and "CUDAExecutionProvider" not in available:
            raise StepPolicyError(
                "device: cuda, but this onnxruntime was built without CUDA: install onnxruntime-gpu instead of "
                f"onnxruntime, or say device: auto (providers here: {', '.join(available)})"
            )
        wanted = [name for name in ("CUDAExecutionProvider",) if device != "cpu" and name in available]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # the network is tiny: more threads cost more than they bring
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(data, options, providers=[*wanted, "CPUExecutionProvider"])
        except Exception as error:
            raise StepPolicyError(f"{path}: not a usable ONNX file: {error}") from error
        self.device: Literal["cuda", "cpu"] = (
            "cuda" if "CUDAExecutionProvider" in self._session.get_providers() else "cpu"
        )
        if device == "cuda" and self.device == "cpu":
            raise StepPolicyError(
                "device: cuda, but the CUDA provider did not start: no usable NVIDIA GPU or driver, or CUDA libraries "
                "that do not match this onnxruntime-gpu; say device: auto to run on the CPU"
            )
        self.metadata: Mapping[str, str] = self._session.get_modelmeta().custom_metadata_map
        inputs = {value.name: value for value in self._session.get_inputs()}
        outputs = {value.name: value for value in self._session.get_outputs()}
        recurrent = "hidden" in inputs
        if set(inputs) != ({"features", "hidden"} if recurrent else {"features"}) or set(outputs) != (
            {"keep", "hidden_out"} if recurrent else {"keep"}
        ):
            raise StepPolicyError(
                f"{path}: a policy has the input features and the output keep, and hidden and hidden_out together or "
                f"not at all; this file has inputs {sorted(inputs)}, outputs {sorted(outputs)}"
            )
        for value in (*inputs.values(), *outputs.values()):
            if value.type != "tensor(float)":
                raise StepPolicyError(f"{path}: {value.name} must be float32, not {value.type}")
        if any(not isinstance(value.shape[-1], int) or len(value.shape) != 2 for value in inputs.values()):
            raise StepPolicyError(f"{path}: inputs must be [batch, a fixed width]")
        self.hidden_width: int = inputs["hidden"].shape[-1] if recurrent else 0
        self._names = ("keep", "hidden_out") if recurrent else ("keep",)
        self._bindings: dict[int, tuple[Any, dict[str, Any]]] = {}
        widths = {"features": inputs["features"].shape[1:], "keep": [], "hidden": [self.hidden_width]}
        widths["hidden_out"] = widths["hidden"]
        self._buffers = {name: np.empty((1, *widths[name]), np.float32) for name in (*inputs, *outputs)}
        self._one = self._session.io_binding()
        for name, buffer in self._buffers.items():
            bind = self._one.bind_ortvalue_input if name in inputs else self._one.bind_ortvalue_output
            bind(name, onnxruntime.OrtValue.ortvalue_from_numpy(buffer))

    def run(self, vectors: Vector, hidden: Vector | None) -> tuple[Vector, Vector | None]:
        """[n, d] (and [n, h]) to P(keep) [n] (and [n, h])."""
        feeds = {"features": vectors}
        if self.hidden_width and hidden is not None:
            feeds["hidden"] = hidden
        results = self.run_unbound(feeds) if self.device == "cpu" else self.run_bound(feeds)
        return results[0], results[1] if self.hidden_width else None

    def run_one(self, vector: Vector, hidden: Vector | None) -> tuple[float, Vector | None]:
        """One step, [d] (and [h]), on the CPU, for one caller at a time: the buffers are bound only once.

        `run` makes and checks its inputs and outputs anew each time, which for a small network takes most of the time.
        """
        buffers = self._buffers
        buffers["features"][0] = vector
        if hidden is not None:
            buffers["hidden"][0] = hidden
        self._session.run_with_iobinding(self._one)
        return float(buffers["keep"][0]), buffers["hidden_out"][0].copy() if hidden is not None else None

    def run_unbound(self, feeds: Mapping[str, Vector]) -> list[Vector]:
        """The outputs, with whatever onnxruntime does by itself to bring the inputs to the device."""
        results: list[Vector] = self._session.run(self._names, feeds)
        return results

    def run_bound(self, feeds: Mapping[str, Vector]) -> list[Vector]:
        """The same through I/O binding: the batch is padded to a bucket whose device buffers are kept."""
        n = len(feeds["features"])
        bucket = next(size for size in BUCKETS if size >= n)
        if bucket not in self._bindings:
            binding = self._session.io_binding()
            buffers = {
                name: self._ort.OrtValue.ortvalue_from_shape_and_type(
                    (bucket, value.shape[1]), np.float32, self.device, 0
                )
                for name, value in feeds.items()
            }
            for name, buffer in buffers.items():
                binding.bind_ortvalue_input(name, buffer)
            for name in self._names:
                binding.bind_output(name, self.device)
            self._bindings[bucket] = binding, buffers
        binding, buffers = self._bindings[bucket]
        for name, value in feeds.items():
            padded = np.zeros((bucket, value.shape[1]), np.float32)
            padded[:n] = value
            buffers[name].update_inplace(padded)
        self._session.run_with_iobinding(binding)
        return [result[:n] for result in binding.copy_outputs_to_cpu()]


def _card(path: Path, data: bytes, metadata: Mapping[str, str], names: Sequence[str], version: int) -> Card:
    """Reads and checks the file's metadata. Raises PolicyError."""

    def read(key: str) -> Any:
        text = metadata.get(f"pointsman.{key}")
        if text is None:
            raise StepPolicyError(
                f"{path}: metadata pointsman.{key} is missing; export it with `pointsman stepwise export`"
            )
        if key == "commit":
            return text
        try:
            return json.loads(text)
        except ValueError as error:
            raise StepPolicyError(f"{path}: metadata pointsman.{key} is not JSON: {error}") from error

    if str(read("format")) not in FORMATS:
        raise StepPolicyError(
            f"{path}: policy format {read('format')}, but this version reads formats {' and '.join(FORMATS)}"
        )
    seen = read("features")
    width = len(seen) if isinstance(seen, list) and len(seen) == features.FIRST else len(names)
    if read("features_version") != version or seen != list(names[:width]):
        raise StepPolicyError(
            f"{path}: trained with other features than this version computes: {_difference(seen, names)} "
            f"(feature version {read('features_version')} in the file, {version} here); train or export it again"
        )
    try:
        pair = read("pair")
        rows = tuple(map(CalibrationRow.from_json, read("kappa")))
        card = Card(
            small=str(pair["small"]),
            large=str(pair["large"]),
            steps=StepLimits(
                int(read("steps")["min_tokens"]),
                int(read("steps")["max_tokens"]),
                Ends(read("steps").get("ends", Ends.BLANK)),
            ),
            token_budget=int(read("token_budget")) if "pointsman.token_budget" in metadata else 4096,
            rows=rows,
            marks=read("marks") if "pointsman.marks" in metadata else None,
            calibration_size=int(read("calibration_size")),
            commit=read("commit"),
            sha256=hashlib.sha256(data).hexdigest(),
            path=path,
            width=width,
            temperature=float(read("temperature")) if "pointsman.temperature" in metadata else 0.0,
        )
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, StepPolicyError):
            raise
        raise StepPolicyError(f"{path}: metadata in the wrong shape: {error!r}; see docs/stepwise.md") from error
    if card.calibration_size < 0 or card.token_budget <= 0 or not 0 <= card.temperature < math.inf:
        raise StepPolicyError(f"{path}: calibration_size, token_budget and temperature must be positive")
    if any(row.kind not in ("accuracy_loss", "cost") or not math.isfinite(row.kappa) for row in rows):
        raise StepPolicyError(f"{path}: κ rows need kind accuracy_loss or cost and a finite kappa")
    asking = [row.ask for row in rows if row.ask is not None]
    if any(not (0 <= ask.low <= ask.high and math.isfinite(ask.high) and math.isfinite(ask.mark)) for ask in asking):
        raise StepPolicyError(f"{path}: the thresholds of ask must be finite, low from 0 to high")
    if card.marks not in (None, *MARKS) or (asking and card.marks is None):
        known = " or ".join(MARKS)
        raise StepPolicyError(f"{path}: rows with ask need metadata pointsman.marks: {known}, not {card.marks}")
    if len({(row.kind, row.target) for row in rows}) != len(rows):
        raise StepPolicyError(f"{path}: two κ rows have the same kind and target")
    return card


def _difference(found: object, expected: Sequence[str]) -> str:
    if not isinstance(found, list) or set(found) == set(expected):
        return "the same names in another order" if isinstance(found, list) else "no list of names"
    missing = [name for name in expected if name not in found]
    extra = [str(name) for name in found if name not in expected]
    return f"missing {missing}, unknown {extra}"
