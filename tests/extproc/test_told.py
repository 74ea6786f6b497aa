"""What a decision shows outside: the models that may answer, in order."""

from __future__ import annotations

from decisions.decision import Decision, Trace
from decisions.model import Model
from extproc.told import metadata
from extproc.wire import Kind, reply
from tests.extproc.envoy import metadata as read_metadata
from tests.extproc.test_wire import read

LARGE, HOSTED = Model("large", "l"), Model("hosted", "h")


def _shown(model: Model) -> dict[str, object]:
    trace = Trace(Decision("d", "route", model), "sha256:0", {}, {}, 1.0)
    found: dict[str, object] = read_metadata(read(reply(Kind.REQUEST_BODY, (("a", "b"),), (), True) + metadata(trace)))
    return found


def test_the_model_and_those_that_take_its_place_are_told_in_order() -> None:
    assert _shown(Model("small", "s", fallback=(LARGE, HOSTED)))["candidates"] == "small,large,hosted"
    assert "candidates" not in _shown(LARGE)
