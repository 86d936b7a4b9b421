"""Stage evaluate: what the adapter, the bare base and today's model say to the test part, and whether that is enough.

The test part is read here and nowhere else. Answers are committed in pieces, so that an interrupted evaluation goes on
where it was. A model that misses a gate of the spec ends the run with the numbers: the machine is not to blame.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema_rs

from cutover.api.trainingrun import EvaluationGate, EvaluationSummary
from cutover.contract import FIELD_OVERALL
from cutover.stages import ADAPTER_FOLDER, EVALUATION_FILE, StageConfig, StageResult
from cutover.task import Task, Unreadable, read_answer
from cutover_trainer.adapter_facts import TRAINING_FILE
from cutover_trainer.base_model import base_folder, weights_bytes
from cutover_trainer.examples import Example, open_prepared
from cutover_trainer.generate import Answerer
from cutover_trainer.joblog import ProgressReporter
from cutover_trainer.manifest import fetch_folder
from cutover_trainer.measures import (
    Judged,
    accuracy,
    confusion,
    json_validity,
    mcnemar,
    quantile,
    recalls,
    right_of,
    wilson,
)
from cutover_trainer.models import choose_hardware, load_adapter, load_base, load_encoder
from cutover_trainer.outcome import BadInput
from cutover_trainer.stopping import Stop
from cutover_trainer.storage import ArtifactStore

PIECE_ROWS = 64
BATCH_ROWS = 16
TIMED_ROWS = 32
ANSWERS_FOLDER = "evaluation"


def run(config: StageConfig, store: ArtifactStore, scratch: Path, stop: Stop) -> StageResult:
    data = open_prepared(store, scratch)
    found = fetch_folder(store, ADAPTER_FOLDER, scratch)
    if found is None:
        raise BadInput(
            "NotTrained",
            f"artifacts: {store.uri}/{ADAPTER_FOLDER} holds no adapter; run the stage train first",
        )
    adapter_path, manifest = found
    spec, task = config.spec, config.task
    folder = base_folder(config, scratch, weights=True)
    encoder = load_encoder(folder, spec.base_model.family)
    hardware = choose_hardware(spec.fine_tune.precision, spec.compute.gpus, weights_bytes(folder))
    model = load_adapter(load_base(folder, hardware), adapter_path)
    answerer = Answerer(model, encoder, data, hardware, task.max_answer_tokens)
    examples = data.part("test")
    compare = spec.evaluation.compare_with
    with_base = compare in ("base", "baseAndControl")
    with_control = compare in ("control", "baseAndControl")

    progress = ProgressReporter("evaluate", len(examples) * (2 if with_base else 1))
    asker = _Asker(store, f"{ANSWERS_FOLDER}/{manifest.digest[:12]}", progress, stop)
    judge = _Judge(task)
    seconds = _timed(answerer, examples[:TIMED_ROWS], stop)
    adapter = judge.all(examples, asker.ask("adapter", answerer, examples))
    base: list[Judged] = []
    if with_base:
        with model.disable_adapter():
            base = judge.all(examples, asker.ask("base", answerer, examples))
    compared = [
        number for number, example in enumerate(examples) if with_control and example.control is not None
    ]
    control = [Judged(examples[number].truth, examples[number].control) for number in compared]

    summary = EvaluationSummary(
        examples=len(examples),
        accuracy=accuracy(task, adapter),
        accuracy_before=accuracy(task, base),
        accuracy_control=accuracy(task, control),
        json_validity=json_validity(adapter),
        latency_p95_seconds=quantile(seconds, 0.95),
    )
    document = _document(task, summary, adapter, [adapter[number] for number in compared], control, seconds)
    document["adapterDigest"] = manifest.digest
    missed = missed_gates(task, spec.evaluation.gates, summary, adapter)
    document["missedGates"] = missed
    store.put(EVALUATION_FILE, json.dumps(document, indent=1).encode())
    if missed:
        doubt = _doubt(store)
        why = "" if doubt is None else f". Training: {doubt}"
        raise BadInput("EvaluationGateFailed", f"evaluation.gates: {'; '.join(missed)}{why}", summary)
    return StageResult(stage="evaluate", outcome="done", message=_sentence(task, summary), evaluation=summary)


def _doubt(store: ArtifactStore) -> str | None:
    """What the training's own losses said against the adapter."""
    try:
        said: str | None = json.loads(store.get(TRAINING_FILE)).get("doubt")
    except (FileNotFoundError, ValueError):
        return None
    return said


def missed_gates(
    task: Task, gates: Sequence[EvaluationGate], summary: EvaluationSummary, judged: Sequence[Judged]
) -> list[str]:
    """One sentence for every gate that is not reached."""
    missed: list[str] = []
    for gate in gates:
        name, reached, n = _reached(task, gate, summary, judged)
        if reached < gate.min:
            low, high = wilson(round(reached * n), n)
            missed.append(f"{name} is {reached:.3f} ({low:.3f} to {high:.3f}, {n} rows), wanted {gate.min:g}")
    return missed


def _reached(
    task: Task, gate: EvaluationGate, summary: EvaluationSummary, judged: Sequence[Judged]
) -> tuple[str, float, int]:
    if gate.metric == "jsonValidity":
        return "jsonValidity", summary.json_validity or 0.0, summary.examples
    if gate.metric == "accuracy":
        field = gate.field or FIELD_OVERALL
        if field not in summary.accuracy:
            raise BadInput(
                "UnknownGate", f"evaluation.gates: field {field!r} is none of {', '.join(summary.accuracy)}"
            )
        return f"accuracy of {field}", summary.accuracy[field], summary.examples
    field = gate.field or task.decisive_field
    if field not in task.scored_fields or gate.class_ not in task.classes(field):
        raise BadInput(
            "UnknownGate", f"evaluation.gates: recall needs a class of a scored field, not {gate.class_!r}"
        )
    found = recalls(task, judged, field)[str(gate.class_)]
    return f"recall of {gate.class_}", found["recall"], int(found["n"])


class _Asker:
    """Puts the questions in pieces; a piece whose answers are stored is not asked again."""

    def __init__(self, store: ArtifactStore, folder: str, progress: ProgressReporter, stop: Stop) -> None:
        self._store = store
        self._folder = folder
        self._progress = progress
        self._stop = stop
        self._done = 0

    def ask(self, name: str, answerer: Answerer, examples: Sequence[Example]) -> list[str]:
        return [
            text
            for start in range(0, len(examples), PIECE_ROWS)
            for text in self._piece(
                f"{self._folder}/{name}-{start:06d}.json", answerer, examples[start : start + PIECE_ROWS]
            )
        ]

    def _piece(self, name: str, answerer: Answerer, examples: Sequence[Example]) -> list[str]:
        try:
            stored: list[str] = json.loads(self._store.get(name))
            self._done += len(examples)
            return stored
        except (FileNotFoundError, ValueError):
            pass
        texts: list[str] = []
        for start in range(0, len(examples), BATCH_ROWS):
            self._stop.check()
            batch = examples[start : start + BATCH_ROWS]
            texts += answerer.answers(batch)
            self._done += len(batch)
            self._progress.report(self._done)
        self._store.put(name, json.dumps(texts).encode())
        return texts


class _Judge:
    """Reads answers as strictly as the gateway does."""

    def __init__(self, task: Task) -> None:
        self._validator = jsonschema_rs.validator_for(task.answer_schema)

    def all(self, examples: Sequence[Example], texts: Sequence[str]) -> list[Judged]:
        return [
            Judged(example.truth, self._read(text)) for example, text in zip(examples, texts, strict=True)
        ]

    def _read(self, text: str) -> dict[str, Any] | None:
        answer = read_answer(text)
        return None if isinstance(answer, Unreadable) or not self._validator.is_valid(answer) else answer


def _timed(answerer: Answerer, examples: Sequence[Example], stop: Stop) -> list[float]:
    """Seconds per picture asked alone; the first answer warms up and is not counted."""
    seconds: list[float] = []
    for example in [*examples[:1], *examples]:
        stop.check()
        started = time.perf_counter()
        answerer.answers([example])
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def _document(
    task: Task,
    summary: EvaluationSummary,
    adapter: Sequence[Judged],
    paired: Sequence[Judged],
    control: Sequence[Judged],
    seconds: Sequence[float],
) -> dict[str, Any]:
    return {
        "summary": summary.to_wire(),
        "confusion": {field: confusion(task, adapter, field) for field in task.scored_fields},
        "recall": {field: recalls(task, adapter, field) for field in task.scored_fields},
        "control": {
            "n": len(control),
            "mcnemar": {
                field: mcnemar(right_of(task, paired, field), right_of(task, control, field))
                for field in (*task.scored_fields, FIELD_OVERALL)
            },
        },
        "latencySeconds": {"n": len(seconds), "p50": quantile(seconds, 0.5), "p95": quantile(seconds, 0.95)},
    }


def _sentence(task: Task, summary: EvaluationSummary) -> str:
    field = task.decisive_field
    parts = [f"{field} {summary.accuracy[field]:.3f} on {summary.examples} test rows"]
    if summary.accuracy_before:
        parts.append(f"base {summary.accuracy_before[field]:.3f}")
    if summary.accuracy_control:
        parts.append(f"today's model {summary.accuracy_control[field]:.3f}")
    return ", ".join(parts)
