"""Reads the messages of a call, and notes what no signal can read in them. Shared by the files of the APIs.

Messages and their parts are read in the same way for all APIs except Gemini's, since servers and clients mix them: a
part of one API may come in a call of another.
"""

from __future__ import annotations

from typing import Any, Final

from extproc.bodies.jsonbody import collect, decoded, dicts, encoded, kind
from extproc.bodies.pdf import pages
from extproc.refusal import Refusal
from signals.background import rest
from signals.request import TEXTUAL, Extra, Message, Opaque

IN_TURN: Final = frozenset(
    ("role", "content", "type", "text", "name", "tool_calls", "tool_call_id", "id", "status", "refusal", "output")
)


def wrong(param: str, wanted: str, value: Any) -> Refusal:
    if value is None:
        return Refusal(400, f"'{param}' is missing; {wanted} is needed.", "missing_required_parameter", param=param)
    given = "an empty array" if value == [] else kind(value)
    return Refusal(400, f"'{param}' must be {wanted}, not {given}.", "invalid_type", param=param)


def spelled(fields: dict[str, Any], known: frozenset[str], param: str) -> None:
    """Raises `Refusal` (400) for a key that only some readers take for one of `known`, such as `Messages`."""
    if fields.keys() <= known:
        return
    for key in fields:
        if key not in known and key.casefold() in known:
            where = f"{param}.{key}" if param else key
            text = f"'{where}' is not spelled as the API spells it: '{key.casefold()}'."
            raise Refusal(400, text, "misspelled_key", param=where[:128])


class CallContents:
    """The messages and extras of a call as they are read.

    `blobs` are the identities of strings that are encoded bytes. `turns` is the list of turns as it was parsed;
    `plain` of them have a role and a text, or parts of text, and `strings` is how many strings and keys these hold.
    """

    __slots__ = ("blobs", "extras", "messages", "plain", "sealed", "strings", "turns")

    def __init__(self) -> None:
        self.blobs: set[int] | None = None
        self.messages: list[Message] = []
        self.extras: list[Extra] = []
        self.turns: list[Any] | None = None
        self.plain = 0
        self.strings = 0
        self.sealed = False

    def extra(self, at: int, role: str, text: str = "", glued: str = "", opaque: tuple[Opaque, ...] = ()) -> None:
        if text or glued or opaque:
            self.extras.append(Extra(at, role, text, glued, opaque))
            if opaque and not self.sealed:
                self.sealed = not TEXTUAL.isdisjoint(opaque)

    def add(self, message: Message, parts: Parts, rest: list[str]) -> None:
        """A message, what its parts hold beside their text, and other strings of it."""
        opaque = parts.opaque
        if parts.given:
            if self.messages and self.messages[-1] is parts.results[-1]:
                self.extra(len(self.messages) - 1, "tool", "", "", tuple(parts.given))
            else:
                opaque = opaque | parts.given
        self.messages.append(message)
        self.take(parts)
        glued = "".join(parts.texts) if len(parts.texts) > 1 else ""
        self.extra(len(self.messages) - 1, message.role, "\n".join((*parts.rest, *rest)), glued, tuple(opaque))

    def take(self, parts: Parts) -> None:
        if parts.blobs:
            if self.blobs is None:
                self.blobs = set()
            self.blobs |= parts.blobs

    def blob(self, value: Any) -> None:
        """Note that this string is encoded bytes, where it is."""
        if type(value) is str and encoded(value):
            if self.blobs is None:
                self.blobs = set()
            self.blobs.add(id(value))


class Parts:
    """The content of one message, taken apart: its texts, the other strings, the tool results inside.

    `opaque` is what of it cannot be read, `given` the same of its results.
    """

    __slots__ = (
        "audio", "blobs", "calls", "depth", "files", "given", "images", "opaque", "pages", "rest", "results", "texts",
    )  # fmt: skip

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.rest: list[str] = []
        self.results: list[Message] = []
        self.blobs: set[int] = set()
        self.opaque: dict[Opaque, None] = {}
        self.given: dict[Opaque, None] = {}
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

    def count(self, inner: Parts) -> None:
        """Take over what is counted of other parts, that of the results inside them too."""
        inner.count_results()
        self.images += inner.images
        self.audio += inner.audio
        self.files += inner.files
        self.pages += inner.pages
        self.opaque.update(inner.opaque)
        self.opaque.update(inner.given)
        self.blobs |= inner.blobs


ROLES: Final = frozenset(("system", "developer", "user", "assistant", "tool", "function", "model"))
_TEXTS: Final = frozenset(("text", "input_text", "output_text", "summary_text", "reasoning_text"))
_NEEDED: Final = frozenset(("text", "input_text"))
_IMAGES: Final = frozenset(("image_url", "image", "input_image", "computer_screenshot", "output_image"))
_AUDIO: Final = frozenset(("input_audio", "audio", "audio_url"))
_VIDEO: Final = frozenset(("video", "video_url", "input_video"))
_FILES: Final = frozenset(("file", "input_file", "document", "container_upload")) | _VIDEO
_ATTACHED: Final = _IMAGES | _AUDIO | _FILES
_SHOWN: Final = _IMAGES | _AUDIO | _VIDEO
_THOUGHTS: Final = frozenset(("thinking", "redacted_thinking"))
_HOLDERS: Final = ("source", "image_url", "input_audio", "audio_url", "video_url", "file")
_BYTES: Final = (
    "data", "url", "file_data", "image_url", "image", "audio_url", "video_url", "video", "audio", "signature",
)  # fmt: skip
"""The fields in which a part that is not text has its bytes, in itself or in one of `_HOLDERS`."""


_ENCRYPTED: Final = ("encrypted_content", "encrypted_stdout")
"""The fields of what servers' own tools gave whose text only they can open (Anthropic's search, code, advisor)."""
_DEPTH: Final = 16
"""Results inside results that are taken apart; what lies deeper is read as text, and said to be unreadable besides."""


def take_apart(content: Any, param: str, depth: int = 0) -> Parts:
    """A message's content taken apart: null, a string, or a list of typed parts. Raises `Refusal` (400)."""
    parts = Parts()
    parts.depth = depth
    if content is None:
        return parts
    if type(content) is str:
        parts.texts.append(content)
        return parts
    if type(content) is not list:
        raise wrong(param, "a string or an array of parts", content)
    for index, part in enumerate(content):
        if type(part) is dict:
            if len(part) == 2 and part.get("type") == "text" and type(text := part.get("text")) is str:
                parts.texts.append(text)  # as nearly all are
            else:
                _part(parts, part, f"{param}[{index}]")
        elif type(part) is str:  # tolerated by several upstreams
            parts.texts.append(part)
        else:
            raise wrong(f"{param}[{index}]", "an object", part)
    return parts


def _part(parts: Parts, part: dict[str, Any], param: str) -> None:
    given = part.get("type")
    if given is None and type(part.get("text")) is str:
        given = "text"
    if type(given) is not str:
        raise wrong(f"{param}.type", "a string", given)
    text = part.get("text")
    spelled(part, IN_TURN, param)
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
        elif what == "container_upload":  # for a tool's eyes alone
            parts.opaque["reference"] = None
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
        raise wrong(f"{param}.text", "a string", None)
    elif what == "refusal" and text is None:
        text = part.get("refusal")
    if text is not None and type(text) is not str:
        if what in _NEEDED or type(text) is not dict:
            raise wrong(f"{param}.text", "a string", text)
        text = None
    if text is not None:
        parts.texts.append(text)
        part = {key: value for key, value in part.items() if value is not text}
    collect(part, parts.rest, None, parts.blobs)


def _bytes(parts: Parts, part: dict[str, Any]) -> None:
    """Note where `part` has encoded bytes. The same string elsewhere is text, whatever it looks like."""
    for holder in (part, *(part.get(name) for name in _HOLDERS)):
        if type(holder) is dict and holder.get("type") != "text":
            for name in _BYTES:
                encoded_in(holder.get(name), parts.blobs)


def encoded_in(value: Any, blobs: set[int]) -> None:
    """Note it in `blobs` where this is a string of encoded bytes."""
    if type(value) is str and encoded(value):
        blobs.add(id(value))


def _result(parts: Parts, part: dict[str, Any], param: str) -> None:
    """The result of a tool, a search or code: structured parts, or any object, all of which is the tool's text."""
    content = part.get("content")
    if type(content) is dict:
        content = [content]
    if any(part.get(name) for name in _ENCRYPTED):
        parts.given["encrypted"] = None
    texts: list[str] = []
    collect({key: value for key, value in part.items() if key != "content"}, texts)
    if parts.depth >= _DEPTH:
        collect(content, texts)
        parts.results.append(Message("tool", "\n".join(texts)))
        parts.given["document"] = None
    elif type(content) is str:
        parts.results.append(Message("tool", "\n".join((content, *texts))))
    elif content is None or (type(content) is list and typed(content)):
        inner = take_apart(content, f"{param}.content", parts.depth + 1)
        texts = [*inner.everything(), *texts]
        if len(inner.texts) > 1:
            texts.append("".join(inner.texts))
        counted = Parts()
        counted.count(inner)
        parts.results.append(counted.message("tool", "\n".join(texts)))
        parts.given.update(counted.opaque)
        parts.blobs |= counted.blobs
    elif type(content) is list:
        counted = Parts()
        counted.depth = parts.depth + 1
        any_form(counted, content, f"{param}.content")
        counted.count_results()
        parts.results.append(counted.message("tool", "\n".join((*counted.everything(), *texts))))
        parts.given.update(counted.opaque)
        parts.blobs |= counted.blobs
    else:
        raise wrong(f"{param}.content", "a string or an array of parts", content)


def any_form(parts: Parts, items: list[Any], param: str) -> None:
    """Results in a form of their own, whose text is all that they hold; images and files among them are counted."""
    rest: list[Any] = []
    for index, item in enumerate(items):
        what = item.get("type") if type(item) is dict else None
        if type(what) is str and what.lower() in _ATTACHED:
            _part(parts, item, f"{param}[{index}]")
        else:
            rest.append(item)
    collect(rest, parts.texts)


def typed(parts: list[Any]) -> bool:
    """Whether these are parts of a message, as opposed to results in a form of their own."""
    return all(type(part) is str or (type(part) is dict and type(part.get("type")) is str) for part in parts)


def _document(parts: Parts, part: dict[str, Any], param: str) -> None:
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
        below = take_apart(source.get("content"), f"{param}.source.content", parts.depth + 1)
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
        parts.pages += 1  # how many, nobody says


def _refers(source: dict[str, Any]) -> bool:
    return any(source.get(key) is not None for key in ("url", "file_id", "file_url"))


def read_turn(call: CallContents, turn: Any, param: str) -> None:
    """One message. Tool results inside it become messages of their own, before it."""
    if type(turn) is not dict:
        raise wrong(param, "an object", turn)
    role = turn.get("role")
    if type(role) is not str:
        raise wrong(f"{param}.role", "a string", role)
    content = turn.get("content")
    spelled(turn, IN_TURN, param)
    if role not in ROLES and role.strip().casefold() in ROLES:
        text = f"'{param}.role' is not spelled as the API spells it: '{role.strip().casefold()}'."
        raise Refusal(400, text, "misspelled_role", param=f"{param}.role")
    if role == "function":
        role = "tool"
    rest: list[str] = []
    heard = 0
    if len(turn) > 2 or content is None:  # otherwise there is nothing else
        if role == "assistant":
            _sealed_thoughts(call, turn)
            heard = type(turn.get("audio")) is dict  # what the model has said, by its id
        beside = {key: value for key, value in turn.items() if key != "content" and key != "role"}
        collect(beside, rest, None, call.blobs)
    if role not in ROLES:
        rest.append(role)
    calls = turn.get("tool_calls")
    count = len(calls) if type(calls) is list else 0
    if content is None or type(content) is str:
        call.messages.append(Message(role, content or "", 0, heard, 0, count))
        call.extra(len(call.messages) - 1, role, "\n".join(rest), "", ("audio",) if heard else ())
        return
    parts = take_apart(content, f"{param}.content")
    parts.audio += heard
    if role == "tool":
        text = "\n".join((*parts.texts, *(result.text for result in parts.results)))
        parts.count_results()
    else:
        text = parts.text()
        call.messages.extend(parts.results)
        if parts.results and type(content) is list and len(parts.results) == len(content):
            call.take(parts)
            call.extra(len(call.messages) - 1, "tool", "\n".join(rest), "", tuple(parts.given))
            return
    call.add(parts.message(role, text, count), parts, rest)


def _sealed_thoughts(call: CallContents, turn: dict[str, Any]) -> None:
    """Note the encrypted thoughts and signatures that chat completions have beside a message's content: Copilot's
    `reasoning_opaque`, OpenRouter's `reasoning_details`, LiteLLM's `thinking_blocks`, and what Google has its clients
    send back with a call of a tool (`extra_content.google.thought_signature`)."""
    call.blob(turn.get("reasoning_opaque"))
    for name in ("reasoning_details", "thinking_blocks"):
        for block in dicts(turn, name):
            call.blob(block.get("data"))
            call.blob(block.get("signature"))
    for made in dicts(turn, "tool_calls"):
        extra = made.get("extra_content")
        google = extra.get("google") if type(extra) is dict else None
        if type(google) is dict:
            call.blob(google.get("thought_signature"))


def read_turns(call: CallContents, given: Any, param: str) -> None:
    """The messages of a conversation."""
    if type(given) is not list or not given:
        raise wrong(param, "a non-empty array of messages", given)
    call.turns = given
    messages = call.messages
    for index, turn in enumerate(given):
        if index & 511 == 511:  # compiled code lets nobody else run
            rest()
        if type(turn) is dict and len(turn) == 2:
            role, content = turn.get("role"), turn.get("content")
            if type(role) is str and role in ROLES:
                if type(content) is str:
                    messages.append(Message("tool" if role == "function" else role, content))
                    call.plain += 1
                    call.strings += 4
                    continue
                if type(content) is list and (texts := _texts(content)):
                    role = "tool" if role == "function" else role
                    messages.append(Message(role, "\n".join(texts)))
                    if len(texts) > 1:
                        call.extra(len(messages) - 1, role, "", "".join(texts))
                    call.plain += 1
                    call.strings += 3 + 4 * len(texts)
                    continue
        read_turn(call, turn, f"{param}[{index}]")


def _texts(parts: list[Any]) -> list[str]:
    """The texts of parts that hold nothing else; none where one does."""
    texts: list[str] = []
    for part in parts:
        if type(part) is not dict or len(part) != 2 or part.get("type") != "text":
            return []
        text = part.get("text")
        if type(text) is not str:
            return []
        texts.append(text)
    return texts


def read_prompt(call: CallContents, value: Any, param: str) -> None:
    """A prompt: a string, strings, parts, token ids, or lists of these."""
    if type(value) is str:
        call.messages.append(Message("user", value))
        return
    if type(value) is not list or not value:
        raise wrong(param, "a string or a non-empty array", value)
    numbers = False
    parts = Parts()
    for index, item in enumerate(value):
        if type(item) is str:
            parts.texts.append(item)
        elif type(item) is int:
            numbers = True
        elif type(item) is list and any(type(one) is dict for one in item) and typed(item):
            below = take_apart(item, f"{param}[{index}]")
            parts.texts += below.everything()
            parts.count(below)
        elif type(item) is list:
            inner: list[str] = []
            collect(item, inner)
            parts.texts += inner
            numbers = numbers or _numbers(item)
        elif type(item) is dict:
            if type(item.get("content")) is list:
                below = take_apart(item["content"], f"{param}[{index}].content")
                parts.texts += below.everything()
                parts.count(below)
            elif type(item.get("type")) is str:
                _part(parts, item, f"{param}[{index}]")
            elif shown := _SHOWN.intersection(item):  # as Jina has it: {"image": …}
                _part(parts, {"type": min(shown), **item}, f"{param}[{index}]")
            else:
                collect(item, parts.rest)
        else:
            raise wrong(f"{param}[{index}]", "a string or token ids", item)
    if numbers:
        parts.opaque["token_ids"] = None
    parts.rest += [result.text for result in parts.results]
    call.add(parts.message("user", parts.text()), parts, [])


def _numbers(root: list[Any]) -> bool:
    """Whether anything in these lists is not text, since some readers take numbers of any kind for token ids."""
    stack = [root]
    while stack:
        for item in stack.pop():
            if type(item) is list:
                stack.append(item)
            elif type(item) is not str and type(item) is not dict:
                return True
    return False


def count_ids(given: Any) -> int:
    """How many token ids there are in a prompt of token ids, or in a list of such prompts."""
    if not isinstance(given, list):
        return 0
    return sum(len(item) if isinstance(item, list) else isinstance(item, int) for item in given)
