"""What the selectors of a policy have learned from grades, as an object: shown, exported, taken in again, forgotten."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from decisions.engine import Engine
from decisions.selectors.selector import Selector
from signals.state.standing import Standing

HOUR_S = 3600.0


def _learners(engine: Engine, decision: str | None) -> Iterator[tuple[str, Selector, Standing]]:
    """The selectors that learn from grades, by their decisions: all, or that of one. Raises ValueError where it has
    none."""
    found = [(name, each, each.standing) for name, each in engine.selectors.items() if each.standing is not None]
    some = [one for one in found if decision in (None, one[0])]
    if decision is not None and not some:
        names = ", ".join(name for name, _, _ in found) or "none"
        raise ValueError(f"no decision {decision!r} whose choice learns from grades; those that do: {names}")
    yield from some


async def learned(engine: Engine, decision: str | None) -> dict[str, Any]:
    """The sums of each decision's selector, as they weigh now, with what tells whether another may take them in:
    `by`, `size`, and the half-life in hours. Raises ValueError, Unavailable."""
    found = {}
    for name, selector, standing in _learners(engine, decision):
        await standing.share()
        found[name] = {
            "by": selector.grades_by,
            "size": standing.size,
            "half_life": standing.half_life / HOUR_S,
            "sums": standing.all(),
        }
    return {"decisions": found}


def together(states: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The state of processes that learn each for themselves, of one policy: sums add up."""
    decisions: dict[str, Any] = {}
    for state in states:
        for name, one in state["decisions"].items():
            sums = decisions.setdefault(name, {**one, "sums": {}})["sums"]
            for key, some in one["sums"].items():
                sums[key] = [a + b for a, b in zip(sums.get(key, [0.0] * len(some)), some, strict=True)]
    return {"decisions": decisions}


def summed_up(engine: Engine, state: dict[str, Any]) -> dict[str, Any]:
    """`state`, and in it the `models` of each decision with what its sums say of them."""
    for name, selector, _ in _learners(engine, None):
        if (one := state["decisions"].get(name)) is not None:
            told = selector.summary(one["sums"])
            one["models"] = {key: {"grades": count, "quality": quality} for key, (count, quality) in told.items()}
    return state


async def take_in(engine: Engine, state: Any) -> int:
    """Add what `learned` has given to what is known; how many candidates' sums there were. Raises ValueError where it
    does not fit, and then nothing was added; Unavailable."""
    decisions = state.get("decisions") if isinstance(state, dict) else None
    if not isinstance(decisions, dict) or not decisions:
        raise ValueError("what was exported is needed: {decisions: {name: {by, size, half_life, sums}}}")
    fits: list[tuple[Selector, dict[str, list[float]]]] = []
    for name, one in decisions.items():
        ((_, selector, standing),) = _learners(engine, name)
        by, size, sums = (one.get("by"), one.get("size"), one.get("sums")) if isinstance(one, dict) else (None,) * 3
        if (by, size) != (selector.grades_by, standing.size) or not isinstance(sums, dict):
            raise ValueError(f"decision {name!r}: these are not the sums of its choice (`by: {selector.grades_by}`)")
        for key, some in sums.items():
            if not isinstance(some, list) or not all(type(each) in (int, float) for each in some):
                raise ValueError(f"decision {name!r}, {key!r}: {standing.size} numbers are needed")
            standing.check(some)
        fits.append((selector, sums))
    for selector, sums in fits:
        await selector.take_in(sums)
    return sum(len(sums) for _, sums in fits)


async def forget(engine: Engine, decision: str | None) -> list[str]:
    """Let selectors begin anew: of which decisions. Raises ValueError, Unavailable."""
    found = list(_learners(engine, decision))
    for _, selector, _ in found:
        await selector.forget()
    return [name for name, _, _ in found]
