"""Builds the engine from a policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from config.clauses import reference, sessions
from config.load import Policy
from config.problem import PolicyError, Problem
from config.resources import Resources
from decisions.catalogue import Catalogue
from decisions.engine import CacheSettings, Engine, Opening, Ruleset, Settings
from decisions.named import RuleSignal
from decisions.selectors.pinned import built
from decisions.selectors.selector import Pick, Selector
from signals.neural.service import Limits
from signals.registry import BY_NAME
from signals.services import USUAL_STANDING, Services
from signals.signal import Shared, Signal
from signals.state.store import Store

_METER: Final = {"auto": None, "on": True, "off": False}


def build(policy: Policy, resources: Resources | None = None) -> Engine:
    """The engine of `policy`, which shares `resources` with others.

    Raises `PolicyError` when something that it needs cannot be had (a model file, a secret).
    """
    spec = policy.spec
    resources = resources or Resources()
    store, shelf = _stores(policy, resources)
    shared = Shared(_services(policy, resources, store))
    try:
        signals = _signals(policy, shared)
        selectors = _selectors(policy, shared)
        if any(clause.cache is not None and clause.cache.similar is not None for clause in policy.clauses):
            from signals.neural.kinds import shipped  # runs a model, which few policies need

            shipped(shared)
        _freeze(policy, shared)
    except PolicyError:
        shared.close()
        raise
    _check_meter(policy, shared, selectors)
    return Engine(
        policy.digest,
        Catalogue(policy.models, spec.default, spec.auto, spec.unknown_models == "pass"),
        Ruleset(policy.clauses, signals, selectors, policy.watching, spec.strategy == "best"),
        _settings(policy, shelf),
        shared,
    )


def _stores(policy: Policy, resources: Resources) -> tuple[Store, Store | None]:
    """What replicas share, and where answers are kept if not in memory. Raises `PolicyError`."""
    settings = policy.spec.settings
    try:
        store = resources.store(settings.store, policy.folder)
        if settings.cache.where != "store":
            return store, None
        return store, resources.store(settings.store, policy.folder, answers=True)
    except ValueError as error:
        line, column = policy.places["settings", "store"]
        raise PolicyError([Problem(policy.file, line, column, "P108", "error", f"store: {error}")]) from None


def _services(policy: Policy, resources: Resources, store: Store) -> Services:
    settings = policy.spec.settings
    quality = policy.models[policy.spec.default].quality
    return Services(
        folder=policy.folder,
        device=settings.device,
        readers=settings.readers,
        standing=USUAL_STANDING if quality is None else quality,
        threads=settings.inference.threads,
        max_input_tokens=settings.max_input_tokens,
        limits=Limits(settings.inference.queue, settings.inference.batch, settings.inference.hang),
        inference=resources.inference,
        store=store,
        loads=resources.loads,
        sessions=sessions(policy.spec),
        tenant=_tenant(policy),
        standings=resources.standings,
    )


def _tenant(policy: Policy) -> str | None:
    """The header that says who asks, in lower case."""
    tenant = policy.spec.settings.tenant
    return None if tenant is None else tenant.header.lower()


def _settings(policy: Policy, shelf: Store | None) -> Settings:
    settings = policy.spec.settings
    return Settings(
        settings.deadline,
        settings.max_body,
        settings.response_headers,
        settings.fail_open,
        settings.unread == "pass",
        settings.max_values,
        settings.max_open_bodies,
        settings.body_timeout,
        tuple(Opening(path.match, path.to or policy.spec.default) for path in policy.spec.paths),
        _METER[settings.meter],
        reference(policy.spec, policy.models),
        _tenant(policy),
        CacheSettings(settings.cache.memory, settings.cache.answer, shelf),
    )


def _check_meter(policy: Policy, shared: Shared, selectors: Mapping[str, Selector]) -> None:
    """Raises `PolicyError`, and closes `shared`, where the policy counts what answers take and says not to."""
    counts = "a budget" if shared.metered else "a cache" if any(clause.cache for clause in policy.clauses) else None
    if counts is None and any(selector.watches_answers for selector in selectors.values()):
        counts = "a choice of models"
    if policy.spec.settings.meter == "off" and counts is not None:
        shared.close()
        line, column = policy.places["settings", "meter"]
        message = f"settings.meter: off, and yet {counts} looks at what answers take; leave one of them out"
        raise PolicyError([Problem(policy.file, line, column, "P104", "error", message)])


def unservable(policy: Policy) -> list[Problem]:
    """What keeps the writers of `policy` from answering, as far as the policy and the files beside it tell.

    It is no part of `build`, since a policy can be explained and rendered where those files are not.
    """
    names = {key: model.name for key, model in policy.models.items()}
    problems: list[Problem] = []
    for number, entry in enumerate(policy.spec.decisions):
        writer = policy.writers.get(entry.name)
        if writer is None:
            continue
        try:
            writer.check(policy.folder, names)
        except (OSError, ValueError) as error:
            line, column = policy.places["decisions", number, writer.kind.name]
            message = f"decision {entry.name!r} ({writer.kind.name}): {error}"
            problems.append(Problem(policy.file, line, column, "P108", "error", message))
    return problems


def _signals(policy: Policy, shared: Shared) -> dict[str, Signal]:
    signals: dict[str, Signal] = {}
    problems: list[Problem] = []
    for name in policy.order:
        if name in policy.named:
            if not problems:  # else what it names may be missing
                signals[name] = RuleSignal(name, policy.named[name], signals, shared)
            continue
        kind, params = policy.signals[name]
        try:
            signal = BY_NAME[kind](name, params, shared)
        except (OSError, ValueError) as error:
            line, column = policy.places["signals", name]
            message = f"signal {name!r} ({kind}): {error}"
            problems.append(Problem(policy.file, line, column, "P108", "error", message))
            continue
        signal.inputs = params.inputs()
        # Whoever combines signals costs what the dearest of them costs; the policy lists those first.
        signal.cost = max([signal.cost, *(signals[source].cost for source in signal.inputs if source in signals)])
        signals[name] = signal
    if problems:
        raise PolicyError(problems)
    return signals


def _selectors(policy: Policy, shared: Shared) -> dict[str, Selector]:
    selectors: dict[str, Selector] = {}
    problems: list[Problem] = []
    for clause in policy.clauses:
        pick = clause.target
        if not isinstance(pick, Pick):
            continue
        try:
            selectors[clause.name] = built(pick, shared)
        except (OSError, ValueError) as error:
            number = next(at for at, entry in enumerate(policy.spec.decisions) if entry.name == clause.name)
            line, column = policy.places["decisions", number, "route"]
            message = f"the choice of decision {clause.name!r} ({pick.kind.name}): {error}"
            problems.append(Problem(policy.file, line, column, "P108", "error", message))
    if problems:
        raise PolicyError(problems)
    return selectors


def _freeze(policy: Policy, shared: Shared) -> None:
    try:
        shared.freeze()
    except ValueError as error:  # what the signals share cannot be built: the regular expressions together, say
        raise PolicyError([Problem(policy.file, 1, 1, "P108", "error", str(error))]) from None
