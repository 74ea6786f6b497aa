"""A command that is called wrongly ends with status 2, whatever the files hold that it names, and says why."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from cli.main import COMMANDS, main
from tests.cli.conftest import POLICY

URL = "http://127.0.0.1:1"
COLLECT = "stepwise collect --work w --set policy --questions q.jsonl"

WRONG = [
    ("", "the following arguments are required: COMMAND"),
    ("fly", "invalid choice: 'fly'"),
    ("validate", "the following arguments are required: POLICY"),
    ("validate - -", "only one POLICY can be standard input"),
    ("validate p.yaml --rendered nowhere", "there is no such folder"),
    ("validate p.yaml --output xml", "invalid choice: 'xml'"),
    ("explain p.yaml - --answer -", "only one of REQUEST.json and --answer can be standard input"),
    ("explain p.yaml - -H tier", "write NAME:VALUE"),
    ("test p.yaml", "the following arguments are required: CASES.yaml"),
    ("test p.yaml cases.yaml --cover", "unrecognized arguments: --cover"),
    ("replay p.yaml", "the following arguments are required: REQUESTS.jsonl"),
    ("replay p.yaml nowhere.jsonl", "nowhere.jsonl: No such file or directory"),
    ("import nginx p.yaml", "invalid choice: 'nginx'"),
    ("schema model", "invalid choice: 'model'"),
    ("completion cmd", "invalid choice: 'cmd'"),
    ("up p.yaml --envoy-port 70000", "'70000': write a whole number from 1 to 65535"),
    ("up p.yaml --admin-port -1", "'-1': write a whole number from 0 to 65535"),
    ("serve p.yaml --workers 0", "'0': write a whole number from 1 to 256"),
    ("serve p.yaml --grace soon", "'soon': write a number from 0.0 to 3600.0"),
    ("serve p.yaml --canary 200", "'200': write a number from 0.0 to 100.0"),
    ("serve p.yaml --canary 20", "--canary needs a --candidate"),
    ("serve p.yaml --decision-log-sample nan", "'nan': write a number from 0.0 to 1.0"),
    ("serve p.yaml --decision-log-buffer 1.5", "'1.5': write a whole number from 1 to 65536"),
    ("serve p.yaml --models-through envoy", "'envoy': write a URL such as http://"),
    ("serve p.yaml --gateway http://x:70000", "'http://x:70000': write a URL such as http://"),
    ("serve p.yaml --workers 1 --listen here", "listen address 'here': write host:port"),
    ("serve p.yaml --tls-cert c.pem", "TLS needs both --tls-cert and --tls-key"),
    ("serve p.yaml --tls-client-san a", "--tls-client-san needs --tls-client-ca"),
    ("render p.yaml", "the following arguments are required: --for"),
    ("render p.yaml --for envoy", "no upstream for small, large"),
    ("render p.yaml --for envoy --upstream small", "--upstream 'small': write MODEL=URL"),
    (f"render p.yaml --for envoy --upstream tiny={URL}", "no such model in the policy: tiny"),
    ("render served.yaml --for envoy --upstream small=x", "--upstream small: url 'x': write http://host:port"),
    ("render served.yaml --for istio --upstream small=http://10.0.0.1", "--upstream small: Istio routes to services"),
    ("render served.yaml --for envoy-gateway --upstream small=http://a", "--upstream small: 'a' is not a full name"),
    ("render served.yaml --for envoy --listen x", "--listen"),
    ("render served.yaml --for envoy --gateway x", "--gateway: that is for --for envoy-gateway and --for istio"),
    ("render served.yaml --for envoy --cors x", "--cors 'x': write an origin"),
    ("render served.yaml --for envoy --router-key k.pem", "give --router-ca"),
    ("render served.yaml --for envoy -o p.yaml", "that is a file"),
    ("render served.yaml --for istio --gateway-labels x", "--gateway-labels 'x': write KEY=VALUE"),
    ("render served.yaml --for istio --service x:y", "--service x:y: write NAME or NAME:PORT"),
    ("stepwise train", "the following arguments are required: --work"),
    (COLLECT, "needs the models: --small-url and --large-url, or --writer"),
    (f"{COLLECT} --small-url {URL}", "--small-url and --large-url belong together"),
    (f"stepwise calibrate --work w --large-url {URL}", "--small-url and --large-url belong together"),
    (f"{COLLECT} --small-url x --large-url x", "'x': write a URL such as http://"),
    (f"{COLLECT} --writer no_such_module", "is its folder in PYTHONPATH?"),
    ("stepwise evaluate --work w --writer json", "the module has no open_writer(limits)"),
    (f"{COLLECT} --writer json --count 0", "'0': write a whole number from 1 on"),
    (f"{COLLECT} --writer json --temperature -1", "'-1': write a number from 0.0 on"),
    (f"{COLLECT} --writer json --price-large nan", "'nan': write a number from 0.0 on"),
    (f"{COLLECT} --writer json --max-tokens 3", "--max-tokens 3 is less than --min-tokens 8"),
    (f"{COLLECT} --writer json --answer-tokens 3", "--answer-tokens 3 is less than --min-tokens 8"),
    (f"{COLLECT} --writer tests.cli.test_called --temperature 1", "has no open_writer(limits, temperature)"),
    ("stepwise train --work w --updates 0", "'0': write a whole number from 1 on"),
    ("stepwise calibrate --work w --delta 2", "'2': write a number from 0.0 to 1.0"),
    ("stepwise calibrate --work w --policy x.onnx", "so for --algorithm vtrace-ask"),
    ("stepwise evaluate --work w --latency -1", "'-1': write a whole number from 0 on"),
    ("stepwise export --work w", "the following arguments are required: --out"),
    ("stepwise inspect nowhere.onnx", "nowhere.onnx: cannot read the policy file"),
    ("select train o.jsonl --out f --price small", "--price small: write MODEL=NUMBER"),
    ("select train o.jsonl --out f --by ema", "--by ema: a file is read by"),
    ("select train o.jsonl --out f --seed -1", "'-1': write a whole number from 0 on"),
    ("select questions o.jsonl --count 0", "'0': write a whole number from 1 on"),
    ("select questions o.jsonl --of nan", "'nan': write a number from 0.0 on"),
    ("select evaluate o.jsonl --stream", "give --file, or --policy, or --by"),
    ("select evaluate o.jsonl --by nobody", "give --file, or --policy, or --by"),
    ("select evaluate o.jsonl --by ema --price c=1", "--price c=1: write MODEL=NUMBER, with one of a, b"),
    ("select evaluate o.jsonl --by ema --at-least 7", "'7': write a number from 0.0 to 1.0"),
    ("select evaluate o.jsonl --policy chooses.yaml --decision x", "--decision x: the policy has no such decision"),
    ("select inspect", "say where it is: --policy POLICY"),
    ("select inspect f --policy p.yaml", "give FILE, or --policy, or --admin, and only one of them"),
    ("select inspect --policy p.yaml", "has no state store"),
    ("select export", "say where it is: --policy POLICY"),
    ("select import learned.json", "say where it is: --policy POLICY"),
    ("select reset --admin localhost:80", "'localhost:80': write a URL such as http://"),
    ("select reset --admin 'http://a b/'", "'http://a b/': write a URL such as http://"),
]


def open_writer(limits: object) -> None:
    """What a module for `--writer` has; this one writes greedily only."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    models = "models:\n  small: {url: 'http://small.svc'}\n  large: {url: 'http://large.svc'}\n"
    rest = "version: 1\ndefault: small\n"
    (tmp_path / "p.yaml").write_text(POLICY)
    (tmp_path / "served.yaml").write_text(rest + models)
    (tmp_path / "chooses.yaml").write_text(
        f"{rest}models: {{small: {{}}, large: {{}}}}\ndecisions: [{{name: rest, route: {{pick: [small, large]}}}}]\n"
    )
    (tmp_path / "q.jsonl").write_text('{"question": "1 + 1", "answer": "2"}\n')
    rows = [{"question": f"what is {at}", "scores": {"a": at % 2, "b": 1}} for at in range(20)]
    (tmp_path / "o.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "learned.json").write_text('{"decisions": {}}')
    return tmp_path


@pytest.mark.parametrize(("call", "says"), WRONG, ids=[call for call, _ in WRONG])
@pytest.mark.usefixtures("folder")
def test_a_command_that_is_called_wrongly_ends_with_2(capsys: pytest.CaptureFixture[str], call: str, says: str) -> None:
    words = shlex.split(call)
    try:
        status: int | str | None = main(words)
    except SystemExit as end:  # argparse's, with the usage before the line
        status = end.code
    printed = capsys.readouterr()
    assert (status, printed.out) == (2, "")
    last = printed.err.splitlines()[-1]
    assert says in last
    assert last.startswith("pointsman")


def test_every_command_is_called_wrongly() -> None:
    assert {call.split(" ")[0] for call, _ in WRONG} >= set(COMMANDS)


def test_what_a_file_holds_is_another_matter(folder: Path) -> None:
    """The same commands end with 1 where a line or a policy is wrong."""
    (folder / "o.jsonl").write_text("{}\n")
    for call in ("select train o.jsonl --out f", "select evaluate o.jsonl --by ema"):
        assert main(call.split()) == 1
    (folder / "served.yaml").write_text((folder / "served.yaml").read_text().replace("small.svc", "10.0.0.1"))
    assert main(["render", "served.yaml", "--for", "istio"]) == 1
    assert main(["stepwise", "inspect", "o.jsonl"]) == 1
