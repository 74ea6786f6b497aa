"""`python -m examples.echo --name Qwen/Qwen3-8B --listen 127.0.0.1:8001`: says which model answered."""

from __future__ import annotations

import argparse
import asyncio
import socket
import sys

from examples.echo.server import Echo


async def _main(name: str, listen: str, delay: float) -> None:
    echo = Echo(name, delay)
    if listen.startswith("fd:"):  # a socket that the parent has bound already
        server = await asyncio.start_server(echo.serve, sock=socket.socket(fileno=int(listen[3:])))
    else:
        host, _, port = listen.rpartition(":")
        server = await asyncio.start_server(echo.serve, host, int(port))
    host, port = server.sockets[0].getsockname()[:2]
    print(f"{name} echoes on http://{host}:{port}/v1", file=sys.stderr, flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, prog="python -m examples.echo", description="An upstream that echoes."
    )
    parser.add_argument("--name", required=True, help="the model name that it serves; it refuses any other")
    parser.add_argument("--listen", default="127.0.0.1:8001", help="host:port, or fd:N for a bound socket")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds between two words of a streamed answer")
    options = parser.parse_args()
    try:
        asyncio.run(_main(options.name, options.listen, options.delay))
    except KeyboardInterrupt:
        sys.exit(0)


if __name__ == "__main__":
    main()
