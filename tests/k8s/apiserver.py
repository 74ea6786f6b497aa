"""Kubernetes' own API server for custom resources, as a process: `make apiserver` builds it."""

from __future__ import annotations

import http.client
import json
import os
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests import yamls
from tests.k8s import crd
from tests.patience import PATIENCE
from tests.ports import free_port

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
BIN = Path(os.environ.get("POINTSMAN_APISERVER") or CACHE / "pointsman" / "apiserver")
"""Where `.ci/apiserver` puts it unless told otherwise: one for all checkouts."""
THERE = all((BIN / name).exists() for name in ("etcd", "apiextensions-apiserver"))
NOBODY = """\
apiVersion: v1
kind: Config
clusters: [{name: none, cluster: {server: "http://127.0.0.1:1"}}]
contexts: [{name: none, context: {cluster: none, user: none}}]
users: [{name: none, user: {}}]
current-context: none
"""
"""The server asks another one who its users are and what they may; with a certificate of system:masters it does not."""
ADMISSION = (
    "NamespaceLifecycle,MutatingAdmissionPolicy,MutatingAdmissionWebhook,ValidatingAdmissionPolicy,"
    "ValidatingAdmissionWebhook"
)
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


class Server:
    """`plurals` are the names of the kinds that it has in URLs, by (apiVersion, kind)."""

    def __init__(self, port: int, context: ssl.SSLContext, processes: dict[Path, subprocess.Popen[bytes]]) -> None:
        """`processes` are what it consists of, by their logs."""
        self.plurals: dict[tuple[str, str], str] = {}
        self._connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=PATIENCE, context=context)
        self._processes = processes

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status, and what it says: an object, or the message against it. Raises OSError."""
        data = None if body is None else json.dumps(body).encode()
        try:
            self._connection.request(method, path, data, {"content-type": "application/apply-patch+yaml"})
            answer = self._connection.getresponse()
            text = answer.read().decode()
        except OSError:
            self._connection.close()  # the next call opens another
            raise
        if answer.status < 300:
            return answer.status, json.loads(text)
        return answer.status, json.loads(text)["message"] if text.startswith("{") else text

    def close(self) -> None:
        self._connection.close()

    def apply(self, resource: dict[str, Any]) -> tuple[int, Any]:
        """Server-side apply of a custom resource, strictly."""
        plural = self.plurals[resource["apiVersion"], resource["kind"]]
        metadata = resource["metadata"]
        where = f"/namespaces/{metadata['namespace']}" if "namespace" in metadata else ""
        return self._apply(f"/apis/{resource['apiVersion']}{where}/{plural}", resource)

    def define(self, definition: dict[str, Any]) -> list[str]:
        """Take a CustomResourceDefinition. The paths at which it is going to be served."""
        spec = definition["spec"]
        metadata = {
            key: definition["metadata"][key] for key in ("name", "annotations") if key in definition["metadata"]
        }
        definition = {**{key: definition[key] for key in ("apiVersion", "kind", "spec")}, "metadata": metadata}
        status, answer = self._apply(CRDS, definition)
        assert status in (200, 201), (metadata["name"], answer)
        paths = []
        for version in spec["versions"]:
            api = f"{spec['group']}/{version['name']}"
            self.plurals[api, spec["names"]["kind"]] = spec["names"]["plural"]
            if version["served"]:
                paths.append(f"/apis/{api}/{spec['names']['plural']}")
        return paths

    def _apply(self, path: str, resource: dict[str, Any]) -> tuple[int, Any]:
        query = "fieldManager=tests&fieldValidation=Strict&force=true"
        return self.call("PATCH", f"{path}/{resource['metadata']['name']}?{query}", resource)

    def until(self, path: str) -> None:
        """Wait until `path` is served; not any longer once one of the processes has ended."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                status, answer = self.call("GET", f"{path}?limit=1")
            except OSError as error:
                status, answer = 0, str(error)
            if status == 200:
                return
            for log, process in self._processes.items():
                assert process.poll() is None, (log.name, log.read_text(errors="replace")[-2000:])
            assert time.monotonic() < deadline, (path, status, answer)
            time.sleep(0.1)


@contextmanager
def running(folder: Path) -> Iterator[Server]:
    """The server, with the CRDs at hand."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    authority = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    for name, subject, more in [
        ("ca", "/CN=ca", []),
        ("admin", "/O=system:masters/CN=admin", ["-CA", f"{folder}/ca.crt", "-CAkey", f"{folder}/ca.key"]),
    ]:
        made = [*authority, "-keyout", f"{folder}/{name}.key", "-out", f"{folder}/{name}.crt", "-subj", subject, *more]
        subprocess.run(made, check=True, capture_output=True, timeout=PATIENCE)
    context.load_cert_chain(folder / "admin.crt", folder / "admin.key")
    (folder / "nobody").write_text(NOBODY)
    store, peer, port = (free_port() for _ in range(3))
    etcd = ["--data-dir", str(folder / "etcd"), "--log-level", "error", "--unsafe-no-fsync"]
    for option, at in (("client", store), ("peer", peer)):
        etcd += [f"--listen-{option}-urls", f"http://127.0.0.1:{at}"]
    etcd += ["--advertise-client-urls", f"http://127.0.0.1:{store}"]
    asked = [
        option
        for name in ("", "authentication-", "authorization-")
        for option in (f"--{name}kubeconfig", f"{folder}/nobody")
    ]
    server = [
        *asked, "--authentication-skip-lookup", "--client-ca-file", f"{folder}/ca.crt",
        "--etcd-servers", f"http://127.0.0.1:{store}", "--bind-address", "127.0.0.1", "--secure-port", str(port),
        "--cert-dir", f"{folder}/served", "--enable-priority-and-fairness=false",
        f"--disable-admission-plugins={ADMISSION}",
    ]  # fmt: skip
    processes: dict[Path, subprocess.Popen[bytes]] = {}
    with ExitStack() as stack:
        for name, options in (("etcd", etcd), ("apiextensions-apiserver", server)):
            path = folder / f"{name}.log"
            log = stack.enter_context(path.open("wb"))
            process = subprocess.Popen([str(BIN / name), *options], stdout=log, stderr=log, cwd=folder)
            processes[path] = process
            stack.callback(process.wait)
            stack.callback(process.kill)  # nothing of it is kept, and a clean end would wait for a minute
        there = Server(port, context, processes)
        stack.callback(there.close)
        there.until(CRDS)
        for served in [path for definition in definitions() for path in there.define(definition)]:
            there.until(served)
        yield there


def definitions() -> Iterator[dict[str, Any]]:
    for path in [*sorted(Path(crd.FOLDER).iterdir()), *sorted(crd.OWN.glob("*.yaml"))]:
        if path.suffix == ".json":
            yield _defined(path)
        else:
            found = yamls.load_all(path.read_text())
            yield from (each for each in found if each and each["kind"] == "CustomResourceDefinition")


def _defined(path: Path) -> dict[str, Any]:
    """A definition of what we have the schema of alone, as GROUP.KIND_VERSION."""
    before, _, version = path.name.removesuffix(".schema.json").rpartition("_")
    group, _, kind = before.rpartition(".")
    schema = _structural(json.loads(path.read_text()))
    schema["properties"]["metadata"] = {"type": "object"}
    names = {"kind": KINDS[kind], "plural": f"{kind}s", "singular": kind, "listKind": f"{KINDS[kind]}List"}
    served = {"name": version, "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind}s.{group}"},
        "spec": {"group": group, "scope": "Namespaced", "names": names, "versions": [served]},
    }


KINDS = {
    kind.lower(): kind
    for kind in ("AIGatewayRoute", "AIServiceBackend", "ScaledObject", "PodMonitor", "PrometheusRule", "ServiceMonitor")
}


def _structural(schema: Any) -> Any:
    """A JSON Schema as a CRD has it: unknown fields are refused without being told, numbers may be texts by name."""
    if isinstance(schema, list):
        return [_structural(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("format") == "int-or-string" or {"type": "integer"} in schema.get("oneOf", ()):
        return {"x-kubernetes-int-or-string": True}
    kept = {key: value for key, value in schema.items() if key not in ("$schema", "title", "format")}
    if kept.get("additionalProperties") is False:
        del kept["additionalProperties"]
    return {key: _structural(value) for key, value in kept.items()}
