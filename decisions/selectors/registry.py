"""Every kind of selector there is. A new kind is one file and one line here."""

from __future__ import annotations

from decisions.selectors.bandit import Bandit
from decisions.selectors.cheapest import Cheapest
from decisions.selectors.elo import Elo
from decisions.selectors.ema import Ema
from decisions.selectors.factors import Factors
from decisions.selectors.fastest import Fastest
from decisions.selectors.foretold import Irt, Nearest, Quality
from decisions.selectors.pheromone import Pheromone
from decisions.selectors.selector import Selector
from decisions.selectors.weighted import Weighted

KINDS: tuple[type[Selector], ...] = (
    Weighted,
    Cheapest,
    Fastest,
    Factors,
    Bandit,
    Ema,
    Pheromone,
    Elo,
    Irt,
    Nearest,
    Quality,
)
"""The first is how a choice is made that does not say how."""

BY_NAME: dict[str, type[Selector]] = {kind.name: kind for kind in KINDS}
