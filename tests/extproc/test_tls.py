"""mTLS between real Envoy and the router, with certificates made by openssl."""

from __future__ import annotations

import subprocess
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest

from cli.gateways.place import Mtls
from config.watch import load
from tests.extproc.live import chat, echoes, envoy, router

pytestmark = pytest.mark.e2e

POLICY = "version: 1\nmodels: {small: {name: s}}\ndefault: small\n"


@pytest.fixture(scope="module")
def certs(tmp_path_factory):
    """Two authorities; a server certificate for 127.0.0.1 and client certificates of both."""
    folder = tmp_path_factory.mktemp("certs")
    for authority in ("ca", "other"):
        _openssl(folder, f"req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={authority}", authority)
    _signed(folder, "server", "ca", "IP:127.0.0.1")
    _signed(folder, "elsewhere", "ca", "IP:127.0.0.9")
    _signed(folder, "client", "ca", "DNS:envoy")
    _signed(folder, "stranger", "other", "DNS:envoy")
    return folder


def _openssl(folder: Path, command: str, name: str) -> None:
    command = f"openssl {command} -keyout {name}.key -out {name}.pem"
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True, timeout=60)


def _signed(folder: Path, name: str, by: str, san: str) -> None:
    command = f"req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={name} -CA {by}.pem -CAkey {by}.key"
    _openssl(folder, f"{command} -addext subjectAltName={san} -addext basicConstraints=critical,CA:FALSE", name)


async def _status(tmp_path: Path, certs: Path, server: str, client: str | None) -> int:
    """The status of one chat completion through Envoy and a router that asks for a certificate of `ca`."""
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY)
    engine = load(policy).engine
    flags = [f"--tls-cert={certs}/{server}.pem", f"--tls-key={certs}/{server}.key", f"--tls-client-ca={certs}/ca.pem"]
    mtls = Mtls(f"{certs}/ca.pem")
    if client is not None:
        mtls = Mtls(f"{certs}/ca.pem", f"{certs}/{client}.pem", f"{certs}/{client}.key")
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(router(policy, tmp_path, *flags, listen="127.0.0.1:0"))
        upstreams = await stack.enter_async_context(echoes(engine))
        base = await stack.enter_async_context(envoy(engine, running.address, upstreams, tmp_path, mtls))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        async with session.post(f"{base}/v1/chat/completions", json=chat()) as answer:
            return answer.status


@pytest.mark.parametrize(
    ("server", "client", "works"),
    [
        ("server", "client", True),
        ("server", "stranger", False),  # signed by somebody else
        ("server", None, False),  # shows no certificate
        ("elsewhere", "client", False),  # the router's certificate is for another address
    ],
)
async def test_only_the_right_certificates_talk(tmp_path, certs, server, client, works):
    status = await _status(tmp_path, certs, server, client)
    assert status == 200 if works else status >= 500
