"""The policies that the router is measured with. No signal of theirs matches the bench's request: all are read."""

from __future__ import annotations

from pathlib import Path

_HEAD = """\
version: 1
models:
  small: {name: small, url: "http://127.0.0.1:1"}
  large: {name: large, url: "http://127.0.0.1:1"}
default: small
"""


def no_op() -> str:
    """One decision that looks at a header."""
    return _HEAD + "signals:\n  never: {header: {name: x-never, in: [set]}}\n" + _decisions([["never"]])


def instant(signals: int, decisions: int) -> str:
    """Keyword, regex, token, structure and header signals in turn; each decision combines those next to each other."""
    text = _HEAD + "signals:\n"
    for number in range(signals):
        kinds = (
            f"keyword: {{any: [zebra{number}, 'quantum {number}', yttrium{number}]}}",
            f"regex: {{any: ['(?i)\\bticket-{number}-[0-9]+\\b']}}",
            f"tokens: {{at_least: {50_000 + number}}}",
            f"header: {{name: x-tier-{number}, in: [gold]}}",
            f"keyword: {{any: [xylophone{number}, 'brass {number}']}}",
        )
        text += f"  s{number}: {{{kinds[number % len(kinds)]}}}\n"
    share = max(1, signals // decisions)
    rules = [
        [f"s{number % signals}" for number in range(place * share, place * share + share + 1)]
        for place in range(decisions)
    ]
    return text + _decisions(rules)


def named(rules: int, scores: int) -> str:
    """The signals of 20 x 10, scores over them with four bands each, and named rules that build on signals, bands and
    each other; ten decisions combine those. No rule is true, so that all are evaluated."""
    text = instant(20, 10).split("decisions:")[0]
    for number in range(scores):
        weights = ", ".join(f"s{(number * 2 + place) % 20}: 0.{place + 1}" for place in range(5))
        bands = "{none: {below: 0.1}, easy: {below: 0.4}, medium: {below: 0.8}, hard: {}}"
        text += f"  e{number}: {{score: {{sum: {{{weights}}}, of: matches, bands: {bands}}}}}\n"
    text += "rules:\n"
    for number in range(rules):
        band = f"{{signal: e{number % scores}, is: {('easy', 'medium', 'hard')[number % 3]}}}"
        parts = [f"s{number % 20}", f"{{all: [s{(number + 1) % 20}, {{not: s{(number + 2) % 20}}}]}}", band]
        parts += [f"r{number - 10}"] if number >= 10 else []
        text += f"  r{number}: {{any: [{', '.join(parts)}]}}\n"
    return text + _decisions([[f"r{number}" for number in range(place, rules, 10)] for place in range(10)])


def keywords(words: int, decisions: int) -> str:
    """`words` keywords in as many signals as there are decisions."""
    share = words // decisions
    text = _HEAD + "signals:\n"
    for number in range(decisions):
        found = ", ".join(f"word{number}x{place}" for place in range(share))
        text += f"  k{number}: {{keyword: {{any: [{found}]}}}}\n"
    return text + _decisions([[f"k{number}"] for number in range(decisions)])


def _decisions(rules: list[list[str]]) -> str:
    text = "decisions:\n"
    for number, names in enumerate(rules):
        text += f"  - name: d{number}\n    when: {{any: [{', '.join(names)}]}}\n    route: large\n"
    return text


def write(folder: Path) -> dict[str, Path]:
    """All of them as files; the example policy is the repository's."""
    texts = {
        "no-op": no_op(),
        "20 x 10": instant(20, 10),
        "46 rules, 40 bands": named(46, 10),
        "100 x 50": instant(100, 50),
        "1000 keywords x 200": keywords(1_000, 200),
    }
    found = {"example": Path(__file__).parents[1] / "examples" / "policy.yaml"}
    for name, text in texts.items():
        found[name] = folder / f"{name.replace(' ', '-')}.yaml"
        found[name].write_text(text)
    return found
