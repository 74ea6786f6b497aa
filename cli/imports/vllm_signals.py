"""Signals of vLLM Semantic Router's configurations, family by family: what each of theirs is in our kinds."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import ChainMap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cli.imports.ported import Entry, Ported
from cli.imports.source import Given, titled
from signals import files

Bounds = tuple[float | None, float | None]
"""The least and the greatest number; None where there is no end."""
Rule = str | dict[str, Any] | bool
"""A rule of ours; a Boolean where it is known from the start."""

DOMAINS: Final = (
    "biology", "business", "chemistry", "computer science", "economics", "engineering", "health", "history", "law",
    "math", "other", "philosophy", "physics", "psychology",
)  # fmt: skip
_FEEDBACK: Final = {
    "wrong_answer": "dissatisfied",
    "want_different": "dissatisfied",
    "dissatisfied": "dissatisfied",
    "need_clarification": "clarification",
    "satisfied": "satisfied",
}
_MODALITIES: Final = {"ar": "text", "diffusion": "image", "both": "both"}
PII: Final = {
    "EMAIL_ADDRESS": "email",
    "PHONE_NUMBER": "phone",
    "CREDIT_CARD": "card",
    "IBAN_CODE": "iban",
    "US_SSN": "ssn",
    "IP_ADDRESS": "ip",
}
"""Types of theirs that need no model here."""
_SPECIAL: Final = frozenset("\\.+*?()|[]{}^$")
"""What makes an expression of a word."""
_EDITS: Final = 10
"""The greatest `fuzzy_threshold` that is a number of letters; from there on it is a percentage."""
_ROLES: Final = ("system", "developer", "user", "assistant", "tool")
_KINDS: Final = {
    "keywords": "keyword",
    "embeddings": "embedding",
    "domains": "domain",
    "fact_check": "fact_check",
    "user_feedbacks": "user_feedback",
    "reasks": "reask",
    "preferences": "preference",
    "language": "language",
    "context": "context",
    "structure": "structure",
    "complexity": "complexity",
    "modality": "modality",
    "role_bindings": "authz",
    "jailbreak": "jailbreak",
    "pii": "pii",
    "kb": "kb",
    "conversation": "conversation",
    "events": "event",
    "metadata": "metadata",
    "input_modality": "input_modality",
    "session": "session",
}
"""Their families, by the key that they stand under, and what conditions call them."""
_KNOWLEDGE: Final = "its examples stand in files of another form: write them into one for a `knowledge` signal"
_CANNOT: Final = {
    "hallucination": "answers are not checked against their sources",
    "safety": "no model of content risks ships with the router: mount one as a `classifier` signal",
    "classifiers": "mount the model as a `classifier` signal (an ONNX folder), or ask its server by a `remote` one",
    "latency": "the time that models take is no signal of a request; a `load` signal looks at one model",
    "session_metrics": "what a session did is no signal; `sticky: session` on a decision keeps its model",
    "random": "write a `sample` signal for a share of the traffic",
    "category_kb": _KNOWLEDGE,
    "taxonomy": _KNOWLEDGE,
}
_TURNS: Final = 20
"""The most earlier messages that `reask` compares."""
_ENCODER: Final = "the threshold is that of another encoder"
_MODEL: Final = "the threshold is that of another model"
_NEVER: Final = "; conditions on it never match"


@dataclass(frozen=True, slots=True)
class _Base:
    """A knowledge base of theirs: the file of ours, its labels and groups, and the numbers that it gives."""

    file: str
    labels: list[str]
    groups: dict[str, list[str]]
    metrics: dict[str, Given]

    def group(self, name: str) -> str | None:
        """The name of a group in our file."""
        return next((one for one in (f"{name}s", name) if one in self.groups and one not in self.labels), None)


class SignalPorter:
    """Writes the signals, and knows for each of theirs, by type and name, the rule that it is here."""

    def __init__(self, ported: Ported, identity: tuple[str, str]) -> None:
        self.ported, self._identity = ported, identity
        self.rules: ChainMap[tuple[str, str], Rule] = ChainMap()
        self.sources: ChainMap[tuple[str, str], str] = ChainMap()
        """The signals of ours for theirs, by type and name, also where something else says when they match."""
        self.later: dict[tuple[str, str], Callable[[], None]] = {}
        """Rules that are written when something asks for them first."""
        self.composed: list[tuple[Given, str]] = []
        """Complexities whose conditions are written when all signals are known."""
        self._entered = False
        self._bases: dict[str, _Base] = {}

    def enter(self) -> None:
        """Begin with a profile: its signals are its own, beside those of the first profile, which is the top one."""
        if self._entered:
            self.rules = ChainMap({}, self.rules.maps[-1])
            self.sources = ChainMap({}, self.sources.maps[-1])
        self._entered = True
        self.composed.clear()
        self.later.clear()

    def own(self) -> list[tuple[str, str]]:
        """Type and name of what this profile has."""
        return list(self.rules.maps[0])

    def family(self, key: str, given: list[Given]) -> None:
        """All signals under one key."""
        kind = _KINDS.get(key)
        write: Callable[[Given, str], None] | None = getattr(self, f"_{kind}", None) if kind else None
        for one in given:
            name = one.text("name")
            if write is None:
                self.drop(
                    (one, ""), (kind or key).rstrip("s"), _CANNOT.get(kind or key, "there is no such signal here")
                )
                continue
            one.skip("description")
            write(one, name)

    def add(self, where: tuple[str, str], value: dict[str, Any], names: str = "") -> Entry:
        """A signal of ours for the type and name of theirs, under a name that is free."""
        kind, name = where
        same = self.ported.signals.get(names or name)
        if same is not None and same.value == value:  # another profile's, which says the same
            self.rules[where] = self.sources[where] = names or name
            return same
        ours = self.free(names or name, kind)
        entry = self.ported.signals[ours] = Entry(value)
        self.rules[where] = self.sources[where] = ours
        return entry

    def drop(self, where: tuple[Given, str], kind: str, message: str) -> None:
        """Leave out one of theirs that nothing here says, or that never matches."""
        given, key = where
        entry = self.ported.signals[f"-{kind}:{given.text('name')}"] = Entry(None)
        self.ported.tell("loss", (given, key), f"{given.text('name')}: {message}{_NEVER}", entry)
        self.rules[kind, given.text("name")] = False

    def alike(self, where: tuple[str, str], value: dict[str, Any]) -> str:
        """The signal that is `value` already, or a new one."""
        same = next((ours for ours, one in self.ported.signals.items() if one.value == value), None)
        if same is None:
            self.add(where, value)
            same = str(self.rules[where])
        return same

    def name_rule(self, where: tuple[str, str], rule: Rule, names: str = "") -> Entry:
        """A named rule of ours for the type and name of theirs."""
        name = names or where[1]
        same = self.ported.rules.get(name)
        if same is not None and same.value == rule:  # another profile's, which says the same
            self.rules[where] = name
            return same
        ours = self.free(name, where[0])
        entry = self.ported.rules[ours] = Entry(rule)
        self.rules[where] = ours
        return entry

    def free(self, name: str, kind: str) -> str:
        """`name`, or a longer one where a signal or a rule has it already."""
        name = titled(name) or kind
        number, ours = 1, name
        while ours in self.ported.signals or ours in self.ported.rules:
            ours = f"{kind}:{name}" if number == 1 else f"{kind}:{name}:{number}"
            number += 1
        return ours

    def rule_of(self, kind: str, name: str) -> Rule | None:
        """The rule for one of theirs; None where the source has no such signal. Classes that a model of theirs knows
        need no entry there, so they are made when they are first asked for."""
        make = self.later.pop((kind, name), None)
        if make is not None:
            make()
        found = self.rules.get((kind, name))
        if found is not None:
            return found
        implied = {"domain": self._domain, "fact_check": self._fact_check, "user_feedback": self._user_feedback,
                   "modality": self._modality}.get(kind)  # fmt: skip
        if implied is None:
            return None
        from cli.imports.source import Lined

        implied(Given(Lined(), f"signals.{kind}[{name}]", ""), name)
        return self.rules.get((kind, name))

    def _unknown(self, given: Given, where: tuple[str, str], message: str) -> None:
        """A class that no model here knows; conditions may name it without an entry in the source."""
        entry = self.ported.signals[f"-{':'.join(where)}"] = Entry(None)
        self.ported.tell("loss", (given, ""), f"{where[1]}: {message}{_NEVER}", entry)
        self.rules[where] = False

    def base(self, given: Given) -> None:
        """A knowledge base: its examples go into a file of their own beside the policy."""
        name, source = given.text("name"), given.child("source")
        path = Path(source.text("path")) / source.text("manifest", "labels.json")
        self._prototypes(given)
        given.skip("name")
        try:
            examples = _examples(self.ported.folder, path)
        except (OSError, ValueError, RecursionError) as error:
            message = f"{name}: its examples cannot be read here ({error}), so it is left out: import where {path} is"
            self.ported.tell("loss", (given, ""), message)
            return
        usual = given.number("threshold")
        own = {label: found for label, one in given.child("label_thresholds").data.items() if (found := _cosine(one))}
        given.child("label_thresholds").skip(*own)
        least = {label: own.get(label, usual) for label in examples}
        labels: dict[str, Any] = {
            label: texts if least[label] is None else {"examples": texts, "at_least": least[label]}
            for label, texts in examples.items()
        }
        told = given.child("groups")
        groups: dict[str, list[str]] = {}
        for group in told.data:
            members = [label for label in told.texts(group) if label in labels]
            if len(members) < len(told.texts(group)):
                self.ported.tell("contradiction", (told, group), f"{name}: it names labels that have no examples")
            if members:
                groups[f"{group}s" if group in labels else group] = members
        metrics = {one.text("name"): one for one in given.children("metrics")}
        whole = {"labels": labels, **({"groups": groups} if groups else {})}
        file = self._file(name, json.dumps(whole, indent=2, ensure_ascii=False) + "\n")
        self._bases[name] = _Base(file, list(labels), groups, metrics)
        for one in metrics.values():
            one.skip("type", "positive_group", "negative_group")
        for one in (source, told, given.child("label_thresholds"), *metrics.values(), given):
            self.ported.leftover(one)

    def _file(self, name: str, content: str) -> str:
        """The file beside the policy that has this content: named after `name`, but no other content's."""
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "knowledge"
        names = (f"{stem}{'' if n == 1 else f'-{n}'}.knowledge.json" for n in itertools.count(1))
        return next(one for one in names if self.ported.files.setdefault(one, content) == content)

    def metric(self, base: str, name: str) -> str | None:
        """The signal whose score is a number that a knowledge base gives; None where it is not known."""
        known = self._bases.get(base)
        if known is None:
            return None
        where = ("kb_metric", f"{base}:{name}")
        if name == "best_score":
            self.add(where, {"knowledge": {"file": known.file}})
        elif name == "best_matched_score":
            nearest = self.metric(base, "best_score")
            self.add(where, {"score": {"sum": {nearest: 1.0}, "exclusive": "best"}})
        elif name in known.metrics and known.metrics[name].text("type") == "group_margin":
            given = known.metrics[name]
            sides = [known.group(given.text(key)) for key in ("positive_group", "negative_group")]
            if None in sides:
                return None
            self.add(where, {"knowledge": {"file": known.file, "is": [sides[0]], "over": [sides[1]]}})
        else:
            return None
        return self.sources[where]

    # Their families.

    def _kb(self, given: Given, name: str) -> None:
        base = self._bases.get(given.text("kb"))
        target, match = given.child("target"), given.text("match", "threshold")
        if base is None:
            self.drop((given, "kb"), "kb", f"there is no knowledge base {given.text('kb')!r} here")
            return
        wanted = target.text("value")
        of = base.group(wanted) if target.text("kind", "label") == "group" else wanted
        if of is None or (of not in base.groups and of not in base.labels):
            self.drop((given, "target"), "kb", f"the base has no {target.text('kind')} {wanted!r}")
            return
        others = [label for label in base.labels if label not in base.groups.get(of, [of])]
        value: dict[str, Any] = {"file": base.file, "is": [of]}
        value |= {"over": others} if match == "best" and others else {"match": "enough"}
        entry = self.add(("kb", name), {"knowledge": value})
        self.ported.tell("note", (given, "match"), _ENCODER if match != "best" else "told by another encoder", entry)
        for one in (target, given):
            self.ported.leftover(one, entry)

    def _keyword(self, given: Given, name: str) -> None:
        operator, method = given.text("operator", "OR").upper(), given.text("method").lower()
        words = [word for word in given.texts("keywords") if word.strip()]
        if given.flag("fuzzy_match"):
            method = "fuzzy"
        if not words:
            entry = self.add(("keyword", name), {})
            self.ported.tell("contradiction", (given, "keywords"), f"{name} has no keywords{_NEVER}", entry)
            entry.value, self.rules["keyword", name] = None, False
            return
        if method == "regex" and any(_SPECIAL & set(word) for word in words):
            self._expressions(given, name, operator, words)
            return
        field = {"AND": "all", "NOR": "none"}.get(operator, "any")
        value: dict[str, Any] = {field: words}
        notes: list[tuple[str, str]] = []
        least, alike = given.number("bm25_threshold"), given.number("ngram_threshold")
        arity, share = given.number("ngram_arity"), given.number("fuzzy_threshold")
        case = given.flag("case_sensitive")
        if case and method in ("", "regex"):
            value["case_sensitive"] = True
        if method == "regex":  # expressions, which find parts of words, too
            value["whole_words"] = False
        elif method == "bm25" and field == "any":
            value["bm25"] = {"at_least": least or 0.1}
        elif method == "bm25":
            message = f"BM25 weighs what any keyword adds; with {operator} the words themselves are looked for"
            notes.append(("operator", message))
        elif method == "ngram":
            value["ngram"] = {"at_least": alike or 0.4}
            if arity not in (None, 3):
                notes.append(("ngram_arity", "words are compared by triples of letters"))
        elif method == "fuzzy":
            sizes = sorted(map(len, words))
            wrong = share or 2
            if wrong > _EDITS:  # a percentage of letters that must be right
                wrong = int((1 - wrong / 100) * sizes[len(sizes) // 2])
                notes.append(("fuzzy_threshold", "a share of letters that may be wrong is a number of them here"))
            value["fuzzy"] = {"max_edits": int(min(3, max(1, wrong)))}
        entry = self.add(("keyword", name), {"keyword": value})
        for key, message in notes:
            self.ported.tell("note", (given, key), message, entry)
        if case and "case_sensitive" not in value:
            self.ported.tell("loss", (given, "case_sensitive"), f"`{method}` looks at no case here", entry)
        self.ported.leftover(given, entry)

    def _expressions(self, given: Given, name: str, operator: str, words: list[str]) -> None:
        """Keywords that are regular expressions, as those with `method: regex` are."""
        mark = "" if given.flag("case_sensitive") else "(?i)"
        found = [f"{mark}{word}" for word in words]
        if operator == "AND":
            parts = []
            for number, one in enumerate(found):
                self.add(("keyword", f"{name}:{number + 1}"), {"regex": {"any": [one]}})
                parts.append(self.rules["keyword", f"{name}:{number + 1}"])
            entry = self.name_rule(("keyword", name), {"all": parts})
        elif operator == "NOR":
            self.add(("keyword", f"{name}:any"), {"regex": {"any": found}})
            entry = self.name_rule(("keyword", name), {"not": self.rules["keyword", f"{name}:any"]})
        else:
            entry = self.add(("keyword", name), {"regex": {"any": found}})
        self.ported.leftover(given, entry)

    def _embedding(self, given: Given, name: str) -> None:
        least, aggregate = given.number("threshold"), given.text("aggregation_method", "max")
        examples, away = given.texts("candidates"), given.texts("negative_candidates")
        if given.text("query_modality", "text") != "text" or not examples:
            self.drop((given, "query_modality"), "embedding", "embeddings of images and sounds are not made here")
            return
        mean = {"aggregate": "mean"} if aggregate in ("mean", "avg", "average") else {}
        if away:
            value: dict[str, Any] = {"toward": examples[:500], "away": away[:500], "margin": least or 0.0}
            entry = self.add(("embedding", name), {"contrast": value | (mean or {"aggregate": "max"})})
        else:
            value = {"to": examples[:500], "at_least": 0.7 if least is None else least}
            entry = self.add(("embedding", name), {"similar": value | mean})
        self._prototypes(given)
        self.ported.tell("note", (given, "threshold"), _ENCODER, entry)
        self.ported.leftover(given, entry)

    def _prototypes(self, given: Given) -> None:
        given.skip("prototype_scoring")  # all examples are compared

    def _preference(self, given: Given, name: str) -> None:
        least, examples = given.number("threshold"), given.texts("examples")
        told = given.text("description")
        if not examples and not told:
            self.drop((given, ""), "preference", "nothing says what it looks like")
            return
        value = {"to": (examples or [told])[:500], "at_least": 0.7 if least is None else least}
        entry = self.add(("preference", name), {"similar": value})
        if not examples:
            message = "a model is asked there; here what is alike to its description matches: give it examples"
            self.ported.tell("loss", (given, ""), message, entry)
        self._prototypes(given)
        self.ported.leftover(given, entry)

    def _domain(self, given: Given, name: str) -> None:
        told = given.texts("mmlu_categories") or [name]
        classes = list(dict.fromkeys(one for one in map(_class, [*told, name]) if one in DOMAINS))
        if not classes:
            classes = [one for one in (_class(name),) if one in DOMAINS]
        strange = [one for one in told if _class(one) not in DOMAINS]
        if not classes:
            self._unknown(given, ("domain", name), f"no field of knowledge that is known here: {', '.join(strange)}")
            return
        entry = self.add(("domain", name), {"domain": {"is": classes}})
        if strange and given.data:
            self.ported.tell("loss", (given, "mmlu_categories"), f"not known here: {', '.join(strange)}", entry)
        given.skip("model_scores", "use_reasoning", "reasoning_effort", "system_prompt", "reasoning_description")
        self.ported.leftover(given, entry)

    def _fact_check(self, given: Given, name: str) -> None:
        if name.startswith("no_"):
            other = self.rule_of("fact_check", "needs_fact_check")
            self.name_rule(("fact_check", name), {"not": other})
        else:
            self.add(("fact_check", name), {"fact_check": {"at_least": 0.5}})
        self.ported.leftover(given)

    def _user_feedback(self, given: Given, name: str) -> None:
        meant = _FEEDBACK.get(name)
        if meant is None:
            self._unknown(given, ("user_feedback", name), "no feedback that is known here")
            return
        entry = self.add(("user_feedback", name), {"feedback": {"is": [meant]}})
        if name == "want_different":
            self.ported.tell("note", (given, ""), "told by the same class as wrong answers here", entry)
        self.ported.leftover(given, entry)

    def _reask(self, given: Given, name: str) -> None:
        least, told = given.number("threshold"), int(given.number("lookback_turns") or 1)
        turns = min(told, _TURNS)
        value: dict[str, Any] = {"at_least": 0.8 if least is None else least}
        if turns > 1:
            value |= {"turns": turns, "streak": True}
        entry = self.add(("reask", name), {"reask": value})
        if told > turns:
            self.ported.tell("loss", (given, "lookback_turns"), f"{turns} earlier messages are compared at most", entry)
        self.ported.leftover(given, entry)

    def _event(self, given: Given, name: str) -> None:
        lists = {"types": "event_types", "severities": "severities", "codes": "action_codes"}
        value: dict[str, Any] = {ours: words for ours, theirs in lists.items() if (words := given.texts(theirs))}
        if given.flag("temporal"):
            value["urgent"] = True
        if not value:
            self.drop((given, ""), "event", "it names no type, severity or code")
            return
        entry = self.add(("event", name), {"event": value})
        self.ported.leftover(given, entry)

    def _language(self, given: Given, name: str) -> None:
        from signals.kinds.language import LANGUAGES

        code = name.lower().split("-")[0].split("_")[0]
        least = given.number("threshold")
        if code not in LANGUAGES and code != "no":
            self.drop((given, "name"), "language", "no language that is known here")
            return
        value: dict[str, Any] = {"is": [code]}
        if least:
            value["at_least"] = least
        entry = self.add(("language", name), {"language": value})
        self.ported.leftover(given, entry)

    def _context(self, given: Given, name: str) -> None:
        value = {}
        for key, ours in (("min_tokens", "at_least"), ("max_tokens", "at_most")):
            count = _count(given, key)
            if count is not None and (count or ours == "at_most"):
                value[ours] = count
        if empty((value.get("at_least"), value.get("at_most"))):
            self.drop((given, "max_tokens"), "context", "its bounds exclude each other")
            return
        if value:
            entry = self.add(("context", name), {"tokens": value | {"method": "bytes"}})
        else:
            self.ported.tell("note", (given, ""), "every request has such a length")
            self.rules["context", name] = True
            entry = None
        self.ported.leftover(given, entry)

    def _structure(self, given: Given, name: str) -> None:
        feature = given.child("feature")
        how, source = feature.text("type", "exists"), feature.child("source")
        kind, (least, most) = source.text("type", "regex"), _bounds(given.child("predicate"), how)
        sequences = source.data.get("sequences")
        source.skip("sequences", "case_sensitive")
        what: Any = {"regex": source.text("pattern")} if kind == "regex" else {"keywords": source.texts("keywords")}
        if kind == "text_bytes":
            what = "bytes"
        bounds = limits((least, most))
        wrong = "its bounds exclude each other" if empty((least, most)) else ""
        if how not in ("count", "density", "exists", "sequence"):
            wrong = f"no feature that is known here: {how}"
        elif how == "sequence" and not any(isinstance(one, list) and one for one in sequences or []):
            wrong = "nothing says in which order what follows"
        elif how != "sequence" and what != "bytes" and not any(what.values()):
            wrong = "nothing says what it looks for"
        elif how == "density" and what == "bytes":
            wrong = "bytes are counted alone"
        if wrong:
            self.drop((given, "feature"), "structure", wrong)
            return
        if how == "sequence":
            lists = [one for one in sequences or [] if isinstance(one, list) and one]
            orders = [[{"keywords": [str(word)]} for word in one] for one in lists]
            names = [f"{name}:{number + 1}" if len(orders) > 1 else name for number in range(len(orders))]
            parts = []
            for order, label in zip(orders, names, strict=True):
                self.add(("structure", label), {"structure": {"sequence": order}})
                parts.append(self.rules["structure", label])
            if len(parts) > 1:
                self.name_rule(("structure", name), {"any": parts})
            for one in (source, feature, given):
                self.ported.leftover(one)
            return
        value = {how: what, **(bounds if how != "exists" else {})}
        if how != "exists" and not bounds:
            value = {"exists": what}
        entry = self.add(("structure", name), {"structure": value})
        for one in (source, feature, given.child("predicate"), given):
            self.ported.leftover(one, entry)

    def _complexity(self, given: Given, name: str) -> None:
        hard, easy = given.child("hard"), given.child("easy")
        toward, away = hard.texts("candidates"), easy.texts("candidates")
        margin = given.number("threshold")
        margin = 0.1 if margin is None else margin
        above, below = given.number("hard_above"), given.number("easy_below")
        if given.text("method", "embedding") not in ("embedding", "contrastive", "") or not (toward and away):
            self.drop(
                (given, "method"), "complexity", "here examples of both sides are needed, not a model trained for it"
            )
            for level in ("easy", "medium", "hard"):
                self.rules["complexity", f"{name}:{level}"] = False
            return
        value = {"contrast": {"toward": toward[:500], "away": away[:500], "aggregate": "max"}}
        entry = self.add(("complexity-score", name), value)
        score = self.rules["complexity-score", name]
        tests = {
            "hard": {"signal": score, "at_least": margin if above is None else above},
            "easy": {"signal": score, "at_most": -margin if below is None else below},
        }
        for level, test in tests.items():
            self.name_rule(("complexity", f"{name}:{level}"), test)
        neither = [{"not": self.rules["complexity", f"{name}:{level}"]} for level in ("hard", "easy")]
        self.name_rule(("complexity", f"{name}:medium"), {"all": neither})
        if "composer" in given:
            self.composed.append((given.child("composer"), name))
        self._prototypes(given)
        self.ported.tell("note", (given, "threshold"), _ENCODER, entry)
        for side in (hard, easy, given):
            self.ported.leftover(side, entry)

    def _modality(self, given: Given, name: str) -> None:
        meant = _MODALITIES.get(name.lower())
        if meant is None:
            self._unknown(given, ("modality", name), "no modality that is known here")
            return
        self.add(("modality", name), {"modality": {"is": [meant]}})
        self.ported.leftover(given)

    def _authz(self, given: Given, name: str) -> None:
        role = given.text("role", name) or "role"
        users: list[str] = []
        groups: list[str] = []
        for subject in given.children("subjects"):
            kind = subject.text("kind").lower()
            (users if kind == "user" else groups).append(subject.text("name"))
        if not users and not groups:
            self.drop((given, "subjects"), "authz", "it is bound to nobody")
            return
        known = self.rules.get(("authz", role))
        if isinstance(known, str) and known in self.ported.signals:  # a second binding of the same role
            entry = self.ported.signals[known]
        else:
            user, group = self._identity
            headers = {"user": user, "groups": group}
            entry = self.add(("authz", role), {"identity": {"role": role, "headers": headers}})
        value = entry.value["identity"]
        for key, more in (("users", users), ("groups", groups)):
            if more:
                value[key] = list(dict.fromkeys([*value.get(key, []), *more]))
        value["headers"] = value.pop("headers")
        self.rules.setdefault(("authz", name), self.rules["authz", role])
        message = "the gateway must set these headers, and remove a client's own"
        self.ported.tell("note", (given, "subjects"), message, entry)
        self.ported.leftover(given, entry)

    def _jailbreak(self, given: Given, name: str) -> None:
        method, least = given.text("method", "classifier"), given.number("threshold")
        toward, away = given.texts("jailbreak_patterns"), given.texts("benign_patterns")
        history = given.flag("include_history")
        answered = given.text("direction", "request") == "response"
        if method == "contrastive" and toward and away:
            value: dict[str, Any] = {"toward": toward, "away": away, "margin": least or 0.1, "aggregate": "max"}
            where = {"in": "conversation"} if history else {}
            entry = self.add(("jailbreak", name), {"contrast": value | where})
            self.ported.tell("note", (given, "threshold"), _ENCODER, entry)
        else:
            scope = ["answer"] if answered else ["conversation"] if history else []
            value = {"at_least": least} if least is not None else {}
            if scope:
                value["in"] = scope
            entry = self.add(("jailbreak", name), {"jailbreak": value})
            self.ported.tell("note", (given, "threshold"), _MODEL, entry)
            if answered:
                self.rules["jailbreak", name] = False
                message = f"it reads answers, for decisions with `on: answer`{_NEVER} on a request"
                self.ported.tell("note", (given, "direction"), message, entry)
        self.ported.leftover(given, entry)

    def _pii(self, given: Given, name: str) -> None:
        allowed = set(given.texts("pii_types_allowed"))
        types = [ours for theirs, ours in PII.items() if theirs not in allowed]
        given.number("threshold")
        if not types:
            self.drop((given, "pii_types_allowed"), "pii", "what is left needs a model of names and places")
            return
        history = {"in": "conversation"} if given.flag("include_history") else {}
        entry = self.add(("pii", name), {"pii": {"types": types, **history}})
        message = "names, places and dates need a model of your own here (`model:`), the rest is found by its form"
        self.ported.tell("loss", (given, "pii_types_allowed"), message, entry)
        self.ported.leftover(given, entry)

    def _conversation(self, given: Given, name: str) -> None:
        feature = given.child("feature")
        source = feature.child("source")
        kind, role = source.text("type"), source.text("role")
        least, most = _bounds(given.child("predicate"), "count")
        if feature.text("type", "exists") == "exists" or (least is None and most is None):
            least, most = 1, None
        if empty((least, most)):
            self.drop((given, "predicate"), "conversation", "its bounds exclude each other")
            return
        bounds = limits((least, most))
        entry: Entry
        if kind == "tool_choice_required":  # a tool that is named must be called, too
            for label, test in (("any", {"equals": "required"}), ("named", {"in": ["function", "custom", "tool"]})):
                path = "tool_choice" if label == "any" else "tool_choice.type"
                self.add(("conversation", f"{name}:{label}"), {"parameter": {"path": path, **test}})
            either = [self.rules["conversation", f"{name}:{label}"] for label in ("any", "named")]
            entry = self.name_rule(("conversation", name), {"any": either})
        else:
            value = _counted(kind, role, bounds)
            if value is None:
                self.drop((given, ""), "conversation", f"{' '.join((kind, role)).strip()} is not counted here")
                return
            entry = self.add(("conversation", name), value)
        for one in (source, feature, given.child("predicate"), given):
            self.ported.leftover(one, entry)

    def _session(self, given: Given, name: str) -> None:
        """Facts of a conversation that stand in its messages; what a router remembers of it is no signal."""
        fact, (least, most) = given.text("fact"), _bounds(given.child("predicate"), "count")
        bounds = limits((least, most))
        if fact == "session_present" and (least or 1) == 1 and most is None:
            value: dict[str, Any] = {"messages": {"role": "assistant", "at_least": 1}}
        elif fact == "turn_number" and bounds:
            value = {"turns": bounds}
        else:
            self.drop((given, "fact"), "session", _CANNOT["session_metrics"])
            return
        entry = self.add(("session", name), {"conversation": value})
        for one in (given.child("predicate"), given):
            self.ported.leftover(one, entry)

    def _metadata(self, given: Given, name: str) -> None:
        predicate = given.child("predicate")
        key = given.text("key")
        path = f"metadata.{key}" if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key) else f'metadata["{key}"]'
        test: dict[str, Any] = {}
        if "equals" in predicate:
            test["equals"] = predicate.text("equals")
        elif predicate.texts("in"):
            test["in"] = predicate.texts("in")
        else:
            test["exists"] = predicate.flag("exists", True)
        entry = self.add(("metadata", name), {"parameter": {"path": path, **test}})
        self.ported.leftover(predicate, entry)
        self.ported.leftover(given, entry)

    def _input_modality(self, given: Given, name: str) -> None:
        modality = given.text("modality")
        what = {"image": "images", "audio": "audio", "file": "files", "document": "files"}.get(modality)
        if modality == "text":
            self.rules["input_modality", name] = True
            self.ported.leftover(given)
            self.ported.tell("note", (given, "modality"), f"{name}: every request counts as one with text")
            return
        if what is None:
            self.drop((given, "modality"), "input_modality", "not looked for here")
            return
        self.add(("input_modality", name), {"conversation": {what: True}})
        self.ported.leftover(given)


def _examples(folder: Path | None, path: Path) -> dict[str, list[str]]:
    """The examples of each label in a manifest, which lies below `folder`. OSError or ValueError without any."""
    if folder is None:
        raise OSError("the configuration came from standard input")
    below = (folder / path).resolve()
    if not below.is_relative_to(folder.resolve()):
        raise OSError("it lies outside of the folder of the configuration")
    found = json.loads(files.read(below, files.POLICY))
    labels = found.get("labels") if isinstance(found, dict) else None
    examples = {
        name: [text for text in one["exemplars"] if isinstance(text, str) and text.strip()]
        for name, one in (labels.items() if isinstance(labels, dict) else ())
        if isinstance(one, dict) and isinstance(one.get("exemplars"), list)
    }
    if not any(examples.values()):
        raise ValueError(f"{path}: there are no labels with examples in it")
    return {name: texts for name, texts in examples.items() if texts}


def _cosine(value: object) -> float | None:
    return min(1.0, max(0.0, float(value))) if isinstance(value, int | float) else None


def _counted(kind: str, role: str, bounds: dict[str, float]) -> dict[str, Any] | None:
    """The signal that counts what `kind` is in a conversation; None where there is none."""
    fields = {
        "tool_definition": "tools",
        "active_tool_loop": "tool_turn",
        "assistant_tool_call": "tool_calls",
        "image_content": "images",
    }
    if kind in fields:
        return {"conversation": {fields[kind]: bounds}}
    if kind == "tool_choice_none":
        return {"parameter": {"path": "tool_choice", "equals": "none"}}
    roles: dict[str, Any] = {"": {}, "non_user": {"role": [one for one in _ROLES if one != "user"]}}
    roles |= {one: {"role": one} for one in _ROLES}
    if kind == "assistant_tool_cycle":
        kind, role = "message", "tool"
    return {"conversation": {"messages": roles[role] | bounds}} if kind == "message" and role in roles else None


def _class(name: str) -> str:
    return name.strip().lower().replace("_", " ").replace("-", " ")


def _count(given: Given, key: str) -> int | None:
    """A number of tokens, such as 32K (thousands)."""
    told = given.text(key).strip().upper()
    if not told:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KM]?)", told)
    if found is None:
        given.number(key)  # which says what is wrong with it
        return None
    return round(float(found[1]) * {"": 1, "K": 1000, "M": 1_000_000}[found[2]])


def limits(bounds: Bounds) -> dict[str, float]:
    """What says in a policy that a number is within `bounds`."""
    return {key: one for key, one in zip(("at_least", "at_most"), bounds, strict=True) if one is not None}


def empty(bounds: Bounds) -> bool:
    """Whether no number is within `bounds`."""
    least, most = bounds
    return least is not None and most is not None and least > most


def _bounds(given: Given, of: str) -> Bounds:
    """The least and the greatest number that a predicate lets through: a whole one of a `count`, one per 100 words of a
    `density`, which is one per word there."""
    told = {key: given.number(key) for key in ("gt", "gte", "lt", "lte")}
    if of == "density":
        told = {key: None if value is None else round(value * 100, 9) for key, value in told.items()}
    over, least, under, most = told.values()
    if over is not None:
        above = math.floor(over) + 1 if of == "count" else math.nextafter(over, math.inf)
        least = above if least is None else max(least, above)
    if under is not None:
        below = math.ceil(under) - 1 if of == "count" else math.nextafter(under, -math.inf)
        most = below if most is None else min(most, below)
    return least, most
