"""OpenAI's responses (`POST /v1/responses`): a conversation is a list of items, some of which the upstream keeps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from decisions.decision import Changes
from decisions.model import Model
from extproc.apis.call import IN_TURN, CallContents, Parts, any_form, read_turn, spelled, take_apart, typed, wrong
from extproc.apis.shape import ApiShape, Static, lower, set_inside, wanted_effort
from extproc.bodies.edit import JsonEdit
from extproc.bodies.jsonbody import collect, dicts
from signals.request import Message, Opaque, Request, formats
from upstream.events import event


class Responses(ApiShape):
    def __init__(self) -> None:
        calls = {("responses",): "", ("responses", "compact"): "compact", ("responses", "input_tokens"): "input_tokens"}
        super().__init__("responses", calls, "chat")
        self.stored = True
        self.kept_ids = ("resp_", "resp-")
        self.turns_key = "input"
        self.families = ("enable_thinking", "thinking")

    def read(self, call: CallContents, fields: dict[str, Any]) -> None:
        kept = self.continued(fields) is not None or fields.get("conversation") is not None
        if kept:
            call.extra(-1, "history", "", "", ("reference",))
        instructions = fields.get("instructions")
        if type(instructions) is str:
            call.messages.append(Message("system", instructions))
        elif instructions is not None:
            _items(call, instructions, "instructions")
        given = fields.get("input")
        prompt = fields.get("prompt")
        if type(given) is str:
            call.messages.append(Message("user", given))
        elif given or not (prompt or kept):
            _items(call, given, "input")
        if type(prompt) is dict:  # a template that the upstream keeps, and what is put into it
            call.extra(-1, "system", "", "", ("reference",))
            _variables(call, prompt.get("variables"))
        elif type(prompt) is str:
            call.extra(max(len(call.messages) - 1, 0), "user", prompt)

    def tools(self, request: Request) -> int:
        """Those that items of the conversation have brought (`additional_tools`, a search's) are offered as well."""
        return super().tools(request) + sum(
            len(dicts(item, "tools"))
            for item in dicts(request.fields, "input")
            if item.get("type") in ("additional_tools", "tool_search_output")
        )

    def schema(self, request: Request) -> bool:
        """By the last word on it: an item of the conversation may change what the call says."""
        found = super().schema(request)
        for item in dicts(request.fields, "input"):
            if item.get("type") == "configuration_update" and item.get("text") is not None:
                found = any(form.get("type") == "json_schema" for form in formats(item))
        return found

    def keeps(self, fields: dict[str, Any]) -> bool:
        return fields.get("store") is not False

    def continued(self, fields: dict[str, Any]) -> Any:
        return fields.get("previous_response_id")

    def add_system(self, draft: JsonEdit, system: str) -> None:
        existing = draft.fields.get("instructions")
        if isinstance(existing, list):
            draft.lead("instructions", "", {"role": "system", "content": system})
        elif existing:
            draft.lead("instructions", f"{system}\n\n", {"type": "text", "text": system})
        else:
            draft.set("instructions", system)

    def cap(self, draft: JsonEdit, model: Model, limit: int) -> None:
        lower(draft, ["max_output_tokens"], limit)

    def think(self, draft: JsonEdit, model: Model, changes: Changes, on: bool) -> None:
        effort = wanted_effort(changes, on)
        if effort is not None:
            set_inside(draft, "reasoning", "effort", effort)

    def thinks(self, turn: dict[str, Any]) -> bool:
        return turn.get("type") == "reasoning" and bool(turn.get("encrypted_content"))

    def answer(self, given: Static) -> dict[str, Any]:
        return _response(given, "completed", [_message(given, "completed", [_part(given.text)])])

    def stream(self, given: Static) -> Iterable[bytes]:
        place = {"item_id": f"msg_{given.id}", "output_index": 0, "content_index": 0}
        done = _message(given, "completed", [_part(given.text)])
        events: list[dict[str, Any]] = [
            {"type": "response.created", "response": _response(given, "in_progress", [])},
            {"type": "response.in_progress", "response": _response(given, "in_progress", [])},
            {"type": "response.output_item.added", "output_index": 0, "item": _message(given, "in_progress", [])},
            {"type": "response.content_part.added", **place, "part": _part("")},
            {"type": "response.output_text.delta", **place, "delta": given.text, "logprobs": []},
            {"type": "response.output_text.done", **place, "text": given.text, "logprobs": []},
            {"type": "response.content_part.done", **place, "part": _part(given.text)},
            {"type": "response.output_item.done", "output_index": 0, "item": done},
            {"type": "response.completed", "response": _response(given, "completed", [done])},
        ]
        for number, one in enumerate(events):
            yield event({**one, "sequence_number": number}, one["type"])


RESPONSES: Final = Responses()


def _items(call: CallContents, items: Any, param: str) -> None:
    if type(items) is not list or not items:
        raise wrong(param, "a string or a non-empty array of items", items)
    for index, item in enumerate(items):
        if type(item) is not dict:
            raise wrong(f"{param}[{index}]", "an object", item)
        _item(call, item, f"{param}[{index}]")


def _variables(call: CallContents, given: Any) -> None:
    """What is put into a template: texts, images and files, which count with the last message there is."""
    parts = Parts()
    texts: list[str] = []
    if type(given) is dict:
        texts += given
        any_form(parts, list(given.values()), "prompt.variables")
    else:
        collect(given, texts)
    if not call.messages:
        call.messages.append(Message("user", ""))
    last = call.messages[-1]
    last.images += parts.images
    last.audio += parts.audio
    last.files += parts.files
    last.pages += parts.pages
    call.take(parts)
    texts += parts.everything()
    call.extra(len(call.messages) - 1, "user", "\n".join(texts), "", tuple(parts.opaque))


def _item(call: CallContents, item: dict[str, Any], param: str) -> None:
    """One item of the Responses API: a message, a call, what a call gave, a thought, or something newer."""
    given = item.get("type")
    what = given.lower() if type(given) is str else ""
    if what == "message" or (not what and ("role" in item or (given is None and "id" not in item))):
        read_turn(call, item, param)
        return
    spelled(item, IN_TURN, param)
    rest: list[str] = []
    if what.endswith("_output"):
        output = item.get("output")
        output = [output] if type(output) is dict else output
        if output is None or type(output) is str or (type(output) is list and typed(output)):
            parts = take_apart(output, f"{param}.output")
        else:
            parts = Parts()
            if type(output) is list:
                any_form(parts, output, f"{param}.output")
            else:
                collect(output, parts.texts)
        collect({key: value for key, value in item.items() if key != "output"}, rest)
        text = "\n".join((*parts.texts, *(result.text for result in parts.results)))
        parts.count_results()
        call.add(parts.message("tool", text), parts, rest)
    elif what.endswith("_call"):
        given_back = {key: item[key] for key in ("output", "outputs", "results", "result", "error") if key in item}
        parts = Parts()
        if type(item.get("outputs")) is list:  # of code, which draws pictures besides what it prints
            any_form(parts, item["outputs"], f"{param}.outputs")
        drawn = what == "image_generation_call" and bool(item.get("result"))
        if drawn:
            call.blob(item["result"])
        call.messages.append(Message("assistant", "", parts.images + drawn, tool_calls=1))
        collect({key: value for key, value in item.items() if key not in given_back}, rest)
        call.extra(len(call.messages) - 1, "assistant", "\n".join(rest))
        results: list[str] = []
        call.take(parts)
        collect(given_back, results, None, call.blobs)
        opaque: tuple[Opaque, ...] = ("image",) if drawn else ()
        call.extra(len(call.messages), "tool", "\n".join(results), "", (*parts.opaque, *opaque))
    else:
        call.blob(item.get("encrypted_content"))
        collect(item, rest, None, call.blobs)
        opaque = ()
        if what == "item_reference" or (not what and item.keys() <= {"id", "type"}):
            opaque = ("reference",)
        elif what != "reasoning" and item.get("encrypted_content"):
            opaque = ("encrypted",)
        role = "assistant" if what == "reasoning" else "history" if opaque else "tool"
        call.extra(len(call.messages), role, "\n".join(rest), "", opaque)


def _response(given: Static, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
    usage = {
        "input_tokens": 0,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 0,
    }
    return {
        "id": f"resp_{given.id}",
        "object": "response",
        "created_at": given.created,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": given.model,
        "output": output,
        "parallel_tool_calls": True,
        "temperature": None,
        "tool_choice": "auto",
        "tools": [],
        "top_p": None,
        "usage": usage if status == "completed" else None,
    }


def _message(given: Static, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {"id": f"msg_{given.id}", "type": "message", "status": status, "role": "assistant", "content": content}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": []}
