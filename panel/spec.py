"""The `panel:` block of a decision, and what is built from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from panel.answer import Panel
from panel.kind import KIND
from panel.metrics import PanelMetrics
from panel.registry import PANELS
from panel.sitting import Member, PanelLimits, Room
from panel.strategy import PanelBlock, PanelKind, PanelStrategy
from signals.bounds import HEADER_NAME, said
from signals.signal import Doubt
from signals.state.store import Memory
from upstream.client import ModelClient
from upstream.writer import Means, Planned, Writer, WriterKind, WriterSpec, parameter_fields

_SPECIFIC = frozenset[str]().union(*(kind.parameters for kind in PANELS))


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class PanelBudget(_Section):
    """PanelLimits of one answer. Without a further call the answer is made of what is there."""

    calls: Annotated[int, Field(ge=1)] = 16
    """The most calls of members."""
    seconds: Annotated[float, Field(gt=0)] = 120.0
    """After this many seconds no call goes on."""
    each: Annotated[float, Field(gt=0)] = 30.0
    """A call that takes longer than this many seconds has failed, unless its text goes to the client as it comes."""
    money: Annotated[float, Field(gt=0)] | None = None
    """No further call once the answer has cost this much, by the models' prices."""


class MemberCard(_Section):
    """What is told of a member."""

    about: str = ""
    """What it is good at, for whoever chooses among members."""
    quality: Annotated[float, Field(ge=0, le=1)] = 1.0
    """How good its answers are, by your own estimate."""
    trust: tuple[str, ...] = ()
    """The trust domains whose requests it may see."""


class TrustSpec(_Section):
    """Where a request says to which trust domain it belongs."""

    header: Annotated[str, Field(pattern=HEADER_NAME, json_schema_extra=said("a header's name is needed"))]
    """A request header that the gateway sets and clients cannot."""
    unsaid: str | None = None
    """The domain of a request without it; left out, no member may see such a request."""


if TYPE_CHECKING:
    _Kinds = WriterSpec
else:
    _Kinds = create_model(
        "_Kinds",
        __base__=WriterSpec,
        **{kind.name: (kind.own.type | None, Field(None, description=kind.own.about)) for kind in PANELS},
        **parameter_fields(kind.parameters for kind in PANELS),
    )


class PanelSpec(_Kinds):
    """Parameters of a `panel` decision: exactly one kind, with its members."""

    kind: ClassVar[WriterKind] = KIND

    budget: PanelBudget = PanelBudget()
    """PanelLimits of one answer."""
    cards: dict[str, MemberCard] = Field(default={})
    """What is told of the members, by their model."""
    trust: TrustSpec | None = None
    """A member is asked only if its card names the request's trust domain."""
    heartbeat: Annotated[float, Field(gt=0, le=300)] = 10.0
    """While a stream has nothing to say for so many seconds, a comment keeps it open."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        chosen = [kind.name for kind in PANELS if getattr(self, kind.name) is not None]
        if len(chosen) != 1:
            names = ", ".join(kind.name for kind in PANELS)
            raise ValueError(f"exactly one kind of panel is needed: {names}")
        taken = self._kind.parameters.keys()
        if strange := sorted((_SPECIFIC & self.model_fields_set) - taken):
            known = ", ".join(sorted(taken)) or "none"
            raise ValueError(f"{chosen[0]} does not take {', '.join(strange)} (its own: {known})")
        if wrong := self._kind.check(self._block):
            raise ValueError(wrong)
        if strangers := sorted(self.cards.keys() - set(self.models)):
            raise ValueError(f"cards: {', '.join(strangers)} is no member of this panel")
        if self.trust is not None and (bare := [name for name in self.models if not self._card(name).trust]):
            raise ValueError(f"trust: {', '.join(bare)} could never be asked: its card needs `trust: [domain]`")
        return self

    def __hash__(self) -> int:
        """Of its kind and members: a decision is hashed with each request, and the cards cannot be."""
        return hash((self._kind.name, self.models))

    @property
    def _kind(self) -> PanelKind:
        return next(kind for kind in PANELS if getattr(self, kind.name) is not None)

    @property
    def _block(self) -> PanelBlock:
        given = {key: value for key in self._kind.parameters if (value := getattr(self, key)) is not None}
        return PanelBlock(getattr(self, self._kind.name), given)

    def _card(self, name: str) -> MemberCard:
        return self.cards.get(name, _NO_CARD)

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._kind.models(self._block)))

    @property
    def fallback(self) -> str:
        return self._kind.models(self._block)[-1]

    @property
    def how(self) -> str:
        return self._kind.how(self._block)

    @classmethod
    def mentions(cls, data: Mapping[str, object]) -> Iterator[tuple[tuple[str | int, ...], object]]:
        for key in dict.fromkeys(key for kind in PANELS for key in (kind.name, *kind.names)):
            yield from _names((key,), data.get(key))

    def doubts(self) -> Iterator[Doubt]:
        yield from self._kind.doubts(self._block)
        if self.trust is None and any(card.trust for card in self.cards.values()):
            yield Doubt(("cards",), "L331", "`trust` on a card does nothing without `trust: {header: …}` beside it")

    def planned(self) -> tuple[Planned, ...]:
        return self._kind.planned(self._block)

    def domain(self, headers: Mapping[str, str]) -> str | None:
        """The request's trust domain; None where it has none, so that nobody may see it."""
        assert self.trust is not None
        return headers.get(self.trust.header.lower()) or self.trust.unsaid

    def bars(self, headers: Mapping[str, str]) -> bool:
        return self.trust is not None and self.domain(headers) not in self._card(self.fallback).trust

    def check(self, folder: Path, names: Mapping[str, str]) -> None:
        self._made(folder, names)

    def _made(self, folder: Path, names: Mapping[str, str]) -> PanelStrategy:
        block = self._block
        return self._kind.make(PanelBlock(block.value, block.given, names, folder))

    def build(self, means: Means) -> Writer:
        """The writer. Raises ValueError when it cannot work."""
        strategy = self._made(means.folder, {name: end.model for name, end in means.endpoints.items()})
        members: dict[str, Member] = {}
        for name in self.models:
            card = self._card(name)
            upstream = ModelClient(means.endpoints[name])
            members[name] = Member(name, upstream, card.quality, frozenset(card.trust), card.about)
        budget = self.budget
        limits = PanelLimits(budget.calls, budget.seconds, budget.each, budget.money)
        room = Room(self._kind.name, members, limits, means.counters.of(PanelMetrics), means.store or Memory())
        return Panel(room, strategy, self, self._kind.tools)


_NO_CARD = MemberCard()


def _names(path: tuple[str | int, ...], value: Any) -> Iterator[tuple[tuple[str | int, ...], object]]:
    """The names of models in a value: itself, or those in its lists, or those that its ways are of."""
    if isinstance(value, list):
        for at, inner in enumerate(value):
            yield from _names((*path, at), inner)
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _names((*path, name, "model"), inner.get("model") if isinstance(inner, dict) else None)
    elif value is not None:
        yield path, value
