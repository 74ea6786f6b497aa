from __future__ import annotations

import os
from pathlib import Path

import pytest

from config.problem import PolicyError
from config.watch import Rejected, Watcher, cases_file, load

GOOD = "version: 1\nmodels: {small: {name: s}}\ndefault: small\n"


def _configmap(folder: Path, generation: int, text: str) -> None:
    """Write a ConfigMap volume the way kubelet does: a new data folder, then `..data` swapped to it by rename."""
    data = folder / f"..2026_{generation}"
    data.mkdir()
    (data / "policy.yaml").write_text(text)
    (folder / "..data_tmp").symlink_to(data.name)
    os.rename(folder / "..data_tmp", folder / "..data")
    if not (folder / "policy.yaml").is_symlink():
        (folder / "policy.yaml").symlink_to("..data/policy.yaml")


async def test_a_configmap_swap_is_seen_once(tmp_path):
    _configmap(tmp_path, 1, GOOD)
    watcher = Watcher(tmp_path / "policy.yaml", interval=0.01)
    assert not await watcher.changed()
    _configmap(tmp_path, 2, GOOD + "# new\n")
    assert await watcher.changed()
    assert not await watcher.changed()


async def test_a_swap_to_the_same_content_reloads_nothing(tmp_path):
    _configmap(tmp_path, 1, GOOD)
    watcher = Watcher(tmp_path / "policy.yaml", interval=0.01)
    _configmap(tmp_path, 2, GOOD)
    assert not await watcher.changed()


async def test_a_file_that_is_away_is_waited_for(tmp_path):
    policy = tmp_path / "policy.yaml"
    policy.write_text(GOOD)
    watcher = Watcher(policy, interval=0.01)
    policy.unlink()
    assert not await watcher.changed()
    policy.write_text(GOOD + "# back\n")
    assert await watcher.changed()


async def test_a_changed_cases_file_reloads_too(tmp_path):
    policy = tmp_path / "policy.yaml"
    policy.write_text(GOOD)
    watcher = Watcher(policy, interval=0.01)
    cases_file(policy).write_text("cases: []\n")
    assert await watcher.changed()


async def test_a_rewrite_of_the_same_length_within_one_second_is_seen(tmp_path):
    policy = tmp_path / "policy.yaml"
    policy.write_text(GOOD + "# a\n")
    watcher = Watcher(policy, interval=0.01)
    policy.write_text(GOOD + "# b\n")
    assert await watcher.changed()


def test_load_builds_from_the_bytes_it_returns(tmp_path):
    policy = tmp_path / "policy.yaml"
    policy.write_text(GOOD)
    loaded = load(policy)
    assert loaded.source == GOOD.encode()
    assert loaded.engine.policy.startswith("sha256:")


def test_a_bad_policy_and_a_missing_one_raise(tmp_path):
    (tmp_path / "bad.yaml").write_text("version: 1\nmodels: {}\n")
    with pytest.raises(PolicyError):
        load(tmp_path / "bad.yaml")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.yaml")


def test_the_gate_sees_the_cases_beside_the_policy_and_can_refuse(tmp_path):
    policy = tmp_path / "policy.yaml"
    policy.write_text(GOOD)
    seen: list[Path] = []
    load(policy, lambda engine, cases: seen.append(cases))
    assert seen == []  # no cases file, nothing to run
    cases_file(policy).write_text("cases: []\n")

    def refuse(engine: object, cases: Path) -> None:
        seen.append(cases)
        raise Rejected("case 1: expected large, got small")

    with pytest.raises(Rejected, match="case 1"):
        load(policy, refuse)
    assert seen == [tmp_path / "policy.cases.yaml"]
