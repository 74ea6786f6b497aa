"""`pointsman schema`: the JSON Schema of a policy, for editors."""

from __future__ import annotations

import argparse
import json
from typing import Any

SUMMARY = "print the JSON Schema of a policy, for editors"


def add(subparsers: Any) -> None:
    subparsers.add_parser("schema", help=SUMMARY, description=SUMMARY)


def run(args: argparse.Namespace) -> int:
    from config.schema import json_schema

    print(json.dumps(json_schema(), indent=2))
    return 0
