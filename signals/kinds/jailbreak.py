"""`jailbreak`: attacks on the model, direct ones and ones hidden in documents and tool results."""

from __future__ import annotations

from pydantic import Field

from signals.facts import Facts
from signals.neural.heads import Verdict
from signals.neural.kinds import shipped
from signals.neural.shipped import Verdicts
from signals.reading import Reading
from signals.request import Scope
from signals.signal import Cost, Params, Shared, Signal

_PASTED = 0.25
"""How much an instruction inside the user's own text counts as a hidden one: whoever pastes a document asks something
about it, too, so what would be an attack in a tool's result is only a hint here."""
_DOCUMENT = 3
"""Sentences from which on the user's text may be a pasted document."""


class JailbreakParams(Params):
    """How probable an attack must be, and where to look."""

    at_least: float = Field(0.8, ge=0, le=1, description="The least probability of an attack that matches.")
    in_: list[Scope] = Field(
        ["user", "tools"],
        alias="in",
        min_length=1,
        description="The texts to judge: user (last user message), latest (all since the assistant's last answer), "
        "conversation, system, tools (tool results), all.",
    )

    def bounds(self) -> tuple[float | None, float | None]:
        return self.at_least, None

    def span(self) -> tuple[float | None, float | None]:
        return 0, 1

    def scopes(self) -> tuple[Scope, ...]:
        return tuple(self.in_)


class Jailbreak(Signal):
    """Reads the probability that one of the texts attacks the model; the label is `direct` or `planted`."""

    kind = "jailbreak"
    Parameters = JailbreakParams
    scored = True
    labelled = True
    finds = True
    cost = Cost.NEURAL

    def __init__(self, name: str, params: JailbreakParams, shared: Shared) -> None:
        super().__init__(name, params, shared)
        self._least = params.at_least
        model = shipped(shared)
        self._verdicts = tuple((scope, shared.use(Verdicts, model, scope)) for scope in dict.fromkeys(params.in_))
        self.slow = tuple(verdict for _, verdict in self._verdicts)

    def read(self, facts: Facts) -> Reading:
        score, label, windows = 0.0, None, 0
        for scope, source in self._verdicts:
            verdict = facts.got(source)
            if not facts.request.text(scope):
                continue
            windows += verdict.windows + verdict.segments
            for found, name in ((verdict.direct, "direct"), (_planted(verdict, scope), "planted")):
                if found > score:
                    score, label = found, name
        return Reading(score >= self._least, score, label, evidence=(f"windows={windows}",))


def _planted(verdict: Verdict, scope: Scope) -> float:
    """The probability of a planted instruction: in full in what tools return, as a hint in what the user wrote."""
    if scope == "tools":
        return verdict.planted
    return _PASTED * verdict.planted if verdict.segments >= _DOCUMENT else 0.0
