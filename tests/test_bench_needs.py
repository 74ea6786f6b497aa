"""`make bench` names everything that is missing before it runs anything."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench import needs

ROOT = Path(__file__).parents[1]


def test_all_missing_packages_are_named_at_once(tmp_path: Path) -> None:
    """In an environment without any program, as `make bench` asks."""
    command = [sys.executable, "-m", "bench.needs"]
    done = subprocess.run(command, cwd=ROOT, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    packages = done.stderr.partition("apt-get install ")[2].split()
    assert {"wrk", "util-linux", "cmake", "make", "g++", "pkg-config", "protobuf-compiler", "gcc"} <= set(packages)


def test_headers_are_looked_for_where_the_compiler_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = {"pointsman/one.hpp": "one-dev", "pointsman/two.hpp": "two-dev"}
    assert needs.missing({}, headers) == ["one-dev", "two-dev"]
    (tmp_path / "pointsman").mkdir()
    (tmp_path / "pointsman" / "two.hpp").touch()
    monkeypatch.setenv("CPATH", f"/nowhere:{tmp_path}")
    assert needs.missing({}, headers) == ["one-dev"]


def test_what_is_not_measured_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for program in needs.DRIVER:
        (tmp_path / program).touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert needs.complaint(baseline=False) is None
    assert "cmake" in str(needs.complaint(baseline=True))
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert "two cores" in str(needs.complaint(baseline=False))
