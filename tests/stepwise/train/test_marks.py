"""Marks in the service are those that a policy is trained and calibrated with, on two real models."""

from __future__ import annotations

import pytest

pytest.importorskip("pyarrow", reason="training needs `pip install -e .[train]`")

from examples.tinylm.server import serve
from examples.tinylm.writer import open_writer
from stepwise.asking.pair import PairModel, Setup
from stepwise.asking.ready import Stepwise, unknown
from stepwise.policy import Marks
from stepwise.steps import StepLimits
from stepwise.strategy import AnswerContext, Draft, Judgement, Run, StepJudge, Strategy
from stepwise.train.endpoints import EndpointWriter
from stepwise.train.tree import Question
from tests.stepwise.test_tinylm import QUESTIONS, ask
from upstream.client import ModelClient
from upstream.endpoint import Endpoint


class Asking(Strategy):
    """Asks about every draft."""

    name = "asking"
    asks: Marks | None = "likelihood"

    def begin(self, context: AnswerContext) -> Run:
        return _AskingRun()


class _AskingRun(StepJudge):
    async def judge(self, draft: Draft) -> Judgement:
        return Judgement(False, ask=0.9)


async def test_the_servers_marks_are_those_that_a_policy_is_trained_and_calibrated_with() -> None:
    marks: dict[str, list[float]] = {}
    async with serve() as running, open_writer(StepLimits()) as writer:
        ends = [Endpoint(running.url, f"tinylm-{name}") for name in ("small", "large")]
        models = [PairModel(end.model, ModelClient(end), unknown(end)) for end in ends]
        stepwise = Stepwise(Setup(models[0], models[1], Asking()))
        await stepwise.start()
        for i, text in enumerate(QUESTIONS):
            said, usage = await ask(stepwise, text)
            done = 0
            for step in usage["pointsman"]["steps"]:
                here = said[done : done + step["characters"]]
                if step["action"] == "keep":
                    question = Question(str(i), text, "")
                    mark, _ = await writer.verify(question, said[:done], here)
                    assert step["mark"] == pytest.approx(mark, abs=1e-4)
                    assert step["mark"] >= 0.9
                else:
                    assert step["mark"] < 0.9
                marks.setdefault(step["action"], []).append(step["mark"])
                done += step["characters"]
        await stepwise.close()
        async with EndpointWriter(ends[0], ends[1], StepLimits()) as served:
            assert served.marks == "likelihood"
            question = Question("0", QUESTIONS[0], "")
            wrong = "First, 3 + 4 = 8.\n\n"
            mark, read = await served.verify(question, "", wrong)
            assert mark == pytest.approx((await writer.verify(question, "", wrong))[0], abs=1e-4)
            assert read > len(wrong) / 4
    assert marks["redo"]
    assert len(marks["keep"]) > 10
