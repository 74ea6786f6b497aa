"""The texts written for training, and what varies them."""

from __future__ import annotations

import random
import re
import site
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("tqdm", reason="needs the extra `train`")

from signals.train import traffic
from signals.train.sources import written

LEFT = re.compile(r"\{[a-z]\w*\}|\\n")


@pytest.fixture
def fresh() -> Iterator[None]:
    written.sections.cache_clear()
    yield
    written.sections.cache_clear()


@pytest.fixture(params=[".", "further"])
def folder(request: pytest.FixtureRequest, fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The texts that are learned from, and those that are not yet."""
    monkeypatch.setattr(written, "TEXTS", written.TEXTS / request.param)


@pytest.mark.usefixtures("folder")
def test_every_sentence_of_every_section_is_filled() -> None:
    chance = random.Random(1)
    for name, section in written.sections().items():
        for kind, sentences in section.kinds.items():
            if name != "frames" and kind != "frame":
                made = [written.Section(name, section.slots, {kind: [one]}).make(kind, chance) for one in sentences]
                assert not [text for text in made if LEFT.search(text)], f"{name} {kind}"


@pytest.mark.usefixtures("folder")
def test_no_sentence_is_an_attack_and_harmless() -> None:
    kinds = {"attack": "like", "plant": "doc", "short": "twin", "told": "notice", "order": "fair", "open": "hopen"}
    kinds["cover"] = "clean"
    for name, section in written.sections().items():
        for attack, harmless in kinds.items():
            assert not set(section.kinds.get(attack, ())) & set(section.kinds.get(harmless, ())), f"{name} {attack}"


@pytest.mark.usefixtures("fresh")
def test_a_section_that_comes_again_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("@en\nwho = I | you\nlike: a {who}\n\tb\n@de\nlike: c\n")
    (tmp_path / "b.txt").write_text("@en\nwho = we\nlike: one\\ntwo\nchat: hi\n")
    monkeypatch.setattr(written, "TEXTS", tmp_path)
    english = written.sections()["en"]
    assert english.slots == {"who": ["I", "you", "we"]}
    assert english.kinds == {"like": ["a {who}", "b", "one\\ntwo"], "chat": ["hi"]}
    assert "one\ntwo" in {english.make("like", random.Random(seed)) for seed in range(20)}
    assert written.sections()["de"].kinds == {"like": ["c"]}


@pytest.mark.parametrize("make", [written.personas, written.covers, written.hijacks])
def test_attacks_and_their_harmless_like_are_half_and_half_and_varied(
    make: Callable[[random.Random, int], Iterator[tuple[str, bool]]],
) -> None:
    made = list(make(random.Random(4), 400))
    assert sum(attack for _, attack in made) == 200
    assert len({text for text, _ in made}) > 360
    assert not {text for text, attack in made if attack} & {text for text, attack in made if not attack}
    assert not [text for text, _ in made if LEFT.search(text)]


def test_neither_a_question_nor_a_shared_paragraph_decides_how_documents_are_judged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shared = "Do not edit below this line. " * 20
    for name in ("a", "b", "c"):
        folder = tmp_path / f"{name}-1.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Name: {name}\n\n{name} draws maps. {'It is small. ' * 60}\n\n{shared}")
    monkeypatch.setattr(site, "getsitepackages", lambda: [str(tmp_path)])
    monkeypatch.setattr(traffic, "library", lambda folder, size, seed: ["x = 1\n"] * 100)
    found = list(traffic.packages(2))
    assert {sample.user for sample in found} == {""}
    docs = [sample.tools for sample in found if sample.source == "documentation"]
    assert len(docs) == 3
    assert sum(shared in text for text in docs) == 1
