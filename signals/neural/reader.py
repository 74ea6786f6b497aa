"""The second reader of `jailbreak` and `domain`: a small multilingual encoder that reads what the shipped heads are not
sure of.

It lies in signals/models/reader, a folder like those that operators mount; its `config.json` also has the `bands` of
`jailbreak` and the `fields` of `domain`: between which of the heads' probabilities it is asked, and how the two are
weighed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from pathlib import Path
from typing import Final

import numpy as np

from signals.facts import Facts
from signals.gather import let_go
from signals.neural.fair import client_of
from signals.neural.folder import F32, load
from signals.neural.heads import HeadVerdict, ModelError
from signals.neural.service import Service
from signals.neural.shipped import LEAST_KNOWN, Verdicts
from signals.neural.tokenizer import MODELS
from signals.reading import Unavailable
from signals.services import Services

READER: Final = MODELS / "reader"
CHUNK: Final = 128
"""Pieces that it reads at once: of a longer text the first and the last."""
_EDGE: Final = 1e-7
_SOONER_S: Final = 0.003
"""Seconds before the deadline at which the heads' word is taken, so that it is not late as well."""


@dataclass(frozen=True, slots=True)
class Band:
    """Where the heads are not sure: from the probability `low` to `high` (excluded). There the probability is that of
    the logit `fast` x (the heads') + `reader` x (the reader's) + `shift`."""

    low: float
    high: float
    fast: float
    reader: float
    shift: float

    def weigh(self, fast: float, reader: float) -> float:
        """The probability by that of the heads and that of the reader."""
        value = self.fast * _logit(fast) + self.reader * _logit(reader) + self.shift
        return 1 / (1 + exp(-min(700.0, max(-700.0, value))))


@dataclass(frozen=True, slots=True)
class FieldWeights:
    """How the fields' probabilities of both are weighed: the softmax of `fast` x the logarithm of the heads' and
    `reader` x the reader's logit. Where the heads' likeliest field is at least `sure`, it is not asked."""

    sure: float
    fast: float
    reader: float

    def weigh(self, fast: Mapping[str, float], reader: Mapping[str, float]) -> dict[str, float]:
        """The probabilities by the heads' and the reader's logits."""
        values = {
            name: self.fast * log(max(_EDGE, chance)) + self.reader * reader[name] for name, chance in fast.items()
        }
        most = max(values.values())
        shares = {name: exp(value - most) for name, value in values.items()}
        whole = sum(shares.values())
        return {name: share / whole for name, share in shares.items()}


@dataclass(frozen=True, slots=True)
class Opinion:
    """What both readers together say of one text: the probabilities as in the `verdict` of the heads where these were
    sure, and whether the second was `asked`. `missing`: why it was not heard although it was wanted; the probabilities
    are those of the heads then."""

    verdict: HeadVerdict
    direct: float
    planted: float
    asked: bool
    missing: Unavailable | None = None


class Second:
    """The second reader behind its service, one an engine. ModelError when its files are damaged."""

    def __init__(self, services: Services, folder: Path | None = None) -> None:
        folder = folder or READER
        self._model = load(folder, "sequence", services)
        try:
            config = json.loads((folder / "config.json").read_text())
            self.direct, self.planted = (Band(**config["bands"][name]) for name in ("direct", "planted"))
            self.fields = FieldWeights(**config["fields"])
            at = [self._model.labels.index(name) for name in ("direct", "planted")]
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{folder / 'config.json'}: {error}: the shipped model is damaged; reinstall it") from None
        self._column = dict(zip(("direct", "planted"), at, strict=True))
        meter = services.inference.meter("reader")
        self.service: Service[list[int], F32] = Service(meter, self._model.run, len, limits=services.limits, hang=30)
        # On a CPU a batch takes as long as its texts one after the other, and all others wait for it.
        self.service.work = (4 if self._model.device == "cpu" else 64) * CHUNK

    def chunks(self, text: str) -> list[list[int]]:
        """What is read of a text: its pieces, or the first and the last CHUNK of them."""
        ids, _ = self._model.encode(text)
        parts = [ids] if len(ids) <= CHUNK else [ids[:CHUNK], ids[-CHUNK:]]
        return [self._model.windows(part, CHUNK, CHUNK)[0][1] for part in parts]

    def judge(self, text: str, name: str) -> float:
        """The probability here and now; `name` as in `ask`."""
        return _most(self._model.run(self.chunks(text)), self._column[name])

    async def ask(self, text: str, name: str, deadline: float, client: str) -> float:
        """The probability that `text` attacks the model (`name` direct) or holds an order that does not belong there
        (planted). Raises Unavailable, as `Service.ask` does."""
        return _most(await self._read(text, deadline, client), self._column[name])

    async def field(self, text: str, deadline: float, client: str) -> dict[str, float]:
        """The logit of each field of knowledge, of a long text the mean of its chunks'. Unavailable as above."""
        return self._fields(await self._read(text, deadline, client))

    def wants(self, verdict: HeadVerdict) -> bool:
        """Whether it should read for its field, too, what the heads' `verdict` is on. In languages that the heads do
        not know nothing was measured."""
        return verdict.known >= LEAST_KNOWN and max(verdict.domain.values()) < self.fields.sure

    def fields_of(self, text: str) -> dict[str, float]:
        """The logit of each field here and now."""
        return self._fields(self._model.run(self.chunks(text)))

    def fields_with(self, verdict: HeadVerdict) -> dict[str, float] | None:
        """What both say of a text's field, here and now; None where the second is not asked."""
        if not self.wants(verdict):
            return None
        found = self.fields_of(verdict.asked)
        return self.fields.weigh(verdict.domain, found)

    def _fields(self, rows: Sequence[F32]) -> dict[str, float]:
        named = zip(self._model.labels, np.stack(rows).T.tolist(), strict=True)
        return {name: sum(map(_logit, column)) / len(column) for name, column in named if name not in self._column}

    async def _read(self, text: str, deadline: float, client: str) -> list[F32]:
        tasks = [asyncio.ensure_future(self.service.ask(part, deadline, client)) for part in self.chunks(text)]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:  # where one has failed, nobody wants the other
                task.cancel()
                task.add_done_callback(let_go)

    def close(self) -> None:
        self.service.close()


class Opinions:
    """Slow input: what both readers say of the text of one scope, or the heads alone where there is no second."""

    def __init__(self, verdicts: Verdicts, second: Second | None) -> None:
        self._verdicts, self._second = verdicts, second

    async def fetch(self, facts: Facts) -> Opinion:
        second, client = self._second, client_of(facts.request)
        verdict = await _verdict(self._verdicts, facts)
        direct, planted = verdict.direct, verdict.planted
        asked = False
        if second is None:
            return Opinion(verdict, verdict.alone, planted, asked)
        deadline = facts.deadline - _SOONER_S
        try:
            if verdict.suspect and second.direct.low <= direct < second.direct.high:
                found = await second.ask(verdict.suspect, "direct", deadline, client)
                direct, asked = second.direct.weigh(direct, found), True
            if (
                self._verdicts.scope == "tools"
                and verdict.order
                and second.planted.low <= planted < second.planted.high
            ):
                found = await second.ask(verdict.order, "planted", deadline, client)
                planted, asked = second.planted.weigh(planted, found), True
        except Unavailable as missing:
            return Opinion(verdict, verdict.alone, verdict.planted, asked, missing)
        return Opinion(verdict, direct, planted, asked)


@dataclass(frozen=True, slots=True)
class FieldOpinion:
    """The `verdict` of the heads and, where they were not sure, the probabilities of the fields by both readers; None
    where the second was not asked, or not heard in time."""

    verdict: HeadVerdict
    both: dict[str, float] | None


class FieldOpinions:
    """Slow input: which field the text of one scope belongs to, by both readers. Where the second cannot be heard in
    time, the heads' word stands: they are right more often than not, and no guard hangs on a field."""

    def __init__(self, verdicts: Verdicts, second: Second) -> None:
        self._verdicts, self._second = verdicts, second

    async def fetch(self, facts: Facts) -> FieldOpinion:
        second = self._second
        verdict = await _verdict(self._verdicts, facts)
        if not second.wants(verdict):
            return FieldOpinion(verdict, None)
        try:
            found = await second.field(verdict.asked, facts.deadline - _SOONER_S, client_of(facts.request))
        except Unavailable:
            return FieldOpinion(verdict, None)
        return FieldOpinion(verdict, second.fields.weigh(verdict.domain, found))


async def _verdict(verdicts: Verdicts, facts: Facts) -> HeadVerdict:
    """What the heads say, kept for the other signals that want it."""
    if facts.has(verdicts):
        return facts.got(verdicts)
    try:
        verdict = await verdicts.fetch(facts)
    except Unavailable as missing:
        facts.put(verdicts, missing)
        raise
    facts.put(verdicts, verdict)
    return verdict


def _most(rows: Sequence[F32], column: int) -> float:
    return float(np.stack(rows)[:, column].max())


def _logit(chance: float) -> float:
    inside = min(1 - _EDGE, max(_EDGE, chance))
    return log(inside / (1 - inside))
