"""What somebody tried who wanted a guarded value out, or a harmless answer changed."""

from __future__ import annotations

import asyncio
import time
import tracemalloc
from typing import Any

import orjson
import pytest

from config.build import build
from config.load import parse
from decisions.watching import PASS, Verdict
from extproc.watching.shapes import SHAPES
from extproc.watching.sse import encode
from extproc.watching.watch import Watch
from signals.request import Message, Request
from tests.extproc.watching.streams import call, chunk
from tests.extproc.watching.test_watch import (
    CARD,
    CUT,
    FLAG,
    MASK,
    POLICY,
    RESPOND,
    WORDS,
    Slow,
    cut_up,
    fed,
    judge,
    masked,
    run,
    shown,
    watch,
)
from tests.linear import assert_linear
from upstream.events import DONE

SIGNALS = POLICY.replace(
    "  any: {score",
    "  word: {keyword: {in: answer, any: [ass]}}\n"
    "  number: {regex: {in: answer, any: ['\\b[0-9]{16}\\b']}}\n"
    "  any: {score",
)


def by(rule: str, signal: str) -> Watch:
    decision = f"  - {{name: one, on: answer, when: {signal}, window: 64, on_unknown: match, {rule}: {{}}}}\n"
    engine = build(parse(SIGNALS + decision))
    request = Request("chat", b"{}", {}, "auto", (Message("user", "hello"),), {})
    judge = engine.judge(engine.settle(request), request)  # type: ignore[arg-type]
    assert judge is not None
    return Watch(SHAPES["chat"], judge, True)


def sent(*events: dict[str, Any]) -> list[bytes]:
    return [*(encode("", one) for one in events), DONE]


class Quiet:
    """Judges nothing, and takes long for it; `breaks`: it cannot even do that."""

    window, stride, holds, responds = 16, 16, True, False
    apart = None

    def __init__(self, slow: bool = True, breaks: bool = False) -> None:
        self.slow = slow
        self.breaks = breaks
        self.reads = 0

    def judge(self, channel: Any, text: str, final: bool, lead: int = 0) -> Verdict | None:
        return None if self.slow else PASS

    async def read(self, channel: Any, text: str, final: bool, deadline: float, lead: int = 0) -> Verdict:
        self.reads += 1
        if self.breaks:
            assert self.reads < 100, "it is asked without end"
            raise OSError("broken on purpose")
        return PASS

    def clear(self, channel: Any, text: str) -> bool:
        return False

    def carry(self, channel: Any, other: Any) -> None:
        raise AssertionError("nothing here is joined")

    def end(self) -> Verdict:
        return PASS

    def unreadable(self) -> Verdict:
        return PASS


def test_the_last_piece_is_not_sent_twice_where_it_ends_in_an_event_that_is_too_long() -> None:
    data = encode("", chunk({"content": "a"})) + b"data: " + b"x" * 2_000
    assert Watch(SHAPES["chat"], Quiet(slow=False), True, 1_000).feed(data, True) == data


async def test_a_judge_that_always_breaks_is_asked_once_a_text() -> None:
    judge = Quiet(breaks=True)
    data = b"".join(sent(chunk({"content": "a"}), chunk({"refusal": "b"}), chunk(finish="stop")))
    watch = Watch(SHAPES["chat"], judge, True)
    out = watch.feed(data, True)
    while watch.waiting:
        out += await watch.judged(float("inf"))
    assert (out, watch.done, judge.reads) == (data, True, 2)
    assert isinstance(watch.error, OSError)


def test_a_cut_that_is_settled_at_the_end_is_the_only_end() -> None:
    rule = "{name: lacking, on: answer, when: {not: words}, window: 64, on_unknown: match, cut: {message: Stop.}}"
    events = [encode("", chunk({"content": "so it goes"})), encode("", chunk(finish="stop")), DONE]
    for pieces in ([b"".join(events)], events):
        out = run(watch(rule), pieces)
        assert out.count(b"[DONE]") == 1
        assert b'"finish_reason":"content_filter"' in out


@pytest.mark.parametrize("piece", [b"\n" * 5000, b": ping\n\n" * 2000, encode("", chunk({"content": ""})) * 1000])
def test_others_have_their_turn_between_many_events_without_a_text(piece: bytes) -> None:
    one = watch()
    first = one.feed(piece)
    assert one.waiting
    assert first + asyncio.run(fed(one, b"")) == piece


@pytest.mark.parametrize("beside", ["logprobs", "reasoning"])
@pytest.mark.parametrize("at_once", [True, False])
def test_texts_that_stand_side_by_side_are_not_behind_one_another(beside: str, at_once: bool) -> None:
    """Each event has a window of both, and a value is divided between two of them."""
    text = f"{'x' * 62} {CARD} and so on {'y' * 90}"
    events = []
    for piece in cut_up(text, [72]):
        event = chunk({"reasoning_content": piece, "reasoning": piece})
        if beside == "logprobs":
            event = chunk({"content": piece})
            token = {"token": piece, "logprob": -1, "bytes": None, "top_logprobs": []}
            event["choices"][0]["logprobs"] = {"content": [token]}
        events.append(encode("", event))
    out = run(watch(), [b"".join(events)] if at_once else events)
    assert b"4111" not in out
    assert next(iter(shown(out).values())) == masked(text)


def test_a_cut_shows_nothing_that_stands_behind_its_place_in_the_same_event() -> None:
    both = chunk({"content": f"so it goes and {CARD}"})
    both["choices"].append(chunk({"content": "behind it " * 30}, 1)["choices"][0])
    out = shown(run(watch(CUT), sent(both, chunk(finish="stop"))))
    assert out == {(0, "content"): "so it goes and \n\nStop.", (1, "content"): "Stop."}


class Breaks(Quiet):
    """Breaks when it sees the word, and masks nothing."""

    def judge(self, channel: Any, text: str, final: bool, lead: int = 0) -> Verdict | None:
        if "break" in text:
            raise OSError("broken on purpose")
        self.reads += 1
        return PASS


def test_a_text_whose_judge_broke_is_judged_no_more_in_whichever_pieces_it_comes() -> None:
    events = sent(*(chunk({"content": part}) for part in cut_up("so it goes and then it breaks and goes on", [1])))
    found = []
    for pieces in ([b"".join(events)], events):
        judge = Breaks(slow=False)
        one = Watch(SHAPES["chat"], judge, True)
        out = b"".join([asyncio.run(fed(one, piece)) for piece in [*pieces, b""]])
        assert isinstance(one.error, OSError)
        found.append((out, judge.reads))
    assert found[0] == found[1]


@pytest.mark.no_cover
def test_many_texts_that_wait_for_a_slow_judge_are_linear() -> None:
    def body(size: int) -> bytes:
        message = {"role": "assistant", "content": "x", "more": ["ab"] * size}
        return orjson.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})

    assert_linear(body, lambda data: Watch(SHAPES["chat"], Quiet(), False).feed(data, True), 16_000)


@pytest.mark.slow
@pytest.mark.no_cover
def test_an_end_that_is_said_without_end_takes_no_memory() -> None:
    ends = [encode("", chunk(at=at, finish="stop")) for at in range(5_000)]
    watch = Watch(SHAPES["chat"], Quiet(slow=False), True)
    for one in ends:
        watch.feed(one)
    tracemalloc.start()
    try:
        for at in range(5_000, 10_000):
            watch.feed(encode("", chunk(at=at, finish="stop")))
        took = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert took < 100_000


@pytest.mark.parametrize("rule", ["cut", "mask"])
@pytest.mark.parametrize(("signal", "word"), [("word", "class "), ("number", "123456789012345678901 ")])
@pytest.mark.parametrize("key", ["content", "arguments"])
@pytest.mark.parametrize("size", [1, 5, 11, 64, 200])
def test_half_of_a_word_is_no_word(rule: str, signal: str, word: str, key: str, size: int) -> None:
    """What is looked back at begins somewhere in the text, and nothing is found because of that."""
    text = word * 200
    if key == "arguments":
        parts = list(cut_up(orjson.dumps({"a": text}).decode(), (size,)))
        stream = sent(*(chunk(call(0, arguments=part)) for part in parts), chunk(finish="tool_calls"))
    else:
        stream = sent(*(chunk({"content": part}) for part in cut_up(text, (size,))), chunk(finish="stop"))
    assert run(by(rule, signal), stream) == b"".join(stream)


@pytest.mark.parametrize("rule", [MASK, CUT])
def test_what_comes_after_the_end_is_judged_too(rule: str) -> None:
    """There is nothing behind the end of a stream, but not every client knows that."""
    late = encode("", chunk({"content": f"{WORDS} and {CARD}"}))
    out = run(watch(rule), [*sent(chunk({"content": "Hello."}), chunk(finish="stop")), late, DONE])
    assert b"Hello." in out
    assert WORDS.encode() not in out
    assert CARD.encode() not in out


@pytest.mark.parametrize("rule", [MASK, CUT])
@pytest.mark.parametrize("said", ["", "stop"])
def test_a_choice_that_says_it_has_ended_may_go_on(rule: str, said: str) -> None:
    """Some servers say an empty reason with every event, or `stop` with each, as Gemini's first ones did."""
    parts = [chunk({"content": part}, finish=said) for part in ("My 4111 1111 ", "1111 1111", " on proj", "ect falcon")]
    out = shown(run(watch(rule), sent(*parts, chunk(finish="stop"))))
    assert rule == CUT or out[0, "content"] == "My [card] on [masked]"
    assert "4111" not in str(out)
    assert "proj" not in str(out)


@pytest.mark.parametrize("rule", [MASK, CUT])
@pytest.mark.parametrize("streamed", [True, False])
def test_a_key_that_stands_twice_hides_nothing(rule: str, streamed: bool) -> None:
    said = b'{"choices":[{"index":0,"finish_reason":"stop","%s":{"content":"%s","content":"x \\u0022 y"}}]}'
    body = said % (b"delta" if streamed else b"message", CARD.encode())
    out = run(watch(rule, streamed=streamed), [b"data: " + body + b"\n\n", DONE] if streamed else [body])
    assert CARD.encode() not in out
    assert b'"content":"x \\" y"' in out


@pytest.mark.slow
@pytest.mark.no_cover
@pytest.mark.parametrize("form", ["whole", "content", "arguments"])
def test_many_masks_take_time_that_is_linear(form: str) -> None:
    """8,000 masks of one text took five seconds, in which nobody else was served."""

    def stream(size: int) -> list[bytes]:
        text = "AK-12345678 " * (size // 12)
        if form == "whole":
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            return [orjson.dumps({"object": "chat.completion", "choices": [choice]})]
        if form == "content":
            return sent(chunk({"content": text}), chunk(finish="stop"))
        return sent(chunk(call(0, arguments=orjson.dumps({"a": text}).decode())), chunk(finish="tool_calls"))

    def masks(pieces: list[bytes]) -> int:
        return run(watch(streamed=form != "whole"), pieces).count(b"[masked]")

    assert masks(stream(12 * 2000)) == 2000
    assert_linear(stream, masks, 32 * 1024)


@pytest.mark.no_cover
def test_a_judge_that_hangs_makes_nothing_slow_or_large() -> None:
    """Where a decision only flags, the answer goes on while its judge reads, and all that came meanwhile is kept."""

    class Hangs(Slow):
        holds = False

    one = Watch(SHAPES["chat"], Hangs(judge(FLAG)), True, limit=2**18)
    piece = b"".join(encode("", chunk({"content": "hello world how are"})) for _ in range(200))
    begun = time.process_time()
    for _ in range(500):
        assert one.feed(piece)
    assert time.process_time() - begun < 6
    assert not one._texts._channels


def test_a_key_that_stands_twice_hides_nothing_in_events_that_are_alike() -> None:
    said = b'data: {"choices":[{"index":0,"delta":{"content":"%s","content":"%s"}}]}\n\n'
    out = run(watch(), [said % (CARD.encode(), word) for word in (b"one", b"two", b"three")])
    assert CARD.encode() not in out
    assert b"three" in out


@pytest.mark.no_cover
@pytest.mark.slow
@pytest.mark.parametrize("size", [pytest.param(1, marks=pytest.mark.volume), 13])
def test_arguments_that_are_all_escapes_are_looked_back_at_as_far(size: int) -> None:
    text = "x " * 500 + f"{CARD} and {WORDS}" + " y" * 500
    arguments = '{"a":"' + "".join(f"\\u{ord(one):04x}" for one in text) + '"}'
    parts = (chunk(call(0, arguments=part)) for part in cut_up(arguments, (size,)))
    out = shown(run(watch(), sent(*parts, chunk(finish="tool_calls"))))
    assert orjson.loads(out[0, "tool", 0])["a"] == "x " * 500 + "[card] and [masked]" + " y" * 500


@pytest.mark.no_cover
@pytest.mark.parametrize("said", ['"card": "4111", ', CARD + ", "])
def test_what_comes_at_once_is_released_in_linear_time(said: str) -> None:
    def body(size: int) -> bytes:
        return encode("", chunk(call(0, arguments=said * 16))) * (size // 4)

    assert_linear(body, lambda data: watch().feed(data))


@pytest.mark.no_cover
def test_events_that_show_nothing_are_waited_with_in_linear_time() -> None:
    def read(events: list[bytes]) -> bytes:
        one = watch(RESPOND)
        return b"".join(one.feed(event) for event in events)

    assert_linear(lambda size: [b"data: {}\n\n"] * size, read)
