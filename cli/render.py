"""`pointsman render POLICY --for envoy|envoy-gateway|istio`: ready-to-apply configuration for a gateway."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cli.gateways.place import Mtls, Secrets

SUMMARY = "write a gateway's configuration for a policy"


def add(subparsers: Any) -> None:
    parser: argparse.ArgumentParser = subparsers.add_parser("render", help=SUMMARY, description=SUMMARY)
    parser.add_argument("policy", type=Path, metavar="POLICY")
    parser.add_argument(
        "--for", dest="target", required=True, choices=("envoy", "envoy-gateway", "istio"), help="the gateway"
    )
    parser.add_argument("--namespace", default="pointsman", help="Kubernetes namespace of the router and the objects")
    parser.add_argument("--service", default="pointsman", help="the router's Service (port as in --router)")
    parser.add_argument(
        "--listen", metavar="ADDR", help="where Envoy takes requests (default: port 10000; 80 in Kubernetes)"
    )
    parser.add_argument(
        "--router",
        default="127.0.0.1:50051",
        metavar="ADDR[,ADDR…]",
        help="where `pointsman serve` listens, every replica",
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
        "--stepwise",
        metavar="ADDR[,ADDR…]",
        help="where `serve --stepwise-listen` answers over HTTP: for an Envoy before 1.40 (default: in the exchange)",
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
    parser.add_argument("-o", "--output", choices=("yaml", "json"), default="yaml")


def run(args: argparse.Namespace) -> int:
    from cli.gateways import browsers, envoy, envoy_gateway, istio
    from cli.gateways.kubernetes import Cluster
    from cli.gateways.place import Place, RenderError
    from config.build import build
    from config.load import load

    notes: list[str] = []
    try:
        engine = build(load(args.policy))
        place = Place(
            listen=args.listen or ("0.0.0.0:10000" if args.target == "envoy" else "0.0.0.0:80"),
            router=args.router,
            admin=None if args.envoy_admin == "none" else args.envoy_admin,
            upstreams=dict(_pair(text) for text in args.upstream),
            mtls=_mtls(args),
            internal=args.internal if engine.writes and args.internal != "none" else None,
            steps=args.stepwise if engine.writes else None,
            secrets=args.secrets,
            origins=browsers.origins(args.cors),
        )
        _seen(args)
        cluster = Cluster(args.namespace, args.service)
        if args.target == "envoy":
            rendered = [envoy.render(engine, place)]
        elif args.target == "envoy-gateway":
            rendered = envoy_gateway.render(engine, place, cluster)
            notes = envoy_gateway.left_out(engine, place)
        else:
            rendered = istio.render(engine, place, cluster)
            notes = istio.left_out(engine)
    except RenderError as error:
        print(f"pointsman render: {error}", file=sys.stderr)
        return 1
    for note in notes:
        print(f"pointsman render: left out: {note}", file=sys.stderr)
    _write(rendered, args)
    return 0


def _seen(args: argparse.Namespace) -> None:
    """Raises RenderError for an argument with a character that nobody sees: it would go into the configuration."""
    from cli.gateways.place import RenderError

    for name, value in vars(args).items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and not text.isprintable():
                shown = f"--{name.replace('_', '-')} {text!r}"
                raise RenderError(f"{shown}: it has a line break or another character that cannot be seen; take it out")


def _write(rendered: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """One document, or several as a YAML stream or a Kubernetes List."""
    import yaml

    if args.output == "json":
        several = {"apiVersion": "v1", "kind": "List", "items": rendered}
        print(json.dumps(rendered[0] if len(rendered) == 1 else several, indent=2))
        return
    print(f"# For {args.policy.name}; written by: pointsman render {args.policy.name} --for {args.target}")
    print(yaml.safe_dump_all(rendered, sort_keys=False, width=120), end="")


def _mtls(args: argparse.Namespace) -> Mtls | Secrets | None:
    from cli.gateways.place import Mtls, RenderError, Secrets

    if args.router_sds and (args.router_ca or args.router_cert or args.router_key):
        raise RenderError("--router-sds names the certificates itself: leave --router-ca, -cert and -key out")
    if args.router_sds:
        return Secrets(args.router_sds)
    return Mtls(args.router_ca, args.router_cert, args.router_key) if args.router_ca else None


def _pair(text: str) -> tuple[str, str]:
    from cli.gateways.place import RenderError

    key, equals, url = text.partition("=")
    if not equals or not key or not url:
        raise RenderError(f"--upstream {text!r}: write MODEL=URL, as in --upstream small=http://vllm:8000")
    return key, url
