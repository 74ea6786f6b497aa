"""What can be wrong with a policy: one line per problem, with a stable code."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Final, Literal

Severity = Literal["error", "warning"]

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_NAMES, _LETTERS = 2000, 200
"""Among how many names, of how many letters at most, one that was perhaps meant is looked for."""

CODES: dict[str, str] = {
    "Y001": "not valid YAML",
    "Y002": "duplicate key",
    "Y003": "YAML feature that a policy must not use",
    "Y004": "too many problems to show them all",
    "P101": "unknown key",
    "P102": "missing key",
    "P103": "wrong type",
    "P104": "value out of range or malformed",
    "P105": "unknown kind of signal",
    "P106": "not exactly one of several keys",
    "P107": "empty all, any or at_least",
    "P108": "a file or a model that the policy needs cannot be loaded",
    "R201": "unknown signal",
    "R202": "unknown model",
    "R203": "duplicate name",
    "R204": "signals or rules that depend on each other, or models that fall back on each other, in a circle",
    "R205": "a test of a score or label that the signal does not give",
    "R206": "unknown decision",
    "L301": "decision that can never match",
    "L302": "decision that an earlier one always takes first",
    "L303": "two decisions with the same rule",
    "L304": "signal or named rule that nothing uses",
    "L305": "model that nothing uses",
    "L306": "rule that is always true",
    "L307": "rules too hard to check in full",
    "L311": "guard without on_unknown",
    "L312": "an opened path that the router reads, so that it never goes unread",
    "L313": "an opened path that an earlier entry has already",
    "L314": "paths go unread although guards read text",
    "L315": "decision whose models lack what its requests need",
    "L320": "template, which nothing fills in",
    "L321": "pattern where only the very text counts",
    "L322": "signal or test that always holds",
    "L323": "signal or test that never holds",
    "L325": "budget that a request without its header escapes",
    "L326": "budget or choice by price without prices",
    "L327": "URL whose path doubles, or that cannot be called",
    "L328": "text that looks like an expression of another kind",
    "L330": "the same entry twice",
    "L331": "choice that leaves nothing to choose",
    "L332": "setting that does nothing where it stands",
    "L333": "answer without words",
    "L334": "time zone that is not the one it seems",
    "L335": "times that contradict each other",
    "L340": "request decision that names a signal of answers",
    "L341": "decision on the answer that looks at nothing of it",
    "L342": "decision on the answer that is settled only at the answer's end",
    "L343": "mask that nothing tells where",
    "L344": "window shorter than what is looked for",
    "D401": "deployed: a model without a route, or a route without a model",
    "D402": "deployed: no default route",
    "D403": "deployed: a buffer smaller than the bodies that the policy takes",
    "D404": "deployed: a body mode with which the policy cannot work",
    "D405": "deployed: a route without the external processor",
    "D406": "deployed: a client's own route header gets through",
    "D407": "deployed: no response headers although the policy wants them",
    "D408": "deployed: a metadata namespace that drops what we write",
    "D409": "deployed: Envoy gives up before the router's own deadline",
    "D410": "deployed: every path is let on although the policy refuses what is unread",
    "D411": "deployed: no route for a path that the policy opens",
    "D412": "deployed: answers are not shown although the policy counts what they take",
    "D413": "deployed: a circuit breaker that lets few requests at a time go to the router",
    "D414": "deployed: a model's credential is not sent, or a client's own goes on",
    "D415": "deployed: a model's fallbacks do not take its place as the policy says",
    "D416": "deployed: a request that got nowhere is not tried again",
    "D417": "deployed: a limit of tokens that does not count them",
}


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One problem. Lines and columns count from 1."""

    file: str
    line: int
    column: int
    code: str
    severity: Severity
    message: str

    def __str__(self) -> str:
        """One line, whatever the names in it are made of."""
        line = f"{self.file}:{self.line}:{self.column}: {self.code} {self.message}"
        return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], line)

    def as_dict(self) -> dict[str, Any]:
        """The object that `pointsman validate -o json` prints."""
        return asdict(self)


class PolicyError(Exception):
    """A policy that cannot be used; `problems` says everything that is wrong with it."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


_MEANT: Final = {
    **dict.fromkeys(("and", "all_of", "every"), ("all",)),
    **dict.fromkeys(("or", "any_of", "one_of"), ("any",)),
    **dict.fromkeys(("none", "none_of", "nor", "unless", "except"), ("not",)),
    **dict.fromkeys(("if", "rule", "condition", "match", "matches"), ("when",)),
    **dict.fromkeys(("model", "then", "target", "use"), ("route",)),
    **dict.fromkeys(("deny", "block", "refuse", "reject"), ("respond",)),
    **dict.fromkeys(("min", "minimum", "threshold", "more_than", "above", "score", ">=", ">"), ("at_least",)),
    **dict.fromkeys(("max", "maximum", "less_than", "below", "<=", "<"), ("at_most",)),
    **dict.fromkeys(("label", "labels", "equals", "in", "==", "eq"), ("is", "equals", "in")),
    **dict.fromkeys(("pattern", "patterns", "regex", "words", "keywords", "values", "terms"), ("any",)),
    **dict.fromkeys(("api_key", "key", "token", "secret"), ("credential",)),
    "out": ("output",),
    "endpoint": ("url",),
    "base_url": ("url",),
}
"""Words of other rule languages, and ours for them: the first that may stand there."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """' (did you mean 'x'?)' for the nearest of `known`, or ''."""
    if len(name) > _LETTERS:
        return ""
    known = tuple(islice(known, _NAMES))
    # What looks alike says something else: `and` is not `any`.
    for meant in (*((name.lower(),) if name != name.lower() else ()), *_MEANT.get(name.lower(), ())):
        if meant in known:
            return f" (did you mean {meant!r}?)"
    names = [other for other in known if len(other) <= _LETTERS]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""
