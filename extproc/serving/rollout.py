"""A candidate policy beside the one in force: in its shadow, and, if asked, for a stable share of the traffic."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from decisions.candidates import fraction
from decisions.decision import Decision, Trace
from decisions.engine import Engine, Evaluation
from decisions.model import UnknownModel
from extproc.exchange import is_long
from signals.background import background
from signals.request import Request
from signals.text.estimate import estimate

log = logging.getLogger("pointsman.rollout")

AT_ONCE = 64  # shadow evaluations that wait for slow signals or read long bodies; more are skipped and counted
LOGGED_A_SECOND = 10


class Rollout:
    """One candidate engine. It decides `share` (0 to 1) of the sessions; the others it decides without effect.

    A decision without effect costs as much as any other. `count` is called with `agree`, `differ`, `skipped` or `error`
    for each.
    """

    def __init__(self, live: Engine, candidate: Engine, share: float, count: Callable[[str], None]) -> None:
        self.candidate = candidate
        self.share = share
        self._live = live
        self._count = count
        self._tasks: set[asyncio.Task[None]] = set()
        self._second = 0
        self._logged = 0

    def choose(self, request: Request) -> Engine:
        """The engine that decides `request`: the same one for all of a session."""
        if self.share > 0.0 and fraction("canary", self._live.sessions.key(request)) < self.share:
            return self.candidate
        return self._live

    def follow(self, trace: Trace, request: Request) -> None:
        """See what the candidate would have decided."""
        if trace.policy == self.candidate.policy:
            return
        try:
            evaluation = self.candidate.begin(request, time.monotonic() + self.candidate.settings.deadline)
            evaluation.facts.shadow = True
            settled = evaluation if self._long(request) else evaluation.advance() or evaluation
        except UnknownModel:
            self._compare(trace, None)
            return
        except Exception:  # a shadow must never disturb the light
            log.exception("candidate_failed")
            self._count("error")
            return
        if isinstance(settled, Trace):
            self._compare(trace, settled.decision)
        elif len(self._tasks) >= AT_ONCE:
            self._count("skipped")
        else:
            task = asyncio.get_running_loop().create_task(self._finish(trace, settled))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _long(self, request: Request) -> bool:
        """Whether the candidate reads the request in a thread."""
        return is_long(request.body, slow=self.candidate.slow)

    async def _finish(self, trace: Trace, evaluation: Evaluation) -> None:
        try:
            if self._long(evaluation.facts.request):
                if trace.estimated_input_tokens is not None:
                    evaluation.facts.put(estimate, trace.estimated_input_tokens)
                await evaluation.read_ahead(lambda work: asyncio.to_thread(background, work))
            finished = await evaluation.finish()
        except Exception:  # as in `follow`
            log.exception("candidate_failed")
            self._count("error")
            return
        self._compare(trace, finished.decision)

    def _compare(self, trace: Trace, other: Decision | None) -> None:
        live = _outcome(trace.decision)
        candidate = ("refuse-unknown-model", None) if other is None else _outcome(other)
        if live == candidate:
            self._count("agree")
            return
        self._count("differ")
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._logged = second, 0
        self._logged += 1
        if self._logged <= LOGGED_A_SECOND:
            log.info(
                "candidate_differs",
                extra={
                    "decision": live[0],
                    "model": live[1],
                    "candidate_decision": candidate[0],
                    "candidate_model": candidate[1],
                },
            )


def _outcome(decision: Decision) -> tuple[str | None, str | None]:
    """What counts as a difference: another decision, or another model."""
    return decision.name, decision.model.key if decision.model is not None else None
