"""The C heap is tuned where glibc is, and only there."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from extproc.transport import heap
from tests.patience import PATIENCE

PROGRAM = """
import resource
from extproc.transport import heap
if {keep}:
    assert heap.keep()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
bytes(300_000)
before = faults()
for _ in range(1_000):
    bytearray(b"x") * 300_000
print(faults() - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="the C library is not glibc")
def test_freed_blocks_are_used_again_without_page_faults() -> None:
    counts = {}
    for keep in (False, True):
        command = [sys.executable, "-c", PROGRAM.format(keep=keep)]
        counts[keep] = int(subprocess.run(command, capture_output=True, check=True, timeout=PATIENCE).stdout)
    assert counts[True] < 2_000  # a block of 300 kB has 74 pages
    assert counts[True] <= counts[False]


def test_a_c_library_without_mallopt_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not heap.keep()
