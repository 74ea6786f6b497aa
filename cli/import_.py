"""`pointsman import`: another router's configuration as a policy."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from config.problem import PolicyError, Problem

if TYPE_CHECKING:
    from cli.imports.ported import Ported
    from cli.imports.source import Given

SUMMARY = "write another router's configuration as a policy, and say what could not be said"
SOURCES: Final = {"vllm-sr": "vllm_sr", "litellm": "litellm"}
"""The routers whose configurations are read, and the module of each in cli.imports."""
_NEVER: Final = ("L301", "L302", "L303")
"""Findings by which a decision never decides anything, so that a policy without it decides the same."""


def add(subparsers: Any) -> None:
    parser: argparse.ArgumentParser = subparsers.add_parser("import", help=SUMMARY, description=SUMMARY)
    parser.add_argument("source", choices=tuple(SOURCES), metavar="ROUTER", help=f"one of {', '.join(SOURCES)}")
    parser.add_argument("file", type=Path, metavar="CONFIG", help="its configuration, or - for standard input")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="POLICY", help="where to write the policy; left out, print it"
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="where to write what differs, and why, as JSON")


def run(args: argparse.Namespace) -> int:
    """The exit status: 0 when everything is said, 3 when something is lost, 2 when the source cannot be read."""
    from importlib import import_module

    from cli.imports.source import Unimportable, read
    from signals.files import POLICY
    from signals.files import read as read_file

    if str(args.file) == "-":
        name, source = "<stdin>", sys.stdin.buffer.read(POLICY + 1)
        if len(source) > POLICY:
            raise OSError(f"{name}: larger than {POLICY} bytes")
    else:
        name, source = args.file.name, read_file(args.file, POLICY)
    port: Callable[[Given, Ported], None] = import_module(f"cli.imports.{SOURCES[args.source]}").port
    try:
        folder = None if str(args.file) == "-" else args.file.parent
        ported = imported(read(source, name), name, port, folder)
    except Unimportable as error:
        print(f"pointsman import: {error}", file=sys.stderr)
        return 2
    text = ported.text()
    problems = _problems(text, str(args.output or "<policy>"))
    if args.output is None:
        print(text, end="")
    else:
        taken = [file for file, content in ported.files.items() if not _free(args.output, file, content)]
        if taken:
            there = f"{args.output.parent / taken[0]}: this is there already, and no import to {args.output} wrote it"
            print(f"pointsman import: {there}: move it away, or write into another folder", file=sys.stderr)
            return 2
        args.output.write_text(text)
        for file, content in ported.files.items():
            (args.output.parent / file).write_text(content)
    if args.report is not None:
        args.report.write_text(ported.report())
    for told in ported.told:
        if told.kind != "note":
            print(f"{name}:{told.line}: {told.kind}: {told.place}: {told.message}", file=sys.stderr)
    for problem in problems:
        print(problem, file=sys.stderr)
    unwritten = ported.files if args.output is None else {}
    for file in unwritten:
        print(f"{name}: loss: {file}: the policy names this file: write both with -o POLICY", file=sys.stderr)
    lost = bool(ported.losses or problems or unwritten)
    if lost and args.output is not None:
        also = "".join(f" and {args.output.parent / file}" for file in ported.files)
        print(f"{name}: written to {args.output}{also}, with the above as comments at their places", file=sys.stderr)
    return 3 if lost else 0


def _free(policy: Path, file: str, content: str) -> bool:
    """Whether `file` beside the policy may be written: nothing else is there, or what an earlier import has left."""
    from cli.imports.ported import IMPORTED

    path = policy.parent / file
    if not path.exists() or (path.is_file() and path.read_text(errors="replace") == content):
        return True
    before = policy.read_text(errors="replace") if policy.is_file() else ""
    return before.startswith(f"# {IMPORTED}") and file in before


def imported(given: Given, name: str, port: Callable[[Given, Ported], None], folder: Path | None = None) -> Ported:
    """The policy for `given`, without the decisions of which the linter proves that they never decide anything. Files
    that the source names are looked for in `folder`."""
    from cli.imports.ported import Ported, Told
    from config.load import check

    ported = Ported(name, folder)
    port(given, ported)
    while True:
        owners = [number for _, number in ported.lines()]
        _, problems = check(ported.text(), name, doubts=False)
        idle: dict[int, str] = {}
        for problem in problems:
            owner = owners[problem.line - 1] if problem.severity == "error" and problem.code in _NEVER else None
            if owner is not None:
                idle.setdefault(owner, problem.message)
        if not idle:
            return ported
        for number, message in idle.items():
            entry = ported.decisions[number]
            ported.told.append(Told("contradiction", f"decisions[{entry.value['name']}]", 1, f"left out: {message}"))
            entry.comments.append(f"contradiction: left out: {message}")
            below: dict[str, Any] = next(
                (one.value for one in ported.decisions[number + 1 :] if one.value is not None), {}
            )
            if not entry.value.get("tied"):  # it was the first of its rank
                below.pop("tied", None)
            entry.value = None


def _problems(text: str, name: str) -> list[Problem]:
    """What would keep the policy from being used: an error of the source's that no comment mends."""
    from config.load import check

    try:
        _, problems = check(text, name, doubts=False)
    except PolicyError as error:
        problems = error.problems
    return [problem for problem in problems if problem.severity == "error"]
