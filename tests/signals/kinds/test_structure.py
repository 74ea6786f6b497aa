from __future__ import annotations

from typing import Any

import pytest

from signals.kinds import structure
from tests.signals.help import build, complaint, matched, reading

TEXT = """Two questions? Yes??

```python
print(1)
```
and
  ~~~
unclosed

- one
* two
  3. three
4) four
-not a list
"""


@pytest.mark.parametrize(
    ("feature", "count"),
    [
        ("code_fences", 2),
        ("questions", 2),
        ("list_items", 4),
        ("bytes", len(TEXT)),
        ({"regex": r"\bt\w+"}, 2),
        ({"keywords": ["TWO", "three", "one", "print"]}, 5),
        ({"keywords": ["a", "an"]}, 1),
        ({"keywords": ["not a", "not a list"]}, 1),
    ],
)
def test_count(feature: Any, count: int) -> None:
    assert reading(build("structure", count=feature, at_least=count, at_most=count), TEXT).matched is True
    assert reading(build("structure", count=feature, at_least=0), TEXT).score == count
    assert matched("structure", TEXT, count=feature, at_least=count + 1) is False


def test_bytes_are_bytes() -> None:
    assert reading(build("structure", count="bytes", at_least=1), "é漢").score == 5


@pytest.mark.parametrize(("text", "count"), [("¿Qué? どうして？ لماذا؟ なぜ？！", 4), ("no", 0), ("?!?", 2)])
def test_questions_of_other_scripts(text: str, count: int) -> None:
    assert reading(build("structure", count="questions", at_least=0), text).score == count


def test_density_is_per_hundred_words() -> None:
    signal = build("structure", density={"keywords": ["error"]}, at_least=10)
    assert reading(signal, "error " + "word " * 9).score == pytest.approx(10.0)
    assert reading(signal, "error " + "word " * 10).matched is False
    assert reading(signal, "").score == 0.0
    assert reading(
        build("structure", density="questions", at_least=1), "漢字漢字漢字漢字漢字？"
    ).score == pytest.approx(10.0)


def test_exists() -> None:
    assert matched("structure", TEXT, exists="code_fences") is True
    assert matched("structure", "plain", exists="code_fences") is False


def test_sequence() -> None:
    steps = [{"keywords": ["first"]}, "questions", {"regex": "th(en|us)"}]
    assert matched("structure", "First: why? then go", sequence=steps) is True
    assert matched("structure", "then first: why?", sequence=steps) is False
    assert matched("structure", "first first", sequence=[{"keywords": ["first"]}] * 3) is False


def test_counting_ends_somewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structure, "_MANY", 10)
    assert reading(build("structure", count="questions", at_least=20), "? " * 15).score == 15
    assert reading(build("structure", count="questions", at_least=5), "? " * 500).matched is True
    assert reading(build("structure", density="questions", at_least=5), "? " * 500).error == "too_long"


def test_wrong_parameters_are_explained() -> None:
    assert "exactly one of count" in complaint("structure")
    assert "exactly one of count" in complaint("structure", count="bytes", exists="questions", at_least=1)
    assert "one of at_least, at_most" in complaint("structure", count="bytes")
    assert "greater than" in complaint("structure", count="bytes", at_least=2, at_most=1)
    assert "not with exists" in complaint("structure", exists="questions", at_least=1)
    assert "bytes can only be counted" in complaint("structure", exists="bytes")
    assert "exactly one of regex, keywords" in complaint("structure", exists={})
    assert "a keyword is empty" in complaint("structure", exists={"keywords": [""]})
    assert "not an RE2 expression" in complaint("structure", exists={"regex": "("})
    assert "at least 2 items" in complaint("structure", sequence=["questions"])
