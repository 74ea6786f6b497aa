"""docs/serve.md names every flag, admin route and metric that there is, and no other metric."""

from __future__ import annotations

import argparse
import ast
import re
from pathlib import Path

from cli import serve
from cli.main import COMMANDS
from extproc.admin.port import Admin
from extproc.records.metrics import FAMILIES
from tests.rooms import nodes, parsed

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
    routes = Admin(None)._routes  # type: ignore[arg-type]
    assert [route for route in routes if not re.search(rf"`([A-Z]+ )?{re.escape(route)}\b", PAGE)] == []


def test_every_metric_is_documented_and_nothing_else():
    assert set(re.findall(r"`(pointsman_[a-z_]+)`", PAGE)) == set(FAMILIES)


def test_every_reason_is_documented_and_nothing_else():
    """The codes of all refusals, and whatever else is counted as a failure, as the code of the service says them."""
    said = set()
    for path in sorted((ROOT / "extproc").rglob("*.py")):
        for call in (node for node in nodes(parsed(path)) if isinstance(node, ast.Call)):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            place = {"Refusal": 2, "failed": 0}.get(name)
            given = [] if place is None else call.args[place : place + 1]
            said |= {one.value for one in given if isinstance(one, ast.Constant)}
    table = PAGE.partition("### Reasons")[2].partition("\n## ")[0]
    told = {name for row in table.splitlines() if row.startswith("| `") for name in row.split("|")[1].split("`")[1::2]}
    assert len(said) > 20
    assert told == said


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
