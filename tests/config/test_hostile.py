"""No policy, however it is written, holds whoever loads it for long or takes its memory; each gets its error."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from cli.main import main
from config.build import build
from config.document import MAX_ERRORS, MAX_NODES
from config.load import check, load, parse
from config.problem import PolicyError, Problem, did_you_mean
from config.watch import Watcher
from config.watch import load as watched
from signals import files
from signals.text import automaton, patterns
from tests.linear import assert_linear, spent

HEAD = "version: 1\nmodels: {small: {}, large: {}}\ndefault: small\n"


def found(text: str) -> list[tuple[str, int, int]]:
    """(code, line, column) of the errors in a policy."""
    return [(p.code, p.line, p.column) for p in check(HEAD + text)[1] if p.severity == "error"]


# Files


@pytest.fixture(params=["device", "pipe", "socket", "folder", "huge"])
def odd(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Something that is no file that could be read whole."""
    where = tmp_path / "odd"
    if request.param == "device":
        where.symlink_to("/dev/zero")
    elif request.param == "pipe":
        os.mkfifo(where)
    elif request.param == "socket":
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(where))
    elif request.param == "folder":
        where.mkdir()
    else:
        with where.open("wb") as file:
            file.truncate(1 << 40)  # a terabyte, none of it on the disk
    return where


def test_no_secret_comes_from_a_file_that_never_ends(odd: Path) -> None:
    text = HEAD + f"settings: {{store: {{url: 'redis://h:1/0', password: {{file: '{odd}'}}}}}}\n"
    with pytest.raises(PolicyError, match=r"^<policy>:4:12: P108 store: the secret cannot be read: ") as caught:
        build(parse(text))
    assert str(odd) in str(caught.value)


@pytest.mark.parametrize(
    "does",
    [
        "panel: {cascade: [small, large], until: {sure: 0.9, calibration: FILE}}",
        "route: {pick: [small, large], by: {irt: {file: FILE}}}",
    ],
)
def test_no_decision_comes_from_a_file_that_never_ends(
    odd: Path, does: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = tmp_path / "policy.yaml"
    models = HEAD.replace("{}", "{url: 'http://127.0.0.1:9'}")
    policy.write_text(models + f"decisions: [{{name: d, {does.replace('FILE', str(odd))}}}]\n")
    assert main(["validate", str(policy)]) == 1
    out = capsys.readouterr().out
    assert "P108" in out
    assert str(odd) in out


def test_a_policy_and_its_cases_are_files(odd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OSError, match=str(odd)):
        load(odd)
    with pytest.raises(OSError, match=str(odd)):
        watched(odd)
    policy = tmp_path / "policy.yaml"
    policy.write_text(HEAD)
    watched(policy, candidate=odd)  # a bad candidate is left out
    assert Watcher(odd)._digests() == (None, None)
    for command in (("validate", odd), ("test", policy, odd), ("explain", odd, policy)):
        assert main([str(part) for part in command]) == 2
        assert str(odd) in capsys.readouterr().err


def test_what_has_no_size_beforehand_is_bounded_all_the_same() -> None:
    with pytest.raises(OSError, match="larger than 10 bytes"):
        files.read(Path("/proc/self/status"), 10)


# Size and form


@pytest.mark.no_cover
@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("signals: [" + "0," * 3_000_000 + "]\n", ("Y003", 1, 1)),
        ("a: &a [x]\nb: [" + "*a," * 150_000 + "]\n", ("Y004", 5, 299)),
        ("a: &a [x]\nb: &b [*a,*a]\nc: &c [*b,*b]\n", ("Y003", 5, 8)),
        ("a: " + "[" * 500 + "]" * 500 + "\n", ("Y003", 4, 44)),
        ("a: " + "{a: " * 500 + "}" * 500 + "\n", ("Y003", 4, 164)),
        ("".join(f"key{i}: 1\n" for i in range(60_000)), ("Y004", 3 + MAX_ERRORS, 1)),
        ("settings: {max_input_tokens: 0x" + "f" * 9_000 + "}\n", ("P103", 4, 30)),
        ("settings: {max_input_tokens: " + "9" * 9_000 + "}\n", ("P103", 4, 30)),
    ],
)
def test_what_is_too_much_is_said_where_it_begins(text: str, expected: tuple[str, int, int]) -> None:
    errors = found(text)
    assert expected in errors
    assert len(errors) <= MAX_ERRORS + 1


@pytest.mark.slow
def test_what_is_nested_without_end_is_an_error_whoever_finds_it() -> None:
    """libyaml has had a bound of its own since 0.2.6, which is not in every wheel."""

    def nested(depth: int) -> str:
        return "a: " + "[" * depth + "]" * depth + "\n"

    codes = {code for code, line, _ in found(nested(50_000)) if line == 4}
    assert codes & {"Y001", "Y003"}
    # Without a bound, libyaml's time grows with the square: over a thousand times as long.
    assert spent(found, nested(50_000), 1) < 10 * spent(found, nested(1_500))


@pytest.mark.parametrize("entry", ["[]", "n{}"], ids=["each is wrong", "each is another name"])
def test_a_long_list_takes_a_time_that_grows_with_it(entry: str) -> None:
    def listed(size: int) -> str:
        return f"auto: [{', '.join(entry.format(number) for number in range(size))}]\n"

    assert_linear(listed, found, largest=4096)


@pytest.mark.volume
def test_as_many_nodes_as_may_be_are_read() -> None:
    text = "a: [" + "0," * (MAX_NODES - 20 - 4) + "0]\n"
    assert found(text) == [("P101", 4, 1)]


@pytest.mark.no_cover
@pytest.mark.slow
def test_a_long_list_of_mistakes_ends() -> None:
    text = "signals:\n" + "".join(f"  s{i}: {{tokens: {{at_least: 1}}}}\n" for i in range(8_000))
    text += "decisions:\n" + "".join(f"  - {{name: d{i}, when: t{i}, route: small}}\n" for i in range(8_000))
    policy, problems = check(HEAD + text)
    assert policy is None
    assert [p.code for p in problems] == ["R201"] * MAX_ERRORS + ["Y004"]


def test_warnings_never_end_the_list() -> None:
    text = "signals:\n" + "".join(f"  s{i}: {{tokens: {{at_least: {i}}}}}\n" for i in range(3 * MAX_ERRORS))
    policy, problems = check(HEAD + text)
    assert policy is not None
    assert [p.code for p in problems].count("L304") == 3 * MAX_ERRORS


def test_no_name_is_looked_for_among_too_many_or_too_long_ones() -> None:
    assert did_you_mean("smal", ["small"]) == " (did you mean 'small'?)"
    assert did_you_mean("a" * 1_000_000, ["a" * 1_000_001]) == ""
    assert did_you_mean("smal", (name for name in iter(lambda: "x", None))) == ""  # of a list without an end


@pytest.mark.parametrize("bad", [".nan", ".inf", "-.inf", "1" + "0" * 400])
@pytest.mark.parametrize(
    "text",
    [
        "signals: {t: {tokens: {at_least: %s}}}\n",
        "signals: {t: {tokens: {at_least: 1}}}\ndecisions: [{name: d, when: {signal: t, at_most: %s}, route: small}]\n",
        "decisions: [{name: d, route: {pick: [small, large], weights: {small: %s}}}]\n",
    ],
)
def test_a_number_is_one_that_can_be_compared(text: str, bad: str) -> None:
    assert found(text % bad)


# The rules


def pigeons(holes: int) -> str:
    """One more pigeon than holes, each in a hole, no two in one: it cannot be, and a solver must try all ways."""
    birds = range(holes + 1)
    text = "signals:\n" + "".join(
        f"  p{i}h{j}: {{header: {{name: x-{i}-{j}, exists: true}}}}\n" for i in birds for j in range(holes)
    )
    somewhere = [f"{{any: [{', '.join(f'p{i}h{j}' for j in range(holes))}]}}" for i in birds]
    alone = [f"{{not: {{all: [p{i}h{j}, p{k}h{j}]}}}}" for j in range(holes) for i in birds for k in range(i)]
    return text + f"decisions:\n  - {{name: d, route: small, when: {{all: [{', '.join(somewhere + alone)}]}}}}\n"


@pytest.mark.slow
def test_a_rule_that_no_solver_settles_is_left_unsettled() -> None:
    policy, problems = check(HEAD + pigeons(9))
    assert policy is not None
    assert [(p.code, p.severity) for p in problems if p.code.startswith("L30")] == [
        ("L305", "warning"),
        ("L307", "warning"),
    ]
    assert found(pigeons(4)) == [("L301", 26, 35)]  # and a small one is


@pytest.mark.volume
@pytest.mark.parametrize(
    "rule",
    [
        f"{{at_least: {{count: 1500, of: [{', '.join(f's{i}' for i in range(3000))}]}}}}",
        f"{{any: [{', '.join(f'{{signal: l, is: x{i}}}' for i in range(15_000))}]}}",
    ],
    ids=["count", "labels"],
)
def test_a_rule_of_many_parts_is_checked_in_time(rule: str) -> None:
    text = "signals:\n  l: {language: {is: [en]}}\n"
    text += "".join(f"  s{i}: {{header: {{name: x-{i}, exists: true}}}}\n" for i in range(3000))
    assert found(text + f"decisions:\n  - {{name: d, route: small, when: {rule}}}\n") == []


@pytest.mark.volume
def test_ten_thousand_decisions_are_checked_in_time() -> None:
    text = "signals:\n" + "".join(f"  s{i}: {{header: {{name: x-{i}, exists: true}}}}\n" for i in range(10_000))
    text += "decisions:\n" + "".join(f"  - {{name: d{i}, when: s{i}, route: small}}\n" for i in range(10_000))
    assert found(text) == []


# What is searched for


def listed(kind: str, words: list[str]) -> str:
    return f"signals: {{k: {{{kind}: {{any: [{', '.join(words)}]}}}}}}\n"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (listed("keyword", [f"word{i}" for i in range(automaton.MOST + 1)]), "over 20000 keywords"),
        (listed("keyword", [f"{i}{'ab' * 400}" for i in range(1400)]), "1048576 characters"),
        (listed("keyword", ["x" * 1001]), "a keyword has more than 1000 characters: 'xxxxxxxxxxxxxxxxxxxx'"),
        (listed("keyword", ["\ufdfa" * 100]), "a keyword has more than 1000 characters"),
        pytest.param(
            listed("regex", [f"w{i}" for i in range(patterns.MOST + 1)]),
            "more than 20000 regular expressions",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_a_policy_searches_for_is_bounded(text: str, complaint: str) -> None:
    with pytest.raises(PolicyError, match=rf"<policy>:4:11: P108 signal 'k' .*{complaint}"):
        build(parse(HEAD + text))


@pytest.mark.no_cover
@pytest.mark.slow
def test_expressions_that_take_long_to_compile_are_refused_together() -> None:
    # Each is within RE2's own bound and takes a tenth of a second.
    assert found(listed("regex", [f"'\\pL{{100}}{i}'" for i in range(5)])) == []
    text = HEAD + listed("regex", [f"'\\pL{{100}}{i}'" for i in range(60)])
    policy, problems = check(text)
    assert policy is None
    assert {p.code for p in problems if p.severity == "error"} == {"P104"}
    assert "together are too large" in problems[-1].message
    assert found(listed("regex", ["'\\pL{100}'"])) == []  # the next policy begins anew
    assert patterns.left.get() is None


# Names


@pytest.mark.parametrize("bad", [r"a\r\nb", r"a\nb", r"a\0b", r"a\x7fb", r"a\u0085b", r"a\u2028b", " a", "", "a" * 201])
@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ('version: 1\nmodels: {small: {}, "%s": {}}\ndefault: small\n', 2, 21),
        ('version: 1\nmodels: {small: {name: "%s"}}\ndefault: small\n', 2, 24),
        (HEAD + 'auto: [auto, "%s"]\n', 4, 14),
        (HEAD + 'signals: {"%s": {tokens: {at_least: 1}}}\n', 4, 11),
        (HEAD + 'decisions: [{name: "%s", route: small}]\n', 4, 20),
    ],
    ids=["model", "served", "auto", "signal", "decision"],
)
def test_a_name_is_one_line_of_a_header(text: str, line: int, column: int, bad: str) -> None:
    problems = [p for p in check(text % bad)[1] if p.severity == "error"]
    assert ("P104", line, column) in [(p.code, p.line, p.column) for p in problems]
    assert all(str(p).isprintable() for p in problems)


@pytest.mark.parametrize("good", ["Qwen/Qwen2.5-7B", "llama3:8b", "größe", "a b", "模型"])
def test_other_names_are_free(good: str) -> None:
    text = f"version: 1\nmodels: {{'{good}': {{name: '{good}'}}}}\ndefault: '{good}'\nauto: ['{good} auto']\n"
    assert check(text)[1] == []


@pytest.mark.parametrize("bad", [r"v\r\nx-evil: 1", r"v\nw", r"v\0", r"v\x1f", r"v\x7f"])
def test_a_header_that_is_set_is_one_header(bad: str) -> None:
    text = f'decisions: [{{name: d, route: small, set: {{headers: {{x-a: "{bad}"}}}}}}]\n'
    assert [code for code, _, _ in found(text)] == ["P104"]
    text = f'decisions: [{{name: d, route: small, set: {{headers: {{"x-{bad}": v}}}}}}]\n'
    assert [code for code, _, _ in found(text)] == ["P104"]
    assert found('decisions: [{name: d, route: small, set: {headers: {x-a: "a\\tb ü"}}}]\n') == []


@pytest.mark.parametrize("bad", [r"http://h:1/\r\n", r"http://h\n:1", r"http://h:1/a\x01b"])
def test_a_url_is_one_line(bad: str) -> None:
    text = f'version: 1\nmodels: {{small: {{url: "{bad}"}}}}\ndefault: small\n'
    assert [p.code for p in check(text)[1]] == ["P104"]


def test_a_problem_is_one_line_whatever_it_quotes() -> None:
    problem = Problem("p\n.yaml", 1, 1, "P104", "error", "a\r\nb\x1b[2J\u2028\x85c ü")
    assert str(problem) == r"p\n.yaml:1:1: P104 a\r\nb\x1b[2J\u2028\x85c ü"
    assert problem.as_dict()["message"] == problem.message


@pytest.mark.parametrize(
    ("written", "known", "meant"),
    [
        ("and", ("all", "any"), "all"),
        ("or", ("all", "any"), "any"),
        ("and", ("any", "ant"), "any"),
        ("rout", ("route",), "route"),
    ],
)
def test_the_words_of_other_languages_are_ours_by_their_meaning(
    written: str, known: tuple[str, ...], meant: str
) -> None:
    assert did_you_mean(written, known) == f" (did you mean {meant!r}?)"
