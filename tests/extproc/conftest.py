from __future__ import annotations

import pytest

from tests.extproc.live import policy, swap


@pytest.fixture
def folder(tmp_path):
    """A mounted ConfigMap with a good policy."""
    mount = tmp_path / "policy"
    mount.mkdir()
    swap(mount, policy())
    return mount
