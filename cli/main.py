"""The command `pointsman`: finds the command's module, lets it read its arguments, runs it."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any


class Parser(argparse.ArgumentParser):
    """A parser, and those of the commands below it, that takes no beginning of an option for the option.

    A script that says `--prefix` for `--prefix-length` would change its meaning when `--prefixes` is added.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})


COMMANDS = (
    "up", "serve", "validate", "explain", "test", "replay", "render", "import", "schema", "completion", "stepwise",
    "select",
)  # fmt: skip
"""Each is a module of this package with `add(subparsers)` and `run(args) -> int`; that of `import`, which is a word of
Python's, has an underscore at its end."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. A policy with errors is 1; an unreadable file, a used address or
    a wrong argument 2."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv == ["--version"]:  # before anything else is imported
        print(f"pointsman {_version()}")
        return 0
    # Only the module that is asked for is imported, so that `serve` starts without the weight of the others.
    names = [argv[0]] if argv and argv[0] in COMMANDS else COMMANDS
    parser = Parser(
        prog="pointsman", description="Routes language-model requests behind Envoy by signals and Boolean rules."
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show program's version number and exit")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    modules: dict[str, ModuleType] = {name: importlib.import_module(module_of(name)) for name in names}
    for module in modules.values():
        module.add(subparsers)
    args = parser.parse_args(argv)
    from cli.called import CalledWrongly
    from config.problem import PolicyError

    try:
        status: int = modules[args.command].run(args)
        sys.stdout.flush()
    except PolicyError as error:
        print(error, file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read our output has enough, as in `pointsman schema | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter's last flush complains
        return 0
    except (OSError, CalledWrongly) as error:
        name = getattr(args, f"{args.command}_command", None)  # `select` and `stepwise` have commands of their own
        print(f"pointsman {args.command}{f' {name}' if name else ''}: {told(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return status


def told(error: BaseException) -> str:
    """An error in one line, without its number: of a file, which one it is and what is wrong with it."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


class _Version(argparse.Action):
    """Prints the version, which takes longer to find than many a command to run."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        parser.exit(message=f"pointsman {_version()}\n")


def module_of(command: str) -> str:
    """The module of a command."""
    return f"cli.{command}_" if command == "import" else f"cli.{command}"


def _version() -> str:
    from importlib.metadata import version

    return version("pointsman")


if __name__ == "__main__":
    sys.exit(main())
