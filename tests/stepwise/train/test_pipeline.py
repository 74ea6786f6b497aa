"""From questions to a policy file, with two pretended models: every command of `pointsman stepwise`."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs `pip install -e .[train]`")
pytest.importorskip("pyarrow", reason="training needs `pip install -e .[train]`")

import stepwise
from cli.main import main
from stepwise import features
from stepwise.policy import KappaPair, Kind, PolicyTarget, StepPolicy
from stepwise.steps import Ends, StepLimits
from stepwise.train.asking import NOTHING
from stepwise.train.calibrate import Trial, worse
from stepwise.train.collect import read_questions
from stepwise.train.evaluate import Exam, Scored, scorer
from stepwise.train.project import Project
from tests.stepwise.fakes import FakeModel, Fault, writer
from tests.stepwise.test_thoughts import SMALL as THOUGHTS
from tests.stepwise.test_thoughts import TEMPLATE, thinker
from tests.stepwise.train.pair import Pair, questions

PAIR = Pair()
MORE = ("--writer", __name__, "--price-read", 2.5, "--marks")


@asynccontextmanager
async def open_writer(limits: StepLimits, temperature: float = 0.0) -> AsyncIterator[Pair]:
    assert limits.min_tokens == 4
    yield PAIR


def command(*words: object) -> int:
    return main(["stepwise", *map(str, words)])


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that went through every command."""
    folder = tmp_path_factory.mktemp("project")
    for seed, name in enumerate(("policy", "calibration", "test")):
        file = folder / f"questions-{name}.jsonl"
        rows = [{"id": q.id, "question": q.text, "answer": q.answer} for q in questions(150, seed)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        collect = ("collect", "--work", folder / "work", "--set", name, "--questions", file, "--min-tokens", 4)
        assert command(*collect, "--writer", __name__, "--price-read", 2.5, *(["--marks"] * (name == "policy"))) == 0
    work = folder / "work"
    assert command("train", "--work", work, "--updates", 40) == 0
    for name in ("vtrace", "vtrace-ask"):
        calibrate = ("calibrate", "--work", work, "--writer", __name__, "--algorithm", name)
        assert command(*calibrate, "--loss", 0.05, 0.1) == 0
    assert command("evaluate", "--work", work, "--writer", __name__) == 0
    assert command("export", "--work", work, "--out", work / "pair.onnx", "--card", work / "pair.md") == 0
    assert command("inspect", work / "pair.onnx") == 0
    return work


def test_the_policy_file_is_what_serving_loads(work: Path) -> None:
    policy = StepPolicy(work / "pair.onnx", device="cpu")
    try:
        assert (policy.card.small, policy.card.large) == ("tinylm-small", "tinylm-large")
        assert policy.card.steps == StepLimits(4, 512, Ends.AUTO)
        assert policy.card.calibration_size == 150
        assert 0 <= policy.card.row(PolicyTarget("accuracy_loss", 0.1)).kappa <= 1.01
        assert policy.card.marks is None
        vector = np.zeros(features.WIDTH, np.float32)
        assert 0 <= asyncio.run(policy.keep(vector))[0] <= 1
    finally:
        policy.close()


def test_the_learned_policies_beat_chance_and_first_tokens(work: Path) -> None:
    found = json.loads((work / "figures.json").read_text())["strategies"]
    area = {name: row["area"][0] for name, row in found.items()}
    assert area["vtrace"] > area["random"] + 0.02
    assert area["supervised"] > area["random"] + 0.02
    assert area["ppo"] > area["random"] + 0.02
    assert area["oracle"] >= max(area.values())
    assert area["vtrace-ask"] > area["vtrace"]


def test_a_policy_that_may_ask_says_so(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, card = tmp_path / "asks.onnx", tmp_path / "asks.md"
    assert command("export", "--work", work, "--algorithm", "vtrace-ask", "--out", out, "--card", card) == 0
    policy = StepPolicy(out, device="cpu")
    policy.close()
    assert policy.card.marks == "likelihood"
    row = policy.card.row(PolicyTarget("accuracy_loss", 0.1))
    assert row.ask is not None
    assert 0 <= row.ask.low <= row.ask.high <= 1.01
    assert f"| kappa {row.ask.low:.4f} to {row.ask.high:.4f}, mark {row.ask.mark:.4f} |" in card.read_text()
    assert command("inspect", out) == 0
    said = capsys.readouterr().out
    assert "may ask the large model for a mark, by likelihood" in said
    assert f"asks from {row.ask.low:.4f} to {row.ask.high:.4f}, kept from the mark {row.ask.mark:.4f} on" in said


async def test_pairs_are_chosen_by_answering_the_policy_questions_the_safest_first(work: Path) -> None:
    pairs = [KappaPair(*pair) for pair in json.loads((work / "vtrace-ask.ladder.json").read_text())["pairs"]]
    assert 5 < len(pairs) <= 40
    assert (pairs[0].low, pairs[0].high) == (1.01, 1.01)
    assert any(pair.low < pair.high for pair in pairs)
    project = Project(work)
    exam = Exam(
        project.trees("policy", copy="asking")[1], None, project.settings.price, 8
    )  # no writer: the answers are there
    score = scorer(work / "vtrace-ask.onnx")
    points = [await exam.measure(Scored("policy", score, pair, once=False), pair) for pair in pairs]
    assert [p.cost.mean() for p in points[1:]] == sorted((p.cost.mean() for p in points[1:]), reverse=True)
    best = max(point.right.mean() for point in points[1:])
    cheap = [point.right.mean() for point in points[1:] if point.right.mean() < best]
    assert cheap == sorted(cheap, reverse=True)


def test_calibrating_again_asks_the_models_nothing(work: Path) -> None:
    before, calls = (work / "vtrace-ask.calibration.json").read_text(), PAIR.calls
    calibrate = ("calibrate", "--work", work, "--writer", __name__, "--algorithm", "vtrace-ask")
    assert command(*calibrate, "--loss", 0.05, 0.1) == 0
    assert PAIR.calls == calls
    assert (work / "vtrace-ask.calibration.json").read_text() == before


def test_a_policy_file_learns_to_ask_and_keeps_its_rows(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, file, out = tmp_path / "work", work / "pair.onnx", tmp_path / "asks.onnx"
    shutil.copytree(work, mine)
    calibrate = ("calibrate", "--work", mine, "--writer", __name__, "--policy", file)
    assert command(*calibrate, "--algorithm", "vtrace") == 2
    assert "--algorithm vtrace-ask" in capsys.readouterr().err
    assert command(*calibrate, "--algorithm", "vtrace-ask") == 0
    assert command("export", "--work", mine, "--algorithm", "vtrace-ask", "--out", out) == 0
    before, after = StepPolicy(file, device="cpu"), StepPolicy(out, device="cpu")
    before.close()
    after.close()
    assert [row._replace(ask=None) for row in after.card.rows] == list(before.card.rows)
    assert any(row.ask is not None for row in after.card.rows)
    assert (after.card.marks, after.card.commit) == ("likelihood", before.card.commit)
    shipped = Path(stepwise.__path__[0]) / "models" / "tinylm.onnx"
    assert command(*calibrate[:-1], shipped, "--algorithm", "vtrace-ask") == 1
    assert "collect again with its own" in capsys.readouterr().err  # its steps have eight tokens at least


def test_what_cannot_be_promised_is_named_and_pairs_that_keep_nothing_are_left_out(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "work"
    shutil.copytree(work, mine)
    calibrate = ("calibrate", "--work", mine, "--writer", __name__, "--algorithm", "vtrace-ask")
    ladder = mine / "vtrace-ask.ladder.json"
    reckless = [[NOTHING, NOTHING, 0.9], [0.0, 0.0, 0.9]]  # nothing but the first can promise a loss
    ladder.write_text(json.dumps(json.loads(ladder.read_text()) | {"pairs": reckless}))
    assert command(*calibrate, "--loss", 0.0001, 0.1, "--cost", 0.01) == 0
    out = capsys.readouterr().out
    for how in ("cannot be promised with 150 questions", "cannot be promised with 150 questions by asking"):
        assert f"{how}: accuracy_loss 0.0001" in out
        assert f"{how}: cost 0.01" in out
    assert "by asking: accuracy_loss 0.0001, 0.1" in out
    [row] = json.loads((mine / "vtrace-ask.calibration.json").read_text())["rows"]
    assert (row["kind"], row["target"], row.get("ask")) == ("accuracy_loss", 0.1, None)


def test_a_pair_that_is_no_better_than_kappa_alone_is_left_out(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, file = tmp_path / "work", work / "pair.onnx"
    shutil.copytree(work, mine)
    settings, saved = mine / "settings.json", mine / "vtrace-ask.calibration.json"
    calibrate = ("calibrate", "--work", mine, "--writer", __name__, "--algorithm", "vtrace-ask", "--loss", 0.05, 0.1)
    taught = (*calibrate[:7], "--policy", file)
    for read, asks in ((2.5, True), (50.0, False)):  # a mark costs more than the step that it may save
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"price_read": read}))
        for words in (calibrate, taught):
            assert command(*words) == 0
            said = capsys.readouterr().out
            rows = [row for row in json.loads(saved.read_text())["rows"] if row["kind"] == "accuracy_loss"]
            assert rows
            assert any("ask" in row for row in rows) == asks
            assert ("accuracy_loss <= 0.1: asking is no better than kappa alone" in said) != asks


def test_a_policy_file_says_at_which_temperature_its_promises_hold(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, out = tmp_path / "work", tmp_path / "warm.onnx"
    shutil.copytree(work, mine)
    calibrate = ("calibrate", "--work", mine, "--writer", __name__, "--algorithm", "vtrace-ask", "--loss", 0.1)
    assert command(*calibrate, "--temperature", 0.7) == 0
    assert command("export", "--work", mine, "--algorithm", "vtrace-ask", "--out", out) == 0
    for file, temperature, says in (
        (work / "pair.onnx", 0.0, "questions;"),
        (out, 0.7, "questions at temperature 0.7;"),
    ):
        policy = StepPolicy(file, device="cpu")
        policy.close()
        assert policy.card.temperature == temperature
        capsys.readouterr()
        assert command("inspect", file) == 0
        assert f"calibrated on {policy.card.calibration_size} {says}" in capsys.readouterr().out
    assert command(*calibrate, "--policy", out) == 1  # rows of one temperature get no pairs of another
    assert "its rows hold at temperature 0.7, so say --temperature that" in capsys.readouterr().err
    assert command(*calibrate, "--policy", out, "--temperature", 0.7) == 0


@pytest.mark.parametrize(
    ("kind", "right", "cost", "is_worse"),
    [
        ("accuracy_loss", 3, 0.4, False),
        ("accuracy_loss", 1, 0.5, False),  # that it keeps its promise has been tested
        ("accuracy_loss", 4, 0.6, True),
        ("cost", 2, 0.6, False),  # so has this
        ("cost", 1, 0.4, True),
    ],
)
def test_a_pair_is_compared_by_what_its_promise_leaves_open(
    kind: Kind, right: int, cost: float, is_worse: bool
) -> None:
    alone = Trial(0.5, np.arange(4) < 2, np.full(4, 0.5))
    assert worse(kind, Trial(KappaPair(0.1, 0.9, 0.5), np.arange(4) < right, np.full(4, cost)), alone) == is_worse


def test_without_marks_there_is_no_asking(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = tmp_path / "bare"
    file = tmp_path / "q.jsonl"
    file.write_text("".join((work / "policy.jsonl").read_text().splitlines(keepends=True)[:20]))
    collect = ("collect", "--work", bare, "--set", "policy", "--questions", file, "--min-tokens", 4)
    assert command(*collect, "--writer", __name__) == 0
    assert command("train", "--work", bare, "--algorithm", "vtrace-ask", "--updates", 1) == 1
    assert "vtrace-ask needs marks: run `pointsman stepwise collect --set policy --marks`" in capsys.readouterr().err
    assert command("train", "--work", bare, "--updates", 1) == 0
    assert not list(bare.glob("*-ask*"))


def test_marks_of_another_kind_are_refused(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    PAIR.marks = "digit"
    try:
        assert command("calibrate", "--work", work, "--writer", __name__, "--algorithm", "vtrace-ask") == 2
    finally:
        PAIR.marks = "likelihood"
    assert "the marks in this project are by likelihood, not by digit" in capsys.readouterr().err


def test_the_report_has_a_line_for_every_strategy_and_a_plot(work: Path) -> None:
    text = (work / "report.md").read_text()
    for name in (
        "vtrace-ask",
        "ppo-ask",
        "supervised-ask",
        "vtrace",
        "ppo",
        "supervised",
        "question",
        "random",
        "first-n",
        "glimpse",
        "confidence",
        "verify",
        "oracle",
    ):
        assert f"| {name} |" in text
    card = (work / "pair.md").read_text()
    assert text in card
    assert "accuracy_loss at most 0.1" in card
    assert (work / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_collecting_again_asks_the_models_nothing(work: Path) -> None:
    before = PAIR.calls
    assert command("collect", "--work", work, "--set", "policy", "--min-tokens", 4, *MORE) == 0
    assert PAIR.calls == before


def test_an_interrupted_collection_goes_on_where_it_stopped(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    rows = [{"id": q.id, "question": q.text, "answer": q.answer} for q in questions(40, 9)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("collect", "--work", tmp_path / "w", "--set", "policy", "--questions", file, "--min-tokens", 4)
    start = PAIR.calls
    assert command(*words, "--writer", __name__, "--at-once", 5) == 0
    whole = PAIR.calls - start
    for part in sorted((tmp_path / "w" / "trees" / "policy").glob("*.parquet"))[1:]:
        part.unlink()  # as if it had been stopped after the first part (20 of 40 questions)
    start = PAIR.calls
    assert command(*words, "--writer", __name__, "--at-once", 5) == 0
    assert 0 < PAIR.calls - start < whole


def test_other_settings_are_refused(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("collect", "--work", work, "--set", "policy", "--min-tokens", 9, "--writer", __name__) == 2
    assert "other settings" in capsys.readouterr().err


def test_a_missing_step_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("train", "--work", tmp_path) == 2
    assert "pointsman stepwise collect" in capsys.readouterr().err


def test_trees_survive_the_disk(work: Path) -> None:
    project = Project(work)
    _, trees = project.trees("policy")
    assert [t.question for t in trees] == read_questions(work / "policy.jsonl")
    tree = max(trees, key=lambda t: len(t.nodes))
    for path, node in tree.nodes.items():
        if not path:
            continue
        parent = tree.nodes[path[:-1]]
        piece = parent.draft if path[-1] == "K" else parent.redo
        assert piece is not None
        assert node.prefix == parent.prefix + piece.text
        assert node.state.index == len(path)
        assert node.state.redos == path.count("R")


def test_a_policy_that_promises_nothing_is_not_exported(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = work / "vtrace.calibration.json"
    before = file.read_text()
    file.write_text(json.dumps({"rows": [], "size": 150, "large_right": 150}))
    try:
        assert command("export", "--work", work, "--out", tmp_path / "none.onnx") == 1
    finally:
        file.write_text(before)
    assert not (tmp_path / "none.onnx").exists()
    assert "vtrace has no target that could be promised" in capsys.readouterr().err


STEPS = ["first we add the two numbers up", "then we take the one away again", "Answer: 7"]


async def collected(folder: Path, small: FakeModel, large: FakeModel, *more: object) -> int:
    """`collect` with models behind addresses, three questions."""
    file = folder / "questions.jsonl"
    file.write_text("".join(json.dumps({"question": f"What is {i}?", "answer": "7"}) + "\n" for i in range(3)))
    words = ("collect", "--work", folder / "w", "--set", "policy", "--questions", file, "--min-tokens", 4, *more)
    words += ("--small", "tiny", "--large", "huge", "--small-url", f"{small.url}/v1", "--large-url", f"{large.url}/v1")
    return await asyncio.to_thread(command, *words)


async def test_answers_are_as_long_as_is_said_and_progress_counts_their_texts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small, large = FakeModel("tiny", writer(STEPS)), FakeModel("huge", writer(STEPS))
    await small.start()
    await large.start()
    assert await collected(tmp_path, small, large, "--answer-tokens", 64) == 0
    assert {request["max_tokens"] for request in (*small.requests, *large.requests)} == {64}
    texts = len(small.requests) + len(large.requests)
    assert f", {texts} texts written]" in capsys.readouterr().err
    assert await collected(tmp_path, small, large) == 2  # the trees are of answers of at most 64 tokens
    assert "other settings" in capsys.readouterr().err
    assert await collected(tmp_path, small, large, "--answer-tokens", 3) == 2
    assert "--answer-tokens 3 is less than --min-tokens 4" in capsys.readouterr().err
    await small.stop()
    await large.stop()


async def test_thoughts_are_collected_as_steps(tmp_path: Path) -> None:
    small, large = thinker("tiny", THOUGHTS, template=""), thinker("huge", THOUGHTS, template="")
    await small.start()
    await large.start()
    template = tmp_path / "chat.jinja"
    template.write_text(TEMPLATE)
    assert await collected(tmp_path, small, large, "--small-template", template, "--large-template", template) == 0
    await small.stop()
    await large.stop()
    _, (tree, *_) = Project(tmp_path / "w").trees("policy")
    seen = [(node.draft.text, bool(node.vector[-1])) for node in tree.nodes.values() if node.draft is not None]
    assert ("<think>\none and one is two\n\n", True) in seen
    assert (THOUGHTS[-1], False) in seen
    assert all(request["prompt"].count("<think>\n") == 1 for request in (*small.requests, *large.requests))


async def test_what_goes_wrong_with_the_models_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = FakeModel("tiny", writer(STEPS), faults={-2: Fault("status", status=500)})
    large = FakeModel("huge", writer(STEPS))
    await small.start()
    await large.start()
    assert await collected(tmp_path, small, large) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "pointsman stepwise collect: tiny answered 500"
    await small.stop()
    assert await collected(tmp_path, small, large) == 1
    assert capsys.readouterr().err.startswith("pointsman stepwise collect: no connection to tiny: ")
    await large.stop()


def test_a_module_without_a_writer_is_one_line(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("collect", "--work", work, "--set", "policy", "--price-read", 2.5)
    for module, says in (("no_such_module", "is its folder in PYTHONPATH?"), ("json", "has no open_writer(limits)")):
        assert command(*words, "--min-tokens", 4, "--writer", module) == 2
        said = capsys.readouterr().err
        assert says in said
        assert said.count("\n") == 1
