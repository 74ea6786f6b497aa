"""Which model a name means: aliases that mean two things, or the same twice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from config.document import Path


def clashes(models: Mapping[str, Any], auto: Any, typed: Mapping[Path, str]) -> Iterator[tuple[Path, str]]:
    """The place and the message of every alias that is taken.

    `models` and `auto` are as the policy has them, `typed` its plain scalars as they were typed.
    """
    asking = auto if isinstance(auto, list) else ["auto", "pointsman"]
    taken = {name.casefold(): "asks for routing (`auto`)" for name in asking if isinstance(name, str)}
    meant: dict[str, str] = {}
    for key, entry in models.items():
        meant.setdefault(key, f"is model {key!r}")
        if isinstance(entry, dict) and isinstance(entry.get("name"), str):
            meant.setdefault(entry["name"], f"is the served name of model {key!r}")
    for key, entry in models.items():
        aliases = entry.get("aliases") if isinstance(entry, dict) else None
        for index, alias in enumerate(aliases if isinstance(aliases, list) else []):
            place: Path = ("models", key, "aliases", index)
            alias = typed.get(place, alias)
            if not isinstance(alias, str):
                continue
            means = meant.get(alias) or taken.get(alias.casefold())
            if means is not None:
                yield place, f"alias {alias!r} of model {key!r} {means} already"
            meant.setdefault(alias, f"is an alias of model {key!r}")
