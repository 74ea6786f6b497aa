"""Kubernetes' own API server takes our custom resources by server-side apply, and refuses them with a mistake."""

from __future__ import annotations

import pytest

from tests.k8s import apiserver
from tests.k8s.objects import BUILT_IN, K8S, helm, kustomize, needs_crds, needs_kubectl
from tests.k8s.test_chart import RENDERED, SETS, rendered
from tests.k8s.test_manifests import CUSTOM_MUTATIONS, OVERLAYS, mutated

pytestmark = [
    pytest.mark.e2e,
    needs_crds,
    needs_kubectl,
    pytest.mark.skipif(not apiserver.THERE, reason="Kubernetes' API server is not built (make apiserver)"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with apiserver.running(tmp_path_factory.mktemp("apiserver")) as running:
        yield running


def custom(resources):
    return [resource for resource in resources if resource["apiVersion"] not in BUILT_IN]


def applied(server, resources):
    for resource in resources:
        for _ in range(2):  # the second time nothing changes
            status, answer = server.apply(resource)
            assert status in (200, 201), (resource["kind"], resource["metadata"]["name"], answer)
        assert status == 200
        kept = {key: answer[key] for key in ("apiVersion", "kind")}
        assert kept == {key: resource[key] for key in kept}


@pytest.mark.parametrize("overlay", [name for name in OVERLAYS if name not in ("gpu", "sidecar", "stepwise")])
def test_overlays_are_taken(server, overlay):
    resources = custom(kustomize(K8S / "overlays" / overlay))
    assert resources
    applied(server, resources)


@pytest.mark.parametrize("options", RENDERED.values(), ids=RENDERED)
def test_the_chart_is_taken_with_its_gateway(server, options):
    resources = custom(helm({**SETS["all"], "gateway": {"manifests": rendered(options)}}))
    assert {"ScaledObject", "Certificate", "PodMonitor", "PrometheusRule"} <= {r["kind"] for r in resources}
    applied(server, resources)


@pytest.mark.parametrize(("overlay", "kind", "path", "value"), CUSTOM_MUTATIONS)
def test_a_mistake_is_refused(server, overlay, kind, path, value):
    resource = mutated(custom(kustomize(K8S / "overlays" / overlay)), kind, path, value)
    resource["metadata"]["name"] = "mistaken"
    status, answer = server.apply(resource)
    # 500 is what server-side apply says of a field that the schema does not have.
    assert status == 422 or (status == 500 and f".{path[-1]}: field not declared in schema" in answer), answer
