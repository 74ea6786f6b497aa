"""The bytes of a call become a `Request`: its messages, and every string that a model may be shown.

Only what is needed to read signals and to route is looked at; everything else is for the upstream to judge. What has no
text that could be read here (token ids, references to what the upstream keeps, documents of other formats, images) is
named in the request's extras, so that no signal claims to have read it.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from extproc.jsonbody import collect, decoded, encoded, kind, load, too_deep, unambiguous
from extproc.paths import Target
from extproc.pdf import pages
from extproc.refusal import Refusal
from signals.request import TEXTUAL, Api, Everything, Extra, Message, Opaque, Request

log = logging.getLogger("pointsman.body")

_HIDDEN: Final = frozenset(
    (
        "model", "user", "metadata", "safety_identifier", "prompt_cache_key", "service_tier", "include", "cache_salt",
        "encoding_format", "previous_response_id", "conversation", "truncation",
    )
)  # fmt: skip
"""Top-level fields that steer the call and are no part of what the model is shown."""
_SEALED: Final[dict[str, Opaque]] = {
    "prompt_embeds": "embeddings", "inputs_embeds": "embeddings", "input_embeds": "embeddings",
    "prompt_token_ids": "token_ids", "input_ids": "token_ids", "token_ids": "token_ids",
    "chat_template": "document",  # a program, which can put words together that stand nowhere
}  # fmt: skip
"""Top-level fields that hold a prompt which cannot be read."""
_TOP: Final = _HIDDEN | frozenset(_SEALED) | frozenset(
    (
        "messages", "prompt", "input", "instructions", "system", "tools", "functions", "documents", "suffix", "stream",
        "response_format", "text", "reasoning", "reasoning_effort", "max_tokens", "max_completion_tokens", "n",
        "max_output_tokens", "temperature", "top_p", "top_k", "stop", "tool_choice", "thinking", "stream_options",
        "store", "seed", "parallel_tool_calls", "requests",
    )
)  # fmt: skip
_IN_TURN: Final = frozenset(
    ("role", "content", "type", "text", "name", "tool_calls", "tool_call_id", "id", "status", "refusal", "output")
)


def parse(
    target: Target,
    headers: Mapping[str, str],
    attributes: Mapping[str, Any],
    body: bytes,
    most: int = 200_000,
) -> Request:
    """The call in `body`, of which `target` is the path. Raises `Refusal` (400, 413) when it is not what the API takes.

    `most` is how many JSON values it may hold. Whatever goes wrong here is a refusal: what this cannot read, no guard
    has read.
    """
    try:
        fields = load(body, most)
        return _request(target, headers, attributes, body, fields)
    except Refusal:
        raise
    except RecursionError:
        raise too_deep() from None
    except Exception as error:  # noqa: BLE001 - a defect here must not let a request past its guards
        last = traceback.extract_tb(error.__traceback__)[-1:]
        log.error("%s at %s", type(error).__name__, f"{last[0].filename}:{last[0].lineno}" if last else "?")
        raise Refusal(400, "The request body could not be read.", "unreadable_body") from None


def _request(
    target: Target, headers: Mapping[str, str], attributes: Mapping[str, Any], body: bytes, fields: dict[str, Any]
) -> Request:
    api = target.api
    assert api is not None
    if not fields.keys() <= _TOP:
        _spelled(fields, _TOP, "")
    model = fields.get("model")
    if model is not None and (type(model) is not str or not model):
        raise Refusal(400, f"'model' must be a non-empty string, not {kind(model)}.", "invalid_type", param="model")
    if target.model is not None:  # an Azure deployment, which there says what `model` says elsewhere
        model = target.model
    call = _Call()
    _READERS[api](call, fields)
    for name in _SEALED.keys() & fields.keys():
        if fields[name]:
            call.extra(0, "user", "", "", (_SEALED[name],))
    unambiguous(body, fields, _strings(fields, call.plain))
    return Request(
        api, body, fields, model, tuple(call.messages), headers, attributes, time.time(),
        tuple(call.extras), partial(_everything, fields, call.blobs), target.operation, call.sealed,
    )  # fmt: skip


def _strings(fields: dict[str, Any], plain: int) -> int | None:
    """How many strings and keys the call holds where a look tells, as in a chat of `plain` messages; else None."""
    count = len(fields)
    for key, value in fields.items():
        if type(value) is str:
            count += 1
        elif type(value) is list and key == "messages" and len(value) == plain:
            count += 4 * plain
        elif type(value) is list or type(value) is dict:
            return None
    return count


def _everything(fields: dict[str, Any], blobs: set[int]) -> Everything:
    """Every string of a call that a model may be shown; `blobs` are those that are encoded bytes, by their identity."""
    strings: list[str] = []
    joined: list[str] = []
    for key, value in fields.items():
        if key not in _TOP:
            strings.append(key)
        if key not in _HIDDEN:
            collect(value, strings, joined, blobs)
    return Everything(strings, joined)


def _spelled(fields: dict[str, Any], known: frozenset[str], param: str) -> None:
    """Raises `Refusal` (400) for a key that some readers take for one of `known` and some do not: `Messages`."""
    if fields.keys() <= known:
        return
    for key in fields:
        if key not in known and key.casefold() in known:
            where = f"{param}.{key}" if param else key
            text = f"'{where}' is not spelled as the API spells it: '{key.casefold()}'."
            raise Refusal(400, text, "misspelled_key", param=where[:128])


def _wrong(param: str, wanted: str, value: Any) -> Refusal:
    if value is None:
        return Refusal(400, f"'{param}' is missing; {wanted} is needed.", "missing_required_parameter", param=param)
    return Refusal(400, f"'{param}' must be {wanted}, not {kind(value)}.", "invalid_type", param=param)


class _Call:
    """The messages and extras of a call as they are read.

    `blobs` are the identities of strings that are encoded bytes, `plain` the number of messages of a role and a text.
    """

    __slots__ = ("blobs", "extras", "messages", "plain", "sealed")

    def __init__(self) -> None:
        self.blobs: set[int] = set()
        self.messages: list[Message] = []
        self.extras: list[Extra] = []
        self.plain = 0
        self.sealed = False

    def extra(self, at: int, role: str, text: str = "", glued: str = "", opaque: tuple[Opaque, ...] = ()) -> None:
        if text or glued or opaque:
            self.extras.append(Extra(at, role, text, glued, opaque))
            if opaque and not self.sealed:
                self.sealed = not TEXTUAL.isdisjoint(opaque)

    def add(self, message: Message, parts: _Parts, rest: list[str]) -> None:
        """A message, what its parts hold beside their text, and other strings of it."""
        self.messages.append(message)
        self.take(parts)
        glued = "".join(parts.texts) if len(parts.texts) > 1 else ""
        self.extra(len(self.messages) - 1, message.role, "\n".join((*parts.rest, *rest)), glued, tuple(parts.opaque))

    def take(self, parts: _Parts) -> None:
        self.blobs |= parts.blobs


class _Parts:
    """The content of one message, taken apart: its texts, the other strings, the tool results inside."""

    __slots__ = ("audio", "blobs", "calls", "depth", "files", "images", "opaque", "pages", "rest", "results", "texts")

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.rest: list[str] = []
        self.results: list[Message] = []
        self.blobs: set[int] = set()
        self.opaque: dict[Opaque, None] = {}
        self.images = self.audio = self.files = self.calls = self.pages = 0
        self.depth = 0

    def text(self) -> str:
        return "\n".join(self.texts)

    def everything(self) -> list[str]:
        """All the text there is, that of results too."""
        return [*self.texts, *(result.text for result in self.results), *self.rest]

    def message(self, role: str, text: str, calls: int = 0) -> Message:
        return Message(role, text, self.images, self.audio, self.files, self.calls + calls, self.pages)

    def count_results(self) -> None:
        """Count what the results hold as this message's own."""
        for result in self.results:
            self.images += result.images
            self.audio += result.audio
            self.files += result.files
            self.pages += result.pages

    def count(self, inner: _Parts) -> None:
        """Take over what is counted of other parts, that of the results inside them too."""
        inner.count_results()
        self.images += inner.images
        self.audio += inner.audio
        self.files += inner.files
        self.pages += inner.pages
        self.opaque.update(inner.opaque)
        self.blobs |= inner.blobs


_ROLES: Final = frozenset(("system", "developer", "user", "assistant", "tool", "function", "model"))
_TEXTS: Final = frozenset(("text", "input_text", "output_text", "summary_text", "reasoning_text"))
_NEEDED: Final = frozenset(("text", "input_text"))
_IMAGES: Final = frozenset(("image_url", "image", "input_image", "computer_screenshot", "output_image"))
_AUDIO: Final = frozenset(("input_audio", "audio", "audio_url"))
_VIDEO: Final = frozenset(("video", "video_url", "input_video"))
_FILES: Final = frozenset(("file", "input_file", "document", "container_upload")) | _VIDEO
_THOUGHTS: Final = frozenset(("thinking", "redacted_thinking"))
_HOLDERS: Final = ("source", "image_url", "input_audio", "audio_url", "video_url", "file")
_BYTES: Final = (
    "data", "url", "file_data", "image_url", "image", "audio_url", "video_url", "video", "audio", "signature",
)  # fmt: skip
"""Where a part of another kind than text has its bytes, in itself or in one of `_HOLDERS`."""


_DEPTH: Final = 16
"""Results inside results that are taken apart; what lies deeper is read as text, and said to be unreadable besides."""


def _parts(content: Any, param: str, depth: int = 0) -> _Parts:
    """A message's content taken apart: null, a string, or a list of typed parts. Raises `Refusal` (400)."""
    parts = _Parts()
    parts.depth = depth
    if content is None:
        return parts
    if type(content) is str:
        parts.texts.append(content)
        return parts
    if type(content) is not list:
        raise _wrong(param, "a string or an array of parts", content)
    for index, part in enumerate(content):
        if type(part) is dict:
            if len(part) == 2 and part.get("type") == "text" and type(text := part.get("text")) is str:
                parts.texts.append(text)  # as nearly all are
            else:
                _part(parts, part, f"{param}[{index}]")
        elif type(part) is str:  # tolerated by several upstreams
            parts.texts.append(part)
        else:
            raise _wrong(f"{param}[{index}]", "an object", part)
    return parts


def _part(parts: _Parts, part: dict[str, Any], param: str) -> None:
    given = part.get("type")
    if given is None and type(part.get("text")) is str:
        given = "text"
    if type(given) is not str:
        raise _wrong(f"{param}.type", "a string", given)
    text = part.get("text")
    _spelled(part, _IN_TURN, param)
    what = given.lower()
    if what in _IMAGES:
        parts.images += 1
        parts.opaque["image"] = None
        _bytes(parts, part)
    elif what in _AUDIO:
        parts.audio += 1
        parts.opaque["audio"] = None
        _bytes(parts, part)
    elif what in _FILES:
        parts.files += 1
        _bytes(parts, part)
        if what in _VIDEO:
            parts.opaque["video"] = None
        else:
            _document(parts, part, param)
    elif what in ("tool_use", "server_tool_use"):
        parts.calls += 1
    elif what in _THOUGHTS:
        _bytes(parts, part)
    elif what.endswith("_embeds"):
        parts.opaque["embeddings"] = None
    elif what.endswith("_result"):  # of a tool, a search, code that ran
        _result(parts, part, param)
        return
    elif what in _NEEDED and text is None:
        raise _wrong(f"{param}.text", "a string", None)
    elif what == "refusal" and text is None:
        text = part.get("refusal")
    if text is not None and type(text) is not str:
        if what in _NEEDED or type(text) is not dict:
            raise _wrong(f"{param}.text", "a string", text)
        text = None
    if text is not None:
        parts.texts.append(text)
        part = {key: value for key, value in part.items() if value is not text}
    collect(part, parts.rest, None, parts.blobs)


def _bytes(parts: _Parts, part: dict[str, Any]) -> None:
    """Note where `part` has encoded bytes. The same string elsewhere is somebody's text, whatever it looks like."""
    for holder in (part, *(part.get(name) for name in _HOLDERS)):
        if type(holder) is dict and holder.get("type") != "text":
            for name in _BYTES:
                value = holder.get(name)
                if type(value) is str and encoded(value):
                    parts.blobs.add(id(value))


def _result(parts: _Parts, part: dict[str, Any], param: str) -> None:
    """What a tool, a search or code gave: structured parts, or any object, all of it text of the tool."""
    content = part.get("content")
    if type(content) is dict:
        content = [content]
    texts: list[str] = []
    collect({key: value for key, value in part.items() if key != "content"}, texts)
    if parts.depth >= _DEPTH:
        collect(content, texts)
        parts.results.append(Message("tool", "\n".join(texts)))
        parts.opaque["document"] = None
    elif type(content) is str:
        parts.results.append(Message("tool", "\n".join((content, *texts))))
    elif content is None or (type(content) is list and _typed(content)):
        inner = _parts(content, f"{param}.content", parts.depth + 1)
        texts = [*inner.everything(), *texts]
        if len(inner.texts) > 1:
            texts.append("".join(inner.texts))
        counted = _Parts()
        counted.count(inner)
        parts.results.append(counted.message("tool", "\n".join(texts)))
        parts.opaque.update(counted.opaque)
        parts.blobs |= counted.blobs
    elif type(content) is list:
        collect(content, texts)
        parts.results.append(Message("tool", "\n".join(texts)))
    else:
        raise _wrong(f"{param}.content", "a string or an array of parts", content)


def _typed(parts: list[Any]) -> bool:
    """Whether these are parts of a message, as opposed to results of a shape of their own."""
    return all(type(part) is str or (type(part) is dict and type(part.get("type")) is str) for part in parts)


def _document(parts: _Parts, part: dict[str, Any], param: str) -> None:
    """The text of a document where it has one; else what it is instead."""
    inner = part.get("file")
    source = part.get("source", inner if type(inner) is dict else part)
    if type(source) is not dict:
        parts.opaque["document"] = None
        return
    form = source.get("type")
    data = source.get("data", source.get("file_data"))
    if form == "content" or type(source.get("content")) is list:
        if parts.depth >= _DEPTH:
            parts.opaque["document"] = None
            return  # its text is collected as that of any part
        below = _parts(source.get("content"), f"{param}.source.content", parts.depth + 1)
        parts.texts.append("\n".join(below.everything()))
        if len(below.texts) > 1:
            parts.texts.append("".join(below.texts))
        parts.count(below)
    elif form == "text" and type(data) is str:
        parts.texts.append(data)
    elif type(data) is str and data:
        text = decoded(data, source.get("media_type"))
        if text is None:
            parts.opaque["document"] = None
            parts.pages += pages(data)
        else:
            parts.texts.append(text)
    elif not _refers(source):
        parts.opaque["document"] = None  # where its text is, nobody says
    if _refers(source):
        parts.opaque["reference"] = None


def _refers(source: dict[str, Any]) -> bool:
    return any(source.get(key) is not None for key in ("url", "file_id", "file_url"))


def _turn(call: _Call, turn: Any, param: str) -> None:
    """One message. Tool results inside it become messages of their own, before it."""
    if type(turn) is not dict:
        raise _wrong(param, "an object", turn)
    role = turn.get("role")
    if type(role) is not str:
        raise _wrong(f"{param}.role", "a string", role)
    content = turn.get("content")
    _spelled(turn, _IN_TURN, param)
    if role not in _ROLES and role.strip().casefold() in _ROLES:
        text = f"'{param}.role' is not spelled as the API spells it: '{role.strip().casefold()}'."
        raise Refusal(400, text, "misspelled_role", param=f"{param}.role")
    if role == "function":
        role = "tool"
    rest: list[str] = []
    if len(turn) > 2 or content is None:  # otherwise there is nothing else
        collect({key: value for key, value in turn.items() if key != "content" and key != "role"}, rest)
    if role not in _ROLES:
        rest.append(role)
    calls = turn.get("tool_calls")
    count = len(calls) if type(calls) is list else 0
    if content is None or type(content) is str:
        call.messages.append(Message(role, content or "", 0, 0, 0, count))
        call.extra(len(call.messages) - 1, role, "\n".join(rest))
        return
    parts = _parts(content, f"{param}.content")
    if role == "tool":
        text = "\n".join((*parts.texts, *(result.text for result in parts.results)))
        parts.count_results()
    else:
        text = parts.text()
        call.messages.extend(parts.results)
        if parts.results and type(content) is list and len(parts.results) == len(content):
            call.take(parts)
            call.extra(len(call.messages) - 1, "tool", "\n".join(rest), "", tuple(parts.opaque))
            return
    call.add(parts.message(role, text, count), parts, rest)


def _turns(call: _Call, turns: Any, param: str) -> None:
    if type(turns) is not list or not turns:
        raise _wrong(param, "a non-empty array of messages", turns)
    for index, turn in enumerate(turns):
        if type(turn) is dict and len(turn) == 2:
            role, content = turn.get("role"), turn.get("content")
            if type(content) is str and type(role) is str and role in _ROLES:
                call.messages.append(Message("tool" if role == "function" else role, content))
                call.plain += 1
                continue
        _turn(call, turn, f"{param}[{index}]")


# The five APIs


def _chat(call: _Call, fields: dict[str, Any]) -> None:
    _turns(call, fields.get("messages"), "messages")
    documents = fields.get("documents")
    if documents:
        texts: list[str] = []
        collect(documents, texts)
        call.extra(len(call.messages) - 1, "document", "\n".join(texts))


def _completions(call: _Call, fields: dict[str, Any]) -> None:
    given = fields.get("prompt")
    if given is None and fields.get("prompt_embeds") is not None:
        given = ""
    _prompt(call, given, "prompt")
    suffix = fields.get("suffix")
    if type(suffix) is str:
        call.extra(0, "user", suffix)


def _embeddings(call: _Call, fields: dict[str, Any]) -> None:
    if fields.get("input") is None and fields.get("messages") is not None:
        _turns(call, fields["messages"], "messages")
    else:
        _prompt(call, fields.get("input"), "input")


def _prompt(call: _Call, value: Any, param: str) -> None:
    """A prompt: a string, strings, parts, token ids, or lists of these."""
    if type(value) is str:
        call.messages.append(Message("user", value))
        return
    if type(value) is not list or not value:
        raise _wrong(param, "a string or a non-empty array", value)
    numbers = False
    parts = _Parts()
    for index, item in enumerate(value):
        if type(item) is str:
            parts.texts.append(item)
        elif type(item) is int:
            numbers = True
        elif type(item) is list:
            inner: list[str] = []
            collect(item, inner)
            parts.texts += inner
            numbers = numbers or _numbers(item)
        elif type(item) is dict:
            if type(item.get("content")) is list:
                below = _parts(item["content"], f"{param}[{index}].content")
                parts.texts += below.everything()
                parts.count(below)
            elif type(item.get("type")) is str:
                _part(parts, item, f"{param}[{index}]")
            else:
                collect(item, parts.rest)
        else:
            raise _wrong(f"{param}[{index}]", "a string or token ids", item)
    if numbers:
        parts.opaque["token_ids"] = None
    parts.rest += [result.text for result in parts.results]
    call.add(parts.message("user", parts.text()), parts, [])


def _numbers(root: list[Any]) -> bool:
    """Whether anything in these lists is no text: numbers of any kind are token ids to some reader."""
    stack = [root]
    while stack:
        for item in stack.pop():
            if type(item) is list:
                stack.append(item)
            elif type(item) is not str and type(item) is not dict:
                return True
    return False


def _responses(call: _Call, fields: dict[str, Any]) -> None:
    kept = fields.get("previous_response_id") is not None or fields.get("conversation") is not None
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
    elif given is not None or not (prompt or kept):
        _items(call, given, "input")
    if type(prompt) is dict:  # a template that the upstream keeps, and what is put into it
        call.extra(-1, "system", "", "", ("reference",))
        texts: list[str] = []
        collect(prompt.get("variables"), texts)
        call.extra(max(len(call.messages) - 1, 0), "user", "\n".join(texts))
    elif type(prompt) is str:
        call.extra(max(len(call.messages) - 1, 0), "user", prompt)


def _items(call: _Call, items: Any, param: str) -> None:
    if type(items) is not list or not items:
        raise _wrong(param, "a string or a non-empty array of items", items)
    for index, item in enumerate(items):
        if type(item) is not dict:
            raise _wrong(f"{param}[{index}]", "an object", item)
        _item(call, item, f"{param}[{index}]")


def _item(call: _Call, item: dict[str, Any], param: str) -> None:
    """One item of the Responses API: a message, a call, what a call gave, a thought, or something newer."""
    given = item.get("type")
    what = given.lower() if type(given) is str else ""
    if what == "message" or (not what and ("role" in item or (given is None and "id" not in item))):
        _turn(call, item, param)
        return
    _spelled(item, _IN_TURN, param)
    rest: list[str] = []
    if what.endswith("_output"):
        output = item.get("output")
        output = [output] if type(output) is dict else output
        if output is None or type(output) is str or (type(output) is list and _typed(output)):
            parts = _parts(output, f"{param}.output")
        else:
            parts = _Parts()
            collect(output, parts.texts)
        collect({key: value for key, value in item.items() if key != "output"}, rest)
        text = "\n".join((*parts.texts, *(result.text for result in parts.results)))
        parts.count_results()
        call.add(parts.message("tool", text), parts, rest)
    elif what.endswith("_call"):
        call.messages.append(Message("assistant", "", tool_calls=1))
        given_back = {key: item[key] for key in ("output", "outputs", "results", "result", "error") if key in item}
        image = item.get("result")
        if what == "image_generation_call" and type(image) is str and encoded(image):
            call.blobs.add(id(image))
        collect({key: value for key, value in item.items() if key not in given_back}, rest)
        call.extra(len(call.messages) - 1, "assistant", "\n".join(rest))
        results: list[str] = []
        collect(given_back, results, None, call.blobs)
        call.extra(len(call.messages), "tool", "\n".join(results))
    else:
        sealed = item.get("encrypted_content")
        if type(sealed) is str and encoded(sealed):
            call.blobs.add(id(sealed))
        collect(item, rest, None, call.blobs)
        opaque: tuple[Opaque, ...] = ()
        if what == "item_reference" or (not what and item.keys() <= {"id", "type"}):
            opaque = ("reference",)
        elif what != "reasoning" and item.get("encrypted_content"):
            opaque = ("encrypted",)
        role = "assistant" if what == "reasoning" else "history" if opaque else "tool"
        call.extra(len(call.messages), role, "\n".join(rest), "", opaque)


def _anthropic(call: _Call, fields: dict[str, Any]) -> None:
    system = fields.get("system")
    if system is not None:
        parts = _parts(system, "system")
        parts.rest += [result.text for result in parts.results]
        call.add(parts.message("system", parts.text()), parts, [])
    _turns(call, fields.get("messages"), "messages")


_READERS: dict[Api, Callable[[_Call, dict[str, Any]], None]] = {
    "chat": _chat,
    "completions": _completions,
    "embeddings": _embeddings,
    "responses": _responses,
    "messages": _anthropic,
}
