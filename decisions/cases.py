"""Policy test cases: what a case may say, stubbed readings, and whether a decision is what was expected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from decisions.decision import Decision, Trace
from decisions.engine import Engine
from signals.reading import Reading, of, unknown
from signals.signal import Signal


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)


class Stub(_Part):
    """A reading that stands for what a signal would say."""

    matched: bool | Literal["unknown"] | None = Field(
        None, description="The verdict; left out, it follows from the signal's own `at_least`, `at_most` and `is`."
    )
    score: float | None = Field(None, description="The signal's score.")
    label: str | None = Field(
        None, description="The class that the signal chose; left out, the band of the score, where the signal has any."
    )


class ExpectReading(_Part):
    """What a signal must say. Only the fields that the case sets are compared."""

    matched: bool | Literal["unknown"] | None = Field(None, description="The verdict.")
    label: str | None = Field(None, description="The class that the signal chose; null for none.")


class ExpectAnswer(_Part):
    """What must become of the answer. Only the fields that the case sets are compared."""

    decision: str | None = Field(None, description="The decision that acts; null when none may.")
    action: Literal["pass", "mask", "cut", "respond", "flag", "observe"] | None = Field(
        None, description="What it does: pass where nothing is done, observe where it only would have."
    )
    status: int | None = Field(None, description="HTTP status of a respond.")
    text: str | None = Field(None, description="What the client reads.")


class Expect(_Part):
    """The decision that must come out. Only the fields that the case sets are compared."""

    decision: str | None = Field(None, description="The decision's name; null when no decision may match.")
    model: str | None = Field(None, description="The model by its name in the policy; null for a refusal.")
    action: str | None = Field(None, description="route, respond, default, or the key of the decision's writer.")
    status: int | None = Field(None, description="HTTP status of the refusal.")
    fallback: str | None = Field(None, description="Why the default model was taken, where something failed.")
    headers: dict[str, str] = Field({}, description="Request headers for the upstream; others may be set, too.")
    signals: dict[str, bool | Literal["unknown"] | ExpectReading] = Field(
        {}, description="What signals and named rules must say, whether or not the decision needs them."
    )
    answer: ExpectAnswer | None = Field(None, description="What must become of the answer of the case.")


class Case(_Part):
    """One request, or stubbed readings, and the decision that is expected."""

    name: str = Field(min_length=1, description="What the case shows.")
    request: dict[str, Any] = Field(
        {"messages": [{"role": "user", "content": "Hello"}]}, description="The request's body."
    )
    headers: dict[str, str] = Field({}, description="Request headers.")
    path: str = Field("/v1/chat/completions", description="Path of the API that is called.")
    attributes: dict[str, Any] = Field({}, description="Envoy's filter metadata by namespace, such as JWT claims.")
    signals: dict[str, bool | Literal["unknown"] | Stub] = Field(
        {}, description="Readings to use instead of asking the signals."
    )
    qualities: dict[str, dict[str, float]] = Field(
        {},
        description="By decision, the quality (0 to 1) of each candidate to use instead of what its choice has learned "
        "or foretells; then nothing is left to chance.",
    )
    seconds: dict[str, dict[str, Annotated[float, Field(ge=0)]]] = Field(
        {},
        description="By decision, the seconds that each candidate takes to use instead of what was measured; then "
        "nothing is left to chance.",
    )
    answer: str | dict[str, Any] | None = Field(
        None, description="What the model answers: plain text, or a whole answer of the API that is called."
    )
    expect: Expect = Field(description="The expected outcome.")


class Suite(_Part):
    """A cases file."""

    cases: list[Case] = Field(min_length=1, description="The cases, each on its own.")


def stub(signal: Signal, value: bool | str | Stub) -> Reading:
    """The reading of `signal` that a case means by `value`."""
    if isinstance(value, bool):
        return of(value)
    if isinstance(value, str) or value.matched == "unknown":
        return unknown("stubbed")
    matched = _verdict(signal, value) if value.matched is None else value.matched
    label, score = value.label, value.score
    if label is None and score is not None:
        ranges = (signal.params.ranges() or {}).items()
        fit = (each for each, (low, end) in ranges if (low is None or score >= low) and (end is None or score < end))
        label = next(fit, None)
    return Reading(matched, score, label)


def _verdict(signal: Signal, value: Stub) -> bool:
    """What `signal` would make of a score and a label, as far as its parameters have bounds on them."""
    given = signal.params.model_dump(by_alias=True)
    least, most, labels = given.get("at_least"), given.get("at_most"), given.get("is")
    if value.score is not None and signal.scored:
        if isinstance(least, (int, float)) and value.score < least:
            return False
        if isinstance(most, (int, float)) and value.score > most:
            return False
    wanted = [labels] if isinstance(labels, str) else labels
    return not (value.label is not None and isinstance(wanted, list) and value.label not in wanted)


def mismatches(expect: Expect, decision: Decision, headers: Mapping[str, str]) -> list[str]:
    """How `decision`, which sets request `headers`, differs from what was expected; empty when it does not."""
    actual = {
        "decision": decision.name,
        "model": decision.model.key if decision.model else None,
        "action": decision.action,
        "status": decision.status,
        "fallback": decision.fallback,
    }
    found = [
        f"{key}: expected {_shown(getattr(expect, key))}, got {_shown(actual[key])}"
        for key in actual
        if key in expect.model_fields_set and getattr(expect, key) != actual[key]
    ]
    lower = {name.lower(): value for name, value in headers.items()}
    for name, value in expect.headers.items():
        if lower.get(name.lower()) != value:
            found.append(f"header {name}: expected {_shown(value)}, got {_shown(lower.get(name.lower()))}")
    return found


def reading_mismatches(expect: Expect, readings: Mapping[str, Reading]) -> list[str]:
    """How what signals and named rules say differs from what was expected; `readings` has all of them."""
    found = []
    for name, wanted in expect.signals.items():
        reading = readings[name]
        actual = {"matched": "unknown" if reading.matched is None else reading.matched, "label": reading.label}
        one = wanted if isinstance(wanted, ExpectReading) else ExpectReading(matched=wanted)
        for key in actual:
            if key in one.model_fields_set and getattr(one, key) != actual[key]:
                what = f"signal {name}" if key == "matched" else f"label of {name}"
                found.append(f"{what}: expected {_shown(getattr(one, key))}, got {_shown(actual[key])}")
    return found


def answer_mismatches(expect: ExpectAnswer, actual: Mapping[str, Any] | None) -> list[str]:
    """How what became of the answer differs from what was expected; None: no model was asked."""
    if actual is None:
        return ["answer: no model is asked, so that nothing is answered"]
    return [
        f"answer {key}: expected {_shown(getattr(expect, key))}, got {_shown(actual.get(key))}"
        for key in ("decision", "action", "status", "text")
        if key in expect.model_fields_set and getattr(expect, key) != actual.get(key)
    ]


def _shown(value: object) -> str:
    return "none" if value is None else repr(value)


class Coverage:
    """Which decisions were taken and which signals said something, over all cases."""

    def __init__(self, engine: Engine) -> None:
        names = [clause.name for clause in engine.clauses]
        names += [] if engine.watched is None else [one.name for one in engine.watched.watching]
        self._decisions = dict.fromkeys(names, False)
        self._signals = dict.fromkeys(engine.signals, False)

    def add(self, trace: Trace) -> None:
        if trace.decision.name is not None:
            self._decisions[trace.decision.name] = True
        self._signals.update(dict.fromkeys(trace.readings, True))

    def add_answer(self, acted: Iterable[tuple[str, str]], read: Iterable[str]) -> None:
        """Decisions that did something about an answer, and signals that looked at it."""
        self._decisions.update((name, True) for name, _ in acted)
        self._signals.update((name, True) for name in read)

    def report(self) -> list[str]:
        return [
            *_share("decisions taken", "never taken", self._decisions),
            *_share("signals read", "never read", self._signals),
        ]


def _share(title: str, missing: str, seen: Mapping[str, bool]) -> Iterable[str]:
    hit, total = sum(seen.values()), len(seen)
    yield f"{title}: {hit} of {total} ({100 * hit / total if total else 100:.1f} %)"
    for name, was in seen.items():
        if not was:
            yield f"  {missing}: {name}"
