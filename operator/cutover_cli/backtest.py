"""`kubectl cutover backtest`: what the operator would have decided, when and on which verdicts, on recorded samples."""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from typing import TextIO

from cutover.contract import rollout_key
from cutover_cli import coverage
from cutover_cli.layout import columns
from cutover_cli.manifest import Manifest, ManifestError, ignored, read_manifest
from cutover_cli.recording import Recording, RecordingError, load, only_one, record, save
from cutover_cli.replay import Look, Replay, Told
from cutover_cli.rollout_view import VERDICT_MARK
from cutover_operator.rollout.wording import clock

AFTER_SECONDS = 600.0
"""How long a replay goes on after the last sample: enough to see that metrics are away."""
WORDS = {
    "Progressing": "waits",
    "Holding": "holds",
    "Frozen": "frozen",
    "Starting": "starts",
    "Pending": "prepares",
}


def run_backtest(options: argparse.Namespace, out: TextIO, now: datetime) -> int:
    """Raises ManifestError or RecordingError."""
    manifest = read_manifest(options.file, options.name)
    wanted = options.rollout or (rollout_key(manifest.uid) if manifest.uid else "")
    recording, rollout = _recording(options, manifest, wanted, now)
    if options.save:
        save(recording, options.save)
        print(f"{recording.samples:,} samples kept in {options.save}", file=out)
    recording, notes = _within_the_samples(recording)
    notes = [*ignored(manifest.spec), *notes, *coverage.check(recording, rollout, manifest.spec)]
    versions = recording.candidate_versions(rollout)
    version = _one_version(versions, rollout, manifest)
    notes += coverage.versions_told(manifest.spec, versions, version)
    replay = Replay(manifest.name, manifest.spec, recording, rollout, version, options.tick or None)
    told = asyncio.run(replay.run())
    if told.status.phase == "Pending":
        raise ManifestError(f"{options.file}: {told.status.reason}: {told.status.message}")
    print(_text(manifest, recording, rollout, version, told, notes), file=out)
    return 0


def _recording(
    options: argparse.Namespace, manifest: Manifest, wanted: str, now: datetime
) -> tuple[Recording, str]:
    """(the samples, the rollout to follow in them)."""
    if options.samples:
        found = load(options.samples)
        start = options.start.timestamp() if options.start else found.start
        end = options.end.timestamp() if options.end else found.end
        _check_range(start, end)
        known = found.rollouts()
        if wanted and wanted not in known:
            raise RecordingError(
                f"no samples of rollout {wanted}; there are some of {', '.join(known) or 'none'}"
            )
        return replace(found, start=start, end=end), wanted or only_one(known)
    url = options.prometheus or manifest.spec.analysis.prometheus.url
    if not url:
        raise RecordingError(
            "name --prometheus URL or --samples FILE; the manifest has no analysis.prometheus.url"
        )
    if options.start is None:
        raise RecordingError("--from is missing: the beginning of the range to read from Prometheus")
    start, end = options.start, options.end or now
    _check_range(start.timestamp(), end.timestamp())
    return asyncio.run(record(url, manifest.spec, wanted, start.timestamp(), end.timestamp()))


def _check_range(start: float, end: float) -> None:
    if not start < end:
        raise RecordingError(f"--from ({_clock(start)}) must lie before --to ({_clock(end)})")


def _within_the_samples(recording: Recording) -> tuple[Recording, list[str]]:
    """Nothing is decided long after the last sample: every look there would say that metrics are away."""
    last = recording.last
    if recording.start > last:
        raise RecordingError(
            f"--from {_clock(recording.start)} lies after the last sample, which is of {_clock(last)}; begin earlier"
        )
    if recording.end <= last + AFTER_SECONDS:
        return recording, []
    end = last + AFTER_SECONDS
    note = f"the last sample is of {_clock(last)}: followed until {_clock(end)}, not until {_clock(recording.end)}"
    return replace(recording, end=end), [note]


def _one_version(versions: list[str], rollout: str, manifest: Manifest) -> str:
    if not versions:
        raise RecordingError(f"rollout {rollout} has no samples of a candidate in this range")
    model = manifest.spec.candidate.model
    return model.version if model is not None and model.version in versions else versions[-1]


def _clock(at: float) -> str:
    return clock(datetime.fromtimestamp(at, UTC))


# ---------------------------------------------------------------- words
def _text(
    manifest: Manifest,
    recording: Recording,
    rollout: str,
    version: str,
    told: Told,
    notes: list[str],
) -> str:
    start, end = _clock(recording.start), _clock(recording.end)
    head = (
        f"{manifest.name} on what was recorded of rollout {rollout}, candidate {version}, {start} to {end}: "
        f"{recording.samples:,} samples, {told.passes:,} looks."
    )
    table = columns(["TIME", "STEP", "DECISION", "VERDICTS", "WHY"], [_row(look) for look in told.changes])
    parts = ["\n".join([head, *(f"Note: {note}." for note in notes)]), table, _end(told)]
    if any(not look.followed for look in told.changes):
        parts.append(
            "* From the first line with a star on, the recorded share of the traffic was another than the one decided "
            "here: what follows rests on the traffic there was."
        )
    return "\n\n".join(parts)


def _row(look: Look) -> list[str]:
    status = look.status
    decision = WORDS.get(status.phase, status.phase)
    if status.reason == "StepEntered":
        decision = "enters"
    verdicts = " ".join(f"{VERDICT_MARK.get(gate.verdict, ' ')}{gate.name}" for gate in status.gates)
    return [
        clock(look.at),
        status.step_text or "-",
        decision + ("" if look.followed else " *"),
        verdicts or "-",
        f"{status.reason}: {status.message}" if status.reason != "StepEntered" else status.message,
    ]


def _end(told: Told) -> str:
    last, status = told.status, told.ended
    if status is None:
        return f"It would still be at {last.step_text or 'its beginning'}: {last.reason}: {last.message}"
    passed = ", ".join(
        f"{record.name} {'passed*' if record.outcome == 'Skipped' else record.outcome or 'still there'}"
        for record in status.steps
    )
    finish = str(status.finish)
    word = {"Promoted": "promoted", "RolledBack": "rolled back"}.get(finish, finish)
    at = datetime.fromisoformat(status.finished_at) if status.finished_at else told.ended_at
    said = f"It would have been {word} on {clock(at)}: {status.reason}: {status.message}\nSteps: {passed}."
    if status.finish == "Promoted" and (last.reason, last.message) != (status.reason, status.message):
        said += (
            f"\nAt the last look, {clock(told.ended_at)}, while it was watched: {last.reason}: {last.message}"
        )
    return said
