"""YAML with positions: plain data, and where in the file each key and each value stands.

Scalars follow the YAML 1.2 core schema (section 10.3.2): `true` and `false` are the only booleans, so `no` and `on`
are text, and `010` is never octal. Duplicate keys, aliases, merge keys and tags are errors, so that everything stands
in a policy exactly once, as it is meant.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import yaml

from config.problem import PolicyError, Problem

Path = tuple[str | int, ...]

_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_NULL = frozenset(["", "~", "null", "Null", "NULL"])
_INT = re.compile(r"[-+]?[0-9]+")
_BASED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")

MAX_DEPTH = 40
DEEPEST = 1_000
"""Levels that are read at all. What is wrong beside a value deeper than `MAX_DEPTH` is still reported."""
MAX_NODES = 200_000
MAX_ERRORS = 100


@dataclass(slots=True)
class Document:
    """One parsed file.

    `values` and `keys` map a path to its (line, column), both from 1; `typed` holds plain scalars as they were typed.
    """

    file: str
    data: Any = None
    problems: list[Problem] = field(default_factory=list)
    values: dict[Path, tuple[int, int]] = field(default_factory=dict)
    keys: dict[Path, tuple[int, int]] = field(default_factory=dict)
    typed: dict[Path, str] = field(default_factory=dict)
    _errors: int = field(default=0, repr=False)

    def report(self, path: Path, code: str, message: str, *, at_key: bool = False, warning: bool = False) -> None:
        """Add a problem at `path`, or at its nearest ancestor that stands in the file. PolicyError: see `add`."""
        places = self.keys if at_key else self.values
        while path and path not in places and path not in self.values:
            path = path[:-1]
        line, column = places.get(path) or self.values.get(path, (1, 1))
        self.add(Problem(self.file, line, column, code, "warning" if warning else "error", message))

    def add(self, problem: Problem) -> None:
        """Add a problem. Raises PolicyError, with all problems so far, when there are more than anybody reads."""
        self.problems.append(problem)
        self._errors += problem.severity == "error"
        if self._errors >= MAX_ERRORS:
            message = f"over {MAX_ERRORS - 1} errors: what else is wrong is not looked for"
            last = Problem(self.file, problem.line, problem.column, "Y004", "error", message)
            raise PolicyError(sorted([*self.problems, last]))


def parse(text: str, file: str) -> Document:
    """Parse `text`. Never raises: what is wrong is in `problems`, and `data` is what could still be understood."""
    document = Document(file)
    # The C loader is quicker and reports the same positions; some builds of PyYAML come without it.
    loader_class: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        events = _events(yaml.parse(text, Loader=loader_class), document)
    except yaml.MarkedYAMLError as error:
        document.problems.append(not_yaml(error, text, file))
        return document
    except yaml.reader.ReaderError:
        # The C loader counts bytes and the Python one characters, so the place is looked up here.
        bad = yaml.reader.Reader.NON_PRINTABLE.search(text)
        at = bad.start() if bad else 0
        message = f"not valid YAML: the character U+{ord(text[at]):04X} is not allowed"
        line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
        document.problems.append(Problem(file, line, column, "Y001", "error", message))
        return document
    if document.problems:
        return document
    try:
        _Builder(document, events).build()
    except PolicyError as error:
        document.data, document.problems = None, error.problems
    return document


def _events(parsed: Iterator[Any], document: Document) -> list[Any]:
    """The events of a file: not many more than may be, since three million of them are a gigabyte, and none after
    `DEEPEST`, which is reported. libyaml's time grows with the square of the depth."""
    events = []
    depth = 0
    for event in islice(parsed, MAX_NODES + 3):
        events.append(event)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEEPEST:
                mark: Any = event.start_mark
                message = f"nested deeper than {DEEPEST} levels: what follows is not read"
                document.problems.append(
                    Problem(document.file, mark.line + 1, mark.column + 1, "Y003", "error", message)
                )
                return []
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
    return events


def not_yaml(error: yaml.MarkedYAMLError, text: str, file: str) -> Problem:
    """What is wrong with `text`, of which PyYAML says `error`."""
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    what = " ".join(part for part in (error.context, error.problem) if part)
    lines = text.split("\n")[line - 1 : line]
    tab = lines[0].find("\t") if lines else -1
    if tab >= 0 and (tab == column - 1 or not lines[0][:tab].strip()):
        column = tab + 1
        what = "a tab stands here; YAML is indented with spaces only, so write spaces in its place"
    return Problem(file, line, column, "Y001", "error", f"not valid YAML: {what}")


class _Builder:
    """Turns the event stream into data. Events, not nodes: they cost no recursion in the parser and carry marks."""

    def __init__(self, document: Document, events: list[Any]) -> None:
        self._document = document
        self._events = [e for e in events if not isinstance(e, (yaml.StreamStartEvent, yaml.StreamEndEvent))]
        self._next = 0

    def build(self) -> None:
        documents = sum(isinstance(event, yaml.DocumentStartEvent) for event in self._events)
        if documents == 0:
            self._document.values[()] = (1, 1)
            self._document.report((), "P102", "the file is empty: a policy needs at least `models` and `default`")
            return
        if len(self._events) > MAX_NODES:
            self._document.report((), "Y003", f"the file is too large: over {MAX_NODES} YAML nodes")
            return
        self._next = 1
        self._document.data = self._value((), 0)
        if documents > 1:
            mark = [event for event in self._events if isinstance(event, yaml.DocumentStartEvent)][1].start_mark
            self._problem(mark, "Y003", "a second YAML document: a policy is one document")

    def _problem(self, mark: Any, code: str, message: str) -> None:
        problem = Problem(self._document.file, mark.line + 1, mark.column + 1, code, "error", message)
        self._document.add(problem)

    def _value(self, path: Path, depth: int) -> Any:
        event = self._events[self._next]
        self._next += 1
        mark = event.start_mark
        self._document.values[path] = (mark.line + 1, mark.column + 1)
        if isinstance(event, yaml.AliasEvent):
            self._problem(mark, "Y003", f"alias *{event.anchor}: aliases are not supported, write the value out")
            return None
        if event.anchor:
            self._problem(mark, "Y003", f"anchor &{event.anchor}: anchors are not supported, write the value out")
        if event.tag not in (None, "!", "tag:yaml.org,2002:str"):
            self._problem(mark, "Y003", f"tag {event.tag}: tags are not supported")
        if depth > MAX_DEPTH:
            self._problem(mark, "Y003", f"nested deeper than {MAX_DEPTH} levels")
            self._skip(event)
            return None
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event, path)
        if isinstance(event, yaml.SequenceStartEvent):
            items: list[Any] = []
            while not isinstance(self._events[self._next], yaml.SequenceEndEvent):
                items.append(self._value((*path, len(items)), depth + 1))
            self._next += 1
            return items
        return self._mapping(path, depth)

    def _mapping(self, path: Path, depth: int) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        while not isinstance(self._events[self._next], yaml.MappingEndEvent):
            event = self._events[self._next]
            mark = event.start_mark
            if not isinstance(event, yaml.ScalarEvent):
                self._problem(mark, "Y003", "a key must be plain text")
                self._next += 1
                self._skip(event)
                self._value((*path, "?"), depth + 1)
                continue
            self._next += 1
            key = event.value
            if key == "<<" and event.implicit[0]:
                self._problem(mark, "Y003", "merge key <<: not supported, write the keys out")
            if key in mapping:
                first = self._document.keys[(*path, key)]
                self._problem(mark, "Y002", f"duplicate key {key!r}: first given on line {first[0]}")
                self._discard((*path, key), depth)
                continue
            self._document.keys[(*path, key)] = (mark.line + 1, mark.column + 1)
            mapping[key] = self._value((*path, key), depth + 1)
        self._next += 1
        return mapping

    def _discard(self, path: Path, depth: int) -> None:
        """Read a value without letting its positions replace those of the first one."""
        document = self._document
        self._document = Document(document.file, problems=document.problems, _errors=document._errors)
        self._value(path, depth + 1)
        document._errors = self._document._errors
        self._document = document

    def _skip(self, event: Any) -> None:
        """Skip the rest of a collection whose start was just read."""
        level = int(isinstance(event, yaml.CollectionStartEvent))
        while level:
            event = self._events[self._next]
            self._next += 1
            level += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)

    def _scalar(self, event: Any, path: Path) -> Any:
        text: str = event.value
        if not event.implicit[0]:  # quoted, or a block scalar: text
            return text
        self._document.typed[path] = text
        if text in _BOOL:
            return _BOOL[text]
        if text in _NULL:
            return None
        if _INT.fullmatch(text):
            return int(text) if len(text) <= 4000 else text
        if _BASED.fullmatch(text):
            return int(text, 0) if len(text) <= 3000 else text  # Python writes no number of over 4,300 digits
        if _FLOAT.fullmatch(text):
            return float(text)
        if _SPECIAL.fullmatch(text):
            return float(text.replace(".", "").lower())
        return text
