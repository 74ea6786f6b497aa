"""One chat completion answered stepwise: status, headers and a body to be pulled, for whatever serves it."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import orjson

from stepwise.session import Failed, Session, Text
from stepwise.spec import Stepwise
from stepwise.upstream import HOP, JSON, DeadlineError

_FORWARDED = (
    "authorization", "api-key", "x-api-key", "openai-organization", "openai-project", "traceparent", "tracestate",
    "baggage", "x-request-id", "x-session-id",
)  # fmt: skip
_SCHEMA_KEYS = (
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "structured_outputs",
    "grammar",
    "regex",
)


class Body(AsyncGenerator[bytes, None]):
    """The bytes of an answer. Whoever stops before the end must call `aclose`, or the models go on writing.

    No generator function, because one that was never begun frees nothing when it is closed.
    """

    async def asend(self, value: None) -> bytes:
        return await self.__anext__()

    async def athrow(self, kind: Any, value: Any = None, trace: Any = None) -> bytes:
        await self.aclose()
        raise kind if value is None else value

    async def aclose(self) -> None:
        """Frees everything, at any moment, any number of times."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Answer:
    """What to send to the client. Use it as `async with answer:`, or call `aclose` in the end."""

    status: int
    headers: Mapping[str, str]
    body: Body

    async def aclose(self) -> None:
        await self.body.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()


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


async def answer(
    stepwise: Stepwise,
    body: JSON,
    headers: Mapping[str, str],
    *,
    deadline: float | None = None,
    difficulty: float = 0.5,
    charge: Callable[[float], None] | None = None,
    note: bool = False,
) -> Answer:
    """Answers an eligible request (see `ineligible`) with two models.

    A streaming answer comes back as soon as one model has begun; a whole one when it is complete. `headers` are the
    client's, in lower case. `deadline` is on the running loop's clock; when it passes, the answer ends with an error.
    `difficulty`: 0..1, 0.5 when unknown. `charge` is told once what the answer has cost, whatever came of it. `note`: a
    stream whose client asked for no usage tells it in a comment, for the proxy that it passes. Cancel at any moment:
    everything is freed.
    """
    sent = forwarded(headers)
    setup = await stepwise.ready(sent, deadline)
    head = {
        "x-pointsman-model": f"{setup.small.name}+{setup.large.name}",
        "x-pointsman-stepwise": setup.strategy.name,
    }
    session = Session(setup, body, sent, deadline=deadline, difficulty=difficulty, charge=charge)
    try:
        await session.open()
        frame = _Frame(body, setup.small.upstream.endpoint.model, setup.large.upstream.endpoint.model)
        if body.get("stream"):
            return Answer(
                200,
                {**head, "content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"},
                _Events(session, frame, stepwise, note),
            )
        texts = []
        while (text := await session.next()) is not None:
            texts.append(text)
    except Failed as error:
        stepwise.metrics.answers["failed"] += 1
        session.close()
        return whole(error.status, error.body or problem(str(error), "upstream_error"), head)
    except DeadlineError as error:
        stepwise.metrics.answers["deadline"] += 1
        session.close()
        return whole(504, problem(str(error), "timeout"), head)
    except BaseException:
        stepwise.metrics.answers["cancelled"] += 1
        session.close()
        raise
    session.close()
    stepwise.metrics.answers["complete"] += 1
    head |= {"x-pointsman-redos": str(session.redos), "x-pointsman-steps": str(len(session.records))}
    return Answer(200, {**head, "content-type": "application/json"}, _Whole(frame.whole(texts, session)))


def deadline(headers: Mapping[str, str]) -> float | None:
    """When Envoy gives up on this request (`x-envoy-expected-rq-timeout-ms`), on the running loop's clock."""
    text = headers.get("x-envoy-expected-rq-timeout-ms", "")
    return asyncio.get_running_loop().time() + int(text) / 1000 if text.isdigit() and int(text) > 0 else None


def forwarded(headers: Mapping[str, str]) -> dict[str, str]:
    """The client's headers that its requests to the models carry."""
    return {name: headers[name] for name in _FORWARDED if name in headers}


class _Whole(Body):
    """A body that is known already."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def __anext__(self) -> bytes:
        data, self._data = self._data, b""
        if not data:
            raise StopAsyncIteration
        return data

    async def aclose(self) -> None:
        self._data = b""


class _Events(Body):
    """Server-sent events, one for each piece of text that the session gives."""

    def __init__(self, session: Session, frame: _Frame, stepwise: Stepwise, note: bool) -> None:
        self._session = session
        self._note = note
        self._frame = frame
        self._answers = stepwise.metrics.answers
        self._over = False

    async def __anext__(self) -> bytes:
        if self._over:
            raise StopAsyncIteration
        try:
            text = await self._session.next()
        except Failed as error:
            return self._end("failed", _event(orjson.loads(problem(str(error), "upstream_error"))))
        except DeadlineError as error:
            return self._end("deadline", _event(orjson.loads(problem(str(error), "timeout"))))
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
        return last + note + b"data: [DONE]\n\n"


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
        return _event({**self._head("chat.completion.chunk", text.model.upstream.endpoint.model), "choices": [choice]})

    def tail(self, session: Session) -> bytes:
        """The last events but [DONE]."""
        head = self._head("chat.completion.chunk", self._pair)
        choice = {"index": 0, "delta": self._role, "logprobs": None, "finish_reason": session.finish}
        end = _event({**head, "choices": [choice]})
        return end + (_event({**head, "choices": [], "usage": session.usage()}) if self._usage else b"")

    def note(self, session: Session) -> bytes:
        """The usage in a comment, which no client sees; empty where the client gets it anyway."""
        return b"" if self._usage else b": " + orjson.dumps({"usage": session.usage()}) + b"\n\n"

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


def _event(data: JSON) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"


def problem(message: str, code: str) -> bytes:
    """An error in the shape of OpenAI's API."""
    return orjson.dumps({"error": {"message": message, "type": "server_error", "param": None, "code": code}})


def whole(status: int, body: bytes, head: Mapping[str, str]) -> Answer:
    """An answer of one JSON text."""
    return Answer(status, {**head, "content-type": "application/json"}, _Whole(body))
