"""One chat completion answered step by step: its status, headers and body."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import orjson

from stepwise.kind import KIND
from stepwise.metrics import StepwiseMetrics
from stepwise.pair import Setup
from stepwise.ready import Stepwise, StepwiseError
from stepwise.session import Failed, Session
from stepwise.transcript import Text
from upstream.answer import Answer, Body, Whole, problem, whole
from upstream.client import DeadlineError
from upstream.endpoint import HOP, JSON
from upstream.events import DONE, comment, event
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
        return "not_chat" if call.api != "chat" else ineligible(call.body, call.headers)

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
    """Answers an eligible call (see `ineligible`) with two models.

    A streaming answer is returned as soon as one model has begun, a whole one when it is complete. When the deadline
    passes, the answer ends with an error. It may be cancelled at any moment; everything is freed then.
    """
    head = {
        "x-pointsman-model": f"{setup.small.name}+{setup.large.name}",
        "x-pointsman-stepwise": setup.strategy.name,
    }
    session = Session(setup, call)
    try:
        await session.open()
        frame = _Frame(call.body, setup.small.upstream.endpoint.model, setup.large.upstream.endpoint.model)
        if call.body.get("stream"):
            return Answer(
                200,
                {**head, "content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"},
                _Events(session, frame, setup.metrics, call.note),
            )
        texts = []
        while (text := await session.next()) is not None:
            texts.append(text)
    except Failed as error:
        setup.metrics.answers["failed"] += 1
        session.close()
        return whole(error.status, error.body or problem(str(error), "upstream_error"), head)
    except DeadlineError as error:
        setup.metrics.answers["deadline"] += 1
        session.close()
        return whole(504, problem(str(error), "timeout"), head)
    except BaseException:
        setup.metrics.answers["cancelled"] += 1
        session.close()
        raise
    session.close()
    setup.metrics.answers["complete"] += 1
    head |= {"x-pointsman-redos": str(session.redos), "x-pointsman-steps": str(len(session.records))}
    return Answer(200, {**head, "content-type": "application/json"}, Whole(frame.whole(texts, session)))


class _Events(Body):
    """Server-sent events, one per piece of text that the session gives."""

    def __init__(self, session: Session, frame: _Frame, metrics: StepwiseMetrics, note: bool) -> None:
        self._session = session
        self._note = note
        self._frame = frame
        self._answers = metrics.answers
        self._over = False

    async def __anext__(self) -> bytes:
        if self._over:
            raise StopAsyncIteration
        try:
            text = await self._session.next()
        except Failed as error:
            return self._end("failed", event(orjson.loads(problem(str(error), "upstream_error"))))
        except DeadlineError as error:
            return self._end("deadline", event(orjson.loads(problem(str(error), "timeout"))))
        except BaseException:
            await self.aclose()
            raise
        if text is not None:
            return self._frame.chunk(text)
        self._session.close()  # enters the last stream in the books
        return self._end("complete", self._frame.tail(self._session))

    async def aclose(self) -> None:
        if not self._over:
            self._end("cancelled", b"")

    def _end(self, outcome: str, last: bytes) -> bytes:
        self._over = True
        self._answers[outcome] += 1
        self._session.close()
        note = self._frame.note(self._session) if self._note else b""
        return last + note + DONE


class _Frame:
    """The JSON around the text, as the client asked for it."""

    def __init__(self, request: JSON, small: str, large: str) -> None:
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._pair = f"{small}+{large}"
        self._usage = bool((request.get("stream_options") or {}).get("include_usage"))
        self._logprobs = bool(request.get("logprobs"))
        self._top: int = request.get("top_logprobs") or 0
        self._role: JSON = {"role": "assistant"}

    def chunk(self, text: Text) -> bytes:
        delta: JSON = {**self._role, "content": text.content}
        if text.reasoning:
            delta = {**self._role, "reasoning_content": text.reasoning}
        self._role = {}
        choice = {"index": 0, "delta": delta, "logprobs": self._entries([text]), "finish_reason": None}
        return event({**self._head("chat.completion.chunk", text.model.upstream.endpoint.model), "choices": [choice]})

    def tail(self, session: Session) -> bytes:
        """The last events but [DONE]."""
        head = self._head("chat.completion.chunk", self._pair)
        choice = {"index": 0, "delta": self._role, "logprobs": None, "finish_reason": session.finish}
        end = event({**head, "choices": [choice]})
        return end + (event({**head, "choices": [], "usage": session.usage()}) if self._usage else b"")

    def note(self, session: Session) -> bytes:
        """The usage in a comment, which no client shows; empty where the client gets the usage anyway."""
        return b"" if self._usage else comment({"usage": session.usage()})

    def whole(self, texts: list[Text], session: Session) -> bytes:
        message: JSON = {"role": "assistant", "content": "".join(text.content for text in texts)}
        if reasoning := "".join(text.reasoning for text in texts):
            message["reasoning_content"] = reasoning
        choice = {"index": 0, "message": message, "logprobs": self._entries(texts), "finish_reason": session.finish}
        return orjson.dumps(
            {**self._head("chat.completion", self._pair), "choices": [choice], "usage": session.usage()}
        )

    def _head(self, kind: str, model: str) -> JSON:
        return {"id": self._id, "object": kind, "created": self._created, "model": model}

    def _entries(self, texts: list[Text]) -> JSON | None:
        if not self._logprobs:
            return None
        entries: list[Any] = [entry for text in texts for entry in text.entries]
        return {
            "content": [{**entry, "top_logprobs": (entry.get("top_logprobs") or [])[: self._top]} for entry in entries]
        }
