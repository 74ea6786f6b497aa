"""The configuration of LiteLLM's proxy (https://docs.litellm.ai/docs/proxy/configs) as a policy: its models, aliases
and fallbacks, and its complexity router."""

from __future__ import annotations

import re
from typing import Any, Final

from cli.imports.ported import Entry, Ported
from cli.imports.source import Given, Unimportable, titled

_SERVERS: Final = {
    "openai": "https://api.openai.com",
    "anthropic": "https://api.anthropic.com",
    "gemini": "https://generativelanguage.googleapis.com",
    "mistral": "https://api.mistral.ai",
    "deepseek": "https://api.deepseek.com",
    "groq": "https://api.groq.com",
    "xai": "https://api.x.ai",
    "together_ai": "https://api.together.xyz",
    "openrouter": "https://openrouter.ai",
}
"""Where providers are that need no `api_base` there."""
_PATHS: Final = {"gemini": "/v1beta/openai", "groq": "/openai/v1", "openrouter": "/api/v1"}
_COMPATIBLE: Final = ("openai", "hosted_vllm", "vllm", "openai_like", "ollama_chat", "lm_studio", *_SERVERS)
"""Providers that take the API of OpenAI; Anthropic's and Gemini's servers do, too."""
_ROUTER: Final = "auto_router/complexity_router"
_CAPABILITIES: Final = {
    "supports_function_calling": "tools",
    "supports_vision": "vision",
    "supports_audio_input": "audio",
    "supports_pdf_input": "files",
    "supports_response_schema": "json_schema",
    "supports_reasoning": "thinking",
}
_TIERS: Final = ("SIMPLE", "MEDIUM", "COMPLEX", "REASONING")
_BOUNDARIES: Final = {"simple_medium": 0.15, "medium_complex": 0.35, "complex_reasoning": 0.60}
_WEIGHTS: Final = {
    "tokenCount": 0.10,
    "codePresence": 0.30,
    "reasoningMarkers": 0.25,
    "technicalTerms": 0.25,
    "simpleIndicators": 0.05,
    "multiStepPatterns": 0.03,
    "questionComplexity": 0.02,
}
_LISTS: Final = {
    "codePresence": ("code_keywords", 1, 0.5, 2, 1.0),
    "reasoningMarkers": ("reasoning_keywords", 1, 0.7, 2, 1.0),
    "technicalTerms": ("technical_keywords", 2, 0.5, 4, 1.0),
    "simpleIndicators": ("simple_keywords", 1, -1.0, 2, -1.0),
}
"""By dimension: where its words are, and from how many of them on it counts how much."""
_OWN: Final = {
    "codePresence": ["code", "script", "stack trace", "compile", "unit test", "regex", "json", "sql", "shell"],
    "reasoningMarkers": ["prove", "derive", "justify", "trade-offs", "root cause", "one step at a time"],
    "technicalTerms": ["cluster", "replication", "cache", "queue", "deadlock", "tls", "index", "schema", "kernel"],
    "simpleIndicators": ["please", "good morning", "thank you", "what does", "who wrote", "how old", "in short"],
}
"""Words of ours where the configuration gives none: its own lists are not copied."""


def port(given: Given, ported: Ported) -> None:
    """Write the policy for the configuration `given`. Unimportable where it has no list of models."""
    models = given.children("model_list")
    if not models:
        raise Unimportable(f"{ported.of}: no `model_list`: not a configuration of LiteLLM's proxy")
    _Proxy(given, ported).port(models)


class _Proxy:
    def __init__(self, given: Given, ported: Ported) -> None:
        self._given, self._ported = given, ported
        self._router = given.child("router_settings")
        self._settings = given.child("litellm_settings")
        self._auto: list[str] = []

    def port(self, models: list[Given]) -> None:
        ported = self._ported
        ported.head |= {"default": "", "auto": self._auto}
        routers = []
        for model in models:
            params = model.child("litellm_params")
            if params.text("model") == _ROUTER:
                routers.append((model, params))
            else:
                self._deployment(model, params)
        self._aliases()
        self._fallbacks()
        for model, params in routers:
            self._complexity(model, params)
        ported.head["default"] = self._default
        self._auto += [] if self._auto else ["auto"]
        for one, notes in ((self._router, _QUIET), (self._settings, _QUIET), (self._given, _SECTIONS)):
            for key in list(one.rest()):
                ported.tell("note" if key in notes else "loss", (one, key), notes.get(key, "nothing here says this"))

    _default = ""

    def _deployment(self, model: Given, params: Given) -> None:
        """One server of a model; several of the same name take each other's place."""
        name, told = model.text("model_name"), params.text("model")
        provider, _, served = told.partition("/") if "/" in told else ("openai", "", told)
        entries = self._ported.models
        key = name if name not in entries else f"{name}@{sum(other.startswith(f'{name}@') for other in entries) + 2}"
        entry = entries[key] = Entry({})
        if not self._default:
            self._default = key
        if key != name:
            first = entries[name].value
            first.setdefault("fallback", []).append(key)
            message = (
                f"requests are not spread over the servers of {name!r}; this one takes the place of one that fails"
            )
            self._ported.tell("loss", (params, "weight"), message, entry)
        if "*" in name or "*" in served:
            message = "a name of a client's is not passed on; write the models one by one, with `aliases` for patterns"
            self._ported.tell("loss", (model, "model_name"), message, entry)
        elif served != key:
            entry.value["name"] = served
        self._server(provider, params, entry)
        self._about(model.child("model_info"), params, entry)
        params.skip("rpm", "tpm", "order", "timeout", "stream_timeout", "max_retries", "temperature", "organization")
        self._ported.leftover(params, entry)
        self._ported.leftover(model, entry)

    def _server(self, provider: str, params: Given, entry: Entry) -> None:
        base = params.text("api_base") or params.text("base_url")
        if base.startswith("os.environ/"):
            self._ported.tell("note", (params, "api_base"), f"write `url:` here; the source has it in {base}", entry)
        elif base:
            self._ported.server((params, "api_base" if "api_base" in params else "base_url"), base, entry)
        elif provider in _SERVERS:
            entry.value["url"] = _SERVERS[provider]
            if provider in _PATHS:
                entry.value["base_path"] = _PATHS[provider]
        else:
            self._ported.tell("note", (params, "model"), f"write `url:` here: where {provider} serves it", entry)
        if provider not in _COMPATIBLE:
            message = f"calls are not turned into the API of {provider}: clients must call the model by it"
            self._ported.tell("loss", (params, "model"), message, entry)
        key = params.text("api_key")
        if key:
            named = key.removeprefix("os.environ/") if key.startswith("os.environ/") else ""
            secret = re.sub(r"[^a-z0-9]+", "-", (named or f"{provider}-key").lower()).strip("-") or "key"
            found: dict[str, Any] = {"from": {"secret": secret, "key": "token"}}
            entry.value["credential"] = found if provider != "anthropic" else {"header": "x-api-key", **found}
            what = f"the variable {named}" if named else "the key itself stands in the source, and not here"
            message = f"put it into the secret {secret!r} ({what}); the gateway sends it, the router never holds it"
            self._ported.tell("note", (params, "api_key"), message, entry)

    def _about(self, info: Given, params: Given, entry: Entry) -> None:
        names = {
            "input": "input_cost_per_token",
            "output": "output_cost_per_token",
            "cached_input": "cache_read_input_token_cost",
            "cache_write": "cache_creation_input_token_cost",
        }
        prices = {}
        for ours, theirs in names.items():
            cost = info.number(theirs)
            cost = params.number(theirs) if cost is None else cost
            if cost is not None:
                prices[ours] = round(cost * 1e6, 9)
        if prices:
            entry.value["price"] = prices
        context, output = info.number("max_input_tokens") or info.number("max_tokens"), info.number("max_output_tokens")
        if context:
            entry.value["context"] = int(context)
        if output:
            entry.value["max_output"] = int(output)
        told = {ours: info.flag(theirs) for theirs, ours in _CAPABILITIES.items() if theirs in info}
        if told:
            entry.value["capabilities"] = [capability for capability, has in told.items() if has]
        info.skip("id", "mode", "base_model", "db_model", "description", "supported_environments", "version")
        self._ported.leftover(info, entry)

    def _aliases(self) -> None:
        aliases = self._router.child("model_group_alias")
        for alias in aliases.data:
            value = aliases.data[alias]
            target = value if isinstance(value, str) else aliases.child(alias).text("model")
            aliases.skip(alias)
            entry = self._ported.models.get(titled(target))
            if entry is None:
                message = f"{alias!r} means the model {target!r}, which the source does not have"
                self._ported.tell("contradiction", (aliases, alias), message)
            elif titled(alias) not in self._ported.models:
                entry.value.setdefault("aliases", []).append(titled(alias))
        if "model_alias_map" in self._settings:
            self._ported.tell("loss", (self._settings, "model_alias_map"), "write these aliases at their models")

    def _fallbacks(self) -> None:
        for one in (self._router, self._settings):
            for given in one.children("fallbacks"):
                for name in given.data:
                    self._fallback(given, name, list(map(titled, given.texts(name))))
            general = list(map(titled, one.texts("default_fallbacks")))
            if general:
                for name in list(self._ported.models):
                    if name not in general:
                        self._fallback(one, name, general)
            for key in ("context_window_fallbacks", "content_policy_fallbacks"):
                if key in one:
                    message = "a model's place is taken where its server fails, or where it lacks what is needed"
                    self._ported.tell("loss", (one, key), message)

    def _fallback(self, given: Given, name: str, others: list[str]) -> None:
        ours = titled(name)
        entry = self._ported.models.get(ours)
        if entry is None:
            self._ported.tell("contradiction", (given, name), f"the source has no model {name!r}")
            return
        for other in others:
            known = entry.value.setdefault("fallback", [])
            if other not in self._ported.models:
                message = f"the source has no model {other!r}"
                self._ported.tell("contradiction", (given, name), message, entry)
            elif self._reaches(other, ours):
                message = f"{other!r} falls back on it, too; of such a circle one half is left out"
                self._ported.tell("loss", (given, name), message, entry)
            elif other not in known and other != ours:
                known.append(other)
        if not entry.value.get("fallback"):
            entry.value.pop("fallback", None)

    def _reaches(self, name: str, goal: str) -> bool:
        seen, left = set(), [name]
        while left:
            one = left.pop()
            if one == goal:
                return True
            if one not in seen:
                seen.add(one)
                left += self._ported.models[one].value.get("fallback", [])
        return False

    # The complexity router.

    def _complexity(self, model: Given, params: Given) -> None:
        """A sum of what the words of a request say, with a band and a model for each tier."""
        name = model.text("model_name")
        given = params.child("complexity_router_config")
        self._auto.append(name)
        signals, rules = self._ported.signals, self._ported.rules
        asked = f"asks:{name}"
        signals[asked] = Entry({"parameter": {"path": "model", "equals": name}})
        weights: dict[str, float] = {}
        told = given.child("dimension_weights")
        weight = {key: _WEIGHTS[key] if (own := told.number(key)) is None else own for key in _WEIGHTS}
        limits = given.child("token_thresholds")
        few, many = int(limits.number("simple") or 15), int(limits.number("complex") or 400)

        def counts(label: str, value: dict[str, Any], amount: float) -> Entry:
            entry = signals[f"{name}:{label}"] = Entry(value)
            if amount:
                weights[f"{name}:{label}"] = round(amount, 9)
            return entry

        counts("short", {"tokens": {"at_most": few - 1}}, -weight["tokenCount"])
        counts("long", {"tokens": {"at_least": many + 1}}, weight["tokenCount"])
        for dimension, (key, low, some, high, most) in _LISTS.items():
            words = given.texts(key)
            found: dict[str, Any] = {"count": {"keywords": words or _OWN[dimension]}}
            entry = counts(f"{dimension}", {"structure": found | {"at_least": low}}, weight[dimension] * some)
            if most != some:
                more = {"structure": found | {"at_least": high}}
                counts(f"{dimension}+", more, weight[dimension] * (most - some))
            if not words:
                message = "its own words are not copied; these are others, so write those that you mean"
                self._ported.tell("loss", (given, key), message, entry)
        steps = {"any": [r"(?is)first.*?then", r"(?i)step\s*\d", r"\d+\.\s"]}
        counts("steps", {"regex": steps}, weight["multiStepPatterns"] * 0.5)
        questions = {"structure": {"count": {"regex": r"\?"}, "at_least": 4}}
        counts("questions", questions, weight["questionComplexity"] * 0.5)
        borders = given.child("tier_boundaries")
        bounds = [_BOUNDARIES[key] if (own := borders.number(key)) is None else own for key in _BOUNDARIES]
        bands: dict[str, Any] = {tier: {"below": bound} for tier, bound in zip(_TIERS, bounds, strict=False)}
        score = f"{name}:complexity"
        entry = signals[score] = Entry({"score": {"of": "matches", "sum": weights, "bands": {**bands, _TIERS[3]: {}}}})
        message = "words are counted as often as they stand there, there each once"
        self._ported.tell("note", (given, ""), message, entry)
        for tier in _TIERS:
            rules[f"{name}:{tier}"] = Entry({"signal": score, "is": tier})
        rules[f"{name}:{_TIERS[3]}"].value = {"any": [f"{name}:reasoningMarkers+", {"signal": score, "is": _TIERS[3]}]}
        self._tiers(name, given, asked)
        params.skip("model")
        for one in (borders, limits, told, given, params, model):
            self._ported.leftover(one)

    def _tiers(self, name: str, given: Given, asked: str) -> None:
        decisions = self._ported.decisions
        words = []
        for number, sure in enumerate(given.children("keyword_tier_rules")):
            signal = f"{name}:rule-{number + 1}"
            self._ported.signals[signal] = Entry({"keyword": {"any": sure.texts("keywords")}})
            words.append((signal, sure.text("tier")))
            self._ported.leftover(sure)
        labels = given.child("tier_labels")
        labels.skip(*labels.data)
        tiers = given.child("tiers")
        wanted = [*((signal, tier) for signal, tier in words), *((f"{name}:{tier}", tier) for tier in reversed(_TIERS))]
        for number, (rule, tier) in enumerate(wanted):
            entry = Entry({"name": _slug(f"{name}-{tier.lower()}{f'-{number + 1}' if number < len(words) else ''}")})
            models = self._models_of(tiers, tier, entry)
            if not models:
                models = [given.text("default_model") or self._default]
            entry.value |= {"when": {"all": [asked, rule]}}
            entry.value["route"] = models[0] if len(models) == 1 else {"pick": models, "by": "weighted"}
            decisions.append(entry)
        default = given.text("default_model")
        if default:
            decisions.append(Entry({"name": _slug(f"{name}-default"), "when": asked, "route": default}))
        self._ported.leftover(tiers)

    def _models_of(self, tiers: Given, tier: str, entry: Entry) -> list[Any]:
        value = tiers.data.get(tier)
        tiers.skip(tier)
        found: list[Any] = []
        for one in value if isinstance(value, list) else [value] if value else []:
            model = one if isinstance(one, str) else str(one.get("model_name", "")) if isinstance(one, dict) else ""
            model = titled(model)
            if model not in self._ported.models:
                message = f"the source has no model {model!r}"
                self._ported.tell("contradiction", (tiers, tier), message, entry)
                continue
            params = one.get("litellm_params") if isinstance(one, dict) else None
            effort = params.get("reasoning_effort") if isinstance(params, dict) else None
            if isinstance(params, dict) and set(params) - {"reasoning_effort"}:
                message = f"of the parameters of {model!r} only the effort is set"
                self._ported.tell("loss", (tiers, tier), message, entry)
            found.append({"model": model, "set": {"reasoning_effort": str(effort)}} if effort else model)
        if len(found) == 1 and isinstance(found[0], dict):
            entry.value["set"] = found[0]["set"]
            return [found[0]["model"]]
        return found


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:63] or "decision"


_QUIET: Final = {
    "routing_strategy": "a decision's `route` says how one of several models is chosen (docs/policy.md)",
    "num_retries": "the gateway tries again",
    "timeout": "the gateway has the timeouts",
    "request_timeout": "the gateway has the timeouts",
    "drop_params": "parameters are passed on as they came",
    "set_verbose": "see `serve --log-level`",
    "callbacks": "see the decision log and the metrics (docs/serve.md)",
    "success_callback": "see the decision log and the metrics (docs/serve.md)",
    "failure_callback": "see the decision log and the metrics (docs/serve.md)",
    "redis_host": "see `settings.store`",
    "redis_port": "see `settings.store`",
    "redis_password": "see `settings.store`",
    "cooldown_time": "the gateway leaves out servers that fail",
    "allowed_fails": "the gateway leaves out servers that fail",
    "enable_pre_call_checks": "`by: cheapest` and `capabilities` look at what a model holds and can do",
}
_SECTIONS: Final = {
    "general_settings": "keys and databases of the proxy have no place here: the gateway authenticates",
    "environment_variables": "secrets are the gateway's",
}
