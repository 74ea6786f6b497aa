"""One answer on its way to the client: held back until it is judged, masked or cut where a decision says so.

Sans-IO. Events are kept in one queue, in their order. The texts of successive events that belong together are one
channel, which is judged as it grows; an event goes on once every text in it lies before the part of its channel that
is still to be judged again. An event in which nothing was found goes on byte for byte as it came.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from typing import Any, Final, Protocol

import orjson

from decisions.watching import LONG, Verdict
from extproc.watching.finder import REPEATS, Likeness, TextFinder
from extproc.watching.grown import LEAD, GrownText, Half, JoinedTexts, Seam
from extproc.watching.held import HeldEvent, HeldRun, HeldText, Queue
from extproc.watching.jsontext import decode
from extproc.watching.runs import EventRun
from extproc.watching.shape import AnswerShape, AnswerText, Channel, says_twice
from extproc.watching.sse import NAME, Event, Events

LIMIT: Final = 4 * 2**20
"""Bytes of an answer that are held at most, and of a whole answer that can be judged."""
UNREADABLE: Final = 502
"""The status of what takes the place of an answer that nobody could read, where nothing of it was sent."""
_CHANNELS: Final = 256
"""Texts that grow at the same time in one answer; a real one has a few."""
_AT_ONCE: Final = 16
"""Texts of a long whole answer that are judged before others have their turn."""
_STEPS: Final = 8
"""A text is judged again once an eighth of the window has come, since each judgement reads the whole window."""
_DONE: Final = b"[DONE]"


class Judging(Protocol):
    """What a watch needs of `decisions.watching.Judge`."""

    window: int
    stride: int
    slow: bool
    holds: bool
    apart: Callable[[Callable[[], Any]], Awaitable[Any]] | None

    @property
    def responds(self) -> bool:
        """Whether some decision takes the place of the whole answer while nothing of it was sent."""
        ...

    def judge(self, channel: Any, text: str, final: bool, lead: int = 0) -> Verdict | None: ...

    async def read(self, channel: Any, text: str, final: bool, deadline: float, lead: int = 0) -> Verdict: ...

    def carry(self, channel: Any, other: Any) -> None: ...

    def end(self) -> Verdict: ...

    def unreadable(self) -> Verdict: ...


_Parsed = tuple[dict[str, Any] | None, bool, list[AnswerText]]
"""The object of an event, whether its bytes may say more than it, and its texts."""


class Watch:
    """One answer. Not to be used for two.

    `over`: it was cut, nothing more is released. `responds`: what to answer in its place; nothing of it was released.
    `begun`: something was released. `error`: what broke here, if anything has. `limit`: bytes that are held at most;
    beyond them the answer counts as unreadable. `json`: the model was asked for JSON.
    """

    def __init__(
        self, shape: AnswerShape, judge: Judging, streamed: bool, limit: int = LIMIT, json: bool = False
    ) -> None:
        self.over = False
        self.responds: Verdict | None = None
        self.begun = False
        self.error: Exception | None = None
        self._shape = shape
        self._judge = judge
        self._window = judge.window
        self._holds = judge.holds
        self._limit = limit
        self._finder = TextFinder(shape, json)
        self._course = shape.course() if streamed else None
        self._framing = shape.events(limit)
        self._events: Events | None = self._framing  # None: nothing can be read any more, and it goes on all the same
        self._whole = bytearray()
        self._later: Event | None = None  # a long answer that came whole, which is still to be taken apart
        self._queue = Queue()
        self._out: list[bytes] = []  # what is released with the end of the call
        self._channels: dict[Channel, GrownText] = {}
        self._groups: dict[str | int, JoinedTexts] = {}  # texts that may be shown as one
        self._dirty: dict[GrownText, None] = {}  # texts that have grown since they were looked at
        self._todo: OrderedDict[GrownText, None] = OrderedDict()  # texts whose signals take long to read
        self._like: Likeness | None = None  # what was released last is like this
        self._changed = False  # a text of the answer was masked
        self._ends = 0  # 1: the last event of the answer has come, 2: nothing follows
        self._settled = False  # the judge was told
        self._closing: dict[Channel, None] = {}  # what ends, if it does not go on with the next text

    @property
    def waiting(self) -> bool:
        """Whether something has to be read that takes long before more can be released: call `judged`."""
        return not self.over and (bool(self._todo) or self._later is not None)

    @property
    def done(self) -> bool:
        """Whether everything was released that ever will be."""
        return self.over or (self._ends == 2 and not (self._queue.held or self._todo or self._later))

    def feed(self, data: bytes, end: bool = False) -> bytes:
        """Takes the next bytes of the answer (`end`: its last); gives what may be released now."""
        if self.over:
            return b""
        if end:
            self._ends = 2
        self._take(data, end)
        return self._released()

    async def judged(self, deadline: float) -> bytes:
        """Reads what takes long, until `deadline` (`time.monotonic()`); gives what may be released then.

        `feed` may be called meanwhile.
        """
        spare = deadline - time.monotonic()
        if self._later is not None:
            await self._read_later(self._later)
            deadline = time.monotonic() + spare
        todo = self._todo
        while todo and not self.over:
            grown = next(iter(todo))
            base, raw, lead, final = grown.base, grown.raw, grown.lead, self._final(grown)
            text = decode(raw, lead).text if grown.code else raw
            long = len(text) > LONG
            try:
                if long:
                    deadline = time.monotonic() + spare
                verdict = await self._judge.read(grown.key, text, final, deadline, LEAD if base else 0)
                if long:  # the others need not wait less
                    deadline = time.monotonic() + spare
                if grown in todo:  # it was not given up meanwhile
                    del todo[grown]
                    self._apply(grown, verdict, (base, raw, lead, final))
                    if self._final(grown) and not (final and grown.read == grown.end):
                        todo[grown] = None  # it has ended while it was read
            except Exception as error:  # noqa: BLE001 - what cannot be judged is Unknown
                self.error = error
                self._lost([])
                todo.pop(grown, None)
                grown.judged = grown.end  # where that does not stop it, it goes on
            if self._out:
                break
        return self._released()

    def unreadable(self) -> bytes:
        """Nothing of what comes can be read: what may be released now. Later bytes go on as they come, or nothing."""
        if not self.over:
            self._lost([])
        return self._released()

    # What comes in

    def _take(self, data: bytes, end: bool) -> None:
        events = self._events
        if events is None:
            if data:
                self._queue.put(HeldEvent(Event(data, "", b""), None, []))
        elif self._course is not None:
            self._read_stream(events, data, end)
        else:
            self._whole += data
            if len(self._whole) > self._limit:
                self._lost([])
            elif end and self._whole:
                raw = bytes(self._whole)
                self._whole.clear()
                whole = Event(raw, "", raw)
                if len(raw) > LONG and self._judge.apart is not None:
                    self._later = whole
                    return
                self._read(whole)
        if end and not self.over:
            self._guarded(self._end)
        if self._queue.size > self._limit and not self.over:
            if self._events is None:  # whoever judges the rest does not get on
                self._let_go()
            else:
                self._lost([])

    async def _read_later(self, event: Event) -> None:
        """Take a long answer apart in a thread."""
        parsed: _Parsed | None = None
        try:
            assert self._judge.apart is not None
            parsed = await self._judge.apart(partial(self._parsed, event))
        except (ValueError, RecursionError):
            pass
        except Exception as error:  # noqa: BLE001 - what cannot be judged is Unknown
            self.error = error
        if self._later is None or self.over:  # it was given up meanwhile
            return
        self._later = None
        if parsed is None:
            self._lost([event])
        else:
            self._guarded(partial(self._take_apart, event, parsed))
        if not self.over:
            self._guarded(self._end)
        while self._dirty and not self.over:
            self._looked(_AT_ONCE)
            await asyncio.sleep(0)

    def _read_stream(self, events: Events, data: bytes, end: bool) -> None:
        """Read what has come whole of a stream."""
        finder = self._finder
        try:
            events.put(data)
            while self._events is not None and not self.over:
                known = finder.known
                run = None if known is None else events.run(known.alike)
                if run is not None and known is not None:
                    finder.hit()
                    self._take_run(run, known)
                    continue
                event = events.next() or (events.end() if end else None)
                if event is None:
                    return
                self._read(event)
        except Exception as error:  # noqa: BLE001 - what cannot be judged is Unknown
            self._unread(error, [])

    def _read(self, event: Event) -> None:
        before = len(self._queue.held)
        try:
            self._take_apart(event, self._parsed(event))
        except Exception as error:  # noqa: BLE001 - as above
            self._unread(error, [] if len(self._queue.held) > before else [event])

    def _unread(self, error: Exception, events: list[Event]) -> None:
        """What comes is no answer of this API (ValueError), or something of ours broke."""
        if not isinstance(error, (ValueError, RecursionError)):
            self.error = error
        self._lost(events)

    def _take_run(self, run: EventRun, known: Likeness) -> None:
        """Successive events that are like one before them."""
        try:
            channels = self._channels
            grown = channels.get(known.channel) if len(channels) == 1 and not self._groups and known.alone else None
            if grown is None:
                grown = self._grow(known.text, run.said)
                self._join(grown, known.text, run.said)
            else:
                grown.after = 0
                self._add(grown, run.said)
        except Exception as error:  # noqa: BLE001 - as above
            self._unread(error, [Event(run.raw, "", b"")])
            return
        if self._closing:
            self._go_on([grown])
        self._queue.put(HeldRun(run, known, grown))
        self._touch([grown])

    def _parsed(self, event: Event) -> _Parsed:
        """What is in an event. Raises ValueError when it is none of this API's."""
        if not event.data or event.data == _DONE:
            return None, False, []
        fields = orjson.loads(event.data)
        if type(fields) is not dict:
            raise ValueError("an event of the answer is no object")
        return fields, says_twice(event.data, fields), self._finder.texts(fields)

    def _take_apart(self, event: Event, parsed: _Parsed) -> None:
        fields, twice, texts = parsed
        pieces = [self._piece(text) for text in texts]
        if event.other or (event.name and not NAME.fullmatch(event.name)):
            said = event.name + "\n" + event.other.decode(errors="replace")
            pieces.append(self._piece(AnswerText((), {"": said}, "", False, True)))
        self._go_on([piece.grown for piece in pieces if not piece.text.whole])
        held = HeldEvent(event, fields, pieces)
        held.twice = twice
        self._queue.put(held)
        grown = [piece.grown for piece in pieces]
        if self._course is None:
            self._touch(grown)
            return
        closed = self._shape.closes(fields) if fields is not None else [()] if event.data else []
        if () in closed:
            self._close([()])
        else:
            for beginning in closed:
                if any(key[: len(beginning)] == beginning for key in self._channels):  # else there is nothing to end
                    self._closing[beginning] = None
        self._touch(grown)
        if () in closed:
            held.last = True
            self._ends = max(self._ends, 1)
        if len(pieces) == 1 and not (closed or twice) and fields is not None:
            self._finder.learn(event, pieces[0].text)

    def _go_on(self, grown: Sequence[GrownText]) -> None:
        """These have come, and may go on: what was to end has ended, unless it is one of them. There are servers that
        say the end with every event, or before the last text."""
        if self._closing and grown:
            ends = [one for one in self._closing if all(text.key[: len(one)] != one for text in grown)]
            self._closing.clear()
            self._close(ends)

    def _touch(self, grown: Iterable[GrownText]) -> None:
        """These have come, and others that they stand behind: they are to be looked at."""
        for text in grown:
            self._dirty[text] = None
        if len(self._channels) > 1:
            self._dirty.update(dict.fromkeys(self._channels.values()))
        for group in self._groups.values():
            if group.seam is not None:
                self._dirty[group.seam] = None

    def _piece(self, text: AnswerText) -> HeldText:
        """A text of an event, which its channel has now."""
        said: str = text.holder[text.key]
        grown = self._grow(text, said)
        return HeldText(grown, text, (grown.end - len(said), grown.end), self._join(grown, text, said))

    def _grow(self, text: AnswerText, said: str) -> GrownText:
        """Add what a text says to its channel."""
        if text.whole:
            grown = GrownText(text.channel, text.code, True)
        else:
            found = self._channels.get(text.channel)
            if found is None:
                if len(self._channels) >= _CHANNELS:
                    raise ValueError("too many texts at the same time")
                found = self._channels[text.channel] = GrownText(text.channel, text.code, False)
            grown = found
            if len(self._channels) > 1:
                item = grown.key[:2]
                for other in self._channels.values():
                    if other.key[:2] == item:
                        other.after += len(said)
            grown.after = 0
        self._add(grown, said)
        return grown

    def _add(self, grown: GrownText, said: str) -> None:
        grown.add(said)
        if grown.end - grown.base > 2 * self._limit:
            raise ValueError("too much of a text waits to be judged")

    def _join(self, grown: GrownText, text: AnswerText, said: str) -> list[Half] | None:
        """`said` may be shown as one with what was said before it. What of that was masked at a border, where it is the
        same again."""
        if not (text.joins or self._groups):
            return None
        group: JoinedTexts | None = None
        if text.joins:
            key = text.joins[0]
            group = self._groups.get(key)
            if group is None:
                group = self._groups[key] = JoinedTexts(self._shape.repeats())
            if text.whole and (halves := group.said(text.joins)) is not None:
                return halves
            group.add(grown, said, text.joins, self._window)
        if not text.whole:
            for other in self._groups.values():
                if other is not group:
                    other.behind(len(said))
        return None

    def _close(self, beginnings: Iterable[Channel]) -> None:
        """Channels that begin so have ended."""
        for beginning in beginnings:
            size = len(beginning)
            for key in [key for key in self._channels if key[:size] == beginning]:
                grown = self._channels.pop(key, None)
                if grown is None:  # the answer was cut meanwhile
                    return
                grown.ended = True
                self._look(grown)
            if not size:
                for group in list(self._groups.values()):
                    if (seam := group.close()) is not None:
                        self._look(seam)
                self._groups.clear()

    def _end(self) -> None:
        self._close([()])

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - what cannot be judged is Unknown
            self.error = error
            self._lost([])

    # Judging

    def _final(self, grown: GrownText) -> bool:
        """Whether the text is complete, or as much of another one has come behind it as is held back: then it is the
        other's turn."""
        return grown.ended or 0 < self._window <= grown.after

    def _look(self, grown: GrownText) -> None:
        """Judge a text, where enough of it has come."""
        judge = self._judge
        if self.over or grown in self._todo:
            return
        end, final, window = grown.end, self._final(grown), self._window
        if final:
            if grown.judged >= end and grown.read == end:
                return
        elif end < window or (
            grown.read >= 0 and end - grown.read < (judge.stride if judge.slow else max(1, window // _STEPS))
        ):
            return
        if grown.read < 0 and isinstance(grown, Seam):
            judge.carry(grown.follows, grown.key)
        text = decode(grown.raw, grown.lead).text if grown.code else grown.raw
        verdict = judge.judge(grown.key, text, final, LEAD if grown.base else 0)
        if verdict is None:
            self._todo[grown] = None
        else:
            self._apply(grown, verdict, (grown.base, grown.raw, grown.lead, final))

    def _apply(self, grown: GrownText, verdict: Verdict, read: tuple[int, str, str, bool]) -> None:
        """Do what was said of a text; `read` is what was read of it: from where, the characters, the lead, whether all
        of it."""
        if verdict.act in ("cut", "respond"):
            self._stop(verdict)
            return
        base, raw, lead, final = read
        window = self._window
        known = base + len(raw)
        grown.read = known
        back = 2 * window + LEAD  # what was judged just now, and what is looked back at from there
        if not grown.code:
            for span in verdict.spans:
                grown.mask(base + span.start, base + span.end, f"[{span.label}]")
            if not final:
                known -= window
            grown.keep = base + max(0, len(raw) - back)
        elif verdict.spans or not final:
            text = decode(raw, lead)
            for start, end, new in text.edits((span.start, span.end, f"[{span.label}]") for span in verdict.spans):
                grown.mask(base + start, base + end, new)
            if not final:
                known = base + text.raw(max(0, len(text.text) - window))
                grown.keep = base + text.raw(max(0, len(text.text) - back))
        grown.judged = max(grown.judged, known)
        if isinstance(grown, Seam):
            grown.settle(window)

    def _settle(self) -> None:
        """The answer has ended, and all of it was judged: what is still open is settled."""
        self._settled = True
        verdict = self._judge.end()
        if verdict.act in ("cut", "respond"):
            self._stop(verdict)

    def _stop(self, verdict: Verdict, lost: bool = False) -> None:
        """End the answer here. What was judged before is still released; `lost`: what comes cannot be read."""
        self._flush()
        if not self.begun and (verdict.act == "respond" or lost):
            self.responds = verdict._replace(status=verdict.status or UNREADABLE)
        elif self._course is not None:
            if self._queue.held and (fields := self._queue.held[0].said()) is not None:
                self._course.unseen(fields)
            self._out.append(self._course.cut(verdict.message or ""))
        else:
            fields = next((said for held in self._queue.held if (said := held.said()) is not None), {})
            self._out.append(orjson.dumps(self._shape.cut(fields, verdict.message or "")))
        self.over = True
        self._later = None
        self._todo.clear()
        self._queue = Queue()
        self._channels.clear()
        self._groups.clear()

    def _lost(self, events: list[Event]) -> None:
        """The rest cannot be read, from `events` on."""
        verdict = self._judge.unreadable()
        if verdict.act in ("cut", "respond"):
            self._stop(verdict, True)
            return
        if self._later is not None:
            events, self._later = [self._later, *events], None
        rest = b"".join(event.raw for event in events) + self._whole
        if self._events is not None:
            rest += self._events.rest()
        self._events = None
        try:
            self._close([()])
        except Exception as error:  # noqa: BLE001 - nobody has asked for more
            self.error = error
            self._let_go()
        self._whole = bytearray()
        if rest and not self.over:
            self._queue.put(HeldEvent(Event(rest, "", b""), None, []))

    def _let_go(self) -> None:
        """Release everything, with the masks that are known."""
        self._todo.clear()
        for held in self._queue.held:
            held.let_go()

    # What goes out

    def _looked(self, most: int | None = None) -> None:
        """Look at the texts that have grown, or at so many of them: once, however many events have come together."""
        try:
            for grown in list(islice(self._dirty, most)):
                del self._dirty[grown]
                self._look(grown)
        except Exception as error:  # noqa: BLE001 - what cannot be judged is Unknown
            self._dirty.clear()
            self.error = error
            self._lost([])
            if not self.over:
                self._let_go()

    def _released(self) -> bytes:
        if self._dirty:
            self._looked()
        if self._ends and not (self._settled or self._todo or self._later or self.over):
            self._guarded(self._settle)
        if not self.over:
            self._guarded(self._flush)
        if not self._out:
            return b""
        out, self._out = b"".join(self._out), []
        self.begun = self.begun or bool(out)
        return out

    def _flush(self) -> None:
        """Move what may be released from the queue."""
        queue, holds, window = self._queue, self._holds, self._window
        if not self.begun and self._judge.responds and not self._shows():
            return
        gone: dict[GrownText, None] = {}  # what of these was released is dropped at once: each time moves all the rest
        while queue.held:
            held = queue.held[0]
            if isinstance(held, HeldRun):
                stop = held.known(window) if holds else held.stop
                if stop > held.at:
                    gone[held.grown] = None
                    self._release(held, stop)
                if stop < held.stop:
                    break
                queue.take()
                continue
            assert isinstance(held, HeldEvent)
            if holds and not self._known(held):
                break
            queue.take()
            for piece in held.pieces:
                gone[piece.grown] = None
            self._out.append(self._written(held))
            self.begun = True
            if held.fields is not None and self._course is not None:
                self._course.seen(held.fields)
                self._like = None
        for grown in gone:
            grown.forget(window)

    def _release(self, held: HeldRun, stop: int) -> None:
        """Release those events before `stop` that wait still: all up to one in which something is masked at once."""
        grown = held.grown
        while held.at < stop:
            masked = -1 if not grown.masks else grown.masked(held.end(held.at))
            plain = held.at if self._changed and held.like.repeats else stop if masked < 0 else held.within(masked)
            if plain > held.at:
                raw = held.raw(min(plain, stop))
                held.at = min(plain, stop)
                grown.out = held.end(held.at)
                self._out.append(raw)
            else:
                event = held.event()
                raw = event.event.raw
                held.at += 1
                self._out.append(self._written(event))
            self._queue.size -= len(raw)
            self.begun = True
        if self._course is not None and self._like is not held.like:  # each of a run says the same to it
            self._course.seen(held.like.fields)
            self._like = held.like

    def _known(self, held: HeldEvent) -> bool:
        """Whether an event may go on."""
        return held.known(self._window) and (self._settled or not held.last)

    def _shows(self) -> bool:
        """Whether a text of the answer may be released: until then another answer may take the place of all."""
        queue = self._queue
        if queue.quiet and self._events is None:
            return True
        while queue.quiet < len(queue.held):
            held = queue.held[queue.quiet]
            if isinstance(held, HeldRun):
                return held.known(self._window) > 0
            assert isinstance(held, HeldEvent)
            if not self._known(held):
                return False
            if held.pieces or self._events is None:
                return True
            queue.quiet += 1
        return self._settled

    def _written(self, held: HeldEvent) -> bytes:
        """The event as it is to be sent: as it came, or masked."""
        event, fields = held.event, held.fields
        other = event.other
        changed = held.twice
        for piece in held.pieces:
            grown = piece.grown
            if piece.halves:
                grown.repeat(piece.halves)
            if grown.masks:
                shown = grown.shown(piece.start, piece.end)
                if shown != grown.raw[piece.start - grown.base : piece.end - grown.base]:
                    changed = self._changed = True
                    text = piece.text
                    if held.alike:
                        fields = orjson.loads(event.data)
                        (text,) = self._finder.texts(fields)
                    if text.channel:
                        text.holder[text.key] = shown
                    else:
                        other = b""
            grown.out = piece.end
        if self._changed and (changed or REPEATS.search(event.data)) and (fields is not None or held.alike):
            fields = orjson.loads(event.data) if fields is None else fields
            self._shape.forget(fields)
            changed = True
        if not changed:
            return event.raw
        if self._course is None:
            return orjson.dumps(fields)
        return self._framing.written(event, fields, other)
