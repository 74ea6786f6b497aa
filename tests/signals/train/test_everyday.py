"""False alarms on Debian's texts: what is read of the packages, and what the table says."""

import asyncio
import bz2
from pathlib import Path

import pytest

from signals.train import everyday


def packages(folder: Path) -> None:
    """A folder as the module's docstring makes it."""
    cookies = folder / "fortunes-de/usr/share/games/fortunes/de"
    cookies.mkdir(parents=True)
    texts = [f"Wer {number} Regeln kennt,\nder kennt auch die {number + 1}. Ausnahme." for number in range(70)]
    (cookies / "sprueche").write_text(
        "\n%\n".join(["kurz", *texts, "\x1b[1mBunt ist alle Theorie, mein Freund.\x1b[0m"])
    )
    (cookies / "sprueche.dat").write_bytes(b"\xff\xfe")
    rows = [
        f"Package: p{number}\nDescription-md5: 0\nDescription-it: programma numero {number}\n Legge posta.\n .\n Fine."
        for number in range(65)
    ]
    rows.append("Package: half\nDescription-it: a metà\n <trans>\n")
    (folder / "Translation-it.bz2").write_bytes(bz2.compress("\n\n".join(rows).encode()))


def test_texts_are_read_as_the_packages_hold_them(tmp_path: Path) -> None:
    packages(tmp_path)
    cookies = list(everyday.fortunes(tmp_path))
    assert ("de", "Wer 3 Regeln kennt,\nder kennt auch die 4. Ausnahme.") in cookies
    assert ("de", "Bunt ist alle Theorie, mein Freund.") in cookies
    assert len(cookies) == 72
    described = list(everyday.descriptions(tmp_path))
    assert described[2] == ("it", "programma numero 2\nLegge posta.\n\nFine.")
    assert len(described) == 65


def test_a_language_has_so_many_texts_always_the_same_and_none_that_are_too_short(tmp_path: Path) -> None:
    packages(tmp_path)
    some = everyday.chosen(everyday.fortunes(tmp_path), 62)
    assert some == everyday.chosen(everyday.fortunes(tmp_path), 62)
    assert len(some["de"]) == 62
    assert "kurz" not in everyday.chosen(everyday.fortunes(tmp_path), 1000)["de"]
    assert everyday.chosen(iter([("fr", "Une seule phrase ne dit rien.")]), 9) == {}


@pytest.mark.slow
def test_the_table_counts_false_alarms_by_language(tmp_path: Path) -> None:
    packages(tmp_path)
    rows = [line.split(" | ") for line in asyncio.run(everyday.table(tmp_path, 61)).splitlines()[2:]]
    assert [(row[0], row[1], row[2]) for row in rows] == [
        ("| quotes, jokes, chat", "de", "61"),
        ("| quotes, jokes, chat", "all", "61"),
        ("| descriptions", "it", "61"),
        ("| descriptions", "all", "61"),
    ]
    assert rows[2][3:] == ["0.000", "0.000", "0.000 |"]
    assert everyday.main([str(tmp_path), "--count", "61", "--out", str(tmp_path / "card.md")]) == 0
    assert "| descriptions | it | 61 | 0.000 | 0.000 | 0.000 |" in (tmp_path / "card.md").read_text()
