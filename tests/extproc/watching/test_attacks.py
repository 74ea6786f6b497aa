"""What somebody tried who wanted a guarded value out, or a harmless answer changed."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from config.build import build
from config.load import parse
from extproc.watching.shapes import SHAPES
from extproc.watching.sse import encode
from extproc.watching.watch import Watch
from signals.request import Message, Request
from tests.extproc.watching.streams import call, chunk
from tests.extproc.watching.test_watch import CARD, CUT, MASK, POLICY, WORDS, cut_up, run, shown, watch
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
