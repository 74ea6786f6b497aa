"""What holds for every kind of panel: members that fail, clients that leave, the same answer again, trust domains."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterable
from itertools import product
from typing import Any

import pytest

from panel.registry import PANELS
from tests.panel.fakes import Given, table, until
from tests.stepwise.fakes import FakeModel, Fault

KINDS: dict[str, dict[str, Any]] = {
    "cascade": {"cascade": ["a", "b", "c"], "until": {"sure": 0.9}},
    "agree": {"agree": "a", "then": ["b", ["a", "b", "c"]]},
    "vote": {"vote": ["a", "b", "c"]},
    "merge": {"merge": ["a", "b"], "writer": "c"},
    "rank": {"rank": ["a", "b", "c"], "judges": ["c"]},
    "rounds": {"rounds": ["a", "b"], "planner": "c"},
    "plan": {"plan": {"short": {"model": "a"}, "long": {"model": "b"}}, "planner": "c"},
}
WAIT = 5.0
"""Seconds after which a server that hangs has failed."""


def members() -> list[FakeModel]:
    """Three that disagree, of which none is sure: everybody is asked, each time."""
    texts = {
        "a": [f"it is ✗ Answer: {number}" for number in (1, 5, 6)],
        "b": ["it may be ✗ Answer: 2"],
        "c": ["ASK a: What is it?\nASK b: Is it?", "I say it is ✗ Answer: 3"],
    }
    return [FakeModel(name, lambda _, number, all_=all_: all_[number % len(all_)]) for name, all_ in texts.items()]


class Seeded(FakeModel):
    """Says what the seed says."""

    async def _answer(self, reader: Any, sink: Any, path: str, body: Any, *more: Any) -> bool:
        self.write = lambda prefix, number: f"it is ✗ Answer: {body.get('seed')}"
        return await super()._answer(reader, sink, path, body, *more)


def test_every_kind_is_here() -> None:
    assert list(KINDS) == [kind.name for kind in PANELS]


def proper(given: Given) -> str:
    """What became of it: an `answer`, one that is `broken` off, or an `error`; anything else fails."""
    if given.headers["content-type"].startswith("text/event-stream"):
        assert given.status == 200
        assert given.raw.endswith(b"data: [DONE]\n\n")
        if "error" in given.events[-1]:
            return "broken"
        assert given.text
        return "answer"
    if given.status == 200:
        assert given.text
        assert given.body["choices"][0]["finish_reason"] == "stop"
        return "answer"
    assert given.status in (502, 504)
    assert given.body["error"]["message"]
    return "error"


LATE = ("hang", "silent")
"""These take their seconds at the same time, and all kinds of panels together."""
FAULTS = ("kill", "garbage", "slow")
MORE = ("badjson", "cut", "midtoken", "done", "error", "status", "html")


async def fails(kinds: Iterable[str], faults: Iterable[str], late: bool) -> None:
    """Each kind, whole and streamed, where a member, or all of them, fail at the beginning or in the middle."""
    # On a busy machine the first piece may take longer than ten seconds, and a heartbeat would begin the stream.
    limits: dict[str, Any] = {"budget": {"each": WAIT}} if late else {"heartbeat": 300.0}

    async def one(kind: str, fault: str, broken: str, after: int, stream: bool) -> str:
        more = {"wait": WAIT} if late else {}
        async with table(members(), {**KINDS[kind], **limits}, **more) as made:
            for name in broken:
                made.models[name].faults[-2] = Fault(fault, after)
            return proper(await made.ask(stream=stream))

    cases = [*product(kinds, faults, ("a", "b", "c", "abc"), (0, 2), (False, True))]
    found = dict(zip(cases, await asyncio.gather(*(one(*case) for case in cases)), strict=True))
    for case, outcome in found.items():
        _, fault, broken, after, stream = case
        if fault == "slow":
            assert outcome == "answer", case
        elif broken == "abc":
            begun = stream and (after or late)  # a stream that waits long has begun with heartbeats
            assert outcome in (("error", "broken") if begun else ("error",)), case
        elif stream and after:  # what the client has seen cannot be taken back
            assert outcome in ("answer", "broken"), case
        else:
            assert outcome == "answer", case


@pytest.mark.parametrize("fault", [*FAULTS, *(pytest.param(fault, marks=pytest.mark.slow) for fault in MORE)])
@pytest.mark.parametrize("kind", KINDS)
async def test_one_that_fails_at_any_moment_costs_no_answer_and_all_of_them_a_proper_error(
    kind: str, fault: str
) -> None:
    await fails([kind], [fault], late=False)


@pytest.mark.slow
@pytest.mark.no_cover
async def test_one_that_hangs_at_any_moment_costs_no_answer_and_all_of_them_a_proper_error() -> None:
    await fails(KINDS, LATE, late=True)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_client_that_leaves_at_any_moment_ends_every_call(kind: str, stream: bool) -> None:
    async def one(tokens: int) -> None:
        models = members()
        for model in models:
            model.released = asyncio.Semaphore(tokens)
        async with table(models, KINDS[kind]) as made:
            asking = asyncio.create_task(made.ask(stream=stream))
            await until(lambda: any(model.connections for model in models))
            await until(lambda: not any(model.connections and model.released._value for model in models))  # type: ignore[union-attr]
            asking.cancel()
            await asyncio.wait([asking])
            await until(lambda: not any(model.connections for model in models))
            outcomes = made.panel.metrics.answers
        assert outcomes == {(kind, "cancelled"): 1}
        assert len(made.charged) == 1

    await asyncio.gather(*map(one, range(5)))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", KINDS)
async def test_the_same_drafts_give_the_same_bytes(kind: str, stream: bool) -> None:
    draw = random.Random(7)

    async def one() -> Any:
        models = [Seeded("a", lambda prefix, number: ""), *members()[1:]]
        async with table(models, KINDS[kind]) as made:
            for model in models:
                model.delay = draw.random() / 50
            given = await made.ask(stream=stream, seed=11)
        raw = given.events if stream else [given.body]
        for event in raw:
            del event["id"], event["created"]
            for call in ((event.get("usage") or {}).get("pointsman") or {}).get("calls", ()):
                del call["began"], call["seconds"]
        return json.dumps(raw)

    assert len(set(await asyncio.gather(*(one() for _ in range(4))))) == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_answers_that_the_client_s_limit_cuts_are_answers_where_there_is_no_other(kind: str) -> None:
    models = members()
    for model in models:
        model.finish = "length"
    async with table(models, KINDS[kind]) as made:
        given = await made.ask()
    assert (given.status, given.body["choices"][0]["finish_reason"]) == (200, "length")
    assert given.text


@pytest.mark.parametrize("barred", ["a", "b", "c"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_request_never_reaches_whom_its_trust_domain_excludes(kind: str, barred: str) -> None:
    cards = {name: {"trust": ["outside"] if name == barred else ["inside", "outside"]} for name in "abc"}
    block = {**KINDS[kind], "cards": cards, "trust": {"header": "x-trust"}}
    async with table(members(), block) as made:
        await made.ask(headers={"x-trust": "outside"})
        assert min(made.asked.values()) > 0
        before = made.asked
        for api, body in (
            ("chat", {"stream": True}),
            ("messages", {"messages": [{"role": "user", "content": "?"}], "max_tokens": 99}),
            ("responses", {"input": "?"}),
        ):
            given = await made.ask(api, headers={"x-trust": "inside"}, **body)
            assert given.status == 200
            assert made.asked[barred] == before[barred]
        assert sum(made.asked.values()) >= sum(before.values()) + 3
