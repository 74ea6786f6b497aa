"""Google's Gemini API: `POST /v1beta/models/MODEL:generateContent`, and the same under Vertex AI's publishers.

The model, and whether the answer is streamed, stand in the path. Fields are Protocol Buffers' JSON: both spellings of a
name are taken (`systemInstruction`, `system_instruction`), and one object where a list of them may stand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import orjson

from decisions.decision import Changes
from decisions.model import Model
from extproc.apis.call import ROLES, CallContents, Parts, encoded_in, wrong
from extproc.apis.shape import BUDGETS, EVENTS, JSON, SEGMENT, ApiShape, Found, Static, Target, lower, versioned
from extproc.bodies.edit import JsonEdit, elements, exchanged
from extproc.bodies.jsonbody import KEYS, PLAIN, collect, decoded
from extproc.bodies.pdf import pages
from extproc.refusal import Refusal
from signals.request import Message, Request
from upstream.events import event

_METHODS: Final = {"generatecontent": "generateContent", "streamgeneratecontent": "streamGenerateContent",
                   "counttokens": "countTokens"}  # fmt: skip
_SSE: Final = frozenset(("alt=sse", "$alt=sse", "%24alt=sse"))

_TOP: Final = """
    contents systemInstruction tools toolConfig generationConfig safetySettings cachedContent model labels serviceTier
    store generateContentRequest instances
"""
_INSIDE: Final = """
    role parts text thought thoughtSignature inlineData fileData functionCall functionResponse executableCode
    codeExecutionResult toolCall toolResponse videoMetadata mediaResolution partMetadata mimeType data fileUri
    displayName maxOutputTokens responseSchema responseJsonSchema responseMimeType thinkingConfig thinkingBudget
    thinkingLevel includeThoughts functionDeclarations args response code language output outcome id name
    parametersJsonSchema functionCallingConfig allowedFunctionNames mode stopSequences candidateCount topP topK
    googleSearch urlContext codeExecution
"""


def _snake(name: str) -> str:
    return re.sub("[A-Z]", lambda letter: "_" + letter[0].lower(), name)


_NAMES: Final = {_snake(name): name for name in (_TOP + _INSIDE).split()}
"""The fields that are read here, by their names in the `.proto` files."""
_KNOWN: Final = frozenset((*_NAMES, *_NAMES.values()))
_KEYS: Final = KEYS | dict.fromkeys(_KNOWN.difference(KEYS), PLAIN)
_FOLDED: Final = {name.casefold(): name for name in _KNOWN}
_HIDDEN: Final = ("cachedContent", "model", "labels", "serviceTier", "store", "safetySettings")
_SKIPPED: Final = "skip_thought_signature_validator"
"""What stands for the signature of another model's call (Gemini's documentation: "Thought signatures")."""
_LEVELS: Final = {"none": "low", "minimal": "low", "low": "low", "medium": "medium"}
"""Gemini's `thinkingLevel` for an effort: those that all its models have; "high" for all higher ones."""
_BY_LEVEL: Final = re.compile(r"(?:.*/)?gemini-(?:[3-9]|[1-9][0-9])(?![0-9]).*", re.DOTALL)
"""Served names of models that take a level of thinking in place of a budget."""
_STATUS: Final = {
    401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 408: "DEADLINE_EXCEEDED", 409: "ABORTED",
    429: "RESOURCE_EXHAUSTED", 501: "UNIMPLEMENTED", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED",
}  # fmt: skip
"""Names of google.rpc.Code for an HTTP status."""
_SCHEMAS: Final = ("responseSchema", "responseJsonSchema", "_responseJsonSchema")
_DEPTH: Final = 16
"""Parts inside a function's response inside parts that are taken apart; what lies deeper is unreadable besides."""


class Gemini(ApiShape):
    def __init__(self) -> None:
        super().__init__("gemini", {}, "generate_content")
        top = frozenset(_TOP.split())
        self.known = top | {_snake(name) for name in top}
        self.hidden = frozenset((*_HIDDEN, *map(_snake, _HIDDEN)))
        self.keys = _KEYS
        self.turns_key = "contents"
        self.families = ()
        methods = "|".join(_METHODS.values())
        self.sign = f"('x-goog-api-key' in request.headers || request.url_path.matches('.*:({methods})$'))"
        self.version = "/v1beta"
        self.model_in = rf"^.*?((?:/publishers/[^/]+)?/models/).+(:(?:{methods}))$"
        self.route = rf"(?:/{SEGMENT})*/publishers/{SEGMENT}/models/.+:(?:{methods})"

    # Paths

    def find(self, segments: Sequence[str], query: str) -> Found | None:
        name, _, last = segments[-1].rpartition(":")
        method = _METHODS.get(last.lower())
        if method is None:
            return None
        for at in range(len(segments) - 1):
            if segments[at].lower() != "models":
                continue
            published = at > 1 and segments[at - 2].lower() == "publishers"
            if at and not published and not versioned(segments[at - 1]):
                return None  # some readers take what follows the first `models` for the model's name
            base = list(segments[:at])
            if published:
                base[-2:] = [base[-2].lower(), base[-1].lower()]
            names = [*segments[at + 1 : -1], *([name] if name else [])]
            if not names:
                return None
            operation = "count_tokens" if method == "countTokens" else ""
            framing = ""
            if method == "streamGenerateContent":
                framing = "sse" if not _SSE.isdisjoint(query.split("&")) else "array"
            target = Target(self.name, operation, "/".join(names), None, framing)
            return Found(target, base or ["v1beta"], ["models"], names, ":" + method)
        return None

    def speaks(self, headers: Mapping[str, str]) -> bool:
        if "x-goog-api-key" in headers or "x-goog-api-client" in headers:
            return True
        if "google-genai" in headers.get("user-agent", ""):
            return True
        query = headers.get(":path", "").partition("?")[2]
        return query.startswith("key=") or "&key=" in query

    # Reading

    def read(self, call: CallContents, fields: dict[str, Any]) -> None:
        fields = _plainly(fields, "")
        inner = fields.get("generateContentRequest")
        if type(inner) is dict:
            if fields.get("contents") is not None:  # what is set in the one would not hold for the other
                text = "A call has 'contents' or a 'generateContentRequest', not both."
                raise Refusal(400, text, "invalid_request", param="generateContentRequest")
            _read(call, _plainly(inner, "generateContentRequest"), "generateContentRequest.", True)
        instances = fields.get("instances")
        if instances is not None:
            rest: list[str] = []
            _collect(instances, rest)
            call.extra(0, "user", "\n".join(rest))
        _read(call, fields, "", inner is None and instances is None)

    def offered(self, request: Request) -> Any:
        return _inner(request.fields).get("tools")

    def tools(self, request: Request) -> int:
        count = 0
        for tool in _listed(self.offered(request)):
            if type(tool) is dict:
                for key, value in tool.items():
                    declared = _NAMES.get(key, key) == "functionDeclarations"
                    count += len(_listed(value)) if declared else value is not None
        return count

    def schema(self, request: Request) -> bool:
        config = _config(request)
        return any(config.get(name) is not None for name in _SCHEMAS)

    def streams(self, request: Request) -> bool:
        return request.framing != ""

    def most(self, request: Request) -> int | None:
        value = _config(request).get("maxOutputTokens")
        return value if type(value) is int and value > 0 else None

    # Rewriting

    def names(self, fields: dict[str, Any], model: str) -> bool:
        return all(
            given is None or _bare(given) == model for given in (fields.get("model"), _inner(fields).get("model"))
        )

    def rename(self, draft: JsonEdit, model: str) -> None:
        """The path names the model; a body that does, too, agrees with it."""
        _each(draft, lambda one: _rename(one, model), both=True)

    def add_system(self, draft: JsonEdit, system: str) -> None:
        _each(draft, lambda one: _add_system(one, system))

    def cap(self, draft: JsonEdit, model: Model, limit: int) -> None:
        def change(config: JsonEdit) -> None:
            lower(config, [_spelling(config.fields, "maxOutputTokens")], limit)

        _each(draft, lambda one: _within(one, "generationConfig", change))

    def think(self, draft: JsonEdit, model: Model, changes: Changes, on: bool) -> None:
        effort = "none" if not on else changes.reasoning_effort
        budget = 0 if not on else changes.thinking_budget or BUDGETS.get(effort or "medium", BUDGETS["medium"])

        def change(config: JsonEdit) -> None:
            level, tokens = _spelling(config.fields, "thinkingLevel"), _spelling(config.fields, "thinkingBudget")
            by_level = config.fields.get(level) is not None or _BY_LEVEL.fullmatch(model.name) is not None
            if by_level and (changes.thinking_budget is None or effort is not None):
                config.remove(tokens)  # both are refused
                config.set(level, _LEVELS.get(effort or "medium", "high"))
            else:
                config.remove(level)
                config.set(tokens, budget)

        _each(
            draft,
            lambda one: _within(one, "generationConfig", lambda config: _within(config, "thinkingConfig", change)),
        )

    # Turns

    def asks(self, turn: Any) -> bool:
        if type(turn) is not dict or turn.get("role", "user") != "user":
            return False
        return not any(_has(part, "functionResponse") for part in _listed(turn.get("parts")))

    def thinks(self, turn: dict[str, Any]) -> bool:
        parts = turn.get("parts")
        return type(parts) is list and any(_thought(part) or _has(part, "thoughtSignature") for part in parts)

    def strip(self, turn: JsonEdit) -> bool:
        parts = turn.fields["parts"]
        raw = turn.raw("parts")
        spans = elements(raw)
        texts: dict[int, bytes | None] = {}
        left: list[Any] = []
        for at, part in enumerate(parts):
            if _thought(part):
                texts[at] = None
                continue
            if _has(part, "thoughtSignature"):
                one = JsonEdit(raw[spans[at][0] : spans[at][1]], part)
                signature = _spelling(part, "thoughtSignature")
                if _has(part, "functionCall"):
                    one.set(signature, _SKIPPED)  # a call without one is refused
                else:
                    one.remove(signature)
                texts[at], part = one.text, one.fields
            left.append(part)
        turn.put("parts", exchanged(raw, texts), left)
        return bool(left)

    # Answers of our own

    def error(self, refusal: Refusal) -> bytes:
        status = _STATUS.get(refusal.status, "INVALID_ARGUMENT" if refusal.status < 500 else "INTERNAL")
        return orjson.dumps({"error": {"code": refusal.status, "message": refusal.text, "status": status}})

    def answer(self, given: Static) -> dict[str, Any]:
        content = {"parts": [{"text": given.text}], "role": "model"}
        return {
            "candidates": [{"content": content, "finishReason": "STOP", "index": 0}],
            "usageMetadata": {"promptTokenCount": 0, "candidatesTokenCount": 0, "totalTokenCount": 0},
            "modelVersion": given.model,
            "responseId": given.id,
        }

    def stream(self, given: Static) -> Iterable[bytes]:
        whole = self.answer(given)
        return [event(whole) if given.framing == "sse" else orjson.dumps([whole])]

    def streamed_as(self, framing: str) -> str:
        return EVENTS if framing == "sse" else JSON

    def entry(self, name: str, model: Model) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "name": f"models/{name}",
            "version": "001",
            "displayName": name,
            "supportedGenerationMethods": ["generateContent", "countTokens"],
        }
        if model.context is not None:
            entry["inputTokenLimit"] = model.context
        if model.max_output is not None:
            entry["outputTokenLimit"] = model.max_output
        if model.capabilities is not None:
            entry["thinking"] = "thinking" in model.capabilities
        return entry

    def listed(self, entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {"models": entries}


GEMINI: Final = Gemini()


# Names


def _plainly(given: dict[str, Any], param: str) -> dict[str, Any]:
    """An object with the names of its fields in camel case. Raises `Refusal` (400) for two spellings of one field."""
    for key in given:
        if "_" in key or key not in _KNOWN:
            break
    else:
        return given
    found: dict[str, Any] = {}
    for key, value in given.items():
        name = _NAMES.get(key, key)
        where = f"{param}.{key}" if param else key
        if name not in _KNOWN and (meant := _FOLDED.get(key.casefold())) is not None:
            text = f"'{where}' is not spelled as the API spells it: '{meant}'."
            raise Refusal(400, text, "misspelled_key", param=where[:128])
        if name in found:
            raise Refusal(400, f"'{where}' stands there in two spellings.", "duplicate_key", param=where[:128])
        found[name] = value
    return found


def _spelling(fields: dict[str, Any], name: str) -> str:
    """How a field is spelled there, as the client has spelled it."""
    snake = _snake(name)
    return snake if snake in fields else name


def _has(part: Any, name: str) -> bool:
    return type(part) is dict and part.get(_spelling(part, name)) is not None


def _listed(value: Any) -> list[Any]:
    """What a field that may be repeated holds: a list, or one value alone."""
    return value if type(value) is list else [] if value is None else [value]


def _inner(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields that a model is called with: those of the call, or of the one whose tokens it asks to count."""
    inner = fields.get(_spelling(fields, "generateContentRequest"))
    return inner if type(inner) is dict else fields


def _config(request: Request) -> dict[str, Any]:
    fields = _inner(request.fields)
    config = fields.get(_spelling(fields, "generationConfig"))
    return _plainly(config, "generationConfig") if type(config) is dict else {}


# Reading


def _collect(root: Any, found: list[str], blobs: set[int] | None = None) -> None:
    collect(root, found, None, blobs, _KEYS)


def _read(call: CallContents, fields: dict[str, Any], at: str, needed: bool) -> None:
    model = fields.get("model")
    if model is not None and type(model) is not str:
        raise wrong(f"{at}model", "a string", model)
    if fields.get("cachedContent") is not None:
        call.extra(-1, "history", "", "", ("reference",))
    config = fields.get("generationConfig")
    if type(config) is dict:
        thinking = _plainly(config, f"{at}generationConfig").get("thinkingConfig")
        if type(thinking) is dict:
            _plainly(thinking, f"{at}generationConfig.thinkingConfig")
    system = fields.get("systemInstruction")
    if system is not None:
        _content(call, system, f"{at}systemInstruction", "system")
    contents = fields.get("contents")
    if contents is None or contents == []:
        if needed:
            raise wrong(f"{at}contents", "a non-empty array of contents", contents)
        return
    if type(contents) is dict:
        _content(call, contents, f"{at}contents", "")
    elif type(contents) is list:
        for index, content in enumerate(contents):
            _content(call, content, f"{at}contents[{index}]", "")
    else:
        raise wrong(f"{at}contents", "a non-empty array of contents", contents)


def _content(call: CallContents, given: Any, param: str, role: str) -> None:
    """One turn. What functions gave in it becomes messages of their own, before it."""
    if type(given) is str and role:
        call.messages.append(Message(role, given))
        return
    if type(given) is not dict:
        raise wrong(param, "an object", given)
    content = _plainly(given, param)
    rest: list[str] = []
    if len(content) > 2:
        _collect({key: value for key, value in content.items() if key not in ("role", "parts")}, rest)
    if not role:
        role = _role(content.get("role"), f"{param}.role")
        if role not in ROLES:
            rest.append(role)
    parts = Parts()
    _parts(parts, _listed(content.get("parts")), f"{param}.parts", role == "assistant")
    call.messages.extend(parts.results)
    if parts.results and len(parts.results) == len(_listed(content.get("parts"))):
        call.take(parts)
        call.extra(len(call.messages) - 1, "tool", "\n".join(rest), "", tuple(parts.given))
        return
    call.add(parts.message(role, parts.text()), parts, rest)


def _role(given: Any, param: str) -> str:
    if given is None:
        return "user"
    if type(given) is not str:
        raise wrong(param, "a string", given)
    if given not in ROLES and given.strip().casefold() in ROLES:
        text = f"'{param}' is not spelled as the API spells it: '{given.strip().casefold()}'."
        raise Refusal(400, text, "misspelled_role", param=param)
    return {"model": "assistant", "function": "tool", "": "user"}.get(given, given)


def _parts(parts: Parts, given: list[Any], param: str, thinks: bool) -> None:
    """Take parts of a turn apart; `thinks`: it is the model's, and so has thoughts."""
    for index, part in enumerate(given):
        if type(part) is not dict:
            raise wrong(f"{param}[{index}]", "an object", part)
        text = part.get("text")
        if len(part) == 1 and type(text) is str:
            parts.texts.append(text)  # as nearly all are
        else:
            _part(parts, _plainly(part, f"{param}[{index}]"), f"{param}[{index}]", thinks)


def _part(parts: Parts, part: dict[str, Any], param: str, thinks: bool) -> None:
    text = part.get("text")
    if text is not None and type(text) is not str:
        raise wrong(f"{param}.text", "a string", text)
    encoded_in(part.get("thoughtSignature"), parts.blobs)
    given_back: dict[str, Any] = {}
    for name, value in part.items():
        if name == "inlineData" or name == "fileData":
            _data(parts, value, f"{param}.{name}")
        elif name == "functionCall" or name == "toolCall":
            parts.calls += 1
        elif name == "functionResponse" or name == "toolResponse" or name == "codeExecutionResult":
            given_back[name] = value
    if given_back:
        _results(parts, given_back, param)
    if text is not None and not (thinks and part.get("thought")):
        parts.texts.append(text)
        given_back["text"] = text
    _collect({key: value for key, value in part.items() if key not in given_back}, parts.rest, parts.blobs)


def _results(parts: Parts, given: dict[str, Any], param: str) -> None:
    """What functions and code gave: all of it is text of the tool, with the images and files that are among it."""
    counted = Parts()
    for name, value in given.items():
        inner = _plainly(value, f"{param}.{name}") if type(value) is dict else {}
        if inner.get("parts") is None:
            continue
        if parts.depth < _DEPTH:
            below = Parts()
            below.depth = parts.depth + 1
            _parts(below, _listed(inner["parts"]), f"{param}.{name}.parts", False)
            counted.count(below)
        else:
            counted.opaque["document"] = None
    texts: list[str] = []
    _collect(given, texts, counted.blobs)
    parts.results.append(counted.message("tool", "\n".join(texts)))
    parts.given.update(counted.opaque)
    parts.blobs |= counted.blobs


def _data(parts: Parts, given: Any, param: str) -> None:
    """Bytes, or where they are: an image, sound, a film, or a document, whose text is read where it is there."""
    if type(given) is not dict:
        raise wrong(param, "an object", given)
    data = _plainly(given, param)
    media = data.get("mimeType")
    kind = media.partition("/")[0].strip().lower() if type(media) is str else ""
    content = data.get("data")
    encoded_in(content, parts.blobs)
    if content is None:  # what is there is of the type that it was stored with, whatever the client says here
        parts.opaque["reference"] = None
    if kind == "image":
        parts.images += 1
        parts.opaque["image"] = None
    elif kind == "audio":
        parts.audio += 1
        parts.opaque["audio"] = None
    else:
        parts.files += 1
        text = decoded(content, media) if type(content) is str else None
        if text is not None:
            parts.texts.append(text)
        elif kind == "video":
            parts.opaque["video"] = None
        elif content is not None:
            parts.opaque["document"] = None
            if type(content) is str:
                parts.pages += pages(content)
        elif kind:
            parts.pages += 1  # how many, nobody says


# Rewriting


def _bare(model: Any) -> Any:
    """A model's name without the collection that it is in (`models/…`, `publishers/google/models/…`)."""
    return model[model.find("models/") + 7 :] if type(model) is str and "models/" in model else model


def _rename(draft: JsonEdit, model: str) -> None:
    given = draft.fields.get("model")
    if given is not None and _bare(given) != model:
        at = given.find("models/")
        draft.set("model", (given[: at + 7] if at >= 0 else "") + model)


def _each(draft: JsonEdit, change: Callable[[JsonEdit], None], both: bool = False) -> None:
    """Change the fields that a model is called with, as `_inner` finds them; `both`: those around them too."""
    key = _spelling(draft.fields, "generateContentRequest")
    if type(draft.fields.get(key)) is dict:
        _within(draft, key, change)
        if not both:
            return
    change(draft)


def _within(draft: JsonEdit, name: str, change: Callable[[JsonEdit], None]) -> None:
    """Change an object that is a field; it is made where there is none."""
    key = _spelling(draft.fields, name)
    inner = draft.inner(key)
    before = inner.text
    change(inner)
    if inner.text is not before:
        draft.put(key, inner.text, inner.fields)


def _add_system(draft: JsonEdit, system: str) -> None:
    key = _spelling(draft.fields, "systemInstruction")
    given = draft.fields.get(key)
    part = {"text": system}
    if type(given) is str:
        draft.lead(key, f"{system}\n\n", part)
    elif type(given) is dict and given.get("parts"):
        inner = draft.inner(key)
        if type(given["parts"]) is list:
            inner.lead("parts", "", part)
        else:
            raw = b"[%b,%b]" % (orjson.dumps(part), inner.raw("parts"))
            inner.put("parts", raw, [part, given["parts"]])
        draft.put(key, inner.text, inner.fields)
    else:
        draft.set(key, {"parts": [part]})


def _thought(part: Any) -> bool:
    return type(part) is dict and part.get("thought") is True
