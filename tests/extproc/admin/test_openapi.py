"""`/openapi.json` describes the admin port as it is: every route and method, and what real workers answer."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import jsonschema
import pytest

from extproc.admin.callers import Guard
from extproc.admin.openapi import DESCRIPTION, SCHEMAS
from extproc.admin.port import Admin
from tests.extproc.live import Load, chat, eventually, policy, proxied, swap
from tests.patience import PATIENCE

METERED = (
    policy()
    .replace("version: 1", "version: 1\nsettings: {meter: on, reference: large}")
    .replace("Qwen/Qwen3-72B", "Qwen/Qwen3-72B, price: {input: 3, output: 9}")
)


def _resolve(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "components": {"schemas": SCHEMAS}}


def _check(found: Any, schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(_resolve(schema)).validate(found)


def test_it_names_every_route_and_method_and_who_may_ask():
    routes = Admin(None)._routes  # type: ignore[arg-type]
    assert set(DESCRIPTION["paths"]) == set(routes)
    for path, route in routes.items():
        methods = DESCRIPTION["paths"][path]
        assert set(methods) == {method.lower() for method in route.methods} - {"head"}, path
        free = route.guard in (Guard.NOTHING, Guard.SHELL)
        assert all(("security" in operation) is free for operation in methods.values()), path


def test_its_schemas_are_schemas_and_refuse_what_is_wrong():
    for name in SCHEMAS:
        jsonschema.Draft202012Validator.check_schema(_resolve(SCHEMAS[name]))
    with pytest.raises(jsonschema.ValidationError):
        _check({"tree": [{"decision": "a"}]}, SCHEMAS["Tree"])


@pytest.mark.e2e
async def test_two_workers_answer_as_it_says_and_a_follower_sees_each_decision_once(folder, tmp_path):
    swap(folder, METERED)
    async with proxied(folder, tmp_path, "--workers", "2", "--poll", "3600", "--playground") as (running, base):
        connector = aiohttp.UnixConnector(str(running.admin))
        async with aiohttp.ClientSession(connector=connector) as session:
            follow = await session.get("http://admin/debug/decisions?follow")
            seen: list[dict[str, Any]] = []

            async def listen() -> None:
                async for line in follow.content:
                    assert not line.startswith(b"event: missed")
                    if line.startswith(b"data: "):
                        seen.append(json.loads(line[6:]))

            listening = asyncio.create_task(listen())
            async with Load(base, 4) as load:
                await load.more(200)
            async with aiohttp.ClientSession() as client:
                gold = {"x-tier": "gold", "x-request-id": "the-last-one"}
                async with client.post(f"{base}/v1/chat/completions", json=chat(), headers=gold) as answer:
                    assert answer.status == 200

            async def all_seen() -> bool:
                counted = (await running.metrics())["pointsman_decision_duration_seconds_count{}"]
                return counted > 200 and len(seen) == counted

            await eventually(all_seen)
            listening.cancel()
            follow.close()
            assert len({each["key"] for each in seen}) == len(seen)
            for each in seen:
                _check(each, SCHEMAS["Decision"])
            (last,) = [each for each in seen if each["decision"] == "gold"]
            assert (last["model"], last["answer"]["status"]) == ("large", 200)
            async with session.post("http://admin/debug/tree", json=last) as told:
                tree = await told.json()
            _check(tree, SCHEMAS["Tree"])
            assert tree["tree"][0]["rule"]["said"].startswith("true")

            question = {"request": json.dumps(chat("hi")), "replay": 100, "headers": {"x-tier": "gold"}}
            async with session.post("http://admin/playground", json=question) as answer:
                told = await answer.json()
            _check(told, SCHEMAS["Answer"])
            assert told["explained"]["decision"] == "gold"
            assert told["replay"]["same"] == told["replay"]["decisions"] == 100
            for wrong in ([], {"policy": 1}, {"replay": "all"}, {"headers": []}, {"headers": {"a": []}}):
                async with session.post("http://admin/playground", json=wrong) as answer:
                    assert answer.status == 400, wrong
            async with session.post("http://admin/feedback", data=b"[" * 500 + b"]" * 500) as answer:
                assert (answer.status, "nested too deeply" in await answer.text()) == (400, True)
        kept = (await running.get("/debug/decisions?limit=7"))[1]["decisions"]
        assert len(kept) == 7
        for each in kept:
            _check(each, SCHEMAS["Decision"])
        outcomes = (await running.get("/outcomes"))[1]
        _check(outcomes, SCHEMAS["Outcomes"])
        assert outcomes["total"]["requests"] == len(seen)
        models = {each["model"]: each for each in outcomes["total"]["models"]}
        assert models["large"]["requests"] == models["large"]["answers"] == 1
        assert models["large"]["money"] > 0
        _check((await running.get("/policy?form=json"))[1], SCHEMAS["Policy"])
        _check((await running.get("/readyz"))[1], {"type": "object", "required": ["ready", "policy"]})

        async def points() -> bool:
            found = (await running.get("/outcomes"))[1]["points"]
            return sum(point["requests"] for point in found) > 0

        await asyncio.wait_for(eventually(points), PATIENCE)
