"""Models of vLLM Semantic Router's configurations: `providers.models` and `routing.modelCards` of v0.3,
`vllm_endpoints` and `model_config` of the flat form."""

from __future__ import annotations

import re
from typing import Any, Final

from cli.imports.ported import Entry, Ported
from cli.imports.source import Given

_FAMILIES: Final = {
    ("chat_template_kwargs", "enable_thinking"): "enable_thinking",
    ("chat_template_kwargs", "thinking"): "thinking",
    ("reasoning_effort", "reasoning_effort"): "reasoning_effort",
}
_CAPABILITIES: Final = {
    "tools": "tools",
    "tool_use": "tools",
    "function_calling": "tools",
    "vision": "vision",
    "multimodal": "vision",
    "image": "vision",
    "audio": "audio",
    "files": "files",
    "json_schema": "json_schema",
    "structured_output": "json_schema",
    "reasoning": "thinking",
    "thinking": "thinking",
}
_LABELS: Final = (
    "description", "param_size", "tags", "modality", "display_name", "publisher", "presentation", "distribution",
    "family", "revision", "released_at", "knowledge_cutoff", "lifecycle", "external_model_ids",
)  # fmt: skip


class ModelPorter:
    """Writes the models. `thinking` says of each by which family's field its reasoning is switched; None: by none."""

    def __init__(self, ported: Ported, strict: bool) -> None:
        self._ported, self._strict = ported, strict
        self.thinking: dict[str, str | None] = {}
        self.servers: dict[str, dict[str, float]] = {}
        """The servers of each model that has several, with their shares of its requests."""

    def known(self, name: str) -> bool:
        return name in self._ported.models

    def provided(self, given: Given, families: Given) -> None:
        """One of `providers.models`."""
        name = self._named(given)
        if not name:
            return
        entry = self._entry(name)
        served = given.text("provider_model_id")
        if served and served != name:
            entry.value["name"] = served
        reasoning = given.child("reasoning")
        family = given.text("reasoning_family") or reasoning.text("family")
        self._family(name, family, families.child(family) if family else reasoning)
        reasoning.skip(*reasoning.data)
        self._price(given.child("pricing"), entry)
        if given.text("api_format", "openai") not in ("openai", ""):
            message = "the router does not turn one API into another: clients must call this model by its own API"
            self._ported.tell("loss", (given, "api_format"), message, entry)
        self._backends(name, given.children("backend_refs"), entry)
        if "catalog" in given:
            self._ported.tell("loss", (given, "catalog"), "what their catalog says of it must be written here", entry)
        if "reliability" in given:
            message = "retries, checks of health and the ejection of servers are the gateway's (docs/install.md)"
            self._ported.tell("note", (given, "reliability"), message, entry)
        given.skip(*_LABELS)
        self._ported.leftover(given, entry)

    def card(self, given: Given) -> None:
        """One of `routing.modelCards`."""
        name = self._named(given)
        if not name:
            return
        entry = self._entry(name)
        context, output = given.number("context_window_size"), given.number("max_output_tokens")
        if context:
            entry.value["context"] = int(context)
        if output:
            entry.value["max_output"] = int(output)
        quality = given.number("quality_score")
        if quality:
            entry.value["quality"] = round(min(1.0, float(quality)), 6)
        self._capable(given, entry)
        self._adapters(name, given.children("loras"))
        given.skip(*_LABELS)
        self._ported.leftover(given, entry)

    def configured(self, name: str, given: Given, endpoints: dict[str, Given], families: Given) -> None:
        """One of `model_config`, the flat form."""
        entry = self._entry(name)
        family = given.text("reasoning_family")
        self._family(name, family, families.child(family) if family else Given(families.child("").data, "", ""))
        self._price(given.child("pricing"), entry)
        context = given.number("context_window_size")
        if context:
            entry.value["context"] = int(context)
        quality = given.number("quality_score")
        if quality:
            entry.value["quality"] = round(min(1.0, float(quality)), 6)
        backends = []
        for endpoint in given.texts("preferred_endpoints"):
            if endpoint in endpoints:
                backends.append(endpoints[endpoint])
            else:
                message = f"the source has no endpoint {endpoint!r}"
                self._ported.tell("contradiction", (given, "preferred_endpoints"), message, entry)
        self._backends(name, backends, entry)
        self._adapters(name, given.children("loras"))
        if "pii_policy" in given:
            message = "of a model's own policy on personal data nothing is said here: write a guard"
            self._ported.tell("loss", (given, "pii_policy"), message, entry)
        given.skip("capabilities", *_LABELS)
        self._ported.leftover(given, entry)

    def rated(self, given: Given) -> None:
        """One of `evaluation.records`: what a model is worth, where nothing else says it."""
        name, metrics = given.text("model"), given.child("metrics")
        score = metrics.number("score")
        entry = self._ported.models.get(name)
        if entry is not None and score is not None and 0 <= score <= 1 and "quality" not in entry.value:
            entry.value["quality"] = round(score, 6)
            message = f"its score in {given.text('benchmark') or 'a benchmark'} stands as `quality`"
            self._ported.tell("note", (given, ""), message, entry)

    def families(self, given: Given) -> None:
        """What is left of the families of reasoning when all models are written."""
        for name in given.data:
            family = given.child(name)
            family.skip("type", "parameter")
            self._ported.leftover(family)

    def missing(self, name: str, where: tuple[Given, str]) -> None:
        """A model that is named and nowhere described."""
        if name and not self.known(name):
            entry = self._entry(name)
            self._ported.tell("note", where, f"the source does not say where {name!r} is served", entry)
            self.thinking.setdefault(name, None)

    def _named(self, given: Given) -> str:
        """The name of a model or an adapter; '' where it has none, so that nothing can ask for it."""
        name = given.text("name")
        if not name:
            self._ported.tell("contradiction", (given, ""), "it has no name, so it is left out")
        return name

    def _entry(self, name: str) -> Entry:
        return self._ported.models.setdefault(name, Entry({}))

    def _family(self, name: str, family: str, given: Given) -> None:
        how, field = given.text("type"), given.text("parameter")
        given.skip("activation_parameter", "effort_flags", "levels", "default", "disabled", "modes", "default_mode")
        found = _FAMILIES.get((how, field.removeprefix("reasoning.") if "effort" in field else field))
        if found is None and field == "reasoning.effort":
            found = "reasoning_effort"
        entry = self._entry(name)
        if found is None and (family or how):
            message = f"reasoning of the family {family or how!r} is switched by no field that is known here"
            self._ported.tell("loss", (given, "parameter"), message, entry)
        self.thinking[name] = found
        if found not in (None, "reasoning_effort"):
            entry.value["thinking"] = found

    def _price(self, given: Given, entry: Entry) -> None:
        names = {
            "input": "prompt_per_1m",
            "output": "completion_per_1m",
            "cached_input": "cached_input_per_1m",
            "cache_write": "cache_write_per_1m",
        }
        prices = {ours: float(found) for ours, theirs in names.items() if (found := given.number(theirs)) is not None}
        if prices:
            entry.value["price"] = prices
        currency = given.text("currency", "USD")
        if currency != "USD":
            self._ported.tell("note", (given, "currency"), f"prices are numbers here, whose unit is {currency}", entry)
        self._ported.leftover(given, entry)

    def _backends(self, name: str, backends: list[Given], entry: Entry) -> None:
        for index, backend in enumerate(backends):
            if index == 0:
                self._served(backend, entry)
                continue
            other = f"{name}@{backend.text('name') or index + 1}"
            extra = self._entry(other)
            extra.value |= {key: value for key, value in entry.value.items() if key not in _OF_ONE_SERVER}
            extra.value.setdefault("name", name)
            self._served(backend, extra)
            self.thinking[other] = self.thinking.get(name)
            entry.value.setdefault("fallback", []).append(other)
        if len(backends) > 1:
            keys = [name, *entry.value["fallback"]]
            weights = [1.0 if (told := backend.number("weight")) is None else told for backend in backends]
            whole = sum(weights)
            if whole > 0:
                self.servers[name] = {key: weight / whole for key, weight in zip(keys, weights, strict=True)}
            message = (
                "decisions spread requests over these servers by weight; a request that names the model, or takes "
            )
            message += "the default, goes to the first. One address with several hosts behind it spreads all of them"
            self._ported.tell("note", (backends[0], "weight"), message, entry)

    def _served(self, given: Given, entry: Entry) -> None:
        """Where one server is: the URL, the path before the calls, the credential."""
        url = _url(given)
        if url:
            self._ported.server((given, "base_url" if "base_url" in given else "endpoint"), url, entry)
        chat = given.text("chat_path")
        if chat and chat.strip("/") != "chat/completions":
            self._ported.tell("loss", (given, "chat_path"), "calls have the API's own paths here", entry)
        self._credential(given, entry)
        given.skip("name", "weight", "type", "provider", "protocol", "models", "health_check_path")
        self._ported.leftover(given, entry)

    def _credential(self, given: Given, entry: Entry) -> None:
        variable, written = given.text("api_key_env"), given.text("api_key") or given.text("access_key")
        header, prefix = given.text("auth_header"), given.text("auth_prefix")
        if not variable and not written:
            return
        label = variable or f"{given.text('name') or 'model'}-key"
        secret = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:250] or "key"
        found: dict[str, Any] = {"from": {"secret": secret, "key": "token"}}
        if header and header.lower() != "authorization":
            found = {"header": header.lower(), **found}
        if prefix and not (prefix.strip() == "Bearer" and "header" not in found):
            found["prefix"] = f"{prefix.strip()} "
        entry.value["credential"] = found
        what = f"the variable {variable}" if variable else "the key itself stands in the source, and not here"
        message = f"put it into the secret {secret!r} ({what}); the gateway sends it, the router never holds it"
        self._ported.tell("note", (given, "api_key_env" if variable else "api_key"), message, entry)

    def _capable(self, given: Given, entry: Entry) -> None:
        told = given.texts("capabilities")
        modalities = given.child("modalities")
        told += [f"{one}" for one in modalities.texts("input") if one != "text"]
        modalities.skip(*modalities.data)
        found = list(dict.fromkeys(_CAPABILITIES[one] for one in map(_plain, told) if one in _CAPABILITIES))
        if self._strict:
            entry.value["capabilities"] = found
        elif found:
            message = f"labels there; `capabilities: [{', '.join(found)}]` here keeps requests with other needs away"
            self._ported.tell("note", (given, "capabilities"), message, entry)

    def _adapters(self, name: str, adapters: list[Given]) -> None:
        base = self._entry(name)
        for given in adapters:
            adapter = self._named(given)
            if not adapter:
                continue
            entry = self._entry(adapter)
            entry.value |= {key: value for key, value in base.value.items() if key not in ("name", "fallback")}
            entry.comments.append(f"note: {given.place}: an adapter of {name}, on the same server")
            self.thinking[adapter] = self.thinking.get(name)
            given.skip("description")
            self._ported.leftover(given, entry)


_OF_ONE_SERVER: Final = ("url", "base_path", "credential", "fallback")


def _plain(word: str) -> str:
    return word.lower().replace("-", "_")


def _url(given: Given) -> str:
    """The URL of a server, from a base URL, an endpoint `host:port`, or an address and a port."""
    base = given.text("base_url")
    if base:
        return base if "://" in base else f"http://{base}"
    host, port = given.text("endpoint") or given.text("address"), given.text("port")
    if not host:
        return ""
    if "://" in host:
        return host
    scheme = given.text("protocol", "http").lower()
    if host.count(":") > 1 and not host.startswith("["):
        host = f"[{host}]"
    return f"{'https' if scheme == 'https' else 'http'}://{host}{f':{port}' if port else ''}"
