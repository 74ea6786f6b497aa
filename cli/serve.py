"""`pointsman serve POLICY`: the ext_proc service alone."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.called import number, url

if TYPE_CHECKING:
    from decisions.engine import Engine
    from extproc.transport.tls import TlsFiles

SUMMARY = "run the ext_proc service"


def add(subparsers: Any) -> None:
    parser: argparse.ArgumentParser = subparsers.add_parser("serve", help=SUMMARY, description=SUMMARY)
    parser.add_argument("policy", type=Path, metavar="POLICY", help="the policy file; watched, and reloaded on SIGHUP")
    parser.add_argument("--listen", default="127.0.0.1:50051", metavar="ADDR", help="host:port or unix:PATH")
    _add_admin(parser)
    parser.add_argument(
        "--workers", type=number(1, 256), default=None, metavar="N", help="processes (default: one per core)"
    )
    parser.add_argument(
        "--transport", choices=("auto", "http2", "grpcio"), default="auto", help="default: grpcio with TLS, else http2"
    )
    _add_tls(parser)
    parser.add_argument(
        "--drain-wait",
        type=number(0.0, 3_600.0),
        default=3.0,
        metavar="S",
        help="go on serving for S seconds after SIGTERM, as NOT_SERVING",
    )
    parser.add_argument(
        "--grace",
        type=number(0.0, 3_600.0),
        default=30.0,
        metavar="S",
        help="then wait at most S seconds for open streams",
    )
    parser.add_argument(
        "--poll", type=number(0.0, 3_600.0), default=1.0, metavar="S", help="look for a new policy every S seconds"
    )
    parser.add_argument(
        "--models-through",
        type=url,
        metavar="URL",
        help="Envoy's internal listener, through which stepwise and panel answers call models",
    )
    parser.add_argument(
        "--writers-listen",
        "--stepwise-listen",
        metavar="ADDR",
        help="stepwise and panel answers over HTTP, for proxies that cannot take them from the exchange (default: off)",
    )
    _add_candidate(parser)
    _add_decision_log(parser)
    parser.add_argument("--traces", action="store_true", help="OpenTelemetry spans, as the OTEL_* variables say")
    parser.add_argument(
        "--log-format", choices=("json", "console"), default=None, help="default: console on a terminal"
    )
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")


def _add_admin(parser: argparse.ArgumentParser) -> None:
    """The admin port, and what the console on it may do."""
    parser.add_argument(
        "--admin",
        metavar="ADDR",
        help="console, livez, readyz, metrics, policy, outcomes, debug/decisions (default: off)",
    )
    parser.add_argument(
        "--admin-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a host name under which the admin port answers, beside addresses and localhost (repeatable)",
    )
    parser.add_argument(
        "--admin-token-file",
        type=Path,
        metavar="FILE",
        help="the admin port asks for the token in FILE, but for livez, readyz and metrics",
    )
    parser.add_argument(
        "--playground", action="store_true", help="let the console try requests against edited copies of the policy"
    )
    parser.add_argument(
        "--gateway",
        type=url,
        metavar="URL",
        help="where the console's playground sends requests when it is asked to: Envoy, as clients reach it",
    )
    parser.add_argument(
        "--console-content",
        action="store_true",
        help="show what users said with the newest decisions, personal data masked",
    )


def _add_tls(parser: argparse.ArgumentParser) -> None:
    """TLS on the ext_proc port."""
    parser.add_argument("--tls-cert", metavar="FILE", help="PEM certificate chain of the ext_proc port")
    parser.add_argument("--tls-key", metavar="FILE", help="its private key")
    parser.add_argument(
        "--tls-client-ca", metavar="FILE", help="ask clients for a certificate of this authority (mTLS)"
    )
    parser.add_argument(
        "--tls-client-san",
        action="append",
        default=[],
        metavar="NAME",
        help="let in only clients whose certificate carries this DNS name or URI (repeatable)",
    )


def _add_candidate(parser: argparse.ArgumentParser) -> None:
    """A second policy beside the one in force."""
    parser.add_argument(
        "--candidate",
        type=Path,
        metavar="FILE",
        help="a second policy that decides every request as well, without effect",
    )
    parser.add_argument(
        "--canary",
        type=number(0.0, 100.0),
        default=0.0,
        metavar="PERCENT",
        help="share of the sessions that the candidate decides with effect",
    )


def _add_decision_log(parser: argparse.ArgumentParser) -> None:
    """What is written down of decisions."""
    parser.add_argument("--decision-log", metavar="FILE", help="one JSON line per decision, to a file or - for stdout")
    parser.add_argument(
        "--decision-log-sample",
        type=number(0.0, 1.0),
        default=1.0,
        metavar="SHARE",
        help="share of the decisions that are logged, 0 to 1",
    )
    parser.add_argument(
        "--decision-log-content", action="store_true", help="log the requests too, with personal data masked"
    )
    parser.add_argument(
        "--decision-log-header", action="append", default=[], metavar="NAME", help="a further request header to log"
    )
    parser.add_argument(
        "--decision-log-buffer",
        type=number(1, 65_536),
        default=64,
        metavar="MIB",
        help="memory for lines that wait to be written, in each worker (default: 64)",
    )


def run(args: argparse.Namespace) -> int:
    from config.watch import Rejected
    from extproc.admin.port import Allowed
    from extproc.records import log
    from extproc.records.decisionlog import LogOptions
    from extproc.serving.server import Options

    log.setup(args.log_format or ("console" if sys.stderr.isatty() else "json"), args.log_level)
    try:
        tls = _tls(args)
        if args.canary and args.candidate is None:
            raise ValueError("--canary needs a --candidate to send its share to")
        decision_log = None
        if args.decision_log is not None:
            content, headers = args.decision_log_content, tuple(args.decision_log_header)
            decision_log = LogOptions(
                args.decision_log, args.decision_log_sample, content, headers, args.decision_log_buffer * 2**20
            )
            decision_log.try_it()
        playground = (sys.executable, "-m", "cli.playground", str(args.policy)) if args.playground else ()
        options = Options(
            policy=args.policy,
            listen=args.listen,
            admin=args.admin,
            transport=args.transport,
            tls=tls,
            workers=args.workers or len(os.sched_getaffinity(0)),
            drain_wait=args.drain_wait,
            grace=args.grace,
            poll=args.poll,
            gate=_gate,
            models_through=args.models_through,
            stepwise_listen=args.writers_listen,
            candidate=args.candidate,
            canary=args.canary / 100,
            decision_log=decision_log,
            traces=args.traces,
            admin_hosts=tuple(args.admin_host),
            admin_token=args.admin_token_file,
            allowed=Allowed(playground, args.gateway, args.console_content),
        )
        _ = options.callers  # its token is read here, where an error ends it all
        if tls is not None:
            tls.read()  # here, where an error ends it all: a worker's would have it started again
        if options.workers == 1:
            from extproc.serving.server import run as serve
        else:
            from extproc.serving.supervisor import run as serve
        return serve(options)
    except Rejected as error:
        print(error, file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"pointsman serve: {error}", file=sys.stderr)
        return 2


def _tls(args: argparse.Namespace) -> TlsFiles | None:
    """Raises ValueError for files that do not go together."""
    from extproc.transport.tls import TlsFiles

    if args.tls_client_san and not args.tls_client_ca:
        raise ValueError("--tls-client-san needs --tls-client-ca: who signs those certificates")
    if not (args.tls_cert or args.tls_key or args.tls_client_ca):
        return None
    if not (args.tls_cert and args.tls_key):
        raise ValueError("TLS needs both --tls-cert and --tls-key")
    return TlsFiles(args.tls_cert, args.tls_key, args.tls_client_ca, tuple(args.tls_client_san))


def _gate(engine: Engine, cases: Path) -> None:
    from cli.test import gate  # only policies that have cases pay for it

    gate(engine, cases)
