"""One answer on its way to the client: held back until it is judged, masked or cut where a decision says so.

Sans-IO. Events are kept in one queue, in their order. The texts of successive events that belong together are one
channel, which is judged as it grows; an event goes on once every text in it lies before the part of its channel that
is still to be judged again. An event in which nothing was found goes on byte for byte as it came.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from itertools import islice
from typing import Any, Final, Protocol

import orjson

from decisions.watching import LONG, Verdict
from extproc.watching.grown import LEAD, GrownText, Half, JoinedTexts, Seam
from extproc.watching.jsontext import decode
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
_UNESCAPED: Final = re.compile(rb'[^"\\\x00-\x1f]+')
_PROBE: Final = "\u2603"
_TRIES: Final = 8
"""In some APIs every event has a number, and no two are alike."""
_REPEATS: Final = re.compile(rb'logprobs|obfuscation|_index"|Index"|token_ids|"audio"')
"""Whether `AnswerShape.forget` may have something to do."""


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


class _Piece:
    """One text of a held event: the characters from `start` to `end` of `grown`. `halves`: what of a block that it says
    again was masked at a border."""

    __slots__ = ("end", "grown", "halves", "start", "text")

    def __init__(self, grown: GrownText, text: AnswerText, start: int, halves: list[Half] | None) -> None:
        self.grown = grown
        self.text = text
        self.start = start
        self.end = grown.end
        self.halves = halves


class _HeldEvent:
    """An event, or what else has come, that waits for its texts to be judged; `last`: the answer ends with it.
    `alike`: it is like one before it but for its only text, and was not taken apart. `twice`: its bytes may say more
    than `fields`."""

    __slots__ = ("alike", "event", "fields", "last", "pieces", "twice")

    def __init__(self, event: Event, fields: dict[str, Any] | None, pieces: list[_Piece], alike: bool = False) -> None:
        self.event = event
        self.fields = fields
        self.pieces = pieces
        self.alike = alike
        self.twice = False
        self.last = False


class _Queue:
    """The events that wait, in their order; `size`: the bytes of all of them."""

    __slots__ = ("events", "size")

    def __init__(self) -> None:
        self.events: deque[_HeldEvent] = deque()
        self.size = 0

    def put(self, held: _HeldEvent) -> None:
        self.size += len(held.event.raw)
        self.events.append(held)

    def take(self) -> _HeldEvent:
        """The first of them, which waits no more."""
        held = self.events.popleft()
        self.size -= len(held.event.raw)
        return held


class _Alike:
    """An event with one text. The next ones mostly differ from it in that text alone, and need not be taken apart."""

    __slots__ = ("after", "before", "name", "text")

    def __init__(self, before: bytes, after: bytes, name: str, text: AnswerText) -> None:
        self.before = before  # what stands before the text, and after it
        self.after = after
        self.name = name
        self.text = text

    def said(self, event: Event) -> str | None:
        """The text of such an event; None where it is another, or has an escape. Raises ValueError when it is no
        UTF-8."""
        data, before, after = event.data, self.before, self.after
        if event.other or event.name != self.name or not (data.startswith(before) and data.endswith(after)):
            return None
        if len(data) <= len(before) + len(after):
            return None
        said = data[len(before) : len(data) - len(after)]
        return said.decode() if _UNESCAPED.fullmatch(said) else None


class _TextFinder:
    """Finds the texts of one answer's events; those that are like one before are not taken apart."""

    __slots__ = ("_json", "_known", "_shape", "_tries")

    def __init__(self, shape: AnswerShape, json: bool) -> None:
        self._shape = shape
        self._json = json
        self._known: _Alike | None = None
        self._tries = 0  # events that might have been the first of several alike, and were not

    def texts(self, fields: dict[str, Any]) -> list[AnswerText]:
        return self._shape.texts(fields, self._json)

    def alike(self, event: Event) -> tuple[AnswerText, str] | None:
        """What the only text of `event` is, and the text of the event that it is like; None where there is none."""
        known = self._known
        if known is None or (said := known.said(event)) is None:
            return None
        self._tries = 0
        return known.text, said

    def learn(self, event: Event, text: AnswerText) -> None:
        """`event` has only this text, and nothing ends with it: the next ones may be like it."""
        if self._tries < _TRIES and not self._shape.repeats():  # else its course has to see every event
            self._tries += 1
            self._known = self._likeness(event, text) or self._known

    def _likeness(self, event: Event, text: AnswerText) -> _Alike | None:
        """What events have in common with this one, whose only text is `text`; None where that is not plain to see."""
        said: str = text.holder[text.key]
        before, quoted, after = event.data.partition(b'"%b"' % said.encode())
        if not said or text.whole or not quoted or event.other:
            return None
        before, after = before + b'"', b'"' + after
        try:  # the same letters may be a key, or another string, whose place is none that is shown
            probed = self.texts(orjson.loads(before + _PROBE.encode() + after))
        except ValueError:
            return None
        if [(one.channel, one.code, one.whole, one.holder[one.key]) for one in probed] != [
            (text.channel, text.code, False, _PROBE)
        ]:
            return None
        return _Alike(before, after, event.name, text)


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
        self._limit = limit
        self._finder = _TextFinder(shape, json)
        self._course = shape.course() if streamed else None
        self._framing = shape.events(limit)
        self._events: Events | None = self._framing  # None: nothing can be read any more, and it goes on all the same
        self._whole = bytearray()
        self._later: Event | None = None  # a long answer that came whole, which is still to be taken apart
        self._queue = _Queue()
        self._out: list[bytes] = []  # what is released with the end of the call
        self._channels: dict[Channel, GrownText] = {}
        self._groups: dict[str | int, JoinedTexts] = {}  # texts that may be shown as one
        self._dirty: dict[GrownText, None] = {}  # texts that have grown since they were looked at
        self._todo: OrderedDict[GrownText, None] = OrderedDict()  # texts whose signals take long to read
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
        return self.over or (self._ends == 2 and not (self._queue.events or self._todo or self._later))

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
        events: list[Event] = []
        if self._events is None:
            events = [Event(data, "", b"")] if data else []
        elif self._course is not None:
            try:
                events = self._events.feed(data)
                rest = self._events.end() if end else None
                if rest is not None:
                    events.append(rest)
            except ValueError:
                self._read_all(events)
                events = []
                self._lost([])
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
                events = [whole]
        self._read_all(events)
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

    def _read_all(self, events: list[Event]) -> None:
        for place, event in enumerate(events):
            if self.over:
                return
            if self._events is None:
                self._queue.put(_HeldEvent(event, None, []))
                continue
            before = len(self._queue.events)
            try:
                self._read(event)
            except Exception as error:  # noqa: BLE001 - what cannot be judged is Unknown
                if not isinstance(error, (ValueError, RecursionError)):
                    self.error = error
                self._lost(events[place + (len(self._queue.events) > before) :])
                return

    def _read(self, event: Event) -> None:
        """Take one event apart. Raises ValueError when it is none of this API's."""
        if (known := self._finder.alike(event)) is not None:
            piece = self._grow(*known)
            self._go_on((piece,))
            self._queue.put(_HeldEvent(event, None, [piece], True))
            self._touch((piece,))
            return
        self._take_apart(event, self._parsed(event))

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
        pieces = [self._grow(text) for text in texts]
        if event.other or (event.name and not NAME.fullmatch(event.name)):
            said = event.name + "\n" + event.other.decode(errors="replace")
            pieces.append(self._grow(AnswerText((), {"": said}, "", False, True)))
        self._go_on(pieces)
        held = _HeldEvent(event, fields, pieces)
        held.twice = twice
        self._queue.put(held)
        if self._course is None:
            self._touch(pieces)
            return
        closed = self._shape.closes(fields) if fields is not None else [()] if event.data else []
        if () in closed:
            self._close([()])
        else:
            self._closing |= {
                beginning: None
                for beginning in closed
                if any(key[: len(beginning)] == beginning for key in self._channels)  # else there is nothing to end
            }
        self._touch(pieces)
        if () in closed:
            held.last = True
            self._ends = max(self._ends, 1)
        if len(pieces) == 1 and not (closed or twice) and fields is not None:
            self._finder.learn(event, pieces[0].text)

    def _go_on(self, pieces: Iterable[_Piece]) -> None:
        """These have come: what was to end has ended, unless it goes on with one of them. There are servers that say
        the end with every event, or before the last text."""
        if self._closing and (grow := [piece.grown.key for piece in pieces if not piece.text.whole]):
            ends = [one for one in self._closing if all(key[: len(one)] != one for key in grow)]
            self._closing.clear()
            self._close(ends)

    def _touch(self, pieces: Iterable[_Piece]) -> None:
        """These have come: their texts, and others that they stand behind, are to be looked at."""
        for piece in pieces:
            self._dirty[piece.grown] = None
        if len(self._channels) > 1:
            self._dirty.update(dict.fromkeys(self._channels.values()))
        for group in self._groups.values():
            if group.seam is not None:
                self._dirty[group.seam] = None

    def _grow(self, text: AnswerText, said: str | None = None) -> _Piece:
        """Add a text to its channel; `said`: what it is in an event that is like the one that `text` is of."""
        if said is None:
            said = text.holder[text.key]
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
        start = grown.end
        grown.add(said)
        if grown.end - grown.base > 2 * self._limit:
            raise ValueError("too much of a text waits to be judged")
        return _Piece(grown, text, start, self._join(grown, text, said) if text.joins or self._groups else None)

    def _join(self, grown: GrownText, text: AnswerText, said: str) -> list[Half] | None:
        """`said` may be shown as one with what was said before it. What of that was masked at a border, where it is the
        same again."""
        group: JoinedTexts | None = None
        if text.joins:
            key = text.joins[0]
            group = self._groups.get(key)
            if group is None:
                group = self._groups[key] = JoinedTexts(self._shape.repeats())
            if text.whole and (halves := group.said(text.joins)) is not None:
                return halves
            group.add(grown, said, text.joins, self._judge.window)
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
        return grown.ended or 0 < self._judge.window <= grown.after

    def _look(self, grown: GrownText) -> None:
        """Judge a text, where enough of it has come."""
        judge = self._judge
        if self.over or grown in self._todo:
            return
        end, final = grown.end, self._final(grown)
        if final:
            if grown.judged >= end and grown.read == end:
                return
        elif end < judge.window or (
            grown.read >= 0 and end - grown.read < (judge.stride if judge.slow else max(1, judge.window // _STEPS))
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
        window = self._judge.window
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
            if self._queue.events and (fields := self._queue.events[0].fields) is not None:
                self._course.unseen(fields)
            self._out.append(self._course.cut(verdict.message or ""))
        else:
            fields = next((held.fields for held in self._queue.events if held.fields is not None), {})
            self._out.append(orjson.dumps(self._shape.cut(fields, verdict.message or "")))
        self.over = True
        self._later = None
        self._todo.clear()
        self._queue = _Queue()
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
            self._queue.put(_HeldEvent(Event(rest, "", b""), None, []))

    def _let_go(self) -> None:
        """Release everything, with the masks that are known."""
        self._todo.clear()
        for held in self._queue.events:
            for piece in held.pieces:
                piece.grown.judged = max(piece.grown.judged, piece.end)
                if piece.grown.group is not None:
                    piece.grown.group.let_go()

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
        self._looked()
        if self._ends and not (self._settled or self._todo or self._later or self.over):
            self._guarded(self._settle)
        if not self.over:
            self._guarded(self._flush)
        out, self._out = b"".join(self._out), []
        self.begun = self.begun or bool(out)
        return out

    def _flush(self) -> None:
        """Move what may be released from the queue."""
        queue, holds = self._queue.events, self._judge.holds
        if self._judge.responds and not self.begun and not self._shows():
            return
        while queue:
            held = queue[0]
            if holds and not self._known(held):
                return
            self._queue.take()
            self._out.append(self._written(held))
            self.begun = True
            if held.fields is not None and self._course is not None:
                self._course.seen(held.fields)

    def _known(self, held: _HeldEvent) -> bool:
        if held.last and not self._settled:
            return False
        for piece in held.pieces:
            grown = piece.grown
            if piece.end > grown.judged:
                return False
            if grown.group is not None and not grown.group.settled(grown, piece.end, self._judge.window):
                return False
        return True

    def _shows(self) -> bool:
        """Whether a text of the answer may be released: until then another answer may take the place of all."""
        for held in self._queue.events:
            if not self._known(held):
                return False
            if held.pieces or self._events is None:
                return True
        return self._settled

    def _written(self, held: _HeldEvent) -> bytes:
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
                    if held.alike:
                        fields = orjson.loads(event.data)
                        (piece.text,) = self._finder.texts(fields)
                    text = piece.text
                    if text.channel:
                        text.holder[text.key] = shown
                    else:
                        other = b""
            grown.out = piece.end
            grown.forget(self._judge.window)
        if self._changed and (changed or _REPEATS.search(event.data)) and (fields is not None or held.alike):
            fields = orjson.loads(event.data) if fields is None else fields
            self._shape.forget(fields)
            changed = True
        if not changed:
            return event.raw
        if self._course is None:
            return orjson.dumps(fields)
        return self._framing.written(event, fields, other)
