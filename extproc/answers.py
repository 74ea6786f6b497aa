"""The writers of the policies in force. A request whose decision has a writer is answered by it, if it can be.

Within the ext_proc exchange the answer is streamed to Envoy, and the writer calls the models back through Envoy. Where
Envoy cannot take such a stream, the request is sent to a service over HTTP (extproc.serving.overhttp) that has the same
writers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from decisions.decision import Trace
from decisions.engine import Engine
from decisions.model import Model, before
from extproc.requests.head import number
from extproc.told import ROUTE
from extproc.wire import Pairs
from signals.request import Request
from upstream.answer import Answer
from upstream.endpoint import Endpoint
from upstream.writer import DIFFICULTY, Call, Charge, Means, OneEach, Writer, WriterSpec

DECISION: Final = "x-pointsman-decision"
"""Request header that names the decision, for the service over HTTP."""
POLICY: Final = "x-pointsman-policy"
"""Request header with the hash of the policy that has decided; without it, the policy in force is meant."""
PRIOR: Final = "x-pointsman-difficulty"
"""Request header with the request's difficulty, 0..1, where a signal has read it."""
SESSION: Final = "x-pointsman-session"
"""Request header with the key of the request's session (signals.state.session), for a writer that asks for it."""


class Answers:
    """The writers of the engines in force, ready to answer (extproc.exchange.Answerer).

    `through` is the address of Envoy's internal listener (`http://host:port`), where the route header picks the
    model; without it each model's own `url` is called. `folder` is the policy file's. `counters` outlive the engines.
    `served`: there is a service over HTTP too (extproc.serving.overhttp), which answers where Envoy cannot stream.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        folder: Path,
        through: str | None,
        counters: OneEach | None = None,
        *,
        served: bool = False,
    ) -> None:
        """Raises ValueError when a writer cannot be built."""
        self._engines = {engine.policy: engine for engine in engines}
        self._in_force = engines[0].policy
        self._served = served
        self._writers: dict[tuple[str, WriterSpec], Writer] = {}
        self._named: dict[tuple[str, str], Writer] = {}
        counters, common = counters or OneEach(), OneEach()
        for engine in engines:
            for clause in engine.clauses:
                spec = clause.writer
                if spec is None:
                    continue
                known = engine.policy, spec
                if known not in self._writers:
                    ends = {key: endpoint(engine.models[key], through, spec.kind.name) for key in spec.models}
                    self._writers[known] = spec.build(Means(ends, folder, engine.store, counters, common))
                self._named[engine.policy, clause.name] = self._writers[known]

    def find(self, name: str, policy: str = "") -> Writer | None:
        """The writer of the decision of that name in `policy` (its hash), or in the one in force."""
        return self._named.get((policy or self._in_force, name))

    @property
    def problems(self) -> dict[str, str]:
        """Why writers cannot answer as their decisions say, by the decision's name."""
        return {name: writer.problem for (_, name), writer in self._named.items() if writer.problem is not None}

    async def start(self) -> None:
        """Let every writer make itself ready, all at the same time."""
        await asyncio.gather(*(writer.start() for writer in self._writers.values()))

    def elsewhere(self, trace: Trace, request: Request) -> Pairs | None:
        """The headers that lead the request to the service over HTTP; () when that cannot answer it either, None
        without such a service."""
        if not self._served:
            return None
        writer = self._writer(trace)
        call = self._call(trace, request, writer)
        if not _fit(writer, call):
            return ()
        told: Pairs = ((DECISION, trace.decision.name or ""), (POLICY, trace.policy))
        if call.session:
            told = (*told, (SESSION, call.session))
        prior = trace.readings.get(DIFFICULTY)
        return told if prior is None or prior.score is None else (*told, (PRIOR, f"{prior.score:.2f}"))

    async def answer(self, trace: Trace, request: Request, charge: Charge | None = None) -> Answer | None:
        """The answer; None when `request` has to take the plain route."""
        writer = self._writer(trace)
        call = self._call(trace, request, writer, charge)
        return await writer.answer(call) if _fit(writer, call) else None

    async def close(self) -> None:
        """Close every connection. Answers still under way fail."""
        await asyncio.gather(*(writer.close() for writer in self._writers.values()))

    def _writer(self, trace: Trace) -> Writer:
        spec = trace.decision.writer
        assert spec is not None
        return self._writers[trace.policy, spec]

    def _call(self, trace: Trace, request: Request, writer: Writer, charge: Charge | None = None) -> Call:
        engine = self._engines[trace.policy]
        return Call(
            request.fields,
            request.headers,
            request.api,
            deadline(request.headers),
            trace.readings,
            engine.sessions.key(request) if writer.by_session else "",
            charge,
        )


def _fit(writer: Writer, call: Call) -> bool:
    """Whether the writer can answer; it is counted when it cannot."""
    reason = writer.unfit(call)
    if reason is not None:
        writer.metrics.ineligible[reason] += 1
    return reason is None


def deadline(headers: Mapping[str, str]) -> float | None:
    """When Envoy gives up on this request (`x-envoy-expected-rq-timeout-ms`), on the running loop's clock."""
    milliseconds = number(headers.get("x-envoy-expected-rq-timeout-ms", ""))
    return asyncio.get_running_loop().time() + milliseconds / 1000 if milliseconds else None


def reachable(engines: Sequence[Engine], through: str | None) -> None:
    """Raises ValueError when a writer calls a model of which nobody says where it is served."""
    for engine in engines:
        for clause in engine.clauses:
            if clause.writer is not None:
                for key in clause.writer.models:
                    endpoint(engine.models[key], through, clause.writer.kind.name)


def endpoint(model: Model, through: str | None, who: str) -> Endpoint:
    """Where `model` is called by the decisions of the writer named `who`.

    Raises ValueError when nobody says where it is served.
    """
    base = None if through else model.base_path  # the gateway knows it itself
    url = through or model.url
    if url is None:
        raise ValueError(
            f"model {model.key}: {who} decisions call it, so it needs a `url:` in the policy, or the router "
            "needs the address of Envoy's internal listener (--models-through)"
        )
    headers = {ROUTE: model.key} if through else {}
    return Endpoint(
        before(url, base),
        model.name,
        headers=headers,
        price_input=model.input_price,
        price_output=model.output_price,
        price_cached=model.cached_price,
        price_written=model.write_price,
        base_path="/v1" if base is None else base,
    )
