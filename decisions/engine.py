"""The compiled policy: takes a request, asks for the readings on which the decision still depends, decides.

An engine is built whole from one policy and never changes; a new policy is a new engine.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, NamedTuple

from decisions.arm import Arm, together
from decisions.candidates import able
from decisions.decision import Cache, Changes, Choice, Decision, Trace, made
from decisions.grading import Grading, graded
from decisions.model import Model, UnknownModel
from decisions.named import bundle
from decisions.outcome import Outcome
from decisions.rule import ALWAYS, PENDING, Result, Rule, Test, compiled, evaluate, leaves, take, unread
from decisions.selectors.selector import Pick, Selector
from decisions.sticky import Keep, Kept
from decisions.watching import Judge, Watched, Watching, answering
from signals.background import rest
from signals.facts import Facts, SlowInput
from signals.gather import Needy, fetch, read, ready
from signals.needs import NEEDS
from signals.reading import Reading, Unavailable, unknown
from signals.request import Request
from signals.signal import Cost, Shared, Signal
from signals.state.store import Store
from signals.text.estimate import estimate
from upstream.writer import WriterSpec

log = logging.getLogger("pointsman.decisions")

OnUnknown = Literal["skip", "match", "fail"]
_clock: Final = time.perf_counter_ns


class Opening(NamedTuple):
    """A path whose requests go on unread. `match` is the path, or with `*` at its end a beginning of paths; `to` is a
    model's key."""

    match: str
    to: str

    def covers(self, other: Opening) -> bool:
        """Whether every path that `other` fits fits this one too."""
        return other.match.startswith(self.match[:-1]) if self.match.endswith("*") else other.match == self.match


class CacheSettings(NamedTuple):
    """How answers are kept: in `memory` bytes of each process, or in `store`; at most `answer` bytes of each."""

    memory: int = 64 * 2**20
    answer: int = 2**20
    store: Store | None = None


KEEPING: Final = CacheSettings()
LONG: Final = "[1m]"
"""What Claude Code writes behind the name of a model that it takes for one of long context."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Run-time settings of a policy.

    `deadline` and `body_timeout` are seconds, `max_body` bytes of one body, `max_open_bodies` bytes of all bodies that
    a worker holds at a time, `max_values` JSON values of one body. `pass_unread` lets requests go on although they are
    not calls that are understood; requests on the paths in `openings` go on in any case. `meter`: whether what answers
    take is counted (None: where something in the policy wants to know). `reference` is the model that savings are
    counted against, `tenant` the header that says who asks. `cache` is where answers are kept.
    """

    deadline: float = 0.05
    max_body: int = 10 * 2**20
    response_headers: bool = True
    fail_open: bool = False
    pass_unread: bool = False
    max_values: int = 200_000
    max_open_bodies: int = 256 * 2**20
    body_timeout: float = 30.0
    openings: tuple[Opening, ...] = ()
    meter: bool | None = None
    reference: Model | None = None
    tenant: str | None = None
    cache: CacheSettings = KEEPING


@dataclass(frozen=True, slots=True)
class Clause:
    """One entry of the policy's `decisions:` list, in the terms of the engine.

    `target` is a model, a choice of models, or None for `respond`. `override` applies it to requests that name a
    real model too; `respond` always does. `headers` go with the answer of a `respond`; one that `observe`s is evaluated
    and told, and the request goes on. `writer` writes the answer, and `target` takes the requests
    that it cannot answer. `keep`: for so many seconds after its last request a session stays on this decision.
    `cache`: its answers are kept. `tied`: it has the rank of the clause before it.
    """

    name: str
    when: Rule
    action: str
    target: Model | Pick | None
    on_unknown: OnUnknown = "skip"
    status: int | None = None
    message: str | None = None
    changes: Changes | None = None
    writer: WriterSpec | None = None
    override: bool = False
    headers: tuple[tuple[str, str], ...] = ()
    observe: bool = False
    keep: float | None = None
    cache: Cache | None = None
    tied: bool = False

    @property
    def guard(self) -> bool:
        return self.action == "respond"

    @property
    def candidates(self) -> tuple[Model, ...]:
        """The models that may take the plain route, apart from those that stand in for another."""
        if self.target is None:
            return ()
        if isinstance(self.target, Pick):
            return tuple(dict.fromkeys(model.plain for model in self.target.models))
        return (self.target,)

    @property
    def arms(self) -> tuple[Model, ...]:
        """Who is chosen among: candidates, each with what it changes in the request."""
        return self.target.models if isinstance(self.target, Pick) else self.candidates

    @property
    def instead(self) -> tuple[Model, ...]:
        """The models that take the place of the decision's one model where it lacks what a request needs."""
        return self.target.fallback if isinstance(self.target, Model) and self.writer is None else ()


def ranks(clauses: Sequence[Clause], best: bool) -> list[int]:
    """The rank of each clause: the first rank in which one matches has the decision, and of those that match in it the
    most confident one. With `best` all routes have one, after the guards."""
    found: list[int] = []
    for clause in clauses:
        if best and not clause.guard:
            found.append(len(clauses))
        else:
            found.append(found[-1] if clause.tied and found else len(found))
    return found


class _Compiled:
    """A clause made ready to run, its decisions prebuilt so that the hot path allocates none."""

    __slots__ = (
        "_goals",
        "clause",
        "compared",
        "decision",
        "decisions",
        "instead",
        "name",
        "observe",
        "plain",
        "rank",
        "run",
        "selector",
        "slow",
        "test",
    )

    def __init__(
        self,
        clause: Clause,
        selector: Selector | None,
        signals: Mapping[str, Signal],
        kept: Kept | None,
        place: tuple[int, bool] = (0, False),
    ) -> None:
        self.clause = clause
        self.selector = selector
        # `compared`: others of its rank are, so that its confidence may decide.
        self.rank = place[0]
        self.compared = place[1]
        # What of the rule's value makes a difference: `skip` asks whether it is true, `match` whether it is false.
        goals = {"skip": (True,), "match": (False,), "fail": (True, False)}
        both = self.compared and clause.on_unknown == "match"
        self._goals = (True, False) if both else goals[clause.on_unknown]
        self.name = clause.name
        self.observe = clause.observe
        self.test: Test = compiled(clause.when, signals)
        self.run = self.test.run
        self.plain = self.test.plain
        self.instead = clause.instead
        targets = [other for model in clause.arms for other in (model, *model.fallback)]
        self.decisions = {target: self._decision(target) for target in targets}
        # Where there is nothing to choose.
        self.decision = self._decision(clause.target if isinstance(clause.target, Model) else None)
        self.slow: tuple[SlowInput[Any], ...] = () if selector is None else selector.slow
        if clause.keep is not None and kept is not None:
            self.slow = (*self.slow, Keep(kept, clause.name, clause.keep))

    def _decision(self, model: Model | None) -> Decision:
        c = self.clause
        changes = together(c.changes, model.changes) if isinstance(model, Arm) else c.changes
        model = None if model is None else model.plain
        return Decision(c.name, c.action, model, c.status, c.message, changes, c.writer, None, c.headers, c.cache)

    def waiting(self, facts: Facts) -> set[str]:
        """The unread signals that can still make a difference; a pending rule without any counts as Unknown."""
        return {name for goal in self._goals for name in self.test.waiting(facts, goal)}

    def awaits(self, facts: Facts) -> bool:
        """Whether the choice of the model waits for something slow."""
        return bool(self.slow) and not ready(self, facts)


class Engine:
    """A policy ready to decide. Immutable, except for what its shared models count of themselves.

    `policy` is the policy file's `sha256:` hash; `auto` the model names that ask for routing; `best` chooses the most
    confident match instead of the first; `ranked` says that confidences are compared anywhere. `metered` says that
    somebody wants to know what answers cost (a budget, see `record`, or the operator), so that Envoy must show them to
    us. `selectors` make the choices of models, by the decision's name; those in `learning` are told what became of
    them, and `grading` takes what users think of it. `sessions` says how sessions are told, `store` is what replicas
    share; `chained` says that something is kept of a session, so that a chain of responses must be one. `ahead` are the
    signals that take long where a text is long. `caches`: some decision keeps answers, and counts what that saves.
    `watching` are the decisions with `on: answer`; `asked` are the signals that look at requests, which are all but
    those that look at answers. `sees_answers`: Envoy has to show us answers at all, their headers at least.
    """

    def __init__(  # noqa: PLR0913
        self,
        *,
        policy: str,
        models: Mapping[str, Model],
        default: str,
        signals: Mapping[str, Signal],
        clauses: Sequence[Clause],
        selectors: Mapping[str, Selector] | None = None,
        auto: Sequence[str] = ("auto", "pointsman"),
        pass_unknown: bool = False,
        best: bool = False,
        settings: Settings | None = None,
        shared: Shared | None = None,
        watching: Sequence[Watching] = (),
    ) -> None:
        self.policy = policy
        self.models = dict(models)
        self.default = self.models[default]
        self.signals = dict(signals)
        self.clauses = tuple(clauses)
        self.selectors = dict(selectors or {})
        self.auto = tuple(auto)
        self.pass_unknown = pass_unknown
        self.best = best
        self.settings = settings or Settings()
        self.shared = shared or Shared()
        meter = self.settings.meter
        self.caches = any(clause.cache is not None for clause in self.clauses)
        watching_answers = any(selector.watches_answers for selector in self.selectors.values())
        self.metered = (self.shared.metered or self.caches or watching_answers) if meter is None else meter
        self.learning = {name: selector for name, selector in self.selectors.items() if selector.learns}
        self.store: Store = self.shared.services.store
        answers = answering(self.signals)
        self.asked = {name: signal for name, signal in self.signals.items() if name not in answers}
        bundle(self.asked)
        self.watched = Watched(watching, self.signals) if watching else None
        long = [
            signal
            for signal in self.asked.values()
            if signal.reads or not (signal.cost == Cost.INSTANT or signal.slow or signal.inputs)
        ]
        guarded = {leaf.signal for clause in self.clauses if clause.guard for leaf in leaves(clause.when)}
        # Guards' first, quick ones before slow ones: what is late is Unknown.
        self.ahead = tuple(sorted(long, key=lambda signal: (signal.name not in guarded, signal.cost)))
        self.sessions = self.shared.services.sessions
        self.kept = Kept(self.store, self.sessions) if any(clause.keep is not None for clause in self.clauses) else None
        by_session = any(selector.by_session for selector in self.selectors.values())
        self.chained = self.kept is not None or by_session or self.shared.metered
        learns = bool(self.learning) or any(signal.timed for signal in self.signals.values())
        self.sees_answers = self.settings.response_headers or self.chained or self.watches != "none" or learns
        grades = graded(self.selectors.items())
        kinds = {name: signal.kind for name, signal in self.signals.items()}
        self.grading = Grading(grades, self.store, self.sessions, self.settings.tenant, kinds) if grades else None
        rank = ranks(self.clauses, best)
        members = Counter(rank)
        # With `best` guards go first, since nothing is compared with them.
        self._all = tuple(
            sorted(
                (self._compiled(clause, (at, members[at] > 1)) for clause, at in zip(self.clauses, rank, strict=True)),
                key=lambda compiled: compiled.rank,
            )
        )
        self.ranked = best or len(members) < len(rank)
        self._pinned = tuple(c for c in self._all if c.clause.guard or c.clause.override)
        self._auto = frozenset(name.casefold() for name in self.auto)
        self._by_name = {model.name: model for model in self.models.values()} | self.models
        aliases = [(alias, model) for model in self.models.values() for alias in model.aliases]
        self._by_name |= {alias: model for alias, model in aliases if not alias.endswith("*")}
        # The longest beginning that fits is the one meant.
        self._by_beginning = sorted(
            ((alias[:-1], model) for alias, model in aliases if alias.endswith("*")), key=lambda pair: -len(pair[0])
        )
        self._able = all(model.capabilities is None for model in self.models.values())
        self._always = {
            clause.name: self._compiled(replace(clause, when=ALWAYS))
            for clause in self.clauses
            if clause.keep is not None
        }
        self._fallbacks: dict[str | None, Decision] = {None: Decision(None, "default", self.default)}
        # Where nothing matched and the default lacks what the request needs.
        self._instead = {model: Decision(None, "default", model) for model in self.default.fallback}
        self._named: dict[Model | None, Decision] = {
            model: Decision(None, "route", model) for model in (*self.models.values(), None)
        }

    def _compiled(self, clause: Clause, place: tuple[int, bool] = (0, False)) -> _Compiled:
        selector = self.selectors[clause.name] if isinstance(clause.target, Pick) else None
        return _Compiled(clause, selector, self.signals, self.kept, place)

    @property
    def watches(self) -> Literal["none", "usage", "text"]:
        """What of an answer Envoy has to show us: nothing, what it has taken, or all of it."""
        if self.watched is not None:
            return "text"
        return "usage" if self.metered else "none"

    def judge(self, trace: Trace, request: Request) -> Judge | None:
        """The judge of the answer to `request`, which this engine has decided; None where nothing watches its text.

        The request must still be whole: what decisions on the answer want to know of it is read now.
        """
        return None if self.watched is None else self.watched.judge(trace.readings, request)

    @property
    def writes(self) -> bool:
        """Whether some decision has a writer (which needs a body mode that can stream)."""
        return any(clause.writer is not None for clause in self.clauses)

    def settle(
        self, request: Request, deadline: float = float("inf"), *, detail: bool = False, everything: bool = False
    ) -> Trace | Evaluation:
        """Decide `request` at once if no slow signal is needed; otherwise the evaluation to `finish`.

        `deadline` is a `time.monotonic()` instant. `detail` times every signal; `everything` reads every signal, also
        those that cannot change the outcome. Raises `UnknownModel`.
        """
        evaluation = self.begin(request, deadline, detail=detail, everything=everything)
        return evaluation.advance() or evaluation

    def begin(
        self, request: Request, deadline: float = float("inf"), *, detail: bool = False, everything: bool = False
    ) -> Evaluation:
        """The evaluation of `request`, with nothing read yet; parameters and errors as for `settle`."""
        return Evaluation(self, request, deadline, detail, everything)

    async def decide(
        self, request: Request, deadline: float = float("inf"), *, detail: bool = False, everything: bool = False
    ) -> Trace:
        """Decide `request`, waiting for slow signals until `deadline`. Raises `UnknownModel`."""
        settled = self.settle(request, deadline, detail=detail, everything=everything)
        return settled if isinstance(settled, Trace) else await settled.finish()

    def stubbed(
        self, request: Request, readings: Mapping[str, Reading], *, everything: bool = False, detail: bool = False
    ) -> Evaluation:
        """An evaluation in which `readings` stand for what their signals would say (policy tests, what-if);
        `everything` and `detail` as for `settle`."""
        evaluation = Evaluation(self, request, float("inf"), detail, everything)
        evaluation.facts.stub(readings)
        return evaluation

    def fallback(self, reason: str | None) -> Decision:
        """The default model, taken because of `reason` (None: nothing matched)."""
        decision = self._fallbacks.get(reason)
        if decision is None:
            decision = self._fallbacks[reason] = Decision(None, "default", self.default, fallback=reason)
        return decision

    def failed(self, reason: str) -> Trace:
        """The trace of a request that could not be evaluated at all.

        The first guard that refuses what it cannot rule out (`on_unknown: match`) refuses it; without one the default
        model takes it.
        """
        closing = (c for c in self._all if c.clause.guard and c.clause.on_unknown == "match" and not c.observe)
        closed = next(closing, None)
        decision = self.fallback(reason) if closed is None else replace(closed.decision, fallback=reason)
        return Trace(decision, self.policy, {}, {}, 0.0)

    def charge(self, request: Request, money: float) -> None:
        """Count what the answer to `request` has cost."""
        self.shared.charge(request, money)

    def renewed(self, trace: Trace, when: float) -> float | None:
        """How many seconds after `when` (since the epoch) a refusal for the money that has been spent would be none any
        more, since all the budgets in its rule begin anew; None for a refusal of another reason."""
        name = trace.decision.name
        clause = next((each for each in self.clauses if each.name == name), None)
        if clause is None or trace.results.get(clause.name) is not True:
            return None
        seconds = 0.0
        # What the named rules said is to be found out anew.
        readings = {name: said for name, said in trace.readings.items() if self.signals[name].lazily is None}
        for leaf in leaves(clause.when):
            anew = self.signals[leaf.signal].renewed(when)
            before = trace.readings.get(leaf.signal)
            if anew is not None and before is not None:
                readings[leaf.signal] = anew[1]
                if leaf.judge(before) is not leaf.judge(anew[1]):
                    seconds = max(seconds, anew[0])
        return None if not seconds or evaluate(clause.when, readings) is True else seconds

    def record(self, outcome: Outcome, request: Request) -> None:
        """A request that this engine decided is over: the budgets count what its answer cost, as far as it is known,
        and the selector that chose the model learns from it."""
        if outcome.money is not None:
            self.charge(request, outcome.money)
        choice, name = outcome.trace.choice, outcome.trace.decision.name
        selector = None if choice is None or name is None else self.learning.get(name)
        if selector is not None and choice is not None:
            try:
                selector.learn(outcome, choice)
            except Exception as error:  # noqa: BLE001 - as in `_selected`: what was learned too little costs no request
                log.error("the selector %s of decision %s learns nothing: %s", choice.by, name, type(error).__name__)

    def close(self) -> None:
        """Release what the engine's signals share (threads, sessions). In-flight evaluations see Unknown."""
        self.shared.close()

    def asks(self, request: Request) -> bool:
        """Whether `request` asks for routing, as opposed to naming the model it wants."""
        named = request.model
        if named is None or named in self._auto:
            return True
        if named in self._by_name:
            return False
        return named.strip().casefold().removesuffix(LONG) in self._auto  # clients write `Auto` and `AUTO`

    def find(self, name: str) -> Model | None:
        """The model that clients call `name`: by its key, its served name, an alias; with or without the mark by which
        Claude Code knows a model of long context."""
        model = self._by_name.get(name)
        if model is None:
            name = name.removesuffix(LONG)
            model = self._by_name.get(name)
        if model is None:
            model = next((model for beginning, model in self._by_beginning if name.startswith(beginning)), None)
        return model

    def named(self, request: Request) -> Model | None:
        """The model of the policy that `request` names; None where it names none of them."""
        return None if request.model is None or self.asks(request) else self.find(request.model)

    def _entry(self, request: Request) -> tuple[tuple[_Compiled, ...], Decision]:
        """The clauses that apply to `request` and the decision when none of them matches."""
        named = request.model
        if named is None or self.asks(request):
            return self._all, self.fallback(None)
        model = self.find(named)
        if model is None and not self.pass_unknown:
            raise UnknownModel(named)
        return self._pinned, self._named[model]

    def _lacking(self, decision: Decision, facts: Facts, candidates: Sequence[Model]) -> dict[str, tuple[str, ...]]:
        """Those of `candidates`, or the decision's model, that lack what the request needs; and what that is."""
        if self._able or decision.model is None:
            return {}
        needs = facts.get(NEEDS)
        lacking = {model.plain.key: tuple(sorted(model.lacks(needs))) for model in candidates or (decision.model,)}
        return {key: lacks for key, lacks in lacking.items() if lacks}


class Evaluation:
    """One request on its way through an engine. Lazy, but with the same result as if every signal were read first.

    A slow signal is fetched only while the first decision that is still open depends on it, by that decision's own
    rule: on whether it matches or, with `on_unknown: fail`, on whether the request takes the default model because of
    it. What later decisions would do is not considered: if a later one led to the default model as well, the result
    would be the same, but the signal is fetched nevertheless. No signal is fetched in vain if each rule names a signal
    only once (otherwise one may count as open that can change nothing) and no decisions are compared: of those that
    match and are, every signal is read.
    """

    __slots__ = (
        "_candidates",
        "_choice",
        "_chosen",
        "_clauses",
        "_context",
        "_everything",
        "_held",
        "_kept",
        "_observed",
        "_otherwise",
        "_results",
        "_started",
        "engine",
        "facts",
    )

    def __init__(self, engine: Engine, request: Request, deadline: float, detail: bool, everything: bool) -> None:
        self._started = _clock()
        self.engine = engine
        self.facts = Facts(request, deadline, detail)
        self._clauses, self._otherwise = engine._entry(request)
        self._everything = everything
        self._observed: tuple[str, ...] = ()
        self._results: dict[str, bool | None] = {}
        self._chosen: _Compiled | None = None  # matched, and waiting for its choice of a model
        self._candidates: Sequence[Model] = ()
        self._choice: Choice | None = None
        self._context: Any = None
        sticky = any(clause.clause.keep is not None for clause in self._clauses) if engine.kept is not None else False
        self._kept: Kept | None = engine.kept if sticky else None  # until it is known on which decision the session is
        self._held = False  # it is on one

    def warm(self) -> bool:
        """Take every reading that takes long where a text is long, and waits for nothing. False: the deadline came.

        Safe in a thread of its own: what is read here is not read again, so that `advance` has little left to do. A
        reading that has begun is finished; whoever does not wait for it calls `late`.
        """
        facts = self.facts
        for signal in self.engine.ahead:
            if time.monotonic() >= facts.deadline:
                return False
            for scope in signal.reads:
                facts.request.text(scope)
                rest()
            if not signal.slow and signal.name not in facts.readings:
                read(signal, facts)
                rest()
        return True

    async def read_ahead(self, apart: Callable[[Callable[[], bool]], Awaitable[bool]]) -> None:
        """`warm` in a thread (`apart` runs something in one), until the deadline; what is late is Unknown."""
        whole = False
        with suppress(TimeoutError):
            async with asyncio.timeout(self.facts.deadline - time.monotonic()):
                whole = await apart(self.warm)
        if not whole:
            self.late()

    def late(self) -> None:
        """Go on without what `warm` has not read by now: those readings are Unknown (`deadline`).

        A thread that is still reading goes on with facts that nobody looks at any more.
        """
        facts = self.facts = self.facts.copy()
        missing = unknown("deadline")
        for signal in self.engine.ahead:
            if signal.name not in facts.readings:
                facts.readings[signal.name] = facts.telling[signal.name] = missing

    def advance(self) -> Trace | None:
        """Evaluate as far as possible without waiting. Returns the trace once the decision is settled, else None."""
        if self._everything:
            signals = self.engine.asked
            if any(take(signal, signals, self.facts) is None for signal in signals.values()):
                return None
        facts = self.facts
        if self._kept is not None:
            if not facts.has(self._kept):
                return None
            self._hold(self._kept)
        engine = self.engine
        decision = self._ranked() if engine.ranked else self._first()
        if decision is None:
            return None
        if engine._instead and decision is engine._fallbacks[None]:
            self._candidates = (engine.default, *engine._instead)
            decision = engine._instead.get(able(engine.default, facts), decision)
        tokens = tokens_of(facts)
        lacking = {} if engine._able else engine._lacking(decision, facts, self._candidates)
        spent = (_clock() - self._started) / 1000
        kept = self._held and decision.action != "respond"
        return made(
            Trace,
            (
                decision,
                engine.policy,
                facts.readings,
                self._results,
                spent,
                facts.timings,
                tokens,
                facts.telling,
                self._observed,
                kept,
                lacking,
                self._choice,
                self._context,
            ),
        )

    def _hold(self, kept: Kept) -> None:
        """If the session is kept on a decision, walk only that decision and the guards above it."""
        self._kept = None
        try:
            name = self.facts.got(kept)
        except Unavailable:
            return
        always = self.engine._always.get(name)
        for at, clause in enumerate(self._clauses):
            if always is not None and clause.name == name:
                self._clauses = (*(above for above in self._clauses[:at] if above.clause.guard), always)
                self._held = True

    async def finish(self) -> Trace:
        """Fetch what the decision still depends on, cheapest class first, until it is settled or the deadline passes.

        After the deadline every missing input is Unknown (`deadline`), so guards fail closed and rules fall through.
        """
        while (trace := self.advance()) is None:
            await fetch(self._needed(), self.facts)
        return trace

    def _needed(self) -> Sequence[Needy]:
        """The waiting signals of the cheapest class. Never empty while `advance` gives None."""
        if self._chosen is not None:
            return [self._chosen]
        if self._kept is not None and not self.facts.has(self._kept):
            return [self._kept]
        signals = self.engine.signals
        names: set[str] = set()
        if self._everything:
            names = {name for signal in self.engine.asked for name in unread(signal, signals, self.facts)}
        else:
            for clause in self._clauses:
                if clause.run(self.facts) is PENDING and (names := clause.waiting(self.facts)):
                    break
                if clause.compared and self._results.get(clause.name) is True:
                    names = {n for leaf in leaves(clause.clause.when) for n in unread(leaf.signal, signals, self.facts)}
                    if names:
                        break
        wanted = [signals[name] for name in names]
        cheapest = min((signal.cost for signal in wanted), default=Cost.INSTANT)
        return [signal for signal in wanted if signal.cost == cheapest]

    def _first(self) -> Decision | None:
        facts = self.facts
        known = facts.readings.get
        results = self._results
        for clause in self._clauses:
            plain = clause.plain
            value: Result
            if plain is None:
                value = clause.run(facts)
            else:  # `any` of signals that can be read at once, which is most clauses: evaluated here, without a call
                value = False
                for name, signal in plain:
                    reading = known(name)
                    matched = (read(signal, facts) if reading is None else reading).matched
                    if matched is not False:
                        value = matched
                        if matched:
                            break
            if value is False:
                results[clause.name] = False
                continue
            if value is PENDING:
                if clause.waiting(facts):
                    return None
                value = None
            results[clause.name] = value
            if clause.observe:
                self._observe(clause, value)
                continue
            if value or clause.clause.on_unknown == "match":
                return self._decided(clause)
            if clause.clause.on_unknown == "fail":
                return self.engine.fallback("on_unknown")
        return self._otherwise

    def _ranked(self) -> Decision | None:
        """The most confident of the clauses of the first rank in which one matches, the first of equals."""
        facts = self.facts
        signals = self.engine.signals
        chosen: _Compiled | None = None
        highest = -1.0
        for clause in self._clauses:
            if chosen is not None and clause.rank != chosen.rank:
                break
            value = clause.run(facts)
            if value is PENDING:
                if clause.waiting(facts):
                    return None
                value = None
            self._results[clause.name] = value
            if value is False:
                continue
            if clause.observe:
                self._observe(clause, value)
                continue
            if value is None:
                if clause.clause.on_unknown == "fail":
                    return self.engine.fallback("on_unknown")
                if clause.clause.on_unknown == "skip":
                    continue
            if clause.clause.guard:
                return self._decided(clause)
            sure = 0.0
            if value and clause.compared:
                # The confidence depends on every leaf, so here laziness has to read them all.
                for leaf in leaves(clause.clause.when):
                    if take(signals[leaf.signal], signals, facts) is None:
                        return None
                sure = clause.test.confidence(facts)
            if sure > highest:
                chosen, highest = clause, sure
        return self._otherwise if chosen is None else self._decided(chosen)

    def _observe(self, clause: _Compiled, value: bool | None) -> None:
        """Note a guard that would have acted."""
        if (value or clause.clause.on_unknown == "match") and clause.name not in self._observed:
            self._observed = (*self._observed, clause.name)

    def _decided(self, clause: _Compiled) -> Decision | None:
        if clause.awaits(self.facts):
            self._chosen = clause
            return None
        if clause.selector is not None:
            return self._selected(clause, clause.selector)
        if not clause.instead:
            return clause.decision
        model = clause.clause.candidates[0]
        self._candidates = (model, *clause.instead)
        return clause.decisions[able(model, self.facts)]

    def _selected(self, clause: _Compiled, selector: Selector) -> Decision:
        try:
            choice = selector.choose(self.facts)
            decision = clause.decisions[choice.model]
            self._context = selector.context(self.facts) if selector.learns else None
        except Exception as error:  # noqa: BLE001 - as in signals.gather: the guards above have passed the request
            log.error("the selector %s of decision %s failed: %s", selector.name, clause.name, type(error).__name__)
            self._held = False
            return self.engine.fallback("selector")
        self._candidates = selector.models
        self._choice = choice
        return decision


def tokens_of(facts: Facts) -> int | None:
    """The request's estimated input tokens; None where the estimate fails, which costs no request its decision."""
    try:
        return facts.get(estimate)
    except Exception as error:  # noqa: BLE001 - as in signals.gather; a guard must not be lost to a figure for the log
        log.error("the token estimate failed: %s", type(error).__name__)
        return None
