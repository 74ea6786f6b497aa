"""What models that an operator mounts give to the signals, and embeddings from wherever they come."""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from signals.facts import Facts
from signals.neural.fair import client_of
from signals.neural.folder import Entity, Mounted, Task
from signals.neural.kinds import shipped
from signals.neural.shipped import Shipped
from signals.request import Scope
from signals.signal import Shared
from signals.text.wrappers import said

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
    return shared.use(Mounted, shared.services.folder / path, task, shared.services)


def source(shared: Shared, encoder: str | None) -> Shipped | Mounted:
    """Where an engine's embeddings come from."""
    return shipped(shared) if encoder is None else mounted(shared, encoder, "encoder")


async def embedding(model: Shipped | Mounted, text: str, facts: Facts) -> F32:
    """The embedding of a text of the request that `facts` are about, length 1."""
    client = client_of(facts.request)
    if isinstance(model, Shipped):
        return (await model.verdict(text, facts.deadline, client)).embedding
    return await model.embedding(text, facts.deadline, client)


class Embedding:
    """Slow input: the embedding of the text of one scope, float32 [d] of length 1."""

    def __init__(self, model: Shipped | Mounted, scope: Scope) -> None:
        self._model, self._scope = model, scope

    async def fetch(self, facts: Facts) -> F32:
        return await embedding(self._model, facts.request.text(self._scope), facts)


class Entities:
    """Slow input: what a mounted token classifier found in the text of one scope."""

    def __init__(self, model: Mounted, scope: Scope) -> None:
        self._model, self._scope = model, scope

    async def fetch(self, facts: Facts) -> list[Entity]:
        request = facts.request
        return await self._model.entities(request.text(self._scope), facts.deadline, client_of(request))


class Turns:
    """Slow input: the embeddings of the last user messages, newest first, at most `count` of them."""

    def __init__(self, model: Shipped | Mounted, count: int) -> None:
        self._model, self._count = model, count

    async def fetch(self, facts: Facts) -> list[F32]:
        turns = (said(m.text) for m in reversed(facts.request.messages) if m.role == "user")
        texts = list(islice((text for text in turns if text.strip()), self._count))
        if len(texts) < 2:
            return []
        return list(await asyncio.gather(*(embedding(self._model, text, facts) for text in texts)))


def closeness(vector: F32, examples: F32, mean: bool) -> float:
    """Cosine of `vector` to the nearest of `examples` [n, d], or its mean over them; 0 at the least."""
    cosines = examples @ vector
    return max(0.0, float(cosines.mean() if mean else cosines.max()))
