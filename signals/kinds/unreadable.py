"""`unreadable`: whether some part of the request has no text that can be read here."""

from __future__ import annotations

from pydantic import Field

from signals.facts import Facts
from signals.reading import FALSE, Reading
from signals.request import Opaque, Scope
from signals.signal import Params, Shared, Signal, within


class UnreadableParams(Params):
    """Which things count, and where."""

    is_: list[Opaque] = Field(
        ["token_ids", "embeddings", "reference", "document", "encrypted"],
        alias="is",
        min_length=1,
        description="What counts: `token_ids` and `embeddings` (a prompt as numbers), `reference` (text that the "
        "upstream keeps or fetches: `previous_response_id`, a file's id, a URL), `document` (a file of another format "
        "than text), `encrypted`, and `image`, `audio`, `video`, which are not counted unless named.",
    )
    in_: Scope = within("all")


class Unreadable(Signal):
    """Reads whether a part of the request cannot be read here. The label is the first of them; evidence names all."""

    kind = "unreadable"
    Parameters = UnreadableParams
    sure = True
    labelled = True

    def __init__(self, name: str, params: UnreadableParams, shared: Shared) -> None:
        super().__init__(name, params, shared)
        self._wanted, self._scope = frozenset(params.is_), params.in_

    def read(self, facts: Facts) -> Reading:
        found = [kind for kind in facts.request.opaque(self._scope) if kind in self._wanted]
        return Reading(True, 1.0, found[0], evidence=tuple(found)) if found else FALSE
