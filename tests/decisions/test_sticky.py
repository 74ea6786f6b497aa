"""Sticky decisions: a session keeps the decision that its first match took; guards look at every request."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from config.build import build
from config.load import check, parse
from config.resources import Resources
from decisions.decision import Trace
from decisions.engine import Engine
from decisions.explain import as_object, reasons, tree
from extproc.serving.rollout import Rollout
from signals.reading import Unavailable
from signals.request import Message, Request
from signals.state import store
from signals.state.store import Memory

POLICY = """\
version: 1
models: {{small: {{}}, large: {{}}, third: {{}}}}
default: small
strategy: {strategy}
signals:
  evil: {{keyword: {{any: [evil]}}}}
  code: {{keyword: {{any: [code]}}}}
  poem: {{keyword: {{any: [poem]}}}}
  done: {{keyword: {{any: [bye]}}}}
decisions:
- {{name: guard, when: evil, respond: {{status: 403}}, on_unknown: match}}
- {{name: poems, when: poem, route: third}}
- {{name: code, when: code, route: {route}, sticky: {sticky}, override: {override}}}
{more}
"""


def policy(sticky: str = "session", route: str = "large", strategy: str = "first", **more: str) -> str:
    more = {"override": "false", "more": "", **more}
    return POLICY.format(sticky=sticky, route=route, strategy=strategy, **more)


def request(text: str, session: str = "s", model: str = "auto", **headers: str) -> Request:
    named = {"x-session-id": session, **headers}
    return Request("chat", text.encode(), {"model": model}, model, (Message("user", text),), named)


class Talk:
    """Requests to an engine, whose store outlives it."""

    def __init__(self, text: str, resources: Resources | None = None) -> None:
        self.resources = resources or Resources()
        self.engine: Engine = build(parse(text), self.resources)

    async def trace(self, *args: Any, **more: Any) -> Trace:
        return await self.engine.decide(request(*args, **more))

    async def say(self, *args: Any, **more: Any) -> tuple[str | None, str | None]:
        decision = (await self.trace(*args, **more)).decision
        return decision.name, decision.model.key if decision.model else None


@pytest.mark.parametrize("strategy", ["first", "best"])
async def test_commit_it_stays_with_the_model_that_wrote_the_code(strategy: str) -> None:
    talk = Talk(policy(strategy=strategy))
    assert await talk.say("commit it") == (None, "small")
    assert await talk.say("write code") == ("code", "large")
    assert await talk.say("commit it") == ("code", "large")
    assert await talk.say("a poem") == ("code", "large")
    assert await talk.say("commit it", session="other") == (None, "small")
    assert await talk.say("a poem", session="other") == ("poems", "third")


@pytest.mark.parametrize("strategy", ["first", "best"])
async def test_guards_look_at_every_request(strategy: str) -> None:
    talk = Talk(policy(strategy=strategy))
    await talk.say("write code")
    trace = await talk.trace("evil")
    assert (trace.decision.name, trace.decision.action, trace.kept) == ("guard", "respond", False)
    assert await talk.say("commit it") == ("code", "large")


async def test_what_stands_below_a_kept_decision_is_not_reached() -> None:
    more = "- {name: nothing-else, respond: {status: 404}, on_unknown: skip}"
    talk = Talk(policy(more=more))
    assert (await talk.say("commit it"))[0] == "nothing-else"
    await talk.say("write code")
    assert await talk.say("commit it") == ("code", "large")


async def test_it_ends_so_long_after_the_last_request(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(store, "time", SimpleNamespace(monotonic=lambda: now))  # the store's own clock, nobody else's
    talk = Talk(policy(sticky="{by: session, until: 300ms}"))
    await talk.say("write code")
    for _ in range(4):
        now += 0.29
        assert await talk.say("commit it") == ("code", "large")
    now += 0.31
    assert await talk.say("commit it") == (None, "small")


async def test_a_request_that_names_its_model_keeps_it_unless_the_decision_overrides() -> None:
    for override, kept in (("false", (None, "third")), ("true", ("code", "large"))):
        talk = Talk(policy(override=override))
        await talk.say("write code")
        assert await talk.say("commit it", model="third") == kept


async def test_its_choice_of_a_model_is_kept_too() -> None:
    talk = Talk(policy(route="{pick: [small, large]}"))
    models: dict[str, set[str | None]] = {}
    for number in range(60):
        session = f"s{number % 10}"
        for text in ("write code", "commit it"):
            models.setdefault(session, set()).add((await talk.say(text, session=session))[1])
    assert all(len(kept) == 1 for kept in models.values())
    assert len(set.union(*models.values())) == 2


async def test_a_reload_keeps_it_and_forgets_what_is_gone() -> None:
    before = Talk(policy(route="{pick: [small, large]}"))
    sessions = [f"s{number}" for number in range(30)]
    kept = {session: await before.say("write code", session=session) for session in sessions}
    after = Talk(policy(route="{pick: [small, large, third]}"), before.resources)
    assert {session: await after.say("commit it", session=session) for session in sessions} == kept
    fresh = {(await after.say("write code", session=f"new{number}"))[1] for number in range(60)}
    assert fresh == {"small", "large", "third"}
    gone = Talk(policy().replace("name: code", "name: other"), before.resources)
    assert await gone.say("commit it") == (None, "small")
    assert await gone.say("write code") == ("other", "large")
    assert await gone.say("commit it") == ("other", "large")


async def test_a_candidate_in_the_shadow_moves_no_session() -> None:
    live = Talk(policy(route="{pick: [small, large]}"))
    candidate = Talk(policy(route="{pick: [third]}").replace("name: code", "name: other"), live.resources)
    counted: list[str] = []
    rollout = Rollout(live.engine, candidate.engine, 0.0, counted.append)
    kept = None
    for text in ("write code", "commit it", "commit it"):
        trace = await live.trace(text)
        decision = (trace.decision.name, trace.decision.model)
        assert kept in (None, decision)
        kept = decision
        rollout.follow(trace, request(text))
        await asyncio.gather(*rollout._tasks)
    assert counted == ["differ"] * 3


async def test_while_the_store_is_away_every_request_is_decided_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: Any) -> Any:
        raise Unavailable("store_down")

    talk = Talk(policy())
    for method in ("text", "keep", "pin"):
        monkeypatch.setattr(Memory, method, away)
    assert await talk.say("write code") == ("code", "large")
    assert await talk.say("commit it") == (None, "small")
    assert (await talk.say("evil"))[0] == "guard"


async def test_without_a_session_nothing_is_kept() -> None:
    engine = Talk(policy()).engine
    asked = Request("chat", b"", {}, None, (Message("assistant", "code"),))
    for _ in range(2):
        assert (await engine.decide(asked)).kept is False


async def test_explain_says_so() -> None:
    talk = Talk(policy())
    assert "kept" not in as_object(talk.engine, await talk.trace("write code"))
    trace = await talk.trace("commit it")
    assert as_object(talk.engine, trace)["kept"] is True
    assert as_object(talk.engine, trace)["rules"] == [
        {"decision": "guard", "result": False},
        {"decision": "code", "result": True},
    ]
    assert list(reasons(trace)) == ["kept: an earlier request of the session took this decision (sticky)"]
    lines = tree(talk.engine, trace, named=False).splitlines()
    assert lines[0].startswith("false    guard")
    assert "–        poems  → route third  (not evaluated: the session keeps 'code')" in lines
    assert "kept     code  → route large" in lines


def test_a_guard_is_not_sticky() -> None:
    text = policy().replace("respond: {status: 403}", "respond: {status: 403}, sticky: session")
    assert [(p.code, p.line, p.column) for p in check(text, "p.yaml")[1]] == [("P104", 11, 53)]
    for sticky in ("{by: header}", "forever", "{until: 0s}", "{until: 5}"):
        assert [p.code for p in check(policy(sticky=sticky), "p.yaml")[1]] == ["P104"]
