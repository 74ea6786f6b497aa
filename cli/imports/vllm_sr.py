"""A configuration of vLLM Semantic Router (https://github.com/vllm-project/semantic-router) as a policy: the form of
v0.3 (`providers`, `routing`, `recipes`, `entrypoints`, `global`), and the flat one before it."""

from __future__ import annotations

from typing import Final

from cli.imports.ported import Entry, Ported
from cli.imports.source import Given, Unimportable, titled
from cli.imports.vllm_decisions import DecisionPorter
from cli.imports.vllm_models import ModelPorter
from cli.imports.vllm_rules import RulePorter, either, neither
from cli.imports.vllm_signals import Rule, SignalPorter

_FLAT: Final = {
    "keyword_rules": "keywords",
    "embedding_rules": "embeddings",
    "categories": "domains",
    "fact_check_rules": "fact_check",
    "user_feedback_rules": "user_feedbacks",
    "reask_rules": "reasks",
    "preference_rules": "preferences",
    "language_rules": "language",
    "context_rules": "context",
    "structure_rules": "structure",
    "complexity_rules": "complexity",
    "modality_rules": "modality",
    "role_bindings": "role_bindings",
    "jailbreak": "jailbreak",
    "jailbreak_rules": "jailbreak",
    "pii": "pii",
    "pii_rules": "pii",
    "conversation_rules": "conversation",
    "latency_rules": "latency",
}
"""The flat form's lists of signals, and where v0.3 has them."""
_MODULES: Final = (
    "classifier", "prompt_guard", "bert_model", "embedding_models", "hallucination_mitigation", "feedback_detector",
    "modality_detector", "complexity_model", "inline_models",
)  # fmt: skip
_HINTS: Final = {
    "listeners": "the gateway listens: `pointsman render --listen`",
    "services": "the service has flags for this (docs/serve.md), and budgets for limits of use",
    "api": "the service has flags for this (docs/serve.md)",
    "observability": "the service has flags for this (docs/serve.md)",
    "response_api": "stored responses stay with the model's server",
    "router_replay": "write the decision log (`serve --decision-log`) and run `pointsman replay` on it",
    "management_api": "the admin port is read-only (`serve --admin`)",
    "authz": "the gateway authenticates; `identity` signals read what it found",
    "ratelimit": "budgets limit what a tenant spends; limits of requests are the gateway's",
    "stores": "answers are kept by `cache` on a decision; there is no memory and no vector store",
    "semantic_cache": "answers are kept by `cache` on a decision",
    "response_cache": "answers are kept by `cache` on a decision",
    "integrations": "tools are passed on as they came",
    "tools": "tools are passed on as they came",
    "looper": "no answer is written by several models as it is there (see docs/answers.md)",
    "model_catalog": "models of signals ship with the router; others are mounted (docs/models.md)",
    "learning": "choices of models learn through a selector (docs/policy.md)",
    "model_selection": "a decision's `route` says how one of several models is chosen",
    "evaluation": "what a model is worth is its `quality`; a `score` stands there where nothing else did",
    "skip_processing": "no header of a client switches the router off",
    "fallback": "`fallback` of a model says who takes its place",
    "model_bindings": "models of signals ship with the router; others are mounted (docs/models.md)",
    "data_policy": "what is logged is told by flags of `serve`",
}
_QUIET: Final = frozenset(
    ["listeners", "services", "api", "observability", "router_replay", "management_api", "response_api", "evaluation",
     "model_catalog", "authz", "skip_processing", "data_policy", *_MODULES]
)  # fmt: skip
"""What decides nothing about a request, or has its place elsewhere: a note, no loss."""
_AUTO: Final = ("auto", "MoM", "vllm-sr/auto")


def port(given: Given, ported: Ported) -> None:
    """Write the policy for the configuration `given`. Unimportable where it is none of that router's."""
    flat = not any(key in given for key in ("routing", "providers", "global", "recipes"))
    if flat and not any(key in given for key in ("vllm_endpoints", "model_config", "decisions", "categories")):
        raise Unimportable(
            f"{ported.of}: neither `routing` nor `decisions`: not a configuration of vLLM Semantic Router"
        )
    _Router(given, ported, flat).port()


def _at(value: object, path: tuple[str, ...]) -> object:
    """What stands at `path` in plain data; None where there is nothing. It does not count as taken."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


class _Router:
    """One configuration on its way into a policy."""

    def __init__(self, given: Given, ported: Ported, flat: bool) -> None:
        self._given, self._ported, self._flat = given, ported, flat
        self._global = given if flat else given.child("global")
        self._routing = given if flat else given.child("routing")
        self._router = given if flat else self._global.child("router")
        self._profiles = [self._routing, *(recipe.child("routing") for recipe in given.children("recipes"))]
        need = self._routing.child("candidate_requirements")
        self._models = ModelPorter(ported, need.text("capabilities") == "declared")
        need.skip("context")
        ported.leftover(need)
        self._signals = SignalPorter(ported, self._identity())
        self._rules = RulePorter(self._signals)
        self._decisions = DecisionPorter(self._signals, self._rules, self._models)

    def port(self) -> None:
        given, ported = self._given, self._ported
        given.skip("version", "setup")
        if self._flat:
            self._flat_models()
        else:
            self._provided_models()
        strategy = self._routing.text("strategy") or self._router.text("strategy")
        self._head(strategy)
        several = self._catalog()
        recipes, profiles = given.children("recipes"), self._profiles
        for profile, gate in zip(profiles, self._gates(recipes), strict=True):
            self._signals.enter()
            self._collect(profile)
            self._rules.partitions(profile.child("projections"), several)
            self._rules.compose()
            self._rules.projections(profile.child("projections"))
            self._decisions.decisions(profile.children("decisions"), gate, self._flat)
            own = profile.text("strategy") if profile is not self._routing else ""
            if own and (own == "confidence") != ("strategy" in ported.head):
                self._ported.tell("loss", (profile, "strategy"), "one strategy counts for the whole policy")
        if self._flat and not ported.decisions:
            self._by_category()
        self._readers()
        services = self._global.child("services")
        apart = [services, services.child("authz"), services.child("authz").child("identity")]
        wholes = [self._router, *([] if self._flat else apart), self._global, given]
        for one in dict.fromkeys([self._routing, *profiles, *recipes, *wholes]):
            self._rest(one)

    def _readers(self) -> None:
        """The models there read many languages; here the second reader does."""
        kinds = {next(iter(entry.value)) for entry in self._ported.signals.values() if entry.value}
        if kinds & {"domain", "jailbreak"}:
            self._ported.settings["readers"] = "both"
            message = "note: settings.readers: a second reader is asked for other languages than English, and in doubt"
            self._ported.comments.append(f"{message} (docs/models.md); `fast` does without it")

    # Models.

    def _provided_models(self) -> None:
        providers = self._given.child("providers")
        defaults = providers.child("defaults")
        families = defaults.child("reasoning_families")
        for model in providers.children("models"):
            self._models.provided(model, families)
        for card in self._routing.children("modelCards"):
            self._models.card(card)
        for record in self._given.child("evaluation").children("records"):
            self._models.rated(record)
        if "evaluation" in self._given:
            self._ported.tell("note", (self._given, "evaluation"), _HINTS["evaluation"])
        self._models.families(families)
        self._default(defaults, "default_model" if "default_model" in defaults else "model")
        self._decisions.effort = defaults.text("default_reasoning_effort") or defaults.text("reasoning_effort")
        self._ported.leftover(defaults)
        self._ported.leftover(providers)

    def _flat_models(self) -> None:
        given = self._given
        endpoints = {one.text("name"): one for one in given.children("vllm_endpoints")}
        families = given.child("reasoning_families")
        for name, model in given.named("model_config"):
            self._models.configured(titled(name), model, endpoints, families)
        self._models.families(families)
        self._default(given, "default_model")
        self._decisions.effort = given.text("default_reasoning_effort")

    def _default(self, given: Given, key: str) -> None:
        name = given.text(key)
        if not name:
            name = next(iter(self._ported.models), "")
            decides = any(profile.children("decisions") for profile in self._profiles)
            if not name and not decides:
                raise Unimportable(f"{self._ported.of}: it names no model, and decides nothing")
            if name:
                self._ported.tell("note", (given, key), f"none is given, so it is the first: {name}")
            else:
                name = "model"
                self._ported.tell("loss", (given, key), "the source names no model: put yours in place of `model`")
        self._models.missing(name, (given, key))
        self._ported.head["default"] = name

    # The whole.

    def _head(self, strategy: str) -> None:
        router = self._router
        names = [*router.texts("auto_model_names"), router.text("auto_model_name")]
        told = [name for name in dict.fromkeys(map(titled, names)) if name]
        self._auto = told or list(_AUTO)
        self._ported.head["auto"] = self._auto
        if strategy == "confidence":
            self._ported.head["strategy"] = "best"
            if any(one.number("tier") for one in self._routing.children("decisions")):
                message = "all matching decisions are compared by confidence here, whatever their tier"
                self._ported.tell("loss", (self._routing, "strategy"), message)
        choices, learning = self._decisions.choices, router.child("learning")
        choices.usual = router.child("model_selection").text("method") if not self._flat else ""
        enabled = learning.flag("enabled")
        self._decisions.learning = enabled and learning.child("adaptation").flag("enabled", True)
        protection = learning.child("protection")
        choices.sticky = enabled and protection.flag("enabled")
        if choices.sticky:
            message = "a conversation stays on its model (`sticky`), whatever a change would cost or gain"
            self._ported.tell("note", (learning, "protection"), message)
        if self._decisions.learning:
            self._ported.tell("loss", (learning, "adaptation"), _HINTS["learning"])
        learning.skip("adaptation", "protection", "state_store")
        self._ported.leftover(learning)
        router.skip("strategy", "include_config_models_in_list", "config_source", "clear_route_cache", "streamed_body")

    def _catalog(self) -> bool:
        """Take what the models of signals say of the signals, such as knowledge bases; whether several embeddings match
        at once."""
        given = self._global
        catalog = given.child("model_catalog")
        for base in catalog.children("kbs"):
            self._signals.base(base)
        places = [("embedding_models", "hnsw_config"), ("embedding_models", "embedding_config"), ("embeddings",)]
        places = [("embeddings", "semantic", "embedding_config")] if not self._flat else places
        data: object = given.data if self._flat else catalog.data
        found = [_at(data, (*place, "top_k")) for place in places]
        most = next((one for one in found if isinstance(one, int)), 1)
        if most > 1:
            message = f"every embedding that is near enough matches, not the {most} nearest alone"
            self._ported.tell("loss", (catalog, "embeddings"), message)
        for key in catalog.rest():
            self._ported.tell("note", (catalog, key), _HINTS["model_catalog"])
        return most != 1

    def _identity(self) -> tuple[str, str]:
        authz = self._global.child("authz") if self._flat else self._global.child("services").child("authz")
        identity = authz.child("identity")
        return (
            identity.text("user_id_header", "x-authz-user-id").lower(),
            identity.text("user_groups_header", "x-authz-user-groups").lower(),
        )

    def _collect(self, profile: Given) -> None:
        """The signals of one profile."""
        if self._flat:
            for theirs, key in _FLAT.items():
                if theirs in profile and isinstance(profile.data[theirs], list):
                    self._signals.family(key, profile.children(theirs))
            return
        signals = profile.child("signals")
        for key in signals.data:
            self._signals.family(key, signals.children(key))

    def _gates(self, recipes: list[Given]) -> list[Rule]:
        """The rule by which each profile is chosen: the top one first, then the recipes, each by the names of models
        that a client may ask for."""
        names: dict[str, list[str]] = {}
        for point in self._given.children("entrypoints"):
            names.setdefault(point.text("recipe"), []).extend(filter(None, map(titled, point.texts("model_names"))))
            self._ported.leftover(point)
        known = {recipe.text("name") for recipe in recipes}
        default = [name for recipe, own in names.items() if recipe not in known for name in own]
        self._auto += [name for name in default if name not in self._auto]
        gates: list[Rule] = []
        for recipe in recipes:
            name = recipe.text("name")
            own = names.get(name, [])
            self._auto += [one for one in own if one not in self._auto]
            if name == "default" and not own:
                gates.append(True)
                continue
            if not own and not name:
                message = "neither a name nor an entry point asks for this recipe, so its decisions are left out"
                self._ported.tell("contradiction", (recipe, ""), message)
                gates.append(False)
                continue
            if not own:
                own = [name]
                self._auto.append(name)
                message = f"no entry point names this recipe: here it is asked for by its name, {name!r}"
                self._ported.tell("note", (recipe, "name"), message)
            entry = self._signals.add(("recipe", name), {"parameter": {"path": "model", "in": own}}, f"recipe:{name}")
            if "description" in recipe:
                entry.comments.append(recipe.text("description"))
            gates.append(self._signals.rules["recipe", name])
        others = [gate for gate in gates if isinstance(gate, str)]
        top = neither(either(list(others)))
        if len(others) > 1 and self._routing.children("decisions"):
            self._signals.name_rule(("recipe", "default"), top, "recipe:default")
            top = self._signals.rules["recipe", "default"]
        return [top, *gates]

    def _by_category(self) -> None:
        """The oldest form has no decisions: each category names its models, and the best of them takes it."""
        for given in self._given.children("categories"):
            name = given.text("name")
            scores = sorted(given.children("model_scores"), key=lambda one: -(one.number("score") or 0.0))
            rule = self._signals.rule_of("domain", name)
            if not scores or rule is None or rule is False:
                continue
            best = scores[0].text("model")
            self._models.missing(best, (scores[0], "model"))
            route = self._decisions.among([best], [{}], {"by": "weighted"})
            entry = Entry({"name": self._decisions.name(name), "when": rule, "route": route})
            if "system_prompt" in given:
                entry.value["set"] = {"system": given.text("system_prompt")}
            self._ported.decisions.append(entry)

    def _rest(self, given: Given) -> None:
        """Say what has not been read, with a hint where what it is for has another place here."""
        given.skip("signals", "projections", "decisions", "description", "name", "routing", "modelCards", "recipes")
        for key in list(given.rest()):
            hint = _HINTS.get(key, "nothing here says this")
            self._ported.tell("note" if key in _QUIET else "loss", (given, key), hint)
