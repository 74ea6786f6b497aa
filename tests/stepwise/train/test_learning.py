"""The learning parts against what can be worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs `pip install -e .[train]`")
pytest.importorskip("pyarrow", reason="training needs `pip install -e .[train]`")

from stepwise.features import NAMES, WIDTH  # noqa: E402
from stepwise.train import calibrate, ppo, supervised, vtrace  # noqa: E402
from stepwise.train.answers import final, right  # noqa: E402
from stepwise.train.asking import mark_from  # noqa: E402
from stepwise.train.evaluate import area, needed  # noqa: E402
from stepwise.train.forest import RIGHT, UNKNOWN, WRONG, Forest, simulate  # noqa: E402
from stepwise.train.net import Net, divergence, entropy, log_chance  # noqa: E402
from stepwise.train.problem import Goal, at_threshold, lost  # noqa: E402
from stepwise.train.problem import area as problem_area  # noqa: E402

SIGN = NAMES.index("number_min_logprob")


def signs(questions: int, seed: int = 0, blur: float = 0.3) -> Forest:
    """One-step answers: the draft is wrong when a (blurred) feature is below 0; a redo is always right and costs 1. The
    large model's mark is right for 95 %, and costs 0.05."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=questions)
    vectors = rng.normal(size=(questions, WIDTH)).astype(np.float32)
    vectors[:, SIGN] = truth + blur * rng.normal(size=questions)
    child = np.stack([np.where(truth > 0, RIGHT, WRONG), np.full(questions, RIGHT)], axis=1)
    cost = np.tile(np.array([[0.1, 1.0]], np.float32), (questions, 1))
    yes, ones = np.ones(questions, np.bool_), np.ones(questions, np.float32)
    marks = (rng.random(questions) < np.where(truth > 0, 0.95, 0.05)).astype(np.float32)
    asked = np.full((questions, 2), 0.05, np.float32)
    return Forest(vectors, child, cost, np.arange(questions), yes, yes, ones, marks, asked)


def agreement(net: Net, forest: Forest) -> float:
    """Share of nodes where the likelier action is the one that the sign asks for."""
    wanted = forest.child[:, 0] == WRONG
    return float(((net.redo(forest.vectors) > 0.5) == wanted).mean())


def test_every_learner_finds_the_sign() -> None:
    fit, check = signs(1500), signs(800, seed=1)
    base = supervised.train(fit, epochs=15)
    assert agreement(base, check) > 0.85
    fresh = Net()
    fresh.fit(fit.vectors)
    goal = Goal(alpha=0.02, multiplier=2.0)
    after_ppo = ppo.train(fit, check, fresh, goal, ppo.PPOSettings(rounds=30, runs=1024, rate=1e-3))
    assert agreement(after_ppo, check) > 0.8
    after_vtrace, kappa = vtrace.train(
        fit, check, fresh, goal, vtrace.VTraceSettings(updates=120, runs=512, region=0.05, rate=2e-3)
    )
    assert agreement(after_vtrace, check) > 0.8
    assert 0 < kappa < 1


def test_training_twice_gives_the_same_network() -> None:
    fit, check = signs(300), signs(200, seed=1)
    settings = vtrace.VTraceSettings(updates=25)
    base = supervised.train(fit, epochs=2)
    first, second = (vtrace.train(fit, check, base, Goal(), settings)[0] for _ in range(2))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_vtrace_on_policy_is_the_return() -> None:
    reward = torch.tensor([[1.0, -2.0, 4.0, 0.0]])
    mask = torch.tensor([[True, True, True, False]])
    targets, advantage = vtrace.vtrace(torch.zeros(1, 4), reward, torch.ones(1, 4), mask)
    assert targets[0].tolist() == [3.0, 2.0, 4.0, 0.0]
    assert advantage[0].tolist() == [3.0, 2.0, 4.0, 0.0]


def test_vtrace_cuts_ratios_at_one_and_fades_with_small_ones() -> None:
    value, mask = torch.tensor([[1.0, 2.0]]), torch.ones(1, 2, dtype=torch.bool)
    reward, ratio = torch.tensor([[0.0, 5.0]]), torch.tensor([[3.0, 0.5]])
    targets, advantage = vtrace.vtrace(value, reward, ratio, mask)
    # by hand: v1 = 2 + 0.5 (5 - 2) = 3.5; v0 = 1 + 1 (0 + 2 - 1) + 1 * (v1 - 2) = 3.5
    assert targets[0].tolist() == pytest.approx([3.5, 3.5])
    assert advantage[0].tolist() == pytest.approx([0 + 3.5 - 1, 0.5 * (5 - 2)])


def test_advantages_with_lambda_one_are_returns_minus_values() -> None:
    value, mask = torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[True, True, False]])
    found = ppo.advantages(value, torch.tensor([[3.0, 4.0, 0.0]]), mask, 1.0)
    assert found[0].tolist() == pytest.approx([6.0, 2.0, 0.0])


def test_choices_add_up() -> None:
    x = torch.from_numpy(signs(20).vectors)
    for net in (Net(), Net(asks=True)):
        choices = net.choices(x)
        total = sum(log_chance(choices, torch.full((20,), a)).exp() for a in range(choices.shape[1]))
        assert torch.allclose(torch.as_tensor(total), torch.ones(20))
        assert torch.allclose(divergence(choices, choices), torch.zeros(20), atol=1e-6)
        assert (divergence(choices, choices.flip(0)) >= 0).all()
    even = torch.full((1, 3), math.log(1 / 3))
    assert entropy(even).item() == pytest.approx(math.log(3))


def test_one_logit_decides_between_keeping_asking_and_redoing() -> None:
    net = Net(asks=True)
    assert net.band is not None
    with torch.no_grad():
        net.band.fill_(1.0)
    half = math.log(1 + math.e)
    for name, logit, likeliest in (("keep", half + 3, 0), ("ask", 0.0, 2), ("redo", -half - 3, 1)):
        net.forward = lambda x, logit=logit: torch.tensor([logit])  # type: ignore[method-assign]
        assert int(net.choices(torch.zeros(1, WIDTH)).argmax()) == likeliest, name
    low, high = net.pair(0.5)  # type: ignore[misc]
    assert (low, high) == (pytest.approx(1 / (1 + math.exp(half))), pytest.approx(1 / (1 + math.exp(-half))))
    assert Net().pair(0.3) == 0.3


@pytest.mark.parametrize("learn", ["ppo", "vtrace"])
def test_learners_that_may_ask_are_right_more_often_for_the_same_money(learn: str) -> None:
    fit, check = signs(1200, blur=1.5), signs(800, seed=1, blur=1.5)
    mark = mark_from(fit, 3.0)
    assert mark == 1.0
    asking, start = fit.asking(mark), supervised.train(fit, epochs=10)
    goal = Goal(alpha=0.02, multiplier=3.0)
    if learn == "ppo":
        net = ppo.train(asking, check.asking(mark), start.asking(), goal, ppo.PPOSettings(rounds=10, runs=512))
    else:
        settings = vtrace.VTraceSettings(updates=40, runs=512)
        net, _ = vtrace.train(asking, check.asking(mark), start.asking(), goal, settings)
    with_asking = problem_area(check.asking(mark), net.redo(check.vectors))
    without = problem_area(check, start.redo(check.vectors))
    assert with_asking > without + 0.02
    assert 0.05 < net.chances(check.vectors)[:, 2].mean() < 1


def test_a_pair_of_thresholds_asks_between_them_and_the_mark_decides() -> None:
    forest = signs(5)
    forest.marks[:] = [0.2, 0.8, np.nan, 0.9, 0.1]
    asking = forest.asking(0.8)
    assert asking.child[:, 2].tolist() == [forest.child[0, 1], forest.child[1, 0], UNKNOWN, forest.child[3, 0], RIGHT]
    assert asking.cost[:, 2].tolist() == pytest.approx([1.05, 0.15, 1.05, 0.15, 1.05])
    redo = np.array([0.5, 0.5, 0.5, 0.05, 0.95], np.float32)
    runs = at_threshold(asking, redo, (0.2, 0.9), np.arange(5))
    assert runs.action[:, 0].tolist() == [2, 2, 0, 0, 1]  # what was never asked about is kept
    assert simulate(asking, np.eye(3, dtype=np.float32)[[2] * 5], np.arange(5), np.random.default_rng(0)).action[
        :, 0
    ].tolist() == [2, 2, 0, 2, 2]


def test_a_mark_is_good_enough_where_the_redo_costs_more_than_the_error() -> None:
    forest = signs(1000)
    forest.marks[:] = np.where(forest.child[:, 0] == RIGHT, 0.7, 0.3)
    assert mark_from(forest, 10.0) == pytest.approx(0.7)
    assert mark_from(forest, 0.0) == pytest.approx(0.3)  # an error costs nothing, so nothing is redone
    forest.marks[:] = np.nan
    assert mark_from(forest, 10.0) is None


def test_unknown_redos_are_never_taken() -> None:
    forest = signs(50)
    child = forest.child.copy()
    child[:, 1] = UNKNOWN
    always = np.tile(np.array([0.0, 1.0], np.float32), (50, 1))
    runs = simulate(replace(forest, child=child), always, np.arange(50), np.random.default_rng(0))
    assert not runs.action.any()
    assert (runs.chance == 1).all()


def test_a_threshold_above_one_keeps_nothing_and_zero_keeps_all() -> None:
    forest = signs(100)
    redo = np.full(100, 0.5, np.float32)
    everyone = np.arange(100)
    assert at_threshold(forest, redo, 1.01, everyone).right.all()
    assert not at_threshold(forest, redo, 0.0, everyone).action.any()
    assert lost(forest, at_threshold(forest, redo, 0.0, everyone)).sum() == (forest.child[:, 0] == WRONG).sum()


@pytest.mark.parametrize(("k", "n", "alpha"), [(0, 10, 0.1), (3, 50, 0.05), (20, 50, 0.9), (50, 50, 0.9), (0, 0, 0.1)])
def test_luck_is_the_share_of_the_splits_that_hide_the_losses(k: int, n: int, alpha: float) -> None:
    expected = 0.0
    for total in range(2 * n + 1):
        hidden = [i for i in range(k + 1) if i <= total and alpha * n < total - i <= n]
        expected = max(
            expected, sum(math.comb(n, i) * math.comb(n, total - i) for i in hidden) / math.comb(2 * n, total)
        )
    assert calibrate.luck(k, n, alpha) == pytest.approx(expected if k < n else 1.0)


def test_the_promise_is_kept_as_often_as_it_says() -> None:
    """Over fresh questions, as many as were calibrated on, the loss is rarely above alpha: the one that is counted."""
    rng = np.random.default_rng(0)
    kappas = np.linspace(1.0, 0.0, 21)
    broken = 0
    for _ in range(300):
        hard, new = rng.random(400), rng.random(400)  # a question is lost below its own threshold
        trials = [calibrate.Trial(k, hard > (1 - k) / 5, np.ones(400)) for k in kappas]
        kappa = calibrate.loss_threshold(trials, np.ones(400, np.bool_), 0.05, 0.1)
        broken += isinstance(kappa, float) and bool(np.mean(new <= (1 - kappa) / 5) > 0.05)
    assert broken / 300 <= 0.1 + 3 * math.sqrt(0.1 * 0.9 / 300)


def test_too_few_questions_promise_nothing() -> None:
    trials = [calibrate.Trial(1.01, np.ones(20, np.bool_), np.ones(20))]
    assert calibrate.loss_threshold(trials, np.ones(20, np.bool_), 0.01, 0.1) is None


def test_the_cost_bound_covers_the_mean() -> None:
    rng = np.random.default_rng(0)
    covered = sum(calibrate.upper_mean(rng.random(200), 1.0, 0.1) >= 0.5 for _ in range(200))
    assert covered >= 180
    cheap = [calibrate.Trial(k, np.ones(2000, np.bool_), np.full(2000, k)) for k in (0.1, 0.3, 0.5, 0.7)]
    assert calibrate.cost_threshold(cheap, np.ones(2000), 0.6, 0.1) == 0.5


def test_area_and_needed_on_a_straight_line() -> None:
    x, y = np.array([0.0, 1.0]), np.array([0.5, 0.9])
    assert area(x, y, 0.0, 1.0) == pytest.approx(0.7)
    assert needed(x, y, 0.7) == pytest.approx(0.5)
    assert needed(x, y, 0.95) == math.inf


@pytest.mark.parametrize(
    ("expected", "text", "good"),
    [
        ("12", "so it is\n\nAnswer: 12", True),
        ("12", "Answer: 12.0", True),
        ("1,200", "The answer is 1200.", True),
        ("12", "Answer: 13", False),
        ("12", "", False),
        ("1/2", r"thus \boxed{0.5}", True),
        (r"\frac{1}{2}", r"thus \boxed{\frac{2}{4}}", True),
        ("Paris", "The answer is paris.", True),
        ("18", "9 * 2 = 18\n#### 18", True),
        ("12", "12 apples, then 13 apples", False),
    ],
)
def test_answers_are_compared_as_words_numbers_and_mathematics(expected: str, text: str, good: bool) -> None:
    assert right(expected, text) is good


def test_the_final_answer_is_the_last_one() -> None:
    assert final("Answer: 1\n\nAnswer: 2") == "2"
    assert final(r"\boxed{a_{1}} and \boxed{b^{2}}") == "b^{2}"
    assert final("no numbers") == ""
