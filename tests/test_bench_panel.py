"""What `bench.panel` and `bench.panel_load` measure with: answers that are kept, votes over samples, paired times."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import panel_load
from bench.panel import PanelRun, asked, elected, endpoints, paired, plain, sample, share, texts
from examples.tinylm import problems


def run(right: bool) -> PanelRun:
    return PanelRun(right, 0, 9, 0.0, 0.0, 1)


@pytest.mark.slow
async def test_what_was_asked_once_is_not_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [problems.make(seed, 1) for seed in range(3)]
    kept = tmp_path / "kept.db"
    async with endpoints(None) as ends:
        alone = await texts(ends["small"], made, False, {})
    async with endpoints(kept) as ends:
        first = await texts(ends["small"], made, False, {})
        drawn = [await texts(ends["small"], made, False, sample(2.0, seed)) for seed in range(2)]
    monkeypatch.setattr("aiohttp.ClientSession.post", None)  # whoever asks a server now fails
    async with endpoints(kept) as ends:
        again = await texts(ends["small"], made, False, {})
        other = await texts(ends["small"], made, False, sample(2.0, 1))
        assert [one.right for one in await plain(ends["small"], made, False)] == [one.right for _, one in alone]
    said = [[text for text, _ in one] for one in (alone, first, again)]
    assert said[0] == said[1] == said[2]
    assert [one.tokens for _, one in alone] == [one.tokens for _, one in again]
    assert [text for text, _ in other] == [text for text, _ in drawn[1]]
    assert [text for text, _ in other] != [text for text, _ in drawn[0]]
    assert asked(made[0])["temperature"] == 0


def test_a_vote_releases_the_answer_of_the_most_then_the_earliest() -> None:
    wrong, right = ("Answer: 4", run(False)), ("Answer: 5", run(True))
    assert elected([wrong, right, right], [1.0] * 3) == right[1]
    assert elected([right, wrong], [0.5, 0.5]) == right[1]
    assert elected([wrong, right], [0.5, 0.6]) == right[1]
    assert elected([("", run(False)), right], [1.0, 0.1]) == right[1]
    assert elected([("", run(False))], [1.0]).right is False


def test_points_are_by_question() -> None:
    right, wrong = run(True), run(False)
    assert paired([right, right], [wrong, wrong]) == "+100.0 (+100.0 to +100.0) points"
    assert paired([right, wrong], [wrong, right]).startswith("+0.0 (-138.6 to +138.6)")
    assert share([right] * 4) == "100.0% (51.0%–100.0%)"


@pytest.mark.e2e
async def test_a_cascade_is_timed_beside_a_plain_call() -> None:
    with panel_load.models() as url:
        found = await panel_load.overhead(url, 4)
    assert found["added_ms"] <= found["added_p99_ms"]
    assert found["plain_ms"] > 0
    assert found["cascade_ms"] > 0
