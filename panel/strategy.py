"""What every kind of panel is: who its members are, which keys of the block are its own, and how it comes to an answer.

A new kind is one file in `panel/kinds/`, with a `PanelKind`, and a line in `panel.registry`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from panel.sitting import Sitting
from signals.signal import Doubt
from upstream.apis.shape import Spoken
from upstream.writer import Planned, WriterParameter


class PanelStrategy(Protocol):
    """Comes to an answer; one for all answers of a panel, without state of any one."""

    def run(self, sitting: Sitting) -> AsyncGenerator[Spoken, None]:
        """The pieces of the answer, as early as they are sure to be its own. At its end `sitting.finish` is set.

        Raises NoAnswer and DeadlineError. It may be closed at any moment; the sitting's calls are ended by the sitting.
        """
        ...


@dataclass(frozen=True, slots=True)
class PanelBlock:
    """What the block of a decision says to its kind: `value` of the kind's own key, `given` of its parameters as far as
    there are some. `served`: the models' names at their servers, by key. `folder` is the policy file's."""

    value: Any
    given: Mapping[str, Any]
    served: Mapping[str, str] = field(default_factory=dict)
    folder: Path = Path()


def no_doubts(block: PanelBlock) -> Iterable[Doubt]:
    """Nothing to warn of."""
    return ()


@dataclass(frozen=True, slots=True)
class PanelKind:
    """One kind, by its key in the `panel:` block.

    `own` is that key's type, `about` what it does. `parameters` are further keys that it takes, `names` those of them
    that name models. `models`: the models that a block names, those that answer first; the last one takes the calls
    that no panel can answer. `make` builds the strategy (ValueError when it cannot work), `check` says what is wrong
    with a block before that, `planned` which calls are to be expected, `how` what happens in one phrase. `tools`: a
    call with tools can be answered, because one member's answer is released as it is.
    """

    name: str
    own: WriterParameter
    parameters: Mapping[str, WriterParameter]
    models: Callable[[PanelBlock], tuple[str, ...]]
    make: Callable[[PanelBlock], PanelStrategy]
    planned: Callable[[PanelBlock], tuple[Planned, ...]]
    how: Callable[[PanelBlock], str]
    check: Callable[[PanelBlock], str | None] = lambda block: None
    names: tuple[str, ...] = ()
    doubts: Callable[[PanelBlock], Iterable[Doubt]] = no_doubts
    tools: bool = False
