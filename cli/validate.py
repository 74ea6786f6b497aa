"""`pointsman validate POLICY`: everything that is wrong with a policy, at once."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.called import CalledWrongly
from cli.colour import PROBLEMS, painted
from cli.main import told
from config.problem import PolicyError, Problem

if TYPE_CHECKING:
    from config.load import Policy
    from config.resources import Resources
    from decisions.engine import Engine

SUMMARY = "check a policy: its schema, what it refers to, decisions that can never match"


def add(subparsers: Any) -> None:
    parser: argparse.ArgumentParser = subparsers.add_parser("validate", help=SUMMARY, description=SUMMARY)
    parser.add_argument("policy", type=Path, nargs="+", metavar="POLICY", help="a file, or - for standard input")
    parser.add_argument(
        "--rendered", type=Path, metavar="DIR", help="check the gateway configuration in DIR against the policy, too"
    )
    parser.add_argument("-o", "--output", choices=tuple(FORMATS), default="text", help="default: text")


def run(args: argparse.Namespace) -> int:
    """The exit status: 0 when every policy can be used, 1 when one cannot be used, 2 when one cannot be read.

    An error in one file does not keep the others from being checked.
    """
    if args.policy.count(Path("-")) > 1:
        raise CalledWrongly("only one POLICY can be standard input")
    problems: list[Problem] = []
    fine: list[str] = []
    status, seen = 0, False
    for path in args.policy:
        try:
            found, summary = _validate(path, args.rendered)
        except (OSError, ValueError) as error:
            print(f"pointsman validate: {told(error)}", file=sys.stderr)
            status = 2
            continue
        problems += found
        seen = True
        if any(problem.severity == "error" for problem in found):
            status = max(status, 1)
        else:
            fine.append(summary)
    shown = FORMATS[args.output](problems) if seen else ""
    if shown:
        print(painted(shown, PROBLEMS) if args.output == "text" else shown)
    if fine and args.output == "text":
        print(painted("\n".join(fine), PROBLEMS))
    return status


def _validate(path: Path, rendered: Path | None) -> tuple[list[Problem], str]:
    """The problems of the policy at `path` (`-`: standard input), and a line for when none of them is an error.

    Raises OSError when it cannot be read, ValueError when what is in `rendered` cannot.
    """
    from signals.files import POLICY, read

    name = "<stdin>" if str(path) == "-" else str(path)
    source = sys.stdin.buffer.read(POLICY + 1) if str(path) == "-" else read(path, POLICY)
    if len(source) > POLICY:
        raise OSError(f"{name}: larger than {POLICY} bytes")
    policy, problems, engine = checked(source, name)
    if policy is None or engine is None:
        return problems, ""
    try:
        if rendered is not None:
            from cli.gateways.deployed import check as check_deployed  # takes a second: the definitions of Envoy's API

            problems += check_deployed(engine, rendered)
    finally:
        engine.close()
    spec = policy.spec
    parts = ((len(spec.models), "model"), (len(spec.signals), "signal"), (len(spec.decisions), "decision"))
    counts = ", ".join(f"{number} {what}{'' if number == 1 else 's'}" for number, what in parts)
    return problems, f"{name}: ok ({counts})"


def checked(
    source: bytes, name: str, resources: Resources | None = None
) -> tuple[Policy | None, list[Problem], Engine | None]:
    """The policy in `source`, every problem with it in file order, and its engine, to be closed; None where there is
    none because of an error."""
    from config.build import build, unservable
    from config.load import check

    policy, problems = check(source, name)
    if policy is None:
        return None, problems, None
    problems = sorted([*problems, *_unread_paths(policy), *unservable(policy)])
    try:
        return policy, problems, build(policy, resources)
    except PolicyError as error:
        return policy, sorted([*problems, *error.problems]), None


def _unread_paths(policy: Policy) -> Iterator[Problem]:
    """Warnings of opened paths that the router reads, so that they never go unread."""
    if not policy.spec.paths:
        return
    from cli.gateways.allowed import understood  # imports the definitions of every API

    for index, path in enumerate(policy.spec.paths):
        if understood(path.match):
            line, column = policy.places["paths", index, "match"]
            message = f"never taken: requests to {path.match!r} are understood, and so read and decided"
            yield Problem(policy.file, line, column, "L312", "warning", message)


def _text(problems: Sequence[Problem]) -> str:
    return "\n".join(str(p) if p.severity == "error" else f"{p} [warning]" for p in problems)


def _json(problems: Sequence[Problem]) -> str:
    return json.dumps([problem.as_dict() for problem in problems], indent=2)


def _github(problems: Sequence[Problem]) -> str:
    """Workflow commands: GitHub shows them beside the lines of a pull request."""
    lines = []
    for p in problems:
        place = f"file={_escaped(p.file, ':,')},line={p.line},col={p.column}"
        lines.append(f"::{p.severity} {place},title={p.code}::{_escaped(p.message)}")
    return "\n".join(lines)


def _escaped(text: str, also: str = "") -> str:
    for character in "%\r\n" + also:
        text = text.replace(character, f"%{ord(character):02X}")
    return text


FORMATS: dict[str, Callable[[Sequence[Problem]], str]] = {"text": _text, "json": _json, "github": _github}
