"""The loop, against two real HTTP servers that play models."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwise.asking.pair import AnswerBudget
from stepwise.steps import Ends, StepLimits
from stepwise.strategies.chance import Random
from stepwise.strategies.fixed import Fixed
from stepwise.strategies.glimpse import Glimpse
from stepwise.strategies.verify import Verify
from stepwise.strategy import AnswerContext, Draft, Judgement, Run
from tests.patience import PATIENCE
from tests.stepwise.fakes import FakeModel, Fault, Marked, MarkedRun, Pair, answer, pair, text_of, writer
from tests.volume import few_and_many
from upstream.endpoint import ContinuationMode

SMALL = ["one and one is two", "two ✗ and two is five", "three is fine", "four ✗ is wrong", "Answer: 9"]
LARGE = ["ONE and one is two", "TWO and two is four", "THREE is fine", "FOUR is right", "Answer: 10"]
MIXED = "one and one is two\n\nTWO and two is four\n\nthree is fine\n\nFOUR is right\n\nAnswer: 9"


def steps_of(usage: dict[str, Any]) -> list[tuple[str, str]]:
    return [(step["model"], step["action"]) for step in usage["pointsman"]["steps"]]


async def test_good_drafts_are_kept_and_bad_ones_are_written_by_the_large_model() -> None:
    async with pair(SMALL, LARGE) as both:
        status, events = await both.ask()
        usage = events[-1]["usage"]
    assert (status, text_of(events)) == (200, MIXED)
    assert steps_of(usage) == [
        ("small", "keep"),
        ("large", "redo"),
        ("small", "keep"),
        ("large", "redo"),
        ("small", "keep"),
    ]
    assert events[-2]["choices"][0]["finish_reason"] == "stop"
    assert usage["pointsman"]["redos"] == 2


async def test_the_small_model_is_asked_once_and_once_more_for_each_redo() -> None:
    async with pair(SMALL, LARGE) as both:
        await both.ask()
        assert (len(both.small.requests), len(both.large.requests)) == (3, 2)
    async with pair(LARGE, LARGE) as both:
        await both.ask()
        assert (len(both.small.requests), len(both.large.requests)) == (1, 0)
    # When the last step is the rejected one, the large model ends the answer: nobody has to go on.
    async with pair([*LARGE[:4], "✗ Answer: 9"], LARGE) as both:
        await both.ask()
        assert (len(both.small.requests), len(both.large.requests)) == (1, 1)


async def test_a_whole_answer_is_the_same_as_a_streamed_one() -> None:
    async with pair(SMALL, LARGE) as both:
        status, whole = await both.ask(stream=False)
        _, events = await both.ask()
    assert status == 200
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": MIXED}
    assert whole["choices"][0]["finish_reason"] == "stop"
    assert whole["usage"] == events[-1]["usage"]


async def test_usage_adds_up_and_counts_what_was_thrown_away() -> None:
    async with pair(SMALL, LARGE) as both:
        _, whole = await both.ask(stream=False)
    usage, ours = whole["usage"], whole["usage"]["pointsman"]
    models = ours["models"]
    assert sum(step["characters"] for step in ours["steps"]) == len(whole["choices"][0]["message"]["content"])
    assert usage["completion_tokens"] == sum(model["completion_tokens"] for model in models.values())
    assert usage["prompt_tokens"] == sum(model["prompt_tokens"] for model in models.values())
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert sum(model["discarded_tokens"] for model in models.values()) > 0
    for name, model in models.items():
        kept = sum(step["tokens"] for step in ours["steps"] if step["model"] == name)
        # The blank line that ends the large model's step is its stop string: it is in no count.
        assert model["completion_tokens"] == kept + model["discarded_tokens"]
    assert ours["cost"] == pytest.approx((usage["prompt_tokens"] + 2 * usage["completion_tokens"]) / 1e6)


async def test_the_large_model_s_own_blank_line_in_a_block_is_no_step_end() -> None:
    code = "Code:\n```\na = 1\n\nb = 2\n```"
    async with pair(
        FakeModel("tiny", lambda prefix, n: "✗ no" if not prefix else "that is it"),
        FakeModel("huge", lambda prefix, n: f"{code}\n\nMORE"[len(prefix) :]),
    ) as both:
        _, events = await both.ask()
        assert text_of(events) == f"{code}\n\nthat is it"
        assert [request.get("stop") for request in both.large.requests] == [["\n\n"], None]


@pytest.mark.parametrize("stop_reason", [True, False])
async def test_a_list_that_the_large_model_writes_is_one_step(stop_reason: bool) -> None:
    points = "Points:\n- a b\n\n- c d"
    async with pair(
        FakeModel("tiny", lambda prefix, n: "✗ no" if not prefix else "that is it"),
        FakeModel("huge", lambda prefix, n: f"{points}\n\nAfter that MORE"[len(prefix) :], stop_reason=stop_reason),
    ) as both:
        _, events = await both.ask()
    assert text_of(events) == f"{points}\n\nthat is it"


@pytest.mark.parametrize("mode", list(ContinuationMode))
async def test_every_way_of_continuing_works(mode: ContinuationMode) -> None:
    only = frozenset({mode})
    refused = frozenset(ContinuationMode) - only
    small = FakeModel("tiny", writer(SMALL), modes=only, refused=refused)
    large = FakeModel("huge", writer(LARGE), modes=only)  # the other ways are ignored without a word
    async with pair(small, large) as both:
        _, events = await both.ask()
        records = both.stepwise.records()
        assert text_of(events) == MIXED
    assert (records["small"].mode, records["large"].mode) == (mode, mode)
    tried = list(ContinuationMode)[: list(ContinuationMode).index(mode)]
    assert [records["small"].modes[other].startswith("refused: ") for other in tried] == [True] * len(tried)
    assert [records["large"].modes[other] for other in tried] == ["restarted"] * len(tried)


async def test_a_small_model_that_cannot_be_continued_hands_over_for_good() -> None:
    small = FakeModel("tiny", writer(SMALL), modes=frozenset())
    async with pair(small, LARGE) as both:
        _, events = await both.ask()
        usage = events[-1]["usage"]
        assert text_of(events) == "\n\n".join([SMALL[0], *LARGE[1:]])
        assert len(both.small.requests) == 1
    assert steps_of(usage)[1:] == [("large", "handover")] * 4


async def test_after_the_last_redo_the_large_model_writes_the_rest() -> None:
    async with pair(["✗ bad"] * 6, LARGE, max_redos=2) as both:
        _, events = await both.ask()
        assert text_of(events) == "\n\n".join(LARGE)
        assert (len(both.small.requests), len(both.large.requests)) == (3, 3)
    assert [action for _, action in steps_of(events[-1]["usage"])] == ["redo", "redo"] + ["handover"] * 3
    assert events[-1]["usage"]["pointsman"]["redos"] == 2


async def test_text_goes_out_step_by_step_while_the_model_still_writes() -> None:
    small = FakeModel("tiny", writer(LARGE), released=asyncio.Semaphore(0))
    async with pair(small, LARGE) as both:
        body = {"messages": [{"role": "user", "content": "?"}], "stream": True}
        assert small.released is not None
        async with await answer(both.stepwise, body, {}) as reply:
            first = asyncio.create_task(anext(reply.body))
            for _ in range(5):  # the five words of the first step, but not its blank line
                small.released.release()
            await asyncio.sleep(0.05)
            assert not first.done()
            small.released.release()
            parts = [await first] + [await anext(reply.body) for _ in range(4)]
        words = [json.loads(part[6:])["choices"][0]["delta"]["content"] for part in parts]
        assert words == ["ONE", " and", " one", " is", " two"]  # token by token, as it was written


@pytest.mark.slow
async def test_a_reader_that_stops_reading_stops_the_model() -> None:
    steps = [f"step {i} " + "blah " * 200 for i in range(400)]
    async with pair(steps, LARGE, budget=AnswerBudget(tokens=10**6)) as both:
        body = {"messages": [{"role": "user", "content": "?"}], "stream": True}
        async with await answer(both.stepwise, body, {}) as reply:
            await anext(reply.body)
            await asyncio.sleep(0.3)
            halted = both.small.sent
            await asyncio.sleep(0.3)
            assert both.small.sent == halted  # the connection's buffers are full, and nobody reads on
            assert halted < 0.5 * 400 * 200
            for _ in range(3):
                await anext(reply.body)


async def test_fixed_strategies_keep_one_stream() -> None:
    for strategy, text, requests in (
        (Fixed.always_small(), SMALL, (1, 0)),
        (Fixed.always_large(), LARGE, (0, 1)),
        (Fixed.first_n(2), LARGE[:2] + SMALL[2:], (1, 2)),
        (Random(p=0.0), SMALL, (1, 0)),
    ):
        async with pair(SMALL, LARGE, strategy) as both:
            _, events = await both.ask()
            assert text_of(events) == "\n\n".join(text)
            assert (len(both.small.requests), len(both.large.requests)) == requests


async def test_glimpse_rejects_at_the_first_token() -> None:
    small = FakeModel("tiny", writer(["good start here", "✗ bad start here with much more text", "end of it"]))
    async with pair(small, ["G", "GOOD one", "E"], Glimpse(0.3)) as both:
        _, events = await both.ask()
        usage = events[-1]["usage"]["pointsman"]
    assert text_of(events) == "good start here\n\nGOOD one\n\nend of it"
    assert usage["redos"] == 1


async def test_verify_asks_the_large_model_for_one_token() -> None:
    def mark(prefix: str, n: int) -> str:
        last = large.requests[-1]["messages"][-1]["content"]
        return ("2" if "✗" in last.split("next step is")[1] else "8") if "digit" in last else writer(LARGE)(prefix, n)

    large = FakeModel("huge", mark)
    async with pair(SMALL, large, Verify(0.5)) as both:
        _, events = await both.ask()
        assert text_of(events) == MIXED
        assert [request["max_tokens"] for request in large.requests if not request.get("stream")] == [1] * 5


async def test_a_verifier_that_gives_no_mark_counts_as_a_rejection() -> None:
    async with pair(SMALL, LARGE, Verify(0.5), max_redos=9) as both:
        _, events = await both.ask()
        assert text_of(events) == "\n\n".join(LARGE)
        assert both.stepwise.metrics.safe_side["verify_garbage"] == 5
    assert {action for _, action in steps_of(events[-1]["usage"])} == {"unjudged"}


async def test_the_client_s_own_limit_holds_over_both_models() -> None:
    async with pair(SMALL, LARGE) as both:
        _, whole = await both.ask(stream=False, max_tokens=12)
    assert whole["choices"][0]["finish_reason"] == "length"
    assert MIXED.startswith(whole["choices"][0]["message"]["content"])
    assert sum(step["tokens"] for step in whole["usage"]["pointsman"]["steps"]) <= 12


@pytest.mark.parametrize(
    ("budget", "reason"),
    [(AnswerBudget(steps=1), "steps"), (AnswerBudget(seconds=0.0), "seconds"), (AnswerBudget(money=0.0), "money")],
)
async def test_when_a_budget_is_spent_the_small_model_goes_on_alone(budget: AnswerBudget, reason: str) -> None:
    async with pair(SMALL, LARGE, budget=budget) as both:
        _, events = await both.ask()
        assert text_of(events) == "\n\n".join(SMALL)
        assert len(both.small.requests) == 1
        assert both.stepwise.metrics.settled[reason] == 1
    assert events[-1]["usage"]["pointsman"]["settled"] == reason


async def test_a_large_model_that_writes_the_rest_stops_when_the_money_is_spent() -> None:
    long = [f"step {i} " + "word " * 50 for i in range(40)]
    large = FakeModel("huge", writer(long), chunk=10)
    # Two dollars a million tokens: a thousand tokens are a fifth of a cent, and the small model's are counted too.
    async with pair(long, large, Fixed.always_large(), budget=AnswerBudget(money=0.002)) as both:
        _, events = await both.ask()
        assert both.stepwise.metrics.settled["money"] == 1
    models = {step["model"] for step in events[-1]["usage"]["pointsman"]["steps"]}
    assert models == {"large", "small"}
    assert text_of(events) == "\n\n".join(long)


async def test_a_limit_that_falls_between_two_streams_ends_the_answer() -> None:
    # The large model's first stream ends at a blank line inside a block; nothing is left for the second.
    async with pair(
        FakeModel("tiny", lambda prefix, n: "✗ no"),
        FakeModel("huge", lambda prefix, n: "```\n\nb = 2\n```"[len(prefix) :]),
    ) as both:
        _, whole = await both.ask(stream=False, max_tokens=1)
        assert whole["choices"][0]["finish_reason"] == "length"
        assert all(request["max_tokens"] > 0 for request in (*both.small.requests, *both.large.requests))


async def test_the_token_budget_ends_the_answer() -> None:
    async with pair(["word " * 30] * 50, LARGE, budget=AnswerBudget(tokens=100)) as both:
        _, events = await both.ask()
    assert events[-2]["choices"][0]["finish_reason"] == "length"
    assert events[-1]["usage"]["completion_tokens"] < 300


async def test_a_model_that_goes_in_circles_is_replaced_and_then_stopped() -> None:
    again = "the same thing again and again"
    async with pair([again] * 30, LARGE[:1] * 2 + ["NEW thing", *LARGE]) as both:
        _, events = await both.ask()
        actions = [action for _, action in steps_of(events[-1]["usage"])]
        assert actions[:3] == ["keep", "keep", "loop"]
    async with pair([again] * 300, [again] * 300) as both:
        _, events = await both.ask()
        assert events[-2]["choices"][0]["finish_reason"] in ("length", "stop")
        assert len(events[-1]["usage"]["pointsman"]["steps"]) < 40


async def test_a_step_is_capped() -> None:
    long = " ".join(f"word{i}" for i in range(100))
    async with pair([long], LARGE, limits=StepLimits(1, 20)) as both:
        _, events = await both.ask()
    assert max(step["tokens"] for step in events[-1]["usage"]["pointsman"]["steps"]) <= 20
    assert text_of(events) == long


class Watching(Marked):
    """Looks at drafts that are not over yet, and says no where there is a ✗ in them."""

    def begin(self, context: AnswerContext) -> Run:
        self.open += 1
        self.looked: list[int] = []
        return _WatchingRun(self)


class _WatchingRun(MarkedRun):
    async def running(self, draft: Draft) -> Judgement:
        assert isinstance(self.rule, Watching)
        self.rule.looked.append(draft.step.size)
        return Judgement("✗" not in draft.step.text, 0.2)


async def test_a_draft_that_would_be_the_whole_answer_is_rejected_in_its_middle() -> None:
    bad = " ".join(["word"] * 50 + ["✗"] + ["word"] * 1000)
    small = FakeModel("tiny", lambda prefix, n: bad if not prefix else "and so it ends", delay=0.001)
    strategy = Watching()
    async with pair(small, ["WORD by word", "so it ends"], strategy, verdict_tokens=20) as both:
        _, events = await both.ask()
        await both.quiet()
    assert strategy.looked == [20, 40, 60]
    assert text_of(events) == "WORD by word\n\nand so it ends"
    ours = events[-1]["usage"]["pointsman"]
    assert [(step["model"], step["action"], step.get("score")) for step in ours["steps"]] == [
        ("large", "redo", 0.2), ("small", "keep", 0.9),
    ]  # fmt: skip
    assert ours["models"]["small"]["discarded_tokens"] < 500
    assert small.gone == 1  # it did not write its thousand words


async def test_a_draft_that_is_looked_at_and_not_rejected_is_judged_at_its_end() -> None:
    steps = [" ".join(["word"] * 50), "✗ " + " ".join(["word"] * 50), "end"]
    for every, looked in ((20, [20, 40, 20]), (1000, [])):
        strategy = Watching()
        async with pair(steps, ["A", "B", "C"], strategy, verdict_tokens=every) as both:
            _, events = await both.ask()
        assert strategy.looked == looked
        assert text_of(events) == f"{steps[0]}\n\nB\n\nend"


async def test_log_probabilities_reach_a_client_that_asked_for_them() -> None:
    async with pair(SMALL, LARGE) as both:
        _, whole = await both.ask(stream=False, logprobs=True, top_logprobs=2)
    entries = whole["choices"][0]["logprobs"]["content"]
    text = whole["choices"][0]["message"]["content"]
    assert "".join(entry["token"] for entry in entries) == text.replace("\n\nthree", "three").replace(
        "\n\nAnswer", "Answer"
    )
    assert {len(entry["top_logprobs"]) for entry in entries} == {2}


async def test_many_tokens_in_one_event_make_no_difference() -> None:
    for chunk in (2, 3, 50):
        async with pair(
            FakeModel("tiny", writer(SMALL), chunk=chunk), FakeModel("huge", writer(LARGE), chunk=chunk)
        ) as both:
            _, events = await both.ask()
            assert text_of(events) == MIXED


async def test_counts_in_every_event_make_aborted_streams_exact() -> None:
    small = FakeModel("tiny", writer(SMALL), running_usage=True)
    async with pair(small, LARGE) as both:
        _, events = await both.ask()
        assert both.stepwise.records()["small"].running_usage
    assert not events[-1]["usage"]["pointsman"]["estimated"]


async def test_the_large_model_s_prefix_is_warmed_when_a_score_is_low() -> None:
    async with pair(FakeModel("tiny", writer(LARGE), delay=0.005), LARGE, warm_below=0.95) as both:
        _, events = await both.ask()
        warmed = [request for request in both.large.requests if request.get("max_tokens") == 1]
        assert warmed
    assert text_of(events) == "\n\n".join(LARGE)


async def test_a_warm_up_that_fails_harms_nobody() -> None:
    large = FakeModel("huge", writer(LARGE), faults={-2: Fault("status")})
    async with pair(FakeModel("tiny", writer(LARGE), delay=0.005), large, warm_below=0.95) as both:
        _, events = await both.ask()
        assert both.stepwise.metrics.upstream_errors["large", "warm"] >= 1
    assert text_of(events) == "\n\n".join(LARGE)


async def test_thoughts_in_a_field_of_their_own_pass_unjudged() -> None:
    small = FakeModel("tiny", writer(SMALL), thoughts="Let me think.")
    async with pair(small, LARGE) as both:
        _, events = await both.ask()
        _, whole = await both.ask(stream=False)
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "reasoning_content": "Let me think."}
    assert text_of(events) == MIXED
    assert whole["choices"][0]["message"]["reasoning_content"] == "Let me think."


async def test_another_finish_reason_is_the_client_s_too() -> None:
    async with pair(FakeModel("tiny", writer(SMALL[:2]), finish="content_filter"), LARGE) as both:
        _, events = await both.ask()
    assert events[-2]["choices"][0]["finish_reason"] == "content_filter"


async def test_white_space_at_the_end_is_no_step() -> None:
    async with pair(FakeModel("tiny", lambda prefix, n: "one is one\n\n\n"), LARGE) as both:
        _, events = await both.ask()
    assert text_of(events) == "one is one\n\n\n"
    assert len(events[-1]["usage"]["pointsman"]["steps"]) == 1


async def test_an_empty_answer_is_an_answer() -> None:
    async with pair(FakeModel("tiny", lambda prefix, n: ""), LARGE) as both:
        _, whole = await both.ask(stream=False)
    assert whole["choices"][0]["message"]["content"] == ""
    assert whole["usage"]["pointsman"]["steps"] == []


async def test_a_verifier_without_log_probabilities_gives_its_mark_in_words() -> None:
    def mark(prefix: str, n: int) -> str:
        last = large.requests[-1]["messages"][-1]["content"]
        return (" 2" if "✗" in last.split("next step is")[1] else " 8") if "digit" in last else writer(LARGE)(prefix, n)

    large = FakeModel("huge", mark, top=-1)
    async with pair(SMALL, large, Verify(0.5)) as both:
        _, events = await both.ask()
        assert text_of(events) == MIXED
    large.faults = {}
    async with pair(SMALL, FakeModel("huge", writer(LARGE), faults={0: Fault("status")}), Verify(0.5)) as both:
        await both.ask()
        assert both.stepwise.metrics.safe_side["verify_failed"] == 1


# --- faults ----------------------------------------------------------------------------------------------------------

KINDS = [
    "kill",
    "hang",
    "comments",
    "garbage",
    "badjson",
    "cut",
    "midtoken",
    "done",
    "error",
    "silent",
    "status",
    "html",
]


@pytest.mark.parametrize("after", [0, 1, 7, 14])
@pytest.mark.parametrize("kind", KINDS)
async def test_when_the_small_model_fails_the_large_one_goes_on_from_the_same_prefix(kind: str, after: int) -> None:
    small = FakeModel("tiny", writer(LARGE), faults={0: Fault(kind, after)})
    async with pair(small, LARGE, hasty="small") as both:
        status, events = await both.ask()
        usage = events[-1]["usage"]
        assert both.stepwise.metrics.upstream_errors.total() == 1
    assert (status, text_of(events)) == (200, "\n\n".join(LARGE))
    assert usage["pointsman"]["settled"] == "upstream"
    assert steps_of(usage)[-1] == ("large", "takeover")


@pytest.mark.parametrize("after", [0, 1, 3])
@pytest.mark.parametrize("kind", KINDS)
async def test_when_the_large_model_fails_the_small_one_goes_on(kind: str, after: int) -> None:
    large = FakeModel("huge", writer(LARGE), faults={-2: Fault(kind, after)})
    async with pair(SMALL, large, hasty="large") as both:
        status, events = await both.ask()
    assert status == 200
    assert text_of(events).startswith(SMALL[0] + "\n\n")
    assert text_of(events).endswith("\n\n".join(SMALL[2:]))
    assert steps_of(events[-1]["usage"])[-1] == ("small", "takeover")


@pytest.mark.parametrize("kind", KINDS)
async def test_when_both_are_down_from_the_start_the_client_gets_an_http_error(kind: str) -> None:
    async with pair(LARGE, LARGE, hasty="small large") as both:
        if kind in ("status", "silent", "html"):
            both.small.faults = both.large.faults = {-2: Fault(kind)}
        else:  # whatever breaks the stream breaks it before the first step
            both.small.faults = both.large.faults = {-2: Fault(kind, 1)}
        status, body = await both.ask(stream=False)
    assert status == (504 if kind in ("hang", "silent", "comments") else 502)
    assert body["error"]["code"] == "upstream_error"
    assert "Neither model could answer" in body["error"]["message"]


async def test_an_error_of_the_client_s_own_making_is_passed_on() -> None:
    async with pair(LARGE, LARGE) as both:
        both.small.faults = both.large.faults = {-2: Fault("status", status=400)}
        status, body = await both.ask()
    assert (status, body["error"]["code"]) == (400, "y")


async def test_when_both_die_in_the_middle_the_stream_ends_with_an_error_event() -> None:
    small = FakeModel("tiny", writer(LARGE), faults={0: Fault("kill", 8)})
    large = FakeModel("huge", writer(LARGE), faults={-2: Fault("kill", 2)})
    async with pair(small, large) as both:
        status, events = await both.ask()
        assert both.stepwise.metrics.answers["failed"] == 1
    assert status == 200
    assert events[-1]["error"]["code"] == "upstream_error"
    assert text_of(events).startswith(LARGE[0])


async def test_nobody_listens_on_the_port() -> None:
    async with pair(LARGE, LARGE, hasty="small large") as both:
        await both.small.stop()
        _, events = await both.ask()
        assert text_of(events) == "\n\n".join(LARGE)
        await both.large.stop()
        status, _ = await both.ask()
        assert status == 502


async def test_a_slow_model_is_only_slow() -> None:
    small = FakeModel("tiny", writer(SMALL), faults={-2: Fault("slow")})
    async with pair(small, LARGE) as both:
        _, events = await both.ask()
    assert text_of(events) == MIXED


async def test_a_server_that_never_says_done_is_not_waited_for_for_long() -> None:
    small = FakeModel("tiny", writer(LARGE), faults={0: Fault("nodone", 0)})
    async with pair(small, LARGE, hasty="small") as both, asyncio.timeout(PATIENCE):
        _, events = await both.ask()
    assert text_of(events) == "\n\n".join(LARGE)


async def test_the_deadline_ends_the_answer_with_an_error() -> None:
    small = FakeModel("tiny", writer(LARGE), faults={0: Fault("hang", 8), 1: Fault("hang", 0)})
    async with pair(small, LARGE) as both:
        loop = asyncio.get_running_loop()
        body: dict[str, Any] = {"messages": [{"role": "user", "content": "?"}], "stream": True}
        async with await answer(both.stepwise, body, {}, deadline=loop.time() + 0.3) as reply:
            data = b"".join([part async for part in reply.body])
        assert b'"code":"timeout"' in data
        assert text_of([json.loads(part[6:]) for part in data.split(b"\n\n")[:-2]]).startswith(LARGE[0])
        reply = await answer(both.stepwise, body | {"stream": False}, {}, deadline=loop.time() + 0.3)
        assert reply.status == 504


@pytest.mark.parametrize(
    ("ends", "mark", "parts"),
    [
        (Ends.LINE, "\n", ["one and one is two\n", "two {} and two\n", "three is fine"]),
        (Ends.SENTENCE, ".", ["One and one is two.", " Two {} and two.", " Three is fine."]),
        (Ends.SENTENCE, "。", ["一加一等于二。", "二{}加二。", "三。"]),
    ],
)
async def test_steps_end_at_lines_and_sentences_too(ends: Ends, mark: str, parts: list[str]) -> None:
    def speaker(doubt: str) -> Callable[[str, int], str]:
        return lambda prefix, _: "".join(parts[prefix.count(mark) :]).format(doubt)

    small, large = FakeModel("tiny", speaker("✗")), FakeModel("huge", speaker("right"))
    async with pair(small, large, limits=StepLimits(1, 512, ends)) as both:
        _, events = await both.ask()
    assert text_of(events) == "".join(parts).format("right")
    assert steps_of(events[-1]["usage"]) == [
        ("small", "keep"), ("large", "redo"), ("small", "keep"),
    ]  # fmt: skip
    assert (len(small.requests), len(large.requests)) == (2, 1)
    assert large.requests[0].get("stop") is None  # what follows a line or a sentence tells whether it ends there


async def test_a_server_without_log_probabilities_serves_strategies_that_need_none() -> None:
    async with pair(FakeModel("tiny", writer(SMALL), top=-1), FakeModel("huge", writer(LARGE), top=-1)) as both:
        _, events = await both.ask()
        assert text_of(events) == MIXED
        assert both.stepwise.records()["small"].top_logprobs == -1


async def test_a_model_that_starts_over_in_the_middle_of_an_answer_is_found_out() -> None:
    long = ["This is the first long step of a rather long answer, with many words in it", *LARGE[1:]]
    small = FakeModel("tiny", writer([long[0], "✗ bad", *SMALL[2:]]))
    large = FakeModel("huge", lambda prefix, n: "\n\n".join(long))  # ignores its prefix
    async with pair(small, large, start=False) as both:
        setup = await both.stepwise.ready({}, None)
        setup.large.capability = both.stepwise.records()["small"]  # what the probe would say had it been deceived
        _, events = await both.ask()
        assert both.stepwise.metrics.upstream_errors["large", "restart"] == 1
    assert text_of(events).count(long[0]) == 1


# --- the client goes -------------------------------------------------------------------------------------------------


async def _gone(both: Pair, tokens: int, turns: int) -> None:
    """A client that goes after so many turns of the event loop once the models have written so many tokens."""
    body = {"messages": [{"role": "user", "content": "?"}], "stream": True}

    async def client() -> None:
        async with await answer(both.stepwise, body, {}) as reply:
            async for _ in reply.body:
                pass

    task = asyncio.create_task(client())
    for _ in range(2000):
        if both.small.sent + both.large.sent >= tokens or task.done():
            break
        await asyncio.sleep(0)
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])


@pytest.mark.parametrize(
    ("tokens", "turns"), [*((tokens, 0) for tokens in range(1, 32, 2)), *((0, turns) for turns in range(0, 40, 2))]
)
async def test_a_client_that_goes_at_any_point_leaves_nothing_behind(tokens: int, turns: int) -> None:
    permits = asyncio.Semaphore(tokens)
    small = FakeModel("tiny", writer(SMALL), released=permits)
    large = FakeModel("huge", writer(LARGE), released=permits)
    async with pair(small, large) as both:
        await _gone(both, tokens, turns)
        await both.quiet()
        answers = both.stepwise.metrics.answers
        assert answers["cancelled"] + answers["complete"] == (1 if tokens else answers["cancelled"])


async def test_an_answer_that_is_never_read_is_freed() -> None:
    async with pair(FakeModel("tiny", writer(SMALL), delay=0.05), LARGE) as both:
        reply = await answer(both.stepwise, {"messages": [{"role": "user", "content": "?"}], "stream": True}, {})
        await reply.aclose()
        await reply.aclose()
        await both.quiet()
        assert both.small.sent < 10


async def test_throwing_into_an_answer_frees_it_too() -> None:
    async with pair(FakeModel("tiny", writer(SMALL), delay=0.01), LARGE) as both:
        reply = await answer(both.stepwise, {"messages": [{"role": "user", "content": "?"}], "stream": True}, {})
        assert await reply.body.asend(None)
        with pytest.raises(KeyError, match="mine"):
            await reply.body.athrow(KeyError("mine"))
        await both.quiet()


async def test_closing_between_two_pieces_stops_the_model() -> None:
    for pieces in range(1, 5):
        async with pair(
            FakeModel("tiny", writer(SMALL), delay=0.01), FakeModel("huge", writer(LARGE), delay=0.01)
        ) as both:
            reply = await answer(both.stepwise, {"messages": [{"role": "user", "content": "?"}], "stream": True}, {})
            for _ in range(pieces):
                await anext(reply.body)
            await reply.aclose()
            with pytest.raises(StopAsyncIteration):
                await anext(reply.body)


# --- no rejected text ------------------------------------------------------------------------------------------------

STEP = st.tuples(st.booleans(), st.integers(0, 6))


@pytest.mark.no_cover
@few_and_many(15, 60)
def test_no_rejected_text_ever_reaches_the_client(examples: int) -> None:
    @given(
        drafts=st.lists(STEP, min_size=1, max_size=7),
        faults=st.dictionaries(
            st.integers(0, 3), st.tuples(st.sampled_from(["kill", "cut", "error"]), st.integers(0, 12)), max_size=2
        ),
        failing=st.sampled_from(["small", "large"]),
        chunk=st.integers(1, 5),
        max_redos=st.integers(0, 4),
        stop_reason=st.booleans(),
    )
    @settings(max_examples=examples, deadline=None)
    def holds(
        drafts: list[tuple[bool, int]],
        faults: dict[int, tuple[str, int]],
        failing: str,
        chunk: int,
        max_redos: int,
        stop_reason: bool,
    ) -> None:
        async def tried() -> None:
            numbers = itertools.count()

            def small_writes(prefix: str, request: int) -> str:
                done = prefix.count("\n\n")
                rest = [f"draft{next(numbers)}{' ✗' if bad else ''}" + " word" * more for bad, more in drafts[done:]]
                return "\n\n".join(rest)

            small = FakeModel("tiny", small_writes, chunk=chunk)
            large = FakeModel(
                "huge",
                lambda prefix, n: "\n\n".join(f"large{i}" for i in range(prefix.count("\n\n"), len(drafts))),
                chunk=chunk,
                stop_reason=stop_reason,
            )
            (small if failing == "small" else large).faults = {
                n: Fault(kind, after) for n, (kind, after) in faults.items()
            }
            marked = Marked()
            async with pair(small, large, marked, max_redos=max_redos) as both:
                status, events = await both.ask()
            assert status == 200 or "error" in events
            seen = text_of(events) if status == 200 else ""
            for rejected in marked.rejected:
                assert rejected.split()[0] not in seen.replace("\n", " ").split()
            if not faults:
                assert "✗" not in seen
                assert seen.count("\n\n") == len(drafts) - 1
                assert len(small.requests) == 1 + min(len(marked.rejected), max_redos) - (
                    # a rejected last draft is finished by the large model: nobody has to go on after it
                    1 if drafts[-1][0] and len(marked.rejected) <= max_redos else 0
                )

        asyncio.run(tried())

    holds()
