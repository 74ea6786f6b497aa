"""A newcomer's first minutes with `pointsman up` and the console: what is sent is seen, step by step where it was
written so; a policy is tried, changed and live, and how long each of these takes is printed."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_up import Up, started, up
from tests.console.browser import chromium, needs_chromium, picture, serious
from tests.console.test_console import _text, _until
from tests.extproc.live import ROOT, eventually
from tests.ports import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.slow, needs_chromium]

BERLIN = "What is the weather like in Berlin?"
SUM = "Work out 12 + 30 * 4 - 7 * 3, step by step."


def checkout(folder: Path) -> Path:
    """What a fresh clone holds: every file that git would take, as it is now. What Python has compiled of them here is
    added, since that takes seconds."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        compiled = (cache_from_source(name),) if name.endswith(".py") else ()
        for file in (name, *compiled) if name else ():
            if (ROOT / file).is_file():
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / file, folder / file)
    return folder


@contextmanager
def made_up(folder: Path, output: Path) -> Iterator[Up]:
    """`make up` in a checkout, with the packages that are installed here: installing them is what a network takes."""
    venv = Path(sys.prefix)
    command = ["make", "up", f"VENV={venv}", f"ENVOY_PORT={free_port()}", "-o", f"{venv}/.installed"]
    with started(command, output, folder, {"PYTHONPATH": str(folder)}) as running:
        yield running


async def _curl(command: list[str]) -> None:
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.DEVNULL)
    assert await process.wait() == 0


def _console(printed: str) -> str:
    found = re.search(r"^console  (http://127\.0\.0\.1:\d+/console)$", printed, re.MULTILINE)
    assert found is not None, printed
    return found[1]


async def _said(page: Any) -> str:
    """The answer's text, without the numbers of its steps."""
    return await page.evaluate(
        "[...document.querySelector('.written').childNodes].map((node) => node.nodeType === 3 ? node.data :"
        " [...node.childNodes].filter((each) => each.nodeName !== 'SUP').map((each) => each.data).join('')).join('')"
    )


async def test_a_newcomer_sees_what_is_sent_tries_a_change_and_has_it_live(tmp_path, capsys):
    folder = checkout(tmp_path / "pointsman")
    times: dict[str, float] = {}
    began = last = time.monotonic()

    def done(what: str) -> None:
        nonlocal last
        now = time.monotonic()
        times[what], last = now - last, now

    with made_up(folder, tmp_path / "up.txt") as running:
        printed = await asyncio.to_thread(running.ready)
        done("make up")
        url = _console(printed)
        async with chromium() as page:
            await page.goto(f"{url}#/live")
            await _until(page, "main", lambda text: "No decision yet" in text)
            done("the console")

            # The three example requests are seen as they are sent.
            for number, (command, said) in enumerate(running.curls(), 1):
                await _curl(command)
                await eventually(lambda number=number: _rows(page, number))
                decision = re.search(r"decision ([\w-]+)\)", said)
                first = await _text(page, ".stream tbody tr >> nth=0")
                assert (decision[1] if decision else "default") in first
                assert ("403" in first) is ("refused" in said)
            done("the three requests")
            await picture(page, "first-minute")

            # A sum is sent from the playground; its answer is drawn step by step, as the router has it.
            await page.keyboard.press("3")
            await _until(page, ".verdict", lambda text: "decided in" in text)
            await page.locator("#message").fill(SUM)
            await _until(page, ".verdict", lambda text: text.startswith("step-by-step"))
            await page.get_by_text("Send through Envoy").click()
            await _until(page, ".tags", lambda text: "all of it" in text)
            course = await _newest(page, url)
            steps = course["steps"]
            assert len(steps) == course["count"] >= 2
            drawn = await page.locator(".written .part").evaluate_all("all => all.map((each) => each.title)")
            assert [title.split(",")[0] for title in drawn] == [
                f"Step {number}: {step['model']}" for number, step in enumerate(steps, 1)
            ]
            assert len(await _said(page)) == sum(step["characters"] for step in steps)
            assert await page.locator(".course .strip > span").count() == len(steps)
            colours = await page.locator(".written .part").evaluate_all(
                "all => all.map((each) => getComputedStyle(each).boxShadow)"
            )
            assert len(set(colours)) == len({step["model"] for step in steps})
            assert await serious(page) == []
            done("an answer step by step")
            await picture(page, "sent")
            await page.keyboard.press("2")
            await page.locator(".stream tbody tr").first.click()
            await page.locator(".trace .course").wait_for()
            assert await page.locator(".trace .course tbody tr").count() == len(steps)
            assert SUM not in await page.content()  # nobody has asked for the text of requests
            await picture(page, "steps")

            # The policy is changed in the playground first: Berlin is to be the large model's.
            await page.keyboard.press("3")
            policy = folder / "examples" / "tinylm.yaml"
            changed = policy.read_text().replace("[traceback, refactor,", "[traceback, refactor, Berlin,")
            await page.locator("#message").fill(BERLIN)
            await _until(page, ".verdict", lambda text: text.startswith("default"))
            await page.locator(".editor textarea").fill(changed)
            await _until(page, ".verdict", lambda text: text.startswith("code route to large"))
            done("the policy changed in the playground")
            await page.get_by_text("What would change?").click()
            told = await _until(page, ".stack >> nth=0", lambda text: "would change" in text and "of 4" in text)
            counts = re.search(r"(\d+) of 4 would change, (\d+) stay the same(?:, (\d+) cannot be told)?", told)
            assert counts is not None, told
            assert sum(int(count or 0) for count in counts.groups()) == 4
            done("what would change")

            # Then in its file; the page follows, and the next greeting goes to the large model.
            policy.write_text(changed)
            await page.keyboard.press("4")
            await page.locator("details summary").click()
            await _until(page, "pre.source", lambda text: "refactor, Berlin," in text)
            done("the file changed and live")
            await page.keyboard.press("2")
            command, _ = running.curls()[1]
            call = {"model": "auto", "messages": [{"role": "user", "content": BERLIN}]}
            await _curl([*command[:-1], json.dumps(call)])
            await _until(page, ".stream tbody tr >> nth=0", lambda text: "code" in text and "large" in text)
            done("a request by the new policy")
            assert page.complaints == []
            assert {each.split("/")[2] for each in page.requests} == {url.split("/")[2]}
    with capsys.disabled():
        print("\n" + "\n".join(f"{what:40}{seconds:7.1f} s" for what, seconds in times.items()))
        print(f"{'in all':40}{time.monotonic() - began:7.1f} s")


async def _rows(page: Any, count: int) -> bool:
    return await page.locator(".stream tbody tr").count() == count


async def _newest(page: Any, url: str) -> dict[str, Any]:
    """How the newest answer came about, as the admin port says it."""
    answer = await page.request.get(f"{url.removesuffix('/console')}/debug/decisions?limit=1")
    (decision,) = (await answer.json())["decisions"]
    course: dict[str, Any] = decision["answer"]["course"]
    return course


PANEL = """\
version: 1
settings: {meter: on}
models:
  one: {price: {input: 1, output: 2}}
  two: {price: {input: 1, output: 2}}
  three: {price: {input: 3, output: 9}}
default: one
decisions: [{name: together, panel: {vote: [one, two, three]}}]
"""


async def test_a_panel_is_drawn_as_its_calls_and_text_is_shown_only_when_asked_for(tmp_path):
    policy = tmp_path / "policy.yaml"
    policy.write_text(PANEL)
    with up(tmp_path, str(policy), "--console-content") as running:
        url = _console(await asyncio.to_thread(running.ready))
        async with chromium() as page:
            await page.goto(f"{url}#/playground")
            await _until(page, ".verdict", lambda text: text.startswith("together"))
            await page.locator("#message").fill("How much is 2 + 2? Write to me@example.com.")
            await page.get_by_text("Send through Envoy").click()
            await _until(page, ".tags", lambda text: "all of it" in text)
            calls = (await _newest(page, url))["calls"]
            assert len(calls) == 3
            shown = [re.sub(r"\s+", " ", each) for each in await page.locator(".calls li").all_inner_texts()]
            for call, text in zip(calls, shown, strict=True):
                assert text.startswith(f"{call['model']} {call['why']}")
                assert ("released" in text) is call["released"]
            assert sum("released" in text for text in shown) == 1
            await picture(page, "panel", whole=True)
            await page.keyboard.press("2")
            await page.locator(".stream tbody tr").first.click()
            await page.locator(".trace .calls li").nth(2).wait_for()
            assert "How much is 2 + 2? Write to [email]." in await _text(page, ".trace pre.said")
            assert "me@example.com" not in json.dumps(await _text(page, "main"))
            assert await serious(page) == []
            assert page.complaints == []
