"""One answer of a panel: its status, headers and body, streamed or whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Protocol

import orjson

from panel.kind import KIND
from panel.metrics import PanelMetrics
from panel.sitting import Member, NoAnswer, Room, Sitting
from panel.strategy import PanelStrategy
from upstream.answer import Answer, Body, whole
from upstream.apis.registry import APIS
from upstream.apis.shape import Manuscript, Spoken
from upstream.client import DeadlineError, UpstreamError
from upstream.endpoint import HOP
from upstream.writer import Call


class Trust(Protocol):
    """Who may see a request; see `PanelSpec`."""

    @property
    def trust(self) -> object | None: ...

    @property
    def heartbeat(self) -> float: ...

    def domain(self, headers: Mapping[str, str]) -> str | None: ...


class Panel:
    """The writer of a `panel:` block."""

    kind = KIND
    by_session = False
    problem = None

    def __init__(self, room: Room, strategy: PanelStrategy, rules: Trust, tools: bool) -> None:
        """`tools`: calls with tools can be answered."""
        self.room = room
        self._strategy = strategy
        self._rules = rules
        self._tools = tools

    @property
    def metrics(self) -> PanelMetrics:
        return self.room.metrics

    def unfit(self, call: Call) -> str | None:
        if HOP in call.headers:
            return "hop"
        api = APIS.get(call.api)
        if api is None:
            return "api"
        question = api.question(call.body)
        if isinstance(question, str):
            return question
        if question.get("tools") and not self._tools:
            return "tools"
        return None

    async def start(self) -> None:
        return None

    async def answer(self, call: Call) -> Answer:
        """Answers a call that is fit. A streaming answer is returned with its first piece, or with the first heartbeat;
        a whole one when it is complete. It may be cancelled at any moment; everything is freed then."""
        api = APIS[call.api]
        question = api.question(call.body)
        assert not isinstance(question, str)
        head = {"x-pointsman-panel": self.room.kind}
        members = self._members(call)
        outcomes = self.room.metrics.answers
        if not members:
            outcomes[self.room.kind, "barred"] += 1
            text = "No model of this decision may see a request of this trust domain."
            return whole(403, orjson.dumps(api.error(403, text, "trust")), head)
        sitting = Sitting(self.room, call, question, members, api.objects)
        names = "+".join(member.upstream.endpoint.model for member in members.values())
        script = api.manuscript(call.body, names)
        course = _Course(sitting, self._strategy.run(sitting), self._rules.heartbeat)
        try:
            if call.body.get("stream"):
                first = await course.next()
                head |= {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
                return Answer(200, {**head, **_by(sitting)}, _PanelEvents(course, script, first, call.note))
            said: list[Spoken] = []
            while True:
                piece = await course.next(patient=True)
                if piece is None:
                    break
                said.append(piece)
        except NoAnswer as error:
            course.end("failed")
            body = error.body or orjson.dumps(api.error(error.status, str(error), "upstream_error"))
            return whole(error.status, body, head)
        except UpstreamError as error:
            course.end("failed")
            text = f"The answer broke off: {error.kind}."
            return whole(502, orjson.dumps(api.error(502, text, "upstream_error")), head)
        except DeadlineError:
            course.end("deadline")
            text = "The answer's time is over."
            return whole(504, orjson.dumps(api.error(504, text, "timeout")), head)
        except BaseException:
            course.end("cancelled")
            raise
        course.end("complete")
        return whole(200, orjson.dumps(script.whole(said, sitting.finish, sitting.usage())), {**head, **_by(sitting)})

    async def close(self) -> None:
        for member in self.room.members.values():
            await member.upstream.close()

    def _members(self, call: Call) -> Mapping[str, Member]:
        """Those that may see the call."""
        if self._rules.trust is None:
            return self.room.members
        domain = self._rules.domain(call.headers)
        return {name: member for name, member in self.room.members.items() if domain in member.trust}


def _by(sitting: Sitting) -> dict[str, str]:
    """The header that tells whose text the client gets; all who were asked, where that is not known yet."""
    released = [asked.member.name for asked in sitting.asked if asked.released]
    names = dict.fromkeys(released or list(sitting.members))
    return {"x-pointsman-model": "+".join(names)}


BEAT = Spoken("\0")
"""Nothing has come for a while."""


class _Course:
    """The pieces of one answer, and its end. A piece that takes long is waited for in a task, so that the client can be
    told meanwhile that there is more to come."""

    def __init__(self, sitting: Sitting, pieces: AsyncGenerator[Spoken, None], heartbeat: float) -> None:
        self.sitting = sitting
        self._pieces = pieces
        self._heartbeat = heartbeat
        self._task: asyncio.Task[Spoken | None] | None = None
        self._over = False

    async def next(self, patient: bool = False) -> Spoken | None:
        """The next piece, None at the end; `BEAT` after a while, unless whoever asks is `patient`."""
        if self._task is None:
            self._task = asyncio.create_task(self._next())
        done, _ = await asyncio.wait((self._task,), timeout=None if patient else self._heartbeat)
        if not done:
            return BEAT
        task, self._task = self._task, None
        return task.result()

    async def _next(self) -> Spoken | None:
        return await anext(self._pieces, None)

    def end(self, outcome: str) -> None:
        """Everything is freed; any number of times. Never waits."""
        if self._over:
            return
        self._over = True
        self.sitting.room.metrics.answers[self.sitting.room.kind, outcome] += 1
        self.sitting.close()
        if self._task is not None:
            self._task.cancel()

    async def aclose(self) -> None:
        """The same, and waits until the strategy has ended."""
        self.end("cancelled")
        if self._task is not None:
            await asyncio.wait((self._task,))
        await self._pieces.aclose()


class _PanelEvents(Body):
    """Server-sent events in the client's API."""

    def __init__(self, course: _Course, script: Manuscript, first: Spoken | None, note: bool) -> None:
        self._course = course
        self._script = script
        self._waiting: list[Spoken | None] = [first]
        self._note = note
        self._begun = False
        self._over = False

    async def __anext__(self) -> bytes:
        script, sitting = self._script, self._course.sitting
        while not self._over:
            begun, said = b"", b""
            try:
                piece = self._waiting.pop() if self._waiting else await self._course.next()
                begun = self._start()
                if piece is not None:
                    said = script.heartbeat() if piece is BEAT else script.piece(piece)
            except (NoAnswer, UpstreamError, DeadlineError) as error:
                self._over = True
                late = isinstance(error, DeadlineError)
                self._course.end("deadline" if late else "failed")
                text = f"The answer broke off: {error.kind}." if isinstance(error, UpstreamError) else str(error)
                return begun + self._start() + script.broken(text, "timeout" if late else "upstream_error")
            except BaseException:
                await self.aclose()
                raise
            if piece is None:
                self._over = True
                self._course.end("complete")
                return begun + script.end(sitting.finish, sitting.usage(), self._note)
            if begun or said:
                return begun + said
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self._over = True
        await self._course.aclose()

    def _start(self) -> bytes:
        begun, self._begun = self._begun, True
        return b"" if begun else self._script.start()
