"""`pointsman schema`: the JSON Schemas of a policy and of its test cases, for editors."""

from __future__ import annotations

import argparse
import json
from typing import Any, Final

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
SUMMARY = "print the JSON Schema of a policy, or of its test cases, for editors"


def add(subparsers: Any) -> None:
    parser: argparse.ArgumentParser = subparsers.add_parser("schema", help=SUMMARY, description=SUMMARY)
    parser.add_argument("of", nargs="?", choices=("policy", "cases"), default="policy", help="default: policy")


def run(args: argparse.Namespace) -> int:
    print(json.dumps(_cases() if args.of == "cases" else _policy(), indent=2))
    return 0


def _policy() -> dict[str, Any]:
    from config.schema import json_schema

    return json_schema()


def _cases() -> dict[str, Any]:
    from decisions.cases import Suite

    return {"$schema": DIALECT, **Suite.model_json_schema(), "title": "Pointsman test cases"}
