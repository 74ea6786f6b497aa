"""Every dependency has a wheel wherever we say that we install: no compiler is needed on any of those machines.

The package index is asked as pip asks it (PEP 691), for the versions and hashes that requirements/ pins.
"""

from __future__ import annotations

import json
import os
import re
import ssl
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.tags import compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).parents[1]
INDEX = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/")
VERSIONS = ((3, 11), (3, 12), (3, 13), (3, 14))
"""To these comes 3.15 as soon as this test passes with it."""
MACHINES = ("x86_64", "aarch64")
GLIBC = {"cpu": 28, "dev": 31}
"""The least glibc, 2.28 or 2.31: Debian 10, Ubuntu 20.04, RHEL 8; for the real Envoy of `dev`, Debian 11."""

Pins = list[tuple[Requirement, frozenset[str]]]


def pinned(file: str) -> Pins:
    """What one file of requirements/ pins, with the hashes that it allows."""
    text = (ROOT / "requirements" / f"{file}.txt").read_text().replace("\\\n", "")
    lines = [line for line in text.splitlines() if line[:1].isalnum()]
    found = []
    for line in lines:
        requirement, *hashes = re.split(r"\s+--hash=sha256:", line)
        found.append((Requirement(requirement), frozenset(one.strip() for one in hashes)))
    return found


trust = cache(ssl.create_default_context)
"""Reading the certificates takes longer than any answer."""


@cache
def listed(name: str) -> dict[str, str]:
    """The index's files of a project: names by their SHA-256."""
    request = urllib.request.Request(f"{INDEX}/{name}/", headers={"Accept": "application/vnd.pypi.simple.v1+json"})
    with urllib.request.urlopen(request, timeout=60, context=trust()) as answer:
        files: list[dict[str, Any]] = json.load(answer)["files"]
    return {file["hashes"].get("sha256", ""): file["filename"] for file in files}


@pytest.fixture(scope="module")
def index() -> None:
    """Asks for everything at once; skips where there is no index."""
    names = {requirement.name for file in ("cpu", "dev") for requirement, _ in pinned(file)}
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(listed, sorted(names)))
    except urllib.error.HTTPError:
        raise
    except (OSError, ValueError) as error:
        pytest.skip(f"no package index at hand ({INDEX}: {error})")


def missing(pins: Pins, version: tuple[int, int], machine: str, glibc: int = 28) -> list[str]:
    """What of `pins` such a Python on such a machine has no wheel of."""
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(glibc, 16, -1)]
    platforms += [f"manylinux2014_{machine}", f"manylinux2010_{machine}", f"manylinux1_{machine}"]
    tags = {*cpython_tags(version, platforms=platforms), *compatible_tags(version, f"cp3{version[1]}", platforms)}
    plain = ".".join(map(str, version))
    given = {"python_version": plain, "python_full_version": f"{plain}.0", "platform_machine": machine}
    given |= {"sys_platform": "linux", "platform_system": "Linux"}
    environment: dict[str, Any] = {**default_environment(), **given}
    found = []
    for requirement, hashes in pins:
        if requirement.marker is None or requirement.marker.evaluate({**environment}):
            files = (listed(requirement.name).get(one, "") for one in hashes)
            wheels = [file for file in files if file.endswith(".whl")]
            if not any(tags & parse_wheel_filename(wheel)[3] for wheel in wheels):
                found.append(f"{requirement.name}{requirement.specifier}")
    return found


@pytest.mark.network
@pytest.mark.usefixtures("index")
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: ".".join(map(str, version)))
@pytest.mark.parametrize("file", ["cpu", "dev"])
def test_every_dependency_has_a_wheel(file: str, version: tuple[int, int], machine: str) -> None:
    assert missing(pinned(file), version, machine, GLIBC[file]) == []


@pytest.mark.network
@pytest.mark.usefixtures("index")
def test_what_has_no_wheel_is_named() -> None:
    (pin,) = [pin for pin in pinned("dev") if pin[0].name == "fasttext-predict"]
    everywhere = (Requirement("fasttext-predict" + str(pin[0].specifier)), pin[1])
    assert missing([everywhere], (3, 13), "x86_64") == []
    assert missing([everywhere], (3, 14), "x86_64") == [f"fasttext-predict{pin[0].specifier}"]
