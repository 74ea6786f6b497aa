"""How many examples of a property are tried: a few each time, and many with `make test-volume`."""

from __future__ import annotations

import pytest


def few_and_many(few: int, many: int) -> pytest.MarkDecorator:
    """The parameter `examples` of a test, for hypothesis's `max_examples`: `few`, and in the tests of volume `many`."""
    return pytest.mark.parametrize("examples", [few, pytest.param(many, marks=pytest.mark.volume)])
