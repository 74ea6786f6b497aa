"""One answer through the watch: nothing that is to be masked or cut gets out, however the answer is split."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.build import build
from config.load import parse
from decisions.engine import Engine
from decisions.watching import Judge, Verdict
from extproc.watching.shapes import SHAPES
from extproc.watching.sse import Events, encode
from extproc.watching.watch import Watch
from signals.request import Message, Request
from tests.extproc.watching.streams import call, chunk
from tests.volume import few_and_many
from upstream.events import DONE

CARD, IBAN, KEY, WORDS = "4111 1111 1111 1111", "DE89 3704 0044 0532 0130 00", "AK-12345678", "project falcon"
SECRETS = (CARD, IBAN, KEY, WORDS)
POLICY = """\
version: 1
models: {small: {}}
default: small
signals:
  leak: {pii: {in: answer, types: [card, iban]}}
  words: {keyword: {in: answer, any: [project falcon]}}
  key: {regex: {in: answer, any: ["AK-[0-9]{8}"]}}
  any: {score: {sum: {leak: 1, words: 1, key: 1}, at_least: 1}}
  secret: {pii: {in: answer, types: [secret]}}
decisions:
"""
MASK = "{name: mask, on: answer, when: {any: [leak, words, key]}, window: 64, on_unknown: match, mask: {}}"
SKIP = "{name: mask, on: answer, when: {any: [leak, words, key]}, window: 64, on_unknown: skip, mask: {}}"
CUT = "{name: cut, on: answer, when: {any: [leak, words, key]}, window: 64, on_unknown: match, cut: {message: Stop.}}"
RESPOND = (
    "{name: no, on: answer, when: words, window: 64, on_unknown: match, respond: {status: 451, message: Not this.}}"
)
FLAG = "{name: flag, on: answer, when: words, flag: {}}"


def made(*decisions: str) -> Engine:
    return build(parse(POLICY + "".join(f"  - {one}\n" for one in decisions)))


ENGINES = {rule: made(rule) for rule in (MASK, SKIP, CUT, RESPOND, FLAG)}


def judge(rule: str, api: str = "chat") -> Judge:
    engine = ENGINES.get(rule) or made(rule)
    request = Request(api, b"{}", {}, "auto", (Message("user", "hello"),), {})
    found = engine.judge(engine.settle(request), request)  # type: ignore[arg-type]
    assert found is not None
    return found


def watch(rule: str = MASK, api: str = "chat", streamed: bool = True, **more: Any) -> Watch:
    return Watch(SHAPES[api], judge(rule, api), streamed, **more)


def run(one: Watch, pieces: Sequence[bytes]) -> bytes:
    return asyncio.run(ran(one, pieces))


async def ran(one: Watch, pieces: Sequence[bytes]) -> bytes:
    """What is released of an answer that comes in these pieces."""
    out = [await fed(one, piece) for piece in pieces]
    out.append(await fed(one, b"", True))
    assert one.done
    assert one.error is None
    return b"".join(out)


async def fed(one: Watch, piece: bytes, end: bool = False) -> bytes:
    """What is released once all that has come is judged."""
    out = one.feed(piece, end)
    while one.waiting:
        out += await one.judged(time.monotonic() + 60)
    return out


def shown(stream: bytes) -> dict[Hashable, str]:
    """The texts of a stream, as whoever joins its deltas reads them."""
    texts: dict[Hashable, str] = {}
    at: Hashable
    events = Events(10**7)
    for event in (*events.feed(stream), events.end()):
        if event is None or not event.data or event.data == b"[DONE]":
            continue
        fields = orjson.loads(event.data)
        for choice in fields.get("choices", ()):
            delta = choice.get("delta", choice)
            for key in ("content", "reasoning_content", "text"):
                if delta.get(key):
                    texts[choice["index"], key] = texts.get((choice["index"], key), "") + delta[key]
            for tool in delta.get("tool_calls") or ():
                at = (choice["index"], "tool", tool["index"])
                texts[at] = texts.get(at, "") + tool["function"].get("arguments", "")
        if fields.get("type") == "content_block_delta":
            delta = fields["delta"]
            at = (fields["index"],)
            texts[at] = texts.get(at, "") + next(iter(value for key, value in delta.items() if key != "type"))
        if str(fields.get("type", "")).endswith(".delta"):
            at = (fields["type"], fields["output_index"])
            texts[at] = texts.get(at, "") + fields["delta"]
        if str(fields.get("type", "")).endswith(".done"):
            at = (fields["type"], fields["output_index"])
            texts[at] = fields.get("text") or fields.get("arguments") or ""
    return texts


def cut_up(text: str, sizes: Sequence[int]) -> Iterator[str]:
    at = number = 0
    while at < len(text):
        size = sizes[number % len(sizes)]
        yield text[at : at + size]
        at += size
        number += 1


def stream_of(api: str, text: str, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """A stream with `text` as reasoning, as what is said (in two choices) and within the arguments of a tool."""
    arguments = orjson.dumps({"note": text, "n": 1}).decode()
    if api == "chat":
        events = [chunk({"role": "assistant", "content": ""}, at) for at in (0, 1)]
        events += [chunk({"reasoning_content": part}) for part in cut_up(text, sizes)]
        for part in cut_up(text, sizes):
            events += [chunk({"content": part}), chunk({"content": part}, 1)]
        events.append(chunk(call(0, name="pay", arguments="")))
        events += [chunk(call(0, arguments=part)) for part in cut_up(arguments, sizes)]
        return [*events, chunk(finish="tool_calls"), chunk(at=1, finish="stop")]
    if api == "completions":
        base = {"id": "c", "object": "text_completion", "created": 1, "model": "m"}
        parts = [
            {**base, "choices": [{"index": at, "text": part, "logprobs": None, "finish_reason": None}]}
            for part in cut_up(text, sizes)
            for at in (0, 1)
        ]
        ends = [{"index": at, "text": "", "logprobs": None, "finish_reason": "stop"} for at in (0, 1)]
        return [*parts, {**base, "choices": ends}]
    if api == "messages":
        message = {"id": "m", "type": "message", "role": "assistant", "model": "m", "content": [], "usage": {}}
        events = [{"type": "message_start", "message": {**message, "stop_reason": None, "stop_sequence": None}}]
        blocks = (
            ({"type": "thinking", "thinking": "", "signature": ""}, "thinking_delta", "thinking", text),
            ({"type": "text", "text": ""}, "text_delta", "text", text),
            (
                {"type": "tool_use", "id": "t", "name": "pay", "input": {}},
                "input_json_delta",
                "partial_json",
                arguments,
            ),
        )
        for at, (block, kind, key, said) in enumerate(blocks):
            events.append({"type": "content_block_start", "index": at, "content_block": block})
            for part in cut_up(said, sizes):
                events.append({"type": "content_block_delta", "index": at, "delta": {"type": kind, key: part}})
            events.append({"type": "content_block_stop", "index": at})
        events.append({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 3}})
        return [*events, {"type": "message_stop"}]
    final = {"id": "r", "object": "response", "created_at": 1, "model": "m", "status": "in_progress", "output": []}
    events = [{"type": "response.created", "response": final}]
    item = {"id": "msg", "type": "message", "role": "assistant", "status": "in_progress", "content": []}
    events.append({"type": "response.output_item.added", "output_index": 0, "item": item})
    part_of = {"type": "output_text", "text": "", "annotations": []}
    place = {"item_id": "msg", "output_index": 0, "content_index": 0}
    events.append({"type": "response.content_part.added", **place, "part": part_of})
    events += [{"type": "response.output_text.delta", **place, "delta": part} for part in cut_up(text, sizes)]
    events.append({"type": "response.output_text.done", **place, "text": text})
    events.append({"type": "response.content_part.done", **place, "part": {**part_of, "text": text}})
    done = {**item, "status": "completed", "content": [{**part_of, "text": text}]}
    events.append({"type": "response.output_item.done", "output_index": 0, "item": done})
    tool = {
        "id": "fc",
        "type": "function_call",
        "call_id": "c",
        "name": "pay",
        "arguments": "",
        "status": "in_progress",
    }
    events.append({"type": "response.output_item.added", "output_index": 1, "item": tool})
    for part in cut_up(arguments, sizes):
        events.append(
            {"type": "response.function_call_arguments.delta", "item_id": "fc", "output_index": 1, "delta": part}
        )
    events.append(
        {"type": "response.function_call_arguments.done", "item_id": "fc", "output_index": 1, "arguments": arguments}
    )
    called = {**tool, "arguments": arguments, "status": "completed"}
    events.append({"type": "response.output_item.done", "output_index": 1, "item": called})
    return [
        *events,
        {"type": "response.completed", "response": {**final, "status": "completed", "output": [done, called]}},
    ]


def encoded(api: str, events: Sequence[dict[str, Any]]) -> bytes:
    named = api in ("messages", "responses")
    data = b"".join(encode(event["type"] if named else "", event) for event in events)
    return data if named else data + DONE


def masked(text: str) -> str:
    for secret, label in ((CARD, "[card]"), (IBAN, "[iban]"), (KEY, "[masked]"), (WORDS, "[masked]")):
        text = text.replace(secret, label)
    return text


APIS = ("chat", "completions", "messages", "responses")
TEXTS = st.lists(st.sampled_from((*SECRETS, "word ", "é \U0001f600 ", "x" * 70, '"quoted" ', "\n")), max_size=8).map(
    lambda parts: " , ".join(("so", *parts, "end."))
)
SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=5)


@pytest.mark.no_cover
@few_and_many(10, 40)
def test_any_split_of_any_stream_shows_the_same_masked_text(examples: int) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(st.sampled_from(APIS), TEXTS, SIZES, st.lists(st.integers(1, 60), min_size=1, max_size=5))
    def holds(api: str, text: str, sizes: list[int], pieces: list[int]) -> None:
        stream = encoded(api, stream_of(api, text, sizes))
        parts, at, number = [], 0, 0
        while at < len(stream):
            size = pieces[number % len(pieces)]
            parts.append(stream[at : at + size])
            at, number = at + size, number + 1
        out = run(watch(MASK, api), parts)
        want = {key: masked(said) for key, said in shown(stream).items()}
        assert shown(out) == want
        for secret in SECRETS:
            assert secret.encode() not in out
        for key, said in shown(out).items():
            if "tool" in key or "function_call" in str(key) or (api == "messages" and key == (2,)):  # type: ignore[operator]
                orjson.loads(said)
        if masked(text) == text:
            assert out == stream

    holds()


@pytest.mark.slow
@pytest.mark.no_cover
@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("rule", [MASK, CUT])
@pytest.mark.parametrize("step", [23, pytest.param(1, marks=pytest.mark.volume)])
def test_a_secret_split_at_every_byte_never_gets_out(api: str, rule: str, step: int) -> None:
    text = f"The card is {CARD}, keep it."
    stream = encoded(api, stream_of(api, text, [19]))
    for at in range(0, len(stream), step):
        out = run(watch(rule, api), [stream[:at], stream[at:]])
        joined = "".join(shown(out).values())
        assert "1111" not in joined
        assert b"4111 1" not in out
        if rule == MASK:
            assert "[card], keep it." in joined


@pytest.mark.parametrize("api", APIS)
def test_an_answer_that_is_cut_says_so_and_ends(api: str) -> None:
    text = "a" * 200 + " the plan is project falcon, and more " + "b" * 200
    out = run(watch(CUT, api), [encoded(api, stream_of(api, text, [3]))])
    assert b"Stop." in out
    assert b"falcon" not in out
    assert "bbb" not in "".join(shown(out).values())
    assert (b"content_filter" in out) or (b"refusal" in out)


def test_what_was_not_found_is_released_a_window_later() -> None:
    one = watch(MASK)
    parts = [encode("", chunk({"content": "word "})) for _ in range(100)]
    held = most = 0
    for part in parts:
        held += 5 - 5 * one.feed(part).count(b"word")
        most = max(most, held)
    assert 64 <= most <= 64 + 64 // 8 + 10


def test_a_policy_that_only_flags_holds_nothing_back() -> None:
    found = judge(FLAG)
    one = Watch(SHAPES["chat"], found, True)
    for part in ("my ", "project ", "falcon", " x" * 300):
        event = encode("", chunk({"content": part}))
        assert one.feed(event) == event
    one.feed(DONE, True)
    assert found.acted == [("flag", "flag")]


WHOLE = {
    "chat": {"id": "c", "object": "chat.completion", "choices": [{"index": 0, "finish_reason": "stop", "message": {}}]},
}


def whole(text: str) -> bytes:
    tool = {"id": "t", "type": "function", "function": {"name": "pay", "arguments": orjson.dumps([text]).decode()}}
    message = {"role": "assistant", "content": text, "reasoning_content": text, "tool_calls": [tool]}
    choices = [{"index": at, "message": message, "finish_reason": "stop"} for at in (0, 1)]
    return orjson.dumps({"id": "c", "object": "chat.completion", "model": "m", "choices": choices, "usage": {"a": 1}})


def test_a_whole_answer_is_masked_cut_or_answered_otherwise() -> None:
    body = whole(f"take {CARD} now")
    one = watch(MASK, streamed=False)
    assert one.feed(body[:50]) == b""
    out = one.feed(body[50:], True)
    assert out == body.replace(CARD.encode(), b"[card]")
    fine = whole("nothing") + b"\n"
    assert watch(MASK, streamed=False).feed(fine, True) == fine
    cut = orjson.loads(watch(CUT, streamed=False).feed(body, True))
    assert [choice["message"]["content"] for choice in cut["choices"]] == ["Stop.", "Stop."]
    one = watch(RESPOND, streamed=False)
    assert one.feed(whole("the project falcon"), True) == b""
    assert one.responds is not None
    assert (one.responds.status, one.responds.message) == (451, "Not this.")


def test_a_respond_takes_the_place_of_a_stream_of_which_nothing_was_sent() -> None:
    one = watch(RESPOND)
    assert one.feed(encode("", chunk({"role": "assistant", "content": ""}))) == b""
    for part in ("the ", "project ", "falcon"):
        assert one.feed(encode("", chunk({"content": part}))) == b""
    assert one.feed(encode("", chunk({"content": " x" * 50}))) == b""
    assert one.responds is not None
    late = watch(RESPOND)
    said = b"".join(late.feed(encode("", chunk({"content": "word "}))) for _ in range(40))
    assert said
    said += late.feed(encode("", chunk({"content": "project falcon" + " x" * 50})))
    assert late.responds is None
    assert late.over
    assert b"Not this." in said
    assert b"falcon" not in said


@pytest.mark.parametrize(
    "broken", [b"data: {not json\n\n", b"data: [1]\n\n", b'data: {"choices": 3}\n\n', b"data: " + b"[" * 3000 + b"\n\n"]
)
def test_what_cannot_be_read_is_stopped_under_match_and_passes_under_skip(broken: bytes) -> None:
    begun = b"".join(encode("", chunk({"content": f"{CARD} and then "})) for _ in range(9))
    out = run(watch(MASK), [begun, broken, begun])
    assert CARD.encode() not in out
    assert broken not in out
    assert b"content_filter" in out
    out = run(watch(SKIP), [begun, broken, b"rest"])
    assert out.endswith(broken + b"rest")
    assert CARD.encode() not in out
    one = watch(MASK)
    assert one.feed(broken) == b""
    assert one.responds is not None
    assert one.responds.status == 502


def test_an_endless_answer_takes_bounded_memory() -> None:
    one = watch(MASK)
    event = encode("", chunk({"content": "word " * 20}))
    for _ in range(3000):
        one.feed(event)
    grown = one._texts._channels["choices", 0, "delta", "content"]
    assert len(grown.raw) < 1000
    assert len(one._queue.held) < 10
    one = watch(MASK, limit=100_000)
    for at in range(2000):  # texts that never come to an end
        one.feed(encode("", chunk({"content": "w"}, at)))
    assert one.over
    one = watch(SKIP, streamed=False, limit=100_000)
    assert len(one.feed(b"x" * 200_000)) == 200_000


class Slow:
    """A judge whose signals take long."""

    window, stride, slow, holds, responds = 64, 64, True, True, False
    apart = None

    def __init__(self, real: Judge) -> None:
        self.real = real
        self.go = asyncio.Event()
        self.broken = False

    def judge(self, channel: Hashable, text: str, final: bool, lead: int = 0) -> Verdict | None:
        return None

    async def read(self, channel: Hashable, text: str, final: bool, deadline: float, lead: int = 0) -> Verdict:
        await self.go.wait()
        if self.broken:
            raise RuntimeError("broken")
        return self.real.judge(channel, text, final, lead) or Verdict("pass")

    def clear(self, channel: Any, text: str) -> bool:
        return False

    def carry(self, channel: Any, other: Any) -> None:
        raise AssertionError("nothing here is joined")

    def end(self) -> Verdict:
        return self.real.end()

    def unreadable(self) -> Verdict:
        return self.real.unreadable()


async def test_nothing_is_released_while_a_slow_judge_reads() -> None:
    slow = Slow(judge(MASK))
    one = Watch(SHAPES["chat"], slow, True)
    out = b""
    text = f"the card {CARD} and the rest " * 9
    stream = encoded("chat", [chunk({"content": part}) for part in cut_up(text, [5])] + [chunk(finish="stop")])
    task: asyncio.Task[bytes] | None = None
    for at in range(0, len(stream), 100):
        assert one.feed(stream[at : at + 100]) == b""
        if one.waiting and task is None:
            task = asyncio.create_task(one.judged(time.monotonic() + 1))
        await asyncio.sleep(0)
    one.feed(b"", True)
    slow.go.set()
    assert task is not None
    out += await task
    while one.waiting:
        out += await one.judged(time.monotonic() + 1)
    assert one.done
    assert shown(out) == {(0, "content"): masked(text)}


async def test_a_slow_judge_that_breaks_stops_the_answer_under_match() -> None:
    slow = Slow(judge(MASK))
    slow.broken = True
    slow.go.set()
    one = Watch(SHAPES["chat"], slow, True)
    out = one.feed(b"".join(encode("", chunk({"content": part})) for part in cut_up("word " * 40, [5])))
    out += await one.judged(time.monotonic() + 1)
    assert out == b""
    assert one.responds is not None
    assert isinstance(one.error, RuntimeError)


async def _thread(work: Callable[[], Any]) -> Any:
    return await asyncio.to_thread(work)


@pytest.mark.parametrize("rule", [MASK, CUT, SKIP])
async def test_a_long_whole_answer_is_read_in_a_thread_as_it_would_be_at_once(rule: str) -> None:
    for text in ("word " * 30_000 + CARD, "word " * 30_000):
        body = whole(text)
        found = judge(rule)
        found.apart = _thread
        one = Watch(SHAPES["chat"], found, False)
        assert (one.feed(body, True), one.waiting, one.done) == (b"", True, False)
        out = b""
        while one.waiting:
            out += await one.judged(time.monotonic() + 60)
        assert one.done
        assert out == watch(rule, streamed=False).feed(body, True)


@pytest.mark.parametrize("rule", [MASK, SKIP])
async def test_a_thread_is_waited_for_however_many_others_do(rule: str) -> None:
    async def busy(work: Callable[[], Any]) -> Any:
        await asyncio.sleep(0.1)
        return work()

    body, found = whole("word " * 30_000 + CARD), judge(rule)
    found.apart = busy
    one = Watch(SHAPES["chat"], found, False)
    out = one.feed(body, True)
    while one.waiting:
        out += await one.judged(time.monotonic() + 0.001)
    assert one.done
    assert b"word [card]" in out
    assert CARD.encode() not in out


async def test_others_have_their_turn_between_the_many_texts_of_a_long_answer() -> None:
    calls = [call(at, name="pay", arguments='{"to": "me"}')["tool_calls"][0] for at in range(1000)]
    calls[700]["function"]["arguments"] = orjson.dumps({"to": CARD}).decode()
    body = orjson.loads(whole("word"))
    body["choices"][0]["message"]["tool_calls"] = calls
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async def at_once(work: Callable[[], Any]) -> Any:
        return work()

    found = judge(MASK)
    found.apart = at_once
    one = Watch(SHAPES["chat"], found, False)
    out = one.feed(orjson.dumps(body), True)
    between = asyncio.create_task(other())
    while one.waiting:
        out += await one.judged(time.monotonic() + 60)
    between.cancel()
    assert turns > 50
    assert one.done
    assert out == watch(MASK, streamed=False).feed(orjson.dumps(body), True)
    assert CARD.encode() not in out


async def test_each_long_text_has_the_whole_deadline_and_taking_them_apart_none_of_it() -> None:
    async def late(work: Callable[[], Any]) -> Any:
        await asyncio.sleep(0.3)
        return work()

    body, found = whole("word " * 60_000), judge(MASK)
    found.apart = late
    one = Watch(SHAPES["chat"], found, False)
    out = one.feed(body, True)
    while one.waiting:
        out += await one.judged(time.monotonic() + 0.2)
    assert out == body


@pytest.mark.parametrize("body", [b"[" * 200_000, b"[" + b"1," * 100_000 + b"1]", b"x" * 100_000])
async def test_a_long_answer_that_is_none_of_its_api_is_unreadable(body: bytes) -> None:
    for rule in (MASK, SKIP):
        found = judge(rule)
        found.apart = _thread
        one = Watch(SHAPES["chat"], found, False)
        assert one.feed(body, True) == b""
        assert await one.judged(time.monotonic() + 60) == (body if rule == SKIP else b"")
        assert (one.responds is None) == (rule == SKIP)
        assert one.done


def test_comments_and_names_of_events_are_watched_too() -> None:
    stream = f": {CARD}\n\nevent: {CARD}\ndata: [DONE]\n\n: ping\n\n".encode()
    out = run(watch(MASK), [stream])
    assert CARD.encode() not in out
    assert out.endswith(b": ping\n\n")


def test_tokens_that_repeat_a_masked_text_are_dropped() -> None:
    event = chunk({"content": CARD + " "})
    event["choices"][0]["logprobs"] = {"content": [{"token": "4111", "logprob": -1.0}]}
    out = run(watch(MASK), [encode("", event) + encode("", event) + DONE])
    assert b"4111" not in out


def tokens(field: str, text: str, token: str) -> dict[str, Any]:
    """An event that says `text`, and that `token` was what it came from."""
    event = chunk({"content": text})
    event["choices"][0]["logprobs"] = {field: [{"token": token, "logprob": -1.0, "top_logprobs": []}]}
    return event


@pytest.mark.parametrize("field", ["content", "refusal"])
def test_tokens_that_come_before_their_text_are_judged_as_a_text(field: str) -> None:
    """Whatever server does that: one that looks ahead, or one that says nothing but tokens."""
    early = [encode("", tokens(field, "", digit)) for digit in CARD]
    late = [encode("", chunk({"content": digit})) for digit in CARD]
    for events in (early, early + late):
        out = run(watch(MASK), [b"".join(events) + DONE])
        said = [orjson.loads(one.data)["choices"][0] for one in Events(10**6).feed(out) if one.data != b"[DONE]"]
        assert not any(one["logprobs"] and one["logprobs"][field] for one in said)
        assert CARD not in "".join(one["delta"]["content"] for one in said)
        assert len(said) == len(events)
    cut = run(watch(CUT), [encode("", tokens(field, "", WORDS)) + DONE])
    assert b"content_filter" in cut
    assert WORDS.split()[0].encode() not in cut


def test_tokens_of_a_harmless_text_stay() -> None:
    stream = encode("", tokens("content", "Four", "Four")) + DONE
    assert run(watch(MASK), [stream]) == stream


def test_a_cut_repeats_what_was_shown_where_events_have_no_numbers() -> None:
    """Of the Responses API the last event says everything again, however alike the events before it are."""
    place = {"item_id": "m", "output_index": 0, "content_index": 0}
    item = {"id": "m", "type": "message", "status": "in_progress", "role": "assistant", "content": []}
    begun = {"id": "r", "object": "response", "model": "m", "status": "in_progress", "output": []}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": begun},
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        {
            "type": "response.content_part.added",
            **place,
            "part": {"type": "output_text", "text": "", "annotations": []},
        },
    ]
    words = f"{'word ' * 40}{WORDS}{' more' * 40}".split(" ")
    events += [{"type": "response.output_text.delta", **place, "delta": f"{word} "} for word in words]
    watch = Watch(SHAPES["responses"], judge(CUT, "responses"), True)
    sent = b"".join(watch.feed(encode(one["type"], one)) for one in events)
    shown = [orjson.loads(one.data) for one in Events(10**6).feed(sent)]
    deltas = "".join(one["delta"] for one in shown if one["type"] == "response.output_text.delta")
    assert deltas.startswith("word word word ")
    assert shown[-1]["type"] == "response.incomplete"
    assert shown[-1]["response"]["output"][0]["content"][0]["text"] == deltas
