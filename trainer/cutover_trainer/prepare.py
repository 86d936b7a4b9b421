"""Stage prepare: exported rows to a checked, divided data set with its pictures, and a report of what was refused.

Nothing here needs a GPU, and everything that could stop a training run for its input is found here.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import jsonschema_rs

from cutover.api.trainingrun import DataSummary
from cutover.stages import DATA_FOLDER, EXPORT_FOLDER, StageConfig, StageResult
from cutover.task import Task
from cutover_trainer.base_model import base_folder
from cutover_trainer.encoding import Encoder, Unencodable
from cutover_trainer.examples import KEPT_PICTURE_URL, PICTURES_FOLDER, Example, encode_lines
from cutover_trainer.export import ROWS_FILE, export_rows
from cutover_trainer.joblog import ProgressReporter, log
from cutover_trainer.manifest import MANIFEST_FILE, FileEntry, build_manifest, entry_of, fetch_folder
from cutover_trainer.models import load_encoder
from cutover_trainer.near_duplicates import near_pairs
from cutover_trainer.outcome import BadInput, StageFailed
from cutover_trainer.picture import KeptPicture, UnusablePicture, keep
from cutover_trainer.picture_source import PictureMissing, PictureSource, open_picture_source
from cutover_trainer.quality import Census, Refusal, census, refusal, thin_test_part
from cutover_trainer.rows import AnswerValidator, BadRow, Row, answer_text, read_row
from cutover_trainer.split import PARTS, Member, Part, Shares, class_counts, divide, groups_of
from cutover_trainer.stopping import Stop
from cutover_trainer.storage import ArtifactStore

ROWS_AT_ONCE = 64
REPORTED_BAD_ROWS = 1000


@dataclass(frozen=True, slots=True)
class _Kept:
    """A good row without its picture's bytes."""

    row: Row
    picture: str
    width: int
    height: int
    bytes: int
    perceptual_hash: int


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
    total = int(exported.facts["rows"])
    good, bad = asyncio.run(_read(config, found[0] / ROWS_FILE, total, store, encoder, stop))
    return _finish(config, store, good, bad)


def _check_settings(config: StageConfig) -> None:
    split = config.spec.dataset.split
    total = split.train + split.validation + split.test
    if abs(total - 1) > 1e-6 or split.train <= 0 or split.test <= 0:
        raise BadInput(
            "InvalidSplit",
            f"dataset.split: train {split.train}, validation {split.validation}, test {split.test} add up to {total:g}; "
            "they must add up to 1, with train and test above 0",
        )
    compute = config.spec.compute
    if compute.gpus * compute.nodes > 1:
        raise BadInput(
            "SeveralGpus",
            f"compute.gpus: {compute.gpus} on {compute.nodes} nodes; a run is trained on one GPU: set gpus and nodes to 1",
        )
    if config.spec.dataset.synthetic is not None:
        raise BadInput(
            "SyntheticUnsupported", "dataset.synthetic: made-up rows are not supported; remove the field"
        )


# ------------------------------------------------------------------ reading
async def _read(
    config: StageConfig, file: Path, total: int, store: ArtifactStore, encoder: Encoder, stop: Stop
) -> tuple[list[_Kept], list[BadRow]]:
    validator: AnswerValidator = jsonschema_rs.validator_for(config.task.answer_schema)
    good: list[_Kept] = []
    bad: list[BadRow] = []
    seen: set[str] = set()
    passing = 0
    progress = ProgressReporter("prepare", total)
    stored = set(store.list(f"{DATA_FOLDER}/{PICTURES_FOLDER}"))
    async with open_picture_source(config) as source:
        for batch in _batches(file):
            stop.check()
            read = [_read_once(line, raw, config, validator, seen) for line, raw in batch]
            results = await asyncio.gather(*(_with_picture(row, source) for row in read))
            for result in results:
                if isinstance(result, BadRow):
                    bad.append(result)
                    passing += result.reason == "PictureUnavailable"
                    continue
                row, picture = result
                name = f"{DATA_FOLDER}/{PICTURES_FOLDER}/{picture.sha256}"
                wrong = _unencodable(encoder, row, picture)
                if wrong is not None:
                    bad.append(wrong)
                    continue
                if name not in stored:
                    store.put(name, picture.data)
                    stored.add(name)
                good.append(_kept(row, picture))
            progress.report(batch[-1][0])
    allowed = config.spec.dataset.quality.max_bad_rows_share
    if passing and len(bad) > allowed * total >= len(bad) - passing:
        raise StageFailed(
            "PicturesUnavailable", f"{passing} pictures could not be fetched; the next attempt tries again"
        )
    return good, bad


def _kept(row: Row, picture: KeptPicture) -> _Kept:
    # The URL may be the picture itself: it is not kept in memory.
    bare = replace(
        row, picture_url="", question=[_without_url(message, picture.sha256) for message in row.question]
    )
    return _Kept(
        bare, picture.sha256, picture.width, picture.height, len(picture.data), picture.perceptual_hash
    )


def _batches(file: Path) -> Iterator[list[tuple[int, bytes]]]:
    with file.open("rb") as lines:
        numbered = enumerate(lines, start=1)
        while batch := list(islice(numbered, ROWS_AT_ONCE)):
            yield batch


def _read_once(
    line: int, raw: bytes, config: StageConfig, validator: AnswerValidator, seen: set[str]
) -> Row | BadRow:
    row = read_row(line, raw, config.task, validator, config.spec.dataset.group_by)
    if isinstance(row, BadRow):
        return row
    if row.id in seen:
        row = replace(row, id=f"{row.id}#{line}")
    seen.add(row.id)
    return row


async def _with_picture(row: Row | BadRow, source: PictureSource) -> tuple[Row, KeptPicture] | BadRow:
    if isinstance(row, BadRow):
        return row
    try:
        return row, keep(await source.get(row.picture_url))
    except PictureMissing as missing:
        reason = "PictureUnavailable" if missing.passing else "PictureRefused"
        return BadRow(row.line, row.id, reason, missing.reason)
    except UnusablePicture as unusable:
        return BadRow(row.line, row.id, "UnusablePicture", f"the picture is {unusable}")


def _unencodable(encoder: Encoder, row: Row, picture: KeptPicture) -> BadRow | None:
    try:
        encoder.encode(row.question, answer_text(row.answer), (picture.width, picture.height))
    except Unencodable as error:
        return BadRow(row.line, row.id, "Unencodable", str(error))
    return None


# ------------------------------------------------------------------ dividing and writing
def _finish(
    config: StageConfig, store: ArtifactStore, good: Sequence[_Kept], bad: Sequence[BadRow]
) -> StageResult:
    task, dataset = config.task, config.spec.dataset
    found = census(task, [kept.row for kept in good], bad)
    refused = refusal(task, dataset.quality, found, bad)
    if refused is not None:
        store.put(f"{DATA_FOLDER}/report.json", _report(found, bad, refused, {}, 0))
        raise BadInput(refused.reason, refused.message)
    kept = [entry for entry in good if entry.row.validated]
    members = [_member(entry, task) for entry in kept]
    pairs = near_pairs([entry.perceptual_hash for entry in kept])
    groups = groups_of(members, pairs)
    shares = Shares(dataset.split.train, dataset.split.validation, dataset.split.test)
    parts = divide(members, groups, shares, dataset.seed)
    counts = Counter(parts.values())
    if not counts["train"] or not counts["test"]:
        raise BadInput(
            "TooFewGroups",
            f"dataset.groupBy: {len(set(groups))} groups give {counts['train']} training and {counts['test']} test rows; "
            "both parts need rows: group by a finer key or add data",
        )
    per_part = class_counts(parts, members)
    report = _report(found, bad, None, per_part, len(set(groups)))
    digest = _commit(store, kept, groups, parts, report)
    thin = thin_test_part(per_part["test"])
    if thin is not None:
        log("warning", message=thin)
    summary = DataSummary(
        rows=found.rows,
        train=counts["train"],
        validation=counts["validation"],
        test=counts["test"],
        bad_rows=found.bad,
        control_accuracy=found.control_accuracy.get(task.decisive_field),
        digest=digest,
    )
    message = f"{counts['train']} training, {counts['validation']} validation, {counts['test']} test rows"
    if found.bad:
        message += f"; {found.bad} of {found.rows} rows refused, see {DATA_FOLDER}/report.json"
    return StageResult(stage="prepare", outcome="done", message=message, data=summary)


def _member(kept: _Kept, task: Task) -> Member:
    keys = [f"assessment:{kept.row.assessment}", f"picture:{kept.picture}"]
    if kept.row.group is not None:
        keys.append(f"group:{kept.row.group}")
    return Member(kept.row.id, tuple(keys), kept.row.truth[task.decisive_field])


def _commit(
    store: ArtifactStore,
    kept: Sequence[_Kept],
    groups: Sequence[int],
    parts: Mapping[str, Part],
    report: bytes,
) -> str:
    files: dict[str, FileEntry] = {}
    for part in PARTS:
        rows = [
            _example(entry, kept[group].row.id)
            for entry, group in zip(kept, groups, strict=True)
            if parts[entry.row.id] == part
        ]
        data = encode_lines(rows)
        store.put(f"{DATA_FOLDER}/{part}.jsonl", data)
        files[f"{part}.jsonl"] = entry_of(data)
    store.put(f"{DATA_FOLDER}/report.json", report)
    files["report.json"] = entry_of(report)
    for entry in kept:
        name = f"{PICTURES_FOLDER}/{entry.picture}"
        files[name] = FileEntry(sha256=entry.picture, size=entry.bytes)
    manifest = build_manifest(files, {"rows": len(kept)})
    store.put(f"{DATA_FOLDER}/{MANIFEST_FILE}", manifest.to_bytes())
    return manifest.digest


def _example(kept: _Kept, group: str) -> Example:
    return Example(
        id=kept.row.id,
        group=group,
        picture=kept.picture,
        width=kept.width,
        height=kept.height,
        question=kept.row.question,
        answer=answer_text(kept.row.answer),
        truth=kept.row.truth,
        control=kept.row.control,
    )


def _without_url(message: Mapping[str, Any], picture: str) -> dict[str, Any]:
    content = message["content"]
    if isinstance(content, list):
        kept_url = {"type": "image_url", "image_url": {"url": f"{KEPT_PICTURE_URL}{picture}"}}
        content = [kept_url if part.get("type") == "image_url" else part for part in content]
    return {"role": message["role"], "content": content}


def _report(
    found: Census,
    bad: Sequence[BadRow],
    refused: Refusal | None,
    per_part: Mapping[Part, Mapping[str, int]],
    groups: int,
) -> bytes:
    document = {
        "rows": found.rows,
        "validated": found.validated,
        "perClass": found.per_class,
        "controlRows": found.control_rows,
        "controlAccuracy": found.control_accuracy,
        "groups": groups,
        "parts": per_part,
        "refused": None if refused is None else asdict(refused),
        "badByReason": Counter(row.reason for row in bad),
        "bad": [asdict(row) for row in bad[:REPORTED_BAD_ROWS]],
        "badNotListed": max(0, len(bad) - REPORTED_BAD_ROWS),
    }
    return json.dumps(document, indent=1).encode()
