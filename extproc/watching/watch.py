"""One answer on its way to the client: held back until it is judged, masked or cut where a decision says so.

Sans-IO. Events are kept in one queue, in their order. The texts of successive events that belong together are one
channel, which is judged as it grows; an event goes on once every text in it lies before the part of its channel that
is still to be judged again. An event in which nothing was found goes on byte for byte as it came.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

import orjson

from decisions.watching import Verdict
from extproc.watching.jsontext import decode
from extproc.watching.shape import AnswerShape, AnswerText, Channel, says_twice
from extproc.watching.sse import Event, Events, encode

LIMIT: Final = 4 * 2**20
"""Bytes of an answer that are held at most, and of a whole answer that can be judged."""
UNREADABLE: Final = 502
"""The status of what takes the place of an answer that nobody could read, where nothing of it was sent."""
_CHANNELS: Final = 256
"""Texts that grow at the same time in one answer; a real one has a few."""
_LEAD: Final = 64
"""Characters that are kept before those that are judged: they show where a word begins."""
_STEPS: Final = 8
"""A text is judged again once an eighth of the window has come, since each judgement reads the whole window."""
_DONE: Final = b"[DONE]"
_NAME: Final = re.compile("[a-z_.]{0,64}")
"""Names of events; they cannot tell a reader anything."""
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

    @property
    def responds(self) -> bool:
        """Whether some decision takes the place of the whole answer while nothing of it was sent."""
        ...

    def judge(self, channel: Any, text: str, final: bool, lead: int = 0) -> Verdict | None: ...

    async def read(self, channel: Any, text: str, final: bool, deadline: float, lead: int = 0) -> Verdict: ...

    def end(self) -> Verdict: ...

    def unreadable(self) -> Verdict: ...


class _Grown:
    """The text of one channel. Offsets are those of its raw characters from the channel's beginning."""

    __slots__ = (
        "_more",
        "_raw",
        "after",
        "base",
        "code",
        "end",
        "ended",
        "judged",
        "keep",
        "key",
        "lead",
        "masks",
        "out",
        "read",
    )

    def __init__(self, key: Channel, code: bool, ended: bool) -> None:
        self.key = key
        self.code = code
        self.ended = ended  # nothing follows
        self.base = 0  # where `raw` begins
        self.end = 0
        self._raw = ""
        self._more: list[str] = []  # what has come since; joined when it is needed, since a judge may take long
        self.lead = ""  # of JSON text before `raw` (extproc.watching.jsontext)
        self.out = 0  # what was released
        self.read = -1  # how long the text was when it was judged last; -1: not yet
        self.judged = 0  # what begins before is known
        self.keep = 0  # from where on it is looked at again
        self.after = 0  # characters of the same item that have come behind it
        self.masks: list[list[Any]] = []  # start, end, what is shown instead

    @property
    def raw(self) -> str:
        """What is kept of what was released, and what is held."""
        if self._more:
            self._raw += "".join(self._more)
            self._more.clear()
        return self._raw

    def add(self, text: str) -> None:
        self._more.append(text)
        self.end += len(text)

    def shown(self, start: int, end: int) -> str:
        """What stands there once it is masked. What takes the place of a span stands where the span begins."""
        raw, base = self.raw, self.base
        parts: list[str] = []
        at = start
        for place in range(self._from(start), len(self.masks)):
            first, last, new = self.masks[place]
            if first >= end:
                break
            if first >= at:
                parts += (raw[at - base : first - base], new)
            at = min(last, end)
        parts.append(raw[at - base : end - base])
        return "".join(parts)

    def mask(self, start: int, end: int, new: str) -> None:
        """Add a place to be masked; one that was known already, and has grown, stays one."""
        masks, at = self.masks, self._from(start)
        if at < len(masks) and masks[at][0] < end:
            mask = masks[at]
            if mask[0] > self.out:
                mask[0] = max(min(start, mask[0]), self.out)
            mask[1] = max(mask[1], end)
            while at + 1 < len(masks) and masks[at + 1][0] < mask[1]:
                mask[1] = max(mask[1], masks.pop(at + 1)[1])
        elif end > self.out:
            masks.insert(at, [max(start, self.out), end, new])

    def _from(self, start: int) -> int:
        """Which of the masks is the first that ends behind `start`. They are disjoint and in their order."""
        at = bisect_left(self.masks, [start])
        return at - 1 if at and self.masks[at - 1][1] > start else at

    def forget(self, window: int) -> None:
        """Drop what was released and is not looked at again."""
        ahead = min(self.out, self.keep) - self.base
        if ahead <= window:  # not for every event
            return
        if self.code:
            self.lead = decode(self.raw, self.lead).lead(ahead)
        self._raw = self.raw[ahead:]
        self.base += ahead
        self.masks = [mask for mask in self.masks if mask[1] > self.base]


class _Piece:
    """One text of a held event: the characters from `start` to `end` of `grown`."""

    __slots__ = ("end", "grown", "start", "text")

    def __init__(self, grown: _Grown, text: AnswerText, start: int, end: int) -> None:
        self.grown = grown
        self.text = text
        self.start = start
        self.end = end


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
        self._events: Events | None = Events(limit)  # None: nothing can be read any more, and it goes on all the same
        self._whole = bytearray()
        self._queue = _Queue()
        self._out: list[bytes] = []  # what is released with the end of the call
        self._channels: dict[Channel, _Grown] = {}
        self._dirty: dict[_Grown, None] = {}  # texts that have grown since they were looked at
        self._todo: OrderedDict[_Grown, None] = OrderedDict()  # texts whose signals take long to read
        self._changed = False  # a text of the answer was masked
        self._ends = 0  # 1: the last event of the answer has come, 2: nothing follows
        self._settled = False  # the judge was told
        self._closing: dict[Channel, None] = {}  # what ends, if it does not go on with the next text

    @property
    def waiting(self) -> bool:
        """Whether something has to be read that takes long before more can be released: call `judged`."""
        return bool(self._todo) and not self.over

    @property
    def done(self) -> bool:
        """Whether everything was released that ever will be."""
        return self.over or (self._ends == 2 and not (self._queue.events or self._todo))

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
        todo = self._todo
        while todo and not self.over:
            grown = next(iter(todo))
            base, raw, lead, final = grown.base, grown.raw, grown.lead, self._final(grown)
            text = decode(raw, lead).text if grown.code else raw
            try:
                verdict = await self._judge.read(grown.key, text, final, deadline, _LEAD if base else 0)
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
                events = [Event(raw, "", raw)]
        self._read_all(events)
        if end and not self.over:
            self._guarded(self._end)
        if self._queue.size > self._limit and not self.over:
            if self._events is None:  # whoever judges the rest does not get on
                self._let_go()
            else:
                self._lost([])

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
        pieces: list[_Piece] = []
        fields: dict[str, Any] | None = None
        twice = False
        if event.data and event.data != _DONE:
            fields = orjson.loads(event.data)
            if type(fields) is not dict:
                raise ValueError("an event of the answer is no object")
            twice = says_twice(event.data, fields)
            for text in self._finder.texts(fields):
                pieces.append(self._grow(text))
        if event.other or (event.name and not _NAME.fullmatch(event.name)):
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

    def _grow(self, text: AnswerText, said: str | None = None) -> _Piece:
        """Add a text to its channel; `said`: what it is in an event that is like the one that `text` is of."""
        if said is None:
            said = text.holder[text.key]
        if text.whole:
            grown = _Grown(text.channel, text.code, True)
        else:
            found = self._channels.get(text.channel)
            if found is None:
                if len(self._channels) >= _CHANNELS:
                    raise ValueError("too many texts at the same time")
                found = self._channels[text.channel] = _Grown(text.channel, text.code, False)
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
        return _Piece(grown, text, start, grown.end)

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

    def _end(self) -> None:
        self._close([()])

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - what cannot be judged is Unknown
            self.error = error
            self._lost([])

    # Judging

    def _final(self, grown: _Grown) -> bool:
        """Whether the text is complete, or as much of another one has come behind it as is held back: then it is the
        other's turn."""
        return grown.ended or 0 < self._judge.window <= grown.after

    def _look(self, grown: _Grown) -> None:
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
        text = decode(grown.raw, grown.lead).text if grown.code else grown.raw
        verdict = judge.judge(grown.key, text, final, _LEAD if grown.base else 0)
        if verdict is None:
            self._todo[grown] = None
        else:
            self._apply(grown, verdict, (grown.base, grown.raw, grown.lead, final))

    def _apply(self, grown: _Grown, verdict: Verdict, read: tuple[int, str, str, bool]) -> None:
        """Do what was said of a text; `read` is what was read of it: from where, the characters, the lead, whether all
        of it."""
        if verdict.act in ("cut", "respond"):
            self._stop(verdict)
            return
        base, raw, lead, final = read
        window = self._judge.window
        known = base + len(raw)
        grown.read = known
        back = 2 * window + _LEAD  # what was judged just now, and what is looked back at from there
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
        self._todo.clear()
        self._queue = _Queue()
        self._channels.clear()

    def _lost(self, events: list[Event]) -> None:
        """The rest cannot be read, from `events` on."""
        verdict = self._judge.unreadable()
        if verdict.act in ("cut", "respond"):
            self._stop(verdict, True)
            return
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

    # What goes out

    def _looked(self) -> None:
        """Look at the texts that have grown: once, however many events have come together."""
        dirty, self._dirty = self._dirty, {}
        try:
            for grown in dirty:
                self._look(grown)
        except Exception as error:  # noqa: BLE001 - what cannot be judged is Unknown
            self.error = error
            self._lost([])
            if not self.over:
                self._let_go()

    def _released(self) -> bytes:
        self._looked()
        if self._ends and not (self._settled or self._todo or self.over):
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
        return all(piece.end <= piece.grown.judged for piece in held.pieces)

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
        name = event.name if _NAME.fullmatch(event.name) else ""
        lead = other + b"\n" if other else b""
        if fields is not None:
            return lead + encode(name, fields)
        return lead + (encode(name, event.data) if event.data else b"")
