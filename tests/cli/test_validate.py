"""`validate`: its three forms and its exit statuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from signals.kinds.header import Header
from signals.registry import BY_NAME
from stepwise import agent
from tests.cli.conftest import Ran
from tests.stepwise.onnxes import metadata, write

Run = Callable[..., Ran]

MISTAKEN = """\
version: 2
models:
  small: {nam: org/small}
  large: {price: {input: -1}}
default: smal
signals:
  gold: {header: {name: x-tier, is: gold}}
  odd: {haeder: {name: x}}
  gold: {header: {name: x-tier, exists: true}}
decisions:
  - name: one
    when: glod
    route: large
  - name: two
    when: {any: []}
    route: lagre
  - name: three
    when: {at_least: {count: 3, of: [gold]}}
    respond: {status: 302}
  - name: two
    route: small
settings: {deadline: 50}
"""
MISTAKES = [
    (1, 10, "P104"),  # version
    (3, 11, "P101"),  # nam
    (4, 26, "P104"),  # price below zero
    (5, 10, "R202"),  # default
    (7, 33, "P101"),  # is
    (8, 9, "P105"),  # haeder
    (9, 3, "Y002"),  # gold again
    (12, 11, "R201"),  # glod
    (15, 17, "P107"),  # empty any
    (16, 12, "R202"),  # lagre
    (18, 30, "P104"),  # 3 of 1
    (19, 23, "P104"),  # status 302
    (20, 11, "R203"),  # two again
    (22, 22, "P104"),  # a duration without a unit
]


@pytest.mark.e2e
def test_envoy_s_definitions_are_read_for_rendered_configuration_alone(policy: Path) -> None:
    """They take a second, which who validates at each keystroke would wait for."""
    code = "import sys; from cli.main import main; main(sys.argv[1:]); print('envoy_data_plane' in sys.modules)"
    command = [sys.executable, "-c", code, "validate", str(policy)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[-1] == "False"


@pytest.mark.e2e
def test_a_small_policy_is_checked_without_what_runs_models_and_calls(policy: Path) -> None:
    """Importing it takes longer than everything else that `validate` does for such a policy."""
    heavy = ("numpy", "google.protobuf", "grpc", "onnxruntime", "tokenizers", "rapidfuzz", "phonenumbers", "extproc")
    code = (
        "import sys; from cli.main import main; status = main(sys.argv[1:])\n"
        f"print(status, [name for name in {heavy!r} if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, "validate", str(policy)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[-1] == "0 []"


@pytest.mark.e2e
def test_a_first_request_waits_for_no_import(policy: Path) -> None:
    """That of numpy takes a tenth of a second, in which the event loop would stand still."""
    code = (
        "import sys; from pathlib import Path; import extproc.serving.server; from config.watch import load\n"
        "from extproc.requests.body import parse; from extproc.requests.paths import Target\n"
        "engine = load(Path(sys.argv[1])).engine; before = set(sys.modules)\n"
        'body = b\'{"model": "auto", "messages": [{"role": "user", "content": "hi"}]}\'\n'
        "engine.settle(parse(Target('chat'), {}, {}, body)); print(sorted(set(sys.modules) - before))"
    )
    command = [sys.executable, "-c", code, str(policy)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_good_policy(run: Run, policy: Path) -> None:
    ran = run("validate", policy)
    assert (ran.status, ran.err) == (0, "")
    assert ran.out == f"{policy}: ok (2 models, 3 signals, 3 decisions)\n"
    assert run("validate", policy, "-o", "json").json() == []
    assert run("validate", policy, "-o", "github").out == ""


def test_twelve_and_more_different_mistakes_are_reported_at_once_with_line_and_column(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(MISTAKEN)
    ran = run("validate", path, "-o", "json")
    assert ran.status == 1
    found = ran.json()
    assert [(p["line"], p["column"], p["code"]) for p in found if p["severity"] == "error"] == MISTAKES
    assert set(found[0]) == {"file", "line", "column", "code", "severity", "message"}
    assert {p["file"] for p in found} == {str(path)}
    text = run("validate", path).out
    assert f"{path}:5:10: R202 unknown model 'smal' (did you mean 'small'?)" in text
    assert f"{path}:12:11: R201 unknown signal 'glod' (did you mean 'gold'?)" in text
    assert f"{path}:8:9: P105 unknown kind of signal 'haeder' (did you mean 'header'?)" in text


def test_unreachable_decisions_fail_and_unused_things_warn(run: Run, policy: Path) -> None:
    policy.write_text(policy.read_text() + "  - {name: never, when: {all: [bad, {not: bad}]}, route: large}\n")
    assert run("validate", policy).status == 1
    unused = policy.read_text().rsplit("  - ", 1)[0].replace("when: beta", "when: {any: [gold, bad]}")
    policy.write_text(unused)
    ran = run("validate", policy)
    assert ran.status == 0
    assert f"{policy}:9:3: L304 signal 'beta' is used by no decision [warning]\n" in ran.out
    assert ran.out.endswith("ok (2 models, 3 signals, 3 decisions)\n")


def test_github_shows_problems_beside_the_lines(run: Run, policy: Path, tmp_path: Path) -> None:
    odd = tmp_path / "a,b: 100%.yaml"
    odd.write_text(policy.read_text().replace("default: small", "default: nothing"))
    ran = run("validate", odd, "-o", "github")
    assert ran.status == 1
    assert (
        ran.out == f"::error file={tmp_path}/a%2Cb%3A 100%25.yaml,line=5,col=10,title=R202::unknown model 'nothing'\n"
    )


@pytest.mark.parametrize("content", [None, b"models: [\n", b"\xff\xfe", b""])
def test_unreadable_is_2_and_what_is_not_yaml_is_1(run: Run, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "policy.yaml"
    if content is not None:
        path.write_bytes(content)
    ran = run("validate", path, "-o", "json")
    if content is None:
        assert (ran.status, ran.out) == (2, "")
        assert ran.err == f"pointsman validate: {path}: No such file or directory\n"
    else:
        assert ran.status == 1
        assert json.loads(ran.out)[0]["code"] in ("Y001", "P102")


def test_what_cannot_be_built_is_a_problem_too(run: Run, policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Header):
        def __init__(self, *_: object) -> None:
            raise OSError("no such model")

    monkeypatch.setitem(BY_NAME, "header", Broken)
    found = run("validate", policy, "-o", "json").json()
    assert [(p["line"], p["code"]) for p in found] == [(7, "P108"), (8, "P108"), (9, "P108")]


def test_no_decisions_are_legal(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("version: 1\nmodels: {one: {}}\ndefault: one\ndecisions: []\n")
    assert run("validate", path).out == f"{path}: ok (1 model, 0 signals, 0 decisions)\n"


def test_opened_paths_that_the_router_reads_are_a_warning(run: Run, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    opened = "[{match: /v1/chat/completions}, {match: /v1/models/*}, {match: /v1/*}]"
    policy.write_text(f"version: 1\nmodels: {{m: {{}}}}\ndefault: m\npaths: {opened}\n")
    ran = run("validate", policy, "-o", "json")
    assert ran.status == 0
    found = [(each["code"], each["line"], each["column"]) for each in json.loads(ran.out)]
    assert found == [("L312", 4, 10), ("L312", 4, 41)]


def test_several_files_and_none_hides_another(run: Run, policy: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(MISTAKEN)
    ran = run("validate", policy, bad, policy, "-o", "json")
    assert ran.status == 1
    assert {p["file"] for p in json.loads(ran.out)} == {str(bad)}
    ran = run("validate", tmp_path / "none.yaml", bad, policy)
    assert ran.status == 2
    assert "none.yaml" in ran.err
    assert f"{bad}:1:10: P104" in ran.out
    assert ran.out.endswith(f"{policy}: ok (2 models, 3 signals, 3 decisions)\n")


def test_standard_input(run: Run, policy: Path) -> None:
    ran = run("validate", "-", stdin=policy.read_bytes())
    assert (ran.status, ran.out.split(" (")[0]) == (0, "<stdin>: ok")
    ran = run("validate", "-", stdin=b"version: 2\n")
    assert ran.status == 1
    assert "<stdin>:1:10: P104" in ran.out


STEPS = """\
version: 1
models: {small: {name: SMALL}, large: {name: huge}}
default: small
decisions:
  - name: steps
    stepwise: {small: small, large: large, BLOCK}
"""


@pytest.mark.parametrize(
    ("small", "block", "says"),
    [
        ("tiny", "policy: math", None),
        ("tiny", "policy: math, target: {accuracy_loss: 0.05}", None),
        ("tiny", "policy: loop, per: request", None),
        ("tiny", "strategy: cold-start", None),
        ("other", "policy: math", "trained for tiny and huge, but this decision has other and huge"),
        ("other", "policy: loop, per: request", "trained for tiny and huge, but this decision has other and huge"),
        ("tiny", "policy: math, target: {accuracy_loss: 0.005}", "calibrated targets: accuracy_loss: 0.01, "),
        (
            "tiny",
            "policy: math, step: {max_tokens: 100}",
            "the policy was trained with 1, 512 and blank; leave them out",
        ),
        ("tiny", "policy: nowhere", "no such file; looked for"),
        ("tiny", "policy: loop", "trained with other features than this version computes"),
        ("tiny", "strategy: cold-start, templates: {small: chat.jinja}", None),
        ("tiny", "strategy: cold-start, templates: {large: nowhere.jinja}", "nowhere.jinja: No such file or directory"),
        ("tiny", "strategy: cold-start, templates: {large: broken.jinja}", "broken.jinja: no chat template: line 2: "),
    ],
)
def test_what_a_stepwise_block_cannot_be_served_with_is_a_problem_at_its_place(
    run: Run, tmp_path: Path, small: str, block: str, says: str | None
) -> None:
    write(tmp_path / "math.onnx")
    loops = metadata(agent.NAMES, features_version=str(agent.VERSION))
    write(tmp_path / "loop.onnx", names=agent.NAMES, meta=loops)
    (tmp_path / "chat.jinja").write_text("{{ messages[0].content }}")
    (tmp_path / "broken.jinja").write_text("x\n{% if %}")
    path = tmp_path / "policy.yaml"
    path.write_text(STEPS.replace("SMALL", small).replace("BLOCK", block))
    for command in (["validate", path], ["serve", path, "--listen", "nowhere"]):
        ran = run(*command)
        said = ran.out + ran.err
        if says is None:
            assert "P108" not in said
        else:
            assert ran.status == 1
            assert f"{path}:6:5: P108 decision 'steps' (stepwise): " in said
            assert says in said
            assert len(said.splitlines()) == 1
    upstreams = ("--upstream", "small=http://127.0.0.1:1", "--upstream", "large=http://127.0.0.1:1")
    assert run("render", path, "--for", "envoy", "--router", "127.0.0.1:1", *upstreams).status == 0
