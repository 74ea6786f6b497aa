"""OpenAI's embeddings (`POST /v1/embeddings`), and the `messages` that vLLM takes there."""

from __future__ import annotations

from typing import Any, Final

from extproc.apis.call import CallContents, count_ids, read_prompt, read_turns
from extproc.apis.shape import ApiShape
from signals.request import Request


class Embeddings(ApiShape):
    def __init__(self) -> None:
        super().__init__("embeddings", {("embeddings",): ""}, "embeddings")
        self.generates = False

    def read(self, call: CallContents, fields: dict[str, Any]) -> None:
        if fields.get("input") is None and fields.get("messages") is not None:
            read_turns(call, fields["messages"], "messages")
        else:
            read_prompt(call, fields.get("input"), "input")

    def token_ids(self, request: Request) -> int:
        return count_ids(request.fields.get("input"))


EMBEDDINGS: Final = Embeddings()
