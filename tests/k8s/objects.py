"""Kubernetes objects as users get them, by kustomize and by Helm, and what an API server would say against them."""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import subprocess
from functools import cache
from pathlib import Path

import kubernetes_validate
import pytest

from cli import serve
from tests import yamls
from tests.k8s import crd
from tests.patience import PATIENCE

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
VERSIONS = [f"1.{minor}.0" for minor in range(30, 38)]
BUILT_IN = {"v1", "apps/v1", "policy/v1", "autoscaling/v2", "networking.k8s.io/v1"}

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
needs_crds = pytest.mark.skipif(not crd.FOLDER, reason="POINTSMAN_CRDS names no folder of CRD schemas")


def kustomize(folder):
    return copy.deepcopy(_kustomized(folder))


@cache
def _kustomized(folder):
    built = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=PATIENCE)
    assert built.returncode == 0, built.stderr
    return [document for document in yamls.load_all(built.stdout) if document]


def charted(values=None, release="pointsman", namespace="pointsman"):
    """The texts of the chart's templates by their paths. Raises HelmError."""
    return dict(_charted(json.dumps(values or {}), release, namespace))


@cache
def _charted(values, release, namespace):
    helm_python = pytest.importorskip("helm_python", reason="helm-python-sdk is not installed")
    with helm_python.Chart.load(str(K8S / "chart")) as chart:
        rendered = chart.render(values=json.loads(values), name=release, namespace=namespace)
    return {name.removeprefix("pointsman/templates/"): text for name, text in rendered.items()}


def helm(values=None, release="pointsman", namespace="pointsman"):
    texts = [text for name, text in charted(values, release, namespace).items() if name.endswith(".yaml")]
    return [document for text in texts for document in yamls.load_all(text) if document]


def by_name(resources):
    return {(r["kind"], r["metadata"]["name"]): r for r in resources}


# It parses a megabyte of definitions anew for every object.
kubernetes_validate.utils.schema_contents = cache(kubernetes_validate.utils.schema_contents)


def validate(resource, version=VERSIONS[-1]):
    """Raises ValidationError for what Kubernetes' own schema of a built-in kind does not allow, unknown fields too."""
    kubernetes_validate.validate(resource, version, strict=True)


def accepted(resource):
    """Asserts that an API server would take `resource`, of whatever kind."""
    if resource["apiVersion"] in BUILT_IN:
        validate(resource)
    else:
        assert crd.problems(resource) == [], (resource["kind"], resource["metadata"]["name"])


def serve_arguments(pod):
    """What `pointsman serve` reads in the arguments of the router's container."""
    parser = argparse.ArgumentParser()
    serve.add(parser.add_subparsers())
    return parser.parse_args(pod["containers"][0]["args"])
