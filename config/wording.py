"""What pydantic finds wrong with a value, in words that say what is needed there, without the names of our classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Final, NamedTuple

from pydantic import BaseModel

from config import advice
from config.document import Path
from config.problem import did_you_mean
from signals.bounds import SAID

_MAPPING: Final = ("dict_type", "model_type", "model_attributes_type", "is_instance_of")
_NUMBERS: Final = {"int_type": "a whole number is needed", "float_type": "a number is needed"}
_RANGES: Final = (*_NUMBERS, "int_from_float", "greater_than", "greater_than_equal", "less_than", "less_than_equal")
_NEEDED: Final = {
    **_NUMBERS,
    "string_type": "text is needed",
    "bool_type": "true or false is needed",
    "string_too_short": "text is needed, and here is none",
}


class Said(NamedTuple):
    """One problem: where it is below the value that was checked, its code, and what is said. `at_key`: of the key."""

    place: Path
    code: str
    message: str
    at_key: bool = False


def said(model: type[BaseModel], data: Any, errors: Sequence[tuple[Path, Any]]) -> Iterator[Said]:
    """What is wrong with `data`, which is no `model`: `errors` are pydantic's, each with its place in `data`.

    Where one of several things may stand, an error comes for each: they are told together, and not at all where one of
    the things was begun and is wrong further below.
    """
    begun = {place[:length] for place, _ in errors for length in range(len(place))}
    together: dict[Path, list[tuple[str, str]]] = {}
    for place, error in errors:
        kind: str = error["type"]
        value = _at(data, place)
        if kind == "extra_forbidden":
            known = _properties(_nodes(model, place[:-1]))
            yield Said(place, "P101", f"unknown key {place[-1]!r}{did_you_mean(str(place[-1]), known)}", at_key=True)
        elif kind == "missing":
            yield Said(place, "P102", f"missing key {error['loc'][-1]!r}", at_key=True)
        elif kind.startswith("P1"):
            yield Said(place, kind, error["msg"] + _hint(value), at_key=error["loc"][-1] == "[key]")
        elif kind == "value_error":
            yield Said(place, "P104", f"{error['ctx']['error']}{_hint(value)}")
        elif place not in begun:
            code = "P103" if kind.endswith(("_type", "_parsing")) or kind == "is_instance_of" else "P104"
            together.setdefault(place, []).append((code, _plainly(_nodes(model, place), error, value)))
    for place, found in together.items():
        name = next((part for part in reversed(place) if isinstance(part, str)), None)
        message = ", or ".join(dict.fromkeys(words for _, words in found)) + _hint(_at(data, place))
        yield Said(place, max(code for code, _ in found), message if name is None else f"{name}: {message}")


def _hint(value: object) -> str:
    told = advice.unfilled(value)
    return f"; {told}" if told else ""


def _at(data: Any, place: Path) -> Any:
    for part in place:
        data = data[part]
    return data


def _plainly(nodes: Sequence[Mapping[str, Any]], error: Any, value: Any) -> str:
    """What is needed where `nodes` are the schemas."""
    kind: str = error["type"]
    message: str = error["msg"]
    otherwise = _NEEDED.get(kind, message[0].lower() + message[1:])
    if kind in _MAPPING:
        keys = _properties(nodes)
        return f"a mapping is needed, with {', '.join(keys[:8])}" if keys else "a mapping is needed, {key: value}"
    if kind == "string_pattern_mismatch":
        return next((node[SAID] for node in nodes if SAID in node), "it is not spelled as it must be")
    if kind in _RANGES:
        range = advice.Range.of(nodes)
        return otherwise if range is None else advice.number(value, range)
    if kind == "literal_error":
        words = [str(word) for node in nodes for word in node.get("enum", (node["const"],) if "const" in node else ())]
        quoted = ", without quotes" if value in words else ""
        return advice.one_of(words, value) + quoted if words else otherwise
    if kind == "string_type" and isinstance(value, list) and "pick" in _properties(nodes):
        return f"{otherwise}; a choice of several is written {advice.flow({'pick': value})}"
    if kind in ("list_type", "tuple_type"):
        alone = isinstance(value, str | int | float) and all(node.get("minItems", 0) < 2 for node in nodes)
        return f"a list is needed: write [{value}]" if alone else "a list is needed"
    if kind == "too_short":
        least = error["ctx"]["min_length"]
        return f"at least {'one entry is' if least == 1 else f'{least} entries are'} needed"
    return otherwise


def _properties(nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys that one of these JSON Schemas allows."""
    return [key for node in nodes for key in node.get("properties", ())]


@cache
def _schema(model: type[BaseModel]) -> Mapping[str, Any]:
    return model.model_json_schema(by_alias=True)


def _nodes(model: type[BaseModel], path: Path) -> list[Mapping[str, Any]]:
    """The schemas of what stands at `path`."""
    schema = _schema(model)
    nodes: list[Mapping[str, Any]] = [schema]
    for part in (*path, None):
        opened: list[Mapping[str, Any]] = []
        while nodes:
            node = nodes.pop()
            if "$ref" in node:
                nodes.append(schema["$defs"][node["$ref"].rsplit("/", 1)[1]])
                continue
            nodes += node.get("anyOf", ()) or node.get("oneOf", ())
            opened.append(node)
        if part is None:
            return opened
        for node in opened:
            below = node.get("items") if isinstance(part, int) else node.get("properties", {}).get(part)
            if below is None and isinstance(part, str) and isinstance(node.get("additionalProperties"), dict):
                below = node["additionalProperties"]
            if isinstance(below, dict):
                nodes.append(below)
    return []
