"""Views of a trace for people and scripts: the object of `explain -o json`, and the rule tree drawn as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from decisions.decision import Decision, Trace
from decisions.engine import Clause, Engine
from decisions.outcome import trace_object
from decisions.rule import PENDING, All, AnyOf, AtLeast, Leaf, Not, Result, Rule, evaluate, leaves, text
from decisions.selectors.selector import Selector
from signals.reading import Reading

_UNREAD: Final[Mapping[str, Any]] = dict.fromkeys(("matched", "score", "label", "error", "evidence"))


def signals(engine: Engine, trace: Trace) -> dict[str, dict[str, Any]]:
    """The `signals` object: what every signal of requests said; the ones that were not asked are in it, too."""
    timings = trace.timings or {}
    read = trace_object(trace)["signals"]
    found: dict[str, dict[str, Any]] = {}
    for name in engine.asked:
        said = dict(read.get(name, _UNREAD))
        error = said.pop("error")
        said.pop("evidence")
        found[name] = {**said, "evaluated": name in read, "us": round(timings.get(name, 0.0), 3), "error": error}
    return found


def summary(decision: Decision) -> dict[str, Any]:
    """The fields of `decision` that every command prints; the model by its name in the policy."""
    return {
        "decision": decision.name,
        "model": decision.model.key if decision.model else None,
        "action": decision.action,
    }


def as_object(engine: Engine, trace: Trace) -> dict[str, Any]:
    """The object of `explain -o json`."""
    found = {**trace_object(trace), "signals": signals(engine, trace)}
    if found["fallback"] is None:
        del found["fallback"]
    return found


def outcome(decision: Decision) -> str:
    """What happens to the request, in one phrase."""
    model = decision.model
    where = "" if model is None else f"to {model.key} ({model.name})"
    match decision.action:
        case "respond":
            return f"respond {decision.status}: {decision.message}"
        case action if decision.writer is not None:
            return f"{action}, or {where} where {decision.writer.kind.otherwise}"
        case "default" if decision.fallback is not None:
            return f"default, {where}, because of a failure: {decision.fallback}"
        case "default":
            return f"default, {where}: no decision matched"
        case _ if model is None:
            return "passed on as it came"
        case _ if decision.name is None:
            return f"route {where}: the request names its model"
    return f"route {where}"


def reasons(trace: Trace) -> Iterator[str]:
    """Why the request goes to its model, where the rule alone does not say it: the session's decision, what models
    lack."""
    if trace.kept:
        yield "kept: an earlier request of the session took this decision (sticky)"
    taken = trace.decision.model
    for key, lacks in trace.lacking.items():
        what = ", ".join(lacks)
        if taken is not None and key == taken.key:
            yield f"{key} lacks what the request needs ({what}), and so does every other candidate"
        else:
            yield f"not {key}: it lacks what the request needs ({what})"


def choice(trace: Trace) -> str | None:
    """How a selector came to its model, in one phrase; None where the decision leaves nothing to choose."""
    made = trace.choice
    if made is None:
        return None
    chance = "" if made.propensity == 1.0 else f" (probability {made.propensity:.3g})"
    return f"{made.model.key} by {made.by}: {made.why}{chance}"


def tree(engine: Engine, trace: Trace, *, named: bool) -> str:
    """The decision list as it was walked, each rule with what its leaves read and why others were not.

    `named`: the request names a model, so only guards and decisions with `override` were asked.
    """
    results = trace.results
    lines: list[str] = []
    for clause in engine.clauses:
        does = f"  → {_does(clause, engine.selectors.get(clause.name))}"
        if clause.name not in results:
            lines.append(f"–        {clause.name}{does}  ({_passed_over(clause, trace, named)})")
            continue
        value = results[clause.name]
        note = "" if value is not None else f"  (on_unknown: {clause.on_unknown})"
        if clause.observe:
            note += "  (observed only)"
        if trace.kept and clause.name == trace.decision.name:
            lines.append(f"kept     {clause.name}{does}")
            continue
        lines.append(f"{_word(value):8} {clause.name}{does}{note}")
        if leaves_of(clause):
            lines += _branch(clause.when, trace, "  ", "└─ ", None)
    return "\n".join(lines)


def leaves_of(clause: Clause) -> tuple[str, ...]:
    """The signals that the rule of `clause` names."""
    return tuple(dict.fromkeys(leaf.signal for leaf in leaves(clause.when)))


def reading_text(reading: Reading, microseconds: float | None) -> str:
    """A reading on one line: verdict, score, label, failure, time."""
    parts = [_word(reading.matched)]
    if reading.score is not None:
        parts.append(f"score {reading.score:.3g}")
    if reading.label is not None:
        parts.append(f"label {reading.label}")
    parts += (hint for hint in reading.evidence if "=" in hint)  # what a detector looked at, and who decided
    if reading.error is not None:
        parts.append(f"error {reading.error}")
    if microseconds is not None:
        parts.append(f"{microseconds:.1f} µs")
    return ", ".join(parts)


def _does(clause: Clause, selector: Selector | None) -> str:
    if clause.guard:
        return f"respond {clause.status}"
    keys = ", ".join(model.key for model in (*clause.arms, *clause.instead))
    how = "" if selector is None else f"{selector.name} of "
    return f"{clause.action} {'first of ' if clause.instead else how}{keys}"


def _passed_over(clause: Clause, trace: Trace, named: bool) -> str:
    if named and not clause.guard and not clause.override:
        return "not evaluated: the request names its model"
    if trace.kept:
        return f"not evaluated: the session keeps {trace.decision.name!r}"
    if trace.decision.name is not None:
        return f"not evaluated: {trace.decision.name!r} decided"
    return "not evaluated: the decision above failed"


def _branch(rule: Rule, trace: Trace, indent: str, joint: str, settled: str | None) -> Iterator[str]:
    """The lines of `rule` and what is below it. `settled` says why it need not be evaluated, if that is so."""
    value = evaluate(rule, trace.readings)
    start = indent + joint
    below = indent + ("│  " if joint == "├─ " else "   ")
    if isinstance(rule, Leaf):
        yield f"{start}{text(rule)}: {_leaf(rule, value, trace, settled)}"
        return
    word = "not evaluated" if value is PENDING else _word(value)
    yield f"{start}{_operator(rule)}: {word}"
    if value is not PENDING:
        settled = f"`{_operator(rule)}` is {_word(value)} without it"
    children = (rule.of,) if isinstance(rule, Not) else rule.of
    for index, child in enumerate(children):
        last = index == len(children) - 1
        yield from _branch(child, trace, below, "└─ " if last else "├─ ", settled)


def _leaf(leaf: Leaf, value: Result, trace: Trace, settled: str | None) -> str:
    reading = trace.readings.get(leaf.signal)
    if reading is None:
        return f"not evaluated{f', {settled}' if settled else ''}"
    read = reading_text(reading, trace.timings.get(leaf.signal) if trace.timings else None)
    return read if leaf.plain else f"{_word(value)} (the signal: {read})"


def _operator(rule: Rule) -> str:
    match rule:
        case All():
            return "all"
        case AnyOf():
            return "any"
        case AtLeast(count=count):
            return f"at_least {count}"
    return "not"


def _word(value: Result) -> str:
    return "unknown" if value is None else "true" if value is True else "false"
