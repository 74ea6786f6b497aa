"""What can be set, seen or typed is documented, what is documented exists, and links lead somewhere."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from cli.main import COMMANDS, module_of
from config.document import parse
from config.load import check
from config.problem import CODES
from config.schema import (
    CacheSpec,
    CandidateSpec,
    CredentialSpec,
    DecisionSpec,
    KeptSpec,
    ModelSpec,
    PathSpec,
    PickSpec,
    PolicySpec,
    PriceSpec,
    RespondSpec,
    Secret,
    SetSpec,
    SettingsSpec,
    StoreSpec,
)
from decisions.cases import Case, Expect, Stub
from decisions.selectors.registry import BY_NAME as SELECTORS
from extproc.exchange import Phase
from extproc.records.metrics import FAMILIES
from panel.kinds.cascade import UntilSpec
from panel.kinds.plan import WaySpec
from panel.spec import MemberCard, PanelBudget, PanelSpec, TrustSpec
from signals.registry import KINDS
from stepwise.spec import BudgetSpec, StepSpec, StepwiseSpec, TargetSpec, TemplatesSpec

ROOT = Path(__file__, "../../..").resolve()
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])


@cache
def sections(page: Path) -> dict[str, str]:
    """The text under each heading of `page`, up to the next heading; code blocks hold no headings."""
    found: dict[str, str] = {}
    heading, fenced = "", False
    for line in page.read_text().splitlines():
        fenced ^= line.startswith("```")
        if not fenced and (match := re.match(r"#+ (.*)", line)):
            heading = match[1]
        found[heading] = found.get(heading, "") + line + "\n"
    return found


def rows(text: str) -> list[str]:
    """What stands in code style in the first column of the tables in `text`."""
    first = (line.split("|")[1] for line in text.splitlines() if line.startswith("|"))
    return [code for cell in first for code in re.findall(r"`([^`]+)`", cell)]


def keys(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


class Kept(KeptSpec, CacheSpec):
    """Both tables of one section."""


@pytest.mark.parametrize(
    ("heading", "model"),
    [
        ("The file", PolicySpec),
        ("Models", ModelSpec),
        ("Credentials", CredentialSpec),
        ("Price", PriceSpec),
        ("Decisions", DecisionSpec),
        ("Refusals", RespondSpec),
        ("A choice of models", PickSpec),
        ("Candidates", CandidateSpec),
        ("Stepwise", StepwiseSpec),
        ("Stepwise target", TargetSpec),
        ("Stepwise steps", StepSpec),
        ("Stepwise templates", TemplatesSpec),
        ("Stepwise budget", BudgetSpec),
        ("Panels", PanelSpec),
        ("Panel until", UntilSpec),
        ("Panel way", WaySpec),
        ("Panel budget", PanelBudget),
        ("Panel cards", MemberCard),
        ("Panel trust", TrustSpec),
        ("Changes", SetSpec),
        ("Kept answers", Kept),
        ("Paths", PathSpec),
        ("Settings", SettingsSpec),
        ("State store", StoreSpec),
        ("Secrets", Secret),
        ("Test cases", Case),
        ("Stubs", Stub),
        ("Expectations", Expect),
    ],
)
def test_every_setting_has_its_row(heading: str, model: type[BaseModel]) -> None:
    assert rows(sections(DOCS / "policy.md")[heading]) == keys(model)


def test_every_problem_code_has_its_row() -> None:
    assert rows(sections(DOCS / "policy.md")["Problems"]) == list(CODES)


def test_every_metric_stands_with_its_labels() -> None:
    documented = {}
    for line in sections(DOCS / "serve.md")["Metrics"].splitlines():
        if line.startswith("| `"):
            names, labels = (re.findall(r"`(\w+)`", cell) for cell in line.split("|")[1:3])
            documented |= dict.fromkeys(names, tuple(labels))
    assert documented == {family.name: family.labels for family in FAMILIES.values()}


def typed(parser: argparse.ArgumentParser) -> list[str]:
    """What `parser` takes by name: its subcommands and its options, theirs included, each once."""
    found: dict[str, None] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found |= dict.fromkeys(action.choices)
            for below in action.choices.values():
                found |= dict.fromkeys(typed(below))
        elif action.dest != "help":
            found |= dict.fromkeys(action.option_strings)
    return list(found)


@cache
def options() -> dict[str, list[str]]:
    """The subcommands and options of every command."""
    subparsers: Any = argparse.ArgumentParser().add_subparsers()
    for name in COMMANDS:
        importlib.import_module(module_of(name)).add(subparsers)
    return {name: typed(parser) for name, parser in subparsers.choices.items()}


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "serve"])  # which has a page of its own
def test_every_command_and_flag_has_its_row(command: str) -> None:
    documented = rows(sections(DOCS / "cli.md")[f"`pointsman {command}`"])
    assert documented == options()[command]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_every_kind_of_signal_and_parameter_is_documented(kind: Any) -> None:
    text = sections(DOCS / "signals.md").get(f"`{kind.kind}`")
    assert text is not None, f"docs/signals.md has no heading `{kind.kind}`"
    missing = [key for key in keys(kind.Parameters) if not re.search(rf"`{re.escape(key)}\b", text)]
    assert missing == []


CLASS = re.compile(r"^ *class (\w+)\(\s*([^)]*?),?\s*\):", re.M)


def exceptions() -> list[tuple[str, str]]:
    """The public exception classes of all rooms, each with its file."""
    rooms = ("cli", "config", "decisions", "extproc", "panel", "signals", "stepwise", "upstream")
    files = [file for room in rooms for file in (ROOT / room).rglob("*.py")]
    # By pattern: to parse them all takes a hundred times as long.
    heads = [(head, str(file.relative_to(ROOT))) for file in files for head in CLASS.findall(file.read_text())]
    classes = [(name, set(re.split(r",\s*", bases)), file) for (name, bases), file in heads]
    names = {"Exception", "OSError", "RuntimeError", "ValueError"}
    found: set[tuple[str, str]] = set()
    while True:
        above = names | {name for name, _ in found}
        more = {(name, file) for name, bases, file in classes if above & bases}
        if more == found:
            return sorted((name, file) for name, file in found if not name.startswith("_"))
        found = more


def test_every_exception_stands_in_the_tree() -> None:
    (tree,) = re.findall(r"```\n(Exception\n.*?)```", sections(ROOT / "CONTRIBUTING.md")["Errors"], flags=re.S)
    assert sorted(re.findall(r"[├└]─ (\w+) +(\w+(?:/\w+)*\.py) ", tree)) == exceptions()


def test_every_state_of_an_exchange_has_its_row() -> None:
    states = {name for name in vars(Phase) if name.isupper()}
    assert set(rows(sections(DOCS / "adr" / "0008-exchange.md")["States"])) == states


def test_where_to_change_what_is_where_the_page_says() -> None:
    table = sections(DOCS / "architecture.md")["Where to change what"]
    places = re.findall(r"`(?:\w+\.)?(\w+)` in `([\w/]+\.py)`", table)
    assert len(places) > 10
    assert [(name, file) for name, file in places if not re.search(rf"\b{name}\b", (ROOT / file).read_text())] == []


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_files_that_a_page_names_exist(page: str) -> None:
    named = re.findall(r"`((?:[a-z0-9_]+/)+[a-z0-9_]+\.py)`", (ROOT / page).read_text())
    assert named
    assert [file for file in named if not (ROOT / file).is_file()] == []


def test_every_page_is_in_the_index_once() -> None:
    linked = re.findall(r"^\| \[[^]]+\]\(([^)#]+)\)", (DOCS / "README.md").read_text(), flags=re.M)
    pages = [str(page.relative_to(DOCS)) for page in sorted(DOCS.rglob("*.md")) if page != DOCS / "README.md"]
    assert sorted(linked) == sorted([*pages, "../CONTRIBUTING.md"])


def test_every_kind_of_selector_and_parameter_is_documented() -> None:
    text = sections(DOCS / "policy.md")["Selectors"]
    assert rows(text) == list(SELECTORS)
    for name, kind in SELECTORS.items():
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{name}` |")]
        assert [key for key in keys(kind.Parameters) if f"`{key}`" not in row] == []


@cache
def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of the headings of `page`."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in sections(page)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`(?!\]\()", "", page.read_text(), flags=re.S)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        if not linked.exists() or (anchor and linked.suffix == ".md" and anchor not in anchors(linked)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_tables_are_whole(page: Path) -> None:
    """A blank line ends a table: what follows would be shown as text, unless it begins with a head of its own."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    assert re.findall(r"\n\n(\|.*)\n(?!\|[-:| ]+\|\n)", text) == []


def commands(page: Path) -> list[list[str]]:
    """The `pointsman` and `make` commands in the code of `page`."""
    text = page.read_text()
    code = [*re.findall(r"```\w*\n(.*?)```", text, flags=re.S), *re.findall(r"`([^`\n]+)`", text)]
    lines = [line.strip().removeprefix("$ ") for block in code for line in block.replace("\\\n", " ").splitlines()]
    pattern = re.compile(r"^(?:\.venv/bin/)?(pointsman|make)\s+[a-z]")
    return [shlex.split(re.sub(r"[…\[\]']|\.\.\.", "", line), comments=True) for line in lines if pattern.match(line)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_on_a_page_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    known = options()
    for program, name, *rest in commands(page):
        if program == "make":
            assert name in targets, f"make {name}"
            continue
        assert name in known, f"pointsman {name}"
        used = {word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
        assert used <= {*known[name], "-h", "--help"}, f"pointsman {name} {used}"


def test_the_readme_has_commands_to_check() -> None:
    assert ["make", "up"] in [words[:2] for words in commands(ROOT / "README.md")]


def policies_in(page: Path) -> list[str]:
    blocks = re.findall(r"```yaml\n(.*?)```", page.read_text(), flags=re.S)
    return [block for block in blocks if isinstance((data := parse(block, "").data), dict) and "models" in data]


def test_policies_on_the_pages_are_valid() -> None:
    found = [(page, block) for page in PAGES for block in policies_in(page)]
    assert found
    for page, block in found:
        assert [str(problem) for problem in check(block, str(page))[1]] == []


def test_the_changelog_has_each_section_once_and_in_order() -> None:
    """Keep a Changelog's sections: who looks for what is new, or gone, looks in one place."""
    unreleased = (ROOT / "CHANGELOG.md").read_text().partition("\n## Unreleased\n")[2].partition("\n## ")[0]
    found = re.findall(r"^### (.+)$", unreleased, re.MULTILINE)
    assert found == [name for name in ("Added", "Changed", "Fixed", "Removed") if name in found]
