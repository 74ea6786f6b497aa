"""Debian's Chromium on a page of the console, driven by Playwright, and axe-core from npm."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "build" / "console"
AXE = ROOT / "build" / "axe"
AXE_VERSION = "4.10.3"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium (apt-get install chromium)")


@asynccontextmanager
async def chromium(*flags: str, **context: Any) -> AsyncIterator[Any]:
    """A page (playwright.async_api.Page); `context` is what its context is made with.

    `requests` holds the URL of every request that it sends, `complaints` what it writes to its console, a violation of
    the content security policy among it, and the errors that nobody caught.
    """
    api = pytest.importorskip("playwright.async_api", reason="there is no Playwright (pip install playwright)")
    async with api.async_playwright() as playwright:
        options = ["--no-sandbox", "--disable-dev-shm-usage", *flags]
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        try:
            opened = await browser.new_context(**{"viewport": {"width": 1440, "height": 1000}, **context})
            page = await opened.new_page()
            page.set_default_timeout(120_000)
            page.requests, page.complaints = [], []
            page.on("request", lambda request: page.requests.append(request.url))
            page.on("console", lambda message: page.complaints.append(message.text))
            page.on("pageerror", lambda error: page.complaints.append(str(error)))
            yield page
        finally:
            await browser.close()


async def picture(page: Any, name: str, *, whole: bool = False) -> None:
    """Keep what the page looks like."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    await page.screenshot(path=PICTURES / f"{name}.png", full_page=whole)


def axe() -> str:
    """The source of axe-core, installed once with npm; the test is skipped where that cannot be."""
    source = AXE / "node_modules" / "axe-core" / "axe.min.js"
    if not source.exists():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("there is no npm to install axe-core with")
        AXE.mkdir(parents=True, exist_ok=True)
        command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", f"axe-core@{AXE_VERSION}"]
        done = subprocess.run(command, cwd=AXE, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"npm does not install axe-core: {done.stderr.strip()[-200:]}")
    return source.read_text()


async def serious(page: Any) -> list[str]:
    """What axe-core finds on the page that keeps somebody from using it."""
    await page.evaluate(f"{axe()}; undefined")
    found = await page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{each['id']}: {each['help']}: {[node['target'] for node in each['nodes']][:3]}"
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
    ]
