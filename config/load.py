"""Reads a policy file and reports everything that is wrong with it at once, each with file, line and column."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path as FilePath
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from config import advice
from config.clauses import clauses, models
from config.document import Document, Path
from config.document import parse as parse_yaml
from config.mistakes import mistakes
from config.names import clashes
from config.problem import PolicyError, Problem, did_you_mean
from config.schema import PolicySpec
from config.wording import said
from config.writers import ACTIONS, ANSWERS, WRITERS
from decisions.engine import Clause, Opening
from decisions.lint import lint
from decisions.model import Model
from decisions.named import RuleParams
from decisions.rule import ALWAYS, All, AnyOf, AtLeastOf, Leaf, NamedRule, Not, Rule, leaves
from decisions.watching import Watching
from signals.files import POLICY, read
from signals.registry import BY_NAME
from signals.request import ANSWER
from signals.signal import Params
from signals.text import patterns
from upstream.writer import WriterKind, WriterSpec

M = TypeVar("M", bound=BaseModel)

_ON_ANSWER: Final = tuple(key for key in ANSWERS if key not in ACTIONS)
_GUARDS: Final = ("mask", "cut")
"""What else keeps something from a client."""
_EVERYTHING: Final = frozenset(("", "true", "always", "null", "~", "*", "default", "else"))
"""What stands in the place of a rule where other languages say that it always holds."""
_DEEPEST: Final = 100
"""The most levels of what names build on: evaluating a rule goes as deep."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy without errors.

    `signals` holds (kind, parameters) by name, `named` the named rules, `rules` those of the decisions; `order` has the
    names of signals and named rules, those that others combine first. `places` says where signals, choices of models,
    writers' blocks, the state store and opened paths stand in the file.
    `writers` holds the blocks of decisions that have a writer, by the name of the decision. `models`, `clauses` (the
    decisions on requests) and `watching` (those on answers) are what the engine is built from.
    """

    file: str
    digest: str
    spec: PolicySpec
    signals: Mapping[str, tuple[str, Params]]
    named: Mapping[str, Rule]
    order: Sequence[str]
    rules: Mapping[str, Rule]
    places: Mapping[Path, tuple[int, int]]
    writers: Mapping[str, WriterSpec]
    models: Mapping[str, Model]
    clauses: Sequence[Clause]
    watching: Sequence[Watching]

    def sure(self, name: str) -> bool:
        """Whether the signal of this name always says yes or no."""
        return BY_NAME[self.signals[name][0]].sure

    def made_of(self, rule: Rule) -> set[str]:
        """The signals that `rule` is made of, and those that they combine."""
        found: set[str] = set()
        names = {leaf.signal for leaf in leaves(rule)}
        while names:
            found |= names
            inputs = [source for name in names for source in self.signals[name][1].inputs()]
            rules = [self.named[source] for source in inputs if source in self.named]
            names = {source for source in inputs if source in self.signals} - found
            names.update(leaf.signal for rule in rules for leaf in leaves(rule) if leaf.signal not in found)
        return found

    @property
    def folder(self) -> FilePath:
        """The folder against which relative paths in the policy are meant."""
        return FilePath(self.file).parent


def load(path: str | FilePath) -> Policy:
    """The policy in the file at `path`. Raises `PolicyError` for a bad one, `OSError` for an unreadable one."""
    return parse(read(FilePath(path), POLICY), str(path))


def parse(source: str | bytes, file: str = "<policy>") -> Policy:
    """The policy in `source`. Raises `PolicyError`, warnings left out."""
    policy, problems = check(source, file, doubts=False)
    if policy is None:
        raise PolicyError([problem for problem in problems if problem.severity == "error"])
    return policy


def check(source: str | bytes, file: str = "<policy>", *, doubts: bool = True) -> tuple[Policy | None, list[Problem]]:
    """The policy in `source`, None when it has errors, and every problem, warnings included, in file order.

    Without `doubts`, things that are allowed but probably not meant (config.mistakes) are not looked for: a router that
    loads a policy would have nobody to show them to.
    """
    raw = source.encode() if isinstance(source, str) else source
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        column = error.start - (raw.rfind(b"\n", 0, error.start) + 1) + 1
        return None, [Problem(file, line, column, "Y001", "error", "not valid YAML: the file is not UTF-8")]
    document = parse_yaml(text, file)
    policy = None
    if not isinstance(document.data, dict):
        if not document.problems:
            document.report((), "P103", "a policy is a mapping with `version`, `models`, `default`, …")
    elif "cases" in document.data and "models" not in document.data:
        what = f"these are test cases, and no policy: run them with `pointsman test POLICY {file}`"
        document.report(("cases",), "P101", what, at_key=True)
    else:
        budget = patterns.left.set([patterns.INSTRUCTIONS])
        try:
            policy = _Checker(document).policy("sha256:" + hashlib.sha256(raw).hexdigest(), doubts)
        except PolicyError as error:  # too many problems
            return None, error.problems
        finally:
            patterns.left.reset(budget)
    return policy, sorted(document.problems)


def validated(document: Document, model: type[M]) -> M | None:
    """The data of `document` as `model`, for files that go with a policy; what is wrong is in its problems.

    Raises PolicyError when that is too much.
    """
    return _Checker(document)._validated(model, document.data, ())


class _Checker:
    """Checks one document, part by part: an error in one part hides none in another."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._data: dict[str, Any] = document.data
        signals = self._data.get("signals")
        self._signals: dict[str, Any] = signals if isinstance(signals, dict) else {}
        rules = self._data.get("rules")
        self._rules_given: dict[str, Any] = rules if isinstance(rules, dict) else {}
        self._named: dict[str, Rule] = {}
        self._writers: dict[str, WriterSpec] = {}

    def policy(self, digest: str, doubts: bool) -> Policy | None:
        spec = self._validated(PolicySpec, self._data, ())
        parameters = {name: self._signal(name, entry) for name, entry in self._signals.items()}
        known = {name: params for name, params in parameters.items() if params is not None}
        order = self._order(known)
        self._name_rules(order, known)
        rules = self._decisions()
        self._models()
        document = self._document
        if spec is None or any(problem.severity == "error" for problem in document.problems):
            return None
        signals = {name: known[name] for name in order if name in known}
        named = {name: self._named[name] for name in order if name in self._named}
        wanted: list[Path] = [("settings", "store"), ("settings", "meter"), *(("signals", name) for name in signals)]
        wanted += [("paths", index, "match") for index in range(len(spec.paths))]
        keys = ("route", *(kind.name for kind in WRITERS))
        wanted += [("decisions", index, key) for index in range(len(spec.decisions)) for key in keys]
        places = {path: document.keys[path] for path in wanted if path in document.keys}
        targets = models(spec)
        made = clauses(spec, rules, targets, self._writers)
        asked = [one for one in made if isinstance(one, Clause)]
        watching = [one for one in made if isinstance(one, Watching)]
        policy = Policy(
            document.file,
            digest,
            spec,
            signals,
            named,
            order,
            rules,
            places,
            self._writers,
            targets,
            asked,
            watching,
        )
        combined = {name: known.get(name) or ("rule", RuleParams(rule=named[name])) for name in order}
        for finding in lint(made, combined, targets, default=spec.default, best=spec.strategy == "best"):
            document.report(finding.path, finding.code, finding.message, warning=finding.warning, at_key=finding.at_key)
        for finding in mistakes(self._data, policy) if doubts else ():
            document.report(finding.path, finding.code, finding.message, warning=True, at_key=finding.at_key)
        self._guards(policy)
        self._opened(policy)
        return None if any(problem.severity == "error" for problem in document.problems) else policy

    def _guards(self, policy: Policy) -> None:
        """Warn of guards without `on_unknown`: they let pass whatever cannot be read."""
        for index, entry in enumerate(policy.spec.decisions):
            on_answer = entry.on == "answer"
            does = next((key for key in (*_GUARDS, "respond") if getattr(entry, key) is not None), None)
            if does is None or "on_unknown" in entry.model_fields_set:
                continue
            rule = policy.rules[entry.name]
            unsure = [name for name in policy.made_of(rule) if not policy.sure(name)]
            if unsure:
                # The one that is most likely to fail: what asks somebody else, then what takes long.
                first = min(unsure, key=lambda name: (-BY_NAME[policy.signals[name][0]].cost, name))
                shown = [leaf.signal for leaf in leaves(rule)]
                inside = next((name for name in shown if first in policy.made_of(Leaf(name))), first)
                where = "" if first in shown else f" (in {inside!r})"
                what, refuse = ("an answer", f"{does} it") if on_answer else ("a request", "refuse it")
                message = (
                    f"guard {entry.name!r} has no on_unknown: {what} for which {first!r}{where} cannot be read passes; "
                    f"write `on_unknown: match` to {refuse} (or `skip`, if that is meant)"
                )
                self._document.report(("decisions", index, does), "L311", message, warning=True, at_key=True)

    def _opened(self, policy: Policy) -> None:
        """Warn of opened paths that an earlier entry already covers, and of guards that will not see their requests."""
        spec = policy.spec
        openings = [Opening(path.match, path.to or spec.default) for path in spec.paths]
        for index, opening in enumerate(openings):
            earlier = next((one for one in openings[:index] if one.covers(opening)), None)
            if earlier is not None:
                message = f"never taken: the entry {earlier.match!r} before it has all paths of {opening.match!r}"
                self._document.report(("paths", index, "match"), "L313", message, warning=True)
        if not openings and spec.settings.unread == "refuse":
            return
        for entry in spec.decisions:
            guards = entry.respond is not None and entry.on == "request"
            named = policy.made_of(policy.rules[entry.name]) if guards else ()
            if any(policy.signals[name][1].scopes() for name in named):
                message = (
                    f"guard {entry.name!r} reads text, and what goes unread passes it: open only paths that show no "
                    "model what a client sends, or that are checked elsewhere"
                )
                where = ("paths",) if openings else ("settings", "unread")
                self._document.report(where, "L314", message, warning=True, at_key=True)
                return

    def _validated(self, model: type[M], data: Any, base: Path) -> M | None:
        """`data` as `model`; what is wrong is reported. A plain scalar where text is wanted is the text as typed."""
        try:
            return model.model_validate(data)
        except ValidationError as error:
            errors = error.errors(include_url=False, include_input=False)
        places = [(self._place(data, item["loc"]), item) for item in errors]
        as_typed = {
            place: self._document.typed[base + place]
            for place, item in places
            if item["type"] == "string_type" and base + place in self._document.typed
        }
        if as_typed:
            return self._validated(model, _replaced(data, as_typed), base)
        for each in said(model, data, places):
            self._document.report(base + each.place, each.code, each.message, at_key=each.at_key)
        return None

    def _place(self, data: Any, location: tuple[str | int, ...]) -> Path:
        """A pydantic location without the parts that name no place in `data` (union tags, validators)."""
        place: list[str | int] = []
        for part in location:
            if not _holds(data, part):
                continue
            data = data[part]
            place.append(part)
        return tuple(place)

    def _signal(self, name: str, entry: Any) -> tuple[str, Params] | None:
        path: Path = ("signals", name)
        if not isinstance(entry, dict) or len(entry) != 1:
            self._document.report(path, "P106", f"signal {name!r} needs exactly one kind: {name}: {{kind: {{…}}}}")
            return None
        kind, given = next(iter(entry.items()))
        known = BY_NAME.get(kind)
        if known is None:
            message = f"unknown kind of signal {kind!r}{did_you_mean(kind, BY_NAME)}"
            if kind in ("all", "any", "not"):
                message = f"{kind!r} makes a rule, no signal: rules with names stand below `rules:`"
            self._document.report((*path, kind), "P105", message, at_key=True)
            return None
        params = self._validated(known.Parameters, {} if given is None else given, (*path, kind))
        if params is not None and (ANSWER in params.scopes() or getattr(params, "in_", None) == ANSWER):
            if not known.answers:
                kinds = ", ".join(other.kind for other in BY_NAME.values() if other.answers)
                message = f"in: a {kind} looks at requests; kinds that read answers are {kinds}"
                self._document.report((*path, kind, "in"), "P104", message)
            elif len(params.scopes()) > 1:
                message = "in: answer stands by itself: what is said and what is answered are two signals"
                self._document.report((*path, kind, "in"), "P104", message)
        return None if params is None else (kind, params)

    def _order(self, parameters: Mapping[str, tuple[str, Params]]) -> list[str]:
        """The names of signals and named rules, those that others combine first; reports circles and unknown inputs."""
        graph: dict[str, set[str]] = {}
        for name, rule in self._rules_given.items():
            mentioned = self._mentioned(rule, ("rules", name))
            graph[name] = {other for other in mentioned if other in parameters or other in self._rules_given}
            if name in self._signals:
                message = f"rule {name!r} has the name of a signal: signals and rules need names of their own"
                self._document.report(("rules", name), "R203", message, at_key=True)
                return []
        for name, (kind, params) in parameters.items():
            graph[name] = set()
            for source in params.inputs():
                if not self._knows(source):
                    message = f"unknown signal {source!r}{did_you_mean(source, self._names)}"
                    self._document.report(self._mention(("signals", name, kind), source), "R201", message, at_key=True)
                elif source in parameters or source in self._rules_given:
                    graph[name].add(source)
        try:
            return list(TopologicalSorter(graph).static_order())
        except CycleError as error:
            circle = " → ".join(reversed(error.args[1]))
            one = error.args[1][0]
            what, where = ("rules", "rules") if one in self._rules_given else ("signals", "signals")
            if len({name in self._rules_given for name in error.args[1]}) > 1:
                what = "signals and rules"
            self._document.report(
                (where, one), "R204", f"{what} depend on each other in a circle: {circle}", at_key=True
            )
            return []

    @property
    def _names(self) -> list[str]:
        """The names of all signals and named rules."""
        return [*self._signals, *self._rules_given]

    def _knows(self, name: str) -> bool:
        return name in self._signals or name in self._rules_given

    def _mentioned(self, data: Any, path: Path) -> Iterator[str]:
        """The names in a rule as it is written, whether or not it is right."""
        if isinstance(data, dict):
            for key in ("all", "any", "not", "at_least", "of", "signal"):
                if key in data and not (key == "at_least" and "signal" in data):
                    yield from self._mentioned(data[key], (*path, key))
        elif isinstance(data, list):
            for index, item in enumerate(data):
                yield from self._mentioned(item, (*path, index))
        elif isinstance(data, str) or path in self._document.typed:
            yield data if isinstance(data, str) else self._document.typed[path]

    def _name_rules(self, order: Sequence[str], parameters: Mapping[str, tuple[str, Params]]) -> None:
        """Read the named rules, in an order in which each comes after what it names."""
        depths: dict[str, int] = {}
        for name in order:
            if name in self._rules_given:
                rule = self._rule(self._rules_given[name], ("rules", name))
                self._named[name] = ALWAYS if rule is None else rule
                depths[name] = 1 + _depth(self._named[name], depths)
            else:
                depths[name] = 1 + max((depths.get(source, 0) for source in parameters[name][1].inputs()), default=0)
            if depths[name] > _DEEPEST:
                path: Path = ("rules" if name in self._rules_given else "signals", name)
                message = (
                    f"{name!r} and the signals and rules that it builds on are {depths[name]} levels deep, and "
                    f"{_DEEPEST} is the most: write some of them out where they are used, or in one"
                )
                self._document.report(path, "P104", message, at_key=True)
                return

    def _mention(self, path: Path, name: str) -> Path:
        """Where below `path` the key `name` stands."""
        return next((key for key in self._document.keys if key[: len(path)] == path and key[-1] == name), path)

    def _decisions(self) -> dict[str, Rule]:
        """The rules by decision name; reports bad rules and names given twice."""
        rules: dict[str, Rule] = {}
        entries = self._data.get("decisions")
        given = entries if isinstance(entries, list) else []
        for index, entry in enumerate(given):
            if not isinstance(entry, dict):
                continue
            path: Path = ("decisions", index)
            actions = [key for key in ACTIONS if entry.get(key) is not None]
            if entry.get("on") == "answer":
                self._on_answer(entry, path)
            elif entry.get("on", "request") != "request":
                pass  # its other keys cannot be told right or wrong
            elif (
                misplaced := next((key for key in (*_ON_ANSWER, "window", "stride") if key in entry), None)
            ) is not None:
                message = f"{misplaced} goes with `on: answer` only: it is about what the model answers"
                self._document.report((*path, misplaced), "P104", message, at_key=True)
            elif len(actions) != 1:
                self._document.report(path, "P106", f"a decision has exactly one of {', '.join(ACTIONS)}")
            elif actions == ["respond"] and "set" in entry:
                message = "set has no effect on a decision that responds"
                self._document.report((*path, "set"), "P104", message, at_key=True)
            if entry.get("on") != "answer" and entry.get("sticky") is not None and actions == ["respond"]:
                others = " and ".join(action for action in ACTIONS if action != "respond")
                message = f"sticky goes with {others}: a guard looks at every request"
                self._document.report((*path, "sticky"), "P104", message, at_key=True)
            if entry.get("on") != "answer" and entry.get("cache") is not None:
                self._cached(entry["cache"], actions, path)
            if entry.get("on") != "answer" and entry.get("observe") and actions != ["respond"]:
                message = "observe goes with respond only"
                self._document.report((*path, "observe"), "P104", message, at_key=True)
            if entry.get("on") != "answer" and entry.get("tied"):
                self._tied(actions, given[index - 1] if index else None, path)
            rule = self._rule(entry["when"], (*path, "when")) if "when" in entry else ALWAYS
            name = self._document.typed.get((*path, "name"), entry.get("name"))
            if not isinstance(name, str):
                continue
            if name in rules:
                self._document.report((*path, "name"), "R203", f"duplicate decision name {name!r}")
            rules[name] = rule or ALWAYS
            for kind in WRITERS:
                if entry.get(kind.name) is not None:
                    self._writer(kind, name, entry[kind.name], (*path, kind.name))
        return rules

    def _tied(self, actions: Sequence[str], above: Any, path: Path) -> None:
        """What `tied` needs: two decisions that can be compared, and nothing else that compares them."""
        compared = isinstance(above, dict) and above.get("respond") is None and above.get("on") != "answer"
        if actions == ["respond"] or not compared:
            message = "tied compares a decision with the one above it: neither can be a guard, or look at answers"
        elif self._data.get("strategy") == "best":
            message = "tied says nothing new under `strategy: best`, which compares all decisions"
        else:
            return
        self._document.report((*path, "tied"), "P104", message, at_key=True)

    def _cached(self, given: Any, actions: list[str], path: Path) -> None:
        """What `cache` needs beside itself."""
        settings = self._data.get("settings")
        told = settings if isinstance(settings, dict) else {}
        scope = given.get("scope", "tenant") if isinstance(given, dict) else None
        if actions == ["respond"]:
            message = "cache keeps what models answer: a decision that responds has nothing to keep"
            self._document.report((*path, "cache"), "P104", message, at_key=True)
        elif scope == "tenant" and told.get("tenant") is None:
            message = (
                "cache: nothing would ever be kept, since nobody says who the tenant is; "
                "write settings.tenant: {header: …}, or another scope (user, session, all)"
            )
            self._document.report((*path, "cache"), "P104", message, at_key=True)

    def _on_answer(self, entry: dict[str, Any], path: Path) -> None:
        """What a decision on the answer must have, and cannot have."""
        report = self._document.report
        given = [key for key in ANSWERS if key in entry]
        others = [key for key in ACTIONS if key not in ANSWERS and entry.get(key) is not None]
        for key in others:
            message = f"{key} is about requests: a decision on the answer has exactly one of {', '.join(ANSWERS)}"
            report((*path, key), "P104", message, at_key=True)
        for key in ("set", "sticky", "override", "cache", "tied"):
            if entry.get(key) not in (None, False):
                message = f"{key} is about requests: a decision on the answer cannot have it"
                report((*path, key), "P104", message, at_key=True)
        if others:
            return  # one of them was meant to be what the decision does
        if len(given) != 1:
            report(path, "P106", f"a decision on the answer has exactly one of {', '.join(ANSWERS)}")
        elif entry[given[0]] is None:
            report((*path, given[0]), "P103", f"{given[0]}: a mapping is needed; write `{given[0]}: {{}}`", at_key=True)
        if entry.get("on_unknown") == "fail":
            message = "on_unknown: fail takes the default model, which an answer is past: write match or skip"
            report((*path, "on_unknown"), "P104", message)
        if entry.get("observe") and given == ["flag"]:
            report(
                (*path, "observe"), "P104", "observe goes with mask, cut and respond: a flag does nothing", at_key=True
            )
        respond = entry.get("respond")
        if isinstance(respond, dict):
            if respond.get("status") == 200:
                report((*path, "respond", "status"), "P104", "status: on an answer 400 to 599 is needed")
            if respond.get("headers"):
                message = "headers go with a respond on requests only"
                report((*path, "respond", "headers"), "P104", message, at_key=True)

    def _writer(self, kind: WriterKind, decision: str, data: Any, path: Path) -> None:
        spec = self._validated(kind.spec(), data, path)
        if spec is not None:
            self._writers[decision] = spec

    def _rule(self, data: Any, path: Path) -> Rule | None:
        """The rule in `data`; None, with the reason reported, when it is not one."""
        report = self._document.report
        if isinstance(data, str) or path in self._document.typed:
            return self._leaf(data if isinstance(data, str) else self._document.typed[path], path)
        if not isinstance(data, dict):
            message = "a rule is a signal's name, or a mapping with all, any, not, at_least or signal"
            if isinstance(data, list) and data:
                message += f"; several stand below `all` or `any`: {advice.flow({'all': data})}"
            report(path, "P103", message)
            return None
        if "signal" in data:
            return self._test(data, path)
        parsers: dict[str, Callable[[Any, Path], Rule | None]] = {
            "all": lambda value, place: _joined(All, self._rules(value, place)),
            "any": lambda value, place: _joined(AnyOf, self._rules(value, place)),
            "not": self._negation,
            "at_least": self._count,
        }
        for key in data:
            if key not in parsers:
                message = f"unknown key {key!r}"
                if self._knows(key):
                    message += f": to say that it holds, a rule is its name alone, {key}"
                else:
                    message += did_you_mean(key, [*parsers, "signal"])
                report((*path, key), "P101", message, at_key=True)
        given = [key for key in data if key in parsers]
        parsed = [parsers[key](data[key], (*path, key)) for key in given]
        if len(given) != 1:
            if len(given) > 1 or not data:
                report(path, "P106", "a rule has exactly one of all, any, not, at_least, signal")
            return None
        return parsed[0]

    def _leaf(self, name: str, path: Path) -> Leaf | NamedRule | None:
        if not self._knows(name):
            message = f"unknown signal {name!r}{_as_a_rule(name) or did_you_mean(name, self._names)}"
            if name.lower() in _EVERYTHING:
                message += ": a decision that takes every request has no `when`"
            self._document.report(path, "R201", message)
            return None
        # A rule that is not there has been reported: it stands in a circle.
        return NamedRule(name, self._named.get(name, ALWAYS)) if name in self._rules_given else Leaf(name)

    def _negation(self, data: Any, path: Path) -> Rule | None:
        child = self._rule(data, path)
        return None if child is None else Not(child)

    def _rules(self, data: Any, path: Path) -> tuple[Rule, ...] | None:
        if not isinstance(data, list):
            one = f": write [{data}]" if isinstance(data, str) else ""
            self._document.report(path, "P103", f"{path[-1]} takes a list of rules{one}")
            return None
        if not data:
            self._document.report(path, "P107", f"empty {path[-1]}: it needs at least one rule")
            return None
        rules = [self._rule(item, (*path, index)) for index, item in enumerate(data)]
        return tuple(rule for rule in rules if rule is not None) if None not in rules else None

    def _count(self, data: Any, path: Path) -> Rule | None:
        report = self._document.report
        if not isinstance(data, dict):
            report(path, "P103", "at_least takes {count: N, of: [rules]}")
            return None
        for key in data:
            if key not in ("count", "of"):
                report((*path, key), "P101", f"unknown key {key!r}{did_you_mean(key, ['count', 'of'])}", at_key=True)
        for key in ("count", "of"):
            if key not in data:
                report(path, "P102", f"missing key {key!r}", at_key=True)
        rules = self._rules(data["of"], (*path, "of")) if "of" in data else None
        count = data.get("count")
        if "count" in data and (not isinstance(count, int) or isinstance(count, bool)):
            report((*path, "count"), "P103", "count: a whole number is needed")
            return None
        if isinstance(count, int) and isinstance(data.get("of"), list) and not 1 <= count <= len(data["of"]):
            report((*path, "count"), "P104", f"count: {count} is not between 1 and the {len(data['of'])} rules given")
            return None
        return None if rules is None or count is None else AtLeastOf(count, rules)

    def _test(self, data: dict[str, Any], path: Path) -> Leaf | NamedRule | None:
        report = self._document.report
        allowed = ("signal", "at_least", "at_most", "is")
        for key in data:
            if key not in allowed:
                report((*path, key), "P101", f"unknown key {key!r}{did_you_mean(key, allowed)}", at_key=True)
        name = data["signal"]
        if not isinstance(name, str):
            report((*path, "signal"), "P103", "signal: a signal's name is needed")
            return None
        leaf = self._leaf(name, (*path, "signal"))
        bounds: dict[str, float] = {}
        for key in ("at_least", "at_most"):
            if key in data:
                value = data[key]
                if not isinstance(value, (int, float)) or isinstance(value, bool):
                    report((*path, key), "P103", f"{key}: {advice.number(value)}")
                    return None
                if not abs(value) <= sys.float_info.max:
                    report((*path, key), "P104", f"{key}: a number is needed that is neither infinite nor .nan")
                    return None
                bounds[key] = float(value)
        label = data.get("is")
        if label is not None and not isinstance(label, str):
            label = self._document.typed.get((*path, "is"))
        if leaf is None:
            return None
        if bounds.get("at_least", float("-inf")) > bounds.get("at_most", float("inf")):
            report((*path, "at_most"), "P104", "at_most is below at_least: the test can never hold")
        if isinstance(leaf, NamedRule):
            for key in [*bounds, *(["is"] if label is not None else ())]:
                report((*path, key), "R205", f"rule {name!r} has no {'label' if key == 'is' else 'score'} to test")
            return leaf
        entry = self._signals[name]
        kind = BY_NAME.get(next(iter(entry), "")) if isinstance(entry, dict) else None
        if kind is not None and bounds and not kind.scored:
            report((*path, next(iter(bounds))), "R205", f"signal {name!r} ({kind.kind}) has no score to test")
        if kind is not None and label is not None and not kind.labelled:
            report((*path, "is"), "R205", f"signal {name!r} ({kind.kind}) has no label to test")
        return Leaf(name, bounds.get("at_least"), bounds.get("at_most"), label)

    def _models(self) -> None:
        """Every place that names a model names one of the policy's."""
        models = self._data.get("models")
        known = models if isinstance(models, dict) else {}
        mentions: list[tuple[Path, Any]] = [(("default",), self._data.get("default"))]
        settings = self._data.get("settings")
        if isinstance(settings, dict):
            mentions.append((("settings", "reference"), settings.get("reference")))
        paths = self._data.get("paths")
        for index, entry in enumerate(paths if isinstance(paths, list) else []):
            if isinstance(entry, dict):
                mentions.append((("paths", index, "to"), entry.get("to")))
        entries = self._data.get("decisions")
        for index, entry in enumerate(entries if isinstance(entries, list) else []):
            if not isinstance(entry, dict):
                continue
            base: Path = ("decisions", index)
            route = entry.get("route")
            if isinstance(route, dict) and isinstance(route.get("pick"), list):
                for i, one in enumerate(route["pick"]):
                    place: Path = (*base, "route", "pick", i)
                    mentions.append(((*place, "model"), one.get("model")) if isinstance(one, dict) else (place, one))
            else:
                mentions.append(((*base, "route"), route))
            for kind in WRITERS:
                block = entry.get(kind.name)
                if isinstance(block, dict):
                    mentions += [((*base, kind.name, *place), key) for place, key in kind.spec().mentions(block)]
        for key, entry in known.items():
            given = entry.get("fallback") if isinstance(entry, dict) else None
            names = given if isinstance(given, list) else []
            mentions += [(("models", key, "fallback", index), name) for index, name in enumerate(names)]
        for path, name in mentions:
            if isinstance(name, (int, float)):
                name = self._document.typed.get(path)
            if isinstance(name, str) and name not in known:
                self._document.report(path, "R202", f"unknown model {name!r}{did_you_mean(name, known)}")
        fallbacks = [(path, self._document.typed.get(path, name)) for path, name in mentions if "fallback" in path[2:3]]
        self._circles(fallbacks)
        for place, message in clashes(known, self._data.get("auto"), self._document.typed):
            self._document.report(place, "R203", message)

    def _circles(self, fallbacks: list[tuple[Path, Any]]) -> None:
        """Fallbacks that lead back to their model: `fallbacks` are the names with their places."""
        graph: dict[str, dict[str, Path]] = {}
        for path, name in fallbacks:
            if isinstance(name, str):
                graph.setdefault(str(path[1]), {}).setdefault(name, path)
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            circle = error.args[1][::-1]
            message = f"models fall back on each other in a circle: {' → '.join(circle)}"
            if len(circle) == 2:
                message = f"model {circle[0]!r} cannot be its own fallback"
            self._document.report(graph[circle[0]][circle[1]], "R204", message)


def _depth(rule: Rule, depths: Mapping[str, int]) -> int:
    """How many levels `rule` has; `depths` are those of what it names."""
    match rule:
        case Leaf():
            return depths.get(rule.signal, 0)
        case NamedRule():
            return depths.get(rule.name, 0)
        case Not(of=child):
            return 1 + _depth(child, depths)
    return 1 + max((_depth(child, depths) for child in rule.of), default=0)


def _joined(make: Callable[[tuple[Rule, ...]], Rule], rules: tuple[Rule, ...] | None) -> Rule | None:
    return None if rules is None else make(rules)


def _holds(data: Any, part: str | int) -> bool:
    if isinstance(data, dict):
        return part in data
    return isinstance(data, list) and isinstance(part, int) and part < len(data)


def _replaced(data: Any, values: Mapping[Path, Any], path: Path = ()) -> Any:
    """A copy of `data` with `values` put in at their paths."""
    if path in values:
        return values[path]
    if isinstance(data, dict):
        return {key: _replaced(value, values, (*path, key)) for key, value in data.items()}
    if isinstance(data, list):
        return [_replaced(value, values, (*path, index)) for index, value in enumerate(data)]
    return data


def _as_a_rule(text: str) -> str:
    """How a rule that is written as a sentence (`a and b`, `not a`, `a > 5`) is written in a policy; '' for others."""
    meant = advice.sentence(text)
    return "" if meant is None else f": a rule is written as {advice.flow(meant)}"
