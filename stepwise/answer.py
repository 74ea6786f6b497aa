"""One call answered step by step, in the client's API: its status, headers and body."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

import orjson

from stepwise.asking.pair import Setup
from stepwise.asking.ready import Stepwise, StepwiseError
from stepwise.kind import KIND
from stepwise.loop.session import Failed, Session
from stepwise.loop.transcript import Text
from stepwise.metrics import StepwiseMetrics
from upstream.answer import Answer, Body, whole
from upstream.apis.registry import APIS
from upstream.apis.shape import Manuscript, Spoken
from upstream.client import DeadlineError
from upstream.endpoint import HOP, JSON
from upstream.events import comment
from upstream.writer import Call

log = logging.getLogger("pointsman.stepwise")

_SCHEMA_KEYS = (
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "structured_outputs",
    "grammar",
    "regex",
)


def ineligible(body: JSON, headers: Mapping[str, str]) -> str | None:
    """Why a chat completion cannot be answered stepwise, in one fixed word for counting; None when it can.

    `headers`: names in lower case.
    """
    messages = body.get("messages")
    response_format = body.get("response_format")
    if HOP in headers:
        return "hop"
    if not isinstance(messages, list) or not messages:
        return "not_chat"
    if not all(isinstance(message, dict) for message in messages):
        return "not_chat"
    if body.get("n") not in (None, 1):
        return "n"
    if body.get("tools") or body.get("functions"):
        return "tools"
    if response_format is not None and response_format != {"type": "text"}:
        return "response_format"
    if any(body.get(key) is not None for key in _SCHEMA_KEYS):
        return "response_format"
    if body.get("stop"):
        return "stop"
    if messages[-1].get("role") == "assistant":
        return "continuation"
    counts = [body.get(key) for key in ("max_tokens", "max_completion_tokens", "top_logprobs")]
    if any(count is not None and (not isinstance(count, int) or count < 0) for count in counts) or not isinstance(
        body.get("stream_options") or {}, dict
    ):
        return "malformed"
    if body.get("modalities") not in (None, ["text"]) or body.get("audio"):
        return "modalities"
    return None


class Steps:
    """The writer of a `stepwise:` block with `per: answer`."""

    kind = KIND
    by_session = False

    def __init__(self, stepwise: Stepwise) -> None:
        self.stepwise = stepwise
        self._told: str | None = None  # what the log has said last of why steps cannot be taken

    @property
    def problem(self) -> str | None:
        return self.stepwise.problem

    @property
    def metrics(self) -> StepwiseMetrics:
        return self.stepwise.metrics

    def unfit(self, call: Call) -> str | None:
        api = APIS.get(call.api)
        if api is None:
            return "not_chat"
        question = api.question(call.body)
        return question if isinstance(question, str) else ineligible(question, call.headers)

    async def start(self) -> None:
        """Probes the upstreams. If the block cannot work with them, this is logged and the large model answers."""
        with suppress(StepwiseError):
            await self.stepwise.start()
        self._tell()

    async def answer(self, call: Call) -> Answer:
        setup = await self.stepwise.ready(call.forwarded, call.deadline)
        self._tell()
        return await answer(setup, call)

    def _tell(self) -> None:
        """Logs that the block cannot work with what its upstreams can do, or that it can again."""
        why = self.stepwise.unworkable
        if why == self._told:
            return
        self._told = why
        small, large = self.stepwise.models
        if why is None:
            log.info("stepwise_workable", extra={"small": small, "large": large})
        else:
            log.error("stepwise_unworkable", extra={"small": small, "large": large, "why": why})

    async def close(self) -> None:
        await self.stepwise.close()


async def answer(setup: Setup, call: Call) -> Answer:
    """Answers a call that is fit (see `Steps.unfit`) with two models.

    A streaming answer is returned as soon as one model has begun, a whole one when it is complete. When the deadline
    passes, the answer ends with an error. It may be cancelled at any moment; everything is freed then.
    """
    head = {
        "x-pointsman-model": f"{setup.small.name}+{setup.large.name}",
        "x-pointsman-stepwise": setup.strategy.name,
    }
    api = APIS[call.api]
    question = api.question(call.body)
    assert not isinstance(question, str)
    session = Session(setup, replace(call, body=question))
    script = api.manuscript(call.body, "+".join(one.upstream.endpoint.model for one in (setup.small, setup.large)))
    try:
        await session.open()
        if call.body.get("stream"):
            return Answer(
                200,
                {**head, "content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"},
                _Events(session, script, setup.metrics, call.note),
            )
        texts = []
        while (text := await session.next()) is not None:
            texts.append(_spoken(text))
    except Failed as error:
        setup.metrics.answers["failed"] += 1
        session.close()
        body = error.body or orjson.dumps(api.error(error.status, str(error), "upstream_error"))
        return whole(error.status, body, head)
    except DeadlineError as error:
        setup.metrics.answers["deadline"] += 1
        session.close()
        return whole(504, orjson.dumps(api.error(504, str(error), "timeout")), head)
    except BaseException:
        setup.metrics.answers["cancelled"] += 1
        session.close()
        raise
    session.close()
    setup.metrics.answers["complete"] += 1
    head |= {"x-pointsman-redos": str(session.redos), "x-pointsman-steps": str(len(session.records))}
    return whole(200, orjson.dumps(script.whole(texts, session.finish, session.usage())), head)


def _spoken(text: Text) -> Spoken:
    return Spoken(text.content, text.reasoning, (), text.entries, text.model.upstream.endpoint.model)


class _Events(Body):
    """Server-sent events in the client's API, for each piece of text that the session gives."""

    def __init__(self, session: Session, script: Manuscript, metrics: StepwiseMetrics, note: bool) -> None:
        self._session = session
        self._note = note
        self._script = script
        self._answers = metrics.answers
        self._begun = False
        self._over = False

    async def __anext__(self) -> bytes:
        if self._over:
            raise StopAsyncIteration
        try:
            text = await self._session.next()
        except Failed as error:
            return self._broken("failed", str(error), "upstream_error")
        except DeadlineError as error:
            return self._broken("deadline", str(error), "timeout")
        except BaseException:
            await self.aclose()
            raise
        if text is not None:
            return self._start() + self._script.piece(_spoken(text))
        self._end("complete")  # enters the last stream in the books
        session = self._session
        return self._start() + self._script.end(session.finish, session.usage(), self._note)

    async def aclose(self) -> None:
        if not self._over:
            self._end("cancelled")

    def _start(self) -> bytes:
        begun, self._begun = self._begun, True
        return b"" if begun else self._script.start()

    def _broken(self, outcome: str, message: str, code: str) -> bytes:
        self._end(outcome)
        note = comment({"usage": self._session.usage()}) if self._note else b""
        return self._start() + note + self._script.broken(message, code)

    def _end(self, outcome: str) -> None:
        self._over = True
        self._answers[outcome] += 1
        self._session.close()
