from __future__ import annotations

from tests.extproc.conftest import folder

__all__ = ["folder"]
