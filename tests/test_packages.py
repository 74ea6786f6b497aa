"""Our top-level packages are plain names; nothing else that is installed may bring the same ones."""

from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOMS = ("cli", "config", "decisions", "extproc", "proto", "signals", "stepwise")


@pytest.mark.parametrize("room", ROOMS)
def test_no_other_distribution_provides_a_package_of_ours(room):
    assert set(packages_distributions().get(room, ())) <= {"pointsman"}


def test_the_schema_stays_a_namespace_package():
    assert not (Path(__file__).parents[1] / "proto" / "__init__.py").exists()
