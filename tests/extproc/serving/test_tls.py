"""mTLS between real Envoy and the router, with certificates made by openssl: who gets in, and how they are renewed."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import grpc
import pytest

from cli.gateways.envoy import render
from cli.gateways.place import Mtls, Place, Secrets
from config.watch import load
from extproc.serving.health import CHECK
from extproc.serving.server import PROCESS
from proto import ext_proc_pb2 as pb
from tests.extproc.live import Load, chat, echoes, envoy, eventually, mount, router
from tests.patience import PATIENCE

pytestmark = pytest.mark.e2e

POLICY = "version: 1\nmodels: {small: {name: s}}\ndefault: small\n"
SPIFFE = "spiffe://cluster.local/ns/gateways/sa/envoy"
ROTATIONS = 20


@pytest.fixture(scope="module")
def certs(tmp_path_factory):
    """Two authorities; server certificates and client certificates, good ones and all kinds of bad ones."""
    folder = tmp_path_factory.mktemp("certs")
    for authority in ("ca", "other"):
        command = f"req -x509 {KEY} -days 2 -subj /CN={authority} -keyout {authority}.key -out {authority}.pem"
        _openssl(folder, f"{command} -addext keyUsage=critical,keyCertSign,cRLSign")  # Python 3.13's ssl insists
    for name, by, san in (
        ("server", "ca", "IP:127.0.0.1"),
        ("elsewhere", "ca", "IP:127.0.0.9"),
        ("client", "ca", "DNS:envoy"),
        ("stranger", "other", "DNS:envoy"),
        ("spiffe", "ca", f"URI:{SPIFFE}"),
        ("among", "ca", "DNS:somebody,DNS:ENVOY"),
        ("neighbour", "ca", "DNS:envoy.example,DNS:xenvoy"),
        ("upper", "ca", f"URI:{SPIFFE.upper()}"),
        ("uri", "ca", "URI:envoy"),  # the allowed DNS name as another kind of name
        ("dns", "ca", f"DNS:{SPIFFE}"),
        ("email", "ca", "email:envoy"),
        ("next-server", "other", "IP:127.0.0.1"),
    ):
        _signed(folder, name, by, san)
    _openssl(folder, f"req -x509 {KEY} -days 2 -subj /CN=envoy -CA ca.pem -CAkey ca.key -keyout cn.key -out cn.pem")
    for name, san in (("expired-server", "IP:127.0.0.1"), ("expired-client", "DNS:envoy")):
        _expired(folder, name, san)
    return folder


KEY = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"


def _openssl(folder: Path, command: str) -> None:
    done = subprocess.run(["openssl", *command.split()], cwd=folder, capture_output=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr


def _signed(folder: Path, name: str, by: str, san: str) -> None:
    command = (
        f"req -x509 {KEY} -days 2 -subj /CN={name} -CA {by}.pem -CAkey {by}.key -keyout {name}.key -out {name}.pem"
    )
    _openssl(folder, f"{command} -addext subjectAltName={san} -addext basicConstraints=critical,CA:FALSE")


def _expired(folder: Path, name: str, san: str) -> None:
    """As `_signed`, for a day in 2020."""
    (folder / "index").write_text("")
    (folder / "ca.cnf").write_text(
        "[ca]\ndefault_ca=d\n[d]\ndatabase=index\nnew_certs_dir=.\nrand_serial=yes\ndefault_md=sha256\npolicy=p\n"
        "copy_extensions=copyall\n[p]\ncommonName=supplied\n"
    )
    _openssl(folder, f"req {KEY} -subj /CN={name} -addext subjectAltName={san} -keyout {name}.key -out {name}.csr")
    dates = "-startdate 20200101000000Z -enddate 20200102000000Z"
    _openssl(
        folder,
        f"ca -config ca.cnf -batch -notext -cert ca.pem -keyfile ca.key {dates} -in {name}.csr -out {name}.pem",
    )


def _flags(certs: Path, server: str = "server", *sans: str) -> list[str]:
    flags = [f"--tls-cert={certs}/{server}.pem", f"--tls-key={certs}/{server}.key", f"--tls-client-ca={certs}/ca.pem"]
    return [*flags, *(f"--tls-client-san={san}" for san in sans)]


@pytest.fixture
def policy(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    return path


PAIRS = {
    ("server", "client"): True,
    ("server", "spiffe"): True,
    ("server", "neighbour"): False,  # not in the router's list
    ("server", "stranger"): False,  # signed by somebody else
    ("server", None): False,  # shows no certificate
    ("server", "expired-client"): False,
    ("elsewhere", "client"): False,  # the router's certificate is for another address
    ("expired-server", "client"): False,
    ("next-server", "client"): False,  # signed by an authority that Envoy does not know
}


async def test_only_the_right_certificates_talk(tmp_path, policy, certs):
    """A chat completion for each pair: one Envoy with a listener for each, one router for each of its certificates."""
    engine = load(policy).engine
    async with AsyncExitStack() as stack:
        routers = {}
        for server in {server for server, _ in PAIRS}:
            (tmp_path / server).mkdir()
            flags = _flags(certs, server, "envoy", SPIFFE)
            starting = router(policy, tmp_path / server, *flags, listen="127.0.0.1:0")
            routers[server] = await stack.enter_async_context(starting)
        upstreams = await stack.enter_async_context(echoes(engine))

        def listeners(config: dict) -> None:
            static = config["static_resources"]
            static["listeners"].clear()
            for (server, client), name in names.items():
                pair = () if client is None else (f"{certs}/{client}.pem", f"{certs}/{client}.key")
                place = Place("127.0.0.1:0", routers[server].address, None, upstreams, Mtls(f"{certs}/ca.pem", *pair))
                text = json.dumps(render(engine, place)["static_resources"]).replace('"pointsman"', f'"{name}"')
                rendered = json.loads(text)
                static["listeners"] += [{**each, "name": name} for each in rendered["listeners"]]
                static["clusters"] += [each for each in rendered["clusters"] if each["name"] == name]

        names = {pair: f"pair-{number}" for number, pair in enumerate(PAIRS)}
        mtls = Mtls(f"{certs}/ca.pem", f"{certs}/client.pem", f"{certs}/client.key")
        address = routers["server"].address
        await stack.enter_async_context(envoy(engine, address, upstreams, tmp_path, mtls, listeners))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        admin = f"http://{(tmp_path / 'envoy-admin').read_text()}"
        async with session.get(f"{admin}/listeners?format=json") as got:
            found = (await got.json())["listener_statuses"]
        ports = {each["name"]: each["local_address"]["socket_address"]["port_value"] for each in found}

        async def worked(pair: tuple[str, str | None]) -> bool:
            url = f"http://127.0.0.1:{ports[names[pair]]}/v1/chat/completions"
            async with session.post(url, json=chat()) as answer:
                assert answer.status == 200 or answer.status >= 500
                return answer.status == 200

        assert dict(zip(PAIRS, await asyncio.gather(*map(worked, PAIRS)), strict=True)) == PAIRS
        decided = {
            server: (await each.metrics())["pointsman_decision_duration_seconds_count{}"]
            for server, each in routers.items()
        }
        assert decided == {server: 2 if server == "server" else 0 for server in routers}


async def test_a_client_outside_of_the_list_gets_nothing(tmp_path, policy, certs):
    outside = ("neighbour", "upper", "uri", "dns", "email", "cn")
    async with router(policy, tmp_path, *_flags(certs, "server", "Envoy", SPIFFE), listen="127.0.0.1:0") as running:
        for name in ("client", "among", "spiffe"):
            assert await _talk(running.address, certs, name) == (b"\x08\x01", "request_headers")
        for name in outside:
            for method in (PROCESS, CHECK):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await _call(running.address, certs, name, method)
                assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED, name
        assert (await running.metrics())["pointsman_streams_inflight{}"] == 0
        # A line for each of them, not for each of their streams; the last four show no name at all that counts.
        refused = [line["names"] for line in running.logged("client_refused")]
        assert refused == [["envoy.example", "xenvoy"], [SPIFFE.upper()], []]


async def _call(address: str, certs: Path, client: str, method: str) -> bytes:
    """The first message that comes back. Raises AioRpcError."""
    key, chain = (certs / f"{client}.key").read_bytes(), (certs / f"{client}.pem").read_bytes()
    credentials = grpc.ssl_channel_credentials((certs / "ca.pem").read_bytes(), key, chain)
    async with grpc.aio.secure_channel(address, credentials) as channel:
        # Not stream_stream: grpc.aio reports INTERNAL when a stream has ended before its message was written.
        call = channel.unary_stream(method)(HEADERS.SerializeToString() if method == PROCESS else b"", timeout=PATIENCE)
        async for message in call:
            found: bytes = message
            return found
        raise AssertionError(f"no answer: {await call.code()}")


HEADERS = pb.ProcessingRequest()
HEADERS.request_headers.headers.headers.add(key=":path", raw_value=b"/v1/chat/completions")
HEADERS.request_headers.headers.headers.add(key=":method", raw_value=b"POST")


async def _talk(address: str, certs: Path, client: str) -> tuple[bytes, str | None]:
    """What the health check says, and the kind of the first answer of a Process stream."""
    answer = pb.ProcessingResponse.FromString(await _call(address, certs, client, PROCESS))
    return await _call(address, certs, client, CHECK), answer.WhichOneof("response")


def _files(certs: Path, name: str, authorities: str) -> dict[str, str]:
    """A Secret as cert-manager writes it."""
    bundle = "".join((certs / f"{each}.pem").read_text() for each in authorities.split())
    return {
        "tls.crt": (certs / f"{name}.pem").read_text(),
        "tls.key": (certs / f"{name}.key").read_text(),
        "ca.crt": bundle,
    }


SECRETS = {
    "router-cert": "tls_certificate: {certificate_chain: {filename: D/tls.crt}, private_key: {filename: D/tls.key}}",
    "router-ca": "validation_context: {trusted_ca: {filename: D/ca.crt}}",
}


def _secrets(folder: Path, certificates: Path) -> Secrets:
    """Envoy's secrets, as docs/operate.md has them."""
    for name, secret in SECRETS.items():
        kind = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
        text = f'resources:\n  - "@type": {kind}\n    name: {name}\n    {secret}\n'
        (folder / f"{name}.yaml").write_text(text.replace("D/", f"{certificates}/"))
    return Secrets(str(folder))


def _reconnect(config: dict) -> None:
    """Have Envoy open a new connection to the router, with a new handshake, after every tenth request."""
    cluster = next(each for each in config["static_resources"]["clusters"] if each["name"] == "pointsman")
    (options,) = cluster["typed_extension_protocol_options"].values()
    options["common_http_protocol_options"] = {"max_requests_per_connection": 10}


async def _shown(address: str, certs: Path) -> str:
    """The common name of the certificate that the router shows now."""
    context = ssl.create_default_context(cafile=str(certs / "ca.pem"))
    context.load_verify_locations(certs / "other.pem")
    context.load_cert_chain(certs / "client.pem", certs / "client.key")
    context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    subject = dict(item[0] for item in writer.get_extra_info("peercert")["subject"])
    writer.close()
    return str(subject["commonName"])


async def test_certificates_are_rotated_under_load(tmp_path, policy, certs):
    """Both sides' certificates go to another authority and back, each with the link swap of a mounted Secret.

    At the end Envoy no longer trusts the first authority, so no connection to an old certificate can still be made.
    """
    engine = load(policy).engine
    ours, envoys = tmp_path / "router-tls", tmp_path / "envoy-tls"
    for folder in (ours, envoys):
        folder.mkdir()
    mount(ours, _files(certs, "server", "ca other"))
    mount(envoys, _files(certs, "client", "ca other"))
    flags = [f"--tls-cert={ours}/tls.crt", f"--tls-key={ours}/tls.key", f"--tls-client-ca={ours}/ca.crt"]
    flags.append("--tls-client-san=envoy")
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(router(policy, tmp_path, *flags, listen="127.0.0.1:0"))
        upstreams = await stack.enter_async_context(echoes(engine))
        secrets = _secrets(tmp_path, envoys)
        base = await stack.enter_async_context(envoy(engine, running.address, upstreams, tmp_path, secrets, _reconnect))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        admin = f"http://{(tmp_path / 'envoy-admin').read_text()}"

        async def updates() -> int:
            """How often Envoy has put a new client certificate into use."""
            async with session.get(f"{admin}/stats?filter=client_ssl_socket_factory.ssl_context_update_by_sds") as got:
                return int((await got.text()).rpartition(" ")[2])

        load_ = await stack.enter_async_context(Load(base))
        await load_.more(50)
        turns = [("next-server", "stranger", "ca other"), ("server", "client", "ca other")] * (ROTATIONS // 2)
        # Envoy may forget an authority only when the router shows a certificate of the other one.
        for server, client, trusted in [*turns, ("next-server", "stranger", "other")]:
            seen = await updates()
            mount(ours, _files(certs, server, "ca other"))
            assert await _shown(running.address, certs) == server
            mount(envoys, _files(certs, client, trusted))

            async def followed(seen: int = seen) -> bool:
                return await updates() > seen

            await eventually(followed)
            await load_.more(50)
        assert load_.failures == []
        handshakes = await session.get(f"{admin}/stats?filter=cluster.pointsman.ssl.handshake")
        assert int((await handshakes.text()).rpartition(" ")[2]) > ROTATIONS
    assert len(running.logged("tls_files_loaded")) >= ROTATIONS
    assert running.logged("client_refused") == []


async def test_half_of_a_rotation_changes_nothing(tmp_path, policy, certs):
    """A new certificate with the old key: the old pair stays, the log says why, and the other half mends it."""
    for end in ("pem", "key"):
        (tmp_path / f"server.{end}").write_bytes((certs / f"server.{end}").read_bytes())
    flags = _flags(certs)[2:]
    flags += [f"--tls-cert={tmp_path}/server.pem", f"--tls-key={tmp_path}/server.key"]
    async with router(policy, tmp_path, *flags, listen="127.0.0.1:0") as running:
        assert await _shown(running.address, certs) == "server"
        (tmp_path / "server.pem").write_bytes((certs / "next-server.pem").read_bytes())
        assert [await _shown(running.address, certs) for _ in range(3)] == ["server"] * 3
        (rejected,) = running.logged("tls_files_rejected")
        assert "KEY_VALUES_MISMATCH" in rejected["reason"]
        (tmp_path / "server.key").write_bytes((certs / "next-server.key").read_bytes())
        assert await _shown(running.address, certs) == "next-server"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--tls-cert=server.pem", "--tls-key=client.key"], "server.pem, client.key: .*KEY_VALUES_MISMATCH"),
        (["--tls-cert=server.pem", "--tls-key=absent.key"], "server.pem, absent.key: .*No such file"),
        (["--tls-cert=server.pem", "--tls-key=server.key", "--tls-client-ca=ca.key"], "ca.key: "),
        (["--tls-cert=server.pem", "--tls-key=server.key", "--tls-client-san=envoy"], "--tls-client-ca"),
    ],
)
@pytest.mark.parametrize("workers", ["1", "2"])
def test_files_that_cannot_work_are_named_at_the_start(policy, certs, workers, flags, says, capsys, monkeypatch):
    import re

    from cli.main import main

    monkeypatch.chdir(certs)
    monkeypatch.setattr("extproc.records.log.setup", lambda *_: None)
    assert main(["serve", str(policy), "--workers", workers, "--listen", "127.0.0.1:0", *flags]) == 2
    assert re.search(says, capsys.readouterr().err)
