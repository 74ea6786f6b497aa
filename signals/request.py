"""The parsed call of a language model: the only thing that signals look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple

from signals.text.view import view
from signals.text.wrappers import apart, said

Scope = Literal["user", "latest", "conversation", "system", "tools", "all", "answer"]
"""Which text a signal reads.

user: the last user message, without the blocks that agents put beside what the user says (`signals.text.wrappers`);
latest: everything since the last answer of the assistant (user texts, tool results, documents); conversation: every
message but system ones; system: system and developer messages; tools: tool results; all: every string of the body that
a model may be shown; answer: what the model answers, the only message of what `decisions.watching` judges.
"""

Opaque = Literal["token_ids", "embeddings", "reference", "document", "encrypted", "image", "audio", "video"]
"""What of a call has no text that can be read here.

token_ids and embeddings: a prompt as numbers; reference: text that the upstream has or fetches (an earlier response, a
file's id, a URL); document: a file of another format than text; encrypted: text that only its provider can open.
"""

TEXTUAL: frozenset[str] = frozenset(("token_ids", "embeddings", "reference", "document", "encrypted"))
"""Those that stand for text: where a request has one, no signal can say that it has read the whole text."""

_SYSTEM = ("system", "developer")
_ANSWERED = ("assistant", "model")
ANSWER: Final = "answer"
"""The role of the text of an answer that is judged; no message of a call has it."""


@dataclass(slots=True, init=False)
class Message:
    """One message of a conversation. `text` joins its text parts with newlines; the counters count other parts.

    `pages` are those of its PDFs, counted or guessed.
    """

    role: str
    text: str
    images: int
    audio: int
    files: int
    tool_calls: int
    pages: int

    # Written out, since the one that is made when this is imported is not compiled; so is that of `Request`.
    def __init__(  # noqa: PLR0913
        self, role: str, text: str, images: int = 0, audio: int = 0, files: int = 0, tool_calls: int = 0, pages: int = 0
    ) -> None:
        self.role = role
        self.text = text
        self.images = images
        self.audio = audio
        self.files = files
        self.tool_calls = tool_calls
        self.pages = pages


def speaks(message: Message) -> bool:
    """Whether a user says or shows something in a message, as opposed to an agent that reminds of something."""
    if message.role != "user":
        return False
    first = message.text[:1]  # no block begins with it, mostly
    if not first or (first != "<" and first != "#" and not first.isspace()):
        return True
    return bool(message.images or message.audio or message.files or said(message.text))


class Extra(NamedTuple):
    """What a message (or the call) holds beside the plain text of its `Message`.

    `at` is the message's place in `Request.messages`, -1 for what lies before the first. `role` says who speaks: that
    of a message, `document`, or `history` for earlier turns that the upstream keeps. `text` is everything else of it
    that a model may be shown (arguments of calls, thoughts, names, titles), `glued` its text parts joined without a
    space, as some chat templates join them. `opaque` names what of it cannot be read.
    """

    at: int
    role: str
    text: str = ""
    glued: str = ""
    opaque: tuple[Opaque, ...] = ()


class Everything(NamedTuple):
    """Every string of a body that a model may be shown, and the strings of each list joined without a space."""

    strings: Sequence[str]
    joined: Sequence[str]


_FORMATS: Final = (
    ("", "response_format"),  # chat, completions
    ("text", "format"),  # responses
    ("output_config", "format"),  # messages
    ("", "output_format"),  # the same, earlier
)


def formats(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a call says of the form of its answer, in the fields of OpenAI and Anthropic."""
    found = []
    for outer, key in _FORMATS:
        holder = fields.get(outer) if outer else fields
        said = holder.get(key) if isinstance(holder, Mapping) else None
        if isinstance(said, dict):
            found.append(said)
    return found


def guided(fields: Mapping[str, Any], *kinds: str) -> bool:
    """Whether a call asks for JSON in vLLM's own fields: `guided_json`, or one of `kinds` of `structured_outputs`."""
    said = fields.get("structured_outputs")
    return bool(fields.get("guided_json") or (isinstance(said, Mapping) and any(said.get(kind) for kind in kinds)))


class Asking:
    """Reads what a call asks for beside its text, in the fields of OpenAI and Anthropic; other APIs override this."""

    def offered(self, request: Request) -> Any:
        """The tools that are offered, as they were parsed."""
        fields = request.fields
        return fields.get("tools") or fields.get("functions")

    def tools(self, request: Request) -> int:
        """How many tools are offered."""
        fields = request.fields
        return sum(len(offered) for key in ("tools", "functions") if isinstance(offered := fields.get(key), list))

    def schema(self, request: Request) -> bool:
        """Whether the answer must fit a JSON schema."""
        fields = request.fields
        return any(form.get("type") == "json_schema" for form in formats(fields)) or guided(fields, "json")

    def streams(self, request: Request) -> bool:
        """Whether the answer is to be streamed."""
        return request.fields.get("stream") is True

    def most(self, request: Request) -> int | None:
        """The most tokens that the answer may have, if the call says it."""
        for name in ("max_completion_tokens", "max_output_tokens", "max_tokens"):
            value = request.fields.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
        return None

    def token_ids(self, request: Request) -> int:
        """How many tokens of its prompt are given as token ids."""
        return 0


ASKING: Final = Asking()
NONE: Final[Mapping[str, Any]] = MappingProxyType({})


@dataclass(slots=True, init=False)
class Request:
    """One call, parsed once.

    `api` is the name of the API that it is a call of (`extproc.apis.registry`), `asking` what reads that API's fields.

    `body` stays the bytes that came, `fields` is the decoded JSON object, `gather` finds every string of it that a
    model may be shown (None: what the messages hold is all there is). `headers` are lower-case and hold pseudo-headers
    (`:path`, `:method`). `attributes` is Envoy's filter metadata, by namespace (JWT claims and the like): trusted,
    since only Envoy's own filters write it. `received` is seconds since the epoch. `operation` is '' for a call that is
    to be answered, else what is asked about it: `count_tokens`, `input_tokens`, `compact`. `sealed`: some of its text
    cannot be read here (an `Extra` says which). `framing`: how the answer is to be streamed where the path says it.
    `session` is the key of its session where the response that it goes on from tells it, else ''. `stored`: the
    upstream keeps the answer, so that a later call may go on from it.
    """

    api: str
    body: bytes
    fields: dict[str, Any]
    model: str | None
    messages: tuple[Message, ...]
    headers: Mapping[str, str]
    attributes: Mapping[str, Any]
    received: float
    extras: tuple[Extra, ...]
    gather: Callable[[], Everything] | None
    operation: str
    sealed: bool
    asking: Asking
    framing: str
    session: str = field(init=False)
    stored: bool = field(init=False)
    size: int = field(init=False, repr=False, compare=False)  # bytes of the body, also once it was shed
    _found: Everything | None = field(init=False, repr=False, compare=False)
    _texts: dict[str, str] = field(init=False, repr=False, compare=False)
    _spelled: dict[str, tuple[tuple[str, str], ...]] = field(init=False, repr=False, compare=False)

    def __init__(  # noqa: PLR0913
        self,
        api: str,
        body: bytes,
        fields: dict[str, Any],
        model: str | None,
        messages: tuple[Message, ...],
        headers: Mapping[str, str] = NONE,
        attributes: Mapping[str, Any] = NONE,
        received: float = 0.0,
        extras: tuple[Extra, ...] = (),
        gather: Callable[[], Everything] | None = None,
        operation: str = "",
        sealed: bool = False,
        asking: Asking = ASKING,
        framing: str = "",
    ) -> None:
        self.api = api
        self.body = body
        self.fields = fields
        self.model = model
        self.messages = messages
        self.headers = headers
        self.attributes = attributes
        self.received = received
        self.extras = extras
        self.gather = gather
        self.operation = operation
        self.sealed = sealed
        self.asking = asking
        self.framing = framing
        self.session = ""
        self.stored = False
        self.size = len(body)
        self._found = None
        self._texts = {}
        self._spelled = {}

    def text(self, scope: Scope = "user") -> str:
        """The text of `scope`, its parts joined with newlines; '' where there is none. Computed once per scope."""
        text = self._texts.get(scope)
        if text is None:
            text = self._texts[scope] = self._join(scope)
        return text

    def apart(self, scope: Scope) -> tuple[str, str, str]:
        """The text of `scope` without the blocks that agents put beside what their users say; these blocks; and those
        in what tools return, all without their tags. '' where there is nothing.

        What a tool returns is no agent's word, whatever its tags are: its blocks are in the first text as well. For
        `latest` and `conversation`: the other scopes have no blocks beside something, or are not read by messages.
        """
        within = self._within(scope)
        texts: list[tuple[int, str]] = []
        blocks: dict[str, list[str]] = {"user": [], "tool": []}
        for at, message in enumerate(self.messages):
            if not within(at, message.role):
                continue
            text = message.text
            if message.role in blocks:
                words, block = apart(text)
                if block:
                    blocks[message.role].append(block)
                if message.role == "user":
                    text = words
            texts.append((at, text))
        texts += [(extra.at, extra.text) for extra in self.extras if extra.text and within(extra.at, extra.role)]
        texts.sort(key=_place)
        said = "\n".join([text for _, text in texts if text])
        return said, "\n".join(blocks["user"]), "\n".join(blocks["tool"])

    def spoken(self) -> str:
        """Everything that the messages hold, not only their text; but nothing that stands beside them (tools)."""
        texts = [message.text for message in self.messages]
        texts += [extra.text for extra in self.extras if extra.text]
        return "\n".join(texts)

    def glued(self, scope: Scope = "user") -> str:
        """The texts of those messages of `scope` that came in several parts, the parts joined without a space.

        A word that is split over two parts is whole only here. '' where no message has several parts.
        """
        texts: list[str] = []
        if self.extras:
            within = self._within(scope)
            texts = [extra.glued for extra in self.extras if extra.glued and within(extra.at, extra.role)]
        if scope == "all" and (everything := self._everything()) is not None and everything.joined:
            known = set(texts)
            texts += [text for text in everything.joined if text not in known]
        glued = "\n".join(texts)
        return said(glued) or glued if scope == "user" else glued

    def spellings(self, scope: Scope = "user") -> tuple[tuple[str, str], ...]:
        """What a detector searches in `scope`: each text as it was written and its view (the same object where there
        are no disguises). The first is `text`, the second, where there is one, `glued`. Views are made once per scope.
        """
        found = self._spelled.get(scope)
        if found is None:
            text = self.text(scope)
            found = ((text, view(text)),)
            if (self.extras or scope == "all") and (glued := self.glued(scope)):
                found = (*found, (glued, view(glued)))
            self._spelled[scope] = found
        return found

    def opaque(self, scope: Scope = "all") -> tuple[Opaque, ...]:
        """What of `scope` has no text that can be read here, in order, each once."""
        if not self.extras:
            return ()
        within = self._within(scope)
        found: dict[Opaque, None] = {}
        for extra in self.extras:
            if extra.opaque and within(extra.at, extra.role):
                found.update(dict.fromkeys(extra.opaque))
        return tuple(found)

    def unreadable(self, scope: Scope) -> bool:
        """Whether some of the text of `scope` cannot be read here."""
        return self.sealed and not TEXTUAL.isdisjoint(self.opaque(scope))

    def _everything(self) -> Everything | None:
        if self._found is None and self.gather is not None:
            self._found = self.gather()
        return self._found

    def shed(self) -> Request:
        """The same call without its body's content, for whoever only needs to know who asked and when."""
        rest = Request(self.api, b"", {}, self.model, (), self.headers, self.attributes, self.received)
        rest.operation = self.operation
        rest.session = self.session
        rest.stored = self.stored
        rest.size = self.size
        return rest

    def _join(self, scope: Scope) -> str:
        messages = self.messages
        if scope == "user":
            at = self._last_user()
            text = messages[at].text if at >= 0 else ""
            return said(text) or text
        if scope == "all" and (everything := self._everything()) is not None:
            return "\n".join(everything.strings)
        within = self._within(scope)
        if not self.extras:
            return "\n".join([m.text for at, m in enumerate(messages) if within(at, m.role)])
        texts = [(at, m.text) for at, m in enumerate(messages) if within(at, m.role)]
        texts += [(extra.at, extra.text) for extra in self.extras if extra.text and within(extra.at, extra.role)]
        texts.sort(key=_place)  # stable: a message's own text comes before the rest of it
        return "\n".join([text for _, text in texts])

    def _within(self, scope: Scope) -> Callable[[int, str], bool]:
        """Whether a part of the call at a message's place, with its role, belongs to `scope`."""
        if scope == "all":
            return lambda at, role: True
        if scope == "conversation":
            return lambda at, role: role not in _SYSTEM
        if scope == "system":
            return lambda at, role: role in _SYSTEM
        if scope == "tools":
            return lambda at, role: role == "tool"
        if scope == "answer":
            return lambda at, role: role == ANSWER
        if scope == "user":
            user = self._last_user()
            return lambda at, role: at == user and role == "user"
        begin = self._latest()
        return lambda at, role: at >= begin and role not in _SYSTEM and role != "history"

    def _last_user(self) -> int:
        """The place of the last user message in which a user says or shows something, else of the last one at all.

        A reminder that an agent puts beside the results of its tools is no new question. -2 where there is no user
        message (-1 is before the first message).
        """
        last = -2
        for at in range(len(self.messages) - 1, -1, -1):
            message = self.messages[at]
            if message.role == "user":
                last = at if last < 0 else last
                if speaks(message):
                    return at
        return last

    def _latest(self) -> int:
        """The place after the assistant's last answer; one that ends the call is no answer but the client's words."""
        messages = self.messages
        at = len(messages) - 1
        while at >= 0 and messages[at].role in _ANSWERED:
            at -= 1
        while at >= 0 and messages[at].role not in _ANSWERED:
            at -= 1
        return at + 1 if at >= 0 else -1


def _place(item: tuple[int, str]) -> int:
    return item[0]
