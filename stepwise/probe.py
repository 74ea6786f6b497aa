"""What an upstream really does: found out with a few tiny greedy requests, and kept as a record.

The same short answer is asked for twice: once whole, once from its middle. A server that honours the prefix writes the
rest; one that ignores it writes the beginning again. This works with any model, even one that knows only arithmetic.
The middle is a place between two tokens, since after half a token a model goes on differently.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import orjson

from stepwise import verify
from stepwise.continuation import CHAT_PATH, Continuation, build
from stepwise.strategy import NoJudgement
from upstream.client import CompletionStream, Delta, ModelClient, UpstreamError
from upstream.endpoint import JSON, ContinuationMode
from upstream.tokens import TOP, Token

QUESTION = "Compute 12 + 35 - 8. Write one short sentence for each step."
_REQUEST: JSON = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
_TOKENS = 32  # length of a probe's answer
_AGREE = 12  # characters that must agree
_CUTS = 3  # places that are tried


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
    top_logprobs, stream, text, tokens = await asking.whole()
    cuts = _middles(tokens)
    modes: dict[str, str] = {}
    for mode in (upstream.endpoint.mode,) if upstream.endpoint.mode else ContinuationMode:
        modes[mode.value] = await asking.goes_on(mode, text, cuts)
        if modes[mode.value] == "honoured":
            break
    given = max((len(token.top) for token in tokens), default=0)
    return Capability(
        model=upstream.endpoint.model,
        checked=time.time(),
        mode=upstream.endpoint.mode
        or next((ContinuationMode(mode) for mode in modes if modes[mode] == "honoured"), None),
        modes=modes,
        top_logprobs=min(given, top_logprobs) if any(token.logprob is not None for token in tokens) else -1,
        usage=stream.counts is not None,
        running_usage=stream.counted_early,
        stop_reason=await asking.says_why_it_stopped(text, cuts),
    )


async def marks(upstream: ModelClient, headers: Mapping[str, str], deadline: float | None = None) -> bool:
    """Whether `upstream` can give a step a mark (`stepwise.verify`). Raises UpstreamError and DeadlineError."""
    asked = verify.request(_REQUEST["messages"], "", "12 + 35 = 47.")
    try:
        verify.mark(await upstream.ask(CHAT_PATH, asked, headers, deadline))
    except NoJudgement:
        return False
    return True


class _Prober:
    """The requests of one probe."""

    def __init__(self, upstream: ModelClient, headers: Mapping[str, str], deadline: float | None) -> None:
        self._upstream = upstream
        self._headers = headers
        self._deadline = deadline

    async def whole(self) -> tuple[int, CompletionStream, str, list[Token]]:
        """The whole short answer, asked for with as much as the upstream takes."""
        for top_logprobs, running_usage in ((TOP, True), (TOP, False), (0, False), (-1, False)):
            asked = build(
                None, _REQUEST, "", Continuation(_TOKENS, top_logprobs=top_logprobs, running_usage=running_usage)
            )
            try:
                stream, _, tokens = await self._read(asked)
            except UpstreamError as error:
                if error.status not in (400, 422) or top_logprobs < 0:
                    raise
            else:
                return top_logprobs, stream, "".join(token.text for token in tokens), tokens
        raise AssertionError("unreachable")

    async def goes_on(self, mode: ContinuationMode, text: str, cuts: Sequence[int]) -> str:
        """What came of asking for `text` from one of `cuts` on."""
        beginning = text.lstrip()[:_AGREE]
        for cut in cuts:
            asked = build(mode, _REQUEST, text[:cut], Continuation(_TOKENS, template=self._upstream.endpoint.template))
            try:
                _, _, tokens = await self._read(asked)
            except UpstreamError as error:
                if error.kind == "connect":
                    raise
                return f"refused: {error}"
            written = "".join(token.text for token in tokens).lstrip()
            rest = text[cut:].strip()[:_AGREE]
            if beginning.startswith(rest):
                continue  # the same words in both places tell nothing
            if written.startswith(rest):
                return "honoured"
            if written.startswith(beginning):
                return "restarted"
        return "unsure"

    async def says_why_it_stopped(self, text: str, cuts: Sequence[int]) -> bool:
        """Does the upstream say which stop string ended its text?"""
        if not cuts:
            return False
        stop = text[cuts[0] : cuts[0] + 4]
        asked = build(None, _REQUEST, "", Continuation(_TOKENS, (stop,)))
        try:
            _, last, tokens = await self._read(asked)
        except UpstreamError as error:
            if error.kind == "connect":
                raise
            return False
        return last.stop_reason == stop and "".join(token.text for token in tokens) == text[: text.find(stop)]

    async def _read(self, asked: tuple[str, JSON]) -> tuple[CompletionStream, Delta, list[Token]]:
        """A whole stream: itself, the piece that ended it, and its tokens."""
        stream = await self._upstream.open(*asked, self._headers, self._deadline)
        last = Delta()
        tokens: list[Token] = []
        try:
            while (piece := await stream.next()) is not None:
                tokens += piece.tokens
                if piece.finish:
                    last = piece
        finally:
            stream.close()
        return stream, last, tokens


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
