"""`kubectl cutover simulate`: what would become of a rollout, before it matters."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from cutover_cli.errors import Refused
from cutover_cli.manifest import ignored, read_manifest
from cutover_cli.simulation_view import picture, view
from cutover_cli.sureness import CurveError, from_curve
from cutover_cli.worlds import Assumptions, Unlikely, check, horizon_of, label_rate_of, tell, tick_of
from cutover_operator.rollout.gates import cost_limits
from cutover_operator.simulation import Sureness


class PictureError(Refused):
    """The picture cannot be written."""


def run_simulate(options: argparse.Namespace, words: Sequence[str], out: TextIO) -> int:
    """`words` is the command line, named in the picture. Raises ManifestError, CurveError, Unlikely or PictureError."""
    manifest = read_manifest(options.file, options.name)
    # A person who stops a rollout where it stands would leave every simulated one undecided.
    spec = manifest.spec.model_copy(update={"freeze": False, "hold": False})
    horizon = options.horizon or horizon_of(spec)
    limit = min(cost_limits(spec), default=None)
    if options.cost is not None and limit is None:
        raise Unlikely(
            f"--cost {options.cost:g} would change nothing: the manifest has no cost gate; leave it out, or add one"
        )
    curve = None if options.confidence_curve is None else _read_curve(options.confidence_curve)
    assumed = Assumptions(
        rps=options.rps,
        label_rate=label_rate_of(spec, options.rps) if options.label_rate is None else options.label_rate,
        error_rate=options.error_rate,
        latency_p95_seconds=options.latency_p95,
        control_accuracy=options.control_accuracy,
        control_error_rate=options.control_error_rate,
        cost_usd=options.cost if options.cost is not None else (limit or 0.01) / 2,
        tick_seconds=options.tick or tick_of(spec, horizon),
        horizon_seconds=horizon,
        discordance=options.discordance,
        agreement=options.agreement,
        agreed_accuracy=options.agreed_accuracy,
        auroc=options.auroc,
        curve=curve,
    )
    check(spec, assumed, options.accuracy)
    stories = [tell(spec, assumed, accuracy, options.runs, options.seed) for accuracy in options.accuracy]
    print(view(manifest.name, spec, assumed, stories, options.seed, ignored(manifest.spec)), file=out)
    if options.picture:
        command = "kubectl cutover " + shlex.join(words)
        try:
            Path(options.picture).write_text(
                picture(manifest.name, spec, assumed, stories, command), encoding="utf-8"
            )
        except OSError as error:
            raise PictureError(f"{options.picture}: {error.strerror}") from None
        print(f"\nPicture: {options.picture}", file=out)
    return 0


def _read_curve(path: str) -> Sureness:
    try:
        return from_curve(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a text in UTF-8"
        raise CurveError(f"{path}: {why}") from None
    except CurveError as error:
        raise CurveError(f"{path}: {error}") from None
