"""Every example policy is valid without a warning, and its cases pass and take every decision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from config.watch import cases_file
from tests.cli.conftest import Ran

Run = Callable[..., Ran]

EXAMPLES = Path(__file__, "../../../examples").resolve()
POLICIES = sorted(path for path in EXAMPLES.glob("*.yaml") if ".cases." not in path.name)


def test_there_are_examples() -> None:
    assert len(POLICIES) >= 6
    assert EXAMPLES / "policy.yaml" in POLICIES
    assert set(EXAMPLES.glob("*.cases.yaml")) == {cases_file(policy) for policy in POLICIES}


@pytest.mark.parametrize("policy", POLICIES, ids=lambda path: path.stem)
def test_it_is_valid_without_a_warning(run: Run, policy: Path) -> None:
    ran = run("validate", policy)
    assert ran.status == 0, ran.out
    assert ran.out.count("\n") == 1, ran.out


def test_cases_and_policies_are_told_from_each_other(run: Run) -> None:
    """`validate examples/*.yaml` takes the files of cases, too."""
    policy = EXAMPLES / "policy.yaml"
    cases = cases_file(policy)
    ran = run("validate", policy, cases)
    assert ran.status == 1
    [said, fine] = ran.out.splitlines()
    assert (
        said == f"{cases}:1:1: P101 these are test cases, and no policy: run them with `pointsman test POLICY {cases}`"
    )
    assert fine.startswith(f"{policy}: ok")
    ran = run("test", policy, policy)
    assert ran.status == 1
    [said] = ran.err.splitlines()
    assert f"this is a policy, and no test cases: write `pointsman test {policy} CASES.yaml`, or check it with" in said
    assert f"`pointsman validate {policy}`" in said


@pytest.mark.parametrize("policy", POLICIES, ids=lambda path: path.stem)
def test_its_cases_pass_and_take_every_decision(run: Run, policy: Path) -> None:
    ran = run("test", policy, cases_file(policy), "--coverage")
    assert ran.status == 0, ran.out
    assert "never taken" not in ran.out
    assert "never read" not in ran.out
