from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from pydantic import ValidationError

from panel.certainty import Curve, calibrated
from panel.spec import PanelSpec
from tests.panel.fakes import ASK, says, table, until
from tests.patience import PATIENCE
from tests.stepwise.fakes import Fault

SURE, UNSURE, LARGE = "it is four", "it is ✗ five or six or seven", "IT IS FOUR"
BLOCK = {"cascade": ["small", "large"], "until": {"sure": 0.9}}
USE = {"type": "tool_use", "id": "a", "name": "b", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "a"}
FUNCTION = {"type": "function", "name": "b"}
CALLED = {"type": "function_call", "call_id": "a", "name": "b", "arguments": "{}"}


@pytest.mark.parametrize("stream", [True, False])
async def test_a_sure_answer_is_released_and_nobody_else_is_asked(stream: bool) -> None:
    async with table([says("small", SURE), says("large", LARGE)], BLOCK) as made:
        given = await made.ask(stream=stream)
    assert (given.status, given.text, made.asked) == (200, SURE, {"small": 1, "large": 0})
    assert given.headers["x-pointsman-panel"] == "cascade"
    assert given.headers["x-pointsman-model"] == "small"
    assert given.calls == [("small", "draft", True)]
    assert given.usage["pointsman"]["panel"] == "cascade"
    (spent,) = made.charged
    assert spent.money == pytest.approx(given.usage["pointsman"]["cost"])


@pytest.mark.parametrize("stream", [True, False])
async def test_an_unsure_draft_is_cut_off_and_the_next_member_streams(stream: bool) -> None:
    async with table([says("small", UNSURE, delay=0.01), says("large", LARGE)], BLOCK) as made:
        given = await made.ask(stream=stream)
        assert made.models["small"].sent < len(UNSURE.split())
    assert (given.text, given.headers["x-pointsman-model"]) == (LARGE, "large")
    assert given.calls == [("small", "draft", False), ("large", "last", True)]
    models = given.usage["pointsman"]["models"]
    assert models["small"]["discarded_tokens"] == models["small"]["completion_tokens"] > 0
    assert models["large"]["discarded_tokens"] == 0


async def test_the_last_member_reaches_the_client_word_by_word() -> None:
    large = says("large", LARGE, released=asyncio.Semaphore(0))
    async with table([says("small", UNSURE), large], BLOCK) as made:
        assert large.released is not None
        asking = asyncio.create_task(made.panel.answer(made.call(stream=True)))
        await until(lambda: bool(large.requests))
        large.released.release()
        answer = await asyncio.wait_for(asking, PATIENCE)
        assert b'"IT"' in await anext(answer.body)
        for _ in range(3):
            large.released.release()
        rest = b"".join([part async for part in answer.body])
        assert b"FOUR" in rest


@pytest.mark.parametrize(
    ("measure", "text", "released"),
    [
        ("mean", "a b c d e f g ✗", "small"),
        ("least", "a b c d e f g ✗", "large"),
        ("digits", "a ✗ b 4", "small"),
        ("digits", "a b 4✗", "large"),
        ("digits", "1 2 3 4 5 6 7 8 9 10 11", "small"),
        ("product", "1 2 3 4 5 6 7 8 9 10 11", "large"),
        ("product", "a ✗ b 4", "small"),
        ("margin", "a ✗", "large"),
    ],
)
async def test_the_measures(measure: str, text: str, released: str) -> None:
    block = {"cascade": ["small", "large"], "until": {"sure": 0.9, "by": measure}}
    async with table([says("small", text), says("large", LARGE)], block) as made:
        given = await made.ask()
    assert given.headers["x-pointsman-model"] == released


@pytest.mark.parametrize("kind", ["kill", "garbage", "badjson", "cut", "midtoken", "error", "status", "html", "done"])
@pytest.mark.parametrize("after", [0, 2])
@pytest.mark.parametrize("broken", ["small", "large"])
async def test_a_member_that_fails_is_done_without(kind: str, after: int, broken: str) -> None:
    """The large one fails before it has said anything, or the client would have to see two answers."""
    if broken == "large" and after and kind not in ("status", "html"):
        after = 0
    first = UNSURE if broken == "large" else SURE
    async with table([says("small", first, SURE), says("large", LARGE)], BLOCK) as made:
        made.models[broken].faults[0] = Fault(kind, after)
        given = await made.ask()
        errors = made.panel.metrics.upstream_errors
    assert (given.status, given.text) == (200, SURE if broken == "large" else LARGE)
    assert sum(errors.values()) == 1


async def test_a_draft_that_ended_is_kept_for_when_the_last_member_fails() -> None:
    block = {"cascade": ["small", "large"], "until": {"sure": 0.99, "by": "mean"}}
    async with table([says("small", "a ✗ b"), says("large", LARGE)], block) as made:
        made.models["large"].faults[0] = Fault("kill")
        given = await made.ask()
    assert (given.text, made.asked) == ("a ✗ b", {"small": 1, "large": 1})


async def test_when_all_fail_the_client_gets_an_error() -> None:
    async with table([says("small", SURE), says("large", LARGE)], BLOCK) as made:
        for model in made.models.values():
            model.faults[-2] = Fault("status", status=500)
        whole, streamed = await made.ask(), await made.ask(stream=True)
    for given in (whole, streamed):
        assert given.status == 502
        assert "No member of the panel could answer: status; status" in given.body["error"]["message"]
    assert made.panel.metrics.answers["cascade", "failed"] == 2


async def test_when_all_refuse_the_request_the_client_gets_the_first_one_s_words() -> None:
    async with table([says("small", SURE), says("large", LARGE)], BLOCK) as made:
        for model in made.models.values():
            model.faults[-2] = Fault("status", status=422)
        given = await made.ask()
    assert (given.status, given.body["error"]["code"]) == (422, "y")


async def test_an_answer_that_breaks_off_in_the_middle_says_so() -> None:
    async with table([says("small", UNSURE), says("large", LARGE)], BLOCK) as made:
        made.models["large"].faults[-2] = Fault("kill", 2)
        streamed, whole = await made.ask(stream=True), await made.ask()
    assert streamed.text.startswith("IT IS")
    assert streamed.events[-1]["error"]["message"] == "The answer broke off: cut."
    assert (whole.status, whole.text) == (200, UNSURE)  # of a whole answer the client has seen nothing yet


async def test_a_member_that_hangs_has_failed_after_its_time() -> None:
    block = {**BLOCK, "budget": {"each": 0.2}}
    async with table([says("small", SURE), says("large", LARGE)], block) as made:
        made.models["small"].faults[0] = Fault("hang", 1)
        given = await made.ask()
    assert given.text == LARGE
    assert given.usage["pointsman"]["calls"][0]["error"] == "timeout"


async def test_the_answer_s_own_time_ends_everything() -> None:
    block = {**BLOCK, "budget": {"seconds": 0.3}}
    async with table([says("small", SURE), says("large", LARGE)], block) as made:
        for model in made.models.values():
            model.faults[-2] = Fault("silent")
        given = await made.ask()
    assert (given.status, given.body["error"]["code"]) in ((504, "timeout"), (504, "upstream_error"))


async def test_a_stream_is_kept_open_while_nothing_is_sure() -> None:
    small = says("small", SURE, released=asyncio.Semaphore(0))
    async with table([small, says("large", LARGE)], {**BLOCK, "heartbeat": 0.05}) as made:
        assert small.released is not None
        answer = await made.panel.answer(made.call(stream=True))
        assert await anext(answer.body) == b": working\n\n"
        assert await anext(answer.body) == b": working\n\n"
        for _ in range(3):
            small.released.release()
        rest = b"".join([part async for part in answer.body])
    assert SURE.encode() in rest


@pytest.mark.parametrize("when", ["asking", "streaming"])
async def test_a_client_that_leaves_ends_every_call_at_once(when: str) -> None:
    large = says("large", LARGE, released=asyncio.Semaphore(0))
    async with table([says("small", UNSURE), large], BLOCK) as made:
        assert large.released is not None
        asking = asyncio.create_task(made.panel.answer(made.call(stream=True)))
        await until(lambda: bool(large.requests))
        if when == "asking":
            begun = time.monotonic()
            asking.cancel()
            await asyncio.wait([asking])
        else:
            large.released.release()
            answer = await asking
            await anext(answer.body)
            begun = time.monotonic()
            await answer.aclose()
        await until(lambda: not large.connections)
        took = time.monotonic() - begun
        assert large.gone == 1
        assert made.panel.metrics.answers["cascade", "cancelled"] == 1
    assert took < PATIENCE  # bench/panel.py measures it
    assert len(made.charged) == 1


@pytest.mark.parametrize(("budget", "asked"), [({"calls": 1}, 0), ({"money": 1e-9}, 0), ({"calls": 2}, 1)])
async def test_a_budget_that_is_used_up_ends_the_asking(budget: dict[str, Any], asked: int) -> None:
    block = {"cascade": ["small", "large"], "until": {"sure": 0.99, "by": "mean"}, "budget": budget}
    async with table([says("small", "a ✗ b"), says("large", LARGE)], block) as made:
        given = await made.ask()
    assert (made.asked["large"], given.text) == (asked, LARGE if asked else "a ✗ b")


async def test_no_probabilities_means_not_sure() -> None:
    async with table([says("small", SURE, top=-1), says("large", LARGE)], BLOCK) as made:
        given = await made.ask()
        assert made.panel.metrics.unjudged == {"no_logprobs": 1}
    assert given.text == LARGE


async def test_a_draft_that_was_cut_by_its_length_is_not_sure() -> None:
    async with table([says("small", SURE, finish="length"), says("large", LARGE)], BLOCK) as made:
        given = await made.ask()
    assert given.text == LARGE


async def test_log_probabilities_reach_only_the_client_that_asked_for_them() -> None:
    async with table([says("small", SURE), says("large", LARGE)], BLOCK) as made:
        asked = await made.ask(logprobs=True, top_logprobs=2)
        streamed = await made.ask(stream=True, logprobs=True)
        bare = await made.ask()
    entries = asked.body["choices"][0]["logprobs"]["content"]
    assert ([entry["token"] for entry in entries], len(entries[0]["top_logprobs"])) == (["it", " is", " four"], 2)
    said = [event["choices"][0]["logprobs"] for event in streamed.events if event["choices"]]
    assert [entry["token"] for one in said if one for entry in one["content"]] == ["it", " is", " four"]
    assert bare.body["choices"][0]["logprobs"] is None


async def test_the_client_s_parameters_reach_the_members_and_ours_do_not_change_them() -> None:
    async with table([says("small", UNSURE), says("large", LARGE)], BLOCK) as made:
        await made.ask(temperature=0.3, max_tokens=50, metadata={"a": "b"}, headers={"authorization": "Bearer k"})
    for model in made.models.values():
        (body,) = model.requests
        assert (body["temperature"], body["max_tokens"], body["messages"]) == (0.3, 50, ASK)
        assert "metadata" not in body
        assert model.heads[0]["authorization"] == "Bearer k"
        assert model.heads[0]["x-pointsman-hop"] == "1"
    assert "logprobs" not in made.models["large"].requests[0]


@pytest.mark.parametrize(
    ("api", "body", "reason"),
    [
        ("chat", {"n": 2}, "n"),
        ("chat", {"messages": []}, "malformed"),
        ("chat", {"messages": [*ASK, {"role": "assistant", "content": "It"}]}, "continuation"),
        ("chat", {"functions": [{}]}, "tools"),
        ("chat", {"modalities": ["audio"]}, "modalities"),
        ("chat", {"max_tokens": "many"}, "malformed"),
        ("embeddings", {"input": "x"}, "api"),
        ("messages", {"messages": ASK, "max_tokens": 9, "tools": [{"type": "web_search_20250305"}]}, "tools"),
        ("messages", {"messages": ASK, "max_tokens": 9, "tools": [{"name": "a", "defer_loading": True}]}, "tools"),
        ("messages", {"messages": ASK, "max_tokens": 9, "tools": [{}], "tool_choice": {"type": "other"}}, "tools"),
        ("messages", {"messages": [*ASK, {"role": "assistant", "content": [USE]}], "max_tokens": 9}, "continuation"),
        ("messages", {"messages": [{"role": "assistant", "content": [{**USE, "input": 1}]}, *ASK]}, "content"),
        ("messages", {"messages": [{"role": "user", "content": [USE]}]}, "content"),
        ("messages", {"messages": [{"role": "user", "content": [{**RESULT, "content": [{}]}]}]}, "content"),
        ("messages", {"messages": ASK, "max_tokens": 9, "top_k": 3}, "field"),
        ("messages", {"messages": ASK, "max_tokens": 9, "thinking": {"type": "enabled"}}, "thinking"),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "image"}]}], "max_tokens": 9}, "content"),
        ("responses", {"input": "x", "previous_response_id": "resp_1"}, "stored"),
        ("responses", {"input": "x", "tools": [{}]}, "tools"),
        ("responses", {"input": "x", "tools": [{"type": "web_search"}]}, "tools"),
        ("responses", {"input": "x", "tools": [{"type": "custom", "name": "a"}]}, "tools"),
        ("responses", {"input": "x", "tools": [FUNCTION], "tool_choice": {"type": "allowed_tools"}}, "tools"),
        ("responses", {"input": [{"type": "function_call", "call_id": "a", "name": "b"}]}, "content"),
        ("responses", {"input": [{"type": "reasoning", "summary": []}]}, "content"),
        ("responses", {"input": [*ASK, CALLED]}, "continuation"),
        ("responses", {"input": "x", "text": {"format": {"type": "json_schema"}}}, "response_format"),
        ("responses", {"input": [{"type": "function_call_output", "output": [{"type": "input_image"}]}]}, "content"),
        ("responses", {"input": []}, "malformed"),
    ],
)
async def test_what_no_panel_can_answer(api: str, body: dict[str, Any], reason: str) -> None:
    async with table([says("small", SURE), says("large", LARGE)], BLOCK) as made:
        assert made.panel.unfit(made.call(api, **body)) == reason
        assert made.panel.unfit(made.call(headers={"x-pointsman-hop": "1"})) == "hop"


async def test_a_request_never_reaches_a_member_outside_of_its_trust_domain() -> None:
    block = {
        **BLOCK,
        "cards": {"small": {"trust": ["internal", "public"]}, "large": {"trust": ["public"]}},
        "trust": {"header": "X-Trust"},
    }
    async with table([says("small", UNSURE), says("large", LARGE)], block) as made:
        inside = await made.ask(headers={"x-trust": "internal"})
        asked = dict(made.asked)
        outside = await made.ask(headers={"x-trust": "public"})
        barred = await made.ask(headers={"x-trust": "secret"})
        unsaid = await made.ask()
    assert (inside.text, asked) == (UNSURE, {"small": 1, "large": 0})
    assert (outside.text, made.asked["large"]) == (LARGE, 1)
    for given in (barred, unsaid):
        assert (given.status, given.body["error"]["code"]) == (403, "trust")
    assert made.asked == {"small": 2, "large": 1}
    spec = PanelSpec.model_validate(block)
    assert [spec.bars({"x-trust": domain}) for domain in ("internal", "public")] == [True, False]
    assert spec.bars({})


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({}, "exactly one kind of panel is needed"),
        ({"cascade": ["a", "b"]}, "cascade needs `until`"),
        ({"cascade": ["a", "a"], "until": {"sure": 0.5}}, "cascade names a model twice"),
        ({**BLOCK, "cards": {"x": {}}}, "cards: x is no member of this panel"),
        ({**BLOCK, "trust": {"header": "x"}}, "trust: small, large could never be asked"),
        ({**BLOCK, "until": {"sure": 2}}, "less than or equal to 1"),
    ],
)
def test_what_a_block_cannot_say(block: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        PanelSpec.model_validate(block)


# Calibration


def test_a_curve_promises_what_its_answers_had_less_what_chance_may_make() -> None:
    seen = [(at / 1000, at % 10 != 0 or at >= 500) for at in range(1000)]  # one of ten is wrong below 0.5
    curve = calibrated("least", "tiny", seen)
    sure = curve.threshold(0.97)
    assert sure is not None
    assert 0.2 < sure < 0.5
    kept = [good for value, good in seen if value >= sure]
    assert sum(kept) / len(kept) > 0.97
    assert curve.threshold(1.0) is not None or max(curve.right) < 1.0
    assert calibrated("least", "tiny", [(0.5, False)] * 50).threshold(0.5) is None


def test_a_few_answers_promise_little_even_if_all_are_right() -> None:
    assert max(calibrated("least", "tiny", [(at / 100, True) for at in range(50)]).right) == pytest.approx(0.9)
    assert calibrated("least", "tiny", [(at / 1000, True) for at in range(500)]).threshold(0.98) is not None


def test_a_calibration_is_read_and_checked(tmp_path: Any) -> None:
    file = tmp_path / "curve.json"
    file.write_text('{"by": "least", "model": "small", "curve": [[0.1, 0.5], [0.8, 0.95]]}')
    assert Curve.read(file).threshold(0.9) == 0.8
    for text in ("{}", "[", '{"by": "least", "model": "m", "curve": [[0.9, 0.5], [0.8, 0.95]]}'):
        file.write_text(text)
        with pytest.raises(ValueError, match="damaged"):
            Curve.read(file)


@pytest.mark.parametrize(
    ("curve", "said"),
    [
        ('{"by": "mean", "model": "small", "curve": [[0.1, 0.99]]}', "of the measure mean"),
        ('{"by": "least", "model": "other", "curve": [[0.1, 0.99]]}', "of the model other"),
        ('{"by": "least", "model": "small", "curve": [[0.1, 0.5]]}', "promises a share of 0.500"),
    ],
)
async def test_a_calibration_that_does_not_fit_is_refused(tmp_path: Any, curve: str, said: str) -> None:
    (tmp_path / "curve.json").write_text(curve)
    block = {"cascade": ["small", "large"], "until": {"sure": 0.9, "calibration": "curve.json"}}
    with pytest.raises(ValueError, match=said):
        async with table([says("small", SURE), says("large", LARGE)], block, tmp_path):
            pass


async def test_a_calibrated_threshold_is_used(tmp_path: Any) -> None:
    (tmp_path / "curve.json").write_text('{"by": "least", "model": "small", "curve": [[0.3, 0.92]]}')
    block = {"cascade": ["small", "large"], "until": {"sure": 0.9, "calibration": "curve.json"}}
    async with table([says("small", UNSURE), says("large", LARGE)], block, tmp_path) as made:
        given = await made.ask()
    assert given.text == UNSURE  # its least probable token has exp(-0.5)
