"""Stage prepare: exported rows to a checked, divided data set with its pictures, and a report of what was refused.

Nothing here needs a GPU, and everything that could stop a training run for its input is found here.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import jsonschema_rs
import orjson

from cutover.api.trainingrun import DataSummary
from cutover.stages import DATA_FOLDER, DATA_PAGE, EXPORT_FOLDER, StageConfig, StageResult
from cutover_trainer import data_report
from cutover_trainer.base_model import base_folder
from cutover_trainer.data_report import DataReport, Divided, SyntheticRows
from cutover_trainer.encoding import Encoder, Unencodable
from cutover_trainer.examples import PICTURES_FOLDER, encode_lines
from cutover_trainer.export import ROWS_FILE, export_rows
from cutover_trainer.findings import findings, synthetic_findings
from cutover_trainer.gates import gate_mistakes
from cutover_trainer.joblog import ProgressReporter, log
from cutover_trainer.kept_rows import KeptRow
from cutover_trainer.manifest import (
    MANIFEST_FILE,
    SYNTHETIC_ROWS,
    FileEntry,
    build_manifest,
    entry_of,
    fetch_folder,
    synthetic_rows,
)
from cutover_trainer.near_duplicates import near_pairs
from cutover_trainer.outcome import BadInput, StageFailed
from cutover_trainer.picture import KeptPicture, UnusablePicture, keep, load
from cutover_trainer.picture_source import PictureMissing, PictureSource, open_picture_source
from cutover_trainer.processors import load_encoder
from cutover_trainer.quality import census, group_field_refusal, refusal, synthetic_refusal
from cutover_trainer.refused import BadRow
from cutover_trainer.rows import AnswerValidator, Row, answer_text, read_row
from cutover_trainer.split import PARTS, Part, Shares, class_counts, divide, groups_of
from cutover_trainer.stopping import Stop
from cutover_trainer.storage import ArtifactStore
from cutover_trainer.synthetic import choose

ROWS_AT_ONCE = 64
BYTES_AT_ONCE = 16_000_000
"""Of rows: their pictures may stand in them. A single longer row is read alone."""
FETCHES_AT_ONCE = 16
MAX_DECODERS = 4
"""Pictures decoded at a time: each may take a few hundred megabytes while it is."""


@dataclass(slots=True)
class _Reading:
    """What was read so far: the lines of the export, then those of `dataset.synthetic`."""

    rows: int
    made_up: int
    good: list[KeptRow] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    repeated_ids: list[int] = field(default_factory=list)

    def bad_of(self, made_up: bool) -> list[BadRow]:
        """By the source they come from, not by what they say."""
        return [row for row in self.bad if (row.line > self.rows) == made_up]


def run(config: StageConfig, store: ArtifactStore, scratch: Path, stop: Stop) -> StageResult:
    """Refuses what a training run could not use; nothing here touches a GPU."""
    _check_settings(config)
    encoder = load_encoder(base_folder(config, scratch, weights=False), config.spec.base_model.family)
    exported = export_rows(config, store, scratch)
    found = fetch_folder(store, EXPORT_FOLDER, scratch)
    if found is None:
        store.delete(EXPORT_FOLDER)
        raise StageFailed(
            "ExportDamaged", "the exported rows do not match their manifest; they are exported again"
        )
    reading = _Reading(int(exported.facts["rows"]), synthetic_rows(exported))
    asyncio.run(_read(config, found[0] / ROWS_FILE, reading, store, encoder, stop))
    return _finish(config, store, reading)


def _check_settings(config: StageConfig) -> None:
    split = config.spec.dataset.split
    total = split.train + split.validation + split.test
    if abs(total - 1) > 1e-6 or split.train <= 0 or split.test <= 0:
        raise BadInput(
            "InvalidSplit",
            f"dataset.split: train {split.train}, validation {split.validation}, test {split.test} add up to {total:g}; "
            "they must add up to 1, with train and test above 0",
        )
    mistakes = gate_mistakes(config.task, config.spec.evaluation.gates)
    if mistakes:
        # Said before a GPU is asked for, although the gates are used last.
        raise BadInput("UnknownGate", f"evaluation.gates: {'; '.join(mistakes)}")


# ------------------------------------------------------------------ reading
async def _read(
    config: StageConfig, file: Path, reading: _Reading, store: ArtifactStore, encoder: Encoder, stop: Stop
) -> None:
    validator: AnswerValidator = jsonschema_rs.validator_for(config.task.answer_schema)
    progress = ProgressReporter("prepare", reading.rows + reading.made_up)
    # On a disk a picture of an earlier attempt may be empty, should the machine have lost power: written again.
    stored = set() if store.local_path("") else set(store.list(f"{DATA_FOLDER}/{PICTURES_FOLDER}"))
    room = asyncio.Semaphore(FETCHES_AT_ONCE)
    decoders = min(MAX_DECODERS, os.cpu_count() or 1)
    async with open_picture_source(config) as source:
        with ThreadPoolExecutor(decoders, "decode") as pool:
            for batch in _batches(file):
                stop.check()
                read = [_read_once(line, raw, config, validator, reading) for line, raw in batch]
                results = await asyncio.gather(*(_with_picture(row, source, pool, room) for row in read))
                writes = []
                for result in results:
                    wrong = result if isinstance(result, BadRow) else _unencodable(encoder, *result)
                    if wrong is not None or isinstance(result, BadRow):
                        reading.bad += [wrong] if wrong is not None else []
                        continue
                    row, picture = result
                    name = f"{DATA_FOLDER}/{PICTURES_FOLDER}/{picture.sha256}"
                    if name not in stored:
                        writes.append(pool.submit(store.put_unsettled, name, picture.data))
                        stored.add(name)
                    reading.good.append(KeptRow.of(row, picture))
                for write in writes:
                    write.result()
                progress.report(batch[-1][0])
    for total, bad in ((reading.rows, reading.bad_of(False)), (reading.made_up, reading.bad_of(True))):
        passing = sum(row.reason == "PictureUnavailable" for row in bad)
        allowed = config.spec.dataset.quality.max_bad_rows_share
        if passing and len(bad) > allowed * total >= len(bad) - passing:
            raise StageFailed(
                "PicturesUnavailable",
                f"{passing} pictures could not be fetched; the next attempt tries again",
            )


def _batches(file: Path) -> Iterator[list[tuple[int, bytes]]]:
    batch: list[tuple[int, bytes]] = []
    held = 0
    with file.open("rb") as lines:
        for line, raw in enumerate(lines, start=1):
            if batch and (len(batch) == ROWS_AT_ONCE or held + len(raw) > BYTES_AT_ONCE):
                yield batch
                batch, held = [], 0
            batch.append((line, raw))
            held += len(raw)
    if batch:
        yield batch


def _read_once(
    line: int, raw: bytes, config: StageConfig, validator: AnswerValidator, reading: _Reading
) -> Row | BadRow:
    made_up = line > reading.rows
    row = read_row(line, raw, config.task, validator, config.spec.dataset.group_by, made_up)
    if isinstance(row, BadRow):
        return row
    if row.id in reading.ids:
        reading.repeated_ids.append(line)
        row = replace(row, id=f"{row.id}#{line}")
    reading.ids.add(row.id)
    return row


async def _with_picture(
    row: Row | BadRow, source: PictureSource, pool: Executor, room: asyncio.Semaphore
) -> tuple[Row, KeptPicture] | BadRow:
    if isinstance(row, BadRow):
        return row
    place = "image_url"
    try:
        async with room:
            data = await source.get(row.picture_url)
            return row, await asyncio.get_running_loop().run_in_executor(pool, keep, data)
    except PictureMissing as missing:
        if missing.passing:
            return BadRow(row.line, row.id, "PictureUnavailable", place, missing.reason)
        return BadRow(row.line, row.id, "PictureRefused", place, missing.reason)
    except UnusablePicture as unusable:
        return BadRow(row.line, row.id, "UnusablePicture", place, f"the picture is {unusable}")


def _unencodable(encoder: Encoder, row: Row, picture: KeptPicture) -> BadRow | None:
    try:
        encoder.encode(row.question, answer_text(row.answer), (picture.width, picture.height))
    except Unencodable as error:
        return BadRow(row.line, row.id, "Unencodable", "messages", str(error))
    return None


# ------------------------------------------------------------------ dividing and writing
def _finish(config: StageConfig, store: ArtifactStore, reading: _Reading) -> StageResult:
    task, dataset = config.task, config.spec.dataset
    shares = Shares(dataset.split.train, dataset.split.validation, dataset.split.test)
    real = [entry for entry in reading.good if not entry.row.synthetic]
    made = [entry for entry in reading.good if entry.row.synthetic]
    bad = reading.bad_of(False)
    found = census(task, [entry.row for entry in real], bad)
    report = DataReport(task, shares, found, reading.bad, real)
    refused = (
        refusal(task, dataset.quality, found, bad)
        or synthetic_refusal(dataset.quality, reading.made_up, reading.bad_of(True))
        or group_field_refusal(dataset.group_by, [entry.row for entry in real])
    )
    if refused is not None:
        _write_report(store, replace(report, refused=refused))
        raise BadInput(refused.reason, refused.message)
    kept = [entry for entry in real if entry.row.validated]
    members = [entry.member(task) for entry in kept]
    all_pairs = near_pairs([entry.perceptual_hash for entry in [*kept, *made]])
    pairs = [pair for pair in all_pairs if max(pair) < len(kept)]
    groups = groups_of(members, pairs)
    parts = divide(members, groups, shares, dataset.seed)
    counts = Counter(parts.values())
    if not counts["train"] or not counts["test"]:
        raise BadInput(
            "TooFewGroups",
            f"dataset.groupBy: {len(set(groups))} groups give {counts['train']} training and {counts['test']} test rows; "
            "both parts need rows: group by a finer key or add data",
        )
    per_part = class_counts(parts, members)
    odd = findings(task, dataset.group_by, kept, groups, pairs, reading.repeated_ids, per_part, shares)
    choice = choose(
        [entry.member(task) for entry in made], members, parts, all_pairs, dataset.synthetic, dataset.seed
    )
    used = [made[index] for index in choice.used]
    odd += synthetic_findings(
        {why: [made[index].row.line for index in rows] for why, rows in choice.left_out.items()}
    )
    divided = Divided(len(set(groups)), per_part, pairs, odd)
    synthetic = SyntheticRows(
        len(made),
        used,
        {why: len(rows) for why, rows in choice.left_out.items()},
        counts["train"] + len(used),
    )
    report = replace(report, kept=kept, divided=divided, synthetic=synthetic if made else None)
    written = _write_report(store, report)
    digest = _commit(store, kept, groups, parts, used, written)
    for finding in odd:
        log("warning", message=f"{finding.kind}: {finding.rows} {finding.detail}; {finding.remedy}")
    summary = DataSummary(
        rows=found.rows,
        train=counts["train"] + len(used),
        validation=counts["validation"],
        test=counts["test"],
        synthetic=len(used),
        bad_rows=found.bad,
        control_accuracy=found.control_accuracy.get(task.decisive_field),
        digest=digest,
    )
    message = f"{summary.train} training, {counts['validation']} validation, {counts['test']} test rows"
    if used:
        message += f"; {len(used)} of the training rows are synthetic"
    if found.bad:
        message += f"; {found.bad} of {found.rows} rows refused, see {DATA_FOLDER}/{DATA_PAGE}"
    if odd:
        message += f"; worth a look: {', '.join(finding.kind for finding in odd)}"
    return StageResult(stage="prepare", outcome="done", message=message, data=summary)


def _write_report(store: ArtifactStore, report: DataReport) -> dict[str, bytes]:
    """Puts the page, and the files that belong to the data; answers with the latter."""
    files = {
        data_report.JSON_FILE: orjson.dumps(report.document(), option=orjson.OPT_INDENT_2),
        data_report.REFUSED_FILE: report.refused_lines(),
    }
    for name, data in files.items():
        store.put(f"{DATA_FOLDER}/{name}", data)
    pictures = f"{DATA_FOLDER}/{PICTURES_FOLDER}"
    page = report.page(lambda digest: load(store.get(f"{pictures}/{digest}")))
    store.put(f"{DATA_FOLDER}/{DATA_PAGE}", page)
    return files


def _commit(
    store: ArtifactStore,
    kept: Sequence[KeptRow],
    groups: Sequence[int],
    parts: Mapping[str, Part],
    synthetic: Sequence[KeptRow],
    written: Mapping[str, bytes],
) -> str:
    files: dict[str, FileEntry] = {name: entry_of(data) for name, data in written.items()}
    for part in PARTS:
        rows = [
            entry.example(kept[group].row.id)
            for entry, group in zip(kept, groups, strict=True)
            if parts[entry.row.id] == part
        ]
        if part == "train":
            rows += [entry.example(entry.row.id) for entry in synthetic]
        data = encode_lines(rows)
        store.put(f"{DATA_FOLDER}/{part}.jsonl", data)
        files[f"{part}.jsonl"] = entry_of(data)
    for entry in [*kept, *synthetic]:
        name = f"{PICTURES_FOLDER}/{entry.picture}"
        files[name] = FileEntry(sha256=entry.picture, size=entry.bytes)
    store.settle()
    manifest = build_manifest(files, {"rows": len(kept), SYNTHETIC_ROWS: len(synthetic)})
    store.put(f"{DATA_FOLDER}/{MANIFEST_FILE}", manifest.to_bytes())
    return manifest.digest
