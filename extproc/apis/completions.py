"""OpenAI's completions (`POST /v1/completions`): a prompt is continued."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from decisions.decision import Changes
from decisions.model import Model
from extproc.apis.call import CallContents, count_ids, read_prompt
from extproc.apis.shape import USAGE, ApiShape, Static, usage_unasked, wants_usage
from extproc.bodies.edit import JsonEdit
from signals.request import Request
from upstream.events import DONE, event


class Completions(ApiShape):
    def __init__(self) -> None:
        super().__init__("completions", {("completions",): ""}, "text_completion")
        self.families = ()

    def read(self, call: CallContents, fields: dict[str, Any]) -> None:
        given = fields.get("prompt")
        if given in (None, []) and fields.get("prompt_embeds") is not None:
            given = ""
        read_prompt(call, given, "prompt")
        suffix = fields.get("suffix")
        if type(suffix) is str:
            call.extra(0, "user", suffix)

    def think(self, draft: JsonEdit, model: Model, changes: Changes, on: bool) -> None:
        """A prompt is continued as it stands; no field of this API says how much to think."""

    def silent(self, fields: dict[str, Any]) -> bool:
        return usage_unasked(fields)

    def token_ids(self, request: Request) -> int:
        return count_ids(request.fields.get("prompt"))

    def answer(self, given: Static) -> dict[str, Any]:
        choice = {"index": 0, "text": given.text, "logprobs": None, "finish_reason": "stop"}
        return {
            "id": f"cmpl-{given.id}",
            "object": "text_completion",
            "created": given.created,
            "model": given.model,
            "choices": [choice],
            "usage": USAGE,
        }

    def stream(self, given: Static) -> Iterable[bytes]:
        whole = self.answer(given)
        del whole["usage"]
        yield event(whole)
        if wants_usage(given):
            yield event({**whole, "choices": [], "usage": USAGE})
        yield DONE


COMPLETIONS: Final = Completions()
