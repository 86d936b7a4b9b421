"""`kubectl cutover`: get, status, explain, report, backtest, simulate, and the orders promote, abort, retry, skip.

What judges evidence is imported when it is asked for: numpy and scipy would more than double the time of a `get`.

Exit codes: 0 done, 1 a bad end or an error, 2 not in time (or a wrong command line).
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TextIO

from cutover_cli import rollout_view, run_view
from cutover_cli.arguments import parser
from cutover_cli.errors import Refused
from cutover_cli.kubectl import ROLLOUTS, RUNS, Kubectl
from cutover_cli.orders import ACTIONS, change, request_id
from cutover_cli.rollout_view import status_of
from cutover_cli.waiting import Pace, until

EXIT_BAD, EXIT_TIMEOUT, EXIT_INTERRUPTED = 1, 2, 130
FOREVER_SECONDS = 10 * 365 * 86_400.0
VIEWS = {
    "rollout": (rollout_view.view, rollout_view.list_view),
    "run": (run_view.view, run_view.list_view),
}
CLEAR = "\x1b[H\x1b[2J"

Object = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
    options = parser().parse_args(argv)
    options.words = list(sys.argv[1:] if argv is None else argv)
    kubectl = Kubectl(*(getattr(options, name, None) for name in ("namespace", "context", "kubeconfig")))
    try:
        return run(options, kubectl, sys.stdout, Pace(time.monotonic, time.sleep))
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has seen enough; Python would complain once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BAD


def run(options: argparse.Namespace, kubectl: Kubectl, out: TextIO, pace: Pace) -> int:
    if options.command == "get":
        return _get(options, kubectl, out, pace)
    if options.command == "status":
        return _status(options, kubectl, out, pace)
    if options.command == "explain":
        return _explain(options, kubectl, out)
    if options.command == "report":
        return _report(options, kubectl, out)
    if options.command == "backtest":
        from cutover_cli.backtest import run_backtest

        return run_backtest(options, out, _now())
    if options.command == "simulate":
        from cutover_cli.simulate import run_simulate

        return run_simulate(options, options.words, out)
    assert options.command in ACTIONS
    return _order(options, kubectl, out, pace)


def _get(options: argparse.Namespace, kubectl: Kubectl, out: TextIO, pace: Pace) -> int:
    resource = ROLLOUTS if options.kind == "rollout" else RUNS
    one, many = VIEWS[options.kind]

    def look() -> Object:
        if options.name is None:
            return {"items": kubectl.list_all(resource, all_namespaces=options.all_namespaces)}
        obj = kubectl.get(resource, options.name)
        return {"object": obj, "events": kubectl.events_of(obj)}

    def text(found: Object) -> str:
        return (
            many(found["items"], _now())
            if "items" in found
            else one(found["object"], found["events"], _now())
        )

    if not options.watch:
        print(text(look()), file=out)
        return 0
    show = _screen(text, out)
    until(look, lambda _: False, show, FOREVER_SECONDS, pace)
    return 0


def _screen(text: Callable[[Object], str], out: TextIO) -> Callable[[Object], None]:
    """On a terminal the picture is drawn anew; in a file, added when the object changed."""
    last: list[Object] = []

    def show(found: Object) -> None:
        if out.isatty():
            print(f"{CLEAR}{text(found)}", file=out, flush=True)
        elif last != [found]:
            last[:] = [found]
            print(f"{text(found)}\n", file=out, flush=True)

    return show


def _status(options: argparse.Namespace, kubectl: Kubectl, out: TextIO, pace: Pace) -> int:
    show = _lines(out)
    ended = until(
        lambda: kubectl.get(ROLLOUTS, options.name),
        _has_ended,
        show,
        options.timeout,
        pace,
    )
    if ended is None:
        return EXIT_TIMEOUT
    return 0 if status_of(ended).finish == "Promoted" else EXIT_BAD


def _has_ended(obj: Object) -> bool:
    """Only a status that has seen the present spec counts: right after an apply the old end still stands there."""
    status = status_of(obj)
    return status.finish is not None and status.observed_generation >= int(
        obj["metadata"].get("generation") or 0
    )


def _explain(options: argparse.Namespace, kubectl: Kubectl, out: TextIO) -> int:
    from cutover_cli.explain import explain
    from cutover_cli.record import evidence_of

    obj = kubectl.get(ROLLOUTS, options.name)
    ledger, problem = evidence_of(kubectl, obj)
    print(explain(obj, _now(), ledger), file=out)
    if problem:
        print(f"\nWithout a forecast: {problem}.", file=out)
    return 0


def _report(options: argparse.Namespace, kubectl: Kubectl, out: TextIO) -> int:
    """The operator's own report, or one made now while there is none for where the rollout stands."""
    from cutover_cli.record import evidence_of, fresh_report, written_report

    obj = kubectl.get(ROLLOUTS, options.name)
    written = written_report(kubectl, obj)
    if not written:
        ledger, problem = evidence_of(kubectl, obj)
        written = fresh_report(obj, ledger, _now())
        if problem:
            print(f"note: {problem}", file=sys.stderr)
    print(written.rstrip(), file=out)
    return 0


def _order(options: argparse.Namespace, kubectl: Kubectl, out: TextIO, pace: Pace) -> int:
    identity = request_id(options.command, _now(), secrets.token_hex(3))
    kubectl.merge(ROLLOUTS, options.name, change(options.command, identity))
    print(f"request {identity}", file=out, flush=True)
    if options.timeout <= 0:
        return 0
    seen = until(
        lambda: kubectl.get(ROLLOUTS, options.name),
        lambda obj: status_of(obj).handled_request == identity,
        lambda _: None,
        options.timeout,
        pace,
    )
    if seen is None:
        print("the operator has not seen it yet; is it running?", file=out)
        return EXIT_TIMEOUT
    print(rollout_view.line(seen), file=out)
    return EXIT_BAD if status_of(seen).reason == "RequestRefused" else 0


def _lines(out: TextIO) -> Callable[[Object], None]:
    last: list[str] = []

    def show(obj: Object) -> None:
        text = rollout_view.line(obj)
        if last != [text]:
            last[:] = [text]
            print(text, file=out, flush=True)

    return show


def _now() -> datetime:
    return datetime.now(UTC)


if __name__ == "__main__":
    raise SystemExit(main())
