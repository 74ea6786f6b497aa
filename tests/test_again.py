"""`.ci/again`, with which `.ci/run` runs pytest: what failed under load passes if it passes alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

AGAIN = Path(__file__).parents[1] / ".ci/again"
FLAKY = """
from pathlib import Path
import pytest

@pytest.mark.parametrize("name", ["one - two", "three"])
def test_flaky(name):
    before = Path(name)
    if not before.exists():
        before.touch()
        raise AssertionError

def test_sound():
    assert True
"""
BROKEN = "\ndef test_broken():\n    raise AssertionError\n"
MANY = FLAKY.replace('["one - two", "three"]', "map(str, range(11))")

pytestmark = pytest.mark.e2e


@pytest.fixture
def again(tmp_path: Path):
    def run(text: str) -> tuple[int, str, list[str]]:
        """The exit status, what is said, and the names of those that passed alone."""
        (tmp_path / "test_it.py").write_text(text)
        names = tmp_path / "names"
        names.touch()
        environment = {**os.environ, "POINTSMAN_PASSED_ALONE": str(names), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        command = [AGAIN, sys.executable, "-m", "pytest", "-q", "-p", "xdist", "-p", "pytest_cov"]
        ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        return ran.returncode, ran.stdout, names.read_text().splitlines()

    return run


def test_what_passes_alone_has_passed_and_is_named(again) -> None:
    status, out, names = again(FLAKY)
    assert (status, names) == (0, ["test_it.py::test_flaky[one - two]", "test_it.py::test_flaky[three]"])
    assert "2 failed, 1 passed" in out
    assert out.endswith("FAILED UNDER LOAD, PASSED ALONE:\n" + "".join(f"{name}\n" for name in names))
    assert again(FLAKY)[0::2] == (0, names)


def test_what_is_broken_fails(again) -> None:
    status, out, names = again(FLAKY + BROKEN)
    assert (status, names) == (1, [])
    assert "1 failed, 2 passed" in out


def test_many_that_fail_are_not_run_again(again) -> None:
    status, out, names = again(MANY)
    assert (status, names) == (1, [])
    assert "11 failed, 1 passed" in out
    assert "once more" not in out
