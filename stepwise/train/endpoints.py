"""The two models behind OpenAI-compatible endpoints, asked in the same way as by the service."""

from __future__ import annotations

from typing import Self

from stepwise.asking import verify
from stepwise.asking.continuation import Continuation, Joint, began, build
from stepwise.asking.pair import PairModel
from stepwise.asking.probe import marks, probe
from stepwise.policy import MARKS, Marks
from stepwise.steps import Splitter, StepLimits
from stepwise.strategy import NoJudgement
from stepwise.train.tree import Question, Written
from upstream.client import ModelClient, UpstreamError
from upstream.endpoint import JSON, Endpoint
from upstream.tokens import TOP, Token, estimate

_TRIES = 3


class EndpointWriter:
    """Writes steps through two endpoints. Use it as `async with`.

    small, large: where they are; limits: where steps end; temperature, max_tokens: of every request. Entering the
    block probes both; it raises UpstreamError when one cannot be reached or cannot continue a prefix, or when the
    small one gives no log probabilities.
    """

    marks: Marks = "digit"

    def __init__(
        self, small: Endpoint, large: Endpoint, limits: StepLimits, *, temperature: float = 0.0, max_tokens: int = 4096
    ) -> None:
        self._upstreams = ModelClient(small), ModelClient(large)
        self._limits = limits
        self._temperature = temperature
        self._max_tokens = max_tokens
        self._models: tuple[PairModel, PairModel] | None = None

    async def __aenter__(self) -> Self:
        try:
            found = [PairModel(u.endpoint.model, u, await probe(u, {})) for u in self._upstreams]
            for model in found:
                if model.capability.mode is None:
                    raise UpstreamError(
                        "restart", f"{model.name} cannot continue a prefix: {dict(model.capability.modes)}"
                    )
            if found[0].capability.top_logprobs < TOP:
                raise UpstreamError("garbage", f"{found[0].name} gives too few log probabilities; {TOP} are needed")
            self._models = found[0], found[1]
            large = found[1]
            for kind in MARKS:
                if await marks(large.upstream, kind, {}, large.capability):
                    self.marks = kind
                    break
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        for upstream in self._upstreams:
            await upstream.close()

    async def small(self, question: Question, prefix: str) -> Written:
        return await self._write(self.models[0], question, prefix, stop=False, top=TOP)

    async def large(self, question: Question, prefix: str, *, rest: bool = False) -> Written:
        # Only with log probabilities is it known how many tokens a step has; its length decides where it may end.
        top = 0 if self.models[1].capability.logprobs else -1
        return await self._write(self.models[1], question, prefix, stop=not rest, top=top)

    async def verify(self, question: Question, prefix: str, step: str) -> tuple[float, int]:
        """The large model's mark of `step`, asked for as in serving, and the tokens that it read for that.

        Raises NoJudgement when it gives none.
        """
        large = self.models[1]
        call = {"messages": [{"role": "user", "content": question.text}], "temperature": self._temperature}
        drafted = verify.Drafted(call, prefix, step)
        path, body = verify.request(self.marks, drafted, large.capability.mode, large.template)
        try:
            answer = await large.upstream.ask(path, body)
        except UpstreamError as error:
            raise NoJudgement("verify_failed", str(error)) from error
        usage = answer.get("usage")
        read = usage.get("prompt_tokens") if isinstance(usage, dict) else None
        seen = read if isinstance(read, int) else estimate(str(body))
        return verify.mark(self.marks, answer, step), seen

    @property
    def models(self) -> tuple[PairModel, PairModel]:
        """The small and the large model, probed."""
        assert self._models is not None
        return self._models

    async def _write(self, model: PairModel, question: Question, prefix: str, *, stop: bool, top: int) -> Written:
        """One answer, or with `stop` its first step; connection errors are tried again."""
        request = {"messages": [{"role": "user", "content": question.text}], "temperature": self._temperature}
        how = Continuation(self._max_tokens, top_logprobs=top, template=model.template)
        asked = build(model.capability.mode, request, prefix, how)
        for left in range(_TRIES - 1, -1, -1):
            try:
                return await self._read(model, asked, prefix, stop=stop)
            except UpstreamError as error:
                if not left or (error.kind == "status" and error.status < 500):
                    raise
        raise AssertionError("unreachable")

    async def _read(self, model: PairModel, asked: tuple[str, JSON], prefix: str, *, stop: bool) -> Written:
        joint, splitter = Joint(prefix), Splitter(self._limits, prefix)
        tokens = [Token(tag, size=0) for tag in (began(asked, prefix),) if tag]
        for token in tokens:
            splitter.feed(token)
        stream = await model.upstream.open(*asked)
        try:
            while (piece := await stream.next()) is not None:
                fresh = [used for token in piece.tokens for used in joint.feed(token)]
                if piece.finish:
                    fresh += joint.finish()
                for token in fresh:
                    tokens.append(token)
                    if splitter.feed(token) and stop:
                        return Written(tuple(tokens), False)
                if piece.finish:
                    return Written(tuple(tokens), piece.finish == "stop")
        finally:
            stream.close()
        return Written(tuple(tokens), False)
