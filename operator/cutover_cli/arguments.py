"""The command line of `kubectl cutover`."""

from __future__ import annotations

import argparse

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


def _kind(text: str) -> str:
    if text.lower() not in KINDS:
        raise argparse.ArgumentTypeError(f"{text!r} is neither rollout nor run")
    return KINDS[text.lower()]


def _duration(text: str) -> float:
    try:
        return to_seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
