"""`pointsman select`: learns from graded answers which model suits which requests, and says what a choice is worth."""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import math
import sys
import zlib
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.called import CalledWrongly, number, url

if TYPE_CHECKING:
    from signals.neural.foretelling import Way

SUMMARY = "learn from graded answers which model suits which requests, and say what a choice is worth"


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser("select", help=SUMMARY, description=SUMMARY)
    commands = parser.add_subparsers(dest="select_command", required=True, metavar="COMMAND")

    text = "train a file for `by: irt`, `nearest` or `quality`"
    train = commands.add_parser("train", help=text, description=text)
    train.add_argument(
        "outcomes", type=Path, metavar="OUTCOMES.jsonl", help="graded answers (.gz too), one question a line"
    )
    train.add_argument("--by", metavar="KIND", help="the selector that it is for (irt)")
    train.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file")
    train.add_argument(
        "--price", action="append", default=[], metavar="MODEL=NUMBER", help="price of a call (repeatable)"
    )
    train.add_argument("--seed", type=number(0), default=0)

    text = "print the questions whose grades say most of a model that joins, one outcome a line, without scores"
    questions = commands.add_parser("questions", help=text, description=text)
    questions.add_argument("outcomes", type=Path, metavar="OUTCOMES.jsonl", help="graded answers of other models")
    questions.add_argument("--count", type=number(1), default=50, metavar="N", help="how many questions (50)")
    questions.add_argument("--of", type=number(0.0), metavar="NUMBER", help="price of a call of the model that joins")
    questions.add_argument(
        "--for", dest="joins", metavar="MODEL", help="the model that joins; its grades so far, in the file, count"
    )
    questions.add_argument(
        "--price", action="append", default=[], metavar="MODEL=NUMBER", help="price of a call (repeatable)"
    )
    questions.add_argument("--seed", type=number(0), default=0)

    text = "say what choices are worth on graded answers: quality, cost, and how much of what could be gained"
    evaluate = commands.add_parser("evaluate", help=text, description=text)
    evaluate.add_argument("outcomes", type=Path, metavar="OUTCOMES.jsonl", help="graded answers (.gz too)")
    source = evaluate.add_mutually_exclusive_group()
    source.add_argument("--file", type=Path, help="a file of `select train`")
    source.add_argument("--policy", type=Path, help="a policy, whose choice is evaluated")
    evaluate.add_argument("--decision", metavar="NAME", help="the decision of the policy; its first choice of models")
    evaluate.add_argument("--by", metavar="KIND", help="the kind of selector, where no policy says it")
    evaluate.add_argument(
        "--at-least", type=number(0.0, 1.0), default=0.8, help="the quality that `--by quality` wants (0.8)"
    )
    evaluate.add_argument("--stream", action="store_true", help="reveal only the grade of the model that was chosen")
    evaluate.add_argument(
        "--seed", type=number(0), default=0, help="order of the questions of a stream, and its chances"
    )
    evaluate.add_argument(
        "--price", action="append", default=[], metavar="MODEL=NUMBER", help="price of a call (repeatable)"
    )
    evaluate.add_argument("--plot", type=Path, metavar="FILE", help="draw quality by cost (needs matplotlib)")
    evaluate.add_argument("-o", "--output", choices=("text", "json"), default="text")

    text = "show what was learned: by `select train`, or from grades"
    inspect = commands.add_parser("inspect", help=text, description=text)
    inspect.add_argument("file", type=Path, nargs="?", metavar="FILE", help="a file of `select train`")
    _where(inspect)
    inspect.add_argument("-o", "--output", choices=("text", "json"), default="text")

    text = "write what choices have learned from grades"
    export = commands.add_parser("export", help=text, description=text)
    _where(export)
    export.add_argument("--out", type=Path, metavar="FILE", help="the file (standard output)")

    text = "add what `select export` has written to what choices have learned"
    taking = commands.add_parser("import", help=text, description=text)
    taking.add_argument("file", type=Path, metavar="FILE", help="a file of `select export`")
    _where(taking, decision=False)

    text = "forget what choices have learned from grades"
    _where(commands.add_parser("reset", help=text, description=text))


def _where(parser: argparse.ArgumentParser, *, decision: bool = True) -> None:
    """Where what was learned from grades is."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--policy", type=Path, help="a policy, in whose state store it is")
    source.add_argument(
        "--admin", type=url, metavar="URL", help="the admin port of a router, such as http://127.0.0.1:8080"
    )
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="the token that the admin port asks for")
    if decision:
        parser.add_argument("--decision", metavar="NAME", help="of this decision only")


def run(args: argparse.Namespace) -> int:
    try:
        match args.select_command:
            case "train":
                return _train(args)
            case "questions":
                return _questions(args)
            case "evaluate":
                return _evaluate(args)
            case "inspect" if args.file is not None:
                if args.policy is not None or args.admin is not None:
                    raise CalledWrongly("give FILE, or --policy, or --admin, and only one of them")
                return _inspect(args)
            case command:
                from cli.standing import run as standing

                return standing(command, args)
    except CalledWrongly:
        raise
    except (ValueError, ModuleNotFoundError) as error:
        print(f"pointsman select {args.select_command}: {error}", file=sys.stderr)
        return 1


def _train(args: argparse.Namespace) -> int:
    from cli.selecting import named, ways
    from signals.train.choices import Asked, train

    rows = _together(_rows(args.outcomes))
    models = sorted({model for row in rows for model in row["scores"]})
    grades = _matrix(rows, models, "scores")
    prices = _prices(args.price, models, rows)
    known = ways()
    by = next(iter(known)) if args.by is None else args.by
    if by not in known:
        raise CalledWrongly(f"--by {args.by}: a file is read by {', '.join(known)}")
    way: Way = "neighbours" if known[by] == "neighbours" else "abilities"
    asked = [Asked(row["text"], category) for row, category in zip(rows, named(rows), strict=True)]
    made = train(asked, grades, prices, way, args.seed)
    made.card["trained_on"] = args.outcomes.name
    made.save(args.out)
    apart = made.card["foretold_apart"]
    print(
        f"{args.out}: {len(models)} models, {made.card['questions']} questions; on questions left out its choice gets "
        f"{apart['mean']:.3f}, the best single model {apart['best_single']:.3f}"
    )
    return 0


def _questions(args: argparse.Namespace) -> int:
    import numpy as np

    from cli.selecting import named
    from signals.train.joining import Newcomer, Newcomers

    rows = _together(_rows(args.outcomes), once=True)
    joins = args.joins
    models = sorted({model for row in rows for model in row["scores"]})
    if joins is None:
        extra = [price for price in args.price if price.rpartition("=")[0] not in models]
        if extra:
            raise CalledWrongly(f"--price {extra[0]}: no model of the outcomes; name one that joins by --for")
    elif not joins.isprintable() or not joins.strip():
        raise CalledWrongly(f"--for {joins!r}: write the model's name")
    prices = _prices(args.price, models if joins in {None, *models} else [*models, joins], rows)
    own = _matrix(rows, [joins], "scores")[:, 0]
    tried = np.flatnonzero(~np.isnan(own))
    others = [model for model in models if model != joins]
    price = args.of if args.of is not None else prices.get(joins, math.nan)
    unpriced = [model for model in others if not prices[model] > 0]
    if price > 0 and unpriced:
        print(f"pointsman select questions: {unpriced[0]} has no price, so that prices say nothing: give every model "
              "one above 0 by --price, or `costs` in its lines", file=sys.stderr)  # fmt: skip
    newcomers = Newcomers(_matrix(rows, others, "scores"), named(rows), np.array([prices[model] for model in others]))
    newcomer = Newcomer(price, tried, own[tried])
    if joins is not None:
        mean, off = newcomers.expected(newcomer)
        print(f"{joins}: {mean:.3f} ± {off:.3f} on all {len(rows)} questions, by {len(tried)} grades", file=sys.stderr)
    for at in newcomers.questions(args.count, newcomer, args.seed).tolist():
        shown = {key: value for key, value in rows[at].items() if key not in ("text", "scores", "rewards", "costs")}
        print(json.dumps({**shown, "scores": {}}, ensure_ascii=False))
    return 0


def _together(rows: Iterable[dict[str, Any]], *, once: bool = False) -> list[dict[str, Any]]:
    """The rows; what one says of other models than the first of the same question goes there: a model that joins has
    lines of its own. Where both speak of the same model they stay two, or, where each question is wanted `once`, the
    first holds."""
    found: list[dict[str, Any]] = []
    first: dict[str, dict[str, Any]] = {}
    for row in rows:
        asked = row["text"] if row.get("request") is None else json.dumps(row["request"], sort_keys=True)
        before = first.setdefault(asked, row)
        if before is row or (not once and before["scores"].keys() & row["scores"].keys()):
            found.append(row)
        else:
            before["scores"], before["costs"] = row["scores"] | before["scores"], row["costs"] | before["costs"]
    return found


def _evaluate(args: argparse.Namespace) -> int:
    from cli.selecting import Table, evaluated, foretold, streamed, text_of

    if args.plot is not None and find_spec("matplotlib") is None:  # before minutes of work are lost
        raise ValueError("--plot needs matplotlib: pip install matplotlib")
    rows = _together(_rows(args.outcomes))
    models = sorted({model for row in rows for model in row["scores"]})
    table = Table(
        rows,
        models,
        _matrix(rows, models, "scores"),
        _matrix(rows, models, "costs"),
        _given(args.price, models),
        args.seed,
    )
    if args.file is not None:
        found = foretold(table, args.file, args.by, args.at_least)
    else:
        found = asyncio.run(streamed(table, args.policy, args.decision, args.by, learn=args.stream))
    result = evaluated(table, found)
    if args.plot is not None:
        _draw(result, args.plot)
    print(json.dumps(result) if args.output == "json" else text_of(result))
    return 0


def _inspect(args: argparse.Namespace) -> int:
    from signals.neural.foretelling import Foretelling

    made = Foretelling.load(args.file)
    prices = {name: None if math.isnan(price) else price for name, price in made.prices.items()}
    bars = {f"{share:.2f}": round(bar, 3) for share, bar in made.bars.T.tolist()}
    weights = {
        name: [round(one, 3) for one in row] for name, row in zip(made.models, made.weights.tolist(), strict=True)
    }
    shown = {"way": made.way, "card": made.card, "prices": prices, "weights": weights, "bars": bars}
    if args.output == "json":
        print(json.dumps(shown))
        return 0
    print(f"{args.file}: {made.way}, {made.card['questions']} questions")
    for name in made.models:
        price = "" if prices[name] is None else f", price {prices[name]:g}"
        print(f"  {name}: mean {made.card['means'][name]:.3f}{price}")
    return 0


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file of outcomes, each with its `text`. Raises ValueError with the line, OSError."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8-sig") as file:
        try:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        yield _row(json.loads(line))
                    except json.JSONDecodeError as error:
                        raise ValueError(f"{path}:{number}:{error.colno}: not JSON: {error.msg}") from None
                    except RecursionError:
                        raise ValueError(f"{path}:{number}: nested too deep") from None
                    except (ValueError, TypeError) as error:
                        raise ValueError(f"{path}:{number}: {error}") from None
        except UnicodeDecodeError:
            raise ValueError(f"{path}: not UTF-8") from None
        except (gzip.BadGzipFile, EOFError, zlib.error):
            raise ValueError(f"{path}: not gzip as its name says, or cut off") from None


def _row(row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError('an object is needed: {"question": …, "scores": {model: 0 to 1}}')
    scores = row.get("scores", row.get("rewards"))
    if not isinstance(scores, dict) or not scores:
        raise ValueError("`scores` (or `rewards`) are needed, {model: 0 to 1}: fill them in, or leave the line out")
    costs = row.get("costs") or {}
    if not isinstance(costs, dict):
        raise ValueError("`costs` are {model: number}")
    for name, numbers, most in (("scores", scores, 1.0), ("costs", costs, sys.float_info.max)):
        for model, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
                raise ValueError(f"`{name}` of {model}: {'0 to 1' if most == 1 else 'a number from 0'} is needed")
    request = row.get("request")
    text = row.get("question")
    if isinstance(request, dict):
        text = "\n".join(_said(request)) or text
    if not isinstance(text, str) or not _whole(text):
        raise ValueError("`question` (a text) or `request` (the body of a chat completion) is needed")
    return {**row, "text": text, "scores": scores, "costs": costs}


def _whole(text: str) -> bool:
    """Whether it can be written as UTF-8: JSON may escape half of a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _said(request: dict[str, Any]) -> Iterator[str]:
    """What the user says last."""
    messages = request.get("messages")
    if not isinstance(messages, list):
        messages = []
    turns = [turn for turn in messages if isinstance(turn, dict) and turn.get("role") == "user"]
    content = turns[-1].get("content") if turns else None
    parts = content if isinstance(content, list) else [{"text": content}]
    yield from (part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str))


def _matrix(rows: list[dict[str, Any]], models: list[str], key: str) -> Any:
    import numpy as np

    if not rows:
        raise ValueError("there are no outcomes")
    return np.array([[float(row[key].get(model, math.nan)) for model in models] for row in rows], np.float64)


def _given(prices: list[str], models: list[str]) -> dict[str, float]:
    """The prices of `--price`. Raises CalledWrongly."""
    found: dict[str, float] = {}
    for price in prices:
        name, _, number = price.rpartition("=")
        try:
            found[name] = float(number)
        except ValueError:
            found[name] = math.nan
        if name not in models or not 0 <= found[name] <= sys.float_info.max:
            raise CalledWrongly(
                f"--price {price}: write MODEL=NUMBER, with one of {', '.join(models)} and a number from 0 on"
            )
    return found


def _prices(given: list[str], models: list[str], rows: list[dict[str, Any]]) -> dict[str, float]:
    """The price of each model: as given, or the mean of its costs; NaN where nobody knows."""
    import numpy as np

    told = _given(given, models)
    costs = _matrix(rows, models, "costs")
    means = {model: float(costs[:, at][~np.isnan(costs[:, at])].mean()) for at, model in enumerate(models)
             if not np.isnan(costs[:, at]).all()}  # fmt: skip
    return {model: told.get(model, means.get(model, math.nan)) for model in models}


def _draw(result: dict[str, Any], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots()
    budgets = result["budgets"]
    for key, label in (("mean", "choice"), ("best_single", "best single model"), ("table", "table per category")):
        points = [(one["cost"], one[key]) for one in budgets if one[key] is not None]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=label)
    axes.plot([result["cost"]], [result["mean"]], "k*", label="as evaluated")
    axes.set(xlabel="cost", ylabel="quality")
    axes.legend()
    figure.savefig(path)
