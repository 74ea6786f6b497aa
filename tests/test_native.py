"""The compiled hot path (`make native`) passes the tests of the plain one."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rooms import ROOMS

ROOT = Path(__file__).parents[1]
COMPILED = "POINTSMAN_TEST_COMPILED"
"""Names the folder whose compiled modules the tests are to run; without it they run the plain ones."""
TESTS = (
    "tests/test_native.py",
    "tests/decisions",
    "tests/extproc/bodies",
    "tests/extproc/test_exchange.py",
    "tests/extproc/apis/test_gemini.py",
    "tests/extproc/test_meter.py",
    "tests/extproc/test_metered_streams.py",
    "tests/extproc/records/test_metrics.py",
    "tests/extproc/requests/test_rewriting.py",
    "tests/extproc/serving/test_rollout.py",
    "tests/extproc/serving/test_server.py",
    "tests/extproc/requests/test_thinking.py",
    "tests/extproc/test_wire.py",
    "tests/extproc/test_watched.py",
    "tests/extproc/transport",
    "tests/extproc/watching",
    "tests/signals/text/test_disguises.py",
    "tests/signals/kinds/test_header.py",
    "tests/signals/kinds/test_keyword.py",
    "tests/signals/kinds/test_load.py",
    "tests/signals/kinds/test_regex.py",
    "tests/signals/kinds/test_tokens.py",
    "tests/signals/text/test_estimate.py",
    "tests/signals/text/test_wrappers.py",
)
# A subclass of the engine stands for a broken one, which a compiled class does not allow; it has no list of its slots.
PLAIN_ONLY = ("breaks", "breaking", "twelve_fields", "the_compiled_modules")


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled wheel, built once and installed in a folder of its own; or what an image holds that is built."""
    if shutil.which(os.environ.get("CC", "cc")) is None:
        pytest.skip("no C compiler")
    image = os.environ.get("POINTSMAN_IMAGE_ROOT")
    if image:
        site = tmp_path_factory.mktemp("native")
        (packages,) = (ROOT / image).glob("opt/pointsman/lib/python3.*/site-packages")
        for room in (*ROOMS, "proto"):
            shutil.copytree(packages / room, site / room)
        for file in packages.glob("*__mypyc.*.so"):
            shutil.copy(file, site)
        return site
    tmp_path = tmp_path_factory.mktemp("native")
    site = tmp_path / "site"
    environment = {**os.environ, "HATCH_BUILD_HOOK_ENABLE_MYPYC": "1", "PYTHON": sys.executable}
    subprocess.run([ROOT / "wheel.sh", tmp_path, "--no-build-isolation"], check=True, env=environment)
    (wheel,) = tmp_path.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target"]
    subprocess.run([*pip, site, wheel], check=True)
    assert not list(ROOT.glob("decisions/*.so"))
    return site


@pytest.mark.native
@pytest.mark.timeout(0)
def test_the_compiled_modules_pass_the_tests_of_the_plain_ones(site: Path, tmp_path: Path) -> None:
    # PYTHONSAFEPATH holds in the processes too that pytest and the tests start, unlike -P.
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1", COMPILED: str(site)}
    again = os.environ.get("POINTSMAN_AGAIN")
    python = [again, sys.executable] if again else [sys.executable]
    pytest_ = ["-m", "pytest", "-q", "--import-mode=append", "-o", f"cache_dir={tmp_path}", "-n", "2"]
    pytest_ += ["--dist", "worksteal"]
    only = ["-k", " and ".join(f"not {word}" for word in PLAIN_ONLY)]
    # mypyc's own generators, which Python 3.12 and later would have changed.
    only += ["-W", "ignore:the (type, exc, tb) signature of throw:DeprecationWarning"]
    ran = subprocess.run(
        [*python, *pytest_, *TESTS, *only], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    failed = re.findall(r"^(?:FAILED|ERROR) .*$", ran.stdout, re.MULTILINE)
    assert ran.returncode == 0, "\n".join([*failed, f"exit {ran.returncode}", ran.stdout[-5000:], ran.stderr[-2000:]])


@pytest.mark.native
@pytest.mark.timeout(0)
def test_every_module_can_be_imported_beside_the_compiled_ones(site: Path) -> None:
    """A plain class cannot inherit from a compiled one, which only whoever imports it would see."""
    files = (file.relative_to(site).with_suffix("") for room in ROOMS for file in (site / room).rglob("*.py"))
    names = sorted(".".join(file.parts).removesuffix(".__init__") for file in files if "train" not in file.parts)
    assert len(names) > 200
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", code, *names]
    ran = subprocess.run(command, cwd=site, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]


@pytest.mark.e2e
@pytest.mark.parametrize("module", ["decisions.engine", "extproc.exchange", "signals.facts"])
def test_the_tests_run_the_modules_that_they_should(module: str) -> None:
    file = str(importlib.import_module(module).__file__)
    code = f"import {module}; print({module}.__file__)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert child == file
    site = os.environ.get(COMPILED)
    assert file.endswith(".so" if site else ".py")
    assert site is None or file.startswith(site)
