"""The strategies, by their names in the policy. A new one is a file in `strategies/` and a line here."""

from __future__ import annotations

from typing import Final

from stepwise.strategies import chance, cold_start, confidence, fixed, glimpse, policy, verify
from stepwise.strategy import StrategyKind

STRATEGIES: Final[tuple[StrategyKind, ...]] = (
    policy.KIND,
    glimpse.KIND,
    confidence.KIND,
    cold_start.KIND,
    verify.KIND,
    chance.KIND,
    fixed.FIRST_N,
    fixed.ALWAYS_SMALL,
    fixed.ALWAYS_LARGE,
)
BY_NAME: Final = {kind.name: kind for kind in STRATEGIES}
