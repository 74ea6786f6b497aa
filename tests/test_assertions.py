"""Every test can fail: it asserts something, itself or in a function that it calls."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SAYING = ("assert", "expect", "raises", "warns", "fail", "importorskip")
"""How names begin of what asserts elsewhere: helpers of other files, pytest's own."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST) -> Iterator[Function]:
    for node in ast.walk(tree):
        if isinstance(node, Function):
            yield node


def called(function: Function) -> set[str]:
    """The names of what it calls."""
    calls = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
    names = {call.id for call in calls if isinstance(call, ast.Name)}
    return names | {call.attr for call in calls if isinstance(call, ast.Attribute)}


def without_assertion(source: str) -> list[str]:
    """The tests of one file that assert nothing."""
    known = {function.name: function for function in functions(ast.parse(source))}

    def asserts(function: Function, seen: frozenset[str]) -> bool:
        if any(isinstance(node, ast.Assert | ast.Raise) for node in ast.walk(function)):
            return True
        names = called(function) - seen
        if any(name.startswith(SAYING) for name in names):
            return True
        return any(asserts(known[name], seen | names) for name in names & known.keys())

    return [name for name, one in known.items() if name.startswith("test_") and not asserts(one, frozenset())]


@pytest.mark.slow
def test_every_test_asserts_something() -> None:
    found = {
        str(file.relative_to(TESTS)): names
        for file in sorted(TESTS.rglob("test_*.py"))
        if (names := without_assertion(file.read_text()))
    }
    assert found == {}


def test_a_test_without_an_assertion_is_found() -> None:
    source = """
def helper(): assert 1
def other(): print(1)
def test_one(): helper()
async def test_two(): other()
def test_three(): other(); assert_linear(1, 2)
"""
    assert without_assertion(source) == ["test_two"]
