"""What a kind of signal may use beside its own parameters: one object of an engine, made in `config.build`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from signals.neural.service import DEFAULT_LIMITS, Inference, Limits
from signals.state.gauges import Loads
from signals.state.session import USUAL, Sessions
from signals.state.standing import Standings
from signals.state.store import Memory, Store

Device = Literal["auto", "cuda", "cpu"]
Readers = Literal["fast", "both"]
USUAL_CAP: Final = 32768
USUAL_STANDING: Final = 0.5
"""That of a default model whose `quality` the policy does not tell."""


@dataclass(frozen=True, slots=True, eq=False)
class Services:
    """Everything has a default, with which a signal works by itself: state in memory, models on this machine.

    `folder` is that of the policy file, to which paths in it are relative. `readers` says who reads for `jailbreak` and
    `domain`. `standing` is the quality of the default model, 0 to 1.
    `device` and `threads` (of one run) are for models that an operator mounts. A text of more than `max_input_tokens`
    tokens is not read by any model. `limits` bound what waits for a model. `inference` has the models that are loaded,
    `loads` the gauges of the policy's models, `store` what replicas share, `standings` what selectors have learned;
    these four outlive the engine. `sessions` tells which conversation a request belongs to, `tenant` is the header that
    says who asks.
    """

    folder: Path = Path()
    device: Device = "auto"
    readers: Readers = "fast"
    standing: float = USUAL_STANDING
    threads: int = 1
    max_input_tokens: int = USUAL_CAP
    limits: Limits = DEFAULT_LIMITS
    inference: Inference = field(default_factory=Inference)
    store: Store = field(default_factory=Memory)
    loads: Loads = field(default_factory=Loads)
    sessions: Sessions = USUAL
    standings: Standings = field(default_factory=Standings)
    tenant: str | None = None
