"""The kinds of panels. A new one is a file in `panel/kinds/`, and a line here."""

from __future__ import annotations

from typing import Final

from panel.kinds import agree, cascade, merge, plan, rank, rounds, vote
from panel.strategy import PanelKind

PANELS: Final[tuple[PanelKind, ...]] = (
    cascade.KIND,
    agree.KIND,
    vote.KIND,
    merge.KIND,
    rank.KIND,
    rounds.KIND,
    plan.KIND,
)
BY_NAME: Final[dict[str, PanelKind]] = {kind.name: kind for kind in PANELS}
