"""The third action: the large model marks a draft while the small one goes on."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwise.asking import ready
from stepwise.asking.pair import Setup
from stepwise.asking.ready import Stepwise
from stepwise.loop import aside
from stepwise.policy import CalibrationRow, KappaPair, Marks, StepPolicy
from stepwise.steps import StepLimits
from stepwise.strategies.fixed import Fixed
from stepwise.strategies.policy import PolicyStrategy
from stepwise.strategies.verify import Verify
from stepwise.strategy import AnswerContext, Draft, Judgement, Run, StepJudge, Strategy
from tests.extproc.transport.conftest import until
from tests.patience import PATIENCE
from tests.stepwise.fakes import FakeModel, Fault, Pair, answer, pair, text_of, words, writer
from tests.stepwise.onnxes import metadata, write
from tests.volume import few_and_many
from upstream.tokens import estimate
from upstream.usage import Spent

SMALL = ["one and one is two", "two ? and two is five ✗", "three ? is fine", "four is right", "Answer: ? 9"]
LARGE = ["ONE and one is two", "TWO and two is four", "THREE is fine", "FOUR is right", "Answer: 10"]
MIXED = "\n\n".join([SMALL[0], LARGE[1], *SMALL[2:]])


class Doubtful(Strategy):
    """Asks about every draft that has a ? in it, and keeps all others."""

    name = "doubtful"
    asks: Marks | None = "digit"

    def __init__(self) -> None:
        self.open = 0

    def begin(self, context: AnswerContext) -> Run:
        assert context.marks
        self.open += 1
        return _DoubtfulRun(self)


class _DoubtfulRun(StepJudge):
    def __init__(self, rule: Doubtful) -> None:
        self._rule = rule

    async def judge(self, draft: Draft) -> Judgement:
        return Judgement(False, 0.5, ask=0.6) if "?" in draft.step.text else Judgement(True, 0.9)

    def close(self) -> None:
        self._rule.open -= 1


def marker(name: str = "huge", steps: list[str] = LARGE, **more: Any) -> FakeModel:
    """A large model that marks steps with a ✗ 1, and others 8."""

    def say(prefix: str, n: int) -> str:
        last = str(model.requests[-1].get("messages", [{}])[-1].get("content"))
        if "digit" in last:
            return "1" if "✗" in last.split("next step is")[1] else "8"
        return writer(steps)(prefix, n)

    model = FakeModel(name, say, **more)
    return model


def asked(model: FakeModel) -> int:
    return sum(not request.get("stream") for request in model.requests)


async def test_the_mark_decides_about_drafts_that_were_asked_about() -> None:
    large = marker()
    async with pair(SMALL, large, Doubtful()) as both:
        _, events = await both.ask()
        metrics = both.stepwise.metrics
    assert text_of(events) == MIXED
    steps = [(s["model"], s["action"], s.get("mark")) for s in events[-1]["usage"]["pointsman"]["steps"]]
    good, bad = pytest.approx(8 / 9, abs=0.05), pytest.approx(1 / 9, abs=0.05)
    assert steps == [
        ("small", "keep", None),
        ("large", "redo", bad),
        ("small", "keep", good),
        ("small", "keep", None),
        ("small", "keep", good),
    ]
    assert (asked(large), dict(metrics.asks)) == (3, {"kept": 2, "rejected": 1})
    # One request to begin with, one after the redo; asking alone opens none.
    assert (len(both.small.requests), len(large.requests)) == (2, 4)


async def test_the_small_model_goes_on_while_the_mark_is_on_its_way_and_nobody_sees_the_draft() -> None:
    large = marker(marking=asyncio.Event())
    async with pair(["one ? and one is two", "two is a much longer step", "Answer: 9"], large, Doubtful()) as both:
        body = {"messages": [{"role": "user", "content": "?"}], "stream": True}
        async with await answer(both.stepwise, body, {}) as reply:
            first = asyncio.create_task(anext(reply.body))
            await until(lambda: both.small.sent >= 13)  # the step and the next one
            await asyncio.sleep(0.05)
            assert not first.done()
            assert large.marking is not None
            large.marking.set()
            async with asyncio.timeout(PATIENCE):
                data = await first + b"".join([part async for part in reply.body])
    said = [json.loads(line[6:])["choices"][0]["delta"].get("content") for line in data.split(b"\n\n")[:6]]
    assert said == ["one", " ?", " and", " one", " is", " two"]


@pytest.mark.slow
async def test_a_bad_mark_stops_the_small_model_in_the_middle_of_its_next_draft() -> None:
    small = FakeModel("tiny", writer(["bad ? ✗", "next " * 5000, "Answer: 9"]), delay=0.001)
    large = marker(steps=["GOOD", "MORE", "Answer: 10"], marking=asyncio.Event())
    async with pair(small, large, Doubtful(), limits=StepLimits(1, 100_000)) as both:
        task = asyncio.create_task(both.ask())
        await until(lambda: small.sent >= 10)
        assert large.marking is not None
        large.marking.set()
        await until(lambda: small.gone > 0)
        assert small.sent < 4000
        small.delay = 0.0
        _, events = await task
    usage = events[-1]["usage"]["pointsman"]
    assert text_of(events).startswith("GOOD\n\nnext")
    assert usage["models"]["small"]["discarded_tokens"] >= 10


@pytest.mark.parametrize("fault", ["status", "kill"])
async def test_without_a_mark_the_large_model_writes_the_step(fault: str) -> None:
    large = marker(faults={0: Fault(fault)})  # its first request is the mark of the second step
    async with pair(SMALL, large, Doubtful()) as both:
        _, events = await both.ask()
        metrics = both.stepwise.metrics
    assert text_of(events) == MIXED
    assert [s["action"] for s in events[-1]["usage"]["pointsman"]["steps"]][1] == "unjudged"
    assert (metrics.safe_side["verify_failed"], metrics.asks["failed"]) == (1, 1)


@pytest.mark.parametrize("strategy", [Doubtful, lambda: Verify(0.6)])
async def test_an_answer_waits_once_for_marks_that_do_not_come(strategy: Callable[[], Strategy]) -> None:
    large = marker(marking=asyncio.Event())
    async with pair(SMALL, large, strategy(), hasty="large") as both:
        _, events = await both.ask()
        metrics = both.stepwise.metrics
    assert (asked(large), metrics.upstream_errors["large", "timeout"]) == (1, 1)
    steps = [(s["model"], s["action"]) for s in events[-1]["usage"]["pointsman"]["steps"]]
    assert [action for model, action in steps if model == "large"] == ["unjudged"] * metrics.safe_side["verify_failed"]
    assert metrics.safe_side["verify_failed"] >= 3


@pytest.mark.parametrize("kind", ["policy", "verify"])
async def test_one_answer_waits_for_a_server_that_hangs_on_marks_and_the_next_ones_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    strategy: Strategy = policy(tmp_path) if kind == "policy" else Verify(0.6)
    large = marker(marking=asyncio.Event())
    async with pair(SMALL, large, strategy, hasty="large") as both:
        setup = both.stepwise._setup
        again = Pair(both.small, large, Stepwise(setup), strategy)  # another decision with the same models
        texts = [text_of((await one.ask())[1]) for one in (both, both, again, both)]
        metrics = setup.metrics
        assert (asked(large), metrics.upstream_errors["large", "timeout"]) == (1, 1)
        assert texts == ["\n\n".join(LARGE)] * 4  # that is also what kappa alone says
        assert metrics.safe_side["verify_failed"] == (1 if kind == "policy" else 4) * len(LARGE)
        assert caplog.text.count("stepwise_marks_hang") == 1

        monkeypatch.setattr(ready, "_RETRY", 0.0)
        assert large.marking is not None
        large.marking.set()
        await both.ask()  # meanwhile the server is asked whether it gives marks again
        await until(lambda: setup.large.hung is None)
        before = asked(large)
        _, events = await both.ask()
        assert (asked(large) - before, text_of(events)) == (5, MIXED)


@pytest.mark.parametrize(("long", "hangs"), [(0.0, True), (PATIENCE, False)])
async def test_a_server_hangs_too_when_nobody_waits_for_its_mark_any_longer(
    monkeypatch: pytest.MonkeyPatch, long: float, hangs: bool
) -> None:
    monkeypatch.setattr(aside, "_LONG", long)
    large = marker(marking=asyncio.Event())
    async with pair(SMALL, large, Doubtful()) as both:
        task = asyncio.create_task(both.ask())
        await until(lambda: asked(large) > 0)
        task.cancel()
        await asyncio.wait([task])
        await until(lambda: large.gone > 0)
        assert (both.stepwise._setup.large.hung is not None) == hangs


async def test_when_the_small_model_dies_meanwhile_the_large_one_goes_on() -> None:
    small = FakeModel("tiny", writer(SMALL), faults={0: Fault("kill", 16)})
    small.released = asyncio.Semaphore(15)  # a token more than the first two steps
    large = marker(marking=asyncio.Event())
    async with pair(small, large, Doubtful()) as both:
        task = asyncio.create_task(both.ask())
        await until(lambda: asked(large) > 0)
        small.released.release()
        _, events = await task
        assert large.marking is not None
        large.marking.set()
    assert text_of(events) == "\n\n".join([SMALL[0], *LARGE[1:]])
    told = events[-1]["usage"]["pointsman"]
    # The mark that nobody waited for has read the question, the first step and the second.
    assert (told["models"]["large"]["requests"], told["estimated"]) == (2, True)
    rest = 10 + len(words(SMALL[0] + "\n\n"))
    assert told["models"]["large"]["prompt_tokens"] == rest + 10 + len(words("\n\n".join(SMALL[:2]) + "\n\n"))


@pytest.mark.parametrize("turns", [*range(0, 40, 3), None])
async def test_a_client_that_goes_leaves_no_question_behind(turns: int | None) -> None:
    """It goes after so many turns of the loop, or in the middle of the next draft; no mark ever comes."""
    small, large = FakeModel("tiny", writer(["? one", "two three four five six"])), marker(marking=asyncio.Event())
    small.released = asyncio.Semaphore(5 if turns is None else 99)
    charged: list[Spent] = []
    async with pair(small, large, Doubtful()) as both:
        body = {"messages": [{"role": "user", "content": "?"}], "stream": True}
        reply = await answer(both.stepwise, body, {}, charge=charged.append)
        first = asyncio.create_task(anext(reply.body))
        for _ in range(turns or 0):
            await asyncio.sleep(0)
        if turns is None:
            await until(lambda: asked(large) > 0)
        first.cancel()
        await asyncio.wait([first])
        await reply.aclose()
        await until(lambda: large.gone == asked(large))
        assert turns is not None or asked(large) > 0, "no question was asked: the test ended nothing"
    [spent] = charged
    if turns is None:  # what the large model was reading is paid, too
        assert spent.prompt == 2 * estimate(str(body["messages"])) + len(words("? one\n\n"))


async def test_marks_of_a_server_that_does_not_count_are_estimated() -> None:
    large = marker(counts_marks=False)
    async with pair(SMALL, large, Doubtful()) as both:
        _, events = await both.ask()
    ours = events[-1]["usage"]["pointsman"]
    assert ours["estimated"] is True
    assert ours["models"]["large"]["prompt_tokens"] > 50


@pytest.mark.slow
@pytest.mark.no_cover
@few_and_many(10, 40)
def test_asking_gives_the_same_answer_as_waiting_for_each_mark(examples: int) -> None:
    @given(
        drafts=st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 6)), min_size=1, max_size=7),
        chunk=st.integers(1, 5),
        max_redos=st.integers(0, 4),
    )
    @settings(max_examples=examples, deadline=None)
    def holds(drafts: list[tuple[bool, bool, int]], chunk: int, max_redos: int) -> None:
        async def tried() -> None:
            steps = [
                f"draft{i}" + " ?" * (bad or doubt) + " ✗" * bad + " word" * more
                for i, (bad, doubt, more) in enumerate(drafts)
            ]
            rewritten = [f"large{i}" for i in range(len(drafts))]
            texts, usages = [], []
            for strategy in (Doubtful(), Verify(0.6)):
                small, large = FakeModel("tiny", writer(steps), chunk=chunk), marker(steps=rewritten, chunk=chunk)
                async with pair(small, large, strategy, max_redos=max_redos) as both:
                    _, events = await both.ask()
                texts.append(text_of(events))
                usages.append([(s["model"], s["action"]) for s in events[-1]["usage"]["pointsman"]["steps"]])
            assert texts[0] == texts[1]
            assert usages[0] == usages[1]

        asyncio.run(tried())

    holds()


def policy(folder: Path, marks: str = "digit") -> PolicyStrategy:
    """P(keep) is 0.5; kappa alone would reject that, and the pair asks."""
    meta = metadata(format="2", marks=json.dumps(marks))
    row = CalibrationRow("accuracy_loss", 0.01, 0.8, 0.1, KappaPair(0.3, 0.9, 0.7))
    return PolicyStrategy(StepPolicy(write(folder / "p.onnx", meta=meta), device="cpu"), row)


async def test_a_policy_asks_where_the_large_model_marks_and_else_keeps_to_its_one_threshold(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with pair(SMALL, marker(), policy(tmp_path)) as both:
        _, events = await both.ask()
        assert asked(both.large) == 5
        assert text_of(events) == MIXED
    assert "stepwise_never_asks" not in caplog.text
    for large, marks in ((marker(mark="Well"), "digit"), (marker(), "likelihood")):
        caplog.clear()
        async with pair(SMALL, large, policy(tmp_path, marks)) as both:
            assert both.stepwise.problem is None
            _, events = await both.ask()
        assert asked(large) == 0
        assert text_of(events) == "\n\n".join(LARGE)
        assert caplog.text.count("stepwise_never_asks") == 1


async def test_a_policy_asks_though_another_decision_has_probed_its_models(tmp_path: Path) -> None:
    large = marker()
    async with pair(SMALL, large, Fixed.always_small()) as both:
        await both.ask()
        setup = both.stepwise._setup
        second = Stepwise(Setup(setup.small, setup.large, policy(tmp_path)))
        await second.start()
        assert second._setup.marks == "digit"
        second._setup.strategy.close()  # the models' connections are the first one's


@pytest.mark.parametrize(
    ("keep", "verdict"),
    [
        (0.95, Judgement(True, 0.95)),
        (0.5, Judgement(True, 0.5, ask=0.7)),
        (0.2, Judgement(False, 0.2)),
    ],
)
async def test_under_the_pair_a_draft_is_rejected_and_over_it_kept(
    tmp_path: Path, keep: float, verdict: Judgement
) -> None:
    strategy = policy(tmp_path)

    async def said(vector: object, hidden: object) -> tuple[float, None]:
        return keep, None

    strategy.policy.keep = said  # type: ignore[method-assign, assignment]

    async def never(step: object) -> float:
        raise AssertionError

    run = strategy.begin(AnswerContext(0, never, marks=True))
    draft = Draft(None, None, None)  # type: ignore[arg-type]
    assert await run.judge(draft) == verdict
    assert await run.running(draft) == Judgement(keep >= 0.3, keep)  # what would be asked about may go on
    run.close()
    run = strategy.begin(AnswerContext(0, never))
    assert await run.judge(draft) == await run.running(draft) == Judgement(keep >= 0.8, keep)
    run.close()
    strategy.close()
