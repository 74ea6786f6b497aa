"""Regenerate the protobuf code beside this file: `python proto/generate.py`; with `--check`, only say what differs.

The output depends on the protoc inside grpcio-tools, which is why pyproject.toml pins that package to one version.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

HERE = Path(__file__).resolve().parent
SCHEMAS = ("ext_proc.proto",)


def generate(target: Path) -> None:
    """Write `*_pb2.py` and `*_pb2.pyi` of every schema into `target`/proto. Raises RuntimeError when protoc refuses."""
    includes = Path(grpc_tools.__file__).parent / "_proto"
    arguments = ["protoc", f"-I{HERE.parent}", f"-I{includes}", f"--python_out={target}", f"--pyi_out={target}"]
    status = protoc.main([*arguments, *(f"proto/{name}" for name in SCHEMAS)])
    if status != 0:
        raise RuntimeError(f"protoc exited with status {status}")


def differences() -> list[str]:
    """Names of the committed generated files that a fresh run would change, add or leave behind."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = {path.name: path.read_bytes() for path in (Path(folder) / "proto").iterdir()}
    kept = {path.name: path.read_bytes() for path in HERE.glob("*_pb2.py*")}
    return sorted(name for name in fresh.keys() | kept.keys() if fresh.get(name) != kept.get(name))


def main(arguments: list[str]) -> int:
    if arguments == ["--check"]:
        changed = differences()
        if changed:
            print(f"proto: run `make proto`: {', '.join(changed)} differ from their schemas", file=sys.stderr)
        return 1 if changed else 0
    generate(HERE.parent)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
