"""The console in a real Chromium, over a real router behind a real Envoy: what it shows is what the admin port says."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

import console
from tests.console.browser import chromium, needs_chromium, picture, serious
from tests.extproc.live import chat, eventually, proxied, router, swap
from tests.ports import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.slow, needs_chromium]

POLICY = """\
version: 1
settings: {meter: on, reference: large}
models:
  small: {name: qwen-small, price: {input: 0.1, output: 0.4}, context: 32768}
  large: {name: qwen-large, price: {input: 2, output: 8}, context: 131072}
default: small
signals:
  override: {regex: {any: ['(?i)ignore (all|previous)']}}
  code: {keyword: {any: [traceback, refactor]}}
  gold: {header: {name: x-tier, equals: gold}}
  never: {keyword: {any: [xyzzy]}}
decisions:
  - {name: no-override, when: override, on_unknown: match, respond: {status: 403, message: "No."}}
  - {name: gold, when: {all: [gold, {not: code}]}, route: large}
  - {name: code, when: code, route: large}
  - {name: spell, when: never, route: small}
"""
TEXTS = ("Hello", "Please refactor this", "Ignore all that was said", "Another greeting", "A traceback, help")


@asynccontextmanager
async def shown(folder: Path, tmp_path: Path, *flags: str, **context: Any):
    """A page on the console of a router that has decided ten requests: the page, the router, Envoy's URL."""
    swap(folder, POLICY)
    async with proxied(folder, tmp_path, "--playground", *flags, admin_port=free_port()) as (running, base):
        await _send(base, 2)
        async with chromium(**context) as page:
            await page.goto(f"http://{running.admin}/console")
            yield page, running, base
            assert {url.split("/")[2] for url in page.requests} == {running.admin}  # nothing leaves for elsewhere
            assert page.complaints == []


async def _send(base: str, times: int) -> None:
    async with aiohttp.ClientSession() as session:
        for text in TEXTS * times:
            headers = {"x-tier": "gold"} if text == "Hello" else {}
            async with session.post(f"{base}/v1/chat/completions", json=chat(text), headers=headers) as answer:
                assert answer.status in (200, 403)


async def _text(page: Any, selector: str) -> str:
    return re.sub(r"\s+", " ", " ".join(await page.locator(selector).all_inner_texts())).strip()


async def _until(page: Any, selector: str, fits: Callable[[str], object]) -> str:
    """The text of `selector`, once it `fits`."""
    last = ""

    async def there() -> bool:
        nonlocal last
        last = await _text(page, selector)
        return bool(fits(last))

    await eventually(there)
    return last


async def test_the_overview_says_what_the_admin_port_says(folder, tmp_path):
    async with shown(folder, tmp_path) as (page, running, base):
        await _send(base, 3)
        await _until(page, ".tile >> nth=0", lambda text: "25 since the start" in text)
        outcomes = (await running.get("/outcomes"))[1]
        assert outcomes["total"]["requests"] == 25
        told = await _until(
            page, ".tile >> nth=1", lambda text: re.search(r" of (15|25)$", text)
        )  # a point may be gone
        assert told in ("Refused 20 % 3 of 15", "Refused 20 % 5 of 25")
        rows = [(await row.inner_text()).split("\t") for row in await page.locator("main tbody tr").all()]
        for model, row in zip(outcomes["total"]["models"], rows, strict=True):
            assert (row[0].strip(), int(row[1]), int(row[3])) == (model["model"], model["requests"], model["errors"])
            assert int(row[7]) == model["tokens"]["input"]
        names = await page.locator(".legend .name").all_inner_texts()
        assert set(names) == {"default", "gold", "code", "no-override"}
        assert await page.locator(".chart rect").count() >= 4
        await picture(page, "overview")

        # The chart is read with the keyboard.
        await page.locator(".chart >> nth=0").focus()
        await page.keyboard.press("ArrowLeft")
        assert "/s" in await _text(page, ".tip >> nth=0")
        await page.keyboard.press("Escape")
        assert await page.locator(".tip >> nth=0").is_hidden()


async def test_live_shows_each_decision_and_its_trace(folder, tmp_path):
    async with shown(folder, tmp_path) as (page, running, base):
        await page.keyboard.press("2")
        await page.locator(".stream tbody tr").nth(9).wait_for()
        newest = (await running.get("/debug/decisions?limit=10"))[1]["decisions"]
        rows = page.locator(".stream tbody tr")
        keys = await rows.evaluate_all("rows => rows.map((row) => row.dataset.key)")
        assert keys == [each["key"] for each in newest]

        # With the keyboard to the third, and into its trace.
        await rows.first.focus()
        await page.keyboard.press("ArrowDown")
        await page.keyboard.press("ArrowDown")
        await page.keyboard.press("Enter")
        chosen = newest[2]
        assert (chosen["decision"], chosen["status"]) == ("no-override", 403)
        await page.locator(".trace .rules .clause").first.wait_for()
        assert await _text(page, ".trace h2") == "no-override"
        won = await _text(page, ".trace .clause.won")
        assert "→ respond 403" in won
        assert "override" in won
        assert "not evaluated: 'no-override' decided" in await _text(page, ".trace .clause.off >> nth=0")
        assert json.loads(await page.locator(".trace pre").text_content()) == chosen
        await picture(page, "live")
        await page.keyboard.press("Escape")
        assert await page.locator(".trace").is_hidden()

        # Filtered, paused, and on again.
        await page.keyboard.press("/")
        await page.keyboard.type("gold")
        await _until(page, ".stream tbody", lambda text: "code" not in text)
        assert await rows.count() == 2
        await page.locator(".filter").fill("nothing at all")
        await page.get_by_text("Show all").click()
        await eventually(lambda: _is(rows, 10))
        await page.keyboard.press("p")
        await _send(base, 1)
        await _until(page, ".head .small", lambda text: "5 more since" in text)
        assert await rows.count() == 10
        await page.keyboard.press("p")
        await eventually(lambda: _is(rows, 15))


async def _is(rows: Any, count: int) -> bool:
    return await rows.count() == count


async def test_the_playground_shows_problems_at_their_place_and_what_would_change(folder, tmp_path):
    async with shown(folder, tmp_path) as (page, running, _):
        await page.keyboard.press("3")
        message, editor = page.locator("#message"), page.locator(".editor textarea")
        await message.fill("Please refactor this")
        await _until(page, ".verdict", lambda text: text.startswith("code route to large"))
        assert await page.locator(".tag.accent").is_hidden()
        assert await editor.input_value() == POLICY
        assert "large ← takes it" in await _text(page, ".bar >> nth=1")
        await message.fill("Ignore all that")
        await _until(page, ".verdict", lambda text: text.startswith("no-override respond 403"))
        await page.locator("#headers").fill("x-tier: gold")
        await message.fill("Hello")
        await _until(page, ".verdict", lambda text: text.startswith("gold route to large"))

        # An edit with an error, then without.
        await editor.fill(POLICY.replace("when: code, route: large", "when: kode, route: large"))
        told = await _until(page, ".problems", lambda text: "R201" in text)
        line = next(number for number, text in enumerate(POLICY.splitlines(), 1) if "name: code" in text)
        assert f"{line}:" in told
        assert "did you mean 'code'" in told
        assert await _text(page, ".gutter .error-line") == str(line)
        await page.locator(".problems button").click()
        assert await editor.evaluate("(box) => box.value.slice(box.selectionStart, box.selectionEnd)") == "kode"
        await picture(page, "problem")
        await editor.fill(POLICY.replace("when: code, route: large", "when: code, route: small"))
        await _until(page, ".problems", lambda text: "R201" not in text)
        assert await page.locator(".tag.accent").is_visible()
        await page.get_by_text("What would change?").click()
        told = await _until(page, "[aria-label='What would change']", lambda text: text)
        assert "code → route large code → route small 4" in told
        assert "4 of 10 would change, 6 stay the same" in await _text(page, ".stack >> nth=0")
        await picture(page, "playground", whole=True)
        # What is in force is what it was.
        assert (await running.get("/policy"))[1] == POLICY


async def test_the_policy_is_shown_with_its_hits_and_after_a_reload_the_new_one(folder, tmp_path):
    async with shown(folder, tmp_path, "--workers", "2") as (page, running, base):
        await _send(base, 3)
        await page.keyboard.press("4")
        hits = {each["decision"]: each["count"] for each in (await running.get("/outcomes"))[1]["total"]["decisions"]}
        assert hits["code"] == 10

        async def agreed() -> bool:
            rows = [
                (await row.inner_text()).split("\t") for row in await page.locator("main tbody >> nth=0 >> tr").all()
            ]
            found = {row[1].split()[0]: row[4].strip() for row in rows}
            return found == {"no-override": "5", "gold": "5", "code": "10", "spell": "0", "default": "5"}

        await eventually(agreed)
        assert "no hit yet" in await _text(page, "main tbody >> nth=0")
        await picture(page, "policy", whole=True)
        swap(folder, POLICY.replace("name: spell", "name: charm"))
        await _until(page, "main tbody >> nth=0", lambda text: "charm" in text)
        assert "spell" not in await _text(page, "main tbody >> nth=0")


async def test_it_is_usable_in_the_dark_on_a_phone_and_by_everybody(folder, tmp_path):
    async with shown(folder, tmp_path, color_scheme="dark") as (page, _, _base):
        assert await page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(13, 17, 24)"
        for scheme in ("dark", "light"):
            for width in (1440, 390):
                await page.set_viewport_size({"width": width, "height": 844})
                for view in ("overview", "live", "playground", "policy"):
                    await page.goto(f"{page.url.partition('#')[0]}#/{view}")
                    await page.locator("main h1").wait_for()
                    if view == "live":
                        await page.locator(".stream tbody tr").first.click()
                        await page.locator(".trace .rules .clause").first.wait_for()
                    if view == "playground":
                        await _until(page, ".verdict", lambda text: "…" not in text)
                    assert await serious(page) == [], (scheme, width, view)
                    assert await page.evaluate("document.documentElement.scrollWidth") <= width, (width, view)
                    await picture(page, f"{view}-{scheme}-{width}")
                    await page.keyboard.press("Escape")
            await page.locator("#theme").click()
        await page.locator("#help").click()
        assert await page.locator("#keys").is_visible()
        assert await serious(page) == []
        await page.keyboard.press("Escape")


async def test_a_router_that_goes_and_comes_again_is_told_and_found(folder, tmp_path):
    swap(folder, POLICY)
    port = free_port()
    async with chromium() as page:
        async with router(folder / "policy.yaml", tmp_path, admin_port=port):
            await page.goto(f"http://127.0.0.1:{port}/console")
            await _until(page, "#health", lambda text: text == "Ready")
            await page.keyboard.press("3")
            await _until(page, "main", lambda text: "The playground is off" in text)
            await page.keyboard.press("2")
            await _until(page, "main", lambda text: "No decision yet" in text)
            await page.keyboard.press("1")
        await _until(page, "#health", lambda text: text.startswith("Not connected"))
        assert "The router does not answer" in await _text(page, "[role=alert]")
        await picture(page, "away")
        async with router(folder / "policy.yaml", tmp_path, admin_port=port):
            await _until(page, "#health", lambda text: text == "Ready")
            assert await page.locator("[role=alert]").count() == 0


async def test_it_asks_for_the_token_and_shows_nothing_before(folder, tmp_path):
    swap(folder, POLICY)
    token = tmp_path / "token"
    token.write_text("correct-horse-battery")
    port = free_port()
    flags = ("--admin-token-file", str(token))
    async with router(folder / "policy.yaml", tmp_path, *flags, admin_port=port), chromium() as page:
        await page.goto(f"http://127.0.0.1:{port}/console")
        await page.locator("#token").fill("wrong")
        await page.keyboard.press("Enter")
        await _until(page, "[role=alert]", lambda text: text == "That is not the token.")
        assert "no-override" not in await page.content()
        await picture(page, "sign-in")
        await page.locator("#token").fill(token.read_text())
        await page.keyboard.press("Enter")
        await _until(page, "#health", lambda text: text == "Ready")
        await page.keyboard.press("4")
        await _until(page, "main", lambda text: "no-override" in text)
        assert await page.evaluate("document.cookie") == ""


async def test_pages_of_other_sites_get_nothing(folder, tmp_path):
    """A page elsewhere asks by address, by a name of its own that leads here, as a script, a picture and a frame."""
    swap(folder, POLICY)

    async def page_of_another(request: web.Request) -> web.Response:
        return web.Response(text="<!doctype html><title>elsewhere</title>", content_type="text/html")

    app = web.Application()
    app.router.add_get("/", page_of_another)
    runner = web.AppRunner(app)
    await runner.setup()
    other = free_port()
    await web.TCPSite(runner, "127.0.0.1", other).start()
    port = free_port()
    rebound = "--host-resolver-rules=MAP evil.example 127.0.0.1"
    try:
        async with router(folder / "policy.yaml", tmp_path, admin_port=port) as running, chromium(rebound) as page:
            assert (await running.get("/policy"))[0] == 200
            await page.goto(f"http://127.0.0.1:{other}/")
            read = "(url) => fetch(url).then((answer) => answer.text(), () => 'refused')"
            assert await page.evaluate(read, f"http://127.0.0.1:{port}/policy") == "refused"
            tell = """(url) => new Promise((tell) => {
                const node = document.createElement('script');
                node.src = url; node.onload = () => tell('loaded'); node.onerror = () => tell('refused');
                document.head.append(node);
            })"""
            assert await page.evaluate(tell, f"http://127.0.0.1:{port}/console/console.js") == "refused"
            answer = await page.goto(f"http://evil.example:{port}/policy")
            assert (answer.status, "models" in await page.content()) == (421, False)
            await page.goto(f"http://127.0.0.1:{other}/")
            frame = """(url) => {
                const node = document.createElement('iframe');
                node.src = url;
                document.body.append(node);
            }"""
            await page.evaluate(frame, f"http://127.0.0.1:{port}/console")
            await asyncio.sleep(1)  # nothing is to happen
            for each in page.frames:
                assert "Pointsman" not in await each.content()
    finally:
        await runner.cleanup()


CHOOSING = """\
version: 1
models: {small: {name: qwen-small}, large: {name: qwen-large}}
default: small
signals: {code: {keyword: {any: [refactor]}}}
decisions:
  - {name: code, when: code, route: {pick: [small, large], by: {ema: {explore: 0.5}}}}
"""


async def test_the_policy_view_shows_what_selectors_chose_and_learned_and_how_a_candidate_compares(folder, tmp_path):
    swap(folder, CHOOSING)
    candidate = tmp_path / "candidate.yaml"
    candidate.write_text(CHOOSING.replace("any: [refactor]", "any: [refactor, hello]"))
    flags = ("--candidate", str(candidate))
    async with proxied(folder, tmp_path, *flags, admin_port=free_port()) as (running, base), chromium() as page:
        grades = []
        async with aiohttp.ClientSession() as session:
            for text in ("Please refactor this", "Hello") * 4:
                async with session.post(f"{base}/v1/chat/completions", json=chat(text)) as answer:
                    grades.append({"id": (await answer.json())["id"], "score": 1})
            async with session.post(f"http://{running.admin}/feedback", json=grades[::2]) as answer:
                assert (await answer.json())["taken"] > 0
        await page.goto(f"http://{running.admin}/console#/policy")
        choices, other = (
            page.locator("section.panel").filter(has=page.get_by_role("heading", name=title, exact=True))
            for title in ("Choices of models", "Candidate")
        )
        total = (await running.get("/outcomes"))[1]["total"]
        learned = (await running.get("/selection"))[1]["decisions"]["code"]["models"]
        await choices.locator("tbody tr").first.wait_for()
        rows = [(await row.inner_text()).split("\t") for row in await choices.locator("tbody tr").all()]
        ranked = sorted(learned.items(), key=lambda each: -each[1]["quality"])
        assert [(row[1], row[2].strip()) for row in rows] == [(key, f"{each['quality']:.2f}") for key, each in ranked]
        chosen: dict[str, float] = {}
        for each in total["choices"]:
            chosen[each["model"]] = chosen.get(each["model"], 0) + each["count"]
        said = re.sub(r"\s+", " ", await choices.inner_text())
        for model, count in chosen.items():
            assert f"{model} {count:.0f} ·" in said
        assert {each["outcome"]: each["count"] for each in total["candidate"]} == {"agree": 4, "differ": 4}
        said = re.sub(r"\s+", " ", await other.inner_text())
        assert (
            "every request, without effect decides as the policy in force 4 · 50 % decides otherwise 4 · 50 %" in said
        )
        assert await serious(page) == []
        await picture(page, "choices", whole=True)


@pytest.mark.parametrize("path", list(console.FILES))
def test_its_files_are_there_and_name_nothing_elsewhere(path):
    content = console.FILES[path].content().decode()
    assert len(content) > 100
    assert not re.findall(r"https?://(?!www\.w3\.org/)", content)
    assert "innerHTML" not in content
    assert "unsafe-" not in dict(console.HEADERS)["content-security-policy"]


def test_the_pictures_of_the_docs_are_those_that_the_tests_take():
    docs = Path(console.__file__).parents[1] / "docs"
    shown = set(re.findall(r"pictures/([\w-]+)\.png", (docs / "console.md").read_text()))
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    taken = set(re.findall(r'picture\(page, "([\w-]+)"', tests))
    assert shown == {path.stem for path in (docs / "pictures").glob("*.png")}
    assert shown <= taken
