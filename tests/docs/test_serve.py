"""docs/serve.md names every flag, admin route and metric that there is, and no other metric."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from cli import serve
from cli.main import COMMANDS
from extproc.admin import Admin
from extproc.metrics import FAMILIES

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "serve.md").read_text()


def test_every_flag_of_serve_is_documented():
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers()
    serve.add(subparsers)
    flags = [flag for action in subparsers.choices["serve"]._actions for flag in action.option_strings]
    missing = [flag for flag in flags if flag.startswith("--") and flag != "--help" and flag not in PAGE]
    assert missing == []


def test_every_admin_route_is_documented():
    assert [route for route in Admin(None)._routes if f"`{route}" not in PAGE] == []  # type: ignore[arg-type]


def test_every_metric_is_documented_and_nothing_else():
    assert set(re.findall(r"`(pointsman_[a-z_]+)`", PAGE)) == set(FAMILIES)


def test_every_command_is_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    assert [command for command in COMMANDS if f"`pointsman {command}" not in readme] == []


def test_links_between_our_pages_lead_somewhere():
    broken = []
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text()):
            if not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []
