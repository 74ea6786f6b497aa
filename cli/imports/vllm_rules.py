"""Rules and projections of vLLM Semantic Router's configurations: trees of conditions, sums with bands, partitions."""

from __future__ import annotations

import math
from typing import Any, Final

from cli.imports.ported import Entry, Ported
from cli.imports.source import Given
from cli.imports.vllm_signals import Bounds, Rule, SignalPorter, empty

_STEP: Final = 1e-9


def both(rules: list[Rule]) -> Rule:
    """All of `rules`; what is known from the start is worked out."""
    if False in rules:
        return False
    left = _flat("all", [rule for rule in rules if rule is not True])
    if not left:
        return True
    return left[0] if len(left) == 1 else {"all": left}


def either(rules: list[Rule]) -> Rule:
    """Any of `rules`."""
    if True in rules:
        return True
    left = _flat("any", [rule for rule in rules if rule is not False])
    if not left:
        return False
    return left[0] if len(left) == 1 else {"any": left}


def _flat(key: str, rules: list[Rule]) -> list[Rule]:
    """`rules`, and in the place of those that are such a list themselves their parts."""
    return [
        part for rule in rules for part in (rule[key] if isinstance(rule, dict) and list(rule) == [key] else [rule])
    ]


def neither(rule: Rule) -> Rule:
    """Not `rule`."""
    if isinstance(rule, bool):
        return not rule
    if isinstance(rule, dict) and list(rule) == ["not"]:
        inner: Rule = rule["not"]
        return inner
    return {"not": rule}


class RulePorter:
    """Writes rules over the signals that a `SignalPorter` knows."""

    def __init__(self, signals: SignalPorter) -> None:
        self._signals = signals
        self._ported: Ported = signals.ported

    def rule(self, given: Given, entry: Entry | None) -> Rule:
        """A tree of conditions. A tree without any matches everything."""
        kind = given.text("type")
        if kind:
            return self._condition(given, kind, entry)
        operator = given.text("operator", "AND").upper()
        parts = [self.rule(one, entry) for one in given.children("conditions")]
        given.skip("on_unknown")
        self._ported.leftover(given, entry)
        if not parts:
            return operator != "OR"
        if operator == "AND":
            return both(parts)
        if operator == "OR":
            return either(parts)
        if operator in ("NOT", "NOR"):
            return neither(either(parts))
        if operator == "NAND":
            return neither(both(parts))
        self._ported.tell("loss", (given, "operator"), f"no operator that is known here: {operator}", entry)
        return False

    def _condition(self, given: Given, kind: str, entry: Entry | None) -> Rule:
        name = given.text("name")
        found = self._signals.rule_of(kind.lower(), name)
        if found is None:
            message = f"the source has no signal {name!r} of type {kind}; the condition never matches"
            self._ported.tell("contradiction", (given, "name"), message, entry)
            found = False
        predicate = given.child("predicate")
        if predicate and isinstance(found, str) and found in self._ported.signals:
            limits = _limits(predicate)
            found = found if limits == (None, None) else _within(found, limits)
        given.skip("label", "description")
        self._ported.leftover(given, entry)
        return found

    def compose(self) -> None:
        """Add what complexities are composed with, now that all signals are known."""
        for given, name in self._signals.composed:
            extra = self.rule(given, None)
            for level in ("hard", "easy", "medium"):
                known = self._signals.rules["complexity", f"{name}:{level}"]
                entry = self._ported.rules[str(known)]
                whole = both([entry.value, extra])
                if isinstance(whole, bool):  # conditions that can never match
                    self._signals.rules["complexity", f"{name}:{level}"] = whole
                    del self._ported.rules[str(known)]
                else:
                    entry.value = whole

    # Projections.

    def partitions(self, given: Given) -> None:
        """The partitions of one profile, before anything asks for their members."""
        for partition in given.children("partitions"):
            self._partition(partition)

    def projections(self, given: Given) -> None:
        """The sums of one profile, with their bands."""
        scores = {score.text("name"): self._score(score) for score in given.children("scores")}
        for mapping in given.children("mappings"):
            self._mapping(mapping, scores)
        for ours, _ in filter(None, scores.values()):
            score = self._ported.signals[ours].value["score"]
            if not {"bands", "at_least", "at_most"} & set(score):
                score["bands"] = {"any": {}}
        self._ported.leftover(given)

    def _partition(self, given: Given) -> None:
        """Of signals in a partition the strongest alone counts. Fields of knowledge exclude each other without it."""
        name, known = given.text("name"), self._signals.rules
        members = {
            one: found for one in given.texts("members") if isinstance(found := known.get(("embedding", one)), str)
        }
        default, temperature = given.text("default"), given.number("temperature")
        softmax = given.text("semantics", "exclusive") != "exclusive"
        if len(members) > 1:
            value: dict[str, Any] = {"sum": dict.fromkeys(members.values(), 1.0)}
            value["exclusive"] = "softmax" if softmax else "best"
            if softmax and temperature:
                value["temperature"] = temperature
            if default in members:
                value["default"] = members[default]
            self._signals.add(("partition", name), {"score": value})
            ours = known["partition", name]
            for one, signal in members.items():
                rule = self._signals.free(f"{ours}:{one}", "partition")
                self._ported.rules[rule] = Entry({"signal": ours, "is": signal})
                known["embedding", one] = rule
        self._ported.leftover(given)

    def _score(self, given: Given) -> tuple[str, float] | None:
        """A sum: the name of our signal, and by how much it is less than theirs."""
        name, offset = given.text("name"), 0.0
        weights: dict[str, float] = {}
        entry = Entry({})
        if given.text("method", "weighted_sum") != "weighted_sum":
            self._ported.tell("loss", (given, "method"), "sums are weighted sums here", entry)
        for one in given.children("inputs"):
            kind, weight = one.text("type").lower(), one.number("weight") or 0.0
            match, miss = one.number("match") or 1.0, one.number("miss") or 0.0
            source = one.text("value_source", "binary").lower()
            found = self._signals.rule_of(kind, one.text("name"))
            if kind == "kb_metric" or found is None or isinstance(found, dict):
                message = (
                    f"nothing here gives {one.text('name') or one.text('metric')!r} of type {kind}; it adds nothing"
                )
                self._ported.tell("loss" if kind == "kb_metric" else "contradiction", (one, ""), message, entry)
                one.skip("kb", "metric")
                continue
            if source == "raw":
                self._ported.tell("loss", (one, "value_source"), "its match is added, not its value", entry)
            elif source == "confidence":
                if self._doubtful(found):
                    message = "where it matches it adds its weight whole, not by how sure it is"
                    self._ported.tell("note", (one, "value_source"), message, entry)
                match, miss = 1.0, 0.0
            offset += weight * miss
            if isinstance(found, bool):
                offset += weight * (match - miss) * found
            elif weight * (match - miss):
                weights[found] = weights.get(found, 0.0) + weight * (match - miss)
            self._ported.leftover(one, entry)
        self._ported.leftover(given, entry)
        weights = {name: round(weight, 9) for name, weight in weights.items() if round(weight, 9)}
        if not weights:
            self._ported.tell("contradiction", (given, "inputs"), f"nothing adds to {name!r}")
            return None
        entry.value = {"score": {"of": "matches", "sum": weights}}
        ours = self._signals.free(name, "score")
        self._ported.signals[ours] = entry
        self._signals.rules["score", name] = ours
        return ours, offset

    def _doubtful(self, found: Rule) -> bool:
        """Whether a signal says how sure it is, between no and yes."""
        entry = self._ported.signals.get(found) if isinstance(found, str) else None
        if entry is None:
            return False
        kind, value = next(iter(entry.value.items()))
        plain = kind == "keyword" and not {"bm25", "ngram", "fuzzy"} & set(value)
        return not plain and kind not in ("structure", "tokens", "conversation", "parameter", "identity")

    def _mapping(self, given: Given, scores: dict[str, tuple[str, float] | None]) -> None:
        source, method = given.text("source"), given.text("method", "threshold_bands")
        outputs = given.children("outputs")
        given.skip(
            "name", "top_k", "calibration"
        )  # of the confidence, which decides nothing where the first match is taken
        found = scores.get(source)
        if found is None:
            for output in outputs:
                self._signals.rules["projection", output.text("name")] = False
            message = f"there is no sum {source!r}; its bands never match"
            self._ported.tell("contradiction", (given, "source"), message)
            return
        if method not in ("threshold_bands", "multi_emit", ""):
            self._ported.tell("loss", (given, "method"), "every band that fits counts here, not the nearest ones")
        score, offset = found
        entry = self._ported.signals[score]
        bounds = [_limits(output, offset) for output in outputs]
        bands = _bands([output.text("name") for output in outputs], bounds)
        if bands and method in ("threshold_bands", "") and "bands" not in entry.value["score"]:
            entry.value["score"]["bands"] = bands
            tests: list[Rule] = [{"signal": score, "is": label} for label in bands]
        else:
            tests = [_within(score, one) for one in bounds]
            if "bands" not in entry.value["score"]:  # a score says for itself when it matches, too
                entry.value["score"] |= next(
                    (_named(one) for one in bounds if one != (None, None) and not empty(one)), {}
                )
        first = method in ("threshold_bands", "")
        for number, (output, test) in enumerate(zip(outputs, tests, strict=True)):
            where = ("projection", output.text("name"))
            # Of bands that overlap the first counts.
            over = [at for at in range(number) if first and not bands and _overlap(bounds[at], bounds[number])]
            earlier = [self._signals.rules["projection", outputs[at].text("name")] for at in over]
            whole = both([test, *map(neither, earlier)])
            if isinstance(whole, bool):
                self._signals.rules[where] = whole
            else:
                self._signals.name_rule(where, whole)
            self._ported.leftover(output)
        self._ported.leftover(given)


def _limits(given: Given, offset: float = 0.0) -> Bounds:
    """The least and the greatest number within bounds, less `offset`; what is excluded ends at the next billionth, to
    which sums are rounded."""
    least, over, most, under = (
        None if value is None else round(value - offset, 9) for value in map(given.number, ("gte", "gt", "lte", "lt"))
    )
    if over is not None:
        least = max(round(over + _STEP, 9), least if least is not None else -math.inf)
    if under is not None:
        most = min(round(under - _STEP, 9), most if most is not None else math.inf)
    return least, most


def _within(score: str, bounds: Bounds) -> Rule:
    if empty(bounds):
        return False
    limits = _named(bounds)
    return {"signal": score, **limits} if limits else True


def _named(bounds: Bounds) -> dict[str, float]:
    return {key: one for key, one in zip(("at_least", "at_most"), bounds, strict=True) if one is not None}


def _overlap(one: Bounds, other: Bounds) -> bool:
    (low, high), (least, most) = one, other
    return (low is None or most is None or low <= most) and (least is None or high is None or least <= high)


def _bands(names: list[str], bounds: list[Bounds]) -> dict[str, dict[str, Any]]:
    """Bands one above the other, from the lowest to the highest; none where there is a gap, or one overlaps another."""
    found: dict[str, dict[str, Any]] = {}
    reached = -math.inf
    for name, (least, most) in zip(names, bounds, strict=True):
        if name in found or (-math.inf if least is None else least) != reached:
            return {}
        above = math.inf if most is None else round(most + _STEP, 9)
        found[name] = {} if above == math.inf else {"below": above}
        reached = above
    return found if reached == math.inf else {}
