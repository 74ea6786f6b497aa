"""An API shape is one file and one line in the registry: shown with one that is not here, in a copy of the room."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from extproc.apis.registry import BY_NAME, SHAPES
from extproc.requests import paths

ROOT = Path(__file__).parents[3]
OLLAMA = '''
from extproc.apis.call import read_turns
from extproc.apis.shape import ApiShape, set_inside
import orjson


class Ollama(ApiShape):
    """Ollama's own chat (`POST /api/chat`), which streams lines of JSON unless it is told not to."""

    def __init__(self):
        super().__init__("ollama", {("api", "chat"): ""}, "chat")
        self.anywhere = True

    def read(self, call, fields):
        read_turns(call, fields.get("messages"), "messages")

    def streams(self, request):
        return request.fields.get("stream") is not False

    def cap(self, draft, model, limit):
        set_inside(draft, "options", "num_predict", limit)

    def error(self, refusal):
        return orjson.dumps({"error": refusal.text})

    def answer(self, given):
        return {"model": given.model, "message": {"role": "assistant", "content": given.text}, "done": True}

    def stream(self, given):
        yield orjson.dumps(self.answer(given)) + b"\\n"


OLLAMA = Ollama()
'''
USED = """
import orjson, re2
from cli.gateways.allowed import CALLS
from decisions.decision import Changes
from decisions.model import Model
from extproc.requests import paths
from extproc.requests import rewriting
from extproc.apis.registry import BY_NAME
from extproc.requests.body import parse
from extproc.refusal import Refusal
from extproc.static_answer import static_answer

target = paths.read("/proxy/API/chat")
assert target == paths.Target("ollama", "", None, "/proxy/api/chat"), target
assert re2.fullmatch(CALLS, "/proxy/api/chat")
body = orjson.dumps({"model": "auto", "messages": [{"role": "user", "content": "hi"}]})
request = parse(target, {}, {}, body)
assert (request.text(), request.asking.streams(request)) == ("hi", True)
changed = orjson.loads(rewriting.changed(request, Model("m", "served"), Changes(max_tokens=5)))
assert (changed["model"], changed["options"]) == ("served", {"num_predict": 5})
assert BY_NAME["ollama"].error(Refusal(403, "No.", "no")) == b'{"error":"No."}'
assert orjson.loads(static_answer(request, "No.").body)["message"]["content"] == "No."
"""


@pytest.mark.e2e
def test_another_api_is_one_file_and_one_line(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "extproc", tmp_path / "extproc")
    (tmp_path / "extproc/apis/ollama.py").write_text(OLLAMA)
    registry = tmp_path / "extproc/apis/registry.py"
    text = registry.read_text().replace("    GEMINI,\n", "    GEMINI,\n    OLLAMA,\n")
    registry.write_text(text.replace("\nfrom extproc", "\nfrom extproc.apis.ollama import OLLAMA\nfrom extproc", 1))
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run([sys.executable, "-P", "-c", USED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_api_has_a_name_of_its_own_and_ends_that_no_other_has() -> None:
    ends = [end for shape in SHAPES for end in shape.calls]
    assert len(BY_NAME) == len(SHAPES)
    assert len(set(ends)) == len(ends)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_the_plain_form_of_a_path_is_read_as_the_call_that_it_is(shape: object) -> None:
    for end, operation in shape.calls.items():  # type: ignore[attr-defined]
        target = paths.read("/v1/" + "/".join(end))
        assert target is not None
        assert (target.api, target.operation, target.path) == (shape.name, operation, None)  # type: ignore[attr-defined]
