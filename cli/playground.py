"""The process behind the console's playground: `python -m cli.playground POLICY`.

It reads one question on each line of its standard input and writes one answer to each on its standard output, both
JSON, until the input ends. It is a process of its own so that a policy that takes long to build, or a request that
takes long to read, costs the router nothing but the processor's time.

Nothing is sent anywhere: signals that ask another service are Unknown (`not_asked`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import orjson

from cli.calls import CHAT, RecordedCall, Stubs, Unread, lowered
from cli.explain import differences
from cli.validate import checked
from config.load import Policy
from config.resources import TrialResources
from decisions import explain
from decisions.candidates import expected_tokens
from decisions.decision import Trace
from decisions.engine import Engine
from decisions.rule import PENDING, evaluate, leaves
from extproc.refusal import Refusal
from extproc.requests.rewriting import rewritten, unasked
from extproc.told import request_headers
from signals.facts import Facts
from signals.reading import Reading, unknown
from signals.signal import Cost

NOT_ASKED: Final = unknown("not_asked")
EXAMPLES: Final = 5
"""Decisions named for each way in which the edited policy decides differently."""
KEPT: Final = 2
"""Policies that are kept built: the one in force, and the edited one."""

Built = tuple[Policy | None, list[dict[str, Any]], Engine | None]


class Playground:
    """Answers questions about the policy at `path`, and about edited copies of it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._resources = TrialResources()
        self._built: dict[bytes, Built] = {}

    def answer(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """`in_force` and `policy` of a question are texts of policies; `request` is a body, as text, with `path` and
        `headers`; `decisions` are those that `/debug/decisions` shows. All but `policy` may be missing.

        An answer has `problems`; `explained`, None without a request or with errors; and `replay`, None without
        decisions or with errors.
        """
        policy, problems, engine = self._build(str(question["policy"]).encode())
        found: dict[str, Any] = {"problems": problems, "explained": None, "replay": None}
        if policy is None or engine is None:
            return found
        if (body := question.get("request")) is not None:
            headers = lowered(dict(question.get("headers") or {}))
            call = RecordedCall(str(body).encode(), headers, str(question.get("path") or CHAT))
            found["explained"] = asyncio.run(explained(engine, call))
        if (decisions := question.get("decisions")) is not None:
            before, _, was = self._build(str(question["in_force"]).encode())
            if before is not None and was is not None:
                found["replay"] = replay((before, was), (policy, engine), decisions)
        return found

    def _build(self, source: bytes) -> Built:
        """The policy in `source`, its problems and its engine; those asked for last are kept."""
        if source in self._built:
            self._built[source] = self._built.pop(source)  # the newest again
            return self._built[source]
        while len(self._built) >= KEPT:
            _, _, old = self._built.pop(next(iter(self._built)))
            if old is not None:
                old.close()
        policy, problems, engine = checked(source, str(self._path), self._resources)
        found = (policy, [problem.as_dict() for problem in problems], engine)
        self._built[source] = found
        return found


async def explained(engine: Engine, call: RecordedCall) -> dict[str, Any]:
    """How `engine` decides the call, and why; what it would cost with each model; what would change in it."""
    stubs = {name: NOT_ASKED for name, signal in engine.asked.items() if signal.cost == Cost.REMOTE}
    begun = call.begin(engine, detail=True, everything=True, stubs=Stubs(stubs))
    trace = begun if isinstance(begun, Trace) else await begun.finish()
    decision = trace.decision
    found: dict[str, Any] = {
        **explain.as_object(engine, trace),
        "outcome": explain.outcome(decision),
        "reasons": list(explain.reasons(trace)),
        "chosen": explain.choice(trace),
        "tree": [],
        "costs": [],
        "changed": [],
    }
    try:
        request = call.request(engine)
    except Refusal:
        return found
    if isinstance(request, Unread):
        return {**found, "outcome": request.said}
    tokens = expected_tokens(Facts(request))
    found["tree"] = explain.walk(engine, trace, named=not engine.catalogue.asks(request))
    found["costs"] = [
        {"model": model.key, "tokens": sum(tokens), "money": model.cost(*tokens) if model.priced else None}
        for model in engine.models.values()
    ]
    if decision.action != "respond":
        found["changed"] = [{"where": f"header {name}", "now": value} for name, value in request_headers(decision)]
        with contextlib.suppress(Refusal):  # too deep to be written again
            body = rewritten(request, decision, usage=engine.metered and unasked(request, decision))
            if body is not None:
                pairs = differences(request.fields, orjson.loads(body))
                found["changed"] += [{"where": where, "now": now} for where, now in pairs]
    return found


def replay(before: tuple[Policy, Engine], after: tuple[Policy, Engine], decisions: list[Any]) -> dict[str, Any]:
    """What another policy makes of decisions that one has made, by what their signals read.

    A request itself is not kept, so a decision cannot be told (`untold`, with the reason) where its rule now needs a
    signal that was not read, or whose definition has changed.
    """
    fresh = _changed(before[0], after[0])
    untold: Counter[str] = Counter()
    changes: dict[tuple[str, str], list[str]] = {}
    same = 0
    for found in decisions:
        try:
            trace = explain.retraced(before[1], found)
        except (ValueError, LookupError):
            untold["another policy decided it"] += 1
            continue
        was = _does(before[1], trace.decision.name, trace.decision.action)
        now, why = _decided(after[1], trace, fresh)
        if now is None:
            untold[why] += 1
        elif now == was:
            same += 1
        else:
            changes.setdefault((was, now), []).append(str(found.get("key")))
    ranked = sorted(changes.items(), key=lambda each: -len(each[1]))
    return {
        "decisions": len(decisions),
        "same": same,
        "changed": sum(map(len, changes.values())),
        "untold": [{"why": why, "count": count} for why, count in untold.most_common()],
        "changes": [
            {"before": was, "after": now, "count": len(keys), "keys": keys[:EXAMPLES]} for (was, now), keys in ranked
        ],
    }


def _decided(engine: Engine, trace: Trace, fresh: set[str]) -> tuple[str | None, str]:
    """What `engine` does with the request of a trace, in words; None, and why, where its readings do not say it."""
    if trace.kept:
        return None, "the session kept its decision"
    if trace.decision.name is None and trace.decision.action == "respond":
        return _does(engine, None, "respond"), ""
    if trace.decision.fallback is not None:
        return None, "something failed"
    if engine.ranked:
        return None, "the policy takes the most confident decision"
    named = trace.decision.name is None and trace.decision.action == "route"
    readings: dict[str, Reading] = {name: each for name, each in trace.readings.items() if name not in fresh}
    for clause in engine.clauses:
        if named and not (clause.guard or clause.override):
            continue
        value = evaluate(clause.when, readings)
        if value is PENDING:
            missing = [leaf.signal for leaf in leaves(clause.when) if leaf.signal not in readings]
            new = [name for name in missing if name in fresh]
            return None, f"signal {new[0]!r} is another now" if new else f"signal {missing[0]!r} was not read"
        if value is False or (value is None and clause.on_unknown == "skip") or clause.observe:
            continue
        if value is None and clause.on_unknown == "fail":
            return _does(engine, None, "default"), ""
        return _does(engine, clause.name, clause.action), ""
    return _does(engine, None, "route" if named else "default"), ""


def _does(engine: Engine, name: str | None, action: str) -> str:
    """A decision and where it leads, in a few words."""
    if name is None:
        words = {"default": f"default → {engine.default.key}", "route": "the model that the request names"}
        return words.get(action, "refused before any decision")
    clause = next(each for each in engine.clauses if each.name == name)
    return f"{name} → {explain.does(clause, engine.selectors.get(name))}"


def _changed(before: Policy, after: Policy) -> set[str]:
    """The signals of `after` that are not what they were, themselves or in what they combine."""
    was, now = before.signals, after.signals
    fresh: set[str] = set()
    for name, (kind, params) in now.items():  # what others combine stands before them
        if was.get(name) != (kind, params) or not fresh.isdisjoint(params.inputs()):
            fresh.add(name)
    return fresh


def questions(lines: Iterator[bytes], path: Path) -> Iterator[bytes]:
    """One line of an answer for each line of a question; `error` in it says what was wrong with the question."""
    playground = Playground(path)
    for line in lines:
        try:
            yield orjson.dumps(playground.answer(orjson.loads(line)), default=str) + b"\n"
        except Exception as error:  # noqa: BLE001 - the next question is answered all the same
            yield orjson.dumps({"error": f"{type(error).__name__}: {error}"}) + b"\n"


def main(path: Path) -> None:
    os.nice(10)
    with contextlib.suppress(OSError):  # where memory runs out, this process goes first (proc(5))
        Path("/proc/self/oom_score_adj").write_text("1000")
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no answer
    for answer in questions(iter(sys.stdin.buffer.readline, b""), path):
        out.write(answer)
        out.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
