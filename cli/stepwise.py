"""`pointsman stepwise`: trains a stepwise policy for a pair of models, from questions to a policy file."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import sys
from inspect import signature
from pathlib import Path
from typing import Any

from cli.called import CalledWrongly, number, url
from cli.main import told
from stepwise.train.algorithms import ALGORITHMS, ASK

ENDS = ("auto", "blank", "line", "sentence")
"""`stepwise.steps.Ends`, whose module would make every command slower to start."""
_PRICE, _SHARE = number(0.0), number(0.0, 1.0)
SUMMARY = "train, calibrate, evaluate and export a stepwise policy for a pair of models"


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser("stepwise", help=SUMMARY, description=SUMMARY)
    commands = parser.add_subparsers(dest="stepwise_command", required=True, metavar="COMMAND")

    def command(name: str, text: str, *, models: bool = False) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
        made.add_argument("--work", type=Path, required=True, help="the project's folder")
        if models:
            made.add_argument("--writer", metavar="MODULE", help="models in this process, e.g. examples.tinylm.writer")
            made.add_argument(
                "--small-url", type=url, metavar="URL", help="OpenAI-compatible address of the small model"
            )
            made.add_argument(
                "--large-url", type=url, metavar="URL", help="OpenAI-compatible address of the large model"
            )
            for size in ("small", "large"):
                about = f"chat template (Jinja) of the {size} model, if it thinks and its server does not tell it"
                made.add_argument(f"--{size}-template", metavar="FILE", type=Path, help=about)
            made.add_argument(
                "--temperature",
                type=number(0.0),
                default=0.0,
                help="temperature of both models (0)",
            )
        return made

    _add_collect(command("collect", "write the trees of a set of questions (goes on where it stopped)", models=True))
    _add_train(command("train", "train networks on the policy set"))
    _add_calibrate(command("calibrate", "pick thresholds that keep a promise, on the calibration set", models=True))
    _add_evaluate(command("evaluate", "compare all strategies on the test set: a table and a plot", models=True))
    _add_export(command("export", "write the policy file"))

    text = "show what a policy file says of itself"
    inspect = commands.add_parser("inspect", help=text, description=text)
    inspect.add_argument("file", type=Path)


def _add_collect(parser: argparse.ArgumentParser) -> None:
    """What the trees are written from, and how large they get."""
    parser.add_argument("--set", choices=("policy", "calibration", "test"), required=True)
    parser.add_argument("--questions", type=Path, help="JSONL with question and answer (needed the first time)")
    parser.add_argument("--count", type=number(1), help="take only this many questions, the first ones")
    parser.add_argument("--small", default="tinylm-small", help="name under which the small model is served")
    parser.add_argument("--large", default="tinylm-large", help="name under which the large model is served")
    parser.add_argument("--price-small", type=_PRICE, default=1.0, help="price of one token, in any unit")
    parser.add_argument("--price-large", type=_PRICE, default=10.0)
    parser.add_argument(
        "--price-read", type=_PRICE, help="price of one token that the large model reads for a mark (--price-large)"
    )
    parser.add_argument("--min-tokens", type=number(1), default=8, help="the fewest tokens of a step")
    parser.add_argument("--max-tokens", type=number(1), default=512, help="the most tokens of a step")
    parser.add_argument("--ends", choices=ENDS, help="what ends a step (auto)")
    parser.add_argument("--answer-tokens", type=number(1), default=4096, help="the most tokens of an answer (4096)")
    parser.add_argument(
        "--redos", type=number(0), default=2, help="try every choice of up to this many rewritten steps"
    )
    parser.add_argument("--mixtures", type=number(0), default=3, help="random mixtures besides these")
    parser.add_argument("--marks", action="store_true", help="have the large model mark every draft, for asking")
    parser.add_argument("--at-once", type=number(1), default=32, help="questions that are answered at the same time")


def _add_train(parser: argparse.ArgumentParser) -> None:
    """How networks are trained."""
    parser.add_argument("--algorithm", choices=(*ALGORITHMS, "all"), default="all")
    parser.add_argument("--alpha", type=_SHARE, default=0.01, help="share of avoidable errors that training aims at")
    parser.add_argument("--multiplier", type=number(0.0), default=3.0, help="Lagrange multiplier at the start")
    parser.add_argument(
        "--updates", type=number(1), default=800, help="updates of V-trace; PPO does a quarter as many rounds"
    )
    parser.add_argument("--seed", type=number(0), default=0)


def _add_calibrate(parser: argparse.ArgumentParser) -> None:
    """What is promised."""
    parser.add_argument("--algorithm", choices=ALGORITHMS, default="vtrace")
    parser.add_argument(
        "--policy",
        type=Path,
        metavar="FILE",
        help="a policy file that is to ask, too: thresholds for asking are put beside its rows, which stay as they are",
    )
    parser.add_argument("--delta", type=_SHARE, default=0.1, help="probability with which a promised bound may fail")
    parser.add_argument(
        "--loss", type=_SHARE, nargs="*", default=(0.005, 0.01, 0.02, 0.03, 0.05, 0.1), help="accuracy_loss targets"
    )
    parser.add_argument(
        "--cost", type=number(0.0), nargs="*", default=(0.3, 0.4, 0.5, 0.6, 0.7, 0.8), help="cost targets"
    )


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    """What is compared."""
    parser.add_argument("--algorithm", choices=ALGORITHMS, nargs="*", help="default: all trained")
    parser.add_argument("--max-redos", type=number(0), default=8)
    parser.add_argument(
        "--latency",
        type=number(0),
        default=20,
        metavar="N",
        help="measure the time of this many answers, where the models have addresses (0: none)",
    )


def _add_export(parser: argparse.ArgumentParser) -> None:
    """What is written."""
    parser.add_argument("--algorithm", choices=ALGORITHMS, default="vtrace")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--card", type=Path, help="also write a page about the policy, with the report")


def run(args: argparse.Namespace) -> int:
    try:
        _check(args)
        asyncio.run(_run(args))
    except CalledWrongly:
        raise
    except ModuleNotFoundError as error:
        print(f"pointsman stepwise: {error}; training needs `pip install -e '.[train]'`", file=sys.stderr)
        return 1
    except Exception as error:
        if (expected := _expected(error)) is None:
            raise
        print(f"pointsman stepwise {args.stepwise_command}: {told(expected)}", file=sys.stderr)
        unread = expected.__cause__ if isinstance(expected, ValueError) else expected
        return 2 if isinstance(unread, OSError) else 1
    return 0


def _check(args: argparse.Namespace) -> None:
    """Raises CalledWrongly for arguments that do not go together, before anything is read or written."""
    command = args.stepwise_command
    if command == "collect" and args.max_tokens < args.min_tokens:
        raise CalledWrongly(f"--max-tokens {args.max_tokens} is less than --min-tokens {args.min_tokens}")
    if command == "collect" and args.answer_tokens < args.min_tokens:
        raise CalledWrongly(f"--answer-tokens {args.answer_tokens} is less than --min-tokens {args.min_tokens}")
    if command == "calibrate" and args.policy is not None and not args.algorithm.endswith(ASK):
        raise CalledWrongly(f"--policy is for policies that ask, so for --algorithm {args.algorithm}{ASK}")
    if command not in ("collect", "calibrate", "evaluate"):
        return
    if (args.small_url is None) != (args.large_url is None):
        raise CalledWrongly("--small-url and --large-url belong together: give both, or neither")
    if command == "collect" and args.small_url is None and args.writer is None:
        raise CalledWrongly("needs the models: --small-url and --large-url, or --writer")
    if args.writer is None:
        return
    try:
        module = importlib.import_module(args.writer)
    except (ModuleNotFoundError, TypeError, ValueError) as error:  # the latter two: of a name that can be none
        if isinstance(error, ModuleNotFoundError) and not f"{args.writer}.".startswith(f"{error.name}."):
            raise  # something that the module wants
        why = "it names a module of yours, as Python imports it: is its folder in PYTHONPATH?"
        raise CalledWrongly(f"--writer {args.writer}: {error}; {why}") from None
    if not hasattr(module, "open_writer"):
        raise CalledWrongly(f"--writer {args.writer}: the module has no open_writer(limits)")
    if args.temperature and "temperature" not in signature(module.open_writer).parameters:
        raise CalledWrongly(f"--temperature: --writer {args.writer} has no open_writer(limits, temperature)")


def _expected(error: BaseException) -> BaseException | None:
    """The first of the errors that a caller can expect, within those that tasks failed with together."""
    from upstream.client import DeadlineError, UpstreamError

    if isinstance(error, BaseExceptionGroup):
        found = [_expected(one) for one in error.exceptions]
        return None if None in found else found[0]
    # A StepPolicyError is a ValueError, and so is Missing.
    return error if isinstance(error, (ValueError, OSError, UpstreamError, DeadlineError)) else None


def _inspect(path: Path) -> None:
    """Prints what a policy file states about itself. Needs none of the packages that training needs."""
    from stepwise.policy import StepPolicy

    policy = StepPolicy(path, device="cpu")
    card = policy.card
    policy.close()
    print(f"{path} (sha256 {card.sha256[:16]}), trained at commit {card.commit}")
    sizes = f"{card.steps.min_tokens} to {card.steps.max_tokens} tokens"
    print(f"pair: {card.small} and {card.large}; steps of {sizes}, which end by: {card.steps.ends}")
    warm = f" at temperature {card.temperature:g}" if card.temperature else ""
    size = f"calibrated on {card.calibration_size} questions{warm}"
    print(f"{size}; accuracy_loss is of what the large model alone gets right")
    if card.marks is not None:
        print(f"may ask the large model for a mark, by {card.marks}; kappa alone holds where there is none")
    for row in card.rows:
        asks = ""
        if row.ask is not None:
            asks = f"; asks from {row.ask.low:.4f} to {row.ask.high:.4f}, kept from the mark {row.ask.mark:.4f} on"
        print(f"  {row.kind} <= {row.target:g} with probability {1 - row.delta:g}: kappa {row.kappa:.4f}{asks}")


async def _run(args: argparse.Namespace) -> None:
    if args.stepwise_command == "inspect":
        _inspect(args.file)
        return
    from stepwise.train import run as work
    from stepwise.train.calibrate import Promises
    from stepwise.train.collect import Plan
    from stepwise.train.endpoints import EndpointWriter
    from stepwise.train.problem import Goal
    from stepwise.train.project import Project, ProjectSettings, open_writer
    from upstream.endpoint import Endpoint

    command = args.stepwise_command
    if command == "collect":
        settings = ProjectSettings(
            args.small,
            args.large,
            args.price_small,
            args.price_large,
            args.min_tokens,
            args.max_tokens,
            answer_tokens=args.answer_tokens,
            ends=Project.ends(args.work, args.ends),
            price_read=args.price_read,
        )
        project = Project.start(args.work, settings)
        project.questions(args.set, args.questions, args.count)
    else:
        project = Project(args.work)
    if command == "train":
        names = work.of(project) if args.algorithm == "all" else (args.algorithm,)
        work.do_train(project, names, Goal(args.alpha, args.multiplier), seed=args.seed, updates=args.updates)
        return
    if command == "export":
        work.do_export(project, args.algorithm, args.out, args.card)
        return
    places = (args.small_url, args.small_template), (args.large_url, args.large_template)
    small, large = (
        None if url is None else Endpoint(url.removesuffix("/v1"), name, template=template and template.read_text())
        for name, (url, template) in zip((project.settings.small, project.settings.large), places, strict=True)
    )
    ends = (small, large) if small and large else None
    async with open_writer(project.settings, args.writer, ends, args.temperature) as writer:
        if command == "collect":
            assert writer is not None
            plan = Plan(args.redos, args.mixtures, marks=args.marks)
            await work.do_collect(project, args.set, writer, plan, args.at_once)
        elif command == "calibrate":
            wanted = Promises(args.loss, args.cost, args.delta, args.temperature)
            await work.do_calibrate(project, args.algorithm, writer, wanted, args.policy)
        else:
            trained = [name for name in ALGORITHMS if (args.work / f"{name}.onnx").exists()]
            async with open_writer(project.settings, None, ends if args.latency else None, 0.0) as served:
                assert served is None or isinstance(served, EndpointWriter)
                timed = None if served is None else work.TimedModels(served, args.latency)
                await work.do_evaluate(project, args.algorithm or trained, writer, args.max_redos, timed)
