"""`pointsman render POLICY --for envoy`: ready-to-apply configuration for a gateway."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

SUMMARY = "write a gateway's configuration for a policy"


def add(subparsers: Any) -> None:
    parser: argparse.ArgumentParser = subparsers.add_parser("render", help=SUMMARY, description=SUMMARY)
    parser.add_argument("policy", type=Path, metavar="POLICY")
    parser.add_argument("--for", dest="target", required=True, choices=("envoy",), help="the gateway")
    parser.add_argument("--listen", default="0.0.0.0:10000", metavar="ADDR", help="where Envoy takes requests")
    parser.add_argument("--router", default="127.0.0.1:50051", metavar="ADDR", help="where `pointsman serve` listens")
    parser.add_argument("--envoy-admin", default="127.0.0.1:9901", metavar="ADDR", help="Envoy's admin port, or `none`")
    parser.add_argument(
        "--upstream",
        action="append",
        default=[],
        metavar="MODEL=URL",
        help="a model's server, instead of the policy's `url:` (repeatable)",
    )
    parser.add_argument("--router-ca", metavar="FILE", help="TLS to the router: who signed its certificate")
    parser.add_argument("--router-cert", metavar="FILE", help="mTLS to the router: Envoy's certificate")
    parser.add_argument("--router-key", metavar="FILE", help="mTLS to the router: its key")
    parser.add_argument("-o", "--output", choices=("yaml", "json"), default="yaml")


def run(args: argparse.Namespace) -> int:
    import yaml

    from cli.gateways.envoy import render
    from cli.gateways.place import Mtls, Place, RenderError
    from config.watch import load

    try:
        place = Place(
            listen=args.listen,
            router=args.router,
            admin=None if args.envoy_admin == "none" else args.envoy_admin,
            upstreams=dict(_pair(text) for text in args.upstream),
            mtls=Mtls(args.router_ca, args.router_cert, args.router_key) if args.router_ca else None,
        )
        rendered = render(load(args.policy).engine, place)
    except RenderError as error:
        print(f"pointsman render: {error}", file=sys.stderr)
        return 1
    if args.output == "json":
        print(json.dumps(rendered, indent=2))
    else:
        print(f"# Envoy 1.37 or later, for {args.policy}; written by: pointsman render --for {args.target}")
        print(yaml.safe_dump(rendered, sort_keys=False, width=120), end="")
    return 0


def _pair(text: str) -> tuple[str, str]:
    from cli.gateways.place import RenderError

    key, equals, url = text.partition("=")
    if not equals or not key or not url:
        raise RenderError(f"--upstream {text!r}: write MODEL=URL, as in --upstream small=http://vllm:8000")
    return key, url
