"""Grades: who may give them, once, how many; what users say in the next turn; what is kept of a request."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import Any

import orjson
import pytest

from config.build import build
from config.load import parse
from decisions.decision import Trace
from decisions.engine import Engine
from decisions.grading import A_MINUTE, Grading
from decisions.learned import forget, learned, take_in
from decisions.outcome import Outcome
from decisions.selectors.bandit import Bandit
from decisions.selectors.ema import Ema
from signals.reading import Reading
from signals.request import Message, Request

POLICY = """\
version: 1
models: {small: {quality: 0.6}, large: {quality: 0.5}}
default: small
signals: {said: {feedback: {is: [satisfied, dissatisfied]}}, again: {reask: {}}}
decisions:
- {name: said, when: {any: [said, again]}, route: large}
- {name: learned, route: {pick: [small, large], by: {ema: {explore: 0}}}}
"""
TENANT = "settings: {tenant: {header: x-tenant}}\n"


def made(more: str = "") -> tuple[Engine, Grading]:
    engine = build(parse(POLICY + more))
    assert engine.grading is not None
    return engine, engine.grading


ARRIVALS = count(1.0)


def asked(**headers: str) -> Request:
    headers = {key.replace("_", "-"): value for key, value in headers.items()}
    return Request("chat", b"{}", {}, "auto", (Message("user", "hi"),), headers, None, next(ARRIVALS))


def grade(body: dict[str, Any], **headers: str) -> Request:
    headers = {key.replace("_", "-"): value for key, value in headers.items()}
    return Request("feedback", b"", body, None, (), headers)


async def answer(engine: Engine, id: str, request: Request, said: Reading | None = None) -> Trace:
    """A request is decided, sent and answered."""
    trace = await _chosen(engine, request, said)
    assert engine.grading is not None
    engine.grading.sent(trace, request)
    engine.grading.answered(trace, request, id)
    await settled(engine.grading)
    return trace


async def _chosen(engine: Engine, request: Request, said: Reading | None = None) -> Trace:
    silent = {"said": Reading(False), "again": Reading(False)}
    return await engine.stubbed(request, silent | ({} if said is None else {"said": said})).finish()


async def settled(grading: Grading) -> None:
    await asyncio.gather(*grading._writing)


def means(engine: Engine) -> dict[str, float]:
    selector = engine.selectors["learned"]
    assert isinstance(selector, Ema)
    return {model.key: selector.worth("", model) for model in selector.models}


async def test_a_grade_is_taken_once_by_whichever_id() -> None:
    engine, grading = made()
    await answer(engine, "chatcmpl-1", asked(x_request_id="r1"))
    assert await grading.take(grade({"id": "r1", "score": 0})) == "taken"
    assert await grading.take(grade({"id": "chatcmpl-1", "score": 0})) == "graded_already"
    assert means(engine) == {"small": pytest.approx(1.2 / 3, abs=1e-6), "large": 0.5}


async def test_a_grade_may_be_here_before_the_store_has_what_is_remembered_of_its_answer() -> None:
    """Another replica takes the grade than has sent the answer."""
    engine, grading = made()
    taking = asyncio.create_task(grading.take(grade({"id": "chatcmpl-1", "score": 0})))
    await asyncio.sleep(0.02)
    request = asked()
    trace = await _chosen(engine, request)
    grading.answered(trace, request, "chatcmpl-1")
    assert await taking == "taken"


async def test_the_better_of_two_answers() -> None:
    engine, grading = made()
    await answer(engine, "a", asked())
    await answer(engine, "b", asked())
    assert await grading.take(grade({"id": "a", "better_than": "b"})) == "taken"
    assert means(engine)["small"] == pytest.approx((1.2 + 1) / 4, abs=1e-6)
    assert await grading.take(grade({"id": "b", "better_than": "a"})) == "graded_already"
    assert await grading.take(grade({"id": "a", "better_than": "a"})) == "invalid_feedback"


async def test_a_comparison_that_does_not_count_takes_no_grade_away() -> None:
    engine, grading = made()
    for id in ("a", "b", "c"):
        await answer(engine, id, asked())
    assert await grading.take(grade({"id": "b", "score": 1})) == "taken"
    assert await grading.take(grade({"id": "a", "better_than": "b"})) == "graded_already"
    assert await grading.take(grade({"id": "a", "better_than": "c"})) == "taken"


async def test_answers_of_two_decisions_are_not_compared() -> None:
    other = "- {name: other, when: other, route: {pick: [small, large], by: ema}}\n- {name: learned,"
    policy = POLICY.replace("- {name: learned,", other).replace(
        "again:", "other: {header: {name: x-other, exists: true}}, again:"
    )
    engine = build(parse(policy))
    assert (grading := engine.grading) is not None
    await answer(engine, "a", asked())
    await answer(engine, "b", asked(x_other="yes"))
    assert await grading.take(grade({"id": "a", "better_than": "b"})) == "invalid_feedback"
    assert await grading.take(grade({"id": "a", "score": 1})) == "taken"


async def test_a_request_s_id_that_another_tenant_uses_again_names_the_first_one_s_answer() -> None:
    engine, grading = made(TENANT)
    await answer(engine, "a", asked(x_tenant="honest", x_request_id="r"))
    await answer(engine, "b", asked(x_tenant="forger", x_request_id="r"))
    await answer(engine, "c", asked(x_tenant="honest", x_request_id="r"))
    assert await grading.take(grade({"id": "r", "score": 0}, x_tenant="forger")) == "taken", "of its own answer"
    assert await grading.take(grade({"id": "r", "score": 1}, x_tenant="honest")) == "taken"
    assert await grading.take(grade({"id": "a", "score": 1}, x_tenant="honest")) == "graded_already"
    assert await grading.take(grade({"id": "c", "score": 1}, x_tenant="honest")) == "taken"


async def test_the_operator_gives_grades_of_anybody_s_answers() -> None:
    engine, grading = made(TENANT)
    for number in range(A_MINUTE + 10):
        await answer(engine, f"a{number}", asked(x_tenant="t", x_request_id=f"r{number}"))
    grades = [{"id": f"a{number}", "score": 0.0} for number in range(A_MINUTE + 8)]
    assert await grading.take_all(grades) == ["taken"] * len(grades)
    last = A_MINUTE + 9
    more = [
        {"id": "a0", "score": 1},
        {"id": f"r{last}", "score": 1},
        {"id": f"r{last}", "score": 1, "tenant": "t"},
        3,
        {},
        {"id": "a", "score": 1, "tenant": orjson.loads("[" * 1000 + "]" * 1000)},
        {"id": "a", "score": 1, "session_id": {}},
    ]
    told = ["graded_already", "unknown_answer", "taken", *["invalid_feedback"] * 4]
    assert await grading.take_all(more) == told


async def test_a_long_list_of_grades_lets_requests_through() -> None:
    _, grading = made(TENANT)
    taking = asyncio.create_task(grading.take_all([{"id": str(number), "score": 1} for number in range(5_000)]))
    turns = 0
    while not taking.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns >= 50


async def test_an_answer_that_another_kind_of_selector_chose_is_unknown() -> None:
    """The policy was changed between an answer and its grade; the store stays."""
    engine, grading = made()
    await answer(engine, "a", asked(x_session_id="s"))
    bandit = build(parse(POLICY.replace("ema: {explore: 0}", "bandit: {}"))).selectors["learned"]
    grading._selectors["learned"] = bandit
    await answer(engine, "b", asked(x_session_id="s"), said=Reading(True, None, "dissatisfied"))
    assert await grading.take(grade({"id": "a", "score": 1}, x_session_id="s")) == "unknown_answer"
    assert isinstance(bandit, Bandit)
    assert bandit.standing.all() == {}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"id": "a"},
        {"score": 1},
        {"id": "a", "score": True},
        {"id": "a", "score": -0.1},
        {"id": "a", "score": float("nan")},
        {"id": "a", "score": 1, "better_than": "b"},
        {"id": "a", "score": 1, "comment": "nice"},
        {"id": "x" * 600, "score": 1},
    ],
)
async def test_what_is_no_grade_is_refused(body: dict[str, Any]) -> None:
    engine, grading = made()
    await answer(engine, "a", asked())
    assert await grading.take(grade(body)) == "invalid_feedback"
    assert means(engine)["small"] == 0.6


async def test_forged_grades_of_a_tenant_move_nobody_s_choice() -> None:
    engine, grading = made(TENANT)
    for number in range(50):
        await answer(engine, f"a{number}", asked(x_tenant="honest"))
    taken = {await grading.take(grade({"id": f"a{n % 50}", "score": 0}, x_tenant="forger")) for n in range(1000)}
    assert taken == {"unknown_answer", "too_many_grades"}
    assert means(engine) == {"small": 0.6, "large": 0.5}
    assert await grading.take(grade({"id": "a1", "score": 1}, x_tenant="honest")) == "taken"


async def test_only_so_many_grades_are_taken_in_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("decisions.grading.time.time", lambda: 1.8e9)
    engine, grading = made()
    taken = []
    for number in range(A_MINUTE + 5):
        await answer(engine, f"a{number}", asked(x_session_id="one"))
        taken.append(await grading.take(grade({"id": f"a{number}", "score": 1}, x_session_id="one")))
    assert taken == ["taken"] * A_MINUTE + ["too_many_grades"] * 5
    await answer(engine, "b", asked(x_session_id="two"))
    assert await grading.take(grade({"id": "b", "score": 1}, x_session_id="two")) == "taken"


@pytest.mark.parametrize(("label", "score"), [("satisfied", 1.0), ("clarification", 0.3), ("dissatisfied", 0.0)])
async def test_what_the_user_says_next_grades_the_answer_before(label: str, score: float) -> None:
    engine, grading = made()
    await answer(engine, "a", asked(x_session_id="one"))
    await answer(engine, "b", asked(x_session_id="two"), Reading(False, 0.9, label))
    assert means(engine)["small"] == 0.6, "another session"
    await answer(engine, "c", asked(x_session_id="one"), Reading(False, 0.9, label))
    assert means(engine)["small"] == pytest.approx((1.2 + score) / 3, abs=1e-6)
    assert await grading.take(grade({"id": "a", "score": 1}, x_session_id="one")) == "taken", "in words, and by a grade"


async def test_nobody_s_words_grade_the_answer_of_another_tenant() -> None:
    engine, _ = made(TENANT)
    await answer(engine, "a", asked(x_session_id="one", x_tenant="honest"))
    await answer(engine, "b", asked(x_session_id="one", x_tenant="forger"), Reading(False, 0.9, "dissatisfied"))
    assert means(engine)["small"] == 0.6


async def test_only_so_much_is_heard_of_one_tenant_in_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("decisions.grading.time.time", lambda: 1.8e9)
    engine, _ = made(TENANT)
    for number in range(A_MINUTE + 20):
        await answer(engine, f"a{number}", asked(x_session_id="one", x_tenant="t"), Reading(False, 0.9, "satisfied"))
    learned = engine.selectors["learned"].standing.all()  # type: ignore[attr-defined]
    assert learned["|small"][0] == pytest.approx(A_MINUTE, abs=0.01)


async def test_a_failure_of_the_server_is_a_bad_grade() -> None:
    engine, _ = made()
    trace = await answer(engine, "a", asked())
    engine.record(Outcome(trace, engine.models["small"], 0, 503, 1.0, 1.0), asked())
    engine.record(Outcome(trace, engine.models["large"], 0, 503, 1.0, 1.0), asked())
    assert means(engine) == {"small": pytest.approx(0.4, abs=1e-6), "large": 0.5}


async def test_nothing_of_a_request_is_kept_but_numbers() -> None:
    engine, _ = made()
    request = Request("chat", b"{}", {}, "auto", (Message("user", "my secret plan"),), {"x-session-id": "name"})
    await answer(engine, "a", request)
    kept = " ".join(text for _, text in engine.store._kept.values())  # type: ignore[attr-defined]
    assert "small" in kept
    assert "secret" not in kept
    assert "name" not in kept


def test_a_policy_that_does_not_learn_takes_no_grades() -> None:
    assert build(parse(POLICY.replace("by: {ema: {explore: 0}}", "by: cheapest"))).grading is None


SILENT = {"said": Reading(False), "again": Reading(False)}
KINDS = ("bandit: {explore: 0}", "ema: {explore: 0}", "pheromone: {}", "elo: {explore: 0}")


async def taught(
    engine: Engine, tenant: str, count: int, grades: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tenant asks so often, gets its answers from both models by turns, and grades them as slowly as it may."""
    grading = engine.grading
    assert grading is not None
    for number in range(count):
        if number % A_MINUTE == 0:
            monkeypatch.setattr("decisions.grading.time.time", lambda minute=number: 1.8e9 + minute)
        request = asked(x_tenant=tenant, x_request_id=f"{tenant}{number}")
        trace = await engine.stubbed(request, SILENT).finish()
        assert trace.choice is not None
        model = ("small", "large")[number % 2]
        trace = trace._replace(choice=trace.choice._replace(model=engine.models[model], propensity=0.5))
        grading.answered(trace, request, f"{tenant}-{number}")
        await settled(grading)
        told = grade({"id": f"{tenant}-{number}", "score": grades[model]}, x_tenant=tenant)
        assert await grading.take(told) == "taken"
        await engine.selectors["learned"].settle()


async def takes(engine: Engine, tenant: str) -> list[str]:
    await engine.selectors["learned"].settle()
    found = []
    for number in range(30):
        evaluation = engine.stubbed(asked(x_tenant=tenant, x_request_id=f"n{number}"), SILENT)
        trace = await evaluation.finish()
        assert trace.choice is not None
        found.append(trace.choice.model.key)
    return found


@pytest.mark.slow
@pytest.mark.no_cover
@pytest.mark.parametrize("by", KINDS)
async def test_a_thousand_forged_grades_of_own_answers_move_nobody_else_s_choice(
    by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = build(parse(POLICY.replace("ema: {explore: 0}", by) + TENANT))
    for tenant in ("a", "b", "c"):
        await taught(engine, tenant, 30, {"small": 0.1, "large": 0.9}, monkeypatch)
    others = ("a", "b", "c", "new")
    before = {tenant: await takes(engine, tenant) for tenant in others}
    assert all(takes.count("large") >= 24 for takes in before.values()), before
    await taught(engine, "forger", 1000, {"small": 1.0, "large": 0.0}, monkeypatch)
    after = {tenant: await takes(engine, tenant) for tenant in others}
    kept = sum(x == y for tenant in others for x, y in zip(before[tenant], after[tenant], strict=True))
    assert kept >= (110 if by.startswith("pheromone") else 120), "trails give each its share"
    assert all(takes.count("large") >= 24 for takes in after.values()), after
    assert (await takes(engine, "forger")).count("small") >= 24, "its own grades count for itself"


async def test_with_no_grades_of_its_own_for_others_a_tenant_moves_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = build(parse(POLICY.replace("{explore: 0}", "{explore: 0, per_tenant: 0}") + TENANT))
    await taught(engine, "forger", 100, {"small": 0.0, "large": 1.0}, monkeypatch)
    assert await takes(engine, "forger") == ["large"] * 30
    assert await takes(engine, "new") == ["small"] * 30
    shown = engine.selectors["learned"].standing.all()  # type: ignore[union-attr]
    assert shown["|small"][0] == pytest.approx(50, abs=0.1), "what is shown is everything"
    assert await engine.grading.take_all([{"id": "forger-99", "score": 0}]) == ["graded_already"]  # type: ignore[union-attr]
    await answer(engine, "late", asked(x_tenant="forger"))
    assert await engine.grading.take_all([{"id": "late", "score": 1}]) == ["taken"]  # type: ignore[union-attr]
    assert await takes(engine, "new") == ["large"] * 30, "the operator's grade counts for everybody"


async def test_what_tenants_have_taught_is_forgotten_and_taken_in(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = build(parse(POLICY.replace("{explore: 0}", "{explore: 0, per_tenant: 0}") + TENANT))
    await taught(engine, "one", 30, {"small": 0.0, "large": 1.0}, monkeypatch)
    state = await learned(engine, None)
    assert await forget(engine, None) == ["learned"]
    assert await takes(engine, "one") == ["small"] * 30
    await take_in(engine, state)
    assert await takes(engine, "another") == ["large"] * 30, "what the operator takes in counts for everybody"


async def test_an_id_that_two_servers_have_given_names_neither_answer() -> None:
    engine, grading = made(TENANT)
    trace = await answer(engine, "cmpl-1", asked(x_tenant="one", x_request_id="r1"))
    await answer(engine, "cmpl-1", asked(x_tenant="one", x_request_id="r0"))
    assert await grading.take(grade({"id": "cmpl-1", "score": 1}, x_tenant="one")) == "taken", "the last, of one server"
    assert trace.choice is not None
    other = trace._replace(choice=trace.choice._replace(model=engine.models["large"]))
    grading.answered(other, asked(x_tenant="one"), "cmpl-1")
    await settled(grading)
    before = means(engine)
    await answer(engine, "cmpl-1", asked(x_tenant="one", x_request_id="r2"))
    assert await grading.take(grade({"id": "cmpl-1", "score": 0}, x_tenant="one")) == "ambiguous_answer"
    assert await grading.take_all([{"id": "cmpl-1", "score": 0}]) == ["ambiguous_answer"]
    assert means(engine) == pytest.approx(before, abs=1e-4)
    assert await grading.take(grade({"id": "r2", "score": 0}, x_tenant="one")) == "taken"
    assert await grading.take(grade({"id": "r1", "better_than": "cmpl-1"}, x_tenant="one")) == "ambiguous_answer"
    assert await grading.take(grade({"id": "r1", "score": 0}, x_tenant="one")) == "taken"


async def test_failures_are_no_grades_where_the_policy_says_so() -> None:
    engine = build(parse(POLICY.replace("{explore: 0}", "{explore: 0, failures: false}")))
    trace = await answer(engine, "a", asked())
    engine.record(Outcome(trace, engine.models["small"], 0, 503, 1.0, 1.0), asked())
    assert means(engine) == {"small": 0.6, "large": 0.5}
