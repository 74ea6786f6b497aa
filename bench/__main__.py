"""`make bench`: the router behind a real Envoy and alone, against C++ gRPC and against our own grpcio transport.

Everything is started once and measured in turn, several rounds interleaved, so that what the machine does besides falls
on all alike; shown are medians with the smallest and largest round. Envoy runs on core 0, the server on core 1.
Ratios within one run are what counts. Tables go to the terminal, JSON and a plot to bench/out. The router runs
compiled where `make native` has been run (`make bench` does that), and once plain beside it.

    python -m bench                 # everything, some ten minutes
    python -m bench --seconds 2 --rounds 2 --only "1 KB"
    python -m bench --no-direct --only router --before ../pointsman-before   # beside another checkout's router
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from bench import direct, needs, policies
from bench.direct import connect
from bench.envoy import Envoy, Route, drive, free_port, pinned
from bench.messages import chat_completion, turns

HERE = Path(__file__).parent
OUT = HERE / "out"
NATIVE = HERE.parent / "build" / "native"
KB = 1024
CPP = {"cpp", "cpp no-op"}
BEFORE = ", before"
Row = dict[str, float]


@dataclass(frozen=True)
class BenchCase:
    """One line of the table."""

    name: str
    server: str | None
    body: int = KB
    mode: str = "BUFFERED"

    def before(self) -> BenchCase:
        """The same with the router of another checkout, where that is measured."""
        return replace(self, name=self.name + BEFORE, server=f"{self.server}{BEFORE}" if self.server else None)

    @property
    def label(self) -> str:
        mode = "duplex" if self.mode == "FULL_DUPLEX_STREAMED" else "buffered"
        return f"{self.name} · {self.body // KB} KB · {mode}" if self.server else f"{self.name} · {self.body // KB} KB"


CASES = [
    BenchCase("Envoy alone", None),
    BenchCase("C++ gRPC, no-op", "cpp no-op"),
    BenchCase("C++ gRPC, JSON + regex", "cpp"),
    BenchCase("C++ gRPC, JSON + regex", "cpp", 32 * KB),
    BenchCase("C++ gRPC, JSON + regex", "cpp", 256 * KB),
    BenchCase("transport alone, http2", "echo http2"),
    BenchCase("transport alone, grpcio", "echo grpcio"),
    BenchCase("router, no-op", "no-op"),
    BenchCase("router, example policy", "example"),
    BenchCase("router, 20 x 10", "20 x 10"),
    BenchCase("router, 20 x 10", "20 x 10", 32 * KB),
    BenchCase("router, 20 x 10", "20 x 10", 256 * KB),
    BenchCase("router, 20 x 10", "20 x 10", mode="FULL_DUPLEX_STREAMED"),
    BenchCase("router, 20 x 10", "20 x 10", 256 * KB, "FULL_DUPLEX_STREAMED"),
    BenchCase("router, 20 x 10, TCP", "20 x 10, TCP"),
    BenchCase("router, 20 x 10, grpcio", "20 x 10, grpcio"),
    BenchCase("router, 20 x 10, not compiled", "20 x 10, not compiled"),
    BenchCase("router, 20 x 10, collector untuned", "20 x 10, collector untuned"),
    BenchCase("router, 46 rules, 40 bands", "46 rules, 40 bands"),
    BenchCase("router, 100 x 50", "100 x 50"),
    BenchCase("router, 1000 keywords x 200", "1000 keywords x 200"),
]


class ServerProcess:
    """A server process, pinned to a core."""

    def __init__(self, command: list[str], target: str, core: int | None, log: Path) -> None:
        self.target = target
        begin = time.monotonic()
        with log.open("w") as file:
            self.process = psutil.Popen(pinned(command, core), stdout=file, stderr=subprocess.STDOUT)
        while True:
            try:
                connect(target).close()
                break
            except OSError:
                if self.process.poll() is not None or time.monotonic() - begin > 60:
                    self.close()
                    raise RuntimeError(f"{' '.join(command)} did not start:\n{log.read_text()}") from None
                time.sleep(0.01)
        self.ready = time.monotonic() - begin

    def _processes(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)] if self.process.is_running() else []

    def cpu(self) -> float:
        """CPU seconds of the process and its children so far."""
        return sum(sum(process.cpu_times()[:2]) for process in self._processes())

    def rss(self) -> float:
        """Resident megabytes of the largest process: the worker."""
        return max(float(process.memory_info().rss) for process in self._processes()) / 2**20

    def close(self) -> None:
        for process in self._processes():
            if process.is_running():
                process.terminate()
        try:
            self.process.wait(20)
        except psutil.TimeoutExpired:
            self.process.kill()


def build_baseline() -> Path:
    """The C++ server. RuntimeError when it does not build."""
    build = HERE / "cpp" / "build"
    for command in (["-S", str(HERE / "cpp"), "-B", str(build)], ["--build", str(build)]):
        done = subprocess.run(["cmake", *command], check=False, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the C++ baseline does not build:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return build / "baseline"


def serve(policy: Path, target: str, transport: str = "http2", workers: int = 1, code: Path | None = None) -> list[str]:
    """The command that serves a policy; `code` is the folder of the code, by default what is compiled here."""
    code = code or (NATIVE if NATIVE.is_dir() else HERE.parent)
    python = ["env", f"PYTHONPATH={code}", sys.executable, "-P"]
    command = [*python, "-m", "cli.main", "serve", str(policy), "--listen", target, "--workers", str(workers)]
    return [*command, "--transport", transport, "--drain-wait", "0", "--grace", "1", "--log-level", "warning"]


def _untuned(command: list[str]) -> list[str]:
    """The same server with Python's garbage collector as it comes."""
    code = "import gc, sys; gc.freeze = gc.set_threshold = lambda *_: None; from cli.main import main; sys.exit(main())"
    at = command.index("-m")
    return [*command[:at], "-c", code, *command[at + 2 :]]


def commands(folder: Path, wanted: set[str], before: Path | None) -> dict[str, tuple[list[str], str]]:
    """How each wanted server is started, and where it listens; `before` is the folder of another checkout."""
    files = policies.write(folder)
    echo = [sys.executable, "-m", "bench.echo"]
    found: dict[str, tuple[list[str], str]] = {}

    def socket_of(name: str) -> str:
        return f"unix:{folder}/{name.replace(' ', '').replace(',', '')}.sock"

    if wanted & CPP:
        baseline = build_baseline()
        found["cpp"] = ([str(baseline), socket_of("cpp")], socket_of("cpp"))
        found["cpp no-op"] = ([str(baseline), socket_of("cppnoop"), "--noop"], socket_of("cppnoop"))
    for transport in ("http2", "grpcio"):
        name = f"echo {transport}"
        found[name] = ([*echo, socket_of(name), "--transport", transport], socket_of(name))
    for name, file in files.items():
        found[name] = (serve(file, socket_of(name)), socket_of(name))
        if before is not None:
            code = before / "build/native" if NATIVE.is_dir() else before
            found[name + BEFORE] = (serve(file, socket_of(name + BEFORE), code=code), socket_of(name + BEFORE))
    tcp = f"127.0.0.1:{free_port()}"
    found["20 x 10, TCP"] = (serve(files["20 x 10"], tcp), tcp)
    grpcio = socket_of("20x10grpcio")
    found["20 x 10, grpcio"] = (serve(files["20 x 10"], grpcio, "grpcio"), grpcio)
    untuned = socket_of("20x10untuned")
    found["20 x 10, collector untuned"] = (_untuned(serve(files["20 x 10"], untuned)), untuned)
    plain = socket_of("20x10plain")
    if NATIVE.is_dir():
        found["20 x 10, not compiled"] = (serve(files["20 x 10"], plain, code=HERE.parent), plain)
        if before is not None:
            socket = socket_of("20x10plain" + BEFORE)
            found["20 x 10, not compiled" + BEFORE] = (serve(files["20 x 10"], socket, code=before), socket)
    else:
        print("the router is not compiled: make native")
    return {name: how for name, how in found.items() if name in wanted}


@contextmanager
def started(folder: Path, cases: Sequence[BenchCase], before: Path | None = None) -> Iterator[dict[str, ServerProcess]]:
    """Every server that the cases need."""
    servers: dict[str, ServerProcess] = {}
    with ExitStack() as stack:
        wanted = {case.server for case in cases if case.server is not None}
        for number, (name, (command, target)) in enumerate(commands(folder, wanted, before).items()):
            try:
                servers[name] = ServerProcess(command, target, 1, folder / f"server{number}.log")
            except RuntimeError as error:
                if not name.endswith(BEFORE):
                    raise
                print(f"left out: the other checkout does not serve {name}: {str(error)[:400]}", file=sys.stderr)
                continue
            stack.callback(servers[name].close)
        yield servers


def through_envoy(
    cases: Sequence[BenchCase], seconds: float, rounds: int, connections: int, before: Path | None = None
) -> dict[str, list[Row]]:
    """Measure the cases; a list of rounds for each label."""
    results: dict[str, list[Row]] = {}
    with tempfile.TemporaryDirectory(prefix="bench") as name, started(Path(name), cases, before) as servers:
        folder = Path(name)
        measured = [case for case in cases if case.server is None or case.server in servers]
        routes = {
            case: Route(case.label, servers[case.server].target if case.server else None, case.mode)
            for case in measured
        }
        load = LoadPlan(seconds, connections, folder)
        envoy = Envoy(folder, list(routes.values()), 0)
        try:
            for case in measured:  # the first requests fill caches on both sides
                until_answered(envoy.ports[routes[case]])
                drive_case(envoy, routes[case], case, None, load._replace(seconds=1))
            for number in range(rounds):
                for case in measured:
                    server = servers[case.server] if case.server else None
                    row = drive_case(envoy, routes[case], case, server, load)
                    results.setdefault(case.label, []).append(row)
                    print(f"round {number + 1}: {case.label}: {row['requests_per_second']:.0f}/s", file=sys.stderr)
        finally:
            envoy.close()
    return results


def until_answered(port: int) -> None:
    """Wait for Envoy's listener."""
    end = time.monotonic() + 20
    while True:
        try:
            connect(f"127.0.0.1:{port}").close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


class LoadPlan(NamedTuple):
    """How hard Envoy is driven: for how long, over how many connections; `folder` keeps the bodies that are sent."""

    seconds: float
    connections: int
    folder: Path


def drive_case(envoy: Envoy, route: Route, case: BenchCase, server: ServerProcess | None, load: LoadPlan) -> Row:
    """One round of one case."""
    body = load.folder / f"body{case.body}"
    if not body.exists():
        body.write_bytes(chat_completion(case.body))
    before = server.cpu() if server else 0.0
    row = drive(envoy.ports[route], body, load.seconds, load.connections)
    row["requests_per_second"] = row["requests"] / row["seconds"]
    if server:
        row["cpu_us"] = 1e6 * (server.cpu() - before) / max(1.0, row["requests"])
        row["rss_mb"] = server.rss()
    if row["failed"]:
        raise RuntimeError(f"{case.label}: {row['failed']:.0f} of {row['requests']:.0f} requests failed")
    return row


def transports(seconds: float, rounds: int) -> dict[str, list[Row]]:
    """The two transports and C++ gRPC, all without work of their own, driven directly."""
    results: dict[str, list[Row]] = {}
    names = {"echo http2": "http2", "echo grpcio": "grpcio", "cpp no-op": "C++ gRPC"}
    cases = [BenchCase(name, server) for server, name in names.items()]
    with tempfile.TemporaryDirectory(prefix="bench") as name, started(Path(name), cases) as servers:
        for number in range(rounds + 1):  # the first one warms up
            for size in (KB, 32 * KB, 256 * KB):
                for server in servers:
                    before = servers[server].cpu()
                    found = direct.run(servers[server].target, turns(size), seconds, 2, 16 if size < 64 * KB else 4)
                    row = found.summary()
                    row["cpu_us"] = 1e6 * (servers[server].cpu() - before) / max(1, found.requests)
                    row["rss_mb"] = servers[server].rss()
                    if number:
                        results.setdefault(f"direct, no work, {names[server]}, {size // KB} KB", []).append(row)
    return results


def workers(seconds: float, rounds: int) -> dict[str, list[Row]]:
    """One and two workers on all cores, driven directly: the costly policy, so that the client costs little beside."""
    results: dict[str, list[Row]] = {}
    with tempfile.TemporaryDirectory(prefix="bench") as name, ExitStack() as stack:
        folder = Path(name)
        policy = policies.write(folder)["100 x 50"]
        servers = {}
        for count in (1, 2):
            target = f"127.0.0.1:{free_port()}"
            command = serve(policy, target, workers=count)
            servers[count] = ServerProcess(command, target, None, folder / f"workers{count}.log")
            stack.callback(servers[count].close)
        for _ in range(rounds):
            for count, server in servers.items():
                before = server.cpu()
                found = direct.run(server.target, turns(32 * KB), seconds, connections=16, streams=4)
                row = found.summary()
                row["cpu_us"] = 1e6 * (server.cpu() - before) / max(1, found.requests)
                row["rss_mb"] = server.rss()
                if found.failed:
                    raise RuntimeError(f"{found.failed} of {found.requests} streams failed")
                results.setdefault(f"direct, 100 x 50, 32 KB, workers: {count}", []).append(row)
    return results


def start_up(rounds: int) -> dict[str, list[Row]]:
    """From the command to an open port with the example policy, and what an idle worker then holds."""
    rows = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="bench") as name:
            folder = Path(name)
            target = f"unix:{folder}/p.sock"
            server = ServerProcess(serve(policies.write(folder)["example"], target), target, None, folder / "log")
            rows.append({"ready_s": server.ready, "rss_mb": server.rss()})
            server.close()
    return {"start, example policy": rows}


COLUMNS = ("requests_per_second", "p50_ms", "p99_ms", "p999_ms", "cpu_us", "rss_mb", "ready_s")


def table(results: dict[str, list[Row]]) -> str:
    """Medians and, in brackets, the smallest and largest round."""
    lines = ["".join([f"{'':58}", *(f"{column:>26}" for column in COLUMNS)])]
    for label, rows in results.items():
        cells = []
        for column in COLUMNS:
            values = [row[column] for row in rows if column in row]
            digits = 0 if column == "requests_per_second" else 2
            cell = f"{statistics.median(values):,.{digits}f}" if values else ""
            spread = f" ({min(values):,.{digits}f}-{max(values):,.{digits}f})" if len(values) > 1 else ""
            cells.append(f"{cell + spread:>26}")
        lines.append(f"{label:58}{''.join(cells)}")
    return "\n".join(lines)


def median(results: dict[str, list[Row]], label: str, column: str) -> float | None:
    """One cell, or None where it was not measured."""
    values = [row[column] for row in results.get(label, []) if column in row]
    return statistics.median(values) if values else None


def ratios(results: dict[str, list[Row]]) -> dict[str, float]:
    """The comparisons that the project promises, as far as this run has both sides."""
    router, cpp = "router, 20 x 10 · 1 KB · buffered", "C++ gRPC, JSON + regex · 1 KB · buffered"
    grpcio, many = "router, 20 x 10, grpcio · 1 KB · buffered", "router, 1000 keywords x 200 · 1 KB · buffered"
    rules = "router, 46 rules, 40 bands · 1 KB · buffered"
    one, two = ("direct, 100 x 50, 32 KB, workers: 1", "direct, 100 x 50, 32 KB, workers: 2")
    asked = {
        "CPU a request, 20 x 10 / C++ (at most 1.0)": (router, cpp, "cpu_us"),
        "requests/s, 20 x 10 / C++ (at least 0.95)": (router, cpp, "requests_per_second"),
        "p99, 20 x 10 / C++ (at most 1.2)": (router, cpp, "p99_ms"),
        "requests/s, http2 / grpcio (at least 5)": (router, grpcio, "requests_per_second"),
        "CPU, not compiled / compiled": ("router, 20 x 10, not compiled · 1 KB · buffered", router, "cpu_us"),
        "p99.9, collector untuned / tuned": ("router, 20 x 10, collector untuned · 1 KB · buffered", router, "p999_ms"),
        "CPU, 1000 keywords x 200 / 20 x 10 (at most 2)": (many, router, "cpu_us"),
        "CPU, 46 named rules and 40 bands / 20 x 10 (at most 1.3)": (rules, router, "cpu_us"),
        "CPU, 256 KB / 32 KB (at most 8)": (
            "router, 20 x 10 · 256 KB · buffered",
            "router, 20 x 10 · 32 KB · buffered",
            "cpu_us",
        ),
        "CPU, transport http2 / C++ gRPC, no work": (
            "direct, no work, http2, 1 KB",
            "direct, no work, C++ gRPC, 1 KB",
            "cpu_us",
        ),
        "requests/s, transport http2 / grpcio, no work (at least 5)": (
            "direct, no work, http2, 1 KB",
            "direct, no work, grpcio, 1 KB",
            "requests_per_second",
        ),
        "requests/s, two workers / one (at least 1.7)": (two, one, "requests_per_second"),
    }
    for label in results:
        if BEFORE in label:
            asked[f"CPU, {label.replace(BEFORE, '')} / before (at most 1.03)"] = (
                label.replace(BEFORE, ""), label, "cpu_us",
            )  # fmt: skip
    found = {}
    for name, (upper, lower, column) in asked.items():
        above, below = median(results, upper, column), median(results, lower, column)
        if above is not None and below:
            found[name] = above / below
    return found


def plot(results: dict[str, list[Row]], path: Path) -> None:
    """Requests a second and CPU a request, side by side."""
    try:
        from matplotlib import pyplot
    except ImportError:
        print("no plot: matplotlib is not installed")
        return
    labels = [label for label in results if median(results, label, "cpu_us") is not None]
    figure, axes = pyplot.subplots(1, 2, figsize=(14, 0.4 * len(labels) + 1.5), sharey=True)
    for axis, column, title in zip(
        axes, ("requests_per_second", "cpu_us"), ("requests/s", "CPU µs a request"), strict=True
    ):
        middles = [median(results, label, column) or 0.0 for label in labels]
        rows = [[row[column] for row in results[label]] for label in labels]
        low = [middle - min(values) for middle, values in zip(middles, rows, strict=True)]
        high = [max(values) - middle for middle, values in zip(middles, rows, strict=True)]
        axis.barh(labels, middles, xerr=[low, high], color=["#888" if "C++" in label else "#27c" for label in labels])
        axis.set_title(title)
        axis.invert_yaxis()
    axes[1].set_xscale("log")
    figure.tight_layout()
    figure.savefig(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--no-direct", action="store_true", help="leave out what does not go through Envoy")
    parser.add_argument("--before", type=Path, help="folder of another checkout, whose router is measured beside")
    chosen = parser.parse_args(arguments)
    cases = [case for case in CASES if chosen.only in case.label]
    if chosen.before is not None:
        cases = [each for case in cases for each in (case, case.before()) if each.server is not None or each is case]
    baseline = not chosen.no_direct or any(case.server in CPP for case in cases)
    if (lacking := needs.complaint(baseline)) is not None:
        print(lacking, file=sys.stderr)
        return 2
    results = through_envoy(cases, chosen.seconds, chosen.rounds, chosen.connections, chosen.before)
    if not chosen.no_direct:
        results |= transports(chosen.seconds, chosen.rounds)
        results |= workers(chosen.seconds, chosen.rounds)
        results |= start_up(chosen.rounds)
    compared = ratios(results)
    OUT.mkdir(exist_ok=True)
    machine = {"cpu": platform.processor(), "cores": psutil.cpu_count(), "python": platform.python_version()}
    document: dict[str, Any] = {"machine": machine, "load": psutil.getloadavg(), "rounds": results, "ratios": compared}
    (OUT / "bench.json").write_text(json.dumps(document, indent=1))
    plot(results, OUT / "bench.png")
    print(table(results))
    for name, ratio in compared.items():
        print(f"{ratio:8.2f}  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
