"""``python -m examples.tinylm --port 8001``: the three models behind one OpenAI-compatible address."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys

from examples.tinylm.engine import MODELS
from examples.tinylm.server import serve

_SEVERAL = {"both": ("small", "large"), "all": MODELS}


async def _main(models: tuple[str, ...], host: str, port: int) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with serve(models, host, port) as running:
        print(f"{' and '.join(running.server.engines)} on {running.url}/v1", file=sys.stderr, flush=True)
        await stop.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, prog="python -m examples.tinylm", description="Three tiny language models, served."
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8001, help="0 takes a free one")
    parser.add_argument(
        "--model", choices=(*MODELS, *_SEVERAL), default="all", help="`both`: small and large (default: %(default)s)"
    )
    options = parser.parse_args()
    try:
        asyncio.run(_main(_SEVERAL.get(options.model, (options.model,)), options.host, options.port))
    except OSError as error:
        sys.exit(f"tinylm: {error}")


if __name__ == "__main__":
    main()
