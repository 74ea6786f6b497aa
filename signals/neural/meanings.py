"""The shipped table of what pieces of words mean, in many languages: what `similar`, `contrast`, `reask` and
`knowledge` compare texts by."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from signals.neural.heads import ModelError, digest
from signals.neural.memory import trim_heap
from signals.neural.pieces import Vocabulary
from signals.neural.service import Inference, Service
from signals.neural.shipped import LEAST_MEANT, Shipped
from signals.neural.tokenizer import MODELS
from signals.services import Services
from signals.text.view import view

log = logging.getLogger("pointsman.neural")

F32 = NDArray[np.float32]

TABLE: Final = MODELS / "meanings.npz"
LEAST_COVERED: Final = 0.65
"""The share of letters in known pieces below which the table does not know what a text means."""


class Meaning(NamedTuple):
    """The embedding of a text, float32 [d] of length 1, and whether enough of its words are known to it."""

    vector: F32
    known: bool = True


def _no_rest() -> None:
    """Nobody else waits."""


class MeaningTable:
    """The vectors of pieces, four bits a number: a text means the sum of those of its pieces. Threads may share it."""

    def __init__(self, path: Path = TABLE) -> None:
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
                self._pieces = Vocabulary(found["pieces"].tobytes().decode().split("\n"))
                self._halves: NDArray[np.uint8] = found["halves"]
                self._scales = found["scales"].astype(np.float32)
            self.digest = digest(path)
        except (OSError, ValueError, KeyError, BadZipFile, EOFError) as error:
            raise ModelError(f"{path}: {error}: the shipped table is damaged; reinstall it") from None
        rows = len(self._pieces)
        if self._halves.dtype != np.uint8 or self._halves.shape[0] != rows or self._scales.shape != (rows,):
            raise ModelError(f"{path}: its arrays do not belong together; reinstall it")
        self.width: int = 2 * self._halves.shape[1]
        log.info("the shipped table of meanings: sha256 %s", self.digest)
        trim_heap()

    def __len__(self) -> int:
        """How many pieces there are."""
        return len(self._pieces)

    def meaning(self, text: str, rest: Callable[[], None] = _no_rest) -> Meaning:
        """What `text` means. `rest` is called between steps of some milliseconds."""
        total = np.zeros(self.width, np.float32)
        letters = known = 0
        for bag in self._pieces.bags(view(text)):
            total += self._sum(bag.rows)
            letters += bag.letters
            known += bag.known
            rest()
        length = float(np.sqrt(total @ total))
        vector = total / length if length else total
        return Meaning(vector, known >= LEAST_COVERED * letters)

    def _sum(self, rows: NDArray[np.int32]) -> F32:
        """The sum of the rows' vectors: of each byte the low half is an even number of the vector, the high half the
        odd one after it."""
        halves, scales = self._halves.take(rows, 0), self._scales.take(rows)
        made = np.empty((self.width // 2, 2), np.float32)
        made[:, 0] = scales @ (halves & 15)
        made[:, 1] = scales @ (halves >> 4)
        made -= np.float32(7.5) * scales.sum()
        return made.ravel()


def table(inference: Inference) -> MeaningTable:
    """The shipped table; engines that live at the same time share one copy. ModelError."""
    key = (TABLE, TABLE.stat().st_mtime_ns, TABLE.stat().st_size) if TABLE.exists() else TABLE
    return inference.loaded(MeaningTable, key, MeaningTable)


def together(old: F32, meant: float, new: Meaning) -> Meaning:
    """What a text means by both: the table's vector, and beside it that of the heads, `old`, the longer the more of the
    words they know (`meant`, a share): half of the similarity where they know all, nothing from LEAST_MEANT down."""
    length = max(0.0, (meant - LEAST_MEANT) / (1 - LEAST_MEANT))
    vector = np.concatenate((old * np.float32(length), new.vector))
    size = float(np.sqrt(vector @ vector))
    vector /= np.float32(size or 1.0)
    return Meaning(vector, new.known or meant >= LEAST_MEANT)


class Meanings:
    """What texts mean by the shipped table and by the heads, one for each engine. Texts of more estimated tokens than
    `services.max_input_tokens` are Unknown."""

    def __init__(self, shipped: Shipped, services: Services) -> None:
        self._shipped = shipped
        self.model = table(services.inference)
        meter = services.inference.meter("meanings")
        self.service: Service[str, Meaning] = Service(meter, self._read, len, limits=services.limits)
        self.service.padded = False

    def _read(self, texts: list[str]) -> list[Meaning]:
        return [self.model.meaning(text, self.service.rest) for text in texts]

    async def meaning(self, text: str, deadline: float, client: str = "") -> Meaning:
        """What `text` means; see `Service.ask` for the rest."""
        verdict = await self._shipped.verdict(text, deadline, client)
        new = await self.service.ask(text, deadline, client) if text else self.model.meaning("")
        return together(verdict.embedding, verdict.meant, new)

    def at_once(self, text: str) -> Meaning:
        """What `text` means, here and now."""
        verdict = self._shipped.model.verdicts([text])[0]
        return together(verdict.embedding, verdict.meant, self.model.meaning(text))

    def embed(self, texts: list[str]) -> F32:
        """Embeddings float32 [n, d] of length 1, here and now: for examples, while an engine is built."""
        return np.stack([self.at_once(text).vector for text in texts])

    def close(self) -> None:
        self.service.close()
