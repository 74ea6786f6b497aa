"""`pointsman select`: what is learned from outcomes is worth what it says, on questions left out and served."""

from __future__ import annotations

import gzip
import json
import random
import sys
from collections.abc import Callable
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from config.problem import PolicyError
from config.watch import load
from decisions.selectors.foretold import BEST, ENOUGH, NONE
from signals.neural.foretelling import Foretelling
from signals.request import Message, Request
from signals.train.choices import _alike, _enough
from tests.cli.conftest import Ran

Run = Callable[..., Ran]
JSON = dict[str, Any]

SUMS = ("What is the sum of {} and {}?", "Compute the integral of x to the power {} from 0 to {}.", "Solve {}x = {}.")
LORE = ("Who wrote book {} of the saga about king {}?", "In which year did the battle of {} hill end, {} of them?")
WORTH = {"sums": {"small": 0.3, "large": 0.6, "maths": 0.9}, "lore": {"small": 0.8, "large": 0.85, "maths": 0.1}}
PRICES = ("--price", "small=1", "--price", "large=10", "--price", "maths=5")


def outcomes(path: Path, count: int, seed: int, **more: Any) -> Path:
    chance = random.Random(seed)
    lines = []
    for _ in range(count):
        kind = chance.choice(list(WORTH))
        text = chance.choice(SUMS if kind == "sums" else LORE).format(chance.randrange(99), chance.randrange(99))
        scores = {model: float(chance.random() < worth) for model, worth in WORTH[kind].items()}
        lines.append(json.dumps({"question": text, "category": kind, "scores": scores, **more}))
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt") as file:
        file.write("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("select")
    outcomes(folder / "a.jsonl", 300, 1)
    outcomes(folder / "b.jsonl.gz", 400, 2)
    return folder


@pytest.fixture(scope="module")
def trained(files: Path) -> Path:
    from cli.main import main

    for by in ("irt", "nearest"):
        assert main(["select", "train", str(files / "a.jsonl"), "--by", by, "--out", str(files / by), *PRICES]) == 0
    return files


def evaluated(run: Run, *args: Any) -> JSON:
    ran = run("select", "evaluate", *args, "-o", "json")
    assert ran.status == 0, ran.out
    found: JSON = json.loads(ran.out)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("by", ["irt", "nearest"])
def test_what_was_learned_holds_on_other_questions(run: Run, trained: Path, by: str) -> None:
    found = evaluated(run, trained / "b.jsonl.gz", "--file", trained / by)
    assert found["questions"] == 400
    assert found["mean"] > found["best_single"]["mean"] + 0.1
    assert found["random"] < found["best_single"]["mean"] < found["mean"] < found["oracle"]
    assert found["interval"][0] < found["mean"] < found["interval"][1]
    assert found["normalised"] == pytest.approx((found["mean"] - found["random"]) / (found["oracle"] - found["random"]))
    assert found["cost"] < 8.5, "small does for lore, where large is hardly better"
    assert sum(model["share"] for model in found["models"].values()) == pytest.approx(1)
    assert [one["cost"] for one in found["budgets"]][::9] == [1, 10]
    assert all(one["mean"] >= one["best_single"] for one in found["budgets"] if one["mean"] is not None)


@pytest.mark.slow
def test_the_cheapest_that_will_do(run: Run, trained: Path) -> None:
    few, many = (
        evaluated(run, trained / "b.jsonl.gz", "--file", trained / "irt", "--by", "quality", "--at-least", share)
        for share in (0.3, 0.7)
    )
    assert 0.3 <= few["mean"] < many["mean"]
    assert many["mean"] >= 0.7
    assert few["cost"] < many["cost"]


@pytest.mark.slow
@pytest.mark.parametrize("by", ["bandit", "ema", "pheromone", "elo"])
def test_a_stream_reveals_only_what_was_chosen(run: Run, files: Path, by: str) -> None:
    found = evaluated(run, files / "b.jsonl.gz", "--by", by, "--stream", "--seed", 3)
    assert found["mean"] > found["random"] + 0.05
    again = evaluated(run, files / "b.jsonl.gz", "--by", by, "--stream", "--seed", 3)
    assert again == found
    without = evaluated(run, files / "b.jsonl.gz", "--by", by, "--seed", 3)
    assert without["mean"] < found["mean"]


@pytest.mark.slow
def test_models_that_were_not_tried_are_no_choice(run: Run, trained: Path, tmp_path: Path) -> None:
    rows = [{"question": "Solve 3x = 4.", "rewards": {"small": 0.25, "large": 0.5}, "costs": {"small": 2}}] * 20
    path = tmp_path / "o.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    for source in (["--file", trained / "irt"], ["--by", "bandit", "--stream"]):
        found = evaluated(run, path, *source)
        assert set(found["models"]) == {"small", "large"}
        assert 0.25 <= found["mean"] <= 0.5
    assert found["models"]["small"]["cost"] == 2


def test_the_choice_of_a_policy_is_evaluated_with_what_its_signals_read(run: Run, files: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("""\
version: 1
models: {small: {}, large: {}, maths: {}}
default: small
signals: {sums: {keyword: {any: [sum, integral, solve]}}}
decisions:
- {name: sums, when: sums, route: maths}
- {name: rest, route: {pick: [small, maths], by: {bandit: {}}}}
""")
    found = evaluated(run, files / "b.jsonl.gz", "--policy", policy, "--stream")
    assert found["models"]["large"]["share"] == 0
    assert found["mean"] > 0.6
    ran = run("select", "evaluate", files / "b.jsonl.gz", "--policy", policy, "--decision", "sums")
    assert ran.status == 2
    assert "others have: rest" in ran.err


@pytest.mark.slow
@pytest.mark.parametrize("by", ["irt", "nearest"])
async def test_a_file_chooses_in_a_policy(trained: Path, by: str) -> None:
    (trained / "p.yaml").write_text(f"""\
version: 1
models: {{small: {{price: {{input: 1}}}}, large: {{price: {{input: 10}}}}, maths: {{price: {{input: 5}}}}}}
default: small
decisions:
- {{name: foretold, route: {{pick: [small, large, maths], by: {{{by}: {{file: {by}}}}}}}}}
""")
    assert len(Foretelling.load(trained / by).figures.common) == (2 if by == "irt" else 0), "categories are foretold"
    engine = load(trained / "p.yaml").engine
    for text, maths in (("Compute the integral of x to the power 3 from 0 to 9.", True), (LORE[0].format(1, 2), False)):
        trace = await engine.decide(Request("chat", b"{}", {}, "auto", (Message("user", text),)))
        assert trace.choice is not None
        assert (trace.choice.model.key == "maths", trace.choice.why, trace.choice.propensity) == (maths, BEST, 1.0)


@pytest.mark.slow
async def test_quality_in_a_policy(trained: Path) -> None:
    text = """\
version: 1
models: {small: {price: {input: 1}}, large: {price: {input: 10}}, maths: {price: {input: 5}}}
default: small
decisions: [{name: d, route: {pick: [small, large, maths], by: {quality: {file: irt, at_least: %s}}}}]
"""
    sums = Request("chat", b"{}", {}, "auto", (Message("user", "Solve 7x = 9."),))
    for at_least, model, why in ((0.3, "small", ENOUGH), (0.65, "maths", ENOUGH), (0.98, "maths", NONE)):
        (trained / "q.yaml").write_text(text % at_least)
        trace = await load(trained / "q.yaml").engine.decide(sums)
        assert trace.choice is not None
        assert (trace.choice.model.key, trace.choice.why) == (model, why), at_least


@pytest.mark.slow
def test_what_is_wrong_with_a_file_is_said(run: Run, trained: Path, tmp_path: Path) -> None:
    def problem(route: str) -> str:
        models = "version: 1\nmodels: {small: {}, b: {}}\ndefault: b\n"
        (trained / "w.yaml").write_text(models + f"decisions: [{{name: d, route: {route}}}]\n")
        with pytest.raises(PolicyError) as caught:
            load(trained / "w.yaml")
        return str(caught.value)

    assert "No such file" in problem("{pick: [small, b], by: {irt: {file: missing}}}")
    assert "holds neighbours" in problem("{pick: [small, b], by: {irt: {file: nearest}}}")
    assert "knows none of the candidates; it knows large" in problem("{pick: [b], by: {irt: {file: irt}}}")
    told = problem("{pick: [small, b], by: {irt: {file: w.yaml}}}")
    assert "not a file of `pointsman select train`: File is not a zip file" in told
    (tmp_path / "cut").write_bytes((trained / "irt").read_bytes()[:900])
    whole = bytearray((trained / "irt").read_bytes())
    whole[len(whole) // 2] ^= 255
    (tmp_path / "flipped").write_bytes(whole)
    for damaged in ("cut", "flipped"):
        with pytest.raises(ValueError, match="not a file of"):
            Foretelling.load(tmp_path / damaged)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "o.jsonl:1:2: not JSON: "),
        ("[]", "an object is needed"),
        ('{"question": "a"}', "`scores` (or `rewards`) are needed"),
        ('{"question": "a", "scores": {"m": 2}}', "`scores` of m: 0 to 1"),
        ('{"question": "a", "scores": {"m": NaN}}', "`scores` of m: 0 to 1"),
        ('{"scores": {"m": 1}}', "`question` (a text) or `request`"),
        ('{"question": "a", "scores": {"m": 1}}', "at least 10 questions"),
        ('{"question": ' + "[" * 100_000, "o.jsonl:1: nested too deep"),
        ('{"question": "", "scores": {"m": 1}}\n' * 20, "no word that the lexicon knows"),
        ("", "there are no outcomes"),
        ('{"question": "a", "scores": {}}', "fill them in, or leave the line out"),
        ('{"question": "a", "scores": {"m": 1}, "costs": [1]}', "`costs` are {model: number}"),
        ('{"question": "a", "scores": {"m": 1}, "costs": {"m": ' + "9" * 400 + "}}", "`costs` of m: a number from 0"),
        ('{"question": "a", "scores": {"m": 1}, "costs": {"m": Infinity}}', "`costs` of m: a number from 0"),
        ('{"question": "\\ud800", "scores": {"m": 1}}', "o.jsonl:1: `question` (a text)"),
        ('{"request": {"messages": 5}, "scores": {"m": 1}}', "o.jsonl:1: `question` (a text) or `request`"),
        ('\ufeff{"question": "a", "scores": {"m": 1}}', "at least 10 questions"),
    ],
)
def test_what_is_wrong_with_outcomes_is_said_with_its_line(run: Run, tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "o.jsonl"
    path.write_text(line)
    ran = run("select", "train", path, "--out", tmp_path / "x")
    assert ran.status == 1
    assert message in ran.err


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("o.jsonl", b"\xff\xfe", "o.jsonl: not UTF-8"),
        ("o.jsonl.gz", b"{}", "o.jsonl.gz: not gzip"),
        ("o.jsonl.gz", gzip.compress(bytes(range(256)) * 40)[:200], "o.jsonl.gz: not "),
    ],
)
def test_outcomes_that_are_no_text_are_refused(run: Run, tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    ran = run("select", "questions", tmp_path / name)
    assert (ran.status, message in ran.err) == (1, True), ran.err


def outcomes_of(models: int, questions: int) -> list[dict[str, Any]]:
    """Questions in the same words that differ in the system prompt only, and grades: the first is the hardest."""
    return [
        {
            "request": {"messages": [{"role": "system", "content": f"{at}"}, {"role": "user", "content": "go on"}]},
            "scores": {f"m{model}": float(at / questions < (model + 1) / models) for model in range(models)},
        }
        for at in range(questions)
    ]


def test_a_question_is_asked_once_and_known_by_all_that_is_said(run: Run, tmp_path: Path) -> None:
    path, lines = tmp_path / "o.jsonl", outcomes_of(7, 40)
    path.write_text("\n".join(map(json.dumps, lines * 2)))
    ran = run("select", "questions", path, "--count", 50, "--for", "new")
    asked = [json.loads(line) for line in ran.out.splitlines()]
    assert len({json.dumps(one["request"]) for one in asked}) == len(asked) == 40
    for one in asked[:30]:
        one["scores"] = {"new": 1.0}
    path.write_text("\n".join(map(json.dumps, lines * 2 + asked[:30] * 2)))
    ran = run("select", "questions", path, "--count", 50, "--for", "new")
    assert "on all 40 questions, by 30 grades" in ran.err
    assert {json.loads(line)["request"]["messages"][0]["content"] for line in ran.out.splitlines()} == {
        one["request"]["messages"][0]["content"] for one in asked[30:]
    }
    for one in asked[30:]:
        one["scores"] = {"new": 1.0}
    path.write_text("\n".join(map(json.dumps, [*lines, *asked])))
    ran = run("select", "questions", path, "--for", "new")
    assert (ran.out, "new: 1.000 ± 0.000 on all 40 questions, by 40 grades" in ran.err) == ("", True)


@pytest.mark.slow
def test_what_a_model_that_joined_has_answered_is_evaluated_with_the_rest(run: Run, tmp_path: Path) -> None:
    path, lines = tmp_path / "o.jsonl", outcomes_of(7, 40)
    joined = [{**one, "scores": {"new": 1.0}} for one in lines[:9]]
    path.write_text("\n".join(map(json.dumps, [*lines, *joined])))
    found = json.loads(run("select", "evaluate", path, "--by", "ema", "-o", "json").out)
    assert found["questions"] == 40


def test_questions_for_nobody_are_refused(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    path.write_text("\n".join(map(json.dumps, outcomes_of(7, 40))))
    for flags, message in (
        (("--price", "new=3"), "--price new=3: no model of the outcomes; name one that joins by --for"),
        (("--for", " "), "write the model's name"),
        (("--for", "new", "--price", "new=inf"), "and a number from 0 on"),
    ):
        ran = run("select", "questions", path, *flags)
        assert (ran.status, message in ran.err, ran.out) == (2, True, ""), ran.err
    ran = run("select", "questions", path, "--for", "new", "--price", "new=3", "--price", "m1=2")
    assert "m0 has no price, so that prices say nothing" in ran.err


@pytest.mark.slow
def test_what_was_learned_is_shown(run: Run, trained: Path) -> None:
    ran = run("select", "inspect", trained / "irt")
    assert ran.status == 0
    assert "maths: mean 0." in ran.out
    assert "price 5" in ran.out
    shown = json.loads(run("select", "inspect", trained / "nearest", "-o", "json").out)
    assert (shown["way"], shown["card"]["questions"], shown["prices"]["large"]) == ("neighbours", 300, 10)


def test_a_plot_that_cannot_be_drawn_is_refused_first(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    ran = run("select", "evaluate", tmp_path / "absent.jsonl", "--by", "ema", "--plot", tmp_path / "plot.png")
    assert (ran.status, ran.err) == (1, "pointsman select evaluate: --plot needs matplotlib: pip install matplotlib\n")


@pytest.mark.slow
def test_evaluate_says_what_it_needs(run: Run, trained: Path) -> None:
    ran = run("select", "evaluate", trained / "a.jsonl")
    assert (ran.status, "give --file, or --policy" in ran.err) == (2, True)
    ran = run("select", "evaluate", trained / "a.jsonl", "--file", trained / "irt", "--by", "nearest")
    assert (ran.status, "holds abilities" in ran.err) == (2, True)
    ran = run("select", "evaluate", trained / "a.jsonl", "--file", trained / "absent")
    assert (ran.status, ran.err) == (2, f"pointsman select evaluate: {trained / 'absent'}: No such file or directory\n")
    policy = trained / "choice.yaml"
    policy.write_text("version: 1\nmodels: {small: {}, large: {}}\ndefault: small\ndecisions: []\n")
    ran = run("select", "evaluate", trained / "a.jsonl", "--policy", policy)
    assert (ran.status, "no decision of the policy has a choice of models" in ran.err) == (1, True)
    text = run("select", "evaluate", trained / "a.jsonl", "--file", trained / "irt")
    assert "best single" in text.out


@pytest.mark.parametrize("text", ["{", "[" * 100_000])
def test_what_is_no_export_is_not_imported(run: Run, tmp_path: Path, text: str) -> None:
    (tmp_path / "learned.json").write_text(text)
    ran = run("select", "import", tmp_path / "learned.json", "--policy", tmp_path / "policy.yaml")
    assert ran.status == 1
    assert "learned.json: not JSON" in ran.err


@pytest.mark.slow
def test_a_model_that_joins_is_asked_some_questions(run: Run, tmp_path: Path) -> None:
    chance, lines = random.Random(5), []
    prices = [flag for at in range(7) for flag in ("--price", f"m{at}={at + 1}")]
    for number in range(200):
        kind = chance.choice(("sums", "lore"))
        text = chance.choice(SUMS if kind == "sums" else LORE).format(number, chance.randrange(99))
        hard = chance.random()
        scores = {f"m{at}": float(chance.random() < 1 / (1 + exp(8 * hard - 1 - at))) for at in range(7)}
        lines.append({"question": text, "category": kind, "scores": scores})
    path = tmp_path / "o.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    ran = run("select", "questions", path, "--count", 30, "--of", 6.5, *prices)
    assert ran.status == 0, ran.err
    asked = [json.loads(line) for line in ran.out.splitlines()]
    assert len(asked) == 30
    assert all(one["scores"] == {} and set(one) == {"question", "category", "scores"} for one in asked)
    known = {line["question"]: line["scores"] for line in lines}
    asked = []
    for number in range(3):  # it is as good as one of them
        ran = run("select", "questions", path, "--count", 10, "--for", "new", "--price", "new=6.5", *prices)
        assert f"by {10 * number} grades" in ran.err
        asked += [json.loads(line) for line in ran.out.splitlines()]
        for one in asked[-10:]:
            one["scores"] = {"new": known[one["question"]]["m5"]}
        path.write_text("\n".join(map(json.dumps, [*lines, *asked])))
    assert len({one["question"] for one in asked}) == 30, "none is asked twice"
    out = tmp_path / "models.npz"
    assert run("select", "train", path, "--out", out, "--price", "new=6.5", *prices).status == 0
    shown = json.loads(run("select", "inspect", out, "-o", "json").out)
    assert shown["card"]["questions"] == 200, "two lines of one question are one"
    assert shown["card"]["means"]["new"] == pytest.approx(shown["card"]["means"]["m5"], abs=0.08)


@pytest.mark.slow
def test_factors_that_are_chance_are_left_out() -> None:
    chance = np.random.default_rng(3)
    folds, categories = np.arange(3000) % 5, np.zeros((3000, 0))
    factors = chance.normal(size=(3000, 12)).astype(np.float32)
    needs = np.zeros((12, 16))
    needs[:3] = chance.normal(size=(3, 16))
    grades = (chance.random((3000, 16)) < 1 / (1 + np.exp(-factors @ needs))).astype(float)
    assert _enough(factors, categories, grades, folds) == 3
    needs[:] = chance.normal(size=(12, 16))
    grades = (chance.random((3000, 16)) < 1 / (1 + np.exp(-factors @ needs))).astype(float)
    assert _enough(factors, categories, grades, folds) == 12


def test_a_model_with_few_grades_is_like_all_others() -> None:
    chance = np.random.default_rng(3)
    figures = chance.normal(size=(2000, 2))
    hard = 1 / (1 + np.exp(-figures @ np.array([1.0, 0.0])))
    grades = (chance.random((2000, 8)) < hard[:, None]).astype(float)
    grades[:, 0] = chance.random(2000) < 1 / (1 + np.exp(-figures @ np.array([-1.0, 0.0])))
    many, few = _alike(figures, grades)[:, 1], _alike(figures[:20], grades[:20])[:, 1]
    assert many[0] < -0.4, "its grades say that it is another"
    assert (many[1:] > 0.6).all()
    assert few[0] > 0, "twenty do not"
