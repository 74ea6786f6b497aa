"""The rooms of the product: its packages, but for the generated code (`proto`)."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOMS = ("cli", "config", "console", "decisions", "extproc", "panel", "signals", "stepwise", "upstream")


@cache
def parsed(path: Path) -> ast.Module:
    """A file's tree, which several tests of the house read: they must not change it."""
    return ast.parse(path.read_text())


@cache
def nodes(tree: ast.Module) -> list[ast.AST]:
    """All that is in a file's tree, which most of these tests look through."""
    return list(ast.walk(tree))
