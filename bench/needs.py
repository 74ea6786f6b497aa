"""What the benchmarks need beside Python packages, all named at once. Uses the standard library only: it runs first."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

DRIVER = {"taskset": "util-linux", "wrk": "wrk"}
BASELINE = {"cmake": "cmake", "make": "make", "c++": "g++", "pkg-config": "pkg-config", "protoc": "protobuf-compiler"}
HEADERS = {
    "grpcpp/grpcpp.h": "libgrpc++-dev",
    "google/protobuf/message.h": "libprotobuf-dev",
    "re2/re2.h": "libre2-dev",
    "nlohmann/json.hpp": "nlohmann-json3-dev",
}
COMPILER = {os.environ.get("CC", "cc"): "gcc"}  # for `make native`


def missing(programs: dict[str, str], headers: dict[str, str]) -> list[str]:
    """The Debian packages of those programs and C++ headers that are not there."""
    folders = [*filter(None, os.environ.get("CPATH", "").split(":")), "/usr/include", "/usr/local/include"]
    return [
        *(package for program, package in programs.items() if shutil.which(program) is None),
        *(
            package
            for header, package in headers.items()
            if not any(Path(folder, header).exists() for folder in folders)
        ),
    ]


def complaint(baseline: bool, compiler: bool = False) -> str | None:
    """Everything that is missing, in one message; None when nothing is. `baseline`: the C++ server is measured too."""
    programs = DRIVER | (BASELINE if baseline else {}) | (COMPILER if compiler else {})
    lacking = []
    if (os.cpu_count() or 1) < 2:
        lacking.append("the benchmark needs two cores: Envoy and the server have one each")
    if packages := missing(programs, HEADERS if baseline else {}):
        lacking.append(f"the benchmark needs more programs: apt-get install {' '.join(packages)}")
    return "\n".join(lacking) or None


if __name__ == "__main__":
    sys.exit(complaint(baseline=True, compiler=True))
