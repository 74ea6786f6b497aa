"""A stepwise decision that asks its two models what they can do, and lets the large one answer until it knows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from stepwise.asking import probe
from stepwise.asking.pair import PairModel, Setup, log
from stepwise.asking.probe import Capability
from stepwise.metrics import StepwiseMetrics
from stepwise.strategies.fixed import Fixed
from upstream.client import DeadlineError, ModelClient, UpstreamError
from upstream.endpoint import Endpoint
from upstream.tokens import TOP

_RETRY = 10.0  # seconds between two probes of an upstream that could not be asked
_PROBE = 20.0  # seconds that a probe may take
_PATIENCE = 3.0  # seconds that an answer waits for one


class StepwiseError(ValueError):
    """A stepwise block that cannot work. The message says why and what to do."""


class Stepwise:
    """A stepwise decision, ready to answer. `start` it, `close` it at the end."""

    def __init__(self, setup: Setup, capabilities: Path | None = None) -> None:
        self._setup = setup
        self._marks: bool | None = None  # can the large model mark steps, where the strategy wants it to
        self._asked_marks: float | None = None  # when it was last asked to, by the monotonic clock
        self._fallback = replace(setup, strategy=Fixed.always_large())
        self._capabilities = capabilities
        self._probing: asyncio.Task[None] | None = None

    @property
    def metrics(self) -> StepwiseMetrics:
        return self._setup.metrics

    @property
    def models(self) -> tuple[str, str]:
        """The small model's name in the policy, and the large one's."""
        return self._setup.small.name, self._setup.large.name

    @property
    def problem(self) -> str | None:
        """Why steps cannot be taken, as far as is known: the strategy cannot work with these upstreams, or one of them
        does not work."""
        if reason := self.unworkable:
            return f"{reason}; until then {self._setup.large.name} alone answers"
        down = (model for model in (self._setup.small, self._setup.large) if model.failure is not None)
        return "; ".join(f"{model.name} does not work: {model.failure}" for model in down) or None

    async def start(self, headers: Mapping[str, str] | None = None) -> None:
        """Probes both upstreams. One that cannot be reached is tried again when an answer needs it.

        Raises StepwiseError when what they can do is known and the strategy cannot work with it.
        """
        await self._prepare(headers or {}, _PROBE)
        if reason := self.unworkable:
            raise StepwiseError(reason)

    async def ready(self, headers: Mapping[str, str], deadline: float | None) -> Setup:
        """What an answer needs: the large model alone while the strategy cannot work, or while that is not known yet.

        `deadline`: on the running loop's clock.
        """
        left = _PATIENCE if deadline is None else deadline - asyncio.get_running_loop().time()
        await self._prepare(headers, max(0.0, min(left, _PATIENCE)))
        if self.unworkable:
            self.metrics.safe_side["unworkable"] += 1
            return self._fallback
        if self._setup.large.capability.mode is None and self._setup.strategy.judges:
            self.metrics.safe_side["unprobed"] += 1
            return self._fallback
        return self._setup if self._setup.large.hung is None else replace(self._setup, marks=None)

    async def close(self) -> None:
        """Closes every connection and the policy. Answers still under way fail."""
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.wait([self._probing])
        self._setup.strategy.close()
        await self._setup.small.upstream.close()
        await self._setup.large.upstream.close()

    def records(self) -> dict[str, Capability]:
        """What is known of the upstreams, by model name."""
        return {
            model.name: model.capability for model in (self._setup.small, self._setup.large) if model.capability.checked
        }

    async def _prepare(self, headers: Mapping[str, str], seconds: float) -> None:
        """Probes the models that need it, once for all callers, and waits for that at most `seconds`.

        It does not wait where one is only asked whether its server works again.
        """
        models = (self._setup.small, self._setup.large)
        marks = self._marks_due  # also where another decision has probed both models
        known = all(model.capability.checked and not model.suspect for model in models)
        known = known and not (marks and self._asked_marks is None)
        if self._probing is None or self._probing.done():
            due = [model for model in models if self._due(model)]
            if not due and not marks:
                return
            self._probing = asyncio.create_task(self._probe_all(due, dict(headers)))
        if known:
            return
        done, _ = await asyncio.wait([self._probing], timeout=seconds)
        for task in done:
            task.result()  # upstream failures are dealt with in there: anything else is a defect, and shows here

    @property
    def _marks_due(self) -> bool:
        """Does the strategy want marks of a large model that works, and it is not known whether it gives any, or gives
        them again?"""
        strategy, large = self._setup.strategy, self._setup.large
        wanted = strategy.needs_marks or strategy.asks is not None
        if not wanted or not large.capability.checked:
            return False
        if large.hung is not None:
            return time.monotonic() - large.hung > _RETRY
        if self._marks is not None:
            return False
        return self._asked_marks is None or time.monotonic() - self._asked_marks > _RETRY

    def _due(self, model: PairModel) -> bool:
        if model.asked is None:
            return True
        wanted = not model.capability.checked or model.suspect or model.failure is not None
        return wanted and time.monotonic() - model.asked > _RETRY

    async def _probe_all(self, models: list[PairModel], headers: Mapping[str, str]) -> None:
        await asyncio.gather(*(self._probe(model, headers) for model in models))
        large = self._setup.large
        strategy = self._setup.strategy
        async with large.probing:  # another decision with the same model may be at it already
            if not self._marks_due:
                return self._remember()
            self._asked_marks = time.monotonic()
            limit = asyncio.get_running_loop().time() + _PROBE
            kind = strategy.asks or "digit"
            try:
                self._marks = await probe.marks(large.upstream, kind, headers, large.capability, limit)
                large.marks_again()
            except (UpstreamError, DeadlineError):
                self.metrics.upstream_errors[large.name, "probe_marks"] += 1
                if large.hung is not None:
                    large.hangs()
            self._setup = replace(self._setup, marks=kind if self._marks else None)
            if self._marks is False and not strategy.needs_marks:
                log.info("stepwise_never_asks", extra={"model": large.name, "marks": strategy.asks})
        self._remember()

    async def _probe(self, model: PairModel, headers: Mapping[str, str]) -> None:
        async with model.probing:  # another decision with the same model may be at it already
            if self._due(model):
                limit = asyncio.get_running_loop().time() + _PROBE
                try:
                    model.capability = await probe.probe(model.upstream, headers, limit)
                    model.suspect = False
                    model.works()
                except UpstreamError as error:
                    model.failed(str(error))
                    self.metrics.upstream_errors[model.name, f"probe_{error.kind}"] += 1
                except DeadlineError:
                    model.failed(f"it did not answer a few tiny questions within {_PROBE:g} s")
                    self.metrics.upstream_errors[model.name, "probe_timeout"] += 1
                model.asked = time.monotonic()
        if not model.capability.checked and self._capabilities is not None:
            known = probe.load(self._capabilities).get(model.name)
            if known is not None and known.model == model.upstream.endpoint.model:
                model.capability = known

    def _remember(self) -> None:
        if self._capabilities is not None and (records := self.records()):
            try:
                probe.save(self._capabilities, {**probe.load(self._capabilities), **records})
            except OSError:
                self.metrics.upstream_errors["-", "capabilities_not_saved"] += 1

    @property
    def unworkable(self) -> str | None:
        """Why the strategy cannot work with these upstreams; None when it can, or when nothing is known of them."""
        small, large, strategy = self._setup.small, self._setup.large, self._setup.strategy
        name = strategy.name
        if strategy.alone:
            return None
        given = small.capability.top_logprobs
        if small.capability.checked and given < strategy.needs_top:
            gives = f"only {given} top log probabilities" if given >= 0 else "no log probabilities"
            return (
                f"strategy {name} needs {max(strategy.needs_top, 1)} of them, but {small.name} gives {gives}: "
                "switch them on at the server, or use strategy: verify"
            )
        if self._marks is False and strategy.needs_marks:
            return (
                f"strategy {name} needs marks, but {large.name}, asked to rate a step with one digit, gave none: use a "
                "strategy that looks at the small model's probabilities, such as cold-start"
            )
        if large.capability.checked and large.capability.mode is None:
            tried = "; ".join(f"{mode}: {outcome}" for mode, outcome in large.capability.modes.items())
            return (
                f"{large.name} cannot continue a prefix ({tried}), so it cannot write single steps: serve it with vLLM "
                "or SGLang, or give it a chat template for /v1/completions"
            )
        return None


class Servers(list[PairModel]):
    """The models' servers of the policies in force, each of which is probed once whoever asks."""

    def of(self, name: str, endpoint: Endpoint) -> PairModel:
        """The one that this is; a new one is added."""
        for server in self:
            if server.name == name and server.upstream.endpoint == endpoint:
                return server
        self.append(PairModel(name, ModelClient(endpoint), unknown(endpoint)))
        return self[-1]


def unknown(endpoint: Endpoint) -> Capability:
    """The capability before the first probe: nothing is known except what the operator states."""
    return Capability(endpoint.model, 0.0, endpoint.mode, {}, TOP, False, False, False)
