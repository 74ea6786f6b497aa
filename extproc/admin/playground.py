"""Asks the process behind the console's playground: started for the first question, ended when nobody asks any more."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
from collections.abc import Sequence
from typing import Any, Final

import orjson

ANSWER_S: Final = 30.0
"""For one question."""
START_S: Final = 120.0
"""For the first one, which waits until everything is imported, with a lower priority than the router has."""
IDLE_S: Final = 120.0
WAITING: Final = 8
"""Questions at a time; one is answered after the other."""
LONGEST: Final = 32 * 2**20
"""Bytes of an answer."""


class PlaygroundError(Exception):
    """No answer: the text says why, for whoever asked."""


class Asker:
    """`command` starts a process that answers each line of its input with a line, both JSON."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter
        self._idle: asyncio.TimerHandle | None = None

    async def ask(self, question: Any) -> Any:
        """The answer. Raises PlaygroundError."""
        if self._waiting >= WAITING:
            raise PlaygroundError("too many questions at a time: try again")
        self._waiting += 1
        try:
            async with self._turn:
                return await self._ask(question)
        finally:
            self._waiting -= 1

    async def _ask(self, question: Any) -> Any:
        if self._idle is not None:
            self._idle.cancel()
        begun = self._process is not None and self._process.poll() is None
        seconds = ANSWER_S if begun else START_S
        try:
            async with asyncio.timeout(seconds):
                if not begun:
                    self.close()
                    await self._start()
                self._writer.write(orjson.dumps(question) + b"\n")
                await self._writer.drain()
                answer = orjson.loads(await self._reader.readuntil(b"\n"))
        except TimeoutError:
            self.close()
            raise PlaygroundError(f"no answer within {seconds:g} seconds") from None
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            self.close()
            raise PlaygroundError("the process that answers has ended; the router's log may say why") from None
        except BaseException:  # whoever asked is gone: the answer that is still to come would be taken for the next one
            self.close()
            raise
        self._idle = asyncio.get_running_loop().call_later(IDLE_S, self.close)
        return answer

    async def _start(self) -> None:
        self._process, ours = _started(self._command)
        self._reader, self._writer = await asyncio.open_unix_connection(sock=ours, limit=LONGEST)

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if self._idle is not None:
            self._idle.cancel()
        if process is not None:
            with contextlib.suppress(AttributeError):  # it has not come so far
                self._writer.close()
            process.kill()
            process.wait()  # a killed process ends at once


def _started(command: Sequence[str]) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """The process, and what is written to it and read from it. It ends with its input, so also when we die."""
    ours, theirs = socket.socketpair()
    with theirs:  # a group of its own: Ctrl-C is for the router
        process = subprocess.Popen(command, stdin=theirs.fileno(), stdout=theirs.fileno(), process_group=0)
    return process, ours
