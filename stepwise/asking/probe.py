"""What an upstream really does: found out with a few tiny greedy requests, and kept as a record.

The same short answer is asked for twice: once whole, once from its middle. A server that honours the prefix writes the
rest; one that ignores it writes the beginning again. This works with any model, even one that knows only arithmetic.
The middle is a place between two tokens, since after half a token a model goes on differently.

A model that thinks before it answers is asked by completions, with its own chat template, where that is known: chat
templates drop the thoughts of earlier turns, and servers that put thoughts into a field of their own take none back.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import orjson

from stepwise.asking import verify
from stepwise.asking.continuation import Continuation, began, build, render
from stepwise.policy import Marks
from stepwise.strategy import NoJudgement
from stepwise.thoughts import OPEN, opened
from upstream.client import CompletionStream, Delta, ModelClient, UpstreamError
from upstream.endpoint import JSON, ContinuationMode
from upstream.tokens import TOP, Token

QUESTION = "Compute 12 + 35 - 8. Write one short sentence for each step."
_REQUEST: JSON = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
_TOKENS = 32  # length of a probe's answer
_AGREE = 12  # characters that must agree
_CUTS = 3  # places that are tried
_MODES = tuple(ContinuationMode)


@dataclass(frozen=True, slots=True)
class Capability:
    """What an upstream did when it was probed.

    `modes` has the result of every way of continuing that was tried: `honoured`, `restarted`, `unsure` (neither is
    certain), or `refused: ` and why. `mode` is the first way that was honoured, None when none was.
    `top_logprobs`: how many it gives of the `TOP` asked for; 0: only the written token's own; -1: none at all.
    """

    model: str
    checked: float  # seconds since the epoch
    mode: ContinuationMode | None
    modes: Mapping[str, str]
    top_logprobs: int
    usage: bool  # counts at the end of a stream
    running_usage: bool  # counts in every chunk, so that an aborted stream is counted too
    stop_reason: bool  # says which stop string ended the text
    thoughts: str = ""  # where it puts them: "text" (between tags) or "field" (of their own); "": it did not think
    template: str | None = None  # its chat template, where its server says it

    @property
    def logprobs(self) -> bool:
        return self.top_logprobs >= 0

    def to_json(self) -> JSON:
        return asdict(self)

    @classmethod
    def from_json(cls, data: JSON) -> Capability:
        """Raises KeyError, TypeError or ValueError when `data` is not such a record."""
        return cls(**{**data, "mode": None if data["mode"] is None else ContinuationMode(data["mode"])})


async def probe(upstream: ModelClient, headers: Mapping[str, str], deadline: float | None = None) -> Capability:
    """Asks `upstream` what it can do: two tiny requests, and one for each way of continuing that is tried.

    `deadline` is on the running loop's clock. Raises UpstreamError and DeadlineError when it cannot be asked at all.
    """
    asking = _Prober(upstream, headers, deadline)
    whole = await asking.whole()
    tried: tuple[ContinuationMode, ...] = (upstream.endpoint.mode,) if upstream.endpoint.mode else _MODES
    template = await asking.template()
    thoughts = "field" if whole.thoughts else "text" if whole.text.lstrip().startswith(OPEN) or _opens(template) else ""
    if thoughts and template is not None and ContinuationMode.COMPLETIONS in tried:
        tried = (ContinuationMode.COMPLETIONS, *(mode for mode in tried if mode is not ContinuationMode.COMPLETIONS))
    modes: dict[str, str] = {}
    for mode in tried:
        modes[mode.value], whole = await asking.goes_on(mode, whole)
        if modes[mode.value] == "honoured":
            break
    given = max((len(token.top) for token in whole.tokens), default=0)
    return Capability(
        model=upstream.endpoint.model,
        checked=time.time(),
        mode=upstream.endpoint.mode
        or next((ContinuationMode(mode) for mode in modes if modes[mode] == "honoured"), None),
        modes=modes,
        top_logprobs=min(given, whole.top) if any(token.logprob is not None for token in whole.tokens) else -1,
        usage=whole.stream.counts is not None,
        running_usage=whole.stream.counted_early,
        stop_reason=await asking.says_why_it_stopped(whole),
        thoughts=thoughts,
        template=asking.found,
    )


async def marks(
    upstream: ModelClient, kind: Marks, headers: Mapping[str, str], known: Capability, deadline: float | None = None
) -> bool:
    """Whether `upstream` can give a step such a mark (`verify`). Raises UpstreamError and DeadlineError."""
    if known.mode is None and kind == "likelihood":
        return False
    step = "12 + 35 = 47."
    template = upstream.endpoint.template or known.template
    path, body = verify.request(kind, verify.Drafted(_REQUEST, "", step), known.mode, template)
    try:
        verify.mark(kind, await upstream.ask(path, body, headers, deadline), step)
    except NoJudgement:
        return False
    except UpstreamError as error:
        if error.status not in (400, 422):  # it refuses a field that it does not know
            raise
        return False
    return True


class _Whole(NamedTuple):
    """The probe's answer as a whole: its stream, the piece that ended it, its tokens, its text, and thoughts that came
    in a field of their own. `top`: how many log probabilities were asked for."""

    stream: CompletionStream
    last: Delta
    tokens: list[Token]
    text: str
    thoughts: str
    top: int = -1
    mode: ContinuationMode | None = None


class _Prober:
    """The requests of one probe."""

    def __init__(self, upstream: ModelClient, headers: Mapping[str, str], deadline: float | None) -> None:
        self.found: str | None = None  # the chat template that the server has told
        self._upstream = upstream
        self._headers = headers
        self._deadline = deadline
        self._looked = False

    async def template(self) -> str | None:
        """The chat template: the operator's, else the server's own, where it tells it (llama.cpp does, at /props)."""
        given = self._upstream.endpoint.template
        if given is None and not self._looked:
            self._looked = True
            with suppress(UpstreamError):
                props = await self._upstream.look("/props", self._headers, self._deadline)
                told, end = props.get("chat_template"), props.get("eos_token")
                if isinstance(told, str) and told:
                    end = end if isinstance(end, str) else ""
                    self.found = f"{{%- set eos_token = {json.dumps(end)} -%}}{told}"
        return given or self.found

    async def whole(self, mode: ContinuationMode | None = None) -> _Whole:
        """The whole short answer, asked for with as much as the upstream takes."""
        for top, running in ((TOP, True), (TOP, False), (0, False), (-1, False)):
            template = await self.template() if mode else None
            how = Continuation(_TOKENS, top_logprobs=top, running_usage=running, template=template)
            try:
                return (await self._read(build(mode, _REQUEST, "", how)))._replace(top=top, mode=mode)
            except UpstreamError as error:
                if error.status not in (400, 422) or top < 0:
                    raise
        raise AssertionError("unreachable")

    async def goes_on(self, mode: ContinuationMode, whole: _Whole) -> tuple[str, _Whole]:
        """What came of asking for the answer from its middle on, and the answer by which this was told."""
        template = await self.template() if mode is ContinuationMode.COMPLETIONS else None
        try:
            if mode is ContinuationMode.COMPLETIONS and template is not None:
                whole = await self.whole(mode)  # thoughts and all
            text, beginning = whole.text, whole.text.lstrip()[:_AGREE]
            for cut in _middles(whole.tokens):
                asked = build(mode, _REQUEST, text[:cut], Continuation(_TOKENS, template=template))
                written = (await self._read(asked)).text.lstrip()
                rest = text[cut:].strip()[:_AGREE]
                if beginning.startswith(rest):
                    continue  # the same words in both places tell nothing
                if written.startswith(rest):
                    return "honoured", whole
                if written.startswith(beginning):
                    return "restarted", whole
        except UpstreamError as error:
            if error.kind == "connect":
                raise
            return f"refused: {error}", whole
        return "unsure", whole

    async def says_why_it_stopped(self, whole: _Whole) -> bool:
        """Does the upstream say which stop string ended its text?"""
        cuts, text = _middles(whole.tokens), whole.text
        if not cuts:
            return False
        stop = text[cuts[0] : cuts[0] + 4]
        template = await self.template() if whole.mode else None
        asked = build(whole.mode, _REQUEST, "", Continuation(_TOKENS, (stop,), template=template))
        try:
            found = await self._read(asked)
        except UpstreamError as error:
            if error.kind == "connect":
                raise
            return False
        return found.last.stop_reason == stop and found.text == text[: text.find(stop)]

    async def _read(self, asked: tuple[str, JSON]) -> _Whole:
        stream = await self._upstream.open(*asked, self._headers, self._deadline)
        last, thoughts = Delta(), ""
        tokens = [Token(tag, size=0) for tag in (began(asked, ""),) if tag]
        try:
            while (piece := await stream.next()) is not None:
                tokens += piece.tokens
                thoughts += piece.reasoning
                if piece.finish:
                    last = piece
        finally:
            stream.close()
        return _Whole(stream, last, tokens, "".join(token.text for token in tokens), thoughts)


def _opens(template: str | None) -> bool:
    """Whether the chat template itself begins the model's thoughts, so that an answer has no tag that does."""
    try:
        return template is not None and bool(opened(render(template, _REQUEST["messages"])))
    except UpstreamError:
        return False


def load(path: Path) -> dict[str, Capability]:
    """The records kept in a file, by model; none when it is missing or damaged, since they can be found out again."""
    try:
        return {name: Capability.from_json(data) for name, data in orjson.loads(path.read_bytes()).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def save(path: Path, records: Mapping[str, Capability]) -> None:
    """Writes the records whole or not at all. Raises OSError."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.write_bytes(
        orjson.dumps({name: record.to_json() for name, record in records.items()}, option=orjson.OPT_INDENT_2)
    )
    os.replace(fresh, path)


def _middles(tokens: Sequence[Token]) -> list[int]:
    """Places between two tokens, the one nearest to the middle first.

    None after white space, which chat templates trim; with a few characters on either side.
    """
    places, at = [], 0
    length = sum(len(token.text) for token in tokens)
    for before, after in pairwise(tokens):
        at += len(before.text)
        if _AGREE // 2 <= at <= length - _AGREE // 2 and before.text[-1:].strip() and after.text:
            places.append(at)
    return sorted(places, key=lambda place: abs(place - length // 2))[:_CUTS]
