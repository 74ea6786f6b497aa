"""What somebody probably meant who wrote something else: rules as sentences, numbers with units, templates."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from config.problem import did_you_mean

TEMPLATE: Final = re.compile(
    r"\$\{\{?\s*[A-Za-z_][^{}\n]{0,200}\}|\{\{-?\s*[.$A-Za-z_][^{}\n]{0,200}\}\}|\$\([A-Za-z_]\w{0,100}\)"
    r"|(?<![\w$])\$[A-Z][A-Z0-9_]{2,}(?!\w)|%[A-Z][A-Z0-9_]{2,}(?:\([^()\n]{0,100}\))?%|\bos\.environ[/\[]|<%=?\s"
)
"""`${X}`, `{{ .x }}`, `$(X)`, `$AN_X`, `%AN_X%`, `os.environ/X`, `<%= x %>`: shells, Helm, Jinja, Kubernetes, Windows
and Envoy, LiteLLM, ERB."""
_LONGEST: Final = 200
"""Characters of a sentence or a number that is looked at."""
_BRACKETS: Final = 20
"""Opening ones in a sentence that is looked at: each takes several calls."""
_TOKEN: Final = re.compile(r"\s*(\(|\)|&&?|\|\|?|>=|<=|==?|!=|>|<|!|[^\s()&|<>=!]+)")
_COMPARED: Final = {">=": "at_least", ">": "at_least", "<=": "at_most", "<": "at_most", "==": "is", "=": "is"}
_NUMBER: Final = re.compile(r"[$€£]?\s*([+-]?\d[\d_]*(?:\.\d+)?)\s*([%kKmM]?)\s*[$€£]?")
_TIMES: Final = {"": 1.0, "%": 1.0, "k": 1e3, "K": 1e3, "m": 1e6, "M": 1e6}


class Range(NamedTuple):
    """Which numbers may stand somewhere; None: no bound. `whole`: whole ones only."""

    low: float | None
    high: float | None
    above: float | None
    below: float | None
    whole: bool

    @classmethod
    def of(cls, schemas: Iterable[Mapping[str, Any]]) -> Range | None:
        """Of the first of these JSON Schemas that is about a number."""
        for each in schemas:
            if each.get("type") in ("number", "integer"):
                low, high, above, below = map(each.get, ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"))
                return cls(low, high, above, below, each["type"] == "integer")
        return None

    def holds(self, number: float) -> bool:
        """Whether `number` may stand there."""
        return (
            (self.low is None or number >= self.low)
            and (self.high is None or number <= self.high)
            and (self.above is None or number > self.above)
            and (self.below is None or number < self.below)
            and (not self.whole or number == int(number))
        )

    def __str__(self) -> str:
        """`a number from 0 to 100`."""
        kind = "a whole number" if self.whole else "a number"
        if self.low is not None and self.high is not None:
            return f"{kind} from {self.low:g} to {self.high:g}"
        ends = [
            ("above {:g}", self.above), ("of at least {:g}", self.low),
            ("of at most {:g}", self.high), ("below {:g}", self.below),
        ]  # fmt: skip
        said = [words.format(end) for words, end in ends if end is not None]
        return " ".join([kind, " and ".join(said)]) if said else kind


ANY_NUMBER: Final = Range(None, None, None, None, whole=False)


def number(given: object, range: Range = ANY_NUMBER) -> str:
    """Which number is needed, and how that is written which stands there: `5%` as 0.05 where a share is wanted."""
    needed = f"{range} is needed"
    match = _NUMBER.fullmatch(given.strip()) if isinstance(given, str) and len(given) <= _LONGEST else None
    if match is None:
        return needed
    meant = float(match[1].replace("_", "")) * _TIMES[match[2]]
    if match[2] == "%" and range.high in (1, None):
        meant /= 100
    written = f"{needed}: write {meant:.12g}" if range.holds(meant) else needed
    return f"{written}, or {match[1]} where 100 is all" if match[2] == "%" and range.high is None else written


def one_of(words: Sequence[str], given: object) -> str:
    """Which of some words is needed."""
    if len(words) == 1:
        return f"{words[0]} is needed" if words[0].isdecimal() else f"nothing but `{words[0]}` can stand here"
    nearest = did_you_mean(given, words) if isinstance(given, str) else ""
    return f"{', '.join(words[:-1])} or {words[-1]} is needed{nearest}"


def unfilled(text: object) -> str:
    """What is said of a template in a text, '' where there is none: nothing fills it in."""
    found = TEMPLATE.search(text) if isinstance(text, str) else None
    return "" if found is None else f"{found[0]!r} is used as it stands, nothing fills it in"


def flow(value: Any) -> str:
    """A rule as a policy writes it on one line (YAML's flow style)."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {flow(each)}" for key, each in value.items()) + "}"
    return "[" + ", ".join(map(flow, value)) + "]" if isinstance(value, list) else str(value)


def sentence(text: str) -> Any:
    """The rule that a sentence means (`a and not b`, `(a || b) && score >= 0.5`), None where it is no such sentence."""
    if len(text) > _LONGEST or text.count("(") > _BRACKETS:
        return None
    tokens = _TOKEN.findall(text)
    if "".join(tokens) != "".join(text.split()) or len(tokens) < 2:
        return None
    rest = iter([*tokens, ""])
    try:
        rule, last = _any(rest, next(rest))
    except (ValueError, StopIteration):
        return None
    return None if last else rule


_Parsed = tuple[Any, str]
"""A rule, and the token after it."""


def _any(rest: Iterator[str], token: str) -> _Parsed:
    return _joined(rest, token, "any", ("or", "|", "||"))


def _all(rest: Iterator[str], token: str) -> _Parsed:
    return _joined(rest, token, "all", ("and", "&", "&&"))


def _joined(rest: Iterator[str], token: str, key: str, joints: tuple[str, ...]) -> _Parsed:
    """Rules between `joints`; `and` binds closer than `or`."""
    below = _all if key == "any" else _not
    rule, token = below(rest, token)
    rules = [rule]
    while token.lower() in joints:
        rule, token = below(rest, next(rest))
        rules.append(rule)
    return ({key: rules} if len(rules) > 1 else rules[0]), token


def _not(rest: Iterator[str], token: str) -> _Parsed:
    if token.lower() in ("not", "!"):
        rule, token = _not(rest, next(rest))
        return {"not": rule}, token
    if token == "(":
        rule, token = _any(rest, next(rest))
        if token != ")":
            raise ValueError(token)
        return rule, next(rest)
    if token.lower() in ("", "and", "or") or not re.match(r"[\w\"']", token):
        raise ValueError(token)
    name, token = token, next(rest)
    if token not in _COMPARED:
        return name, token
    value, key = next(rest), _COMPARED[token]
    if not re.match(r"[\w\"'.-]", value):
        raise ValueError(value)
    return {"signal": name, key: value}, next(rest)
