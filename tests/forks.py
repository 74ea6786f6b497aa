"""`pointsman serve` for tests, forked from a process that has its modules: importing them is most of a start.

What runs is `main` with the same arguments and environment, in a process of its own. Whoever tests how a command is
started does not come here.
"""

from __future__ import annotations

import array
import asyncio
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path
from typing import Any


class Forked:
    """A process that was forked, as `subprocess.Popen` shows one."""

    def __init__(self, pid: int, source: _Source) -> None:
        self.pid = pid
        self._source = source

    @property
    def returncode(self) -> int | None:
        """The exit status, or -N for signal N; None while it runs."""
        return self._source.statuses.get(self.pid)

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status. Raises subprocess.TimeoutExpired."""
        with self._source.changed:
            if not self._source.changed.wait_for(lambda: self.pid in self._source.statuses, timeout):
                raise subprocess.TimeoutExpired("pointsman", timeout or 0.0)
            return self._source.statuses[self.pid]

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkedAsync(Forked):
    """The same, as asyncio shows a process."""

    async def wait(self) -> int:  # type: ignore[override]
        return await asyncio.to_thread(super().wait)


class _Source:
    """The process that forks, and what it says of those that have ended."""

    def __init__(self) -> None:
        self.statuses: dict[int, int] = {}
        self.changed = threading.Condition()
        self._started: list[int] = []
        self._asked = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # -P: the folder of this file has rooms of the product's names in it.
            command = [sys.executable, "-P", __file__, str(theirs.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        threading.Thread(target=self._listen, daemon=True).start()

    def fork(self, arguments: list[str], out: int, errors: int, cwd: Path | None) -> int:
        """The id of a new process, which has `out` and `errors` for its output."""
        asked = json.dumps({"arguments": arguments, "cwd": str(cwd or Path.cwd()), "environment": dict(os.environ)})
        with self._asked:
            fds = array.array("i", [out, errors])
            self._socket.sendmsg([asked.encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
            with self.changed:
                self.changed.wait_for(lambda: self._started)
                return self._started.pop()

    def _listen(self) -> None:
        while said := self._socket.recv(1000):
            pid, status = json.loads(said)
            with self.changed:
                if status is None:
                    self._started.append(pid)
                else:
                    self.statuses[pid] = status
                self.changed.notify_all()


@cache
def _source() -> _Source:
    return _Source()


def start(arguments: list[str], out: int, errors: int, cwd: Path | None = None) -> Forked:
    """`pointsman` with `arguments`, writing to the files with these descriptors."""
    return Forked(_source().fork(arguments, out, errors, cwd), _source())


def start_async(arguments: list[str], out: int, errors: int, cwd: Path | None = None) -> ForkedAsync:
    return ForkedAsync(_source().fork(arguments, out, errors, cwd), _source())


def _forked(control: socket.socket) -> list[str] | None:
    """Fork whenever asked to. Returns the arguments in each child, and None in the parent once nobody asks any more."""
    ended, wakes = socket.socketpair()
    ended.setblocking(False)
    wakes.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes.fileno())
    while True:
        ready, _, _ = select.select([control, ended], [], [])
        if ended in ready:
            ended.recv(1000)
            _reap(control)
        if control not in ready:
            continue
        said, fds, _, _ = socket.recv_fds(control, 1 << 20, 2)
        if not said:
            return None
        asked: dict[str, Any] = json.loads(said)
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for one in (control, ended, wakes):
                one.close()
            for fd, number in zip(fds, (1, 2), strict=True):
                os.dup2(fd, number)
            os.chdir(asked["cwd"])
            os.environ.clear()
            os.environ.update(asked["environment"])
            arguments: list[str] = asked["arguments"]
            return arguments
        control.send(json.dumps([pid, None]).encode())
        for fd in fds:
            os.close(fd)


def _reap(control: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        control.send(json.dumps([pid, os.waitstatus_to_exitcode(status)]).encode())


if __name__ == "__main__":
    from cli.main import main

    for module in ("cli.serve", "config.watch", "extproc.serving.supervisor", "extproc.transport.http2"):
        importlib.import_module(module)
    given = _forked(socket.socket(fileno=int(sys.argv[1])))
    if given is not None:
        sys.argv = ["pointsman", *given]
        sys.exit(main(given))
