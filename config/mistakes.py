"""What a policy may say although its author probably does not mean it: templates, patterns in the place of names, URLs
with a doubled path, budgets that nobody pays. Warnings only, each at its place; what looks odd but may be meant is left
alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from config.advice import TEMPLATE, unfilled
from config.clauses import arms
from config.document import Path
from config.problem import did_you_mean
from decisions.lint import Finding
from decisions.model import before
from signals.bounds import idle
from signals.registry import BY_NAME
from signals.signal import Doubt, Ends

if TYPE_CHECKING:
    from config.load import Policy
    from config.schema import DecisionSpec, ModelSpec, PickSpec

_SEARCHED: Final = frozenset(
    {"all", "allow", "any", "away", "count", "density", "exists", "keywords", "matches", "none", "regex"}
    | {"sequence", "to", "toward"}
)
"""Parameters of signals that hold what is looked for in a text: a template may be just that."""
_PATTERN: Final = re.compile(r"\*|^\^|\$$|\(\?|\.\+|\?$|^/.*/$|\[\w-\w")
_VERSION: Final = re.compile(r"v\d+[a-z0-9]*")
_DEPLOYMENT: Final = re.compile(r"(?i)/openai/deployments/([^/]+)")
"""The path of one of Azure's deployments, whose calls want an `api-version` besides."""
_ENDPOINT: Final = re.compile(r"/(chat/completions|chat|completions|embeddings|messages|responses|models)$")
_FILLED_IN: Final = ": write the value, or fill the file in before that; keys of models belong into the gateway"
_THINKING: Final = ("reasoning_effort", "thinking", "thinking_budget")


def mistakes(data: Any, policy: Policy) -> Iterator[Finding]:
    """Warnings about `policy`, which has no errors; `data` is what its file holds."""
    for path, doubt in _every(data, policy):
        yield Finding((*path, *doubt.path), doubt.code, doubt.message, warning=True)
    yield from _templates(data, ())


def _every(data: Any, policy: Policy) -> Iterator[tuple[Path, Doubt]]:
    spec = policy.spec
    above: set[str] = set()
    for index, name in enumerate(spec.auto):
        if _PATTERN.search(name):
            message = (
                f"only the very name {name!r} asks for routing, `auto` takes no patterns: write every name in full"
            )
            yield ("auto", index), Doubt((), "L321", message)
        elif name.casefold() in above:
            yield ("auto", index), Doubt((), "L330", f"{name!r} stands there twice (case does not count): remove one")
        above.add(name.casefold())
    for key, model in spec.models.items():
        for doubt in _model(key, model):
            yield ("models", key), doubt
        if spec.settings.fallback is None:
            if model.per_try_timeout is not None and not model.fallback:
                message = "no model takes this one's place, so nothing ends the wait for it: give it a `fallback`"
                yield ("models", key), Doubt(("per_try_timeout",), "L332", message)
        elif not _stated(model):
            message = f"model {key!r} has no price, so it takes nobody's place (`settings.fallback`): give `price`, or "
            yield ("models", key), Doubt((), "L326", message + "`price: {input: 0}` when it is free")
    spans = _spans(policy)
    for name, (kind, params) in policy.signals.items():
        path: Path = ("signals", name, kind)
        for doubt in params.doubts():
            yield path, doubt
        if (bounds := params.bounds()) is not None:
            for doubt in idle(_Bounds(*bounds), *spans[name]):
                yield path, doubt
        for doubt in params.unreached(*spans[name]):
            yield path, doubt
        for parameter, named in params.named_models().items():
            if named not in spec.models:
                message = f"never holds: the policy has no model {named!r}{did_you_mean(named, spec.models)}"
                yield path, Doubt((parameter,), "L323", message)
    for name, rule in spec.rules.items():
        for doubt in _tests(rule, policy, spans, ()):
            yield ("rules", name), doubt
    for index, entry in enumerate(spec.decisions):
        for doubt in _decision(entry, policy):
            yield ("decisions", index), doubt
        for doubt in _tests(data["decisions"][index].get("when"), policy, spans, ("when",)):
            yield ("decisions", index), doubt
    yield from _money(policy)
    store = spec.settings.store
    if store is not None and store.timeout >= spec.settings.deadline:
        message = (
            f"a decision has {spec.settings.deadline:g} s (settings.deadline), so this is never waited for: budgets "
        )
        yield (
            ("settings", "store"),
            Doubt(("timeout",), "L335", message + "are Unknown when the store is slow; lower it"),
        )


class _Bounds:
    """Bounds as `signals.bounds.idle` reads them."""

    def __init__(self, at_least: float | None, at_most: float | None) -> None:
        self.at_least, self.at_most = at_least, at_most


def _model(key: str, model: ModelSpec) -> Iterator[Doubt]:
    for path, name in ((("name",), model.name), ((), key if model.name is None else None)):
        if name is not None and "*" in name:
            message = f"{name!r} is sent to the server as it stands, no pattern: write the name that the server knows"
            yield Doubt(path, "L321", message)
    for index, other in enumerate(model.fallback):
        if other in model.fallback[:index]:
            yield Doubt(("fallback", index), "L330", f"{other!r} stands there twice: remove one")
    if model.url is None or TEMPLATE.search(model.url):
        return
    parts = urlsplit(model.url)
    if parts.query or parts.fragment or "@" in parts.netloc:
        what = "a query" if parts.query else "a fragment" if parts.fragment else "credentials"
        message = f"{what} cannot stand here, and `render` and `up` refuse it: give scheme, host, port and path"
        yield Doubt(("url",), "L327", f"{message}; the gateway adds what the server wants beside")
        return
    base = "/v1" if model.base_path is None else model.base_path.rstrip("/")
    start = before(parts.path, base)
    if (found := _DEPLOYMENT.search(start)) is not None:
        message = f"requests would go to {start}{base}/chat/completions, where Azure's deployments have no API: write"
        name = "" if model.name == found[1] else f", `name: {found[1]}`"
        mend = f"`url: {parts.scheme}://{parts.netloc}`, `base_path: /openai/v1`{name}"
        yield Doubt(("url",), "L327", f"{message} {mend}")
        return
    for where, end in (("url", _ENDPOINT.search(start)), ("base_path", _ENDPOINT.search(base))):
        if end is not None:
            message = f"requests would go to {start}{base}{end[0]}: leave {end[0]} out; the path of a call is added"
            yield Doubt((where,), "L327", message)
            return
    steps = start.lower().split("/")
    versioned = _VERSION.fullmatch(steps[-1]) or (steps[-1] == "openai" and _VERSION.fullmatch(steps[-2]))
    if versioned or (start and base.startswith(f"{start}/")):
        message = f"requests would go to {start}{base}/chat/completions: "
        if model.base_path is not None:
            message += f"`base_path` is added to the path of a url; leave {start} out of one of them"
        elif steps[-1] == "v1":
            message += f"`/v1` is added to the path of a url, so write {start[: -len('/v1')] or 'no path'}"
        else:
            message += f"`/v1` is added to the path of a url; take {start} out of it and write `base_path: {start}`"
        yield Doubt(("url",), "L327", message)


def _decision(entry: DecisionSpec, policy: Policy) -> Iterator[Doubt]:
    spec = policy.spec
    if entry.respond is not None:
        if not entry.respond.message.strip():
            yield Doubt(("respond", "message"), "L333", "the client is told nothing: say why, or leave it out")
        if entry.override:
            yield Doubt(("override",), "L332", "does nothing here: a guard (`respond`) looks at every request anyway")
        return
    route = entry.route
    keys = [route] if isinstance(route, str) else []
    if route is not None and not isinstance(route, str):
        keys = list(dict.fromkeys(one if isinstance(one, str) else one.model for one in route.pick))
        yield from _pick(route, policy)
    writer = policy.writers.get(entry.name)
    if writer is not None:
        for doubt in writer.doubts():
            yield Doubt((writer.kind.name, *doubt.path), doubt.code, doubt.message)
    changes = entry.set
    if changes is not None:
        given = [name for name in _THINKING if getattr(changes, name) is not None]
        if given and keys and all(spec.models[key].thinking == "none" for key in keys):
            which = ", ".join(repr(key) for key in keys)
            message = (
                f"does nothing: {which} {'has' if len(keys) == 1 else 'have'} `thinking: none`; remove one of them"
            )
            yield Doubt(("set", given[0]), "L332", message)


def _pick(route: PickSpec, policy: Policy) -> Iterator[Doubt]:
    keys = route.keys
    for index, (key, one) in enumerate(zip(keys, route.pick, strict=True)):
        if key in keys[:index]:
            yield Doubt(("route", "pick", index), "L331", f"{key!r} stands there twice; {route.kind.twice}")
        if not isinstance(one, str) and policy.models[one.model].thinking == "none":
            for name in _THINKING:
                if getattr(one.set, name) is not None:
                    message = f"does nothing: {one.model!r} has `thinking: none`; remove one of them"
                    yield Doubt(("route", "pick", index, "set", name), "L332", message)
    for doubt in route.params.doubts(arms(route, policy.models)):
        yield Doubt(("route", *route.place(doubt.path)), doubt.code, doubt.message)


def _free(model: ModelSpec) -> bool:
    return not (model.price.input or model.price.output)


def _stated(model: ModelSpec) -> bool:
    """Whether the policy says explicitly that the model is free."""
    return bool(model.price.model_fields_set)


def _spans(policy: Policy) -> dict[str, Ends]:
    """The least and the greatest score of each signal and named rule."""
    spans: dict[str, Ends] = {}
    for name in policy.order:
        spans[name] = (0, 1)
        if name in policy.signals:
            kind, params = policy.signals[name]
            given = params.combined(spans)
            if BY_NAME[kind].scored or given != (None, None):
                spans[name] = given
    return spans


def _tests(rule: Any, policy: Policy, spans: Mapping[str, Ends], path: Path) -> Iterator[Doubt]:
    """Tests of scores and labels, wherever they stand in a rule, that all readings or none pass."""
    if isinstance(rule, Mapping) and isinstance(rule.get("signal"), str):
        if rule["signal"] in policy.signals:
            name = rule["signal"]
            yield from idle(_Bounds(rule.get("at_least"), rule.get("at_most")), *spans[name], *path)
            labels = policy.signals[name][1].label_names()
            if labels is not None and isinstance(rule.get("is"), str) and rule["is"] not in labels:
                message = f"never holds: {name!r} has the labels {', '.join(labels)}{did_you_mean(rule['is'], labels)}"
                yield Doubt((*path, "is"), "L323", message)
    elif isinstance(rule, Mapping):
        for key, part in rule.items():
            yield from _tests(part, policy, spans, (*path, key))
    elif isinstance(rule, list):
        for index, part in enumerate(rule):
            yield from _tests(part, policy, spans, (*path, index))


def _money(policy: Policy) -> Iterator[tuple[Path, Doubt]]:
    """Budgets that count nothing, and budgets that a request can avoid by naming nobody who pays."""
    spec = policy.spec
    budgets = {name: params for name, (kind, params) in policy.signals.items() if BY_NAME[kind].spends}
    if not budgets:
        return
    if all(_free(model) for model in spec.models.values()):
        for name in budgets:
            message = "counts nothing and is never spent: no model has a `price`; give prices for a million tokens"
            yield ("signals", name, policy.signals[name][0]), Doubt(("limit",), "L326", message)
    else:
        for key, model in spec.models.items():
            if not _stated(model):
                message = f"model {key!r} has no price, so no budget counts it: give `price`, or `price: {{input: 0}}` "
                yield ("models", key), Doubt((), "L326", message + "when it is free")
    named = [policy.made_of(policy.rules[entry.name]) for entry in spec.decisions]
    used = set().union(*named)
    sure = {name for name in used if BY_NAME[policy.signals[name][0]].sure}
    watched = {header for name in sure for header in policy.signals[name][1].named_headers()}
    for name, params in budgets.items():
        headers = set(params.named_headers()) - watched
        entries = [entry for entry, names in zip(spec.decisions, named, strict=True) if name in names]
        escaped = next((entry for entry in entries if "on_unknown" not in entry.model_fields_set), None)
        if headers and escaped is not None:
            message = (
                f"a request without the header {min(headers)!r} escapes: nobody pays, and decision {escaped.name!r} is "
                "skipped; write `on_unknown: match` there (or `skip`, if that is meant)"
            )
            yield ("signals", name, policy.signals[name][0]), Doubt(("header",), "L325", message)


def _templates(value: Any, path: Path) -> Iterator[Finding]:
    """Templates in keys and values: they are never filled in."""
    if isinstance(value, str):
        if told := unfilled(value):
            yield Finding(path, "L320", told + _FILLED_IN, warning=True)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            if told := unfilled(key):
                yield Finding((*path, key), "L320", told + _FILLED_IN, warning=True, at_key=True)
            if not (len(path) >= 3 and path[0] == "signals" and key in _SEARCHED):
                yield from _templates(part, (*path, key))
    elif isinstance(value, Sequence):
        for index, part in enumerate(value):
            yield from _templates(part, (*path, index))
