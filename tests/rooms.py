"""The rooms of the product: its packages, but for the generated code (`proto`)."""

from __future__ import annotations

import ast
import gc
from functools import cache
from pathlib import Path

ROOMS = ("cli", "config", "console", "decisions", "extproc", "panel", "signals", "stepwise", "upstream")


@cache
def parsed(path: Path) -> ast.Module:
    """A file's tree, which several tests of the house read: they must not change it."""
    gc.disable()  # the collector would look through what stays, again and again, for longer than it takes to parse
    try:
        return ast.parse(path.read_text())
    finally:
        gc.enable()


@cache
def nodes(tree: ast.Module) -> list[ast.AST]:
    """All that is in a file's tree, which most of these tests look through: as `ast.walk` has it, and sooner."""
    found: list[ast.AST] = [tree]
    for node in found:
        for value in vars(node).values():
            if isinstance(value, ast.AST):
                found.append(value)
            elif isinstance(value, list):
                found += [item for item in value if isinstance(item, ast.AST)]
    return found
