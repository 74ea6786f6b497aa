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
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, NamedTuple

from decisions.arm import Arm, together
from decisions.candidates import able
from decisions.catalogue import Catalogue
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
from signals.state.session import Sessions
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


@dataclass(frozen=True, slots=True)
class Ruleset:
    """What a policy decides by: its `clauses` in their order, the `signals` that their rules name, and the `selectors`
    that make the choices of models, by the decision's name. `watching` are the decisions with `on: answer`. `best`
    chooses the most confident match instead of the first."""

    clauses: Sequence[Clause] = ()
    signals: Mapping[str, Signal] = field(default_factory=dict)
    selectors: Mapping[str, Selector] = field(default_factory=dict)
    watching: Sequence[Watching] = ()
    best: bool = False


class _Order:
    """The clauses in the order in which they are asked: `all` of them, and those that apply to a request that names its
    model (`pinned`). `compared`: confidences are, anywhere. `always`: the clauses that a session stays on, by their
    names, as they are while it does."""

    __slots__ = ("all", "always", "compared", "pinned")

    def __init__(self, rules: Ruleset, kept: Kept | None) -> None:
        def ready_to_run(clause: Clause, place: tuple[int, bool] = (0, False)) -> _Compiled:
            selector = rules.selectors[clause.name] if isinstance(clause.target, Pick) else None
            return _Compiled(clause, selector, rules.signals, kept, place)

        rank = ranks(rules.clauses, rules.best)
        members = Counter(rank)
        placed = [ready_to_run(clause, (at, members[at] > 1)) for clause, at in zip(rules.clauses, rank, strict=True)]
        # With `best` guards go first, since nothing is compared with them.
        self.all = tuple(sorted(placed, key=lambda compiled: compiled.rank))
        self.pinned = tuple(c for c in self.all if c.clause.guard or c.clause.override)
        self.compared = rules.best or len(members) < len(rank)
        self.always = {
            clause.name: ready_to_run(replace(clause, when=ALWAYS))
            for clause in rules.clauses
            if clause.keep is not None
        }


class _Unruled:
    """The decisions that no clause makes. `default`: nothing matched. `instead`: nothing did, and the default model
    lacks what the request needs. `named`: the request names its model."""

    __slots__ = ("_failed", "_model", "default", "instead", "named")

    def __init__(self, catalogue: Catalogue) -> None:
        self._model = catalogue.default
        self.default = Decision(None, "default", self._model)
        self.instead = {model: Decision(None, "default", model) for model in self._model.fallback}
        self.named: dict[Model | None, Decision] = {
            model: Decision(None, "route", model) for model in (*catalogue.models.values(), None)
        }
        self._failed: dict[str, Decision] = {}

    def failed(self, reason: str) -> Decision:
        """The default model, taken because of `reason`."""
        decision = self._failed.get(reason)
        if decision is None:
            decision = self._failed[reason] = Decision(None, "default", self._model, fallback=reason)
        return decision


class Engine:
    """A policy ready to decide. Immutable, except for what its shared models count of themselves.

    `policy` is the policy file's `sha256:` hash, `catalogue` its models. `metered` says that somebody wants to know
    what answers cost (a budget, see `record`, or the operator), so that Envoy must show them to us. `selectors` make
    the choices of models, by the decision's name; those in `learning` are told what became of them, and `grading` takes
    what users think of it. `chained` says that something is kept of a session, so that a chain of responses must be
    one. `ahead` are the signals that take long where a text is long; `slow` says that some signal waits for something,
    as neural ones do. `caches`: some decision keeps answers, and counts what that saves. `watched` are the decisions
    with `on: answer`; `asked` are the signals that look at requests, which are all but those that look at answers.
    `kept` says on which decision a session is. `sees_answers`: Envoy has to show us answers at all, their headers at
    least.
    """

    def __init__(
        self,
        policy: str,
        catalogue: Catalogue,
        rules: Ruleset,
        settings: Settings | None = None,
        shared: Shared | None = None,
    ) -> None:
        self.policy = policy
        self.catalogue = catalogue
        self.clauses = tuple(rules.clauses)
        self.signals = dict(rules.signals)
        self.selectors = dict(rules.selectors)
        self.settings = settings or Settings()
        self.shared = shared or Shared()
        answers = answering(self.signals)
        self.asked = {name: signal for name, signal in self.signals.items() if name not in answers}
        bundle(self.asked)
        self.ahead = self._long()
        self.slow = any(signal.slow for signal in self.asked.values())
        self.watched = Watched(rules.watching, self.signals) if rules.watching else None
        self.kept = Kept(self.store, self.sessions) if any(clause.keep is not None for clause in self.clauses) else None
        self._order = _Order(rules, self.kept)
        self._unruled = _Unruled(catalogue)
        self.learning = {name: selector for name, selector in self.selectors.items() if selector.learns}
        grades = graded(self.selectors.items())
        kinds = {name: signal.kind for name, signal in self.signals.items()}
        self.grading = Grading(grades, self.store, self.sessions, self.settings.tenant, kinds) if grades else None
        self.caches = any(clause.cache is not None for clause in self.clauses)
        watching_answers = any(selector.watches_answers for selector in self.selectors.values())
        meter = self.settings.meter
        self.metered = (self.shared.metered or self.caches or watching_answers) if meter is None else meter
        by_session = any(selector.by_session for selector in self.selectors.values())
        self.chained = self.kept is not None or by_session or self.shared.metered
        learns = bool(self.learning) or any(signal.timed for signal in self.signals.values())
        self.sees_answers = self.settings.response_headers or self.chained or self.watches != "none" or learns

    def _long(self) -> tuple[Signal, ...]:
        """The signals that take long where a text is long: guards' first, quick ones before slow ones, since what is
        late is Unknown."""
        long = [
            signal
            for signal in self.asked.values()
            if signal.reads or not (signal.cost == Cost.INSTANT or signal.slow or signal.inputs)
        ]
        guarded = {leaf.signal for clause in self.clauses if clause.guard for leaf in leaves(clause.when)}
        return tuple(sorted(long, key=lambda signal: (signal.name not in guarded, signal.cost)))

    @property
    def ranked(self) -> bool:
        """Whether confidences are compared anywhere."""
        return self._order.compared

    @property
    def models(self) -> dict[str, Model]:
        """The policy's models by their keys."""
        return self.catalogue.models

    @property
    def default(self) -> Model:
        return self.catalogue.default

    @property
    def sessions(self) -> Sessions:
        """How sessions are told."""
        return self.shared.services.sessions

    @property
    def store(self) -> Store:
        """What replicas share."""
        return self.shared.services.store

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

    def fallback(self, reason: str) -> Decision:
        """The default model, taken because of `reason`."""
        return self._unruled.failed(reason)

    def failed(self, reason: str) -> Trace:
        """The trace of a request that could not be evaluated at all.

        The first guard that refuses what it cannot rule out (`on_unknown: match`) refuses it; without one the default
        model takes it.
        """
        closing = (c for c in self._order.all if c.clause.guard and c.clause.on_unknown == "match" and not c.observe)
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

    def _entry(self, request: Request) -> tuple[tuple[_Compiled, ...], Decision]:
        """The clauses that apply to `request` and the decision when none of them matches. Raises `UnknownModel`."""
        named, catalogue = request.model, self.catalogue
        if named is None or catalogue.asks(request):
            return self._order.all, self._unruled.default
        model = catalogue.find(named)
        if model is None and not catalogue.pass_unknown:
            raise UnknownModel(named)
        return self._order.pinned, self._unruled.named[model]

    def _lacking(self, decision: Decision, facts: Facts, candidates: Sequence[Model]) -> dict[str, tuple[str, ...]]:
        """Those of `candidates`, or the decision's model, that lack what the request needs; and what that is."""
        if self.catalogue.able or decision.model is None:
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
        instead = engine._unruled.instead
        if instead and decision is engine._unruled.default:
            self._candidates = (engine.default, *instead)
            decision = instead.get(able(engine.default, facts), decision)
        tokens = tokens_of(facts)
        lacking = {} if engine.catalogue.able else engine._lacking(decision, facts, self._candidates)
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
        always = self.engine._order.always.get(name)
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
