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

from tests.patience import PATIENCE

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.image,
    pytest.mark.timeout(0),
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
    subprocess.run([str(ROOT / "k8s" / "image-root.sh"), str(folder)], check=True, env=environment)
    return folder / "opt" / "pointsman"


class Pod:
    """The router in namespaces of its own; `pid` is its own process, `log` what it says."""

    def __init__(self, process, log):
        self.process = process
        self.log = log

    def ready(self):
        """Its line about being ready, waited for."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            exited = self.process.poll() is not None
            text = self.log.read_text()
            for line in text.splitlines():
                if '"event":"ready"' in line:
                    return json.loads(line)
            assert not exited, text
            time.sleep(0.02)
        raise AssertionError(self.log.read_text())

    @property
    def pid(self):
        (child,) = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(child)

    def run(self, *command):
        """Run `command` in the namespaces of the pod."""
        enter = ["nsenter", "--target", str(self.pid), "--mount", "--net"]
        return subprocess.run([*enter, *command], capture_output=True, text=True, timeout=PATIENCE, check=False)

    def get(self, path):
        script = f"import urllib.request as u; print(u.urlopen('http://127.0.0.1:8080{path}').read().decode())"
        return self.run("/opt/pointsman/bin/python", "-c", script)

    def cpu_seconds(self):
        """Processor time that the router has taken since it was started, its interpreter's included."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture
def pod(image, tmp_path):
    environment = {
        **os.environ,
        "IMAGE": str(image),
        "PREFIX": sys.base_prefix,
        "POLICY": str(ROOT / "examples" / "policy.yaml"),
    }
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["unshare", "--mount", "--net", "--fork", "--kill-child", "sh", "-c", INSIDE],
            env=environment, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    yield Pod(process, log)
    if process.poll() is None:
        process.kill()
    process.wait(timeout=PATIENCE)


def test_it_becomes_ready_unprivileged_on_a_read_only_root_without_a_network(pod):
    ready = pod.ready()
    # Its own clock begins after the interpreter's start; processor time counts that too, and no other process's.
    cpu = pod.cpu_seconds()
    assert cpu <= 2
    assert ready["seconds"] <= 2 or ready["seconds"] > 2 * cpu  # for the most part it waited for a processor
    answer = pod.get("/readyz")
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["policy"] == ready["policy"]
    status = Path(f"/proc/{pod.pid}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert set(fields["Uid"].split()) == {"65532"}
    assert int(fields["CapEff"], 16) == 0
    links = pod.run("ip", "-brief", "link")
    assert [line.split()[0] for line in links.stdout.splitlines()] == ["lo"]
    assert pod.run("touch", "/opt/pointsman/x", "/etc/x").returncode != 0
    os.kill(pod.pid, signal.SIGTERM)
    assert pod.process.wait(timeout=PATIENCE) == 0


def test_it_carries_no_installer_and_no_envoy(image):
    names = {path.name.partition("-")[0].lower() for path in image.glob("lib/python3*/site-packages/*")}
    assert "pip" not in names
    assert "envoy" not in names
    assert {"cli", "extproc", "signals"} <= names
