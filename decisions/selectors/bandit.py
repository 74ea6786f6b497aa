"""`bandit`: learns from grades which model suits which requests, and tries what it does not know yet (GreenServ)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from math import sqrt
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

from pydantic import Field

from decisions.candidates import fraction, request_key
from decisions.decision import Choice
from decisions.model import Model
from decisions.selectors.learner import Learner, LearnerParams, expected
from decisions.selectors.selector import Graded, Pick
from signals.facts import Facts
from signals.signal import Shared
from signals.text.frame import FRAME, STYLE, style

if TYPE_CHECKING:  # imported where it is used: whoever only checks a policy need not wait for it
    import numpy as np
    from numpy.typing import NDArray

    F64 = NDArray[np.float64]

LIKELY: Final = "likely the best"
TRIED: Final = "tried, since it may be the best"
BUCKETS: Final = 24
SIZE: Final = 1 + BUCKETS + STYLE
"""Numbers that a request is told by: a constant, hashed facts, style."""
DRAWS: Final = 64
"""In how many ways the qualities may be that fit what was learned; each is as likely as the others."""
SPREAD: Final = 0.2
"""How far models may differ on each fact before anything is known (a standard deviation)."""
NOISE: Final = 0.04
"""The variance of a grade before anything is known of it, and how many grades that counts for."""
NOISES: Final = 4.0
_STYLED: Final = 0.05
_SEED: Final = 17


class BanditParams(LearnerParams):
    """How much is tried."""

    explore: float = Field(
        0.7,
        ge=0,
        le=5,
        description="How much is tried: how far a model may be off, of what follows from the grades.",
    )


class Described:
    """Quick input: the numbers that a request is told by. What the policy has read of it counts, too."""

    def compute(self, facts: Facts) -> F64:
        import numpy as np

        hashed = list(facts.get(FRAME))
        for name, reading in facts.telling.items():
            if reading.matched is not None:
                said = f"{name}={reading.label if reading.label is not None else reading.matched}"
                hashed.append(hash_of(said))
        hashed.append(sum(hashed))  # all of them together
        counts = [0.0] * BUCKETS
        for each in hashed:
            counts[each % BUCKETS] += 1.0
        size = max(1.0, sqrt(sum(count * count for count in counts)))
        figures = [figure * _STYLED for figure in style(facts.request.text("user"))]
        return np.array([1.0, *(count / size for count in counts), *figures])


DESCRIBED: Final = Described()


class Bandit(Learner):
    """Thompson sampling (Thompson 1933; Agrawal and Goyal, ICML 2013) over linear models of the grade.

    All candidates share one regression of the grade on the facts, for how hard a request is; each has one of its own of
    what it is better or worse (hybrid, as in Li et al., WWW 2010). The weights that fit the grades are drawn in DRAWS
    ways, which are the same for all requests; a hash of the request says which draw decides, so that the share of
    draws in which a candidate is best is its propensity.

    Of each candidate the sums of x xT (its upper half), of x times grade and of the grade's square are kept.
    """

    name = "bandit"
    about = "Learn from grades which model suits which requests, and try what is not known yet."
    Parameters = BanditParams
    sums = SIZE * (SIZE + 1) // 2 + SIZE + 1

    def __init__(self, pick: Pick, params: BanditParams, shared: Shared) -> None:
        import numpy as np

        super().__init__(pick, params, shared)
        self._triangle = np.triu_indices(SIZE)
        self._scope = pick.decision
        self._places = {model.key: at for at, model in enumerate(self.models)}
        prior = np.array([expected(model) for model in self.models])
        self._prior = prior - prior.mean()
        normal = np.random.default_rng(_SEED).standard_normal((DRAWS, len(self.models)))
        self._normal = params.explore * normal
        self._solving: asyncio.Task[None] | None = None
        self._told = (self.standing.version, self.standing.pulls)
        self._fit = self._solved(self._sums())

    def context(self, facts: Facts) -> list[tuple[int, float]]:
        return [(at, round(number, 6)) for at, number in enumerate(facts.get(DESCRIBED).tolist()) if number]

    def chosen(self, models: Sequence[Model], facts: Facts) -> Choice:
        import numpy as np

        if self.standing.pulls != self._told[1]:
            self._follow()
        told = facts.get(DESCRIBED)
        weights, spreads = self._fit
        mean = weights @ told
        spread = np.sqrt(np.maximum((spreads @ told).reshape(-1, SIZE) @ told, 0.0))
        if self.cost:
            mean = mean - np.array(self.prices(self.models, facts))
        drawn = mean + spread * self._normal
        if len(models) < len(self.models):
            able = [self._places[model.key] for model in models]
            best = np.array(able)[drawn[:, able].argmax(1)]
            likely = able[int(mean[able].argmax())]
        else:
            best, likely = drawn.argmax(1), int(mean.argmax())
        at = int(best[int(fraction(request_key(facts.request), self._scope) * DRAWS)])
        share = int(np.count_nonzero(best == at)) / DRAWS
        return Choice(self.models[at], LIKELY if at == likely else TRIED, share, self.name)

    def take(self, given: Graded, score: float) -> None:
        import numpy as np

        told = np.zeros(SIZE)
        for at, value in _pairs(given.context):
            told[at] = value
        self.standing.add(
            given.arm, np.concatenate((np.outer(told, told)[self._triangle], score * told, [score * score]))
        )
        self._follow()

    def summary(self, sums: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, float]]:
        half = SIZE * (SIZE + 1) // 2  # behind it stands the sum of grades times the constant
        found = {}
        for model in self.models:
            some = sums.get(model.key)
            count, total = (0.0, 0.0) if some is None else (some[0], some[half])
            found[model.key] = (count, (total + NOISES * expected(model)) / (count + NOISES))
        return found

    async def settle(self) -> None:
        if self._solving is not None:
            await asyncio.shield(self._solving)

    def _follow(self) -> None:
        """Solve anew, where enough has been learned since: in a thread, for no request is to wait for it; at once only
        where no event loop runs, as in a command."""
        if self._solving is not None or not self._behind():
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._told = (self.standing.version, self.standing.pulls)
            self._fit = self._solved(self._sums())
        else:
            self._solving = loop.create_task(self._solve_apart())

    def _behind(self) -> bool:
        """Whether enough has been learned to solve anew: the more is known the less one grade changes."""
        version, pulls = self.standing.version, self.standing.pulls
        return pulls != self._told[1] or version - self._told[0] >= max(1, version // 50)

    async def _solve_apart(self) -> None:
        try:
            while self._behind():
                self._told = (self.standing.version, self.standing.pulls)
                self._fit = await asyncio.to_thread(self._solved, self._sums())
        finally:
            self._solving = None

    def _sums(self) -> list[F64 | None]:
        """What was learned of each candidate."""
        return [self.standing.of(model.key) for model in self.models]

    def _solved(self, learned: Sequence[F64 | None]) -> tuple[F64, F64]:
        """The weights that fit the grades [candidates, SIZE], and how far they may be off [candidates * SIZE, SIZE]."""
        import numpy as np

        count = len(self.models)
        squares, products, power = np.zeros((count, SIZE, SIZE)), np.zeros((count, SIZE)), 0.0
        half = SIZE * (SIZE + 1) // 2
        for at, sums in enumerate(learned):
            if sums is not None:
                squares[at][self._triangle] = sums[:half]
                products[at] = sums[half:-1]
                power += float(sums[-1])
        squares += np.triu(squares, 1).transpose(0, 2, 1)
        unit = np.eye(SIZE)
        start = np.zeros(SIZE)
        start[0] = 0.5
        all_squares, all_products = squares.sum(0), products.sum(0)
        fit = np.linalg.solve(all_squares + unit, all_products + start)
        missed = power - 2 * fit @ all_products + fit @ all_squares @ fit
        noise = max((missed + NOISES * NOISE) / (float(all_squares[0, 0]) + NOISES), 1e-4)
        first = np.zeros((count, SIZE))
        first[:, 0] = self._prior
        told, pull = squares / noise, products / noise
        own = np.linalg.inv(told + unit / SPREAD**2)
        # What all have in common, as far as their own weights leave it open.
        left = told - told @ own @ told
        weight = pull - np.einsum("kde,kef,kf->kd", told, own, pull + first / SPREAD**2)
        common = np.linalg.solve(left.sum(0) + unit, weight.sum(0) + start)
        weights = common + np.einsum("kde,ke->kd", own, pull - told @ common + first / SPREAD**2)
        return weights, own.reshape(-1, SIZE)


def hash_of(said: str) -> int:
    """32 bits of a fact."""
    return crc32(said.encode(errors="surrogatepass"))


def _pairs(context: Any) -> list[tuple[int, float]]:
    """The numbers of a request by their places. Raises ValueError where they are none."""
    if type(context) not in (list, tuple) or len(context) > SIZE:
        raise ValueError("not the facts of a request")
    found = [(int(at), float(value)) for at, value in context]
    if not all(0 <= at < SIZE and abs(value) <= 10 for at, value in found):
        raise ValueError("not the facts of a request")
    return found
