"""`event`: a message of a machine (an alert, a failed payment), by its type, its severity and its codes."""

from __future__ import annotations

from typing import Any, Final, Literal, Self

from pydantic import Field, field_validator, model_validator

from signals.facts import Facts
from signals.reading import FALSE, Reading
from signals.request import Request
from signals.signal import Ends, SearchParams, Shared, Signal
from signals.text.automaton import Automaton, Keyword
from signals.text.hits import Hits
from signals.text.view import plain_keyword

URGENT: Final = (
    *("urgent", "urgently", "immediate", "immediately", "asap", "deadline", "now", "time-sensitive", "time sensitive"),
    *("critical window", "as soon as possible"),
)
"""Words by which a text says that it is urgent."""


class EventParams(SearchParams):
    """What is looked for: names of types, severities and codes, words of urgency."""

    types: list[str] = Field([], description="Types of events, such as payment_failed.")
    severities: list[str] = Field([], description="Severities, such as critical; the first that is there is the label.")
    codes: list[str] = Field([], description="Codes, such as TXN_DECLINE.")
    urgent: bool = Field(False, description="Words of urgency, such as urgent, asap, deadline or now, count too.")
    match: Literal["any", "all"] = Field(
        "any", description="Whether one of the lists that are given must have something in the request, or each."
    )

    @field_validator("types", "severities", "codes")
    @classmethod
    def _not_empty(cls, names: list[str]) -> list[str]:
        if any(not name.strip() for name in names):
            raise ValueError("a name is empty")
        return names

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not (self.types or self.severities or self.codes or self.urgent):
            raise ValueError("one of types, severities, codes, urgent is needed")
        return self

    def span(self) -> Ends:
        return 0, 1


class EventSignal(Signal):
    """Reads which of the lists have something in the text, as a whole word, or as a value of the call's `metadata`.

    Score: 0.5 and half of the share of the lists that have, or 0. Evidence: the lists.
    """

    kind = "event"
    Parameters = EventParams
    scored = True
    labelled = True
    finds = True

    def __init__(self, name: str, params: EventParams, shared: Shared) -> None:
        super().__init__(name, params, shared)
        automaton = shared.searcher(Automaton, params.in_)
        self._hits = shared.use(Hits, automaton, params.in_, params.exact)

        def bit(word: str) -> int:
            return 1 << automaton.add(Keyword(word if params.exact else plain_keyword(word), True, False))

        given = {"types": params.types, "severities": params.severities, "codes": params.codes}
        if params.urgent:
            given["urgent"] = list(URGENT)
        self._lists = [
            (each, [(bit(word), word, word.strip().casefold()) for word in words])
            for each, words in given.items()
            if words
        ]
        self._all = params.match == "all"

    def read(self, facts: Facts) -> Reading:
        hits = facts.get(self._hits)
        values = _metadata(facts.request)
        found: list[str] = []
        label = None
        for name, words in self._lists:
            there = next((word for bit, word, folded in words if hits & bit or folded in values), None)
            if there is not None:
                found.append(name)
                if name == "severities":
                    label = there
        if not found or (self._all and len(found) < len(self._lists)):
            return FALSE
        return Reading(True, 0.5 + 0.5 * len(found) / len(self._lists), label, evidence=tuple(found))


def _metadata(request: Request) -> frozenset[str]:
    """The values of the call's `metadata` that are text, in small letters."""
    given: Any = request.fields.get("metadata")
    if not isinstance(given, dict):
        return frozenset()
    return frozenset(value.strip().casefold() for value in given.values() if isinstance(value, str))
