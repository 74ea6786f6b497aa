"""Another router's configuration as it is read: plain data that knows its lines, and what of it was taken."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import urlsplit

MOST: Final = 200_000
"""Values of one file that are read."""
DEEPEST: Final = 100


_NAMES: Final = ("name", "model", "model_name", "type")
"""Keys by which one mapping of a list is told from the others."""
_TITLES: Final = frozenset(
    ["name", "model", "model_name", "lora_name", "provider_model_id", "default_model", "destination", "recipe"]
)
"""Keys at which names stand, of models and signals."""
_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def titled(text: str) -> str:
    """`text` as a name that a policy can have: without control characters, spaces at its ends and what is too long."""
    return _CONTROLS.sub(" ", text).strip()[:180].strip()


def _beyond(value: object) -> bool:
    """Whether this is a number with which nothing can be reckoned."""
    return isinstance(value, int | float) and not abs(value) <= sys.float_info.max


class Unimportable(ValueError):
    """The source cannot be read as a configuration; the text says where and why."""


class Lined(dict[str, Any]):
    """A mapping that knows the line it begins at, and that of each of its keys, from 1."""

    line = 1

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[str, int] = {}


class Given:
    """One mapping of the source, and where it stands. Whatever is asked for counts as taken; `rest` is what nobody
    asked for, so that no key is lost without a word."""

    def __init__(self, data: Lined, place: str, file: str) -> None:
        self.data, self.place, self._file = data, place, file
        self._taken: set[str] = set()
        self._inner: dict[str, list[Given]] = {}

    def __bool__(self) -> bool:
        return bool(self.data)

    def __contains__(self, key: str) -> bool:
        return self.data.get(key) is not None

    def line(self, key: str = "") -> int:
        return self.data.lines.get(key, self.data.line)

    def at(self, key: str) -> str:
        """Where `key` stands, as a path."""
        return f"{self.place}.{key}" if self.place and key else self.place or key

    def skip(self, *keys: str) -> None:
        """Take keys that decide nothing."""
        self._taken.update(keys)

    def rest(self) -> Iterator[str]:
        """The keys that nobody asked for, in their order, but for empty ones."""
        for key, value in self.data.items():
            if key not in self._taken and value not in (None, "", [], {}, False):
                yield key

    def text(self, key: str, default: str = "") -> str:
        """The text at `key`; numbers and Booleans as they are written in JSON."""
        value = self._of(key, "text", str, int, float, bool)
        if value is None:
            return default
        if key in _TITLES:
            return titled(str(value))
        return str(value).lower() if isinstance(value, bool) else str(value)

    def number(self, key: str) -> float | None:
        value = self._of(key, "a number", int, float, str)
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                raise self._wrong(key, "a number") from None
            if _beyond(value):
                raise self._wrong(key, "a finite number")
        return value if value is None or isinstance(value, int) else float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self._of(key, "true or false", bool)
        return default if value is None else bool(value)

    def texts(self, key: str) -> list[str]:
        """A list of texts; a single text is a list of one."""
        value = self._of(key, "a list of texts", list, str)
        found = [value] if isinstance(value, str) else value or []
        if not all(isinstance(one, str | int | float) for one in found):
            raise self._wrong(key, "a list of texts")
        return [str(one) for one in found]

    def child(self, key: str) -> Given:
        """The mapping at `key`, an empty one where there is none."""
        value = self._of(key, "a mapping", Lined)
        if key not in self._inner:
            self._inner[key] = [Given(value if value is not None else Lined(), self.at(key), self._file)]
        return self._inner[key][0]

    def children(self, key: str) -> list[Given]:
        """The mappings in the list at `key`, each with its own `name` in its place where it has one."""
        mappings = self._mappings(key)
        if key not in self._inner:
            named = [next((one[key] for key in _NAMES if one.get(key)), at) for at, one in enumerate(mappings)]
            places = [f"{self.at(key)}[{name}]" for name in named]
            self._inner[key] = [Given(one, at, self._file) for one, at in zip(mappings, places, strict=True)]
        return self._inner[key]

    def named(self, key: str) -> list[tuple[str, Given]]:
        """The mappings in the mapping at `key`, by their names."""
        inner = self.child(key)
        return [(name, inner.child(name)) for name in inner.data]

    def server(self, key: str, url: str) -> dict[str, str]:
        """`url` and `base_path` of a model for the address of a server, which stands at `key`; without the user and
        the password in it (`Ported.server` says so)."""
        self._taken.add(key)
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
        except ValueError:
            raise self._wrong(key, "an address") from None
        path = parts.path.rstrip("/")
        found = {"url": f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"}
        return found if path in ("", "/v1") else found | {"base_path": path}

    def _mappings(self, key: str) -> list[Lined]:
        found = self._of(key, "a list of mappings", list) or []
        if not all(isinstance(one, Lined) for one in found):
            raise self._wrong(key, "a list of mappings")
        return list(found)

    def _of(self, key: str, what: str, *types: type) -> Any:
        self._taken.add(key)
        value = self.data.get(key)
        if value is not None and (not isinstance(value, types) or (isinstance(value, bool) and bool not in types)):
            raise self._wrong(key, what)
        return value

    def _wrong(self, key: str, what: str) -> Unimportable:
        return Unimportable(f"{self._file}:{self.line(key)}: {self.at(key)}: {what} is needed")


def read(source: bytes, file: str) -> Given:
    """The configuration in `source`. Unimportable where it is no YAML mapping, or none that anybody would write."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(source)
    try:
        node = loader.get_single_node()
        data = None if node is None else _Maker(loader, file).made(node, 0)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        if isinstance(error, Unimportable):
            raise
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark is not None else file
        raise Unimportable(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    finally:
        loader.dispose()
    if not isinstance(data, Lined):
        raise Unimportable(f"{file}: a configuration is a mapping")
    return Given(data, "", file)


class _Maker:
    """Makes plain data from the nodes of one document. What an alias stands for is made once."""

    def __init__(self, loader: Any, file: str) -> None:
        self._loader, self._file = loader, file
        self._left = MOST
        self._made: dict[int, Any] = {}

    def made(self, node: Any, depth: int) -> Any:
        if id(node) in self._made:
            return self._made[id(node)]
        self._left -= 1
        if self._left < 0 or depth > DEEPEST:
            line = node.start_mark.line + 1
            raise Unimportable(f"{self._file}:{line}: more than {MOST} values, or more than {DEEPEST} levels deep")
        kind = type(node).__name__
        if kind == "MappingNode":
            value: Any = self._mapping(node, depth)
        elif kind == "SequenceNode":
            value = [self.made(one, depth + 1) for one in node.value]
        else:
            value = self._loader.construct_object(node)
            if not isinstance(value, str | int | float | bool | None) or _beyond(value):
                value = node.value  # a date, say: the text that was typed
        self._made[id(node)] = value
        return value

    def _mapping(self, node: Any, depth: int) -> Lined:
        self._loader.flatten_mapping(node)  # merge keys
        found = Lined()
        found.line = node.start_mark.line + 1
        for key, value in node.value:
            name = str(self.made(key, depth + 1))
            found[name] = self.made(value, depth + 1)
            found.lines[name] = key.start_mark.line + 1
        return found
