"""Colours: on a terminal, and nowhere else."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys

import pytest

from cli.colour import CASES, EXPLAINED, PROBLEMS, painted
from tests.forks import start

POLICY = """\
version: 1
models: {small: {}, large: {}}
default: small
signals:
  code: {keyword: {any: [traceback]}}
  odd: {keyword: {any: [xyzzy]}}
decisions:
  - {name: code, when: code, route: large}
"""
CASE = """\
cases:
  - {name: good, request: {messages: [{role: user, content: a traceback}]}, expect: {model: large}}
  - {name: bad, request: {messages: [{role: user, content: hi}]}, expect: {model: large}}
"""
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


def test_each_word_gets_its_colour_and_the_text_stays_the_same():
    text = (
        "a b.yaml:3:5: P101 unknown key\na b.yaml:4:5: L304 nothing uses it [warning]\nc.yaml: ok (1 model, 2 signals)"
    )
    found = painted(text, PROBLEMS, True)
    assert "\x1b[1ma b.yaml:3:5:\x1b[0m \x1b[31mP101\x1b[0m unknown key" in found
    assert "\x1b[33mL304\x1b[0m nothing uses it \x1b[2m[warning]\x1b[0m" in found
    assert "c.yaml: \x1b[32mok\x1b[0m (" in found
    assert ESCAPE.sub("", found) == text
    assert painted(text, PROBLEMS, False) == text
    assert painted("true     code  → route large", EXPLAINED, True).startswith("\x1b[32mtrue\x1b[0m     code")
    assert "\x1b[31mFAIL\x1b[0m" in painted("FAIL  bad", CASES, True)


def _on_terminal(command: list[str], **environment: str) -> str:
    """What a command prints on a terminal."""
    ours, theirs = pty.openpty()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("NO_COLOR", raising=False)
        for name, value in {"TERM": "xterm", **environment}.items():
            patch.setenv(name, value)
        done = start(command, theirs, theirs)
    os.close(theirs)
    text = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        text += piece
    os.close(ours)
    done.wait()
    return text.decode()


@pytest.mark.e2e
@pytest.mark.slow
def test_commands_are_coloured_on_a_terminal_only(tmp_path):
    (tmp_path / "policy.yaml").write_text(POLICY)
    (tmp_path / "cases.yaml").write_text(CASE)
    (tmp_path / "request.json").write_text(json.dumps({"messages": [{"role": "user", "content": "a traceback"}]}))
    policy = str(tmp_path / "policy.yaml")
    for command, coloured in (
        (["validate", policy], "\x1b[33mL304\x1b[0m"),
        (["explain", policy, str(tmp_path / "request.json")], "\x1b[32mtrue\x1b[0m     code"),
        (["test", policy, str(tmp_path / "cases.yaml")], "\x1b[31mFAIL\x1b[0m"),
    ):
        shown = _on_terminal(command)
        assert coloured in shown, shown
        assert "\x1b" not in _on_terminal(command, NO_COLOR="1")
        assert "\x1b" not in _on_terminal(command, TERM="dumb")
        piped = subprocess.run(
            [sys.executable, "-m", "cli.main", *command], capture_output=True, text=True, check=False
        )
        assert "\x1b" not in piped.stdout
        times = re.compile(r"[\d.]+ µs")
        assert times.sub("", ESCAPE.sub("", shown).replace("\r\n", "\n")) == times.sub("", piped.stdout)
    assert "\x1b" not in _on_terminal(["validate", policy, "-o", "json"])
