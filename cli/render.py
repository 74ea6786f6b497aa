"""`pointsman render POLICY --for envoy|envoy-gateway|istio`: ready-to-apply configuration for a gateway."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.called import CalledWrongly

if TYPE_CHECKING:
    from cli.gateways.folder import RenderedFolder
    from cli.gateways.kubernetes import Cluster
    from cli.gateways.place import Mtls, Secrets

SUMMARY = "write a gateway's configuration for a policy"


def add(subparsers: Any) -> None:
    parser: argparse.ArgumentParser = subparsers.add_parser("render", help=SUMMARY, description=SUMMARY)
    parser.set_defaults(default=parser.get_default)
    parser.add_argument("policy", type=Path, metavar="POLICY")
    parser.add_argument(
        "--for", dest="target", required=True, choices=("envoy", "envoy-gateway", "istio"), help="the gateway"
    )
    parser.add_argument("--namespace", default="pointsman", help="Kubernetes namespace of the router and the objects")
    parser.add_argument(
        "--service", metavar="NAME[:PORT]", help="the router's Service (default: pointsman:50051, or as --router says)"
    )
    _add_gateway(parser)
    parser.add_argument(
        "--listen", metavar="ADDR", help="where Envoy takes requests (default: port 10000; 80 in Kubernetes)"
    )
    parser.add_argument(
        "--router",
        metavar="ADDR[,ADDR…]",
        help="where `pointsman serve` listens, every replica (default: 127.0.0.1:50051; in Kubernetes see --service)",
    )
    parser.add_argument("--envoy-admin", default="127.0.0.1:9901", metavar="ADDR", help="Envoy's admin port, or `none`")
    parser.add_argument(
        "--upstream",
        action="append",
        default=[],
        metavar="MODEL=URL",
        help="a model's server, instead of the policy's `url:` (repeatable)",
    )
    parser.add_argument(
        "--internal",
        default="127.0.0.1:10001",
        metavar="ADDR",
        help="Envoy's listener for the router's calls of stepwise models (serve --models-through), or `none`",
    )
    parser.add_argument(
        "--writers",
        "--stepwise",
        metavar="ADDR[,ADDR…]",
        help="where `serve --writers-listen` answers over HTTP: for an Envoy before 1.40 (default: in the exchange)",
    )
    parser.add_argument(
        "--full-duplex",
        action="store_true",
        help="hand bodies over as they come, so that a router's death loses no request that is not decided yet",
    )
    parser.add_argument(
        "--secrets", metavar="DIR", help="where Envoy finds the models' credentials, as SECRET/KEY.yaml"
    )
    parser.add_argument(
        "--cors",
        action="append",
        default=[],
        metavar="ORIGIN[,ORIGIN…]",
        help="let web pages of these origins call from a browser (CORS), `*` for all (default: none; repeatable)",
    )
    _add_router_tls(parser)
    parser.add_argument(
        "-o",
        "--output",
        default="yaml",
        metavar="yaml|json|DIR",
        help="print YAML or JSON, or write files with a README of their order into a folder (default: yaml)",
    )


def _add_router_tls(parser: argparse.ArgumentParser) -> None:
    """TLS between Envoy and the router."""
    parser.add_argument(
        "--router-ca", metavar="FILE", help="TLS to the router: the authority that signed its certificate"
    )
    parser.add_argument("--router-cert", metavar="FILE", help="mTLS to the router: Envoy's certificate")
    parser.add_argument("--router-key", metavar="FILE", help="mTLS to the router: its key")
    parser.add_argument(
        "--router-sds",
        metavar="DIR",
        help="mTLS to the router: Envoy's secrets, router-ca.yaml and router-cert.yaml, so that it follows renewals",
    )


def _add_gateway(parser: argparse.ArgumentParser) -> None:
    """What says which gateway it is in Kubernetes."""
    parser.add_argument(
        "--gateway", metavar="[NAMESPACE/]NAME", help="join this Gateway instead of writing one of our own"
    )
    parser.add_argument("--section", metavar="NAME", help="the listener of that Gateway which is ours alone")
    parser.add_argument("--gateway-class", metavar="NAME", help="the GatewayClass of our own (default: eg, or istio)")
    parser.add_argument(
        "--host", action="append", default=[], metavar="NAME", help="a host name that clients call (default: all)"
    )
    parser.add_argument("--tls", metavar="SECRET", help="the Secret with our own Gateway's certificate: HTTPS")
    parser.add_argument(
        "--gateway-api", action="store_true", help="Istio: HTTPRoutes of the Gateway API instead of a VirtualService"
    )
    parser.add_argument(
        "--gateway-namespace", metavar="NAME", help="Istio: where the gateway's pods run (default: istio-system)"
    )
    parser.add_argument(
        "--gateway-labels",
        action="append",
        default=[],
        metavar="KEY=VALUE[,…]",
        help="Istio: the labels of the gateway's pods (default: istio=ingressgateway)",
    )


def run(args: argparse.Namespace) -> int:
    from cli.gateways import browsers, envoy, envoy_gateway, istio
    from cli.gateways.place import Place, RenderError
    from config.build import build
    from config.load import load

    notes: list[str] = []
    try:
        folder = None if args.output in ("yaml", "json") else _folder(args, notes)
        engine = build(load(args.policy))
        place = Place(
            listen=args.listen or _usual(args),
            router=args.router or "127.0.0.1:50051",
            admin=None if args.envoy_admin == "none" else args.envoy_admin,
            upstreams=dict(_pair(text) for text in args.upstream),
            mtls=_mtls(args),
            internal=args.internal if engine.writes and args.internal != "none" else None,
            steps=args.writers if engine.writes else None,
            secrets=args.secrets,
            origins=browsers.origins(args.cors),
            duplex=args.full_duplex,
        )
        _seen(args)
        cluster = _cluster(args)
        if args.target == "envoy":
            rendered = [envoy.render(engine, place)]
        elif args.target == "envoy-gateway":
            rendered = envoy_gateway.render(engine, place, cluster)
            notes += envoy_gateway.left_out(engine, place, cluster)
        else:
            rendered = istio.render(engine, place, cluster)
            notes += istio.left_out(engine, place)
        written = folder.write(rendered, engine, place, cluster) if folder is not None else []
    except RenderError as error:
        print(f"pointsman render: {error}", file=sys.stderr)
        return 1
    for note in notes:
        print(f"pointsman render: left out: {note}", file=sys.stderr)
    if folder is None:
        _write(rendered, args)
    else:
        print(f"{len(written)} files in {folder.path}; {written[-1]} says in which order they are used")
    return 0


_GATEWAY_OPTIONS = {
    "--gateway": ("envoy-gateway", "istio"),
    "--section": ("envoy-gateway", "istio"),
    "--gateway-class": ("envoy-gateway", "istio"),
    "--host": ("envoy-gateway", "istio"),
    "--tls": ("envoy-gateway", "istio"),
    "--gateway-api": ("istio",),
    "--gateway-namespace": ("istio",),
    "--gateway-labels": ("istio",),
}


def _usual(args: argparse.Namespace) -> str:
    """Where a gateway takes requests unless told otherwise."""
    if args.target == "envoy":
        return "0.0.0.0:10000"
    return "0.0.0.0:443" if args.tls else "0.0.0.0:80"


def _cluster(args: argparse.Namespace) -> Cluster:
    """Raises CalledWrongly for names that Kubernetes does not take, and for options that do not fit together."""
    from cli.gateways import kubernetes

    given = {option for option in _GATEWAY_OPTIONS if getattr(args, option[2:].replace("-", "_"))}
    for option in sorted(given):
        if args.target not in _GATEWAY_OPTIONS[option]:
            raise CalledWrongly(f"{option}: that is for --for {' and --for '.join(_GATEWAY_OPTIONS[option])}")
    if args.target == "envoy":
        return kubernetes.Cluster()
    for option, other in (
        ("--tls", "--gateway"),
        ("--gateway-class", "--gateway"),
        ("--gateway-labels", "--gateway-api"),
    ):
        if option in given and other in given:
            raise CalledWrongly(f"{option}: leave it out beside {other}, which says it already")
    if "--section" in given and "--gateway" not in given:
        raise CalledWrongly("--section: say with --gateway whose listener it is")
    if args.target == "istio" and "--gateway-api" not in given and given & {"--section", "--gateway-class"}:
        raise CalledWrongly("--section and --gateway-class: Istio's own Gateway has neither; see --gateway-api")
    if {"--gateway-api", "--gateway-namespace"} <= given:
        raise CalledWrongly("--gateway-namespace: with --gateway-api write --gateway NAMESPACE/NAME")
    namespace = kubernetes.label(args.namespace, "--namespace")
    service, port = kubernetes.router(args.service, args.router, namespace)
    before, _, name = (args.gateway or "").rpartition("/")
    if before:
        kubernetes.label(before, "--gateway")
    if name and args.target == "istio" and not args.gateway_api:
        home = args.gateway_namespace
        name = f"{before or namespace}/{kubernetes.domain(name, '--gateway')}"
    else:
        home = before or args.gateway_namespace
        if args.gateway:
            kubernetes.domain(name, "--gateway")
    front = kubernetes.Front(
        name=name or None,
        namespace=home and kubernetes.label(home, "--gateway-namespace"),
        section=args.section and kubernetes.domain(args.section, "--section"),
        class_name=args.gateway_class and kubernetes.domain(args.gateway_class, "--gateway-class"),
        hosts=tuple(kubernetes.host_name(host) for host in args.host),
        tls=args.tls and kubernetes.domain(args.tls, "--tls"),
        gateway_api=args.gateway_api,
    )
    if args.gateway_labels:
        front = replace(front, labels=kubernetes.labels(args.gateway_labels))
    return kubernetes.Cluster(namespace, service, port, front)


def _seen(args: argparse.Namespace) -> None:
    """Raises CalledWrongly for an argument with a character that nobody sees: it would go into the configuration."""
    for name, value in vars(args).items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and not text.isprintable():
                shown = f"--{name.replace('_', '-')} {text!r}"
                raise CalledWrongly(
                    f"{shown}: it has a line break or another character that cannot be seen; take it out"
                )


def _folder(args: argparse.Namespace, notes: list[str]) -> RenderedFolder:
    """Raises CalledWrongly for what is no folder."""
    from cli.gateways.folder import RenderedFolder

    path = Path(args.output)
    if path.suffix in (".yaml", ".yml", ".json") or path.is_file():
        raise CalledWrongly(f"-o {path}: that is a file; name a folder, or write `pointsman render … > {path.name}`")
    return RenderedFolder(path, args.policy, f"--for {args.target}{_options(args)}", notes)


def _options(args: argparse.Namespace) -> str:
    """The options beside --for and -o that were given, as on the command line, with a space before each."""
    given = ""
    for name, value in vars(args).items():
        if name in ("command", "default", "policy", "target", "output") or value == args.default(name):
            continue
        option = f" --{name.replace('_', '-')}"
        for one in value if isinstance(value, list) else [value]:
            given += option if one is True else f"{option} {shlex.quote(one)}"
    return given


def _write(rendered: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """One document, or several as a YAML stream or a Kubernetes List."""
    from cli.gateways.parts import as_yaml

    if args.output == "json":
        several = {"apiVersion": "v1", "kind": "List", "items": rendered}
        print(json.dumps(rendered[0] if len(rendered) == 1 else several, indent=2))
        return
    name = args.policy.name
    print(f"# For {name}; written by: pointsman render {name} --for {args.target}{_options(args)}")
    print(as_yaml(rendered), end="")


def _mtls(args: argparse.Namespace) -> Mtls | Secrets | None:
    from cli.gateways.place import Mtls, Secrets

    if args.router_sds and (args.router_ca or args.router_cert or args.router_key):
        raise CalledWrongly("--router-sds names the certificates itself: leave --router-ca, -cert and -key out")
    if args.router_sds:
        return Secrets(args.router_sds)
    if (args.router_cert or args.router_key) and not args.router_ca:
        raise CalledWrongly("--router-cert, --router-key: Envoy must know the router, too: give --router-ca")
    if bool(args.router_cert) != bool(args.router_key):
        raise CalledWrongly("--router-cert and --router-key belong together: give both, or neither for TLS alone")
    return Mtls(args.router_ca, args.router_cert, args.router_key) if args.router_ca else None


def _pair(text: str) -> tuple[str, str]:
    key, equals, url = text.partition("=")
    if not equals or not key or not url:
        raise CalledWrongly(f"--upstream {text!r}: write MODEL=URL, as in --upstream small=http://vllm:8000")
    return key, url
