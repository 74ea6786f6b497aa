"""Views of a trace for people and scripts: the object of `explain -o json`, and the rule tree drawn as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from decisions.decision import Decision, Trace
from decisions.engine import Clause, Engine
from decisions.outcome import trace_object
from decisions.rule import PENDING, All, AnyOf, AtLeastOf, Leaf, NamedRule, Not, Result, Rule, evaluate, names, text
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


ANSWER_TOKENS: Final = 256
"""Tokens of an answer whose length the request does not limit, for what its calls may cost."""


def calls(engine: Engine, trace: Trace, prompt: int, completion: int = ANSWER_TOKENS) -> dict[str, Any] | None:
    """The calls of models that the decision's writer plans, and the least and the most that they cost; None where there
    are none.

    `prompt` and `completion`: tokens of each call.
    """
    writer = trace.decision.writer
    planned = () if writer is None else writer.planned()
    if not planned:
        return None
    costs = [engine.models[call.model].cost(prompt, completion) for call in planned]
    least = sum(cost for call, cost in zip(planned, costs, strict=True) if call.always)
    most = sum(cost * call.times for call, cost in zip(planned, costs, strict=True))
    return {
        "calls": [call._asdict() for call in planned],
        "cost": {"least": round(least, 9), "most": round(most, 9)},
        "prompt_tokens": prompt,
        "completion_tokens": completion,
    }


def calls_text(planned: Mapping[str, Any]) -> Iterator[str]:
    """The same, in lines for people."""
    said = []
    for call in planned["calls"]:
        times = "" if call["times"] == 1 else f"{call['times']} × "
        said.append(f"{times}{call['model']} ({call['why']}{'' if call['always'] else ', if needed'})")
    yield ", ".join(said)
    cost = planned["cost"]
    size = f"{planned['prompt_tokens']} tokens in and {planned['completion_tokens']} out"
    yield f"cost {cost['least']:.6g} to {cost['most']:.6g}, where each call has {size}"


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
    lines: list[str] = []
    for found in walk(engine, trace, named=named):
        word = {"kept": "kept", "not evaluated": "–"}.get(found["value"], found["value"])
        note = "".join(f"  ({each})" for each in found["notes"])
        lines.append(f"{word:8} {found['decision']}  → {found['does']}{note}")
        if found["rule"] is not None:
            lines += _drawn(found["rule"], "  ", "└─ ")
    return "\n".join(lines)


def walk(engine: Engine, trace: Trace, *, named: bool) -> list[dict[str, Any]]:
    """The same in plain values: each decision with its `value` (`true`, `false`, `unknown`, `kept`, `not evaluated`),
    what it `does`, `notes`, and its `rule`.

    A rule is `{"text", "value", "of": [rules]}`, or a leaf `{"text", "signal", "value", "said"}`: `said` is the
    signal's reading in words, or why there is none. A named rule is `{"text", "named", "value", "of": [rule]}` where it
    stands first, and then `{"text", "named", "value", "said"}`. `rule` is None where none was evaluated.
    """
    results = trace.results
    found: list[dict[str, Any]] = []
    shown: set[str] = set()
    for clause in engine.clauses:
        one: dict[str, Any] = {"decision": clause.name, "value": "not evaluated"}
        one |= {"does": does(clause, engine.selectors.get(clause.name)), "notes": [], "rule": None}
        found.append(one)
        if clause.name not in results:
            one["notes"].append(_passed_over(clause, trace, named))
            continue
        if trace.kept and clause.name == trace.decision.name:
            one["value"] = "kept"
            continue
        value = results[clause.name]
        one["value"] = _word(value)
        if value is None:
            one["notes"].append(f"on_unknown: {clause.on_unknown}")
        if clause.observe:
            one["notes"].append("observed only")
        if clause.tied:
            one["notes"].append("tied with the decision above")
        if names(clause.when):
            one["rule"] = _node(clause.when, trace, None, shown)
    return found


def retraced(engine: Engine, found: Mapping[str, Any]) -> Trace:
    """The trace of a decision of this engine, out of the object that `/debug/decisions` and the decision log show.

    It has what `walk` reads. Raises ValueError for what is no such object, LookupError for one of another policy.
    """
    if found.get("policy") != engine.policy:
        raise LookupError("another policy is in force")
    signals, rules, name = found.get("signals"), found.get("rules"), found.get("decision")
    if not isinstance(signals, dict) or not isinstance(rules, list) or not isinstance(name, str | None):
        raise ValueError("a decision has `signals`, `rules` and `decision`")
    try:
        results = {rule["decision"]: rule["result"] for rule in rules}
        readings = {key: _reading(said) for key, said in signals.items()}
    except (TypeError, KeyError, AttributeError, RecursionError):  # a text of what is nested very deeply
        raise ValueError("`signals` are readings by name, `rules` objects with `decision` and `result`") from None
    if not all(isinstance(result, bool | None) for result in results.values()):
        raise ValueError("a result is true, false or null")
    action, fallback = found.get("action", ""), found.get("fallback")
    if not isinstance(action, str) or not isinstance(fallback, str | None):
        raise ValueError("`action` and `fallback` are texts")
    decision = Decision(name, action, None, fallback=fallback)
    return Trace(decision, engine.policy, readings, results, 0.0, kept=found.get("kept") is True)


def _reading(said: Mapping[str, Any]) -> Reading:
    """The reading that `trace_object` has shown; a signal that was not asked has none there."""
    matched, score, label, error = (said.get(key) for key in ("matched", "score", "label", "error"))
    if not (isinstance(matched, bool | None) and isinstance(score, int | float | None)):
        raise TypeError("matched and score")
    if not (isinstance(label, str | None) and isinstance(error, str | None)):
        raise TypeError("label and error")
    return Reading(matched, score, label, error, tuple(map(str, said.get("evidence") or ())))


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


def does(clause: Clause, selector: Selector | None) -> str:
    """What a decision does with a request, in a few words."""
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


def _drawn(node: Mapping[str, Any], indent: str, joint: str) -> Iterator[str]:
    """The lines of a rule and what is below it."""
    yield f"{indent}{joint}{node['text']}: {node.get('said', node['value'])}"
    below = indent + ("│  " if joint == "├─ " else "   ")
    children = node.get("of", ())
    for index, child in enumerate(children):
        yield from _drawn(child, below, "└─ " if index == len(children) - 1 else "├─ ")


def _node(rule: Rule, trace: Trace, settled: str | None, shown: set[str]) -> dict[str, Any]:
    """The object of `rule` (see `walk`). `settled` says why it need not be evaluated, if that is so; `shown` are the
    named rules that stand before it."""
    value = evaluate(rule, trace.readings)
    word = "not evaluated" if value is PENDING else _word(value)
    if isinstance(rule, Leaf):
        return {"text": text(rule), "signal": rule.signal, "value": word, "said": _leaf(rule, value, trace, settled)}
    found: dict[str, Any] = {"text": _operator(rule), "value": word}
    if isinstance(rule, NamedRule):
        found["named"] = rule.name
        if rule.name in shown:
            return {**found, "said": f"{word} (shown above)"}
        shown.add(rule.name)
    if value is not PENDING:
        settled = f"`{_operator(rule)}` is {word} without it"
    children = (rule.of,) if isinstance(rule, (Not, NamedRule)) else rule.of
    return {**found, "of": [_node(child, trace, settled, shown) for child in children]}


def _leaf(leaf: Leaf, value: Result, trace: Trace, settled: str | None) -> str:
    reading = trace.readings.get(leaf.signal)
    if reading is None:
        return f"not evaluated{f', {settled}' if settled else ''}"
    read = reading_text(reading, trace.timings.get(leaf.signal) if trace.timings else None)
    return read if leaf.plain else f"{_word(value)} (the signal: {read})"


def _operator(rule: Rule) -> str:
    match rule:
        case NamedRule(name=name):
            return name
        case All():
            return "all"
        case AnyOf():
            return "any"
        case AtLeastOf(count=count):
            return f"at_least {count}"
    return "not"


def _word(value: Result) -> str:
    return "unknown" if value is None else "true" if value is True else "false"
