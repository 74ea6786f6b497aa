"""Answers of OpenAI's chat completions, and of the servers that speak it, with what they add (reasoning, citations).

https://platform.openai.com/docs/api-reference/chat-streaming. What comes in pieces is in a choice's `delta`.
"""

from __future__ import annotations

import time
import uuid
from typing import Any, Final

from extproc.bodies.jsonbody import dicts
from extproc.watching.shape import (
    DEEPEST,
    TOO_MANY,
    AnswerCourse,
    AnswerShape,
    AnswerText,
    Assembly,
    Channel,
    Pieces,
    as_json,
    index,
    inner,
    objects,
    put,
    size,
    walk,
)
from upstream.events import DONE, event

FILTERED: Final = "content_filter"
"""The finish reason of an answer that was cut."""
KEPT: Final = ("id", "object", "created", "model", "service_tier", "system_fingerprint", "usage")
"""What stays of an answer that is cut, or of a stream's first event."""
_NAMES: Final = tuple(key for key in KEPT if key != "usage")
_ONCE: Final = frozenset(("role", "type", "id", "format", "signature"))
"""Strings of a delta that do not grow."""
_CHOICES: Final = 1024
"""Choices that are remembered of one stream; OpenAI gives at most 128."""
_ENTRIES: Final = 1024
"""Entries with an `index` that a list may have: each is looked for among the others."""
APART: Final = "\n\n"
"""Between what was shown and the message that the answer was cut."""


class ChoicesAnswer(AnswerShape):
    """An answer that has `choices`."""

    def closes(self, fields: dict[str, Any]) -> list[Channel]:
        return [
            ("choices", index(choice, place))
            for place, choice in enumerate(dicts(fields, "choices"))
            if choice.get("finish_reason")  # some servers have "" in every event
        ]


class ChatAnswer(ChoicesAnswer):
    def texts(self, fields: dict[str, Any], json: bool = False) -> list[AnswerText]:
        out: list[AnswerText] = []
        for place, choice in enumerate(objects(fields, "choices")):
            path: Channel = ("choices", index(choice, place))
            delta = inner(choice, "delta")
            walk(delta, (*path, "delta"), False, out)
            walk(choice, path, True, out, ("delta",))
            for said, holder in (("delta", delta), ("message", choice.get("message"))):
                if type(holder) is dict and type(holder.get("content")) is list:
                    out = [_joined(text, (*path, said, "content")) for text in out]
        walk(fields, (), True, out, ("choices",))
        return as_json(out, "content") if json else out

    def course(self) -> AnswerCourse:
        return ChatCourse()

    def cut(self, fields: dict[str, Any], message: str) -> dict[str, Any]:
        answered = {"role": "assistant", "content": message, "refusal": None}
        return cut_choices(fields, {"message": answered})

    def assembly(self, limit: int) -> Assembly:
        return ChatAssembly(limit)

    def stream(self, final: dict[str, Any], usage: bool = True) -> bytes:
        head: dict[str, Any] = {key: final[key] for key in KEPT if key in final and key != "usage"}
        head["object"] = "chat.completion.chunk"
        events: list[bytes] = []
        for place, choice in enumerate(dicts(final, "choices")):
            at, message = index(choice, place), choice.get("message") or {}
            for delta in _deltas(message):
                one = {"index": at, "delta": delta, "logprobs": None, "finish_reason": None}
                events.append(event({**head, "choices": [one]}))
            rest = {key: value for key, value in choice.items() if key != "message"}
            events.append(event({**head, "choices": [{**rest, "index": at, "delta": {}}]}))
        others = {key: value for key, value in final.items() if key not in KEPT and key != "choices"}
        if others:
            events.append(event({**head, **others, "choices": []}))
        if usage and final.get("usage") is not None:
            events.append(event({**head, "choices": [], "usage": final["usage"]}))
        return b"".join((*events, DONE))


def _joined(text: AnswerText, content: Channel) -> AnswerText:
    """A text of a message whose `content` is a list of parts (Mistral's): clients show it as one with the text before
    it."""
    size = len(content)
    if text.key == "text" and len(text.channel) == size + 2 and text.channel[:size] == content:
        return text._replace(channel=content, whole=False)
    return text


class Choices(AnswerCourse):
    """The course of a stream whose events have `choices`."""

    def __init__(self) -> None:
        self._head: dict[str, Any] = {"model": ""}
        self._begun = False
        self._open: dict[int, bool] = {}
        """The choices that have begun: whether any text of theirs that a message would follow was shown."""
        self._finished: set[int] = set()

    def unseen(self, fields: dict[str, Any]) -> None:
        if not self._begun:
            # Azure's first event has no choices, and nothing but empty names.
            self._begun = bool(fields.get("choices"))
            said = ((key, fields.get(key)) for key in _NAMES)
            self._head.update({key: value for key, value in said if value and type(value) in (str, int)})

    def seen(self, fields: dict[str, Any]) -> None:
        self.unseen(fields)
        for place, choice in enumerate(dicts(fields, "choices")):
            at = index(choice, place)
            known = self._open.get(at)
            if known is None and len(self._open) < _CHOICES:
                known = self._open[at] = False
            if known is False and self.shows(choice):
                self._open[at] = True
            if choice.get("finish_reason") and at in self._open:
                self._finished.add(at)

    def shows(self, choice: dict[str, Any]) -> bool:
        """Whether a message has to be set apart from what the choice shows."""
        raise NotImplementedError

    def piece(self, message: str, first: bool) -> dict[str, Any]:
        """The fields of a choice that show `message`; `first`: they are its first."""
        raise NotImplementedError

    def closing(self, made: dict[str, Any], message: str) -> bytes:
        """The last events. `made`: the fields of a stream that has none of its own."""
        head = {**made, **self._head}
        left = [at for at in self._open if at not in self._finished] or list(self._open) or [0]
        choices = []
        for at in left:
            shown = APART + message if message and self._open.get(at) else message
            piece = self.piece(shown, at not in self._open)
            choices.append({"index": at, **piece, "logprobs": None, "finish_reason": FILTERED})
        return event({**head, "choices": choices}) + DONE


class ChatCourse(Choices):
    def shows(self, choice: dict[str, Any]) -> bool:
        delta = choice.get("delta")
        return type(delta) is dict and bool(delta.get("content"))

    def piece(self, message: str, first: bool) -> dict[str, Any]:
        delta: dict[str, Any] = {"role": "assistant"} if first else {}
        if message:
            delta["content"] = message
        return {"delta": delta}

    def cut(self, message: str) -> bytes:
        return self.closing(made("chatcmpl-", "chat.completion.chunk"), message)


class ChoicesAssembly(Assembly):
    """The final object of a stream whose events have `choices`."""

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._failed = False
        self._head: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}

    def add(self, fields: dict[str, Any]) -> None:
        if self._failed:
            return
        for key, value in fields.items():
            if key not in ("choices", "obfuscation") and (value is not None or key not in self._head):
                self._left -= put(self._head, key, value)
        for place, choice in enumerate(dicts(fields, "choices")):
            at = index(choice, place)
            known = self._choices.get(at)
            if known is None:
                known = self._choices[at] = {"index": at, "logprobs": None, "finish_reason": None}
                self._left -= 1
            self._left -= self.add_choice(known, choice)
        if self._left < 0 or fields.get("error"):
            self._failed = True
            self._head.clear()
            self._choices.clear()

    def final(self) -> dict[str, Any] | None:
        choices = [self.choice(grown(self._choices[at])) for at in sorted(self._choices)]
        if not choices or any(not choice["finish_reason"] for choice in choices):
            return None
        return self.whole(self._head, choices)

    def add_choice(self, known: dict[str, Any], choice: dict[str, Any]) -> int:
        """Adds a choice of an event to what is `known` of it; returns how many characters it took."""
        raise NotImplementedError

    def choice(self, grown: dict[str, Any]) -> dict[str, Any]:
        """A choice of the final object, from what is known of it in the end."""
        raise NotImplementedError

    def whole(self, head: dict[str, Any], choices: list[dict[str, Any]]) -> dict[str, Any]:
        """The final object."""
        raise NotImplementedError


class ChatAssembly(ChoicesAssembly):
    def add_choice(self, known: dict[str, Any], choice: dict[str, Any]) -> int:
        took = 0
        for key, value in choice.items():
            if key in ("delta", "logprobs"):
                name = "message" if key == "delta" else key
                if type(value) is dict:
                    if known.get(name) is None:
                        known[name] = {}
                    took += grow(known[name], value)
            elif value is not None or key not in known:
                took += put(known, key, value)
        return took

    def choice(self, grown: dict[str, Any]) -> dict[str, Any]:
        message = grown.get("message") or {}
        for call in dicts(message, "tool_calls"):
            call.pop("index", None)
        return {**grown, "message": {"role": "assistant", "content": None, "refusal": None, **message}}

    def whole(self, head: dict[str, Any], choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**head, "object": "chat.completion", "choices": choices}


def made(prefix: str, kind: str) -> dict[str, Any]:
    """What the first event of a stream says of itself, for one that has none."""
    return {"id": prefix + uuid.uuid4().hex[:24], "object": kind, "created": int(time.time())}


def cut_choices(fields: dict[str, Any], piece: dict[str, Any]) -> dict[str, Any]:
    """The whole answer with `piece` in every choice, and nothing else that the model wrote."""
    places = [index(choice, place) for place, choice in enumerate(dicts(fields, "choices"))] or [0]
    choices = [{"index": at, **piece, "logprobs": None, "finish_reason": FILTERED} for at in places]
    return {**{key: fields[key] for key in KEPT if key in fields}, "choices": choices}


def grow(known: dict[str, Any], delta: dict[str, Any], depth: int = 0) -> int:
    """Adds a delta to what is `known`, as OpenAI's SDK does it: strings are joined, entries of a list that have an
    `index` are found by it, other entries are appended. Returns how many characters it took; `TOO_MANY` for a delta
    that is nested too deep. `depth`: where it is itself."""
    if depth > DEEPEST:
        return TOO_MANY
    took = len(delta)
    for key, value in delta.items():
        before = known.get(key)
        if type(value) is str:
            took += len(value)
            if isinstance(before, Pieces) and key not in _ONCE:
                before.list.append(value)
            else:
                known[key] = Pieces(value) if key not in _ONCE else value
        elif type(value) is dict:
            if type(before) is not dict:
                before = known[key] = {}
            took += grow(before, value, depth + 1) + 1
        elif type(value) is list:
            if type(before) is not list:
                before = known[key] = []
            took += _grow_list(before, value, depth + 1)
        elif value is not None or key not in known:
            known[key] = value
    return took


def _grow_list(known: list[Any], entries: list[Any], depth: int) -> int:
    took = len(entries)
    for entry in entries:
        at = entry.get("index") if type(entry) is dict else None
        if type(at) is int:
            found = _placed(known, at)
            if found is None:
                if len(known) >= _ENTRIES:
                    return TOO_MANY
                known.append(found := {})
            took += grow(found, entry, depth + 1)
        else:
            took += size(entry, depth + 1)
            known.append(entry)
    return took


def _placed(known: list[Any], at: int) -> dict[str, Any] | None:
    for place in range(len(known) - 1, -1, -1):  # mostly the last one
        entry = known[place]
        if type(entry) is dict and entry.get("index") == at:
            return entry
    return None


def grown(value: Any) -> Any:
    """What has grown, with its strings joined."""
    if isinstance(value, Pieces):
        return value.text()
    if type(value) is dict:
        return {key: grown(one) for key, one in value.items()}
    return [grown(one) for one in value] if type(value) is list else value


def _deltas(message: dict[str, Any]) -> list[dict[str, Any]]:
    """The deltas that grow to `message`: its role, then each field, then each call of a tool."""
    fields = {key: value for key, value in message.items() if key not in ("role", "tool_calls") and value is not None}
    content = fields.pop("content", None)
    begun = "" if type(content) is str else None
    deltas: list[dict[str, Any]] = [{"role": message.get("role", "assistant"), "content": begun}]
    deltas += [{key: value} for key, value in fields.items()]  # thoughts come before what follows from them
    if content:
        deltas.append({"content": content})
    for at, call in enumerate(dicts(message, "tool_calls")):
        deltas.append({"tool_calls": [{"index": at, **call}]})
    return deltas
