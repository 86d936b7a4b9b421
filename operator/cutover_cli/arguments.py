"""The command line of `kubectl cutover`."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime, timedelta
from typing import Any

from cutover.api.base import to_seconds
from cutover_cli.orders import ACTIONS, MEANING

KINDS = {
    "rollout": "rollout",
    "rollouts": "rollout",
    "modelrollout": "rollout",
    "mro": "rollout",
    "run": "run",
    "runs": "run",
    "trainingrun": "run",
    "tr": "run",
}

MOST_RPS = 1e6


def parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("-n", "--namespace", help="namespace of the object; default: the context's")
    shared.add_argument("--context", help="kubeconfig context")
    shared.add_argument("--kubeconfig", help="kubeconfig file")
    top = argparse.ArgumentParser(
        prog="kubectl cutover", description="Watch and steer TrainingRuns and ModelRollouts."
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    get = commands.add_parser("get", parents=[shared], help="show rollouts or training runs")
    get.add_argument("kind", type=_kind, metavar="{rollout,run}")
    get.add_argument("name", nargs="?", help="one object in full; without it a list")
    get.add_argument("-A", "--all-namespaces", action="store_true", help="list all namespaces")
    get.add_argument("-w", "--watch", action="store_true", help="show it again whenever it changes")
    status = commands.add_parser(
        "status",
        parents=[shared],
        help="wait for the end: exit 0 promoted, 1 rolled back, aborted or superseded, 2 not ended in time",
    )
    status.add_argument("name")
    status.add_argument(
        "--timeout", type=_duration, default=0.0, help="how long to wait, for example 60s or 2h"
    )
    explain = commands.add_parser("explain", parents=[shared], help="why a rollout is where it is")
    explain.add_argument("name")
    report = commands.add_parser(
        "report",
        parents=[shared],
        help="the written report: decisions, numbers, savings and lessons (Markdown)",
    )
    report.add_argument("name")
    _add_backtest(commands)
    _add_simulate(commands)
    for action in ACTIONS:
        order = commands.add_parser(action, parents=[shared], help=MEANING[action])
        order.add_argument("name")
        order.add_argument(
            "--timeout",
            type=_duration,
            default=30.0,
            help="how long to wait for the operator; 0s does not wait",
        )
    return top


def _add_backtest(commands: Any) -> None:
    backtest = commands.add_parser(
        "backtest", help="what would have been decided when, on samples Prometheus has kept or a file holds"
    )
    backtest.add_argument(
        "-f", "--file", required=True, help="manifest with the ModelRollout; - reads standard input"
    )
    backtest.add_argument("--name", default="", help="which ModelRollout, when the manifest has several")
    backtest.add_argument(
        "--from", dest="start", type=_moment, help="begin: 2026-11-23T08:00:00Z, or 26h for so long ago"
    )
    backtest.add_argument("--to", dest="end", type=_moment, help="end; default: now, or the end of the file")
    source = backtest.add_mutually_exclusive_group()
    source.add_argument("--prometheus", metavar="URL", help="default: the manifest's analysis.prometheus.url")
    source.add_argument("--samples", metavar="FILE", help="samples kept by --save before")
    backtest.add_argument("--save", metavar="FILE", help="keep what was read")
    backtest.add_argument(
        "--rollout",
        default="",
        metavar="KEY",
        help="value of the metrics' label rollout: the first 13 characters of the object's uid",
    )
    backtest.add_argument(
        "--tick", type=_duration, default=0.0, help="time between two looks; default: analysis.interval"
    )


def _add_simulate(commands: Any) -> None:
    simulate = commands.add_parser(
        "simulate",
        help="what would become of a rollout: chances, time, labels and bad answers; a table and a picture",
    )
    simulate.add_argument(
        "-f", "--file", required=True, help="manifest with the ModelRollout; - reads standard input"
    )
    simulate.add_argument("--name", default="", help="which ModelRollout, when the manifest has several")
    simulate.add_argument(
        "--accuracy",
        type=_share,
        nargs="+",
        required=True,
        help="share of the candidate's answers that are right; several are compared",
    )
    simulate.add_argument("--error-rate", type=_share, default=0.02, help="share of its requests that fail")
    simulate.add_argument(
        "--latency-p95",
        type=_positive,
        metavar="SECONDS",
        help="95 %% of its answers are faster; without it 1 %% are slower than the limit",
    )
    simulate.add_argument(
        "--cost", type=_positive, metavar="USD", help="of an answer; default: half of the limit"
    )
    simulate.add_argument("--rps", type=_rps, default=1.0, help="requests per second to the gateway")
    simulate.add_argument(
        "--label-rate",
        type=_share,
        help="share of the answers that get a label; default: what makes analysis.labels.perHour",
    )
    simulate.add_argument("--control-accuracy", type=_share, default=0.92, help="of today's answers")
    simulate.add_argument("--control-error-rate", type=_share, default=0.02, help="of today's requests")
    pairs = simulate.add_argument_group(
        "where a margin is judged by pairs, or labels are drawn by stratum",
        "how both models' answers to one request go together; without these they err independently, and say the same in "
        "half of what both get wrong",
    )
    pairs.add_argument(
        "--discordance", type=_share, help="share of the requests on which exactly one of both is right"
    )
    pairs.add_argument(
        "--agreement",
        type=_share,
        help="share of the requests on which both say the same in every scored field",
    )
    pairs.add_argument(
        "--agreed-accuracy",
        type=_share,
        help="share of those on which both are right; instead of --discordance, with --agreement",
    )
    sure = simulate.add_argument_group(
        "where answers are kept by their confidence (fallback.confidence, autoConfidence)"
    ).add_mutually_exclusive_group()
    sure.add_argument(
        "--auroc",
        type=_auroc,
        help="chance that a right answer is surer than a wrong one; confidence is calibrated",
    )
    sure.add_argument(
        "--confidence-curve",
        metavar="FILE",
        help="CSV with confidence (lower edge of a bin), share (of all answers) and accuracy (in the bin)",
    )
    simulate.add_argument("--runs", type=_runs, default=300, help="rollouts to simulate for each accuracy")
    simulate.add_argument("--seed", type=_seed, default=1, help="the same seed gives the same answer")
    simulate.add_argument(
        "--horizon",
        type=_duration,
        default=0.0,
        help="when to give up; default: twice the least durations, 14d or more",
    )
    simulate.add_argument(
        "--tick", type=_duration, default=0.0, help="time between two looks; default: 10m or less"
    )
    simulate.add_argument(
        "--picture", metavar="FILE", help="write an SVG: decisions over time, or a power curve"
    )


def _share(text: str) -> float:
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share between 0 and 1")
    return value


def _auroc(text: str) -> float:
    value = _number(text)
    if not 0.5 < value < 1:
        raise argparse.ArgumentTypeError(
            f"{text} is not between 0.5 (confidence says nothing) and 1 (it says all), both excluded"
        )
    return value


def _positive(text: str) -> float:
    value = _number(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not greater than 0")
    return value


def _rps(text: str) -> float:
    value = _positive(text)
    if value > MOST_RPS:
        raise argparse.ArgumentTypeError(
            f"{text} requests per second are more than {MOST_RPS:g}, the most simulated"
        )
    return value


def _runs(text: str) -> int:
    value = _number(text)
    if not 1 <= value <= 10_000 or value != int(value):
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and 10000, a whole number")
    return int(value)


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None


def _moment(text: str) -> datetime:
    """An RFC 3339 moment, or how long ago it was."""
    try:
        return datetime.now(UTC) - timedelta(seconds=to_seconds(text))
    except OverflowError:
        raise argparse.ArgumentTypeError(f"{text} ago is before the year 1; name a shorter time") from None
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a moment like 2026-11-23T08:00:00Z nor a duration like 26h"
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _kind(text: str) -> str:
    if text.lower() not in KINDS:
        raise argparse.ArgumentTypeError(f"{text!r} is neither rollout nor run")
    return KINDS[text.lower()]


def _duration(text: str) -> float:
    try:
        return to_seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
