"""`completion`: what the shells make of the scripts."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cli.test_validate import Run


def completed(script: str, words: list[str], folder: Path) -> list[str]:
    """What bash offers for the last of `words`."""
    typed = " ".join(f"'{word}'" for word in words)
    code = (
        f"{script}\nCOMP_WORDS=({typed})\nCOMP_CWORD={len(words) - 1}\n_pointsman\nprintf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    shell = ["bash", "--norc", "--noprofile", "-c", code]
    done = subprocess.run(shell, capture_output=True, text=True, check=True, cwd=folder)
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_commands_options_values_and_files(run: Run, tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").touch()
    script = run("completion", "bash").out
    assert completed(script, ["pointsman", "val"], tmp_path) == ["validate"]
    assert completed(script, ["pointsman", "render", "--f"], tmp_path) == ["--for", "--full-duplex"]
    assert completed(script, ["pointsman", "render", "--for", "envoy"], tmp_path) == ["envoy", "envoy-gateway"]
    assert completed(script, ["pointsman", "completion", "z"], tmp_path) == ["zsh"]
    assert completed(script, ["pointsman", "validate", "pol"], tmp_path) == ["policy.yaml"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_read_their_scripts(run: Run, shell: str) -> None:
    script = run("completion", shell).out
    assert "validate" in script
    assert "envoy-gateway" in script
    if shutil.which(shell) is not None:
        subprocess.run([shell, "-n", "-c", script], check=True)
