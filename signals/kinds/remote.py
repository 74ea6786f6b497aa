"""`remote`: a classifier behind a KServe v2 endpoint (KServe, Triton), over HTTP or gRPC."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, StringConstraints

from signals.bounds import said
from signals.facts import Facts
from signals.neural.fair import client_of
from signals.neural.service import Service
from signals.neural.shipped import within
from signals.reading import Reading, Unavailable
from signals.request import Scope
from signals.signal import Cost, Shared, Signal, TextParams

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class RemoteParams(TextParams):
    """Where the model is, what its tensors are called, and which score counts."""

    url: Annotated[str, StringConstraints(pattern=r"^(https?|grpcs?)://[^\s/]+(/\S*)?$")] = Field(
        description="http://host:port, https://…, grpc://host:port or grpcs://…",
        json_schema_extra=said("a URL is needed, such as http://host:8000 or grpc://host:8001"),
    )
    model: str = Field(min_length=1, description="The model's name on the server.")
    version: str | None = Field(None, min_length=1, description="Its version; left out, the server chooses.")
    timeout: float = Field(
        0.2, gt=0, le=60, description="Seconds for one call; the request's deadline may end it earlier."
    )
    input: str = Field("text", min_length=1, description="The input tensor: BYTES [n, 1], one text per row.")
    output: str = Field("scores", min_length=1, description="The output tensor: FP32 [n, classes] or [n].")
    labels: list[str] | None = Field(None, min_length=1, description="Names of the classes, in order.")
    label: str | None = Field(None, min_length=1, description="The class whose score counts; left out, the first.")
    at_least: float = Field(0.5, description="The least score that matches.")

    def bounds(self) -> tuple[float | None, float | None]:
        return self.at_least, None


class _Answer:
    """Slow input: the scores float32 [classes] that the endpoint gives the text of a scope."""

    def __init__(self, service: Service[str, NDArray[np.float32]], scope: Scope, timeout: float, cap: int) -> None:
        self._service, self._scope, self._timeout, self._cap = service, scope, timeout, cap

    async def fetch(self, facts: Facts) -> NDArray[np.float32]:
        text = within(facts.request.text(self._scope), self._cap)
        deadline = min(facts.deadline, time.monotonic() + self._timeout)
        return await self._service.ask(text, deadline, client_of(facts.request))


class Remote(Signal):
    """Reads one score of a model on another server. The label is the class with the greatest score."""

    kind = "remote"
    Parameters = RemoteParams
    answers = True
    scored = True
    labelled = True
    cost = Cost.REMOTE

    def __init__(self, name: str, params: RemoteParams, shared: Shared) -> None:
        from signals.neural.kserve import InferenceClient, RemoteModel

        super().__init__(name, params, shared)
        labels = params.labels or []
        if params.label is not None and params.label not in labels:
            raise ValueError(f"label: {params.label} is not one of labels ({', '.join(labels) or 'none given'})")
        self._labels, self._least, self._scope = labels, params.at_least, params.in_
        self._index = labels.index(params.label) if params.label else 0
        services = shared.services
        at = RemoteModel(params.url, params.model, params.version, params.input, params.output, params.timeout)
        client = shared.use(InferenceClient, at, services)
        cap = services.max_input_tokens
        self._answer = shared.use(_Answer, client.service, params.in_, params.timeout, cap)
        self.slow = (self._answer,)

    def read(self, facts: Facts) -> Reading:
        scores = facts.got(self._answer)
        if not facts.request.text(self._scope):
            return Reading(self._least <= 0, 0.0)
        if self._index >= len(scores) or (self._labels and len(self._labels) != len(scores)):
            raise Unavailable("bad_answer")
        score, best = float(scores[self._index]), int(scores.argmax())
        return Reading(score >= self._least, score, self._labels[best] if self._labels else None)
