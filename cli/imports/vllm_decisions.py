"""Decisions of vLLM Semantic Router's configurations: their order, their models, and the plugins of each."""

from __future__ import annotations

import re
from typing import Any, Final

from cli.imports.ported import Entry, Ported
from cli.imports.source import Given
from cli.imports.vllm_choices import ChoicePorter
from cli.imports.vllm_models import ModelPorter
from cli.imports.vllm_rules import RulePorter, both
from cli.imports.vllm_signals import PII, Rule, SignalPorter

_UNKNOWN: Final = {"match": "match", "no_match": "skip", "fail_request": "fail"}
_EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_LABELS: Final = ("description", "annotations", "name", "priority", "tier")
_ELSEWHERE: Final = {
    "router_replay": "write the decision log (`serve --decision-log`) and run `pointsman replay` on it",
}
_CANNOT: Final = {
    "memory": "nothing is remembered of users between conversations",
    "rag": "nothing is looked up for a prompt",
    "tools": "the tools that a request offers are passed on as they came",
    "tool_selection": "the tools that a request offers are passed on as they came",
    "hallucination": "answers are not checked against their sources",
    "context_compression": "prompts are passed on as they came",
    "context_dedup": "prompts are passed on as they came",
    "shadow_dispatch": "run `pointsman replay` on recorded requests, or a candidate policy beside this one",
    "image_gen": "calls go to the API that was called",
    "provider_prompt_cache": "marks for a provider's cache are the client's to set",
}


class DecisionPorter:
    """Writes the decisions, in the order in which the first that matches is taken."""

    def __init__(self, signals: SignalPorter, rules: RulePorter, models: ModelPorter) -> None:
        self._signals, self._rules, self._models = signals, rules, models
        self._ported: Ported = signals.ported
        self.effort = ""
        """The reasoning effort where a model's entry gives none."""
        self.choices = ChoicePorter(self._ported)
        self.learning = False
        """Whether choices of models learn there, whatever the algorithm."""
        self._names: set[str] = set()

    def decisions(self, given: list[Given], gate: Rule, flat: bool) -> None:
        """Decisions that apply where `gate` is true."""
        tiers = any(one.number("tier") for one in given)
        ranks = [self._rank(one, tiers, number if flat else 0) for number, one in enumerate(given)]
        order = sorted(range(len(given)), key=lambda number: (ranks[number], number))
        for before, number in zip([None, *order], order, strict=False):
            self._decision(given[number], gate)
            equal = before is not None and not flat and ranks[before][:3] == ranks[number][:3]
            if equal and not ranks[number][1] and "strategy" not in self._ported.head:
                self._tie((given[number], "priority"))

    def _tie(self, where: tuple[Given, str]) -> None:
        """Let the last decision be compared with the one before it, which has the same priority, by how sure their
        rules are; where both only know yes and no, the first one counts anyway."""
        above, last = self._ported.decisions[-2:]
        if all(
            entry.value is not None
            and ("route" in entry.value or "panel" in entry.value)
            and self._rules.unsure(entry.value.get("when", True))
            for entry in (above, last)
        ):
            last.value["tied"] = True
            message = "of equal priority with the decision above: the one whose rule is the surer is taken"
            self._ported.tell("note", where, message, last)

    def _rank(self, given: Given, tiers: bool, number: int) -> tuple[float, bool, float, int, str]:
        """Tiers first, whatever matches everything last in its tier, then by priority, and what has the same one by its
        name, or in the flat form by its place."""
        rules = given.child("rules")
        catch_all = "type" not in rules and not rules.children("conditions")
        name = "" if number else given.text("name")
        return (
            (given.number("tier") or 0.0) if tiers else 0.0,
            catch_all,
            -(given.number("priority") or 0.0),
            number,
            name,
        )

    def _decision(self, given: Given, gate: Rule) -> None:
        entry = Entry({"name": self.name(given.text("name"))})
        if "description" in given:
            entry.comments.append(given.text("description"))
        tree = given.child("rules")
        unknown = tree.text("on_unknown")
        rule = both([gate, self._rules.rule(tree, entry)])
        self._other(given, entry)
        actions = self._plugins(given, entry, rule)
        action = given.child("action")
        if rule is False:
            message = "its rule can never match, so the decision is left out"
            self._ported.tell("loss", (given, "rules"), f"{given.text('name')}: {message}", entry)
            entry.value = None
            self._ported.decisions.append(entry)
            return
        if rule is not True:
            entry.value["when"] = rule
        if unknown in _UNKNOWN and unknown != "no_match":
            entry.value["on_unknown"] = _UNKNOWN[unknown]
        if unknown == "fail_request" and "respond" in actions:  # which keeps it from every model, too
            entry.value["on_unknown"] = "match"
        elif unknown == "fail_request":
            message = "the request goes to the default model, and is counted; it is not refused"
            self._ported.tell("loss", (tree, "on_unknown"), message, entry)
        if "respond" in actions:
            entry.value["respond"] = actions.pop("respond")
            if "modelRefs" in given:
                self._ported.tell(
                    "note", (given, "modelRefs"), "the answer is the policy's own, whichever model was asked for", entry
                )
        else:
            self._route(given, entry)
            if action.text("type") == "route" and action.text("destination"):
                self._models.missing(action.text("destination"), (action, "destination"))
                entry.value |= {"route": action.text("destination"), "override": True}
                entry.value.pop("set", None)
            self._ported.leftover(action, entry)
            cache = actions.pop("cache", None)
            if actions:
                entry.value["set"] = entry.value.get("set", {}) | actions
            if cache is not None:
                entry.value["cache"] = cache
        self._ported.leftover(given, entry)
        self._ported.decisions.append(entry)

    def name(self, told: str) -> str:
        """A name for a decision that none has yet."""
        base = re.sub(r"[^A-Za-z0-9._-]+", "-", told).strip("-._")[:63] or "decision"
        name, number = base, 2
        while name in self._names:
            name, number = f"{base[:58]}-{number}", number + 1
        self._names.add(name)
        return name

    def _other(self, given: Given, entry: Entry) -> None:
        """What is no part of the rule, the models or the plugins."""
        given.skip(*_LABELS, "modelRefs", "algorithm", "rules", "plugins", "action")
        messages = {
            "output_contract": "write it into a system prompt",
            "output_contract_spec": "answers are not put into a form",
            "candidateIterations": "candidates are written out here",
            "emits": "`sticky: session` keeps a conversation on its model, `cache` keeps answers",
            "fallback": "`fallback` of a model says who takes its place",
            "tool_scope": "the tools that a request offers are passed on as they came",
        }
        learns = given.child("adaptations")
        if learns.text("mode") == "bypass" or not self.learning:
            given.skip("adaptations")
            learns.skip("mode", "adaptation", "protection")
            self._ported.leftover(learns, entry)
        elif "adaptations" in given:
            message = "choices learn through a selector, not for each decision"
            self._ported.tell("loss", (given, "adaptations"), message, entry)
        for key, message in messages.items():
            if key in given:
                given.skip(key)
                self._ported.tell("loss", (given, key), message, entry)

    # Models.

    def _route(self, given: Given, entry: Entry) -> None:
        refs = given.children("modelRefs")
        algorithm = given.child("algorithm")
        names, changes, weights = [], [], {}
        for ref in refs:
            name = ref.text("lora_name") or ref.text("model")
            self._models.missing(name, (ref, "model"))
            if name in names or not name:
                continue
            weight = ref.number("weight")
            names.append(name)
            changes.append(self._reasoning(ref, name, entry))
            if weight is not None:
                weights[name] = weight
            ref.skip("model", "reasoning_description")
            self._ported.leftover(ref, entry)
        if not names:
            default = str(self._ported.head["default"])
            self._ported.tell("note", (given, "modelRefs"), "it names no model, so it takes the default", entry)
            names, changes = [default], [{}]
        alike = all(one == changes[0] for one in changes)
        panel = self.choices.panel(algorithm, names, entry)
        if panel is not None:
            entry.value["panel"] = panel
            if alike and changes[0]:
                entry.value["set"] = changes[0]
            elif not alike:
                self._ported.tell("loss", (given, "modelRefs"), "each model of a panel reasons as it likes", entry)
            return
        by = self.choices.choice(given, names, weights if len(weights) == len(names) else {}, entry)
        if by is None:
            names, changes, by = names[:1], changes[:1], {"by": "weighted"}
            alike = True
        entry.value["route"] = self.among(names, [{} for _ in names] if alike else changes, by)
        if alike and changes[0]:
            entry.value["set"] = changes[0]

    def among(self, names: list[str], changes: list[dict[str, Any]], by: dict[str, Any]) -> str | dict[str, Any]:
        """The models that a decision goes to. Where shares count, those of a model with several servers are shared."""
        weighted = by["by"] == "weighted"
        pick: list[Any] = []
        weights: dict[str, float] = {}
        for name, change in zip(names, changes, strict=True):
            servers = self._models.servers.get(name, {}) if weighted else {}
            whole = by.get("weights", {}).get(name, 1.0)
            for key, share in (servers or {name: 1.0}).items():
                called = {"name": key} if weighted else {}
                pick.append({"model": key, **called, "set": change} if change else key)
                weights[key] = round(whole * share, 6)
        if len(pick) == 1:
            return names[0]
        if weighted and len(set(weights.values())) > 1:
            by = {**by, "weights": weights}
        return {"pick": pick, **by}

    def _reasoning(self, ref: Given, name: str, entry: Entry) -> dict[str, Any]:
        """The changes by which reasoning is switched for one model."""
        wanted, effort = ref.flag("use_reasoning"), ref.text("reasoning_effort") or self.effort
        given = "use_reasoning" in ref or ref.text("reasoning_mode") != ""
        wanted = wanted or ref.text("reasoning_mode") == "enabled"
        family = self._models.thinking.get(name)
        if family is None:
            if wanted:
                message = "the source gives the model no family of reasoning, so nothing is switched"
                self._ported.tell("note", (ref, "use_reasoning"), message, entry)
            return {}
        if family == "reasoning_effort":
            if wanted and effort and effort not in _EFFORTS:
                self._ported.tell("loss", (ref, "reasoning_effort"), f"no effort that is known here: {effort}", entry)
                return {}
            return {"reasoning_effort": effort or "medium"} if wanted else {}
        return {"thinking": wanted} if given else {}

    # Plugins.

    def _plugins(self, given: Given, entry: Entry, rule: Rule) -> dict[str, Any]:
        """What the plugins change in the request, and `respond` or `cache`; guards of their own come before."""
        found: dict[str, Any] = {}
        for plugin in given.children("plugins"):
            kind = plugin.text("type").replace("-", "_")
            how = plugin.child("configuration")
            self._ported.leftover(plugin, entry)
            if not how.flag("enabled", True):
                continue
            write = getattr(self, f"_with_{kind}", None)
            if write is not None:
                write(how, entry, found)
                self._ported.leftover(how, entry)
            elif kind in ("pii", "jailbreak"):
                self._guard(kind, how, (entry, rule))
            elif kind == "response_jailbreak":
                self._watch(how, (entry, rule))
            elif kind in _ELSEWHERE:
                self._ported.tell("note", (plugin, ""), _ELSEWHERE[kind], entry)
            else:
                self._ported.tell("loss", (plugin, ""), _CANNOT.get(kind, "there is no such plugin here"), entry)
        return found

    def _with_system_prompt(self, given: Given, entry: Entry, found: dict[str, Any]) -> None:
        if given.text("system_prompt"):
            found["system"] = given.text("system_prompt")
        if given.text("mode", "replace") == "replace":
            self._ported.tell("loss", (given, "mode"), "it is put before the request's own system prompt", entry)

    def _with_semantic_cache(self, given: Given, entry: Entry, found: dict[str, Any]) -> None:
        seconds = given.number("ttl_seconds")
        whose = {"user": "user", "session": "session", "tenant": "tenant"}.get(given.text("scope"), "all")
        cache: dict[str, Any] = {"ttl": _duration(int(seconds))} if seconds else {}
        found["cache"] = cache | {"scope": whose, "any_temperature": True}
        semantic = given.child("semantic")
        least = given.number("similarity_threshold") or semantic.number("similarity_threshold")
        if least:
            found["cache"]["similar"] = min(1.0, max(0.5, least))
            message = "the same question in other words counts here, told by another encoder"
            self._ported.tell("note", (given, "similarity_threshold"), message, entry)
        for key in ("personalized", "request_controls"):
            if key in given:
                self._ported.tell("note", (given, key), "see `cache-control` and `scope` in docs/policy.md", entry)
        given.skip("mode", "revision")

    _with_response_cache = _with_semantic_cache

    def _with_fast_response(self, given: Given, entry: Entry, found: dict[str, Any]) -> None:
        found["respond"] = {"status": 200, "message": given.text("message")}

    def _with_header_mutation(self, given: Given, entry: Entry, found: dict[str, Any]) -> None:
        headers = {}
        for key in ("add", "update"):
            for one in given.children(key):
                name = one.text("name")
                if name.lower() in ("host", "content-length") or name.lower().startswith("x-pointsman-"):
                    self._ported.tell("loss", (one, "name"), "not a policy's to set", entry)
                else:
                    headers[name.lower()] = one.text("value")
                self._ported.leftover(one, entry)
        if headers:
            found["headers"] = headers
        if "delete" in given:
            self._ported.tell("loss", (given, "delete"), "headers are set, none is taken away", entry)

    def _with_request_params(self, given: Given, entry: Entry, found: dict[str, Any]) -> None:
        most = given.number("max_tokens_limit")
        if most:
            found["max_tokens"] = int(most)
        if "default_max_tokens" in given:
            message = "a limit that only counts where the client gives none is not set"
            self._ported.tell("loss", (given, "default_max_tokens"), message, entry)

    def _watch(self, given: Given, of: tuple[Entry, Rule]) -> None:
        """A decision on the answer: an attack in it ends it, or is told of."""
        entry, rule = of
        if rule is False:
            return
        least, action = given.number("threshold"), given.text("action", "header")
        name = f"{entry.value['name']}-answer"
        jailbreak = {"at_least": least} if least is not None else {}
        signal = self._signals.alike(("jailbreak", name), {"jailbreak": {**jailbreak, "in": ["answer"]}})
        watch = Entry({"name": self.name(name), "on": "answer", "when": both([rule, signal])})
        watch.value |= {"on_unknown": "match", "cut": {}} if action == "block" else {"flag": {}}
        self._ported.tell("note", (given, ""), "it looks at all answers to requests for which that rule holds", watch)
        self._ported.leftover(given, watch)
        self._ported.decisions.append(watch)

    def _guard(self, kind: str, given: Given, of: tuple[Entry, Rule]) -> None:
        """A refusal of its own, before the decision that has the plugin."""
        entry, rule = of
        name = f"{entry.value['name']}-{kind}"
        if rule is False:
            return
        if kind == "pii":
            allowed = set(given.texts("pii_types_allowed"))
            value: dict[str, Any] = {"pii": {"types": [ours for theirs, ours in PII.items() if theirs not in allowed]}}
            if not value["pii"]["types"]:
                return
        else:
            least = given.number("threshold")
            value = {"jailbreak": {} if least is None else {"at_least": least}}
        same = self._signals.alike((kind, name), value)
        guard = Entry({"name": self.name(name), "when": both([rule, same]), "on_unknown": "match"})
        guard.value["respond"] = {"status": 403}
        guard.comments.append(f"note: {given.place}: what the plugin refuses there")
        self._ported.leftover(given, guard)
        self._ported.decisions.append(guard)


def _duration(seconds: int) -> str:
    for unit, size in (("h", 3600), ("m", 60)):
        if seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
