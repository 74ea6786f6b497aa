"""The decisions with `on: answer`: what a policy does about what a model answers, piece by piece as it comes.

An answer is judged text by text. Each text is evaluated as a small request whose only message it is, by the same
signals as requests (`in: answer`). What was found once holds for the rest of the answer; what was not found is open
until the answer has ended, so that a rule with `not` is settled only then. Rules are Kleene's, as everywhere: a
decision acts when its rule is true or, with `on_unknown: match`, as soon as it can no longer be false.

What begins in the last `window` characters of a text that is not yet complete is left to the next judgement: it is held
back and comes again, with more behind it. So it does not matter in which pieces an answer comes.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Literal, NamedTuple

from decisions.rule import (
    PENDING,
    All,
    AnyOf,
    AtLeastOf,
    Leaf,
    NamedRule,
    Not,
    Rule,
    Test,
    leaves,
    parts,
    take,
    text,
    told,
    unread,
)
from signals.background import rest
from signals.facts import Facts
from signals.gather import fetch
from signals.reading import FALSE, MASKED, TRUE, Reading, Span, Unavailable, unknown
from signals.request import ANSWER, Message, Request
from signals.signal import Signal

Act = Literal["pass", "mask", "cut", "respond"]
Does = Literal["mask", "cut", "respond", "flag"]

OBSERVED: Final = "observe"
"""The action of a decision with `observe: true`, as `Judge.acted` has it."""
LONG: Final = 64 * 1024
"""Characters from which on a text of a whole answer is read in a thread: other requests need not wait for it then."""
_MARK: Final = 32
"""Characters by which the place is found again to which a value was masked that is longer than what is in sight."""
_LINE: Final = 17
"""Characters of a line that is too short yet to be seen as one of a key."""
_GOES_ON: Final = re.compile(
    r"[\w+/=.~-]*(?:\s+[A-Za-z0-9+/=]{16,})*"
    r"(?:\s+[A-Za-z0-9+/=]{1,15}(?=\s*-----END))?(?:\s+-----END [A-Z0-9 ]{1,60}-----)?"
)
"""How a long value goes on: a token, or the lines of a private key."""
_Found = dict[str, tuple[bool | None, list[Span]]]
"""What a text has of each leaf, by key: whether, and where."""
_READ: Final = Facts(Request("", b"", {}, None, ()))


@dataclass(frozen=True, slots=True)
class Watching:
    """One decision with `on: answer`, in the terms of the engine.

    `window` and `stride` are characters. One that `observe`s is told when it would act, and does nothing.
    """

    name: str
    when: Rule
    does: Does
    on_unknown: Literal["skip", "match"] = "skip"
    status: int | None = None
    message: str | None = None
    window: int = 256
    stride: int = 256
    observe: bool = False

    @property
    def acts(self) -> bool:
        """Whether it can change what the client gets."""
        return self.does != "flag" and not self.observe


class Verdict(NamedTuple):
    """What becomes of a text.

    `clause` is the decision that acts. `spans` are what is to be masked, disjoint and in order; of a cut or respond,
    the first place of what led to it, as far as that is known: what stands before it may be shown, with the `masks`.
    """

    act: Act
    clause: str | None = None
    spans: tuple[Span, ...] = ()
    status: int | None = None
    message: str | None = None
    masks: tuple[Span, ...] = ()


PASS: Final = Verdict("pass")


def answering(signals: Mapping[str, Signal]) -> frozenset[str]:
    """The names of those signals that look at answers, themselves or by what they combine."""
    found = {name for name, signal in signals.items() if ANSWER in signal.reads}
    before = -1
    while found and before != len(found):
        before = len(found)
        found |= {name for name, signal in signals.items() if not found.isdisjoint(signal.inputs)}
    return frozenset(found)


class _Seen(NamedTuple):
    """A leaf over a signal that looks at answers. `key` is the name of its value, which holds for the whole answer."""

    key: str
    leaf: Leaf
    signal: Signal
    placed: bool

    def spans(self, facts: Facts) -> list[Span]:
        """Where the text has what the leaf asks for. May raise `Unavailable`."""
        label = self.leaf.label
        return [span for span in self.signal.spans(facts) if label is None or span.label == label]


class _Clause:
    """A decision made ready to run over the values of its leaves."""

    __slots__ = ("asked", "closes", "placed", "rules", "seen", "test", "watching")

    def __init__(self, watching: Watching, signals: Mapping[str, Signal], answers: frozenset[str]) -> None:
        self.watching = watching
        self.closes = watching.on_unknown == "match"
        self.test: Test = told(_valued(watching.when, {}))
        self.rules = tuple(part.name for part in parts(watching.when) if isinstance(part, NamedRule))
        found = dict.fromkeys(leaves(watching.when))
        self.seen = tuple(
            _Seen(text(leaf), leaf, signal, signal.params.placed())
            for leaf in found
            if leaf.signal in answers and (signal := signals[leaf.signal]) is not None
        )
        self.asked = tuple((text(leaf), leaf) for leaf in found if leaf.signal not in answers)
        self.placed = all(seen.placed for seen in self.seen)

    def begin(self, found: Mapping[str, list[Span] | None] | None) -> tuple[Span, ...]:
        """Where what the decision has found in a text begins; () where that is not known of all of it."""
        places = [found.get(seen.key, ()) for seen in self.seen] if found and self.placed else []
        if None in places:
            return ()
        return tuple(sorted(span for here in places if here for span in here)[:1])


def _valued(rule: Rule, named: dict[str, Rule]) -> Rule:
    """`rule` over the values of its leaves, each of which has the name `text(leaf)`; `named` are the rules done."""
    match rule:
        case Leaf():
            return Leaf(text(rule))
        case NamedRule(name=name, of=child):
            if name not in named:
                named[name] = NamedRule(name, _valued(child, named))
            return named[name]
        case Not(of=child):
            return Not(_valued(child, named))
    children = tuple(_valued(child, named) for child in rule.of)
    match rule:
        case All():
            return All(children)
        case AnyOf():
            return AnyOf(children)
        case AtLeastOf(count=count):
            return AtLeastOf(count, children)


class _Begun(NamedTuple):
    """What a judge begins with who needs nothing of the request; see `Judge`."""

    live: list[_Clause]
    seen: dict[str, _Seen]
    needed: dict[str, Signal]
    reads: frozenset[str]
    slow: bool
    holds: bool
    window: int
    stride: int
    changed: bool


class Watched:
    """The decisions of a policy that look at answers, made ready to run. `begun` is what the judges begin with whose
    decisions ask nothing of a request, since it is always the same; None until the first of them."""

    def __init__(self, watching: Sequence[Watching], signals: Mapping[str, Signal]) -> None:
        self.signals = signals
        self.watching = tuple(watching)
        self.answers = answers = answering(signals)
        self.clauses = tuple(_Clause(one, signals, answers) for one in watching)
        self.asked = tuple(dict.fromkeys(leaf.signal for c in self.clauses for _, leaf in c.asked))
        inputs = (name for c in self.clauses for one in c.seen for name in _below(one.signal.name, signals))
        self.mixed = tuple(dict.fromkeys(name for name in inputs if name not in answers))
        self.rules = frozenset(name for c in self.clauses for name in c.rules)
        self.begun: _Begun | None = None

    def judge(self, readings: Mapping[str, Reading], request: Request) -> Judge | None:
        """The judge of the answer to `request`, whose own signals have said `readings`; None where, by what the request
        says, no decision can act."""
        judge = Judge(self, readings, request)
        return judge if judge.live else None


def _below(name: str, signals: Mapping[str, Signal]) -> Iterator[str]:
    """The signal `name` and what it combines."""
    yield name
    for source in signals[name].inputs:
        yield from _below(source, signals)


class Judge:
    """Judges one answer. Not to be used for two answers.

    `window`: so many characters of each channel are held back while more may come. `slow`: some signal is read only
    every `stride` characters, since it takes long. `holds`: some decision can change the answer; else what comes may be
    released at once. `acted` are the decisions that acted, with what they did, in this order, each pair once. `reads`
    are the signals that it looks at, those of the request too. `apart`, which may be set, runs something in a thread:
    long texts are read there then.
    """

    def __init__(self, watched: Watched, readings: Mapping[str, Reading], request: Request) -> None:
        self.acted: list[tuple[str, str]] = []
        self.apart: Callable[[Callable[[], Any]], Awaitable[Any]] | None = None
        self._watched = watched
        self._request = request.shed()
        self._asked = Facts(request)
        self._asked.shadow = True  # it was decided already: nothing of it is to be written to the store again
        self._told: dict[str, Reading] = {}
        # Values that are longer than what is in sight, by channel and leaf: their last characters, and their label.
        self._long: dict[tuple[Hashable, str], tuple[str, str]] = {}
        self._values = Facts(_READ.request)
        # No request has readings of answers, but a policy's test may say what they are.
        self._stubs = {name: readings[name] for name in watched.answers if name in readings}
        # What a named rule says of the request holds; what it says of the answer, as long as no value changes.
        self._rules = {name: readings[name] for name in watched.rules if name in readings}
        names = (*watched.asked, *watched.mixed)
        for name in names:
            known = readings.get(name)
            if known is not None:
                self._asked.readings[name] = known
        signals = watched.signals
        self._missing = [name for name in names if take(signals[name], signals, self._asked) is None]
        self._changed = True
        self._seen: dict[str, _Seen] = {}  # the leaves whose values are open, and the signals that they need
        self._needed: dict[str, Signal] = {}
        begun = None if names or self._stubs or self._rules else watched.begun
        if begun is not None:
            self.live, self._seen, self._needed, self.reads, self.slow, self.holds, self.window, self.stride = begun[:8]
            self._changed = begun.changed
            self._asked = Facts(self._request)  # as in `_settle_asked`
            return
        self.live = list(watched.clauses)
        self._settle_asked()
        self.reads = frozenset((*self._needed, *names))
        self.slow = bool(self._missing) or any(signal.slow or signal.whole for signal in self._needed.values())
        self.holds = any(clause.watching.acts for clause in self.live)
        self.window = max((clause.watching.window for clause in self.live), default=0)
        self.stride = min((clause.watching.stride for clause in self.live), default=0)
        if not (names or self._stubs or self._rules):
            acts = any(self._acts(clause) for clause in self.live)  # before anything was read
            watched.begun = _Begun(
                self.live, self._seen, self._needed, self.reads, self.slow, self.holds, self.window, self.stride, acts
            )

    @property
    def responds(self) -> bool:
        """Whether a decision may still take the place of the whole answer, while nothing of it was sent."""
        return any(clause.watching.does == "respond" and clause.watching.acts for clause in self.live)

    def judge(self, channel: Hashable, text: str, final: bool, lead: int = 0) -> Verdict | None:
        """What becomes of `text`: what has come of this channel, without what lies more than `lead` + `window`
        characters before what the last judgement could not settle (the last `window` characters of its text).

        `final`: nothing follows. `lead`: how many characters at the beginning only show what stands before the others.
        Something did stand before them, so nothing that begins among them is believed: half of a word is another word.
        None: something must be read first that takes long; then call `read` instead.
        """
        if self.apart is not None and len(text) > LONG:
            return None
        facts = self._facts(text, float("inf"))
        if self._missing:
            return None
        signals = self._watched.signals
        for signal in self._needed.values():
            if take(signal, signals, facts) is None:
                return None
        return self._judged(_found(self._seen, facts, lead), channel, text, final)

    def clear(self, channel: Hashable, text: str) -> bool:
        """Whether nothing that anybody looks for is in `text`, nor was anything begun: then `judge` passes every part
        of it, and need not be asked. False too where that cannot be told at once."""
        if self._changed or self._missing or self.slow or (self.apart is not None and len(text) > LONG):
            return False
        facts, signals = self._facts(text, float("inf")), self._watched.signals
        for signal in self._needed.values():
            if not signal.silent(facts):
                return False
        for key, seen in self._seen.items():
            reading = take(seen.signal, signals, facts)
            if reading is None or seen.leaf.judge(reading) is not False or (channel, key) in self._long:
                return False
        return True

    async def read(self, channel: Hashable, text: str, final: bool, deadline: float, lead: int = 0) -> Verdict:
        """As `judge`, after whatever takes long was read, or has not come by `deadline` (`time.monotonic()`).

        A text that is `LONG` has as much time for each such part of it. What is only computed, here or in a thread, is
        waited for: an answer must not go on unjudged because others wait for the thread, too.
        """
        apart, parts = self.apart, 1 + len(text) // LONG
        if parts > 1:
            now = time.monotonic()
            deadline = now + parts * (deadline - now)
        if self._missing:
            self._asked.deadline = deadline
            await self._fetch(self._missing, self._asked)
            for name in self._missing:
                take(self._watched.signals[name], self._watched.signals, self._asked)
            self._missing = []
            self._settle_asked()
        facts = self._facts(text, deadline)
        needed = list(self._needed)
        await self._fetch(needed, facts)
        reads = partial(_read, needed, self._watched.signals, self._seen, facts, lead)
        found = reads() if apart is None or parts == 1 else await apart(reads)
        return self._judged(found, channel, text, final)

    def carry(self, channel: Hashable, other: Hashable) -> None:
        """The text of `other` begins with the end of that of `channel`: what goes on there goes on here."""
        for before, key in list(self._long):
            if before == channel:
                self._long[other, key] = self._long[before, key]

    def end(self) -> Verdict:
        """The whole answer was judged: what was never found is not there. Should more come all the same, it is judged
        as before."""
        before, live, seen_before, told = dict(self._values.readings), self.live, self._seen, len(self.acted)
        values = self._values.readings
        for clause in self.live:
            for key, _ in clause.asked:
                values.setdefault(key, unknown("not_read"))
            for seen in clause.seen:
                values.setdefault(seen.key, FALSE)
        self._forget()
        verdict = self._decided(None)
        values.clear()
        values.update(before)
        self._values.open = None
        if self._seen is not seen_before or len(self.acted) > told:
            self.live = live
            self._thin()
        return verdict

    def unreadable(self) -> Verdict:
        """The answer, or the rest of it, cannot be read: what was not found so far is Unknown."""
        values = self._values.readings
        for clause in self.live:
            for key, _ in clause.asked:
                values.setdefault(key, unknown("not_read"))
            for seen in clause.seen:
                if values.get(seen.key) is not TRUE:
                    values[seen.key] = unknown("unreadable")
        self._forget()
        self._changed = True
        return self._decided(None, unreadable=True)

    async def _fetch(self, names: Iterable[str], facts: Facts) -> None:
        signals = self._watched.signals
        while missing := {below for name in names for below in unread(name, signals, facts)}:
            await fetch([signals[name] for name in missing], facts)
            for name in missing:
                take(signals[name], signals, facts)

    def _facts(self, text: str, deadline: float) -> Facts:
        asked = self._request
        message = Message(ANSWER, text)
        facts = Facts(
            Request(asked.api, b"", {}, asked.model, (message,), asked.headers, asked.attributes, asked.received),
            deadline,
        )
        facts.shadow = True
        if self._told:
            facts.readings.update(self._told)
        return facts

    def _forget(self) -> None:
        """A value has changed, and with it perhaps what the named rules say."""
        for name in self._watched.rules:
            self._values.readings.pop(name, None)
        self._values.readings.update(self._rules)
        self._values.open = None

    def _settle_asked(self) -> None:
        """Take over what the request's own signals have said, and leave out the decisions that it rules out."""
        told, values = self._asked.readings, self._values.readings
        if not self._missing:
            self._asked = Facts(self._request)  # an answer may take long, and a request be large
        self._told = self._stubs | {name: told[name] for name in self._watched.mixed if name in told}
        for clause in self.live:
            for key, leaf in clause.asked:
                if leaf.signal in told:
                    value = leaf.judge(told[leaf.signal])
                    values[key] = unknown("asked") if value is None else TRUE if value else FALSE
        self._forget()
        self._thin()

    def _thin(self) -> None:
        """Leave out the decisions that are settled; what only they needed is not read any more."""
        told = {name for name, action in self.acted if action in ("flag", OBSERVED)}
        self.live = [
            clause
            for clause in self.live
            if clause.watching.name not in told and clause.test.run(self._values) is not False
        ]
        self._seen = {}
        for clause in self.live:
            masks = clause.watching.does == "mask" and clause.watching.acts
            for seen in clause.seen:
                if (masks and seen.placed) or self._values.readings.get(seen.key) is not TRUE:
                    self._seen[seen.key] = seen
        self._needed = {seen.leaf.signal: seen.signal for seen in self._seen.values()}

    def _judged(self, read: _Found, channel: Hashable, text: str, final: bool) -> Verdict:
        if not text.strip():
            return PASS
        horizon = len(text) + 1 if final else len(text) - self.window
        values = self._values.readings
        found: dict[str, list[Span] | None] = {}
        for key, seen in self._seen.items():
            value, spans = read[key]
            if spans or (channel, key) in self._long:
                spans = self._followed((channel, key), spans, text, horizon)
            if spans:
                spans = [span for span in spans if span.start < horizon]
                value = bool(spans)
                found[key] = spans
            elif value is None and seen.placed:
                found[key] = None
            if value is not False and values.get(key) is not TRUE:
                self._changed = True
                values[key] = TRUE if value else unknown("answer")
        if self._changed:
            self._forget()
        return self._decided(found, Span(0, len(text), MASKED)) if found or self._changed else PASS

    def _followed(self, where: tuple[Hashable, str], spans: list[Span], text: str, horizon: int) -> list[Span]:
        """The spans, and the rest of one that began before what is in sight; a note of such a one is kept for the next
        text.

        What begins in the `window` characters before what may be released now is in sight then, too.
        """
        least = min(horizon, len(text) - _LINE)  # it may go on behind the end, in a text that is shown as one with this
        before = self._long.pop(where, None)
        if before is not None:
            mark, label = before
            at = text.find(mark)
            if at >= 0:
                rest = _GOES_ON.match(text, at + len(mark))
                end = at + len(mark) if rest is None else rest.end()
                spans = [*spans, Span(at, end, label)]
                if end >= least:
                    self._long[where] = (text[max(0, end - _MARK) : end], label)
        for span in spans:
            if span.start < horizon - self.window and span.end >= least:
                self._long[where] = (text[max(0, span.end - _MARK) : span.end], span.label)
        return spans

    def _decided(
        self, found: Mapping[str, list[Span] | None] | None, whole: Span | None = None, unreadable: bool = False
    ) -> Verdict:
        """What the decisions do, in order.

        `found` is where this text has what the leaves ask for, by key, or None where that is Unknown; then `whole` is
        masked. Without `found` there is no text any more: what was to be masked was, or, `unreadable`, cannot be.
        """
        masked: list[Span] = []
        first: str | None = None
        ends: Verdict | None = None
        for clause in self.live:
            watching = clause.watching
            if not self._acts(clause):
                continue
            if watching.acts and watching.does != "mask":
                begin = clause.begin(found)
                if ends is None:
                    act: Act = "respond" if watching.does == "respond" else "cut"
                    self._note(watching.name, act)
                    ends = Verdict(act, watching.name, begin, watching.status, watching.message)
                else:  # what the second looks for must not be shown because the first begins behind it
                    ends = ends._replace(spans=min(ends.spans, begin))
            elif ends is not None and not (ends.spans and watching.acts and found is not None):
                continue
            elif not watching.acts:
                self._note(watching.name, OBSERVED if watching.observe else watching.does)
            elif found is None:
                if unreadable and clause.closes:
                    self._note(watching.name, "cut")
                    return Verdict("cut", watching.name)
            else:
                spans: list[Span] = []
                for seen in clause.seen:
                    here = found.get(seen.key, ())
                    if here is not None:
                        spans += here
                    elif clause.closes and whole is not None:
                        spans.append(whole)
                if ends is not None:
                    spans = [span for span in spans if span.start < ends.spans[0].start]
                if spans:
                    self._note(watching.name, "mask")
                    masked += spans
                    first = first or watching.name
        if ends is not None:
            return ends._replace(masks=_disjoint(masked)) if masked else ends
        if self._changed:
            self._changed = False
            self._thin()
        return Verdict("mask", first, _disjoint(masked)) if masked else PASS

    def _acts(self, clause: _Clause) -> bool:
        value = clause.test.run(self._values)
        if value is True:
            return True
        if not clause.closes or value is False:
            return False
        return value is not PENDING or not clause.test.waiting(self._values, False)

    def _note(self, name: str, action: str) -> None:
        if (name, action) not in self.acted:
            self.acted.append((name, action))


def _read(
    names: Iterable[str], signals: Mapping[str, Signal], seen: Mapping[str, _Seen], facts: Facts, lead: int
) -> _Found:
    """Take the readings of signals, whose slow inputs are there, and look for the leaves in them."""
    for name in names:
        take(signals[name], signals, facts)
        rest()
    return _found(seen, facts, lead)


def _found(seen: Mapping[str, _Seen], facts: Facts, lead: int) -> _Found:
    size = len(facts.request.messages[0].text)
    return {key: _value(one, facts, size, lead) for key, one in seen.items()}


def _value(seen: _Seen, facts: Facts, size: int, lead: int) -> tuple[bool | None, list[Span]]:
    """Whether a text of `size` characters has what a leaf asks for behind the first `lead` of them, and where, if its
    signal can say that."""
    leaf = seen.leaf
    reading = facts.readings[leaf.signal]
    if not seen.placed:
        return leaf.judge(reading), []
    # The label of a reading is that of what was found first; here each place has its own.
    value = (leaf if leaf.label is None else replace(leaf, label=None)).judge(reading)
    if not value:
        return value, []
    try:
        spans = seen.spans(facts)
    except Unavailable:
        return None, []
    if spans and lead:
        spans = [span for span in spans if span.start >= lead]
        return bool(spans), spans
    if spans or leaf.label is not None:
        return bool(spans), spans
    return True, [Span(0, size, MASKED)]  # it is there, and nobody knows where


def _disjoint(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Spans in order; those that overlap are one, with the label of the first."""
    joined: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.start, -span.end)):
        if joined and span.start < joined[-1].end:
            last = joined[-1]
            joined[-1] = last._replace(end=max(last.end, span.end))
        else:
            joined.append(span)
    return tuple(joined)
