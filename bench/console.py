"""What an open page of the console costs a router, and whether the page keeps up, at many decisions a second.

One router process with one worker is driven straight over its HTTP/2 transport at a fixed rate, in turns without and
with a page open on the view Live in Debian's Chromium (Playwright must be there, as `make dev` installs it). What the
page costs is the processor's time of the router, so that a browser on the same cores does not count against it; a
worker has one core, so this share of a core is the share of its requests a second that it loses. Of the page come its
long tasks (W3C Long Tasks API: 50 ms and more), the memory of its script and its elements at the beginning and at the
end, both after a collection.

    python -m bench.console                                 # some four minutes
    python -m bench.console --seconds 10
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bench import pause
from bench.__main__ import OUT, ServerProcess, serve
from bench.envoy import free_port

MOST_LOSS = 0.02
LONGEST_TASK_MS = 100.0

_WATCH = """() => {
    window.longTasks = [];
    new PerformanceObserver((list) => window.longTasks.push(...list.getEntries().map((each) => each.duration)))
        .observe({ type: 'longtask' });
}"""


@asynccontextmanager
async def page(url: str) -> AsyncIterator[Any]:
    """A page (playwright.async_api.Page) on `url`, which notes its long tasks."""
    from playwright.async_api import async_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    async with async_playwright() as playwright:
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = await playwright.chromium.launch(executable_path=chromium, args=options)
        try:
            opened = await browser.new_page(viewport={"width": 1440, "height": 1000})
            await opened.goto(url)
            yield opened
        finally:
            await browser.close()


async def memory(opened: Any) -> dict[str, float]:
    """Megabytes that the page's script keeps, and how many elements it has."""
    session = await opened.context.new_cdp_session(opened)
    await session.send("HeapProfiler.collectGarbage")
    used = await session.send("Runtime.getHeapUsage")
    await session.detach()
    return {"mb": used["usedSize"] / 2**20, "elements": await opened.evaluate("document.querySelectorAll('*').length")}


async def paced(server: ServerProcess, seconds: float, rate: float) -> dict[str, float]:
    """The router at `rate` decisions a second."""
    before = server.cpu()
    found = pause.row(await asyncio.to_thread(pause.benign, server.target, seconds, rate))
    return {"requests": found["requests"], "failed": found["failed"], "cores": (server.cpu() - before) / seconds}


async def measured(server: ServerProcess, admin: str, seconds: float, rate: float) -> dict[str, Any]:
    """All that is measured, without and with the page in turns."""
    url = f"http://{admin}/console#/live"
    rows: dict[str, Any] = {"closed": [], "open": [], "page": []}
    await paced(server, 2, rate)  # fills what is filled once
    for _ in range(2):
        rows["closed"].append(await paced(server, seconds / 2, rate))
        async with page(url) as opened:
            await opened.evaluate(_WATCH)
            rows["open"].append(await paced(server, 5, rate))  # until the list is full
            begin = await memory(opened)
            rows["open"][-1] = await paced(server, seconds, rate)
            end = await memory(opened)
            tasks = await opened.evaluate("longTasks")
            missed = await opened.evaluate("document.querySelector('.head .small').textContent")
            shown = await opened.evaluate("document.querySelectorAll('.stream tbody tr').length")
            rows["page"].append({"begin": begin, "end": end, "long_tasks": tasks, "rows": shown, "said": missed})
    return rows


def _mean(rows: Sequence[dict[str, float]], key: str) -> float:
    return statistics.fmean(row[key] for row in rows)


def summary(rows: dict[str, Any]) -> dict[str, Any]:
    """The figures of the table."""
    tasks = [task for each in rows["page"] for task in each["long_tasks"]]
    grown = max(each["end"]["mb"] - each["begin"]["mb"] for each in rows["page"])
    return {
        "cores": _mean(rows["closed"], "cores"),
        "loss": _mean(rows["open"], "cores") - _mean(rows["closed"], "cores"),
        "failed": sum(each["failed"] for each in (*rows["closed"], *rows["open"])),
        "longest_task_ms": max(tasks, default=0.0),
        "long_tasks": len(tasks),
        "grown_mb": grown,
        "elements": max(each["end"]["elements"] for each in rows["page"]),
    }


def table(found: dict[str, Any]) -> str:
    """One line a figure, with what it should be."""
    lines = [
        ("processor that the router takes without a page", f"{100 * found['cores']:.2f} % of a core", ""),
        (
            "and more with one open: so many requests a second it loses",
            f"{100 * found['loss']:.2f} %",
            "" if found["loss"] <= MOST_LOSS else f"over {100 * MOST_LOSS:.0f} %",
        ),
        ("requests without an answer", f"{found['failed']:.0f}", "" if not found["failed"] else "not 0"),
        (
            "longest task of the page",
            f"{found['longest_task_ms']:.0f} ms",
            "" if found["longest_task_ms"] <= LONGEST_TASK_MS else f"over {LONGEST_TASK_MS:.0f} ms",
        ),
        ("its tasks of 50 ms and more", f"{found['long_tasks']}", ""),
        ("memory that its script has gained", f"{found['grown_mb']:.1f} MB", ""),
        ("its elements", f"{found['elements']}", ""),
    ]
    return "\n".join(f"{name:60}{value:>20}  {mark}".rstrip() for name, value, mark in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="with the page open, each time")
    parser.add_argument("--rate", type=float, default=500.0, help="decisions a second")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for console.json")
    chosen = parser.parse_args(arguments)
    admin = f"127.0.0.1:{free_port()}"
    with tempfile.TemporaryDirectory(prefix="console") as temporary:
        folder = Path(temporary)
        policy, target = folder / "policy.yaml", f"unix:{folder}/router.sock"
        policy.write_text(pause.policy(neural=False))
        server = ServerProcess([*serve(policy, target), "--admin", admin], target, None, folder / "router.log")
        try:
            rows = asyncio.run(measured(server, admin, chosen.seconds, chosen.rate))
        finally:
            server.close()
    found = summary(rows)
    chosen.out.mkdir(exist_ok=True)
    (chosen.out / "console.json").write_text(json.dumps({**found, "rows": rows}, indent=1))
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
