from __future__ import annotations

import json
import logging

import pytest

from extproc.records import log


@pytest.fixture(autouse=True)
def _restored():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_json_lines_carry_event_fields_and_traceback(capsys):
    log.setup("json", "debug")
    logging.getLogger("pointsman.x").info("policy_loaded", extra={"policy": "sha256:0", "n": 3})
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("pointsman.x").exception("failed")
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert first["event"] == "policy_loaded"
    assert first["level"] == "info"
    assert first["policy"] == "sha256:0"
    assert first["n"] == 3
    assert first["time"].endswith("Z")
    assert "ValueError: broken" in second["error"]


def test_console_lines_are_for_people(capsys):
    log.setup("console", "info")
    logging.getLogger("pointsman.x").debug("not shown")
    logging.getLogger("pointsman.x").warning("draining", extra={"streams": 2})
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("warning draining streams=2")


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_clients_words_forge_no_line_and_fill_no_disk(form, capsys):
    log.setup(form, "info")
    logging.getLogger("pointsman.x").warning("draining", extra={"word": "a\r\nforged \x1b[31m\u2028b" + "x" * 100_000})
    (line,) = capsys.readouterr().err.splitlines()
    assert len(line) < 5_000
    assert "\x1b" not in line
    assert "\\u001b" not in line


@pytest.mark.parametrize("form", ["json", "console"])
def test_what_an_exception_or_a_list_quotes_is_bounded_too(form, capsys):
    log.setup(form, "info")
    try:
        raise ValueError("\x1b[2J" + "x" * 1_000_000)
    except ValueError:
        logging.getLogger("pointsman.x").exception("failed", extra={"names": ("a\x1bb" + "y" * 100_000, 3)})
    said = capsys.readouterr().err
    assert len(said) < 30_000
    assert "\x1b" not in said
    assert "\\x1b" not in said
    assert "\\u001b" not in said
