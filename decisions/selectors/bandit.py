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
from decisions.selectors.learner import Known, Learner, LearnerParams, expected
from decisions.selectors.selector import Graded, Pick
from signals.facts import Facts
from signals.signal import Shared
from signals.state.standing import PASSING
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


class Fit:
    """What follows from what is known together: `weights` and `spreads` as `_solved` gives them, of when `stamp` was
    `told`; and the task that is solving anew, if there is one."""

    weights: F64
    spreads: F64

    def __init__(self, known: Known) -> None:
        self.known = known
        self.told = -1, -1
        self.solving: asyncio.Task[None] | None = None

    def stamp(self) -> tuple[int, int]:
        """How much was learned here, and how often the sums of others have changed."""
        version = pulls = 0
        for standing in self.known:
            version += standing.version
            pulls += standing.pulls
        return version, pulls

    def behind(self) -> bool:
        """Whether enough has been learned to solve anew: the more is known the less one grade changes."""
        version, pulls = self.stamp()
        return pulls != self.told[1] or version - self.told[0] >= max(1, version // 50)


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
        self._fits: dict[Known, Fit] = {}
        self._fit(self._everybody)

    def context(self, facts: Facts) -> list[tuple[int, float]]:
        return [(at, round(number, 6)) for at, number in enumerate(facts.get(DESCRIBED).tolist()) if number]

    def chosen(self, models: Sequence[Model], facts: Facts, known: Known) -> Choice:
        import numpy as np

        fit = self._fit(known)
        told = facts.get(DESCRIBED)
        mean = fit.weights.dot(told)
        first, second = self._triangle
        spread = fit.spreads.dot(told.take(first) * told.take(second))
        np.sqrt(np.maximum(spread, 0.0, out=spread), out=spread)
        if self.cost:
            mean -= np.array(self.prices(self.models, facts))
        if len(models) < len(self.models):
            able = np.zeros(len(self.models), bool)
            able[[self._places[model.key] for model in models]] = True
            mean[~able] = -np.inf
        drawn = self._normal * spread
        drawn += mean
        best = drawn.argmax(1)
        at = best.item(int(fraction(request_key(facts.request), self._scope) * DRAWS))
        share = int(np.count_nonzero(best == at)) / DRAWS
        return Choice(self.models[at], LIKELY if at == mean.argmax() else TRIED, share, self.name)

    def take(self, given: Graded, score: float, known: Known) -> None:
        import numpy as np

        told = np.zeros(SIZE)
        for at, value in _pairs(given.context):
            told[at] = value
        amounts = np.concatenate((np.outer(told, told)[self._triangle], score * told, [score * score]))
        known[-1].add(given.arm, amounts)
        if known in self._fits:
            self._fit(known)

    def summary(self, sums: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, float]]:
        half = SIZE * (SIZE + 1) // 2  # behind it stands the sum of grades times the constant
        found = {}
        for model in self.models:
            some = sums.get(model.key)
            count, total = (0.0, 0.0) if some is None else (some[0], some[half])
            found[model.key] = (count, (total + NOISES * expected(model)) / (count + NOISES))
        return found

    async def settle(self) -> None:
        for fit in list(self._fits.values()):
            if fit.solving is not None:
                await asyncio.shield(fit.solving)

    def _fit(self, known: Known) -> Fit:
        """What follows from what is known. It is solved anew, where enough has been learned since, in a thread, for no
        request is to wait for it; at once only where no event loop runs, as in a command."""
        fit = self._fits.get(known)
        if fit is None:
            fit = self._fits[known] = Fit(known)
            if known is self._everybody:
                fit.weights, fit.spreads = self._solved(self._sums(fit))
                return fit
            everybody = self._fit(self._everybody)
            fit.weights, fit.spreads = everybody.weights, everybody.spreads
            if len(self._fits) > PASSING:
                del self._fits[next(each for each in self._fits if each is not self._everybody)]
        if fit.solving is None and fit.behind():
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                fit.weights, fit.spreads = self._solved(self._sums(fit))
            else:
                fit.solving = loop.create_task(self._solve_apart(fit))
        return fit

    async def _solve_apart(self, fit: Fit) -> None:
        try:
            while fit.behind():
                fit.weights, fit.spreads = await asyncio.to_thread(self._solved, self._sums(fit))
        finally:
            fit.solving = None

    def _sums(self, fit: Fit) -> list[F64 | None]:
        """What was learned of each candidate until now."""
        fit.told = fit.stamp()
        found: list[F64 | None] = []
        for model in self.models:
            some = [sums for standing in fit.known if (sums := standing.of(model.key)) is not None]
            found.append(sum(some[1:], some[0]) if some else None)
        return found

    def _solved(self, learned: Sequence[F64 | None]) -> tuple[F64, F64]:
        """The weights that fit the grades [candidates, SIZE], and how far they may be off: what each product of two
        facts adds to the variance, by their covariance's upper half [candidates, SIZE * (SIZE + 1) / 2]."""
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
        return weights, own[:, *self._triangle] * np.where(self._triangle[0] == self._triangle[1], 1.0, 2.0)


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
