"""What `render -o DIR` leaves in a folder: objects in files that sort in the order of applying them, and a README."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.called import CalledWrongly
from cli.gateways.istio import HOME
from cli.gateways.kubernetes import Cluster, listening
from cli.gateways.parts import as_yaml
from cli.gateways.place import Place
from decisions.engine import Engine

README = "README.md"
_MARK = "written by: pointsman render"
"""In the first line of each file of ours."""
_FIRST = 10_000
"""Characters of a first line that are read."""
_WHAT = {
    "EnvoyProxy": "Envoy's access log, with what was decided",
    "Gateway": "the listener that clients call",
    "ReferenceGrant": "leave to send requests to models' Services in other namespaces",
    "Backend": "models that are not called as a Service",
    "HTTPRouteFilter": "what routes do beside routing: rewrite paths, add keys, refuse",
    "HTTPRoute": "a rule for each model, and what is refused",
    "VirtualService": "a rule for each model, and what is refused",
    "EnvoyExtensionPolicy": "the way to the router: from here on requests are decided",
    "EnvoyFilter": "the external processor: from here on requests are decided",
    "ClientTrafficPolicy": "the room for long prompts, and headers that clients may not send",
    "BackendTrafficPolicy": "time limits, retries and circuit breakers",
    "DestinationRule": "how the router, and models with TLS, are called",
    "SecurityPolicy": "which web pages may call",
    "EnvoyPatchPolicy": "the gateway's own errors in the API's shape",
}
_SWITCHES = {
    "Backend": "`extensionApis.enableBackend`",
    "EnvoyPatchPolicy": "`extensionApis.enableEnvoyPatchPolicy`",
}


@dataclass(frozen=True, slots=True)
class RenderedFolder:
    """`policy` is the policy's path, `options` are those it is rendered with, `--for` first, `notes` what could not be
    rendered."""

    path: Path
    policy: Path
    options: str
    notes: Sequence[str] = ()

    @property
    def mark(self) -> str:
        return f"For {self._whose}; {_MARK} {self.policy.name} {self.options}"

    @property
    def target(self) -> str:
        return self.options.split()[1]

    @property
    def _whose(self) -> str:
        """The policy's path from the folder, which says the same whatever folder one is in."""
        return os.path.relpath(self.policy.resolve(), self.path.resolve())

    def write(self, rendered: list[dict[str, Any]], engine: Engine, place: Place, cluster: Cluster) -> list[str]:
        """Write the files and take away those of an earlier time; their names, the README's last.

        Raises CalledWrongly, before anything is written, for a file that is not ours in the way of one; OSError.
        """
        if self.target == "envoy":
            files = {"envoy.yaml": rendered}
            text = self._on_a_machine(engine, place)
        else:
            runs = [list(run) for _, run in itertools.groupby(rendered, key=lambda made: made["kind"])]
            files = {f"{10 * n:03}-{run[0]['kind'].lower()}.yaml": run for n, run in enumerate(runs, 1)}
            text = self._in_a_cluster(files, engine, place, cluster)
        texts = {name: f"# {self.mark}\n{as_yaml(objects)}" for name, objects in files.items()}
        texts[README] = f"<!-- {self.mark} -->\n{text}"
        foreign = [name for name in texts if os.path.lexists(self.path / name) and not _ours(self.path / name)]
        if foreign:
            raise CalledWrongly(
                f"-o {self.path}: {foreign[0]} is there and was not written by render; name another folder"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        for old in self.path.iterdir():
            other = _whose(old)  # an older version wrote the name alone
            if other is not None and other not in (self._whose, self.policy.name):
                raise CalledWrongly(
                    f"-o {self.path}: {old.name} there is for another policy, {other}: name another folder, or remove "
                    "this one first"
                )
        for old in self.path.iterdir():
            if old.name not in texts and _ours(old):
                old.unlink()  # of a model, say, that is gone: applying the folder would bring it back
        for name, content in texts.items():
            (self.path / name).write_text(content, encoding="utf-8")
        return list(texts)

    def _on_a_machine(self, engine: Engine, place: Place) -> str:
        keys = [model.credential for model in engine.models.values() if model.credential is not None]
        wanted = [f"- `{place.secrets}/{key.secret}/{key.key}.yaml`\n" for key in keys] if place.secrets else []
        return (
            "# Plain Envoy\n\n"
            + (f"These files with the models' keys have to be there first:\n\n{''.join(wanted)}\n" if wanted else "")
            + "Run these in this order, each server in a terminal or a unit of its own:\n\n```sh\n"
            f"pointsman serve {self.policy} --listen {place.router.partition(',')[0]} --admin 127.0.0.1:8080\n"
            f"envoy --mode validate --config-path {self.path}/envoy.yaml    # configuration '…' OK\n"
            f"envoy --config-path {self.path}/envoy.yaml\n```\n\n"
            + self._afterwards(f"http://{place.listen.replace('0.0.0.0', '127.0.0.1')}")
        )

    def _in_a_cluster(
        self, files: dict[str, list[dict[str, Any]]], engine: Engine, place: Place, cluster: Cluster
    ) -> str:
        front = cluster.front
        kinds = [objects[0]["kind"] for objects in files.values()]
        needs = [
            f"- the router: its Service `{cluster.service}` with port {cluster.port} in the namespace "
            f"`{cluster.namespace}`, whose NetworkPolicy lets the gateway's pods in: "
            f"`kubectl label namespace {self._pods(cluster)} pointsman.dev/gateway=true`\n"
        ]
        if self.target == "envoy-gateway":
            switches = [switch for kind, switch in _SWITCHES.items() if kind in kinds]
            if switches:
                needs.append(f"- in the configuration of Envoy Gateway: {' and '.join(switches)}\n")
        if front.name is not None:
            whole = front.name if "/" in front.name else f"{front.namespace or cluster.namespace}/{front.name}"
            needs.append(f"- the Gateway `{whole}`\n")
        elif front.tls is not None:
            pods = self.target == "istio" and not front.gateway_api  # Istio's own Gateway reads it beside its pods
            home = front.namespace or HOME if pods else cluster.namespace
            needs.append(f"- the Secret `{front.tls}` with the gateway's certificate in the namespace `{home}`\n")
        for secret in dict.fromkeys(m.credential.secret for m in engine.models.values() if m.credential is not None):
            needs.append(f"- the Secret `{secret}` with a model's key\n")
        rows = ""
        for name, objects in files.items():
            kind = objects[0]["kind"]
            names = ", ".join(f"`{made['metadata']['name']}`" for made in objects)
            rows += f"| `{name}` | {kind} {names} | {_WHAT.get(kind, '')} |\n"
        return (
            f"# {'Istio' if self.target == 'istio' else 'Envoy Gateway'}\n\nThis has to be there first:\n\n"
            f"{''.join(needs)}\n"
            f"Then apply the files. Their names sort in the order in which they are best applied:\n\n```sh\n"
            f"kubectl apply --server-side -f {self.path}\n```\n\n| file | objects | what for |\n|---|---|---|\n{rows}\n"
            "Files of objects that are no longer wanted are taken out of this folder when it is written anew; the "
            "objects themselves are not deleted from the cluster.\n\n" + self._afterwards(_address(place, cluster))
        )

    def _pods(self, cluster: Cluster) -> str:
        """The namespace in which the gateway's pods usually run."""
        front = cluster.front
        if self.target == "envoy-gateway":
            return "envoy-gateway-system"
        if front.gateway_api:
            return (front.name and front.namespace) or cluster.namespace
        return front.namespace or HOME

    def _afterwards(self, url: str) -> str:
        left = "".join(f"- {note}\n" for note in self.notes)
        return (
            "To see that it works, ask, and look for `x-pointsman-model` among the headers of the answer"
            f"{' (GATEWAY is the address of the gateway)' if 'GATEWAY' in url else ''}:\n\n```sh\n"
            f"curl -si {url}/v1/chat/completions -H 'content-type: application/json' \\\n"
            """  -d '{"model": "auto", "messages": [{"role": "user", "content": "Good morning"}]}'\n```\n\n"""
            "When the policy's models, paths or settings have changed, write this folder anew, with the options that "
            "stand in the first line of each file. What is deployed is checked against the policy by:\n\n```sh\n"
            f"pointsman validate {self.policy} --rendered {self.path}\n```\n"
            + (f"\nLeft out:\n\n{left}" if left else "")
        )


def _address(place: Place, cluster: Cluster) -> str:
    """Where clients call: the first of the names that the gateway answers to, since it refuses others."""
    front = cluster.front
    scheme = "http" if front.tls is None else "https"
    host = front.hosts[0].replace("*", "llm") if front.hosts else "GATEWAY"
    port = 0 if front.name is not None else listening(place, front)
    return f"{scheme}://{host}" if port in (0, 80, 443) else f"{scheme}://{host}:{port}"


def _ours(path: Path) -> bool:
    return _whose(path) is not None


def _whose(path: Path) -> str | None:
    """The policy for which a file of ours was written; None where it is not ours. Links are not: what they lead to lies
    elsewhere."""
    if path.is_symlink() or not path.is_file():
        return None
    try:
        with path.open(encoding="utf-8") as file:
            first = file.readline(_FIRST)
    except (OSError, UnicodeDecodeError):
        return None
    before, mark, _ = first.partition(_MARK)
    return before.partition("For ")[2].removesuffix("; ") if mark else None
