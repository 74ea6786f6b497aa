"""Runs a program where nothing but one Unix socket leads out: `python -m tests.e2e.sealed SOCKET PORT PROGRAM …`.

The program has a network of its own, whose only interface is loopback; what it sends to 127.0.0.1:PORT goes through the
socket. So whatever else it would send to anybody cannot leave. Needs root (`unshare`), and Linux.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import socket
import struct
import sys

CLONE_NEWNET = 0x4000_0000  # sched.h
SIOCSIFFLAGS = 0x8914  # linux/sockios.h
IFF_UP = 1


def seal() -> None:
    """Leave every network but a loopback interface of our own. Raises OSError where that is not allowed."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        fcntl.ioctl(one, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while piece := await reader.read(65_536):
            writer.write(piece)
            await writer.drain()
        writer.write_eof()


async def run(path: str, port: int, command: list[str]) -> int:
    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(path)
        with contextlib.suppress(asyncio.CancelledError):  # the program has ended
            await asyncio.gather(pump(reader, back), pump(there, writer))
        back.close()
        writer.close()

    async with await asyncio.start_server(take, "127.0.0.1", port):
        process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.DEVNULL)
        return await process.wait()


if __name__ == "__main__":
    seal()
    sys.exit(asyncio.run(run(sys.argv[1], int(sys.argv[2]), sys.argv[3:])))
