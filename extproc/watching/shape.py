"""What is in an answer of a language model's API: the texts that whoever reads it is shown, streamed or whole.

Sans-IO. An answer is read as the objects of its events (or as the one object of a whole answer). Each API has a file of
its own; what they share is here.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any, Final, NamedTuple

import orjson

from extproc.watching.sse import Events

Channel = tuple[str | int, ...]
"""Where a text goes: the path in the object, with the `index` of an entry for its place. Texts of one channel in
successive events are one text. The first two belong to one choice, content block or output item."""

SILENT: Final = frozenset(
    (
        "call_id",
        "container_id",
        "continuationToken",
        "createTime",
        "encrypted_content",
        "encrypted_index",
        "encrypted_stdout",
        "file_id",
        "format",
        "finishReason",
        "finish_reason",
        "id",
        "item_id",
        "mimeType",
        "model",
        "modelVersion",
        "native_finish_reason",
        "object",
        "obfuscation",
        "partial_image_b64",
        "previous_response_id",
        "provider",
        "responseId",
        "response_id",
        "role",
        "service_tier",
        "signature",
        "status",
        "stop_reason",
        "system_fingerprint",
        "thoughtSignature",
        "tool_call_id",
        "tool_use_id",
        "type",
    )
)
"""Fields that hold no text of the model's: names, states and what only the server reads."""
_TOKENS: Final = frozenset(("logprobs", "logprobsResult", "token_ids"))
"""Fields that repeat a text token by token. They go when their text changes. What their tokens say is a text of its
own, since nothing keeps a server from sending them before the text that they repeat."""
_LISTS: Final = ("tokens", "content", "refusal", "chosenCandidates")
"""Where `logprobs` have their tokens: completions, chat, Gemini."""
_CODE: Final = frozenset(("arguments", "partial_json"))
"""JSON text in a string."""
_OBJECTS: Final = frozenset(("arguments", "input", "args"))
"""Objects that the model wrote: names, numbers and all are its text."""
_BYTES: Final = {"data": ("audio", "inlineData", "redacted_thinking"), "result": ("image_generation_call",)}
"""Fields with bytes in base64, by what their object is called or what type it says it has."""
_OFFSETS: Final = frozenset(("start_index", "end_index", "startIndex", "endIndex"))
"""Where in the text of the answer a citation belongs."""
DEEPEST: Final = 64
"""Levels of an answer; no API has a third as many."""
_LARGEST: Final = float(2**63)
TOO_MANY: Final = 1 << 60
"""The size of what is not kept."""


class AnswerText(NamedTuple):
    """One string that a reader of the answer may be shown: `holder[key]`, which may be replaced there."""

    channel: Channel
    holder: Any
    key: Any
    code: bool = False
    """JSON text in a string (arguments of a tool): its escapes hide characters (extproc.watching.jsontext)."""
    whole: bool = False
    """There is no more of it: it repeats what came in pieces before, or does not come in pieces."""
    joins: Channel = ()
    """What else it may be shown as one with: the name of all such texts, then the block, part or item that this is one
    of. () for a text that is shown apart from all others."""


class WrittenAnswer:
    """Holds an object that the model wrote, as its JSON text."""

    def __init__(self, holder: Any) -> None:
        self._holder = holder

    def __getitem__(self, key: Any) -> str:
        """Raises ValueError when a number has more digits than were read."""
        if not exact(self._holder[key]):
            raise ValueError("a number in the answer has too many digits to be read")
        return orjson.dumps(self._holder[key]).decode()

    def __setitem__(self, key: Any, text: str) -> None:
        """Raises ValueError when `text` is no JSON text."""
        self._holder[key] = orjson.loads(text)


class TokensAnswer:
    """Holds tokens that repeat a text, as the text that they make. When that is changed they go."""

    def __init__(self, holder: Any) -> None:
        self._holder = holder

    def __getitem__(self, key: Any) -> str:
        return _tokens(self._holder[key])

    def __setitem__(self, key: Any, text: str) -> None:
        self._holder[key] = [] if type(self._holder[key]) is list else None


def _tokens(given: Any) -> str:
    """The tokens of `logprobs` in the form of any API, joined; those that the model might have said instead are not
    among them."""
    if type(given) is list:
        return "".join([_tokens(one) if type(one) is dict else one if type(one) is str else "" for one in given])
    if type(given) is not dict:
        return ""
    token = given.get("token")
    return token if type(token) is str else "".join([_tokens(given[key]) for key in _LISTS if key in given])


class Pieces:
    """A string that grows, piece by piece, in linear time."""

    def __init__(self, first: str) -> None:
        self.list = [first]

    def text(self) -> str:
        return "".join(self.list)


class AnswerCourse:
    """What one stream has shown the client so far, and the events that end it before its time."""

    def seen(self, fields: dict[str, Any]) -> None:
        """An event is released, as it is now."""
        raise NotImplementedError

    def unseen(self, fields: dict[str, Any]) -> None:
        """An event is not released, since the answer is cut: what it says of the answer itself (id, model) holds all
        the same, where none before it has said so."""
        raise NotImplementedError

    def cut(self, message: str) -> bytes:
        """The closing events: whatever is open is closed, `message` is shown, and the reason is the API's word for a
        filter. Arguments of a tool stay as far as they came, since a call that is cut must not be made. b"" once the
        answer has ended."""
        raise NotImplementedError


class Assembly:
    """The final object of an answer from the events of its stream. `limit`: characters that are kept at most."""

    def add(self, fields: dict[str, Any]) -> None:
        """The next event of the stream."""
        raise NotImplementedError

    def final(self) -> dict[str, Any] | None:
        """The object that the API gives without streaming; None when the answer is not complete, failed, or is longer
        than the limit."""
        raise NotImplementedError


class AnswerShape:
    """How an API answers. Without state."""

    def texts(self, fields: dict[str, Any], json: bool = False) -> list[AnswerText]:
        """The texts of an event, or of a whole answer, in their order. Empty ones are none. `json`: what the model says
        is JSON, as the call has asked for (`extproc.watching.shapes.asks_json`), and so its texts are `code`.

        Raises ValueError for an object that no API gives.
        """
        raise NotImplementedError

    def closes(self, fields: dict[str, Any]) -> list[Channel]:
        """The beginnings of those channels that end with this event: `()` ends all."""
        raise NotImplementedError

    def repeats(self) -> bool:
        """Whether a stream's last event says all texts again, also that of an answer that is cut."""
        return False

    def forget(self, fields: dict[str, Any]) -> None:
        """Drops what repeats the texts of the event (tokens, speech), or counts their characters (where a citation is):
        to be called when one was changed, and for every later event of that answer."""
        fields.pop("obfuscation", None)
        _forget(fields)

    def events(self, limit: int) -> Events:
        """What cuts a new stream into its events, each of `limit` bytes at most."""
        return Events(limit)

    def course(self) -> AnswerCourse:
        """The state of a new stream."""
        raise NotImplementedError

    def cut(self, fields: dict[str, Any], message: str) -> dict[str, Any]:
        """A whole answer with `message` in the place of everything that the model wrote."""
        raise NotImplementedError

    def assembly(self, limit: int) -> Assembly:
        """The state of a stream whose final object is wanted."""
        raise NotImplementedError

    def stream(self, final: dict[str, Any], usage: bool = True) -> bytes:
        """The stream that an SDK reads as the object `final`. `usage`: with the tokens, where an API leaves that to
        the client."""
        raise NotImplementedError


def walk(node: dict[str, Any], path: Channel, whole: bool, out: list[AnswerText], but: Container[str] = ()) -> None:
    """Adds every string of `node` that is shown to `out`, those of unknown fields too; not those of
    the fields `but`."""
    if len(path) > DEEPEST:
        raise ValueError(f"the answer is nested deeper than {DEEPEST} levels")
    for key, value in node.items():
        kind = type(value)
        if kind is str:
            if value and key not in SILENT and key not in but and not (key in _BYTES and _is_bytes(node, path, key)):
                out.append(AnswerText((*path, key), node, key, key in _CODE, whole))
        elif (kind is dict or kind is list) and value and key not in but:
            if key in _TOKENS:
                if _tokens(value):
                    out.append(AnswerText((*path, key), TokensAnswer(node), key))
            elif kind is list:
                walk_list(value, (*path, key), whole, out)
            elif key in _OBJECTS:
                out.append(AnswerText((*path, key), WrittenAnswer(node), key, True, whole))
            else:
                walk(value, (*path, key), whole, out)


def _is_bytes(node: dict[str, Any], path: Channel, key: str) -> bool:
    kinds = _BYTES[key]
    return kind_of(node) in kinds or (len(path) > 0 and path[-1] in kinds)


def as_json(texts: list[AnswerText], key: str) -> list[AnswerText]:
    """The texts, with those called `key` as JSON text in a string."""
    return [text._replace(code=True) if text.key == key else text for text in texts]


def walk_list(nodes: list[Any], path: Channel, whole: bool, out: list[AnswerText]) -> None:
    """The same for a list, whose entries may say their place (`index`)."""
    if len(path) > DEEPEST:
        raise ValueError(f"the answer is nested deeper than {DEEPEST} levels")
    for place, value in enumerate(nodes):
        kind = type(value)
        if kind is dict:
            walk(value, (*path, index(value, place)), whole, out)
        elif kind is str:
            if value:
                out.append(AnswerText((*path, place), nodes, place, False, whole))
        elif kind is list:
            walk_list(value, (*path, place), whole, out)


def _forget(node: Any) -> None:
    if type(node) is list:
        for entry in node:
            _forget(entry)
    elif type(node) is dict:
        for key, value in node.items():
            if key in _TOKENS:
                node[key] = [] if type(value) is list else None
            elif key == "audio" and type(value) is dict and value.get("data"):
                value["data"] = ""  # what the transcript says
            elif key in _OFFSETS:
                node[key] = 0
            elif key not in _OBJECTS:
                _forget(value)


def exact(value: Any) -> bool:
    """Whether an object has its numbers as they were written: orjson reads whole ones of more than 64 bits as floats.
    False too when it is nested too deep."""
    return _exact(value, 0)


def _exact(value: Any, depth: int) -> bool:
    if type(value) is float:
        return -_LARGEST < value < _LARGEST
    if depth > DEEPEST:
        return False
    if type(value) is dict:
        value = list(value.values())
    if type(value) is list:
        for one in value:
            if not _exact(one, depth + 1):
                return False
    return True


def says_twice(data: bytes, fields: Any) -> bool:
    """Whether some object of `data`, whose fields these are, may hold a key twice: only the last one was read. As in
    `extproc.bodies.jsonbody`, the quotation marks tell."""
    written = orjson.dumps(fields)
    if written == data:
        return False
    return data.count(b'"') + data.count(b"\\u0022") != written.count(b'"')


def size(value: Any, depth: int = 0) -> int:
    """About how many characters an object has; `TOO_MANY` when it is nested too deep. `depth`: where it is itself."""
    if type(value) is str:
        return len(value)
    if depth > DEEPEST:
        return TOO_MANY
    took = 1
    if type(value) is dict:
        for key, one in value.items():
            took += len(key) + size(one, depth + 1)
    elif type(value) is list:
        for one in value:
            took += size(one, depth + 1)
    return took


def put(known: dict[str, Any], key: str, value: Any) -> int:
    """Sets a field of what is `known` of an answer; returns how many characters more it has by that."""
    before = size(known[key]) if key in known else -1 - len(key)
    known[key] = value
    return size(value) - before


def index(entry: dict[str, Any], place: int) -> int:
    """The place that an entry of a list says it has, else where it is."""
    given = entry.get("index")
    return given if type(given) is int else place


def objects(holder: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """The list of objects `holder[key]`; none where there is no such field. Raises ValueError for something else."""
    found = holder.get(key)
    if found is None:
        return []
    if type(found) is not list or not all(map(_is_object, found)):
        raise ValueError(f"{key!r} in the answer is no list of objects")
    return found


def _is_object(value: Any) -> bool:
    return type(value) is dict


def inner(holder: dict[str, Any], key: str) -> dict[str, Any]:
    """The object `holder[key]`; an empty one where there is no such field. Raises ValueError for something else."""
    found = holder.get(key)
    if found is None:
        return {}
    if type(found) is not dict:
        raise ValueError(f"{key!r} in the answer is no object")
    return found


def kind_of(holder: dict[str, Any]) -> str:
    """The `type` that an object says it has; '' without."""
    kind = holder.get("type")
    return kind if type(kind) is str else ""
