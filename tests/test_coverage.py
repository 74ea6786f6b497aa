"""What coverage leaves out, it leaves out in every process that a test starts, wherever that process runs."""

import subprocess
import sys
from pathlib import Path

import coverage
import pytest

from tests.patience import PATIENCE

ROOT = Path(__file__).parents[1]


@pytest.mark.e2e
def test_training_is_left_out_in_whatever_folder_a_process_runs(tmp_path: Path) -> None:
    file = tmp_path / "measured"
    command = [sys.executable, "-m", "coverage", "run", f"--rcfile={ROOT / 'pyproject.toml'}", f"--data-file={file}"]
    (tmp_path / "it.py").write_text("import signals.facts, stepwise.steps\n")
    subprocess.run([*command, "it.py"], cwd=tmp_path, check=True, capture_output=True, timeout=PATIENCE)
    data = coverage.CoverageData(str(next(tmp_path.glob("measured*"))))
    data.read()
    measured = {Path(name).relative_to(ROOT).as_posix() for name in data.measured_files()}
    assert {"signals/facts.py", "stepwise/steps.py"} <= measured
    assert not [name for name in measured if "/train/" in name]
