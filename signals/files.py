"""Reads the files that a policy names: regular files up to a size. Pipes, devices and sockets, whose end may never
come, are refused."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

POLICY: Final = 16 << 20
"""The most bytes of a policy, or of a file with cases."""
SECRET: Final = 64 << 10
"""The most bytes of a file with a secret."""


def read(path: Path, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes.

    OSError when it cannot be read, is a device, a pipe, a socket or a folder, or is larger.
    """
    with open(path, "rb", opener=_open) as file:
        _check(path, os.fstat(file.fileno()), most)
        data = file.read(most + 1)
    if len(data) > most:  # it has grown, or its size is not known beforehand (/proc)
        raise OSError(_too_large(path, most))
    return data


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # or opening a pipe that nobody writes to would wait for ever


def check(path: Path, most: int) -> None:
    """OSError unless `path` is a regular file of at most `most` bytes: for files that a library opens by itself."""
    _check(path, path.stat(), most)


def _check(path: Path, found: os.stat_result, most: int) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise OSError(f"{path}: not a regular file: it may be a device, a pipe, a socket or a folder")
    if found.st_size > most:
        raise OSError(_too_large(path, most))


def _too_large(path: Path, most: int) -> str:
    return f"{path}: larger than {most} bytes, the most that is read of such a file"
