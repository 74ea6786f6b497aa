"""Answers of OpenAI's completions: a choice has `text`, in pieces when it is streamed.

https://platform.openai.com/docs/api-reference/completions. Streamed or whole, the objects look alike.
"""

from __future__ import annotations

from typing import Any

from extproc.bodies.jsonbody import dicts
from extproc.watching.chat import Choices, ChoicesAnswer, ChoicesAssembly, cut_choices, grow, made
from extproc.watching.shape import AnswerCourse, AnswerText, Assembly, as_json, index, objects, walk
from upstream.events import DONE, event


class CompletionsAnswer(ChoicesAnswer):
    def texts(self, fields: dict[str, Any], json: bool = False) -> list[AnswerText]:
        out: list[AnswerText] = []
        for place, choice in enumerate(objects(fields, "choices")):
            walk(choice, ("choices", index(choice, place)), False, out)
        walk(fields, (), True, out, ("choices",))
        return as_json(out, "text") if json else out

    def course(self) -> AnswerCourse:
        return CompletionsCourse()

    def cut(self, fields: dict[str, Any], message: str) -> dict[str, Any]:
        return cut_choices(fields, {"text": message})

    def assembly(self, limit: int) -> Assembly:
        return CompletionsAssembly(limit)

    def stream(self, final: dict[str, Any], usage: bool = True) -> bytes:
        head = {key: value for key, value in final.items() if key not in ("choices", "usage")}
        events = [event({**head, "choices": [choice]}) for choice in dicts(final, "choices")]
        if usage and final.get("usage") is not None:
            events.append(event({**head, "choices": [], "usage": final["usage"]}))
        return b"".join((*events, DONE))


class CompletionsCourse(Choices):
    def shows(self, choice: dict[str, Any]) -> bool:
        return bool(choice.get("text"))

    def piece(self, message: str, first: bool) -> dict[str, Any]:
        return {"text": message}

    def cut(self, message: str) -> bytes:
        return self.closing(made("cmpl-", "text_completion"), message)


class CompletionsAssembly(ChoicesAssembly):
    def add_choice(self, known: dict[str, Any], choice: dict[str, Any]) -> int:
        ends = {key: choice[key] for key in ("finish_reason", "stop_reason") if choice.get(key) is not None}
        rest = {key: value for key, value in choice.items() if key not in ("index", "finish_reason", "stop_reason")}
        known.update(ends)
        return grow(known, rest)

    def choice(self, grown: dict[str, Any]) -> dict[str, Any]:
        return {"text": "", **grown}

    def whole(self, head: dict[str, Any], choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**head, "choices": choices}
