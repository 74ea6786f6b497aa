"""`pii`: personal data and secrets in the request's text."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, Self

from pydantic import Field, field_validator, model_validator

from signals.facts import Facts
from signals.neural.embeddings import Entities, mounted
from signals.reading import FALSE, Reading, Span, Unavailable
from signals.request import Scope
from signals.signal import Cost, SearchParams, Shared, Signal
from signals.text.context import AFTER, BEFORE, phone
from signals.text.detectors import DETECTORS, Detector, Kind
from signals.text.hits import Hits
from signals.text.patterns import PatternSet, compiled, in_characters
from signals.text.view import Origin

_MANY = 2000
_PHONES = 500
"""Candidates of one detector that are looked at; a text with more is Unknown, never half read. Telephone numbers take
longest, some 50 µs each."""

_LONGEST = {
    "card": 23,
    "iban": 42,
    "ssn": 11,
    "nin": 21,
    "passport": 89,
    "ip": 45,
    "mac": 17,
    "crypto": 93,
    "phone": 30,
}
"""The most characters of those types whose length has an end, with their separators."""

_DATE = re.compile(r"\d{4}([-/.])\d\d\1\d\d\b")
_NANP = re.compile(r"(?:1[ .-])?\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4}(?: ?(?:x|ext\.?) ?\d{1,6})?")
_PHONE = r"(?:\+|\b0|\(|\b)\d[\d ()./\-_]{4,20}\d(?: ?(?:x|ext\.?) ?\d{1,6})?\b"


Named = Literal["name", "place", "organisation", "date"]
_NAMED: dict[str, Named] = {
    "PER": "name",
    "PERSON": "name",
    "NAME": "name",
    "LOC": "place",
    "LOCATION": "place",
    "GPE": "place",
    "ADDRESS": "place",
    "ORG": "organisation",
    "ORGANIZATION": "organisation",
    "ORGANISATION": "organisation",
    "DATE": "date",
    "DATE_TIME": "date",
}
"""What the labels of token classifiers mean (CoNLL, OntoNotes and their like, without B- and I-)."""
_MODELLED = frozenset(_NAMED.values())


class PiiParams(SearchParams):
    """What to look for and where."""

    types: list[Kind | Named] = Field(
        ["email", "card", "iban", "ssn", "ip", "crypto", "secret"],
        min_length=1,
        description="What counts: `email`, `phone`, `iban`, `card`, `ssn` (US), `nin` (the national numbers of Brazil, "
        "China, France, Germany, India, Italy, Poland, Spain and the United Kingdom), `passport` (machine-readable "
        "zone), `ip`, `mac`, `crypto` (addresses), `secret` (API keys, tokens, passwords, private keys); `name`, "
        "`place`, `organisation` and `date` need a `model`.",
    )
    model: str | None = Field(
        None,
        min_length=1,
        description="Folder of a token classifier (ONNX, Hugging Face layout) that finds names, places, organisations "
        "and dates, relative to the policy.",
    )
    certainty: float = Field(0.5, ge=0, le=1, description="The least probability of what the model finds that counts.")
    allow: list[str] = Field(
        [], description="Values that do not count, and e-mail domains (their subdomains too) whose addresses do not."
    )
    at_least: int = Field(1, ge=1, description="How many different values it takes.")
    regions: list[str] = Field(
        ["US"],
        min_length=1,
        description="Countries (ISO 3166) whose phone numbers may lack the country code; only `phone` uses them.",
    )

    def placed(self) -> bool:
        return True

    def longest(self) -> int | None:
        return max((_LONGEST[kind] for kind in self.types if kind in _LONGEST), default=None)

    @field_validator("regions")
    @classmethod
    def _known(cls, regions: list[str]) -> list[str]:
        if regions != ["US"]:
            import phonenumbers

            unknown = [region for region in regions if region not in phonenumbers.SUPPORTED_REGIONS]
            if unknown:
                raise ValueError(
                    f"no country with known phone numbers: {', '.join(unknown)} (write ISO 3166: DE, GB …)"
                )
        return regions

    @model_validator(mode="after")
    def _model(self) -> Self:
        named = [kind for kind in self.types if kind in _MODELLED]
        if bool(named) != (self.model is not None):
            raise ValueError(
                "types name, place, organisation and date need a model"
                if named
                else "a model needs the types name, place, organisation or date"
            )
        return self


class Pii(Signal):
    """Reads whether personal data is there. The label is the type found first; evidence counts each type."""

    kind = "pii"
    Parameters = PiiParams
    labelled = True
    finds = True
    answers = True

    def __init__(self, name: str, params: PiiParams, shared: Shared) -> None:
        super().__init__(name, params, shared)
        detectors = [detector for detector in DETECTORS if detector.kind in params.types]
        if "phone" in params.types:
            detectors.append(Detector("phone", _PHONE, _phone(params.regions), fits=phone))
            self.cost = Cost.FAST
        patterns = shared.searcher(PatternSet, params.in_)
        self._found = shared.use(Hits, patterns, params.in_, params.exact)
        # The policy's one pass over the text tells which detectors have candidates at all; most texts have none.
        self._detectors = [(1 << patterns.add(d.hint or d.pattern), compiled(d.pattern.encode()), d) for d in detectors]
        self._any = 0
        for bit, _, _ in self._detectors:
            self._any |= bit
        self._scope: Scope = params.in_
        self._exact = params.exact
        self._allowed = frozenset(map(_comparable, params.allow))
        self._at_least = params.at_least
        self._named = _MODELLED.intersection(params.types)
        self._certainty = params.certainty
        self._places = _Places(self)
        self._entities: Entities | None = None
        if params.model is not None:
            self._entities = shared.use(Entities, mounted(shared, params.model, "token"), params.in_)
            self.slow = (self._entities,)
            self.cost = Cost.NEURAL

    def read(self, facts: Facts) -> Reading:
        if self.silent(facts):
            return FALSE
        first: tuple[int, str] | None = None
        values: dict[str, set[str]] = {}
        for number, start, _, kind, value in facts.get(self._places):
            values.setdefault(kind, set()).add(value)
            if first is None or (number == 0 and start < first[0]):
                first = start, kind
        if first is None or sum(map(len, values.values())) < self._at_least:
            return FALSE
        return Reading(True, 1.0, first[1], evidence=tuple(f"{kind}={len(found)}" for kind, found in values.items()))

    def spans(self, facts: Facts) -> list[Span]:
        return [Span(start, end, kind) for number, start, end, kind, _ in facts.get(self._places) if number == 0]

    def silent(self, facts: Facts) -> bool:
        return self._entities is None and not facts.get(self._found) & self._any

    def all(self, facts: Facts) -> Iterator[_Place]:
        """Everything that counts."""
        named = list(self._names(facts)) if self._entities is not None else []
        hits = facts.get(self._found) & self._any
        if hits:
            detectors = [(pattern, detector) for bit, pattern, detector in self._detectors if hits & bit]
            if self._exact:
                spellings: Sequence[tuple[str, str]] = ((facts.request.text(self._scope),) * 2,)
            else:
                spellings = facts.request.spellings(self._scope)
            for number, (text, plain) in enumerate(spellings):
                for finding in findings(text, plain, detectors, sift=True):
                    if not self._allows(finding.kind, finding.value):
                        yield (number, *finding)
        for start, end, named_kind, value in named:
            if _comparable(value) not in self._allowed:
                yield 0, start, end, named_kind, value

    def _names(self, facts: Facts) -> Iterator[tuple[int, int, Named, str]]:
        """Start, end, kind and value of what the model found that counts."""
        assert self._entities is not None
        text = facts.request.text(self._scope)
        for entity in facts.got(self._entities):
            kind = _NAMED.get(entity.label.upper())
            if kind in self._named and kind is not None and entity.score >= self._certainty:
                yield entity.start, entity.end, kind, text[entity.start : entity.end]

    def _allows(self, kind: Kind, value: str) -> bool:
        if not self._allowed:
            return False
        if _comparable(value) in self._allowed:
            return True
        if kind != "email":
            return False
        domain = value.rpartition("@")[2]
        while domain:
            if _comparable(domain) in self._allowed:
                return True
            domain = domain.partition(".")[2]
        return False


_Place = tuple[int, int, int, str, str]
"""In which spelling of the text something is, its start and end there, kind and value."""


class _Places:
    """Quick input: everything that counts for one signal."""

    def __init__(self, signal: Pii) -> None:
        self._signal = signal

    def compute(self, facts: Facts) -> list[_Place]:
        return list(self._signal.all(facts))


class Detection(NamedTuple):
    """Characters `start` to `end` of a text are of a kind; `value` is their plain form."""

    start: int
    end: int
    kind: Kind
    value: str


def findings(text: str, plain: str, detectors: Sequence[tuple[Any, Detector]], sift: bool = False) -> list[Detection]:
    """Everything in `text` that passes a detector's check, in it or in its view `plain` (the same object where there
    are no disguises); `sift` leaves out what does not fit its context. `Unavailable` (`too_many`) when there are too
    many candidates.

    What an invisible character cuts off from its neighbours is a word of its own in the text as it was written only,
    so both are searched; what overlaps something found in the view is that.
    """
    found = _findings(plain, detectors, sift)
    if plain is text:
        return found
    if found:
        origin = Origin(text)
        found = [Detection(*origin.span(start, end), kind, value) for start, end, kind, value in found]
    taken = _Taken(found)
    return found + [one for one in _findings(text, detectors, sift) if one not in taken]


def _findings(text: str, detectors: Sequence[tuple[Any, Detector]], sift: bool) -> list[Detection]:
    data = text.encode(errors="replace")
    found = [
        Detection(start, end, detector.kind, value)
        for pattern, detector in detectors
        if detector.kind != "phone"
        for start, end, value in _checked(pattern, detector, data, sift)
    ]
    # A number that is something else already is no phone number.
    taken = _Taken(found)
    for pattern, detector in detectors:
        if detector.kind == "phone":
            phones = (
                Detection(start, end, "phone", value) for start, end, value in _checked(pattern, detector, data, sift)
            )
            found += [one for one in phones if one not in taken]
    if len(data) == len(text):
        return found
    spans = in_characters([one[:2] for one in found], data)
    return [one._replace(start=start, end=end) for one, (start, end) in zip(found, spans, strict=True)]


class _Taken:
    """What findings cover; another finding that overlaps it is in it."""

    def __init__(self, found: Iterable[Detection]) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in sorted(one[:2] for one in found):
            if self._ends and start < self._ends[-1]:
                self._ends[-1] = max(end, self._ends[-1])
            else:
                self._starts.append(start)
                self._ends.append(end)

    def __contains__(self, one: Detection) -> bool:
        number = bisect_left(self._starts, one.end) - 1
        return number >= 0 and self._ends[number] > one.start


def _checked(pattern: Any, detector: Detector, data: bytes, sift: bool) -> Iterator[tuple[int, int, str]]:
    """Start, end and plain value of everything that passes the detector's check, in bytes."""
    at = 0
    group = pattern.groups and 1
    for _ in range(min(_MANY, _PHONES) if detector.kind == "phone" else _MANY):
        candidate = pattern.search(data, at)
        if candidate is None:
            return
        start, end = candidate.span(group)
        found = data[start:end].decode(errors="replace")
        value = detector.check(found)
        if value is not None and (not sift or _fits(detector, found, data, (start, end))):
            if detector.rescan:
                end = start + _extent(found, value)
            yield start, end, value
        at = start + 1 if value is None and detector.rescan else end
    raise Unavailable("too_many")


def _extent(found: str, value: str) -> int:
    """Where `value` ends in a candidate that begins with it: what follows may be another one."""
    at = 0
    for place, char in enumerate(found):
        if char.isalnum():
            if char.upper() != value[at].upper():
                break
            at += 1
            if at == len(value):
                return place + 1
    return len(found)


def _fits(detector: Detector, found: str, data: bytes, span: tuple[int, int]) -> bool:
    """Whether what stands around a candidate leaves it what it looks like."""
    if detector.fits is None:
        return True
    start, end = span
    before = data[max(0, start - BEFORE) : start].decode(errors="ignore")
    return detector.fits(found, before, data[end : end + AFTER].decode(errors="ignore"))


def _comparable(value: str) -> str:
    return "".join(char for char in value.lower() if char not in " -")


def _phone(regions: list[str]) -> Callable[[str], str | None]:
    """The check of phone numbers. The library (with its tables, some megabytes) is loaded only for this."""
    import phonenumbers

    def check(candidate: str) -> str | None:
        candidate = candidate.replace("_", " ")
        if _DATE.match(candidate):
            return None
        # With a country code, or written as North Americans do, a number of the right length is enough.
        plain = candidate.startswith("+") or ("US" in regions and _NANP.fullmatch(candidate) is not None)
        enough = phonenumbers.is_possible_number if plain else phonenumbers.is_valid_number
        for region in regions:
            try:
                number = phonenumbers.parse(candidate, region)
            except phonenumbers.NumberParseException:
                continue
            if enough(number):
                found: str = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)
                return found
        return None

    return check
