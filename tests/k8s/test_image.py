"""The image's files start as UID 65532 on a read-only root, with loopback alone, as in a locked-down pod."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="mount namespaces need root here"),
    pytest.mark.skipif(not all(map(shutil.which, ("unshare", "setpriv", "ip"))), reason="needs unshare, setpriv, ip"),
]

INSIDE = textwrap.dedent(
    """
    set -e
    ip link set lo up
    mount -t tmpfs tmpfs /opt
    mkdir /opt/pointsman /opt/python
    mount --bind "$IMAGE" /opt/pointsman
    mount --bind "$PREFIX" /opt/python
    mount -t tmpfs -o mode=755 tmpfs /mnt
    mkdir /mnt/policy && cp "$POLICY" /mnt/policy/policy.yaml
    # The interpreter may live where only root can look; a real image has it in /usr/local.
    case "$PREFIX" in
    /root/*) mount -t tmpfs -o mode=755 tmpfs /root; mkdir -p "$PREFIX"; mount --bind /opt/python "$PREFIX";;
    esac
    mount -o remount,ro,bind /mnt
    mount -o remount,ro,bind /opt
    mount -o remount,ro,bind /
    mount -t tmpfs -o mode=1777 tmpfs /tmp
    cd /
    exec setpriv --reuid=65532 --regid=65532 --clear-groups --no-new-privs --inh-caps=-all --bounding-set=-all \\
        env -i /opt/pointsman/bin/python -m cli.main serve /mnt/policy/policy.yaml \\
        --listen=unix:/tmp/ext_proc.sock --admin=127.0.0.1:8080 --workers=1 --drain-wait=0 --log-format=json
    """
)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    built = os.environ.get("POINTSMAN_IMAGE_ROOT")  # build/image-root of `make image-root`, to save a minute
    if built:
        return Path(built).resolve() / "opt" / "pointsman"
    folder = tmp_path_factory.mktemp("image")
    environment = {**os.environ, "PYTHON": sys.executable}
    subprocess.run([str(ROOT / "k8s" / "image-root.sh"), str(folder)], check=True, env=environment, timeout=550)
    return folder / "opt" / "pointsman"


@pytest.fixture
def pod(image):
    environment = {
        **os.environ,
        "IMAGE": str(image),
        "PREFIX": sys.base_prefix,
        "POLICY": str(ROOT / "examples" / "policy.yaml"),
    }
    started = time.monotonic()
    process = subprocess.Popen(
        ["unshare", "--mount", "--net", "--fork", "--kill-child", "sh", "-c", INSIDE],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    yield process, started
    if process.poll() is None:
        process.kill()
    process.communicate(timeout=10)


def inside(process, *command):
    """Run `command` in the namespaces of the pod."""
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return subprocess.run(
        ["nsenter", "--target", child, "--mount", "--net", *command], capture_output=True, text=True, timeout=20
    ), int(child)


def get(process, path):
    script = f"import urllib.request as u; print(u.urlopen('http://127.0.0.1:8080{path}', timeout=5).read().decode())"
    return inside(process, "/opt/pointsman/bin/python", "-c", script)[0]


def test_it_becomes_ready_unprivileged_on_a_read_only_root_without_a_network(pod):
    process, started = pod
    ready = None
    while time.monotonic() - started < 60:
        ready = get(process, "/readyz")
        if ready.returncode == 0:
            break
        assert process.poll() is None, process.stdout.read()
    assert ready is not None
    assert ready.returncode == 0, ready.stderr
    assert json.loads(ready.stdout)["policy"].startswith("sha256:")
    _, child = inside(process, "true")
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{child}/status").read_text().splitlines() if ":\t" in line
    )
    assert set(status["Uid"].split()) == {"65532"}
    assert int(status["CapEff"], 16) == 0
    links, _ = inside(process, "ip", "-brief", "link")
    assert [line.split()[0] for line in links.stdout.splitlines()] == ["lo"]
    written, _ = inside(process, "touch", "/opt/pointsman/x", "/etc/x")
    assert written.returncode != 0
    os.kill(child, signal.SIGTERM)
    assert process.wait(timeout=20) == 0


def test_it_carries_no_installer_and_no_envoy(image):
    names = {path.name.partition("-")[0].lower() for path in image.glob("lib/python3*/site-packages/*")}
    assert "pip" not in names
    assert "envoy" not in names
    assert {"cli", "extproc", "signals"} <= names
