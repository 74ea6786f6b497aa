"""The shape of a policy file, as pydantic models; the kinds of signals bring their own parameter models."""

from __future__ import annotations

import os
import re
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from config.writers import WRITERS
from decisions.arm import name as arm_name
from decisions.decision import CacheScope, Effort
from decisions.model import FALLBACKS, Capability, Family, Thinking
from decisions.selectors.registry import BY_NAME as SELECTORS
from decisions.selectors.selector import Params as SelectorParams
from decisions.selectors.selector import Selector
from signals.bounds import HEADER_NAME, said
from signals.credentials import credential
from signals.files import SECRET, read
from signals.path import Path as FieldPath
from signals.registry import BY_NAME
from signals.request import ANSWER

WINDOW = (16, 8192)
"""The least and the greatest `window`, in characters."""
_NAME = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]{1,200}")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s|m|h)")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_SIZE = re.compile(r"(\d+)(B|KiB|MiB|GiB)")
_BYTES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def duration(value: object) -> float:
    """Seconds from text such as `50ms`, `2s`, `1.5m`."""
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise PydanticCustomError("P104", "not a duration: write a number with a unit (us, ms, s, m, h), such as 50ms")
    return float(match[1]) * _SECONDS[match[2]]


def size(value: object) -> int:
    """Bytes from text such as `10MiB`."""
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise PydanticCustomError("P104", "not a size: write a whole number with a unit (B, KiB, MiB, GiB)")
    return int(match[1]) * _BYTES[match[2]]


def _text_schema(pattern: re.Pattern[str], example: str) -> dict[str, Any]:
    words = said(f"a number with a unit is needed, such as {example}")
    return {"type": "string", "pattern": f"^{pattern.pattern}$", "examples": [example], **words}


Duration = Annotated[float, BeforeValidator(duration), Field(json_schema_extra=_text_schema(_DURATION, "50ms"))]
Size = Annotated[int, BeforeValidator(size), Field(json_schema_extra=_text_schema(_SIZE, "10MiB"))]


def name(value: str) -> str:
    """`value`, if it can stand in a header, a log line and a metric's label as it is."""
    if not _NAME.fullmatch(value) or value != value.strip():
        raise PydanticCustomError(
            "P104", "not a name: it has 1 to 200 characters, no control characters, and no space at its ends"
        )
    return value


def alias(value: str) -> str:
    """`value`, if it is a name by which clients may call a model, or the beginning of some and a `*`."""
    if "*" in value[:-1] or value == "*":
        raise PydanticCustomError("P104", "aliases: `*` stands at the end of a beginning only, as in claude-*")
    return name(value)


Name = Annotated[str, AfterValidator(name), Field(json_schema_extra={"minLength": 1, "maxLength": 200})]
"""A name that goes into headers, logs, metrics and the gateway's configuration."""


class Spec(BaseModel):
    """Base of every part of a policy: strict, immutable, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True, allow_inf_nan=False)


class PriceSpec(Spec):
    input: float = Field(0.0, ge=0, description="Money per million input tokens.")
    output: float = Field(0.0, ge=0, description="Money per million output tokens.")
    cached_input: float | None = Field(
        None,
        ge=0,
        description="Money per million input tokens that its server had in its cache; as `input` unless given.",
    )
    cache_write: float | None = Field(
        None,
        ge=0,
        description="Money per million input tokens that its server put into its cache; as `input` unless given.",
    )


class CredentialSourceSpec(Spec):
    """Where the gateway finds a credential. The router never sees it."""

    secret: str | None = Field(
        None,
        pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$",
        description="The name of the secret, as in Kubernetes.",
        json_schema_extra=said("a name as in Kubernetes is needed: small letters, digits, `-` and `.`"),
    )
    key: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9._-]{1,253}$",
        description="The secret's key that holds the credential.",
        json_schema_extra=said("letters, digits, `.`, `_` and `-` are needed"),
    )
    env: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$",
        description="The environment variable of `up`, and of plain Envoy, that holds the credential.",
        json_schema_extra=said("the name of an environment variable is needed, such as OPENAI_API_KEY"),
    )

    @model_validator(mode="after")
    def _some(self) -> Self:
        if (self.secret is None) != (self.key is None) or (self.secret is None and self.env is None):
            raise PydanticCustomError("P102", "from: {{secret: NAME, key: KEY}}, {{env: VARIABLE}} or both are needed")
        return self


class CredentialSpec(Spec):
    """What the gateway sends to a model's server to be let in."""

    header: str = Field(
        "authorization",
        pattern=HEADER_NAME,
        description="The header that it goes into; the client's own is overwritten.",
        json_schema_extra=said("a header's name is needed, such as authorization"),
    )
    prefix: str | None = Field(
        None,
        pattern=r"^([!-~][ -~]{0,100})?$",
        description="What stands before it in the header; `Bearer ` unless given for `authorization`, else nothing.",
        json_schema_extra=said("printable ASCII is needed that does not begin with a space, such as Bearer"),
    )
    source: CredentialSourceSpec = Field(alias="from", description="Where the gateway finds it.")

    @field_validator("header")
    @classmethod
    def _free(cls, header: str) -> str:
        _check_headers({header: ""}, ("host", "content-length", "content-type"))
        return header.lower()


class ModelSpec(Spec):
    """One destination."""

    name: Name | None = Field(None, description="The name under which its server knows it; the key when left out.")
    price: PriceSpec = Field(PriceSpec(), description="What a call costs; used by selectors and reports.")
    context: int | None = Field(None, gt=0, description="Context length in tokens.")
    max_output: int | None = Field(None, gt=0, description="The most tokens that it writes; shown by GET /v1/models.")
    aliases: list[Annotated[str, AfterValidator(alias)]] = Field(
        [], description="Further names by which clients may ask for it; `claude-*` is every name with that beginning."
    )
    capabilities: list[Capability] | None = Field(
        None,
        description="What it can do beside writing text; left out, everything. A request that needs more goes to "
        "another model of its `pick`.",
    )
    quality: float | None = Field(
        None,
        ge=0,
        le=1,
        description="How good its answers are, by your own estimate; shown by GET /v1/models. That of the default "
        "model is the `standing` of `difficulty` where this has none.",
    )
    thinking: Thinking = Field("reasoning_effort", description="How this family switches reasoning on and off.")
    stream_usage: bool = Field(
        True,
        description="Whether its server takes `stream_options.include_usage`, by which streams are asked for the usage "
        "that is metered; without it their tokens are a guess, unless the client asks for them.",
    )
    family: Family | None = Field(
        None, description="The field that limits output in chat completions; left out, it follows from the served name."
    )
    url: str | None = Field(
        None,
        pattern=r"^https?://[^/\s\x00-\x1f\x7f]+(/[^\s\x00-\x1f\x7f]*)?$",
        description="Where the model is served, for `up` and `render`; left out, the gateway's own routes know.",
        json_schema_extra=said("a URL is needed, such as http://host:8000 or https://host/path"),
    )
    base_path: str | None = Field(
        None,
        pattern=r"^/([A-Za-z0-9._~-]+(/[A-Za-z0-9._~-]+)*)?$",
        description="What its server has before the name of a call, such as `/api/paas/v4`, in the place of what "
        "clients have there; `/v1` unless given.",
        json_schema_extra=said("a path is needed that begins with / and does not end with it, such as /api/paas/v4"),
    )
    fallback: list[str] = Field(
        [],
        max_length=FALLBACKS,
        description="Models that take its place, in this order, where it lacks what a request needs or its server "
        "fails.",
    )
    per_try_timeout: Duration | None = Field(
        None,
        gt=0,
        le=3600,
        description="How long the gateway waits until an answer begins before it tries the next of `fallback`; left "
        "out, for as long as the server says nothing.",
    )
    health_check: str | None = Field(
        None,
        pattern=r"^/[!-~]*$",
        max_length=1024,
        description="The path by which its server says that it is well, such as `/health`: the gateway asks every few "
        "seconds and passes the server over while it does not answer with 200.",
        json_schema_extra=said("a path is needed that begins with /, such as /health"),
    )
    credential: CredentialSpec | None = Field(
        None, description="What the gateway sends to its server to be let in; for `render` and `up` only."
    )


def _check_headers(headers: dict[str, str], kept: tuple[str, ...]) -> None:
    """Raises P104 for a name that no header can have, and for a header that is ours or among `kept`."""
    for name, value in headers.items():
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or re.search(r"[\x00-\x08\x0a-\x1f\x7f]", value):
            raise PydanticCustomError("P104", "headers: {name!r} is not a header name and value", {"name": name})
        if name.lower().startswith("x-pointsman-") or name.lower() in kept:
            raise PydanticCustomError("P104", "headers: {name!r} is not the policy's to set", {"name": name})


class RespondSpec(Spec):
    """An answer of our own instead of a route."""

    status: int = Field(
        403, ge=200, le=599, description="HTTP status of the refusal (400 to 599), or 200 for an answer in words."
    )
    message: str = Field("This request was refused by policy.", description="The text that the client gets.")
    headers: dict[str, str] = Field({}, description="Headers of the answer, such as `retry-after`.")

    @field_validator("status")
    @classmethod
    def _known(cls, status: int) -> int:
        if status != 200 and status < 400:
            raise PydanticCustomError("P104", "status: 200 or 400 to 599 is needed")
        return status

    @model_validator(mode="after")
    def _answer(self) -> Self:
        _check_headers(self.headers, ("content-type", "content-length", "transfer-encoding", "connection"))
        return self


class MaskSpec(Spec):
    """What is found becomes its kind in brackets, such as [card]. Nothing is to be said."""


class CutSpec(Spec):
    """The answer ends, as one that the provider's own filter has ended (`content_filter`)."""

    message: str | None = Field(None, min_length=1, description="Text that stands at the end; left out, none.")


class FlagSpec(Spec):
    """The answer goes on; headers, metadata, metrics and the decision log tell of it. Nothing is to be said."""


class SetSpec(Spec):
    """Changes to the request on its way to the model."""

    reasoning_effort: Effort | None = Field(None, description="How much to reason, in the model family's own field.")
    thinking: bool | None = Field(None, description="Switch reasoning on or off, in the model family's own field.")
    thinking_budget: int | None = Field(
        None, gt=0, description="The most reasoning tokens, where the family has such a limit."
    )
    max_tokens: int | None = Field(None, gt=0, description="The most output tokens; replaces a higher limit, or none.")
    system: str | None = Field(None, min_length=1, description="A system prompt put before the request's own.")
    headers: dict[str, str] = Field({}, description="Request headers for the upstream; they replace the client's.")

    @model_validator(mode="after")
    def _headers(self) -> Self:
        _check_headers(self.headers, ("host", "content-length"))
        return self


class CandidateSpec(Spec):
    """A model with changes of its own, as one candidate of a choice."""

    model: str = Field(description="The model that takes the request.")
    set: SetSpec = Field(
        description="Changes to the request where this candidate takes it; they precede the decision's."
    )
    name: Name | None = Field(None, description="What it is called; left out, the model and what is set: `large+low`.")

    @property
    def key(self) -> str:
        """The name of the candidate."""
        return self.name or arm_name(self.model, self.set.model_dump(exclude_none=True))


Candidate = Annotated[
    Annotated[str, Tag("<model>")] | Annotated[CandidateSpec, Tag("<candidate>")],
    Discriminator(lambda value: "<candidate>" if isinstance(value, (dict, CandidateSpec)) else "<model>"),
]


class _OneKind(Spec):
    """A kind of selector with its parameters: `{name: {parameters}}`."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if len(self.model_fields_set) != 1:
            raise PydanticCustomError("P106", "by: exactly one kind is needed, as a name or as {name: {parameters}}")
        return self


if TYPE_CHECKING:
    By = str | _OneKind
else:
    _BySpec = create_model(
        "BySpec",
        __base__=_OneKind,
        __doc__=_OneKind.__doc__,
        **{kind.name: (kind.Parameters | None, Field(None, description=kind.about)) for kind in SELECTORS.values()},
    )
    By = Annotated[
        Annotated[Literal[tuple(SELECTORS)], Tag("<name>")] | Annotated[_BySpec, Tag("<kind>")],
        Discriminator(lambda value: "<kind>" if isinstance(value, (dict, _OneKind)) else "<name>"),
    ]


class _Pick(Spec):
    """The beginning of a choice of models: which, and how."""

    pick: list[Candidate] = Field(
        min_length=1, description="The models to choose from: names, or {model: name, set: {changes}}."
    )
    by: By = Field(next(iter(SELECTORS)), description="How to choose: a name, or {name: {parameters}}.")


if TYPE_CHECKING:
    _Beside = _Pick
else:
    _Beside = create_model(
        "_Beside",
        __base__=_Pick,
        **{
            key: (field.annotation, copy(field))
            for kind in SELECTORS.values()
            for key, field in kind.Parameters.model_fields.items()
            if key in kind.beside
        },
    )


class PickSpec(_Beside):
    """A choice between several models."""

    sticky: Literal["session"] | None = Field(None, description="Keep a conversation on its model.")

    @property
    def keys(self) -> list[str]:
        """What the candidates are called."""
        return [one if isinstance(one, str) else one.key for one in self.pick]

    @property
    def kind(self) -> type[Selector]:
        """The kind of selector that chooses."""
        return SELECTORS[self.by if isinstance(self.by, str) else next(iter(self.by.model_fields_set))]

    @property
    def params(self) -> SelectorParams:
        """The parameters of that kind. Raises pydantic's ValidationError where one is missing."""
        kind = self.kind
        if isinstance(self.by, str):
            return kind.Parameters(**{key: getattr(self, key) for key in kind.beside})
        given: SelectorParams | None = getattr(self.by, kind.name)
        return kind.Parameters() if given is None else given

    def place(self, path: tuple[str | int, ...]) -> tuple[str | int, ...]:
        """Where below the choice that stands which stands at `path` below the parameters."""
        if not isinstance(self.by, str):
            return ("by", self.kind.name, *path)
        return path if path and path[0] in self.kind.beside else ("by",)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        kind = self.kind
        for other in SELECTORS.values():
            for key in other.beside:
                if getattr(self, key) == other.Parameters.model_fields[key].default:
                    continue
                if other is not kind:
                    raise ValueError(f"{key} go with `by: {other.name}` only")
                if not isinstance(self.by, str):
                    raise ValueError(f"{key} stand beside `by` and belong into it: `by: {{{kind.name}: {{{key}: …}}}}`")
        try:
            params = self.params
        except ValidationError as error:
            missing = ", ".join(f"{item['loc'][0]}: …" for item in error.errors())
            raise ValueError(f"`by` lacks parameters: write `by: {{{kind.name}: {{{missing}}}}}`") from None
        named: dict[str, CandidateSpec | str] = {}
        for key, one in zip(self.keys, self.pick, strict=True):
            if named.setdefault(key, one) != one:
                raise ValueError(f"two candidates are called {key!r}: give one of them a `name`")
        params.check(self.keys)
        return self


Route = Annotated[
    Annotated[str, Tag("<model>")] | Annotated[PickSpec, Tag("<pick>")],
    Discriminator(lambda value: "<pick>" if isinstance(value, (dict, PickSpec)) else "<model>"),
]


class StickySpec(Spec):
    """How long a conversation keeps a decision."""

    by: Literal["session"] = Field("session", description="What keeps the decision.")
    until: Duration = Field(86_400.0, gt=0, description="How long after its last request; left out, a day.")


Sticky = Annotated[
    Annotated[Literal["session"], Tag("<session>")] | Annotated[StickySpec, Tag("<sticky>")],
    Discriminator(lambda value: "<sticky>" if isinstance(value, (dict, StickySpec)) else "<session>"),
]


class CacheSpec(Spec):
    """Which answers of a decision are kept, and given again to equal requests."""

    ttl: Duration = Field(3600.0, gt=0, le=30 * 86_400, description="How long an answer is kept, such as 1h.")
    scope: CacheScope = Field(
        "tenant", description="Who shares answers; a request that does not say whose it is, takes none and leaves none."
    )
    any_temperature: bool = Field(
        False,
        description="Keep answers of calls with a temperature above 0, or without one (the APIs then take 1), too.",
    )
    similar: float | None = Field(
        None,
        ge=0.5,
        le=1,
        description="Give an answer to the same question put in another way, too (case, greeting, `how can I`), where "
        "the embeddings are at least so close (cosine).",
    )


class _Action(Spec):
    """The beginning of a decision: its rule, and what it does."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$",
        description="Shown to clients and operators.",
        json_schema_extra=said("1 to 63 letters, digits, `.`, `_` and `-` are needed, the first a letter or a digit"),
    )
    on: Literal["request", "answer"] = Field(
        "request", description="What is looked at: the request, or what the model answers."
    )
    when: Any = Field(None, description="The rule; left out, every request matches.")
    on_unknown: Literal["skip", "match", "fail"] = Field("skip", description="What happens when the rule is Unknown.")
    route: Route | None = Field(None, description="A model, or a choice between models.")
    respond: RespondSpec | None = Field(
        None, description="Refuse; applies to every request. On an answer: before anything of it was sent, else `cut`."
    )
    mask: MaskSpec | None = Field(
        None, description="On an answer: what the rule's keywords, patterns and personal data have found is replaced."
    )
    cut: CutSpec | None = Field(None, description="On an answer: it ends there.")
    flag: FlagSpec | None = Field(None, description="On an answer: nothing is done, and it is told.")


if TYPE_CHECKING:
    _Writers = _Action
else:
    # A writer's block is checked by itself (config.load), with the parameters that are its own.
    _Writers = create_model(
        "_Writers",
        __base__=_Action,
        **{kind.name: (Any, Field(None, description=kind.about)) for kind in WRITERS},
    )


class DecisionSpec(_Writers):
    """One entry of the priority list."""

    set: SetSpec | None = Field(None, description="Changes to the request.")
    observe: bool = Field(
        False,
        description="Only count what a guard (`respond`; on an answer also `mask` and `cut`) would have done, and let "
        "the request or the answer go on.",
    )
    window: int = Field(
        256,
        ge=WINDOW[0],
        le=WINDOW[1],
        description="On an answer: characters that are held back while it streams. What is longer may get through in "
        "part.",
    )
    stride: int = Field(
        256,
        ge=1,
        le=1 << 16,
        description="On an answer: characters after which signals that take long read again.",
    )
    tied: bool = Field(
        False,
        description="It has the rank of the decision above it: of those of one rank that match, the most confident one "
        "is taken.",
    )
    override: bool = Field(False, description="Apply to requests that name a real model, too.")
    sticky: Sticky | None = Field(
        None,
        description="Keep a conversation on this decision, and its model: `session`, or {by: session, until: 30m}.",
    )
    cache: CacheSpec | None = Field(None, description="Keep answers, and give them again to equal requests.")


class KeptSpec(Spec):
    """Where decisions with `cache:` keep answers."""

    where: Literal["process", "store"] = Field(
        "process", description="In each worker's memory, or in `settings.store`, where all replicas share them."
    )
    memory: Size = Field(
        64 * 2**20, gt=0, description="Bytes of a worker's memory for answers; the least recently used make room."
    )
    answer: Size = Field(2**20, gt=0, le=4 * 2**20, description="Larger answers are not kept.")


class Secret(Spec):
    """A secret, by where it is found: never written into the policy."""

    env: str | None = Field(None, min_length=1, description="An environment variable that holds it.")
    file: str | None = Field(None, min_length=1, description="A file that holds it, without its last newline.")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.env is None) == (self.file is None):
            raise PydanticCustomError("P106", "a secret is {env: NAME} or {file: PATH}")
        return self

    def reveal(self, folder: Path) -> str:
        """The secret itself; a relative path is meant from `folder`. Raises ValueError when it is not there."""
        if self.env is not None:
            if self.env not in os.environ:
                raise ValueError(f"the environment variable {self.env} is not set")
            if not os.environ[self.env]:
                raise ValueError(f"the environment variable {self.env} is empty")
            return os.environ[self.env]
        assert self.file is not None
        try:
            secret = read(folder / self.file, SECRET).decode().removesuffix("\n")
        except OSError as error:
            raise ValueError(f"the secret cannot be read: {error}") from None
        except UnicodeDecodeError:
            raise ValueError(f"the secret cannot be read: {self.file} is not UTF-8") from None
        if not secret:
            raise ValueError(f"the secret is empty: {self.file}")
        return secret


class StoreSpec(Spec):
    """Shared state in Redis or Valkey, for more than one replica."""

    url: str = Field(
        pattern=r"^rediss?://[^@\s]+$",
        description="`redis://host:port/db`; `rediss://` for TLS.",
        json_schema_extra=said("a URL is needed, such as redis://host:6379/0; a password goes into `password`"),
    )
    password: Secret | None = Field(None, description="The server's password, as {env: NAME} or {file: PATH}.")
    timeout: Duration = Field(0.02, gt=0, le=5, description="The store counts as unreachable when it takes longer.")


class InferenceSpec(Spec):
    """How the models of neural signals are run."""

    threads: int = Field(1, ge=1, le=256, description="Threads of one run of a mounted model.")
    queue: int = Field(
        512,
        ge=1,
        le=65536,
        description="The most texts that may wait for one model; signals of further ones are Unknown.",
    )
    batch: int = Field(32, ge=1, le=1024, description="The most texts that a model runs together.")
    hang: Duration | None = Field(
        None,
        gt=0,
        le=600,
        description="A run that takes longer counts as hung; left out, 5s, and 30s for mounted models.",
    )


class SessionSpec(Spec):
    """Where clients name their session."""

    header: str | None = Field(None, min_length=1, description="A request header.")
    field: FieldPath | None = Field(None, description="A path in the body, such as `metadata.chat_id`.")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.header is None) == (self.field is None):
            raise PydanticCustomError("P106", "a session is told by {header: NAME} or {field: PATH}")
        return self


class TenantSpec(Spec):
    """Where the gateway says who asks."""

    header: str = Field(
        pattern=HEADER_NAME,
        json_schema_extra=said("a header's name is needed, such as x-tenant"),
        description="A request header that the gateway sets and clients cannot.",
    )

    @field_validator("header")
    @classmethod
    def _shown(cls, header: str) -> str:
        if credential(header):
            raise PydanticCustomError(
                "P104",
                "header: {name} carries a credential, which is never logged; name a header that says who asks",
                {"name": header},
            )
        if header.lower().startswith("x-pointsman-"):
            raise PydanticCustomError("P104", "header: {name} is ours: clients' copies are removed", {"name": header})
        return header


class SettingsSpec(Spec):
    """Run-time settings."""

    deadline: Duration = Field(
        0.05, gt=0, le=60, description="Time for one decision; the reading of a late signal is Unknown."
    )
    max_body: Size = Field(10 * 2**20, gt=0, description="Larger request bodies are refused with 413.")
    response_headers: bool = Field(True, description="Tell the client the decision and the model in headers.")
    unread: Literal["refuse", "pass"] = Field(
        "refuse",
        description="What to do with a request whose path is that of no call that is understood: refuse it, or pass it "
        "on to the default model, unread.",
    )
    fallback: Literal["price"] | None = Field(
        None,
        description="Which models take the place of one without a `fallback` of its own: with `price` the others that "
        "can do all that it can, the cheapest first; left out, none.",
    )
    max_values: int = Field(200_000, gt=0, description="JSON values in one request body; more are refused with 413.")
    max_open_bodies: Size = Field(
        256 * 2**20,
        gt=0,
        description="The most bytes of all request bodies that a worker holds; beyond that a request gets 503.",
    )
    body_timeout: Duration = Field(
        30.0, gt=0, le=3600, description="A request body that takes longer to come gets 408."
    )
    fail_open: bool = Field(False, description="Whether Envoy lets requests pass when the router is down.")
    device: Literal["auto", "cuda", "cpu"] = Field("auto", description="Where neural signals run.")
    readers: Literal["fast", "both"] = Field(
        "fast",
        description="Who reads for `jailbreak` and `domain`: the fast heads alone, or also a small multilingual "
        "encoder, which is asked where they are not sure.",
    )
    inference: InferenceSpec = Field(InferenceSpec(), description="How neural signals run.")
    store: StoreSpec | None = Field(
        None, description="Where the state of budgets and sessions is kept; left out, in each process."
    )
    session: list[SessionSpec] = Field(
        [], description="Headers and fields that name the session, after those of the well-known agents."
    )
    max_input_tokens: int = Field(32768, gt=0, description="Text with more tokens is Unknown to neural signals.")
    meter: Literal["auto", "on", "off"] = Field(
        "auto", description="Whether the tokens and the money of answers are counted; `auto`: where a budget needs it."
    )
    reference: str | None = Field(
        None, description="The model against which savings are counted; left out, the dearest one."
    )
    tenant: TenantSpec | None = Field(None, description="Who asks, for the decision log, spans and access logs.")
    cache: KeptSpec = Field(KeptSpec(), description="Where answers are kept (`cache:` on a decision).")

    @model_validator(mode="after")
    def _kept(self) -> Self:
        if self.cache.where == "store" and self.store is None:
            raise PydanticCustomError("P106", "cache: {where: store} needs a store: {url: redis://…}")
        return self


class PathSpec(Spec):
    """A path whose requests go on unread: no text signal and no guard that reads text has seen what they carry."""

    match: str = Field(
        pattern=r"^/[A-Za-z0-9!$&'()+,=:@._~/-]*\*?$",
        description="A path, or its beginning with `*` at the end. Paths that are understood are read all the same.",
        json_schema_extra=said("a path without escapes is needed, or its beginning and `*`, such as /v1/audio/*"),
    )
    to: str | None = Field(None, description="The model that takes it; left out, the default.")

    @model_validator(mode="after")
    def _plain(self) -> Self:
        if "//" in self.match or "/." in self.match:
            raise PydanticCustomError("P104", "match: a path without empty or dot segments is needed")
        return self


class PolicySpec(Spec):
    """The whole file."""

    version: Literal[1] = Field(description="The version of the policy language.")
    models: dict[Name, ModelSpec] = Field(min_length=1, description="Where a request can go.")
    default: str = Field(description="The model when nothing matched, or routing failed.")
    auto: list[Name] = Field(["auto", "pointsman"], description="Model names that ask for routing.")
    unknown_models: Literal["refuse", "pass"] = Field("refuse", description="What to do with model names not listed.")
    strategy: Literal["first", "best"] = Field("first", description="First match, or the most confident match.")
    signals: dict[Name, Any] = Field({}, description="What is looked at; each has exactly one kind.")
    rules: dict[Name, Any] = Field({}, description="Rules with names, which stand wherever a signal's name stands.")
    decisions: list[DecisionSpec] = Field([], description="The decisions, in the order of their priority.")
    paths: list[PathSpec] = Field([], description="Further paths whose requests go to a model without being read.")
    settings: SettingsSpec = Field(SettingsSpec(), description="Run-time settings.")


def _rule_schema() -> dict[str, Any]:
    rule = {"$ref": "#/$defs/Rule"}
    rules = {"type": "array", "items": rule, "minItems": 1}

    def one(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    def told(schema: dict[str, Any], description: str) -> dict[str, Any]:
        return {**schema, "description": description}

    counted = {
        "count": told({"type": "integer", "minimum": 1}, "How many of the rules must hold."),
        "of": told(rules, "The rules that are counted."),
    }
    test = {
        "signal": told({"type": "string"}, "The name of a signal or of a rule, whose reading is tested."),
        "at_least": told({"type": "number"}, "Its score must not be below this."),
        "at_most": told({"type": "number"}, "Its score must not be above this."),
        "is": told({"type": "string"}, "Its label must be this one."),
    }
    return {
        "description": "A Boolean rule over signals and named rules.",
        "oneOf": [
            {"type": "string", "description": "The name of a signal or of a rule."},
            one({"all": told(rules, "Every one of these rules must hold.")}, ["all"]),
            one({"any": told(rules, "One of these rules must hold; more may.")}, ["any"]),
            one({"not": told(rule, "This rule must not hold.")}, ["not"]),
            one({"at_least": told(one(counted, ["count", "of"]), "So many of some rules must hold.")}, ["at_least"]),
            one(test, ["signal"]),
        ],
    }


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a policy, for editors."""
    schema = PolicySpec.model_json_schema(by_alias=True)
    definitions = schema.setdefault("$defs", {})
    definitions["Rule"] = _rule_schema()
    alternatives = []
    for kind in BY_NAME.values():
        parameters = kind.Parameters.model_json_schema(by_alias=True, ref_template="#/$defs/{model}")
        scopes = parameters["properties"].get("in", {})
        if ANSWER in scopes.get("enum", ()) and not kind.answers:
            scopes["enum"].remove(ANSWER)
        definitions.update(parameters.pop("$defs", {}))
        definitions[f"signal.{kind.kind}"] = parameters
        alternatives.append(
            {
                "type": "object",
                "properties": {kind.kind: {"$ref": f"#/$defs/signal.{kind.kind}"}},
                "required": [kind.kind],
                "additionalProperties": False,
            }
        )
    for writer in WRITERS:
        spec = writer.spec()
        block = spec.model_json_schema(by_alias=True, ref_template="#/$defs/{model}")
        definitions.update(block.pop("$defs", {}))
        definitions[spec.__name__] = block
        definitions["DecisionSpec"]["properties"][writer.name] = {"$ref": f"#/$defs/{spec.__name__}"}
    schema["properties"]["signals"]["additionalProperties"] = {"oneOf": alternatives}
    schema["properties"]["rules"]["additionalProperties"] = {"$ref": "#/$defs/Rule"}
    definitions["DecisionSpec"]["properties"]["when"] = {"$ref": "#/$defs/Rule"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Pointsman policy"}
