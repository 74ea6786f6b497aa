"""The generated code is what the schemas say, and lives beside Envoy's own descriptors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from proto import ext_proc_pb2
from tests.patience import PATIENCE

ROOT = Path(__file__).resolve().parents[2]


def test_committed_code_is_what_a_fresh_run_generates() -> None:
    done = subprocess.run(
        [sys.executable, "proto/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr


def test_check_names_the_file_that_differs(tmp_path: Path) -> None:
    (tmp_path / "proto").mkdir()
    for source in (ROOT / "proto").glob("*.p*"):
        (tmp_path / "proto" / source.name).write_bytes(source.read_bytes())
    schema = tmp_path / "proto" / "ext_proc.proto"
    schema.write_text(schema.read_text().replace("bool end_of_stream = 2;", "bool end_of_stream = 15;"))
    done = subprocess.run(
        [sys.executable, "proto/generate.py", "--check"], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 1
    assert "ext_proc_pb2.py" in done.stderr


def test_names_are_our_own_and_cannot_collide_in_a_descriptor_pool() -> None:
    assert ext_proc_pb2.DESCRIPTOR.package == "pointsman.ext_proc.v1"
    assert ext_proc_pb2.DESCRIPTOR.name == "proto/ext_proc.proto"


def test_streamed_immediate_response_is_field_11() -> None:
    fields = ext_proc_pb2.ProcessingResponse.DESCRIPTOR.fields_by_name
    assert fields["streamed_immediate_response"].number == 11
