"""Our top-level packages are plain names; nothing else that is installed may bring the same ones."""

import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.rooms import ROOMS

ROOT = Path(__file__).parents[1]
PACKAGES = (*ROOMS, "proto")
provided = cache(packages_distributions)


@pytest.mark.parametrize("room", PACKAGES)
def test_no_other_distribution_provides_a_package_of_ours(room):
    assert set(provided().get(room, ())) <= {"pointsman"}


def test_the_schema_stays_a_namespace_package():
    assert not (ROOT / "proto" / "__init__.py").exists()


@pytest.mark.parametrize(
    ("file", "extras"),
    [
        ("cpu", ("cpu", "redis", "otel")),
        ("gpu", ("gpu", "redis", "otel")),
        ("cuda", ("cuda", "redis", "otel")),
        ("dev", ("up", "dev")),
        ("train", ("train",)),
    ],
)
def test_what_pyproject_asks_for_is_pinned(file, extras):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "requirements" / f"{file}.txt").read_text().splitlines()
    pins = {pin.name: pin.specifier for pin in (Requirement(line.rstrip("\\")) for line in lines if line[:1].isalpha())}
    wanted = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    for requirement in map(Requirement, wanted):
        if requirement.name == "torch":  # its builds differ: see the Makefile
            continue
        (pin,) = pins[canonicalize_name(requirement.name)]
        assert pin.operator == "=="
        assert requirement.specifier.contains(pin.version, prereleases=True), "make lock"
