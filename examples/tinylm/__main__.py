"""``python -m examples.tinylm --port 8001 --model both``: the two models behind one OpenAI-compatible address."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys

from examples.tinylm.server import serve


async def _main(models: tuple[str, ...], host: str, port: int) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with serve(models, host, port) as running:
        print(f"{' and '.join(running.server.engines)} on {running.url}/v1", file=sys.stderr, flush=True)
        await stop.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, prog="python -m examples.tinylm", description="Two tiny language models, served."
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8001, help="0 takes a free one")
    parser.add_argument("--model", choices=("small", "large", "both"), default="both")
    options = parser.parse_args()
    try:
        asyncio.run(
            _main(("small", "large") if options.model == "both" else (options.model,), options.host, options.port)
        )
    except OSError as error:
        sys.exit(f"tinylm: {error}")


if __name__ == "__main__":
    main()
