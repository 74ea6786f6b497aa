"""Problems with a known answer and a solution written out in steps.

Five kinds (expressions, running stories, totals, comparisons, algebra) in four bands of difficulty. A solution is a
chain of steps with a blank line between them and ends in the line ``Answer: N``. One seed gives one problem, for ever:
the training set, the calibration set and the test set are ranges of seeds (``SPLITS``).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

BANDS = (1, 2, 3, 4)
KINDS = ("expression", "story", "total", "compare", "algebra")
# Disjoint ranges of seeds. Training takes seeds from TRAIN_START upwards without an end.
SPLITS = {"dev": 0, "policy": 1_000_000, "calibration": 2_000_000, "test": 3_000_000, "train": 1_000_000_000}

NAMES = ("Mia", "Tom", "Ana", "Ben", "Lena", "Omar", "Ruth", "Ivan", "Sara", "Paul", "Nina", "Karl")
_ITEMS = ("stamps", "marbles", "coins", "shells", "cards", "beads", "pens", "apples", "stones", "books")
_ANSWER = re.compile(r"^Answer: *(-?\d+)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Problem:
    """One problem.

    seed: the number it was made from; band: 1 (easy) to 4; kind: one of ``KINDS``; question: text for the user's
    message; steps: the solution, one string a step, the last one holding the answer line; answer: the integer.
    """

    seed: int
    band: int
    kind: str
    question: str
    steps: tuple[str, ...]
    answer: int

    @property
    def solution(self) -> str:
        """The whole worked solution, steps joined by blank lines."""
        return "\n\n".join(self.steps)


def read_answer(text: str) -> int | None:
    """The integer on the last ``Answer: N`` line of `text`, None where there is none."""
    found = _ANSWER.findall(text)
    return int(found[-1]) if found else None


def check(problem: Problem, text: str) -> bool:
    """Whether `text` ends in the right answer."""
    return read_answer(text) == problem.answer


def _draw(seed: int) -> tuple[random.Random, int, str]:
    """What the problem of `seed` is made with: the chances, its band and its kind."""
    rng = random.Random(seed)
    return rng, rng.choice(BANDS), rng.choice(KINDS)


def kind_of(seed: int) -> str:
    """The kind of the problem of `seed`, which need not be made for that."""
    return _draw(seed)[2]


def make(seed: int, band: int | None = None) -> Problem:
    """The problem of `seed`; `band` None draws one of the four bands with equal chances."""
    rng, drawn, kind = _draw(seed)
    band = drawn if band is None else band
    while True:
        made = _MAKERS[kind](rng, band)
        if made is not None:
            question, steps, answer = made
            return Problem(seed, band, kind, question, (*steps, f"Answer: {answer}"), answer)


# --- one sum ------------------------------------------------------------------------------------------------------


def value(a: int, op: str, b: int) -> int | None:
    """a op b, or None where the result leaves what the problems allow (0 to 999, one factor of a product and every
    divisor at most 9, no remainders)."""
    if op == "+":
        c = a + b
    elif op == "-":
        c = a - b
    elif op == "*":
        if min(a, b) > 9:
            return None
        c = a * b
    else:
        if not 2 <= b <= 9 or a % b or a // b > 99:
            return None
        c = a // b
    return c if 0 <= c <= 999 else None


def _sum(a: int, op: str, b: int) -> str:
    """The written sum."""
    return f"{a} {op} {b} = {value(a, op, b)}"


def _lead(rng: random.Random, first: bool) -> str:
    return rng.choice(("First, ", "To begin, ") if first else ("Then ", "Next, ", "Now ", "So "))


# --- expressions --------------------------------------------------------------------------------------------------

_Node = int | tuple["_Node", str, "_Node"]
_RANK = {"+": 1, "-": 1, "*": 2, "/": 2}
_LIMIT = {1: 20, 2: 60, 3: 120, 4: 200}
_OPS = {1: 2, 2: 3, 3: 4, 4: 5}


def _number(rng: random.Random, band: int) -> int:
    return rng.randint(2, rng.choice((12, 99, _LIMIT[band])))


def _tree(rng: random.Random, band: int, ops: int) -> tuple[_Node, int] | None:
    if ops == 0:
        n = _number(rng, band)
        return n, n
    left_ops = rng.randint(0, ops - 1)
    for _ in range(12):
        left, right = _tree(rng, band, left_ops), _tree(rng, band, ops - 1 - left_ops)
        if left is None or right is None:
            continue
        op = rng.choice("+-**/" if band > 1 else "+-*")
        (a_node, a), (b_node, b) = left, right
        if op == "*" and ops - 1 - left_ops == 0 and rng.random() < 0.7:
            b_node = b = rng.randint(2, 9)
        if op == "/" and ops - 1 - left_ops == 0:
            divisors = [d for d in range(2, 10) if a % d == 0]
            if not divisors:
                continue
            b_node = b = rng.choice(divisors)
        c = value(a, op, b)
        if c is not None and c > 0:
            return (a_node, op, b_node), c
    return None


def _write(node: _Node, parent: int = 0, right: bool = False) -> str:
    if isinstance(node, int):
        return str(node)
    a, op, b = node
    rank = _RANK[op]
    text = f"{_write(a, rank)} {op} {_write(b, rank, True)}"
    return f"({text})" if rank < parent or (rank == parent and right) else text


def _ready(node: _Node, path: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    if isinstance(node, int):
        return []
    if isinstance(node[0], int) and isinstance(node[2], int):
        return [path]
    return _ready(node[0], (*path, 0)) + _ready(node[2], (*path, 2))


def _reduce(node: _Node, path: tuple[int, ...]) -> tuple[_Node, str]:
    assert not isinstance(node, int)
    a, op, b = node
    if not path:
        assert isinstance(a, int)
        assert isinstance(b, int)
        found = value(a, op, b)
        assert found is not None
        return found, _sum(a, op, b)
    if path[0] == 0:
        new, text = _reduce(a, path[1:])
        return (new, op, b), text
    new, text = _reduce(b, path[1:])
    return (a, op, new), text


def _expression(rng: random.Random, band: int) -> tuple[str, list[str], int] | None:
    ops = _OPS[band] + rng.randint(-1, 1)
    made = _tree(rng, band, max(1, ops))
    if made is None:
        return None
    node, answer = made
    text = _write(node)
    asks = ("Work out {}.", "What is {}?", "Calculate {}.", "Find the value of {}.", "{} = ?")
    question = rng.choice(asks).format(text)
    steps: list[str] = []
    while not isinstance(node, int):
        node, done = _reduce(node, _ready(node)[0])
        step = _lead(rng, not steps) + done
        if not isinstance(node, int):
            step += rng.choice((", which leaves ", ", so we have ", "; what is left is ")) + _write(node)
        steps.append(step + ".")
    return question, steps, answer


# --- running stories ----------------------------------------------------------------------------------------------


def _story(rng: random.Random, band: int) -> tuple[str, list[str], int] | None:
    who, item = rng.choice(NAMES), rng.choice(_ITEMS)
    other = rng.choice([n for n in NAMES if n != who])
    amount = _number(rng, band) + 8
    lines = [rng.choice((f"{who} has {amount} {item}.", f"{who} starts with {amount} {item}."))]
    steps: list[str] = []

    def write(a: int, op: str, b: int, what: str) -> int | None:
        c = value(a, op, b)
        if c is None:
            return None
        form = rng.choice(("{lead}{sum}{what}.", "{lead}we get {sum}{what}.", "{lead}{who} has {sum}{what}."))
        steps.append(form.format(lead=_lead(rng, not steps), sum=_sum(a, op, b), what=what, who=who))
        return c

    for _ in range(_OPS[band] + rng.randint(-1, 0)):
        event = rng.choice(("gain", "lose", "times", "share", "boxes", "part"))
        new: int | None = None
        if event == "gain":
            b = _number(rng, band)
            lines.append(rng.choice((f"{other} gives {who} {b} more.", f"Then {who} finds {b} {item}.")))
            new = write(amount, "+", b, f" {item}")
        elif event == "lose" and amount > 4:
            b = rng.randint(2, amount - 1)
            lines.append(rng.choice((f"{who} loses {b} of them.", f"Then {who} sells {b} {item}.")))
            new = write(amount, "-", b, f" {item}")
        elif event == "times":
            b = rng.choice((2, 2, 3, 3, 4, 5, 6, 7, 8, 9))
            word = {2: "twice", 3: "three times"}.get(b, f"{b} times")
            lines.append(f"A week later {who} has {word} as many.")
            new = write(amount, "*", b, f" {item}")
        elif event == "share":
            divisors = [d for d in range(2, 10) if amount % d == 0]
            if not divisors:
                return None
            b = rng.choice(divisors)
            lines.append(f"{who} shares them equally among {b} bags and keeps only one bag.")
            new = write(amount, "/", b, f" {item}")
        elif event == "boxes":
            m, n = rng.randint(2, 9), rng.randint(3, 12 * band)
            lines.append(f"Then {who} buys {m} boxes with {n} {item} each.")
            more = write(m, "*", n, " new ones")
            new = write(amount, "+", more, f" {item}") if more is not None else None
        elif event == "part":
            b, word = rng.choice(((2, "half"), (3, "a third"), (4, "a quarter"), (5, "a fifth")))
            if amount % b:
                return None
            lines.append(f"{who} gives {word} of them to {other}.")
            less = write(amount, "/", b, " given away")
            new = write(amount, "-", less, f" {item}") if less is not None else None
        if new is None or new < 2:
            return None
        amount = new
    if band > 1 and rng.random() < 0.4:  # a number that does not matter
        lines.insert(rng.randint(1, len(lines)), f"{other} is {rng.randint(7, 70)} years old.")
    lines.append(f"How many {item} does {who} have {rng.choice(('now', 'in the end'))}?")
    return " ".join(lines), steps, amount


# --- totals -------------------------------------------------------------------------------------------------------

_TOTALS: tuple[tuple[str, str, str, str], ...] = (
    ("{who} buys", "{n} packs of {item} at {p} dollars each", "What is the total in dollars?", "dollars"),
    ("{who} drives", "{n} hours at {p} kilometres an hour", "How many kilometres is that in all?", "kilometres"),
    ("A school orders", "{n} boxes of {p} {item}", "How many things is that in all?", "things"),
    ("A machine runs", "{n} hours making {p} {item} an hour", "How many parts does it make in all?", "parts"),
)


def _total(rng: random.Random, band: int) -> tuple[str, list[str], int] | None:
    who = rng.choice(NAMES)
    opening, part, ask, unit = rng.choice(_TOTALS)
    groups = []
    for name in rng.sample(_ITEMS, {1: 2, 2: 2, 3: 3, 4: 4}[band] - (band > 2 and rng.random() < 0.3)):
        n, p = rng.randint(2, 9), rng.randint(3, 20 * band)
        groups.append((n, p, name))
    texts = [part.format(n=n, p=p, item=item) for n, p, item in groups]
    question = f"{opening.format(who=who)} " + ", ".join(texts[:-1]) + f" and {texts[-1]}."
    steps: list[str] = []
    values: list[int] = []
    for n, p, name in groups:
        found = value(n, "*", p)
        if found is None:
            return None
        forms = ["{lead}{sum} {unit}.", "{lead}{sum}."]
        if "{item}" in part:
            forms.append("{lead}for the {item} we have {sum}.")
        form = rng.choice(forms)
        steps.append(form.format(lead=_lead(rng, not steps), sum=_sum(n, "*", p), unit=unit, item=name))
        values.append(found)
    running = values[0]
    for more in values[1:]:
        total = value(running, "+", more)
        if total is None:
            return None
        steps.append(f"{_lead(rng, False)}{rng.choice(('the sum is ', 'we add ', ''))}{_sum(running, '+', more)}.")
        running = total
    if band > 1 and rng.random() < 0.5:
        back = rng.randint(2, max(3, running - 1))
        ask_back = {
            "dollars": f"A voucher takes {back} dollars off. What is left to pay?",
            "kilometres": f"The whole trip is {running + back} kilometres. How many are left?",
        }.get(unit, f"{back} of them are broken. How many are good?")
        a, b = (running + back, running) if unit == "kilometres" else (running, back)
        left = value(a, "-", b)
        if left is None:
            return None
        steps.append(f"{_lead(rng, False)}{_sum(a, '-', b)} {unit}.")
        return f"{question} {ask_back}", steps, left
    return f"{question} {ask}", steps, running


# --- comparisons --------------------------------------------------------------------------------------------------


def _compare(rng: random.Random, band: int) -> tuple[str, list[str], int] | None:
    item = rng.choice(_ITEMS)
    people = rng.sample(NAMES, {1: 2, 2: 3, 3: 4, 4: 5}[band])
    have = {people[0]: _number(rng, band) + 5}
    facts = [f"{people[0]} has {have[people[0]]} {item}."]
    steps = [f"{_lead(rng, True)}{people[0]} = {have[people[0]]}."]
    for i, name in enumerate(people[1:], 1):
        base = rng.choice(people[max(0, i - 2) : i])
        a = have[base]
        op = rng.choice("++--**/" if band > 1 else "+-*")
        if op == "+":
            b = _number(rng, band)
            fact = f"{name} has {b} more {item} than {base}."
        elif op == "-":
            if a < 6:
                return None
            b = rng.randint(2, a - 2)
            fact = f"{name} has {b} fewer {item} than {base}."
        elif op == "*":
            b = rng.randint(2, 9 if band > 1 else 4)
            fact = f"{name} has {b} times as many {item} as {base}."
        else:
            divisors = [d for d in range(2, 10) if a % d == 0]
            if not divisors:
                return None
            b = rng.choice(divisors)
            fact = f"{base} has {b} times as many {item} as {name}."
        c = value(a, op, b)
        if c is None or c < 2:
            return None
        have[name] = c
        facts.append(fact)
        # Whose number counts, and how, is said before the number, and every number stands right behind its name: so a
        # network this small finds each with one look back. To find several things at once takes more layers.
        forms = ("it is {sum}", "we get {sum}", "{name} has {sum}")
        done = rng.choice(forms).format(sum=_sum(a, op, b), name=name)
        steps.append(f"{_lead(rng, False)}{name} is {base} {op} {b}, with {base} = {a} {done}, so {name} = {c}.")
    if rng.random() < 0.5:
        asked = people[-1]
        return " ".join([*facts, f"How many {item} does {asked} have?"]), steps, have[asked]
    running = have[people[0]]
    for name in people[1:]:
        total = value(running, "+", have[name])
        if total is None:
            return None
        steps.append(f"{_lead(rng, False)}{rng.choice(('together ', 'we add ', ''))}{_sum(running, '+', have[name])}.")
        running = total
    return " ".join([*facts, f"How many {item} do they have together?"]), steps, running


# --- algebra ------------------------------------------------------------------------------------------------------


def _algebra(rng: random.Random, band: int) -> tuple[str, list[str], int] | None:
    x = rng.randint(2, {1: 12, 2: 30, 3: 60, 4: 99}[band])
    var = rng.choice("xyn")
    a, b = rng.randint(2, 9), _number(rng, band)
    form = rng.choice(("linear", "bracket", "both", "pair") if band > 1 else ("linear", "bracket"))
    steps: list[str]
    if form == "linear":
        c = a * x + b
        equation = f"{a}{var} + {b} = {c}"
        steps = [f"{_sum(c, '-', b)}, so {a}{var} = {a * x}.", f"{var} = {_sum(a * x, '/', a)}."]
    elif form == "bracket":
        b = min(b, 60)
        if x + b > 99:
            return None
        c = a * (x + b)
        equation = f"{a}({var} + {b}) = {c}"
        steps = [f"{_sum(c, '/', a)}, so {var} + {b} = {x + b}.", f"{var} = {_sum(x + b, '-', b)}."]
    elif form == "both":
        d = rng.randint(1, a - 1)
        if a - d < 2:
            return None
        c = (a - d) * x + b
        equation = f"{a}{var} + {b} = {d}{var} + {c}"
        steps = [
            f"{_sum(a, '-', d)}, so {a - d}{var} + {b} = {c}.",
            f"{_sum(c, '-', b)}, so {a - d}{var} = {(a - d) * x}.",
            f"{var} = {_sum((a - d) * x, '/', a - d)}.",
        ]
    else:
        y = rng.randint(1, x)
        equation = f"{var} + m = {x + y} and {var} - m = {x - y}"
        steps = [
            f"{_sum(x + y, '+', x - y)}, so 2{var} = {2 * x}.",
            f"{var} = {_sum(2 * x, '/', 2)}.",
        ]
        if rng.random() < 0.5:
            asked = rng.randint(2, 9)
            steps.append(f"{_lead(rng, False)}m = {_sum(x + y, '-', x)}.")
            steps.append(f"{_lead(rng, False)}{_sum(y, '*', asked)}.")
            steps[0] = _lead(rng, True) + steps[0]
            return f"If {equation}, what is {asked} times m?", steps, y * asked
    steps = [_lead(rng, i == 0) + step for i, step in enumerate(steps)]
    if band > 1 and rng.random() < 0.6:  # and something to do with the value
        answer = x
        asks = [f"If {equation}, what is"]
        k, m = rng.randint(2, 9), _number(rng, band)
        product = value(x, "*", k)
        if product is None:
            return None
        steps.append(f"{_lead(rng, False)}{_sum(x, '*', k)}.")
        op = rng.choice("+-") if product > m + 2 else "+"
        total = value(product, op, m)
        if total is None:
            return None
        steps.append(f"{_lead(rng, False)}{_sum(product, op, m)}.")
        return f"{asks[0]} {k}{var} {op} {m}?", steps, total
    else:
        answer = x
        ask = rng.choice(("Solve {}.", "Solve for the unknown: {}.", "Find {v} if {}.")).format(equation, v=var)
    if rng.random() < 0.25 and form == "linear":
        steps.append(f"Check: {_sum(a, '*', x)} and {_sum(a * x, '+', b)}.")
    return ask, steps, answer


_MAKERS: dict[str, Callable[[random.Random, int], tuple[str, list[str], int] | None]] = {
    "expression": _expression,
    "story": _story,
    "total": _total,
    "compare": _compare,
    "algebra": _algebra,
}
