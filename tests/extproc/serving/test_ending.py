"""The end of a serving process."""

from __future__ import annotations

import subprocess
import sys

import pytest

SEARCHING = """
import sys, threading, time
import re2
from extproc.serving.server import _end_threads

pattern, text = re2.compile("(a|b)*c"), "ab" * 2_000_000
def search():
    while True:
        pattern.search(text)

threading.Thread(target=search, daemon=True).start()
time.sleep(0.2)
print("written before the end")
_end_threads(3)
"""
"""A thread of which nearly every moment is in C++; as Python shuts down, it would abort the process (status -6)."""


@pytest.mark.e2e
def test_a_thread_that_goes_on_in_a_library_does_not_abort_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", SEARCHING], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (3, "written before the end\n", "")
