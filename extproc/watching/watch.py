"""One answer on its way to the client: held back until it is judged, masked or cut where a decision says so.

Sans-IO. Events are kept in one queue, in their order. The texts of successive events that belong together are one
channel, which is judged as it grows; an event goes on once every text in it lies before the part of its channel that
is still to be judged again. An event in which nothing was found goes on byte for byte as it came.

Each event is judged before the next one is read, at places that `extproc.watching.texts` knows from what the answer
says alone. So an answer is released alike in whichever pieces it comes. Where much comes at once and nothing is found
anywhere in it, what those places would say is known without asking at each.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, Protocol

import orjson

from decisions.watching import LONG, PASS, Verdict
from extproc.watching.finder import REPEATS, Likeness, TextFinder
from extproc.watching.grown import LEAD, NEVER, GrownText, Seam, Sizes
from extproc.watching.held import HeldEvent, HeldRun, Queue
from extproc.watching.inbox import Inbox
from extproc.watching.jsontext import decode
from extproc.watching.runs import EventRun
from extproc.watching.shape import AnswerShape, AnswerText, says_twice
from extproc.watching.sse import NAME, Event, Events
from extproc.watching.texts import Due, Texts

LIMIT: Final = 4 * 2**20
"""Bytes of an answer that are held at most, and of a whole answer that can be judged."""
UNREADABLE: Final = 502
"""The status of what takes the place of an answer that nobody could read, where nothing of it was sent."""
_ALL: Final = 1 << 62
_AT_ONCE: Final = 32
"""Places of a stream that are judged before others have their turn."""
_FEW: Final = 16
"""The same where much has come: of a long answer that came whole, texts."""
_EVENTS: Final = 256
"""Events, or runs of them, that are read before others have their turn."""
_STEPS: Final = 8
"""A text is judged again once an eighth of the window has come, since each judgement reads the whole window."""
_DONE: Final = b"[DONE]"
_OPEN, _ENDED, _SETTLED = range(3)
"""How far an answer is: more may come, its last event has come, and the judge was told that all was judged."""


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

    def clear(self, channel: Any, text: str) -> bool: ...

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
        step = judge.stride if judge.slow else max(1, judge.window // _STEPS)
        self._sizes = Sizes(judge.window, step if streamed else 0)
        self._limit = limit
        self._finder = TextFinder(shape, json)
        self._course = shape.course() if streamed else None
        self._framing = shape.events(limit)
        self._inbox = Inbox(self._framing)
        self._texts = Texts(self._sizes, limit, shape.repeats())
        self._queue = Queue()
        self._out: list[bytes] = []  # what is released with the end of the call
        self._like: Likeness | None = None  # what was released last is like this
        self._changed = False  # a text of the answer was masked
        self._reading = False  # a text is just being read
        self._stage = _OPEN

    @property
    def waiting(self) -> bool:
        """Whether something has to be read that takes long before more can be released: call `judged`."""
        return not self.over and (bool(self._texts.due) or self._inbox.later is not None or self._inbox.full)

    @property
    def done(self) -> bool:
        """Whether everything was released that ever will be."""
        return self.over or (self._stage == _SETTLED and self._inbox.closed and not (self._queue.held or self.waiting))

    def feed(self, data: bytes, end: bool = False) -> bytes:
        """Takes the next bytes of the answer (`end`: its last); gives what may be released now."""
        if self.over:
            return b""
        self._inbox.put(data, end)
        self._go_on(_ALL if self._course is None else _AT_ONCE)
        return self._released()

    async def judged(self, deadline: float) -> bytes:
        """Reads what takes long, until `deadline` (`time.monotonic()`), each text as long as the first; gives what may
        be released then.

        `feed` may be called meanwhile.
        """
        spare = deadline - time.monotonic()
        if self._inbox.later is not None:
            await self._read_later(self._inbox.later)
        while self.waiting and not self._out:
            await asyncio.sleep(0)
            await self._read_due(spare)
            self._go_on(_FEW)
            self._flush()
        return self._released()

    def unreadable(self) -> bytes:
        """Nothing of what comes can be read: what may be released now. Later bytes go on as they come, or nothing."""
        if not self.over:
            self._lost([])
            self._go_on(_AT_ONCE)
        return self._released()

    # What comes in

    def _go_on(self, most: int) -> None:
        """Judge what is due and read what has come, in turn, as far as that goes on, at `most` so many places."""
        due, inbox = self._texts.due, self._inbox
        inbox.full = False
        events = _EVENTS
        try:
            while not self.over:
                if due and most >= 0:
                    most = self._judge_due(most)
                waits = bool(due) and self._judge.holds  # what is due has to be read first
                if self._queue.size + (inbox.size if waits or self._course is None else 0) > self._limit:
                    self._make_room()
                    waits = waits and bool(due)
                if waits:
                    break
                if self._stage == _ENDED and not (due or self.over):
                    self._settle()
                if not events:
                    inbox.full = True
                    break
                events -= 1
                if self.over or not self._read_next():
                    break
        except Exception as error:  # noqa: BLE001 - what cannot be judged is Unknown
            self.error = error
            self._lost([])
            if not self.over:
                self._let_go()

    def _make_room(self) -> None:
        """More is held than may be."""
        before = len(self._out)
        self._flush()
        if len(self._out) > before:
            return
        if self._inbox.events is None:  # whoever judges the rest does not get on
            self._let_go()
            self._pass_on()
        else:
            self._lost([])

    def _pass_on(self) -> None:
        """What has come goes on unread, behind what waits."""
        data = self._inbox.take()
        if data:
            self._queue.put(HeldEvent(Event(data, "", b""), None, []))

    def _read_next(self) -> bool:
        """Read the next event; whether there was anything to read."""
        inbox = self._inbox
        events = inbox.events
        if inbox.later is not None:
            return False
        if inbox.size and events is None:
            self._pass_on()
            return True
        if events is not None and self._course is not None:
            if self._read_event(events):
                return True
        elif inbox.over and inbox.size:
            raw = inbox.take()
            whole = Event(raw, "", raw)
            if len(raw) > LONG and self._judge.apart is not None:
                inbox.later = whole
            else:
                self._read(whole)
            return True
        if not inbox.over or inbox.closed:
            return False
        inbox.closed = True
        self._texts.close([()])
        self._stage = max(self._stage, _ENDED)
        return True

    def _read_event(self, events: Events) -> bool:
        """Read the next event of a stream, or those that are like the last one; whether there was one."""
        finder, inbox = self._finder, self._inbox
        try:
            if inbox.drained and inbox.size:
                inbox.drained = False
                events.put(inbox.take())
            known = finder.known
            run = None if known is None or inbox.drained else events.run(known.alike)
            if run is not None and known is not None:
                finder.hit()
                self._take_run(run, known)
                return True
            event = None if inbox.drained else events.next()
            if event is None:
                inbox.drained = True
                if inbox.size:
                    return True
                event = events.end() if inbox.over and not inbox.closed else None
                if event is None:
                    return False
                self._read(event)
                held = self._queue.held[-1] if self._queue.held else None
                if isinstance(held, HeldEvent):
                    held.last = True
                return True
            self._read(event)
        except Exception as error:  # noqa: BLE001 - what cannot be read is Unknown
            self._unread(error, [])
        return True

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
        if self._inbox.later is None or self.over:  # it was given up meanwhile
            return
        self._inbox.later = None
        if parsed is None:
            self._lost([event])
        else:
            try:
                self._take_apart(event, parsed)
            except Exception as error:  # noqa: BLE001 - as above
                self._unread(error, [event])
        self._go_on(_FEW)

    def _read(self, event: Event) -> None:
        before = len(self._queue.held)
        try:
            self._take_apart(event, self._parsed(event))
        except Exception as error:  # noqa: BLE001 - what cannot be read is Unknown
            self._unread(error, [] if len(self._queue.held) > before else [event])

    def _unread(self, error: Exception, events: list[Event]) -> None:
        """What comes is no answer of this API (ValueError), or something of ours broke."""
        if not isinstance(error, (ValueError, RecursionError)):
            self.error = error
        self._lost(events)

    def _take_run(self, run: EventRun, known: Likeness) -> None:
        """Successive events that are like one before them."""
        try:
            self._texts.go_on([known.channel])
            grown = self._texts.add_run(known.text, run.said)
        except Exception as error:  # noqa: BLE001 - as above
            self._unread(error, [Event(run.raw, "", b"")])
            return
        self._queue.put(HeldRun(run, known, grown))

    def _parsed(self, event: Event) -> _Parsed:
        """What is in an event. Raises ValueError when it is none of this API's."""
        if not event.data or event.data == _DONE:
            return None, False, []
        fields = orjson.loads(event.data)
        if type(fields) is not dict:
            raise ValueError("an event of the answer is no object")
        return fields, says_twice(event.data, fields), self._finder.texts(fields)

    def _take_apart(self, event: Event, parsed: _Parsed) -> None:
        fields, twice, found = parsed
        texts = self._texts
        texts.go_on([text.channel for text in found if not text.whole])
        if event.other or (event.name and not NAME.fullmatch(event.name)):
            said = event.name + "\n" + event.other.decode(errors="replace")
            found = [*found, AnswerText((), {"": said}, "", False, True)]
        pieces = texts.add(found)
        held = HeldEvent(event, fields, pieces)
        held.twice = twice
        self._queue.put(held)
        if self._course is None:
            return
        closed = self._shape.closes(fields) if fields is not None else [()] if event.data else []
        if () in closed:
            texts.close([()])
            held.last = True
            self._stage = max(self._stage, _ENDED)
        else:
            texts.closes(closed)
        if len(pieces) == 1 and not (closed or twice) and fields is not None:
            self._finder.learn(event, pieces[0].text)

    # Judging

    def _next_due(self) -> tuple[Due, int, bool] | None:
        """What is to be judged next: of which text, as far as where, and whether as if it ended there."""
        due = self._texts.due
        while due:
            part = due[0]
            grown, stop = part.grown, part.stop
            if part.frees:
                grown.free = max(grown.free, stop)
            elif isinstance(grown, Seam) and grown.over:
                pass
            elif grown.next < stop or (grown.next == stop and not part.final):
                return part, grown.next, False
            elif part.final and not (grown.read == stop and grown.judged >= stop):
                return part, stop, True
            due.popleft()
        return None

    def _judge_due(self, left: int) -> int:
        """Judge what is due, in its order, at `left` places at most; how many are left. -1: something is due still, for
        which `judged` has to be called."""
        judge, step = self._judge, self._sizes.step
        while not self.over and (found := self._next_due()) is not None:
            part, stop, final = found
            grown = part.grown
            if self._reading or not left:
                return -1
            left -= 1
            try:
                parts = 1 if final or judge.slow or isinstance(grown, Seam) else 1 + (part.stop - stop) // step
                if part.parts:
                    parts = min(parts, part.parts)
                if parts > 1:
                    last = stop + (parts - 1) * step
                    raw, text = self._seen(grown, last)
                    if judge.clear(grown.key, text):
                        part.parts = 2 * parts
                        self._apply(grown, PASS, last, False, raw)
                    else:
                        part.parts = parts // 2
                    continue
                raw, text = self._seen(grown, stop)
                verdict = judge.judge(grown.key, text, final, LEAD if grown.keep else 0)
                if verdict is None:
                    return -1
                part.parts = 1 if verdict.spans else 2
                self._apply(grown, verdict, stop, final, raw)
            except Exception as error:  # noqa: BLE001 - what cannot be judged is Unknown
                self._broke(part, error)
        return left

    async def _read_due(self, spare: float) -> None:
        """Read what is due next, in `spare` seconds."""
        found = self._next_due()
        if found is None:
            return
        part, stop, final = found
        grown = part.grown
        self._reading = True
        try:
            raw, text = self._seen(grown, stop)
            lead = LEAD if grown.keep else 0
            # It may only have waited for its turn.
            verdict = None if self._judge.slow else self._judge.judge(grown.key, text, final, lead)
            if verdict is None:
                verdict = await self._judge.read(grown.key, text, final, time.monotonic() + spare, lead)
            if self._is_due(part):
                self._apply(grown, verdict, stop, final, raw)
        except Exception as error:  # noqa: BLE001 - what cannot be judged is Unknown
            if self._is_due(part):
                self._broke(part, error)
        finally:
            self._reading = False

    def _is_due(self, part: Due) -> bool:
        """Whether it was not given up meanwhile."""
        due = self._texts.due
        return bool(due) and due[0] is part

    def _broke(self, part: Due, error: Exception) -> None:
        """A text cannot be judged. Where that does not stop the answer, it goes on."""
        self.error = error
        grown = part.grown
        if self._is_due(part):
            self._texts.due.popleft()
        self._lost([])
        grown.judged = grown.read = grown.end
        grown.next = NEVER

    def _seen(self, grown: GrownText, stop: int) -> tuple[str, str]:
        """What is kept of a text as far as `stop`, as it came and as it is read."""
        if grown.read < 0 and isinstance(grown, Seam):
            self._judge.carry(grown.follows, grown.key)
        raw = grown.view(stop)
        return raw, decode(raw, grown.kept).text if grown.code else raw

    def _apply(self, grown: GrownText, verdict: Verdict, stop: int, final: bool, raw: str) -> None:
        """Do what was said of a text that was judged as far as `stop`; `raw` is what was seen of it."""
        base, window, step = grown.keep, self._sizes.window, self._sizes.step
        back = 2 * window + LEAD  # what was judged just now, and what is looked back at from there
        ends = verdict.act in ("cut", "respond")
        spans = verdict.masks if ends else verdict.spans
        place = verdict.spans[0].start if ends and verdict.spans else 0
        known = stop
        grown.read = stop
        while grown.next <= stop:
            grown.next += step
        if not grown.code:
            for span in spans:
                grown.mask(base + span.start, base + span.end, f"[{span.label}]")
            if not final:
                known -= window
            grown.keep = base + max(0, len(raw) - back)
        else:
            text = decode(raw, grown.kept)
            for start, end, new in text.edits((span.start, span.end, f"[{span.label}]") for span in spans):
                grown.mask(base + start, base + end, new)
            if not final:
                known = base + text.raw(max(0, len(text.text) - window))
            ahead = text.raw(max(0, len(text.text) - back))
            if ahead:
                grown.keep, grown.kept = base + ahead, text.lead(ahead)
            place = text.raw(place)
        if ends:
            grown.judged = max(grown.judged, base + place)  # what stands before it may be shown
            self._stop(verdict)
            return
        grown.judged = max(grown.judged, known)
        if isinstance(grown, Seam):
            grown.settle(window)

    def _settle(self) -> None:
        """The answer has ended, and all of it was judged: what is still open is settled."""
        verdict = self._judge.end()
        if verdict.act in ("cut", "respond"):
            self._stop(verdict)
        self._stage = _SETTLED

    def _stop(self, verdict: Verdict, lost: bool = False) -> None:
        """End the answer here. What was judged before is still released; `lost`: what comes cannot be read."""
        self._flush()
        self._flush_part()
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
        self._inbox.later = None
        self._queue = Queue()
        self._texts.clear()

    def _lost(self, events: list[Event]) -> None:
        """The rest cannot be read, from `events` on."""
        verdict = self._judge.unreadable()
        if verdict.act in ("cut", "respond"):
            self._stop(verdict, True)
            return
        inbox = self._inbox
        if inbox.later is not None:
            events, inbox.later = [inbox.later, *events], None
        rest = b"".join([event.raw for event in events])
        if inbox.events is not None:
            rest += inbox.events.rest()
        inbox.events = None
        self._texts.close([()])
        if rest:
            self._queue.put(HeldEvent(Event(rest, "", b""), None, []))
        self._pass_on()

    def _let_go(self) -> None:
        """Release everything, with the masks that are known."""
        self._texts.clear()
        for held in self._queue.held:
            held.let_go()

    # What goes out

    def _released(self) -> bytes:
        if not self.over:
            try:
                self._flush()
            except Exception as error:  # noqa: BLE001 - what cannot be written is Unknown
                self.error = error
                self._lost([])
        if not self._out:
            return b""
        out, self._out = b"".join(self._out), []
        self.begun = self.begun or bool(out)
        return out

    def _flush(self) -> None:
        """Move what may be released from the queue."""
        queue, holds, window = self._queue, self._judge.holds, self._sizes.window
        if self._gated():
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

    def _flush_part(self) -> None:
        """The answer ends within the first event that waits: what of its text may be shown is shown, if it says nothing
        else."""
        held = self._queue.held[0] if self._queue.held and not self._gated() else None
        if held is None or self._course is None:
            return
        run = held if isinstance(held, HeldRun) else None
        event = run.event() if run is not None else held
        assert isinstance(event, HeldEvent)
        known = True
        for piece in event.pieces:  # what stands behind the first that is not known is none of what came before
            piece.stop = piece.known(self._sizes.window) if known else piece.start
            known = piece.stop == piece.end
        if event.last or event.event.other or not any(piece.stop > piece.start for piece in event.pieces):
            return
        fields = event.fields
        if fields is not None and (self._shape.closes(fields) or any(piece.text.whole for piece in event.pieces)):
            return
        try:
            raw = self._written(event)
        except ValueError:  # half of an object is none
            return
        self._out.append(raw)
        self.begun = True
        said = run.like.fields if run is not None else fields
        if said is not None:
            self._course.seen(said)

    def _gated(self) -> bool:
        """Whether another answer may still take the place of all, since too little of it is known to be shown."""
        return not self.begun and self._judge.responds and not self._shows()

    def _known(self, held: HeldEvent) -> bool:
        """Whether an event may go on."""
        return held.known(self._sizes.window) and (self._stage == _SETTLED or not held.last)

    def _shows(self) -> bool:
        """Whether all of the answer may be shown, or as much of it as may be at once where it comes in small pieces:
        what is found behind that comes too late to take the place of all, however the answer came."""
        queue, (window, step) = self._queue, self._sizes
        while queue.counted < len(queue.held):
            held = queue.held[queue.counted]
            shown = queue.shown + held.characters(window)
            if shown >= step > 0:
                return True
            if isinstance(held, HeldRun):
                if held.known(window) < held.stop:
                    return False
            else:
                assert isinstance(held, HeldEvent)
                if not self._known(held):
                    return False
            queue.shown = shown
            queue.counted += 1
        return self._stage == _SETTLED or (self._inbox.events is None and queue.counted > 0)

    def _written(self, held: HeldEvent) -> bytes:
        """The event as it is to be sent: as it came, or masked."""
        event, fields = held.event, held.fields
        other = event.other
        changed = held.twice
        for piece in held.pieces:
            grown = piece.grown
            if piece.halves:
                grown.repeat(piece.halves)
            if grown.masks or piece.stop < piece.end:
                shown = grown.shown(piece.start, piece.stop)
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
