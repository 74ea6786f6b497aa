"""Rules and projections of vLLM Semantic Router's configurations: trees of conditions, sums with bands, partitions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from itertools import combinations
from typing import Any, Final

from cli.imports.ported import Entry, Ported
from cli.imports.source import Given
from cli.imports.vllm_signals import Bounds, Rule, SignalPorter, empty, limits

_STEP: Final = 1e-9
_LEVELS: Final = ("hard", "easy", "medium")
_MEASURED: Final = ("similar", "contrast", "tokens", "structure", "knowledge")
"""Kinds whose scores are what there are the values of the same signals."""


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
        self._sums: dict[str, tuple[str | None, float] | None] = {}
        """Our signal of each of theirs that adds up, and by how much it is less; without a signal that is all of it.
        Of one profile."""

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
            levels = {str(self._signals.rules["complexity", f"{name}:{level}"]) for level in _LEVELS}
            if levels & set(self._named(extra)):
                self._ported.tell("contradiction", (given, ""), f"{name} is composed with itself; that is left out")
                continue
            for level in _LEVELS:
                known = self._signals.rules["complexity", f"{name}:{level}"]
                entry = self._ported.rules[str(known)]
                whole = both([entry.value, extra])
                if isinstance(whole, bool):  # conditions that can never match
                    self._signals.rules["complexity", f"{name}:{level}"] = whole
                    del self._ported.rules[str(known)]
                else:
                    entry.value = whole

    # Projections.

    def partitions(self, given: Given, several: bool) -> None:
        """The partitions of one profile, before anything asks for their members. Where not `several` embeddings match
        at once, the strongest of all is the one that counts."""
        known = self._signals.rules
        own = [name for kind, name in self._signals.own() if kind == "embedding"]
        names = [name for name in own if isinstance(known["embedding", name], str)]
        if not several and len(names) > 1:
            for name in names:  # written where something asks for it
                how = {"exclusive": "best"}
                self._signals.later["embedding", name] = partial(self._exclusive, "embeddings", names, how, [name])
        for partition in given.children("partitions"):
            self._partition(partition, several)

    def projections(self, given: Given) -> None:
        """The sums of one profile, with their bands."""
        self._sums = {}
        for score in given.children("scores"):
            self._sums[score.text("name")] = self._score(score)
        for mapping in given.children("mappings"):
            self._mapping(mapping)
        for ours, _ in filter(None, self._sums.values()):
            if ours is None:
                continue
            score = self._ported.signals[ours].value["score"]
            if not {"bands", "at_least", "at_most"} & set(score):
                score["bands"] = {"any": {}}
        self._ported.leftover(given)

    def _partition(self, given: Given, several: bool) -> None:
        """Of signals in a partition the strongest alone counts. Fields of knowledge exclude each other without it."""
        name, known = given.text("name"), self._signals.rules
        members = [one for one in given.texts("members") if isinstance(known.get(("embedding", one)), str)]
        ask = self._signals.rule_of
        default, temperature = given.text("default"), given.number("temperature")
        softmax = given.text("semantics", "exclusive") != "exclusive"
        if len(members) > 1 and several:
            how: dict[str, Any] = {"exclusive": "softmax" if softmax else "best"}
            if softmax and temperature:
                how["temperature"] = temperature
            if default in members:
                how["default"] = self._signals.sources["embedding", default]
            self._exclusive(name, members, how, members)
        elif default in members:  # one embedding matches at the most; where it is none of these, the default does
            others = [ask("embedding", one) or False for one in members if one != default]
            rule = either([ask("embedding", default) or False, neither(either(others))])
            if isinstance(rule, bool):
                known["embedding", default] = rule
            else:
                self._signals.name_rule(("embedding", default), rule, f"{name}:{default}")
        self._ported.leftover(given)

    def _exclusive(self, name: str, members: list[str], how: dict[str, Any], asked: list[str]) -> None:
        """Make the strongest of embeddings the only one that counts; write the rules of those that are `asked` for."""
        signals = self._signals
        sources = {one: signals.sources["embedding", one] for one in members}
        signals.add(("partition", name), {"score": {"sum": dict.fromkeys(sources.values(), 1.0), **how}})
        ours = signals.rules["partition", name]
        for one in asked:
            signals.name_rule(("embedding", one), {"signal": ours, "is": sources[one]}, f"{ours}:{one}")

    def _score(self, given: Given) -> tuple[str | None, float] | None:
        """A sum: the name of our signal, and by how much it is less than theirs. One that nothing changes has no
        signal. None where nothing here gives what it adds up."""
        name, offset, known = given.text("name"), 0.0, True
        matches: dict[str, float] = {}
        scores: dict[str, float] = {}
        entry = Entry({})
        if given.text("method", "weighted_sum") != "weighted_sum":
            self._ported.tell("loss", (given, "method"), "sums are weighted sums here", entry)
        for one in given.children("inputs"):
            kind, weight = one.text("type").strip().lower(), one.number("weight") or 0.0
            source = one.text("value_source", "binary").strip().lower()
            match, miss = one.number("match") or 1.0, one.number("miss") or 0.0
            valued = self._valued(one, (kind, source), entry)
            if valued is not None:
                signal, less = valued
                offset += weight * less
                if signal is not None:
                    scores[signal] = scores.get(signal, 0.0) + weight
                self._ported.leftover(one, entry)
                continue
            found = None if kind in ("kb_metric", "projection") else self._signals.rule_of(kind, one.text("name"))
            if found is None or isinstance(found, dict):
                what = one.text("name") or one.text("metric")
                message = f"nothing here gives {what!r} of type {kind}; it adds nothing"
                self._ported.tell("contradiction" if found is None else "loss", (one, ""), message, entry)
                one.skip("kb", "metric")
                known = False
                continue
            if source == "raw":
                self._ported.tell("loss", (one, "value_source"), "its match is added, not its value", entry)
            elif source == "confidence":
                if not isinstance(found, bool) and self.doubtful(self._signals.sources.get((kind, one.text("name")))):
                    message = "where it matches it adds its weight whole, not by how sure it is"
                    self._ported.tell("note", (one, "value_source"), message, entry)
                match, miss = 1.0, 0.0
            offset += weight * miss
            if isinstance(found, bool):
                offset += weight * (match - miss) * found
            elif weight * (match - miss):
                matches[found] = matches.get(found, 0.0) + weight * (match - miss)
            self._ported.leftover(one, entry)
        self._ported.leftover(given, entry)
        entry.value = {"score": self._sum(name, _plain(matches), _plain(scores))}
        if not entry.value["score"]:
            entry.value = None
            self._ported.signals[f"-score:{name}"] = entry
            message = "nothing changes it, so that each of its bands always fits or never"
            self._ported.tell(
                "contradiction", (given, "inputs"), f"{name}: {message if known else 'nothing adds to it'}", entry
            )
            return (None, offset) if known else None
        ours = self._signals.free(name, "score")
        self._ported.signals[ours] = entry
        return ours, offset

    def _sum(self, name: str, matches: dict[str, float], scores: dict[str, float]) -> dict[str, Any]:
        """What adds up the weights of what matches, and weighted scores."""
        if not scores:
            return {"of": "matches", "sum": matches} if matches else {}
        if matches:
            inner = self._signals.free(f"{name}:matches", "score")
            self._ported.signals[inner] = Entry({"score": {"of": "matches", "sum": matches, "bands": {"any": {}}}})
            scores = {inner: 1.0, **scores}
        return {"sum": scores}

    def _valued(self, one: Given, how: tuple[str, str], entry: Entry) -> tuple[str | None, float] | None:
        """The signal whose score an input adds, and by how much that is less than theirs: all of it where there is no
        signal. None where it is the match that is added."""
        kind, source = how
        name = one.text("name")
        if kind == "kb_metric":
            found = self._signals.metric(one.text("kb"), one.text("metric"))
            return None if found is None else (found, 0.0)
        if kind == "projection":
            if source == "confidence":
                message = "the sum itself is added, not how far it is from the end of a band"
                self._ported.tell("loss", (one, "value_source"), message, entry)
            return self._sums.get(name)
        signal = self._signals.sources.get((kind, name))
        value = self._ported.signals[signal].value if signal is not None else None
        if source == "raw" and value is not None and next(iter(value)) in _MEASURED:
            return str(signal), 0.0
        if source == "confidence" and self.doubtful(signal) and self._signals.rule_of(kind, name) == signal:
            sure = {"score": {"sum": {signal: 1.0}, "exclusive": "best"}}  # its score where it matches, else 0
            self._signals.add((f"{kind}-confidence", name), sure, f"{signal}:confidence")
            return str(self._signals.rules[f"{kind}-confidence", name]), 0.0
        return None

    def doubtful(self, signal: str | None) -> bool:
        """Whether a signal says how sure it is, between no and yes."""
        entry = self._ported.signals.get(signal) if signal is not None else None
        if entry is None or entry.value is None:
            return False
        kind, value = next(iter(entry.value.items()))
        plain = kind == "keyword" and not {"bm25", "ngram", "fuzzy"} & set(value)
        return not plain and kind not in ("structure", "tokens", "conversation", "parameter", "identity", "regex")

    def unsure(self, rule: Rule) -> bool:
        """Whether some signal of `rule`, or of what it names, says how sure it is."""
        return any(map(self.doubtful, self._named(rule)))

    def _named(self, rule: Rule) -> list[str]:
        """The signals and rules that `rule` names, and those that these name."""
        names = list(dict.fromkeys(_names(rule)))
        for name in names:  # which grows
            named = self._ported.rules.get(name)
            names += [one for one in dict.fromkeys(_names(named.value if named else True)) if one not in names]
        return names

    def _mapping(self, given: Given) -> None:
        source, method = given.text("source"), given.text("method", "threshold_bands")
        outputs = given.children("outputs")
        given.skip(
            "name", "top_k", "calibration"
        )  # of the confidence, which decides nothing where the first match is taken
        found = self._sums.get(source)
        if found is None:
            for output in outputs:
                self._signals.rules["projection", output.text("name")] = False
            message = f"there is no sum {source!r}; its bands never match"
            self._ported.tell("contradiction", (given, "source"), message)
            return
        score, offset = found
        bounds = [_limits(output, offset) for output in outputs]
        nearest = method not in ("threshold_bands", "multi_emit", "")
        if nearest and any(_overlap(one, other) for one, other in combinations(bounds, 2)):
            self._ported.tell("loss", (given, "method"), "every band that fits counts here, not the nearest ones")
        bands: dict[str, dict[str, Any]] = {}
        tests: list[Rule]
        if score is None:
            tests = [not empty(one) and _overlap(one, (0.0, 0.0)) for one in bounds]
        else:
            bands, tests = self._tested(score, [output.text("name") for output in outputs], bounds, method)
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

    def _tested(
        self, score: str, names: list[str], bounds: list[Bounds], method: str
    ) -> tuple[dict[str, dict[str, Any]], list[Rule]]:
        """The bands of a score, where it has them, and what tests each."""
        entry = self._ported.signals[score]
        bands = _bands(names, bounds)
        if bands and method in ("threshold_bands", "") and "bands" not in entry.value["score"]:
            entry.value["score"]["bands"] = bands
            return bands, [{"signal": score, "is": label} for label in bands]
        if "bands" not in entry.value["score"]:  # a score says for itself when it matches, too
            entry.value["score"] |= next((limits(one) for one in bounds if one != (None, None) and not empty(one)), {})
        return bands, [_within(score, one) for one in bounds]


def _names(rule: Rule) -> Iterator[str]:
    """The signals and rules that `rule` names."""
    if isinstance(rule, str):
        yield rule
    elif isinstance(rule, dict):
        yield from [rule["signal"]] if "signal" in rule else ()
        for key in ("all", "any", "not"):
            parts = rule.get(key, [])
            for part in parts if isinstance(parts, list) else [parts]:
                yield from _names(part)


def _plain(weights: dict[str, float]) -> dict[str, float]:
    """`weights` to nine digits, without those that are 0."""
    return {name: rounded for name, weight in weights.items() if (rounded := round(weight, 9))}


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
    tested = limits(bounds)
    return {"signal": score, **tested} if tested else True


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
