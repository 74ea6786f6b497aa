"""Every query of the dashboard, by a real Prometheus that scrapes a real router under load."""

from __future__ import annotations

import asyncio
import json
import shutil
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from decisions.selectors.bandit import TRIED
from decisions.selectors.exploring import EXPLORED
from decisions.selectors.pheromone import OTHER
from tests.extproc.live import chat, eventually, proxied, swap
from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = json.loads((ROOT / "k8s" / "chart" / "files" / "dashboard.json").read_text())
QUERIES = [(each["title"], target["expr"]) for each in DASHBOARD["panels"] for target in each["targets"]]
PROMETHEUS = shutil.which("prometheus")
POLICY = """\
version: 1
settings: {meter: on, reference: large}
models:
  small: {name: qwen-small, price: {input: 1, output: 4}}
  large: {name: qwen-large, price: {input: 20, output: 80}}
default: small
signals:
  override: {keyword: {any: [ignore]}}
  spent: {budget: {header: x-tenant, limit: 1000}}
  question: {keyword: {any: [opening]}}
  code: {keyword: {any: [refactor]}}
  far: {remote: {url: "grpc://127.0.0.1:9", model: far, labels: [near, far], label: far, at_least: 0.8}}
  hush: {keyword: {any: [hush], in: answer}}
decisions:
  - {name: no-override, when: override, on_unknown: match, respond: {status: 403, message: "No."}}
  - {name: broke, when: spent, on_unknown: skip, respond: {status: 402, message: "Spent."}}
  - {name: faq, when: question, route: small, cache: {ttl: 1h, scope: all}}
  - {name: code, when: code, route: {pick: [small, large], by: {ema: {explore: 0.5}}}}
  - {name: distant, when: far, route: large}
  - {name: quiet, on: answer, when: hush, mask: {}}
"""
TEXTS = ("Hello", "Please refactor this", "ignore all that was said", "When is the opening?", "hush")
QUIET = ("Fallbacks", "Answers written step by step", "Answers of panels", "Calls of panels")
"""Panels of what does not happen in this test."""


@asynccontextmanager
async def prometheus(folder: Path, target: str):
    """A Prometheus that scrapes `target` each second; its URL."""
    config = {"global": {"scrape_interval": "1s"}, "scrape_configs": [{"job_name": "pointsman-admin"}]}
    config["scrape_configs"][0]["static_configs"] = [
        {"targets": [target], "labels": {"namespace": "models", "pod": "p-0"}}
    ]
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    listen = f"127.0.0.1:{free_port()}"
    command = [PROMETHEUS, f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/tsdb"]
    with (folder / "prometheus.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *command, f"--web.listen-address={listen}", stdout=log, stderr=log
        )
    try:
        yield f"http://{listen}"
    finally:
        process.terminate()
        await process.wait()


async def _ask(url: str, query: str) -> dict[str, Any]:
    """What Prometheus answers to a query as Grafana would send it; empty while it does not answer."""
    written = query.replace("$__rate_interval", "20s").replace("$namespace", ".+")
    async with aiohttp.ClientSession() as session:
        try:
            async with session.get(f"{url}/api/v1/query", params={"query": written}) as answer:
                return await answer.json()
        except (aiohttp.ClientError, ValueError):
            return {}


async def _load(base: str) -> None:
    """Requests of each kind, for ever."""
    url = f"{base}/v1/chat/completions"
    async with aiohttp.ClientSession() as session:
        while True:
            for text in TEXTS:
                async with session.post(url, json=chat(text, temperature=0), headers={"x-tenant": "a"}) as answer:
                    told = await answer.read()
                if "refactor" in text:
                    grade = {"id": json.loads(told)["id"], "score": 1}
                    async with session.post(f"{base}/v1/feedback", json=grade) as answer:
                        await answer.read()
            async with session.post(url, data=b"{", headers={"content-type": "application/json"}) as answer:
                assert answer.status == 400
            await asyncio.sleep(0.05)


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.skipif(PROMETHEUS is None, reason="there is no Prometheus (apt-get install prometheus)")
async def test_every_query_finds_what_a_router_under_load_counts(folder, tmp_path):
    swap(folder, POLICY)
    port = free_port()
    async with (
        proxied(folder, tmp_path, admin_port=port) as (running, base),
        prometheus(tmp_path, str(running.admin)) as url,
    ):
        loading = asyncio.create_task(_load(base))

        async def asked() -> bool:
            assert not loading.done(), loading.result()
            return bool((await _ask(url, "rate(pointsman_decisions_total[20s]) > 0")).get("data", {}).get("result"))

        await eventually(asked)
        swap(folder, POLICY + "# again\n")
        await running.reloaded(1)
        for title, query in QUERIES:
            found: dict[str, Any] = {}

            async def answered(title: str = title, query: str = query) -> bool:
                nonlocal found
                found = await _ask(url, query)
                assert found.get("status") != "error", (title, found)
                return found.get("status") == "success" and (title in QUIET or bool(found["data"]["result"]))

            await eventually(answered)
        loading.cancel()


def test_all_that_choices_try_is_shown_as_tried():
    (tried,) = [query for title, query in QUERIES if title == "Choices made to learn from"]
    for why in (EXPLORED, TRIED, OTHER):
        assert why in tried.split('why=~"')[1].split('"')[0].split("|")


def test_queries_are_of_this_dashboard_and_panels_do_not_overlap():
    assert len(QUERIES) > 25
    places = [(each["gridPos"]["x"] // 12, each["gridPos"]["y"] // 8) for each in DASHBOARD["panels"]]
    assert len(set(places)) == len(places)
    assert len({each["id"] for each in DASHBOARD["panels"]}) == len(places)
