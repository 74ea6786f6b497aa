"""What models that an operator mounts give to the signals, and embeddings from wherever they come."""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from pydantic import Field

from signals.facts import Facts
from signals.neural.fair import client_of
from signals.neural.kinds import shipped
from signals.reading import Unavailable
from signals.request import Scope
from signals.signal import Shared
from signals.text.alike import Letters
from signals.text.wrappers import said

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from signals.neural.folder import Entity, Mounted, Task
    from signals.neural.meanings import Meaning, Meanings

    F32 = NDArray[np.float32]

ENCODER: Any = Field(
    None,
    min_length=1,
    description="Folder of a sentence encoder (ONNX, Hugging Face layout) to use instead of the shipped embedding, "
    "relative to the policy.",
)
EXAMPLE_LIMIT = 500


def mounted(shared: Shared, path: str, task: Task) -> Mounted:
    """The model in a folder, relative to the policy's. ModelError when it cannot be used."""
    from signals.neural.folder import Mounted  # not at the top: whoever only checks a policy need not wait for it

    return shared.use(Mounted, shared.services.folder / path, task, shared.services)


def source(shared: Shared, encoder: str | None) -> Meanings | Mounted:
    """Where an engine's embeddings come from."""
    if encoder is not None:
        return mounted(shared, encoder, "encoder")
    from signals.neural.meanings import Meanings  # with numpy, for which whoever only checks a policy need not wait

    return shared.use(Meanings, shipped(shared), shared.services)


async def meaning(model: Meanings | Mounted, text: str, facts: Facts) -> Meaning:
    """What a text of the request that `facts` are about means. A mounted encoder is taken to know all."""
    from signals.neural.meanings import Meaning, Meanings

    client = client_of(facts.request)
    if isinstance(model, Meanings):
        return await model.meaning(text, facts.deadline, client)
    return Meaning(await model.embedding(text, facts.deadline, client))


class Embedding:
    """Slow input: the embedding of the text of one scope, float32 [d] of length 1.

    `Unavailable` (`too_little_known`) where too few of its words are known.
    """

    def __init__(self, model: Meanings | Mounted, scope: Scope) -> None:
        self._model, self._scope = model, scope

    async def fetch(self, facts: Facts) -> F32:
        found = await meaning(self._model, facts.request.text(self._scope), facts)
        if not found.known:
            raise Unavailable("too_little_known")
        return found.vector


class Entities:
    """Slow input: what a mounted token classifier found in the text of one scope."""

    def __init__(self, model: Mounted, scope: Scope) -> None:
        self._model, self._scope = model, scope

    async def fetch(self, facts: Facts) -> list[Entity]:
        request = facts.request
        return await self._model.entities(request.text(self._scope), facts.deadline, client_of(request))


class Turns:
    """Slow input: how close the last user message comes to each of those before, newest first, at most `count`.

    None where their words are too little known, unless they are the same letters.
    """

    def __init__(self, model: Meanings | Mounted, count: int) -> None:
        self._model, self._count = model, count

    async def fetch(self, facts: Facts) -> list[float | None]:
        turns = (said(m.text) for m in reversed(facts.request.messages) if m.role == "user")
        texts = list(islice((text for text in turns if text.strip()), self._count + 1))
        if len(texts) < 2:
            return []
        last, *earlier = await asyncio.gather(*(meaning(self._model, text, facts) for text in texts))
        asked, *before = map(Letters, texts)
        return [repeated(last, one, (asked, letters)) for one, letters in zip(earlier, before, strict=True)]


_SAME: Final = 0.8
"""How alike two texts are written that ask the same."""


def repeated(last: Meaning, earlier: Meaning, letters: tuple[Letters, Letters]) -> float | None:
    """How close the meanings of two texts are, or, where the words are too little known, how alike they are written if
    that is enough to call them the same; else None."""
    if last.known and earlier.known:
        return max(0.0, float(last.vector @ earlier.vector))
    written = letters[0].alike(letters[1])
    return written if written >= _SAME else None


def closeness(vector: F32, examples: F32, mean: bool) -> float:
    """Cosine of `vector` to the nearest of `examples` [n, d], or its mean over them; 0 at the least."""
    cosines = examples @ vector
    return max(0.0, float(cosines.mean() if mean else cosines.max()))
