"""Which model a name means: aliases that mean two things, or the same twice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from config.document import Path


def clashes(models: Mapping[str, Any], auto: Any) -> Iterator[tuple[Path, str]]:
    """The place and the message of every alias that is taken; `models` and `auto` are those of the policy."""
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
            if not isinstance(alias, str):
                continue
            means = meant.get(alias) or taken.get(alias.casefold())
            if means is not None:
                yield ("models", key, "aliases", index), f"alias {alias!r} of model {key!r} {means} already"
            meant.setdefault(alias, f"is an alias of model {key!r}")
