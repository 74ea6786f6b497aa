"""In whichever pieces an answer comes, the same of it is released: in bytes, in events, with quick and slow signals."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from config.build import build
from config.load import parse
from decisions.watching import Judge, Verdict
from extproc.watching.shapes import SHAPES
from extproc.watching.sse import encode
from extproc.watching.watch import Watch
from signals.request import Message, Request
from tests.extproc.watching.streams import call, chunk
from tests.extproc.watching.test_joined import messages, responses
from tests.extproc.watching.test_watch import CARD, IBAN, KEY, POLICY, WORDS, cut_up, encoded, ran, shown
from tests.volume import few_and_many
from upstream.events import DONE

SIGNALS = POLICY.replace(
    "decisions:",
    "  long: {regex: {in: answer, any: ['BEGIN[a-z ]+END', '[0-9]{20,}']}}\n"
    "  listed: {structure: {in: answer, count: list_items, at_least: 2}}\n"
    "  large: {structure: {in: answer, count: bytes, at_least: 150}}\n"
    "decisions:",
)
HOW = "on: answer, window: 32, stride: 24"
RULES = {
    "mask": [f"{{name: m, {HOW}, when: {{any: [leak, words, key]}}, mask: {{}}}}"],
    "cut": [f"{{name: c, {HOW}, when: {{any: [leak, words, key]}}, cut: {{message: Stop.}}}}"],
    "respond": [f"{{name: r, {HOW}, when: {{any: [leak, words, key]}}, respond: {{status: 451, message: No.}}}}"],
    "long": [f"{{name: m, {HOW}, when: {{any: [long, leak]}}, mask: {{}}}}"],
    "cut long": [f"{{name: m, {HOW}, when: {{any: [long, leak]}}, cut: {{}}}}"],
    "both": [f"{{name: m, {HOW}, when: {{all: [leak, words]}}, mask: {{}}}}"],
    "cut both": [f"{{name: m, {HOW}, when: {{all: [key, words]}}, cut: {{}}}}"],
    "mask, then cut": [
        f"{{name: m, {HOW}, when: {{any: [leak, key]}}, mask: {{}}}}",
        f"{{name: c, {HOW}, when: words, cut: {{}}}}",
    ],
    "cut, then mask": [
        f"{{name: c, {HOW}, when: words, cut: {{}}}}",
        f"{{name: m, {HOW}, when: {{any: [leak, key]}}, mask: {{}}}}",
    ],
    "two that end": [
        f"{{name: c, {HOW}, when: key, cut: {{}}}}",
        f"{{name: r, {HOW}, when: words, respond: {{status: 451}}}}",
    ],
    "no place": [f"{{name: m, {HOW}, when: {{any: [listed, large]}}, cut: {{}}}}"],
    "sum": [
        f"{{name: m, {HOW}, when: {{all: [any, {{any: [leak, key]}}]}}, mask: {{}}}}",
        f"{{name: c, {HOW}, when: listed, cut: {{}}}}",
    ],
    "not": [f"{{name: m, {HOW}, when: {{all: [{{not: words}}, leak]}}, cut: {{}}}}"],
}  # fmt: skip
ENGINES = {name: build(parse(SIGNALS + "".join(f"  - {one}\n" for one in rules))) for name, rules in RULES.items()}


class Late:
    """A judge that is asked to read everything."""

    slow, apart = True, None

    def __init__(self, real: Judge) -> None:
        self.real = real
        self.window, self.stride, self.holds = real.window, real.stride, real.holds

    @property
    def responds(self) -> bool:
        return self.real.responds

    def judge(self, channel: Hashable, text: str, final: bool, lead: int = 0) -> Verdict | None:
        return None

    async def read(self, channel: Hashable, text: str, final: bool, deadline: float, lead: int = 0) -> Verdict:
        await asyncio.sleep(0)
        found = self.real.judge(channel, text, final, lead)
        assert found is not None
        return found

    def clear(self, channel: Hashable, text: str) -> bool:
        return False

    def carry(self, channel: Hashable, other: Hashable) -> None:
        self.real.carry(channel, other)

    def end(self) -> Verdict:
        return self.real.end()

    def unreadable(self) -> Verdict:
        return self.real.unreadable()


def released(rule: str, api: str, pieces: Sequence[bytes], late: bool) -> tuple[dict[Hashable, str], Any, Any, bytes]:
    """The texts that a client gets, what takes the answer's place, what acted, and the bytes."""
    engine = ENGINES[rule]
    request = Request(api, b"{}", {}, "auto", (Message("user", "hello"),), {})
    judge = engine.judge(engine.settle(request), request)  # type: ignore[arg-type]
    assert judge is not None
    one = Watch(SHAPES[api], Late(judge) if late else judge, True)
    out = asyncio.run(ran(one, pieces))
    return shown(out), one.responds, judge.acted, b"" if one.over else out


def bytes_cut(stream: bytes, sizes: Sequence[int]) -> Iterator[bytes]:
    at = number = 0
    while at < len(stream):
        size = sizes[number % len(sizes)]
        yield stream[at : at + size]
        at, number = at + size, number + 1


PLACES = ("content", "other", "thoughts", "tool")
Said = tuple[str, str]


def events_of(said: Sequence[Said], sizes: Sequence[int]) -> list[dict[str, Any]]:
    """A stream of chat in which these texts come one after another, in pieces of such sizes."""
    events = []
    for place, text in said:
        for piece in cut_up(text, sizes):
            if place == "tool":
                events.append(chunk(call(0, arguments=piece)))
            elif place == "other":
                events.append(chunk({"content": piece}, 1))
            elif place == "twice":
                events.append(chunk({"reasoning_content": piece, "reasoning": piece}))
            else:
                events.append(chunk({"content" if place == "content" else "reasoning_content": piece}))
    return [*events, chunk(finish="stop"), chunk(at=1, finish="stop")]


PARTS = st.sampled_from(
    (
        CARD, IBAN, KEY, WORDS, CARD[:9], CARD[9:], WORDS[:10], WORDS[10:], KEY[:5], KEY[5:], "word ", "so it goes, ",
        "x" * 40, "4 8 15 16 23 42 ", "1234567890" * 3, "BEGIN so it goes and goes on and on and on END",
        "\n- one\n- two\n", "\n```py\nx = 1\n```\n", '"', "\\", "é \U0001f600",
    )
)  # fmt: skip
TEXT = st.lists(PARTS, min_size=1, max_size=6).map("".join)
SAID = st.lists(st.tuples(st.sampled_from(PLACES), TEXT), min_size=1, max_size=7)
SIDES = st.lists(st.tuples(st.sampled_from((*PLACES, "twice")), TEXT), min_size=1, max_size=7)
PIECES = st.lists(st.integers(1, 1500), min_size=1, max_size=5)
EVENTS = st.lists(st.integers(1, 50), min_size=1, max_size=5)
RULE = st.sampled_from(sorted(RULES))


def told(said: Sequence[Said]) -> list[Said]:
    """What a stream of them says: the arguments of a tool are JSON."""
    return [(place, orjson.dumps(text).decode() if place == "tool" else text) for place, text in said]


@pytest.mark.slow
@pytest.mark.no_cover
@few_and_many(30, 150)
def test_any_pieces_of_a_stream_release_the_same(examples: int) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(RULE, SIDES, EVENTS, PIECES, st.booleans())
    @example("mask", [("content", CARD[:9]), ("thoughts", "x" * 40), ("content", CARD[9:])], [7], [100], False)
    @example("cut", [("content", "so it goes, " * 9 + WORDS)], [50], [10_000], False)
    def holds(rule: str, said: list[Said], sizes: list[int], pieces: list[int], late: bool) -> None:
        stream = encoded("chat", events_of(told(said), sizes))
        alone = [encode("", one) for one in events_of(told(said), sizes)]
        at_once = released(rule, "chat", [stream], late)
        assert released(rule, "chat", list(bytes_cut(stream, pieces)), late) == at_once
        assert released(rule, "chat", [*alone, DONE], late) == at_once

    holds()


@pytest.mark.no_cover
@few_and_many(30, 150)
def test_any_events_of_a_text_release_the_same(examples: int) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(RULE, SAID, EVENTS, EVENTS, st.booleans())
    @example("cut", [("content", "so it goes, " * 9 + WORDS)], [50], [3], False)
    def holds(rule: str, said: list[Said], sizes: list[int], others: list[int], late: bool) -> None:
        found = [released(rule, "chat", [encoded("chat", events_of(told(said), one))], late) for one in (sizes, others)]
        assert found[0][:3] == found[1][:3]

    holds()


BLOCKS = st.lists(TEXT, min_size=1, max_size=4)
TOOLS = st.sampled_from(("", '{"a": "b"}', orjson.dumps({"a": "b" * 50}).decode()))


@pytest.mark.slow
@pytest.mark.no_cover
@few_and_many(20, 100)
def test_any_pieces_of_texts_that_are_shown_as_one_release_the_same(examples: int) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(RULE, BLOCKS, TOOLS, EVENTS, PIECES, st.booleans())
    def holds(rule: str, blocks: list[str], tool: str, sizes: list[int], pieces: list[int], late: bool) -> None:
        for api, events in (("messages", messages(blocks, sizes, tool)), ("responses", responses([blocks], sizes))):
            stream = encoded(api, events)
            at_once = released(rule, api, [stream], late)
            assert released(rule, api, list(bytes_cut(stream, pieces)), late) == at_once
            assert released(rule, api, [encoded(api, [one]) for one in events], late) == at_once

    holds()
