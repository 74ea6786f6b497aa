"""What all tests share: what takes long and is always the same is done once per process."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Generator, Hashable
from functools import cache
from pathlib import Path
from typing import Any

import httpcore2
import pytest
from hypothesis import settings

from examples.tinylm import engine
from signals.kinds.language import Identifier
from signals.neural.service import Inference
from signals.signal import Shared

HERE = Path(__file__).parent

# An overloaded machine makes an example late, never wrong.
settings.register_profile("unhurried", deadline=None)
# For the quick loop (`make test-fast`): a quarter of the examples, where a property does not say how many it wants.
settings.register_profile("few", deadline=None, max_examples=25)
settings.load_profile("unhurried")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Python's collector leaves alone what collecting the tests makes, which stays, and looks at the rest seldom, as in
    the service. It would take a seventh of what the tests take."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()
        gc.set_threshold(20_000, 2, 10)


@pytest.fixture(autouse=True, scope="module")
def left_behind() -> Generator[None]:
    """What a file's tests leave behind, such as a connection that nobody closed, is found at the end of that file. What
    lives on after that, the collector leaves alone: it would look at all of it again for every test that calls it."""
    yield
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What stands in `tests` itself comes first: some of it waits for a third of a minute, for the package index or for
    other processes, and at the end the tests beside it would be over before."""
    items.sort(key=lambda item: item.path.parent != HERE)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """What a test without coverage starts has none either."""
    started = os.environ.pop("COVERAGE_PROCESS_CONFIG", None) if item.get_closest_marker("no_cover") else None
    try:
        return (yield)
    finally:
        if started is not None:
            os.environ["COVERAGE_PROCESS_CONFIG"] = started


_shipped: dict[Hashable, Any] = {}
load_anew = Inference.loaded
"""What takes a model from the engines that live at the same time, and loads it where none has it."""


def _loaded(self: Inference, kind: type[Any], key: Hashable, load: Callable[[], Any]) -> Any:
    """The shipped models are kept from one test to the next: hundreds of engines have them, and would load them."""
    if kind.__name__ not in ("Heads", "MeaningTable"):
        return load_anew(self, kind, key, load)
    return load_anew(self, kind, key, lambda: _shipped.get((kind, key)) or _shipped.setdefault((kind, key), load()))


Inference.loaded = _loaded  # type: ignore[method-assign]

_kept = Shared()
_use_anew = Shared.use


def _used(self: Shared, factory: Callable[..., Any], *args: Hashable) -> Any:
    """The shipped model of languages is kept as well."""
    return _use_anew(_kept if factory is Identifier and not args else self, factory, *args)


Shared.use = _used  # type: ignore[method-assign]

# SDKs make a client for each test, and each client reads all certificates of the machine, though it asks in plain HTTP.
httpcore2.default_ssl_context = cache(httpcore2.default_ssl_context)

# The networks of tinylm, of which dozens of tests start a server.
_load_anew = engine.loaded
_networks = cache(_load_anew)
engine.loaded = lambda path: (_networks if path.parent == engine.WEIGHTS else _load_anew)(path)
