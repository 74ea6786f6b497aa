"""`cascade`: members are asked in order until an answer is sure enough; the sure one is released.

After FrugalGPT (Chen, Zaharia, Zou, arXiv 2305.05176) and AutoMix (Aggarwal et al., arXiv 2310.12963). The last member
is not judged: its answer is streamed as it comes. An earlier one is held until it is sure. A measure that only falls
(the least probable token) ends a draft as soon as it has fallen too low, which saves the rest of it. With a verifier it
is that model's probabilities that are measured, once the draft is complete.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from panel.certainty import MEASURES, Curve, Measure, Surety
from panel.kinds.drafts import released, streamed, tools
from panel.sitting import Member, MemberCall, Sitting, Wish
from panel.strategy import PanelBlock, PanelKind
from panel.verifier import ASKED, messages, read
from signals.signal import Doubt
from upstream.apis.shape import Spoken
from upstream.client import DeadlineError, UpstreamError
from upstream.writer import Planned, WriterParameter

if TYPE_CHECKING:
    MeasureName = str
else:
    MeasureName = Literal[tuple(MEASURES)]

DEFAULT: Final = "least"


class UntilSpec(BaseModel):
    """When an answer is sure enough."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    sure: Annotated[float, Field(gt=0, le=1)]
    """With a `calibration`: this share of the answers that are released early is right at least. Without: the measure
    itself must reach it."""
    by: MeasureName = DEFAULT
    """How sure a member is of its answer, from the probabilities of its tokens: `least` (the default), `mean`,
    `digits`, `product` or `margin`."""
    calibration: str | None = None
    """A file beside the policy that says for which values of the measure which share of answers is right."""


class Cascade:
    """One cascade; `threshold`: what the measure must reach. `verifier` reads drafts; None: whoever writes one says how
    sure it is."""

    def __init__(
        self, members: tuple[str, ...], measure: Measure, threshold: float, verifier: str | None = None
    ) -> None:
        self._members = members
        self._measure = measure
        self._threshold = threshold
        self._verifier = verifier

    async def run(self, sitting: Sitting) -> AsyncGenerator[Spoken, None]:
        members = [sitting.members[name] for name in self._members if name in sitting.members]
        drafts: list[tuple[MemberCall, float]] = []  # with how sure each is
        for member in members[:-1]:
            if sitting.spent:
                break
            try:
                asked, value = await self._draft(sitting, member)
            except DeadlineError:
                break
            if asked.complete and value >= self._threshold:
                for piece in released(sitting, asked):
                    yield piece
                return
            drafts.append((asked, value))
        # The last one speaks for itself. When it fails before it has said anything, a whole draft is better than none,
        # and whoever was cut off is asked again.
        rest = [members[-1], *(draft.member for draft, _ in reversed(drafts) if draft.error is None)]
        whole = [(draft, value) for draft, value in drafts if draft.complete]
        why = "last"
        while rest and not sitting.spent:
            member = rest.pop(0)
            asked = sitting.ask(member, Wish(why), patient=True)
            async for piece in streamed(sitting, asked):
                yield piece
            if asked.released:
                return
            if whole:
                break
            why = "again"
        if not whole:
            raise sitting.give_up()
        for piece in released(sitting, max(whole, key=lambda one: one[1])[0]):
            yield piece

    async def _draft(self, sitting: Sitting, member: Member) -> tuple[MemberCall, float]:
        """Reads a draft, as far as it may still be sure, and how sure it is: 0 where nobody can tell. Raises
        DeadlineError."""
        asked = sitting.ask(member, Wish("draft", sure=self._verifier is None))
        falls = self._measure.falls and self._verifier is None
        try:
            while await asked.next() is not None:
                if falls and asked.surety.tokens and self._measure.read(asked.surety) < self._threshold:
                    asked.close()
                    break
        except UpstreamError:
            return asked, 0.0
        seen = asked.surety if self._verifier is None else await self._verified(sitting, asked)
        if seen is not None and seen.tokens:
            return asked, self._measure.read(seen)
        if self._verifier is None:
            sitting.room.metrics.unjudged["no_logprobs"] += 1
        return asked, 0.0

    async def _verified(self, sitting: Sitting, asked: MemberCall) -> Surety | None:
        """How sure the verifier is of a draft. Raises DeadlineError."""
        verifier = sitting.members.get(self._verifier or "")
        if not asked.complete or verifier is None or sitting.spent:
            return None
        if tools(asked) is not None:
            sitting.room.metrics.unjudged["tools"] += 1
            return None
        wish = Wish("verify", messages(sitting.question, asked.text), {**ASKED}, bare=True)
        if sitting.question.get("tools"):  # its template shows them, as it does to whoever answers
            wish.more |= {"tools": sitting.question["tools"], "tool_choice": "none"}
        answer = await sitting.ask(verifier, wish).whole()
        seen = None if answer is None else read(answer, asked.text)
        if answer is not None and seen is None:
            sitting.room.metrics.unjudged["no_prompt_logprobs"] += 1
        return seen


def _until(block: PanelBlock) -> UntilSpec:
    until: UntilSpec = block.given["until"]
    return until


def _make(block: PanelBlock) -> Cascade:
    until = _until(block)
    threshold: float | None = until.sure
    if until.calibration is not None:
        curve = Curve.read(block.folder / until.calibration)
        _fits(curve, block)
        threshold = curve.threshold(until.sure)
        if threshold is None:
            raise ValueError(
                f"until: {until.calibration} promises a share of {max(curve.right):.3f} of right answers at most, and "
                f"not {until.sure:g}: lower `sure`, or calibrate with more questions"
            )
    assert threshold is not None
    return Cascade(tuple(block.value), MEASURES[until.by], threshold, block.given.get("verifier"))


def _fits(curve: Curve, block: PanelBlock) -> None:
    """Raises ValueError where the curve is another measure's, or another model's."""
    until, first = _until(block), block.served[block.value[0]]
    verifier = block.served[block.given["verifier"]] if "verifier" in block.given else ""
    if curve.by != until.by:
        raise ValueError(f"until: the calibration is of the measure {curve.by}, and not of {until.by}")
    if curve.model != first:
        raise ValueError(f"until: the calibration is of the model {curve.model}, and not of {first}")
    if curve.verifier != verifier:
        raise ValueError(f"until: the calibration has the verifier {curve.verifier or '-'}, and not {verifier or '-'}")
    if len(block.value) > 2:
        raise ValueError("until: a calibration is of one model's answers, so it goes with two members only")


def _check(block: PanelBlock) -> str | None:
    if "until" not in block.given:
        return "cascade needs `until`, such as {sure: 0.9}"
    if len(set(block.value)) < len(block.value):
        return "cascade names a model twice"
    if "verifier" in block.given and _until(block).by == "margin":
        return "until: a verifier does not say the second most probable tokens, so it cannot be by margin"
    return None


def _doubts(block: PanelBlock) -> Iterable[Doubt]:
    until = _until(block)
    if until.calibration is None and until.by == "mean" and until.sure < 0.5:
        text = (
            f"the mean probability of tokens is over {until.sure:g} for nearly every answer: the first is always sure"
        )
        yield Doubt(("until", "sure"), "L331", text)


def _planned(block: PanelBlock) -> tuple[Planned, ...]:
    *early, last = block.value
    calls = [Planned(name, "draft", at == 0) for at, name in enumerate(early)]
    if verifier := block.given.get("verifier"):
        calls.append(Planned(verifier, "verify", False, len(early)))
    return (*calls, Planned(last, "last", not early))


def _how(block: PanelBlock) -> str:
    return f"answered by the first of the models {', '.join(block.value)} that is sure enough"


def _models(block: PanelBlock) -> tuple[str, ...]:
    verifier = block.given.get("verifier")
    return (*block.value[:-1], *(() if verifier is None else (verifier,)), block.value[-1])


KIND: Final = PanelKind(
    name="cascade",
    own=WriterParameter(
        Annotated[tuple[str, ...], Field(min_length=2, max_length=16)],
        "Models that are asked in this order until an answer is sure enough; needs `until`.",
    ),
    parameters={
        "until": WriterParameter(UntilSpec, "When an answer is sure enough."),
        "verifier": WriterParameter(
            str, "`cascade`: the model that reads a draft and says how sure it is of it; else its writer does."
        ),
    },
    names=("verifier",),
    models=_models,
    make=_make,
    planned=_planned,
    how=_how,
    check=_check,
    doubts=_doubts,
    tools=True,
)
