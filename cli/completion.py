"""`pointsman completion`: what a shell needs to complete commands, their options and the values of these."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Mapping
from typing import Any, Final

SUMMARY = "print the completion script of a shell"

Options = Mapping[str, Mapping[str, tuple[str, ...]]]
"""By command: its options and arguments with a choice (the latter under `''`), each with what may stand there."""


def add(subparsers: Any) -> None:
    parser: argparse.ArgumentParser = subparsers.add_parser("completion", help=SUMMARY, description=SUMMARY)
    parser.add_argument("shell", choices=tuple(SHELLS), help="load it with: source <(pointsman completion bash)")


def run(args: argparse.Namespace) -> int:
    print(SHELLS[args.shell](_options()))
    return 0


def _options() -> Options:
    from cli.main import COMMANDS, Parser, module_of

    parser = Parser()
    subparsers = parser.add_subparsers()
    for name in COMMANDS:
        importlib.import_module(module_of(name)).add(subparsers)
    return {name: _of(inner) for name, inner in subparsers.choices.items()}


def _of(parser: argparse.ArgumentParser) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for action in parser._actions:  # argparse has no other way to ask
        choices = tuple(map(str, action.choices or ()))
        for name in action.option_strings:
            found[name] = choices
        if not action.option_strings and choices:
            found[""] = (*found.get("", ()), *choices)
    return found


def _bash(options: Options) -> str:
    cases = []
    for command, found in options.items():
        values = [
            f"      {name}) words='{' '.join(choices)}' ;;" for name, choices in found.items() if name and choices
        ]
        inner = ["    case $before in", *values, "      *)"] if values else []
        words = [*found.get("", ()), *(name for name in found if name)]
        end = [" ;;", "    esac"] if values else [""]
        cases += [f"  {command})", *inner, f"    words='{' '.join(words)}'{end[0]}", *end[1:], "    ;;"]
    return "\n".join(
        [
            "_pointsman() {",
            '  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} words=""',
            "  if [ $COMP_CWORD -eq 1 ]; then",
            f"    words='{' '.join(options)} --help --version'",
            "  else",
            "  case ${COMP_WORDS[1]} in",
            *cases,
            "  esac",
            "  fi",
            '  COMPREPLY=($(compgen -W "$words" -- "$word"))',
            '  if [ $COMP_CWORD -gt 1 ]; then COMPREPLY+=($(compgen -f -- "$word")); fi',
            "}",
            "complete -o filenames -F _pointsman pointsman",
        ]
    )


def _zsh(options: Options) -> str:
    return "\n".join(["#compdef pointsman", "autoload -U +X bashcompinit && bashcompinit", _bash(options)])


def _fish(options: Options) -> str:
    lines = [
        "complete -c pointsman -n __fish_use_subcommand -l version",
        "complete -c pointsman -n __fish_use_subcommand -f",
    ]
    lines += [f"complete -c pointsman -n __fish_use_subcommand -f -a {command}" for command in options]
    for command, found in options.items():
        seen = f"complete -c pointsman -n '__fish_seen_subcommand_from {command}'"
        if found.get(""):
            lines.append(f"{seen} -a '{' '.join(found[''])}'")
        for name, choices in found.items():
            if name:
                kind = "-l" if name.startswith("--") else "-s"
                values = f" -x -a '{' '.join(choices)}'" if choices else ""
                lines.append(f"{seen} {kind} {name.lstrip('-')}{values}")
    return "\n".join(lines)


SHELLS: Final[dict[str, Callable[[Options], str]]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
