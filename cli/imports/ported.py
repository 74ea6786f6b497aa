"""A policy while it is written from another router's configuration: its parts, what could not be said, and its text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from cli.imports.source import Given

Kind = Literal["loss", "note", "contradiction"]

IMPORTED: Final = "Imported from"
"""How the first comment of a policy begins that was imported."""
_WIDTH: Final = 118
_PLAIN: Final = re.compile(r"(?:[A-Za-z_]|\d+[smh]\b)(?:[A-Za-z0-9_./@+-]|:(?=[^\s,\[\]{}]))*(?: [A-Za-z0-9_./@+-]+)*")
_WORDS: Final = frozenset(["true", "false", "null", "True", "False", "Null", "TRUE", "FALSE", "NULL"])
_OWN: Final = re.compile(r"(?:recipes\[[^\]]*\]\.)?[^\[]*\[[^\]]*\]\.?")
"""The beginning of a place that says of which entry it is."""
_UNPRINTABLE: Final = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True, slots=True)
class Told:
    """What is to be known of one place of the source.

    `loss`: the policy does not do this. `note`: it does, but not to the letter. `contradiction`: the source says what
    can never be. `place` is the path in the source, `line` its line.
    """

    kind: Kind
    place: str
    line: int
    message: str


@dataclass(slots=True)
class Entry:
    """One model, signal, rule or decision of the policy, with the comments that stand above it. Without a value there
    are only the comments: it is left out."""

    value: Any
    comments: list[str] = field(default_factory=list)


@dataclass
class Ported:
    """The policy and the report. `of` says where it comes from, for the first line; `folder` is that of the source,
    None where it has none. `files` are those that the policy names, by the names under which they lie beside it."""

    of: str
    folder: Path | None = None
    files: dict[str, str] = field(default_factory=dict)
    head: dict[str, Any] = field(default_factory=dict)
    models: dict[str, Entry] = field(default_factory=dict)
    signals: dict[str, Entry] = field(default_factory=dict)
    rules: dict[str, Entry] = field(default_factory=dict)
    decisions: list[Entry] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    comments: list[str] = field(default_factory=list)
    """What is to be said of the whole."""
    told: list[Told] = field(default_factory=list)

    @property
    def losses(self) -> int:
        return sum(told.kind == "loss" for told in self.told)

    def tell(self, kind: Kind, where: tuple[Given, str], message: str, entry: Entry | None = None) -> None:
        """Say something of a key of the source (`''`: of the whole mapping), in the report and in the policy, above
        `entry` or at the top."""
        given, key = where
        one = Told(kind, given.at(key), given.line(key), message)
        if one not in self.told:
            self.told.append(one)
        given.skip(key)
        place = one.place if entry is None else _OWN.sub("", one.place, count=1)
        comment = f"{kind}: {place}: {message}" if place else f"{kind}: {message}"
        comments = self.comments if entry is None else entry.comments
        if comment not in comments:
            comments.append(comment)

    def server(self, where: tuple[Given, str], url: str, entry: Entry) -> None:
        """Put where a model's server is, which stands at a key of the source, into its entry."""
        given, key = where
        entry.value |= given.server(key, url)
        if "@" in url.partition("?")[0]:
            self.tell("loss", where, "its user and password have no place here: use `credential`", entry)

    def leftover(self, given: Given, entry: Entry | None = None, message: str = "nothing here says this") -> None:
        """Say that what nobody took of `given` is lost."""
        for key in given.rest():
            self.tell("loss", (given, key), message, entry)

    def report(self) -> str:
        """The report as JSON."""
        counts = {kind: sum(told.kind == kind for told in self.told) for kind in ("loss", "contradiction", "note")}
        whole = {"source": self.of, **counts, "told": [asdict(told) for told in self.told]}
        return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"

    def text(self) -> str:
        """The policy. The same source gives the same bytes."""
        return "\n".join(line for line, _ in self.lines()) + "\n"

    def lines(self) -> Iterator[tuple[str, int | None]]:
        """The lines of the policy, each with the number of the decision that it belongs to."""
        first = [f"{IMPORTED} {self.of} by `pointsman import`. Where the policy differs from it, a comment says how."]
        yield from ((line, None) for text in [*first, *self.comments] for line in _comment(text, 0))
        yield from ((line, None) for line in ["version: 1", *block(self.head, 0)])
        for name in ("models", "signals", "rules"):
            entries: dict[str, Entry] = getattr(self, name)
            if not entries:
                continue
            left = any(entry.value is not None for entry in entries.values())
            yield from (("", None), (f"{name}:" if left else f"{name}: {{}}", None))
            for key, entry in entries.items():
                for comment in entry.comments:
                    yield from ((line, None) for line in _comment(comment, 2))
                if entry.value is not None:
                    yield from ((line, None) for line in block({key: entry.value}, 2))
        left = any(entry.value is not None for entry in self.decisions)
        yield from (("", None), ("decisions:" if left else "decisions: []", None))
        for number, entry in enumerate(self.decisions):
            for comment in entry.comments:
                yield from ((line, number) for line in _comment(comment, 2))
            if entry.value is None:
                continue
            lines = block(entry.value, 4)
            lines[0] = f"  - {lines[0].lstrip()}"
            yield from ((line, number) for line in lines)
        if self.settings:
            yield from ((line, None) for line in ["", "settings:", *block(self.settings, 2)])


def _comment(text: str, indent: int) -> list[str]:
    """`text` as comment lines."""
    margin = " " * indent + "# "
    lines, line = [], ""
    for word in _UNPRINTABLE.sub("?", " ".join(text.split())).split(" "):
        if line and len(margin) + len(line) + 1 + len(word) > _WIDTH:
            lines.append(margin + line)
            line = f"  {word}"
        else:
            line = f"{line} {word}" if line else word
    return [*lines, margin + line]


def block(value: dict[str, Any], indent: int) -> list[str]:
    """A mapping in YAML's block style; what fits on a line stands on one."""
    lines = []
    for key, inner in value.items():
        start = f"{' ' * indent}{scalar(key)}:"
        whole = f"{start} {flow(inner)}"
        if len(whole) <= _WIDTH or not isinstance(inner, dict | list):
            lines.append(whole)
        elif isinstance(inner, dict):
            lines += [start, *block(inner, indent + 2)]
        elif all(isinstance(one, str | int | float) for one in inner):
            lines += [f"{start} [", *_wrapped([flow(one) for one in inner], indent + 2)]
        else:
            lines.append(start)
            for one in inner:
                short = f"{' ' * (indent + 2)}- {flow(one)}"
                if len(short) <= _WIDTH or not isinstance(one, dict):
                    lines.append(short)
                else:
                    deeper = block(one, indent + 4)
                    lines += [f"{' ' * (indent + 2)}- {deeper[0].lstrip()}", *deeper[1:]]
    return lines


def _wrapped(items: list[str], indent: int) -> list[str]:
    margin = " " * indent
    lines, line = [], margin
    for item in items:
        if line != margin and len(line) + len(item) + 2 > _WIDTH:
            lines.append(line.rstrip())
            line = margin
        line += f"{item}, "
    return [*lines, f"{line.rstrip(', ')}]"]


def flow(value: Any) -> str:
    """A value in YAML's flow style."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{scalar(key)}: {flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(flow, value)) + "]"
    return scalar(value)


def scalar(value: object) -> str:
    """A scalar that YAML 1.2 reads as this value."""
    if not isinstance(value, str):
        return json.dumps(value)
    if _PLAIN.fullmatch(value) and value not in _WORDS:
        return value
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))
