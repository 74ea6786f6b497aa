"""The house's rules that no linter knows: how many files a folder may hold, how large a class may be, that its name
means one thing, where names of kinds stand, and what is exempt from the rule of five parameters, which is ruff's
(PLR0913, `max-args` in pyproject.toml)."""

from __future__ import annotations

import ast
import os
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import pytest

from config.writers import WRITERS
from decisions.selectors.registry import BY_NAME as SELECTORS
from extproc.apis.registry import SHAPES
from signals.registry import KINDS
from stepwise.registry import STRATEGIES
from tests.rooms import ROOMS, nodes, parsed

ROOT = Path(__file__).parents[1]
MOST_FILES = 20
MOST_ATTRIBUTES = 20

# Sets of things of one sort, each a file, to which anybody may add: a larger folder of these is no harder to read.
OPEN_SETS = {
    "cli": ("*.py", "one file per command"),
    "docs": ("*.md", "one page per subject, listed by reader in its README"),
    "docs/adr": ("*.md", "one record per decision, numbered"),
    "examples": ("*.yaml", "one policy per use, with its test cases"),
    "signals/kinds": ("*.py", "one file per kind of signal"),
    "signals/train/texts": ("*.txt", "written sentences, one file per purpose"),
    "tests/cli": ("test_*.py", "one file per command, or per thing that commands have in common"),
    "tests/e2e": ("test_*.py", "one file per thing that a real Envoy is asked for"),
}

FIELDS = "a record, or a message: its parameters are its fields"
OPTIONS = "what it builds has these options, each with a default and by its name"
MORE_PARAMETERS = {
    ("extproc/wire.py", "reply"): FIELDS,
    ("signals/request.py", "Message.__init__"): FIELDS,
    ("signals/request.py", "Request.__init__"): FIELDS,
    ("stepwise/policy.py", "StepPolicy.__init__"): OPTIONS,
}
MORE_ATTRIBUTES = {
    ("decisions/model.py", "Model"): "one attribute per key of a model in the policy",
    ("extproc/records/metrics.py", "Metrics"): "one attribute per metric",
}

BY_DESIGN = "one for each kind of thing, and never both in one file"
MORE_MEANINGS = {
    "Params": BY_DESIGN,  # what a signal's and what a selector's parameters have in common
}


def files(*rooms: str) -> list[tuple[str, ast.Module]]:
    paths = [path for room in rooms for path in sorted((ROOT / room).rglob("*.py"))]
    return [(str(path.relative_to(ROOT)), parsed(path)) for path in paths]


def functions(tree: ast.AST, within: str = "") -> Iterator[tuple[str, int]]:
    """Every function with the line that it begins at."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{within}{node.name}"
            if not isinstance(node, ast.ClassDef):
                yield name, node.lineno
            yield from functions(node, f"{name}.")
        else:
            yield from functions(node, within)


@pytest.mark.slow
def test_the_exemptions_from_five_parameters_are_those_with_a_reason() -> None:
    """Ruff reports a `noqa` that is not needed (RUF100), so the list gets shorter with the code."""
    found = set()
    for file, tree in files(*ROOMS, "bench", "examples", "proto"):
        text = (ROOT / file).read_text()
        if "PLR0913" in text:
            lines = text.splitlines()
            found |= {(file, name) for name, line in functions(tree) if "PLR0913" in lines[line - 1]}
    assert found == set(MORE_PARAMETERS)


def crowded(paths: Iterable[str]) -> dict[str, int]:
    """Folders with too many files, and how many each has, without those of its open set and without `__init__.py`."""
    held: Counter[str] = Counter()
    for path in map(PurePosixPath, paths):
        folder = str(path.parent)
        if path.name != "__init__.py" and not (folder in OPEN_SETS and path.match(OPEN_SETS[folder][0])):
            held[folder] += 1
    return {folder: count for folder, count in held.items() if count > MOST_FILES}


def test_no_folder_holds_more_than_twenty_files_that_are_not_of_one_open_set() -> None:
    """An open set is listed only where its folder would be full without."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    paths = [path for path in listed if path and (ROOT / path).is_file()]
    assert len(paths) > 500
    assert crowded(paths) == {}
    held = Counter(str(PurePosixPath(path).parent) for path in paths)
    assert {folder for folder in OPEN_SETS if held[folder] >= MOST_FILES} == set(OPEN_SETS)


def test_a_folder_that_is_too_full_is_found() -> None:
    files = [f"signals/text/{number}.py" for number in range(MOST_FILES)]
    assert crowded(files) == {}
    assert crowded([*files, "signals/text/__init__.py", *(f"signals/kinds/{number}.py" for number in range(50))]) == {}
    assert crowded([*files, "signals/text/one_more.txt"]) == {"signals/text": MOST_FILES + 1}


def imported(tree: ast.Module, modules: set[str]) -> set[str]:
    """The `modules` that a module imports as it runs, functions included; what only types need is left out."""
    found: set[str] = set()
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            waiting += node.orelse
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            whole = {f"{node.module}.{name.name}" for name in node.names}
            found |= (whole & modules) or {node.module}
        else:
            waiting += ast.iter_child_nodes(node)
    return found & modules


def circles(graph: dict[str, set[str]]) -> set[str]:
    """The nodes that can be reached from themselves, and those between such: what is left when every node to which no
    arrow leads, or from which none does, has been taken away again and again."""
    left = dict(graph)
    while True:
        led_to = set().union(*(below & left.keys() for below in left.values()))
        inner = {node: below for node, below in left.items() if below & left.keys() and node in led_to}
        if len(inner) == len(left):
            return set(inner)
        left = inner


@pytest.mark.slow
def test_no_imports_go_in_a_circle() -> None:
    """Neither modules nor the folders of one room; import-linter holds the order of the rooms themselves."""
    trees = {file.removesuffix(".py").removesuffix("/__init__").replace("/", "."): tree for file, tree in files(*ROOMS)}
    graph = {module: imported(tree, set(trees)) for module, tree in trees.items()}
    assert sum(map(len, graph.values())) > 1000
    assert circles(graph) == set()
    folders: dict[str, set[str]] = {}
    for module, below in graph.items():
        for other in below:
            here, there = module.split("."), other.split(".")
            if len(here) == len(there) == 3 and here[0] == there[0] and here[1] != there[1]:
                folders.setdefault(".".join(here[:2]), set()).add(".".join(there[:2]))
    assert len(folders) > 5
    assert circles(folders) == set()


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == set()
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == {"b", "c"}


def attributes(node: ast.ClassDef) -> set[str]:
    """What an instance holds: the class's own fields, and whatever a method assigns to `self`."""
    found: set[str] = set()
    for part in node.body:
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            found.add(part.target.id)
        elif isinstance(part, ast.Assign):
            found |= {name.id for name in part.targets if isinstance(name, ast.Name) and name.id != "__slots__"}
        elif isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef):
            for inner in ast.walk(part):
                if (
                    isinstance(inner, ast.Attribute)
                    and isinstance(inner.ctx, ast.Store)
                    and isinstance(inner.value, ast.Name)
                    and inner.value.id == "self"
                ):
                    found.add(inner.attr)
    return found


@pytest.mark.slow
def test_no_class_has_more_than_twenty_attributes() -> None:
    found = {
        (file, node.name): count
        for file, tree in files(*ROOMS)
        for node in nodes(tree)
        if isinstance(node, ast.ClassDef) and (count := len(attributes(node))) > MOST_ATTRIBUTES
    }
    assert set(found) == set(MORE_ATTRIBUTES), found


@pytest.mark.slow
def test_a_class_s_name_means_one_thing() -> None:
    """A name that a second class takes is found here, and so is one that is in the list for nothing."""
    places: dict[str, set[str]] = {}
    for file, tree in files(*ROOMS, "bench"):
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, set()).add(file)
    several = {name: sorted(where) for name, where in places.items() if len(where) > 1}
    assert set(several) == set(MORE_MEANINGS), {
        name: several.get(name, []) for name in set(several) ^ set(MORE_MEANINGS)
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("signals", {kind.kind for kind in KINDS}),
        ("strategies", {kind.name for kind in STRATEGIES}),
        ("API shapes", {shape.name for shape in SHAPES}),
        ("selectors", set(SELECTORS)),
        ("writers", {kind.name for kind in WRITERS}),
    ],
)
def test_kinds_are_listed_in_their_registry_alone(what: str, names: set[str]) -> None:
    """A `Literal` of kinds would have to be changed for each new one."""
    for file, tree in files(*ROOMS):
        for node in nodes(tree):
            if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "Literal":
                said = {part.value for part in ast.walk(node.slice) if isinstance(part, ast.Constant)}
                assert len(said & names) < max(2, len(said)), (
                    f"{file}:{node.lineno} lists {what}: {sorted(map(str, said))}"
                )


def called(call: ast.Call) -> str:
    """The last name of what is called."""
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


@pytest.mark.slow
def test_no_parser_takes_the_beginning_of_an_option_for_the_option() -> None:
    """`--price-small` would be taken for `--price-small-input` as soon as there is one, and mean something else."""
    found = 0
    for file, tree in files(*ROOMS, "bench", "examples", "tests/fuzz"):
        for node in nodes(tree):
            if isinstance(node, ast.Call) and called(node).endswith("ArgumentParser"):
                found += 1
                assert any(ast.unparse(key) == "allow_abbrev=False" for key in node.keywords), f"{file}:{node.lineno}"
    assert found > 20


def test_the_tests_keep_what_they_compile() -> None:
    """Else each of the hundreds of processes that they start compiles every module anew, which takes over a second."""
    show = "shown: ; @echo said: $$PYTHONDONTWRITEBYTECODE"
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    command = ["make", "--no-print-directory", f"--eval={show}", "shown"]
    made = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert made.stdout == "said:\n"


@pytest.mark.slow
def test_the_counting_sees_what_it_counts() -> None:
    """A rule that finds nothing because it looks nowhere would hold for ever."""
    tree = ast.parse(
        "class A:\n    one: int\n    two = 2\n    __slots__ = ()\n    def f(self):\n        self.three, x = 3, 4\n"
        "        self.two = 1\n        def g(): pass\n"
    )
    (node,) = tree.body
    assert isinstance(node, ast.ClassDef)
    assert attributes(node) == {"one", "two", "three"}
    assert [name for name, _ in functions(tree)] == ["A.f", "A.f.g"]
    assert len(list(files(*ROOMS))) > 200
