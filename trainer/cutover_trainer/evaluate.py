"""Stage evaluate: what the adapter, the bare base, today's model and an earlier adapter say to the test part, and whether
that is enough.

The test part is read here and nowhere else; the threshold of confidence is chosen on the validation part. Answers are
committed in pieces, so that an interrupted evaluation goes on where it was. A model that misses a gate of the spec ends
the run with the numbers: the machine is not to blame.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cutover.api.trainingrun import EvaluationSummary
from cutover.stages import ADAPTER_FOLDER, EVALUATION_FILE, EVALUATION_PAGE, StageConfig, StageResult
from cutover_trainer.adapter_facts import TRAINING_FILE
from cutover_trainer.asking import Asker, timed
from cutover_trainer.base_model import base_folder, weights_bytes
from cutover_trainer.confidence_curve import confidence_curve, floor_of, point_at
from cutover_trainer.contact_sheet import contact_sheet
from cutover_trainer.evaluation_page import SHOWN_ERRORS, TILE_PIXELS, WorstError, evaluation_page
from cutover_trainer.evaluation_report import Evaluation, Other, doubled_of
from cutover_trainer.examples import Example, PreparedData, open_prepared
from cutover_trainer.gates import gate_mistakes, missed_gates
from cutover_trainer.generate import Answerer
from cutover_trainer.joblog import ProgressReporter
from cutover_trainer.manifest import fetch_folder
from cutover_trainer.measures import Judged
from cutover_trainer.models import choose_hardware, load_adapter, load_base
from cutover_trainer.outcome import BadInput
from cutover_trainer.previous_model import PreviousModel, fetch_previous
from cutover_trainer.processors import load_encoder
from cutover_trainer.split import PARTS
from cutover_trainer.stopping import Stop
from cutover_trainer.storage import ArtifactStore

TIMED_ROWS = 32
ANSWERS_FOLDER = "evaluation"
PREVIOUS = "previous"
TRAINED = "default"
"""peft's name of the adapter that was loaded first."""


def run(config: StageConfig, store: ArtifactStore, scratch: Path, stop: Stop) -> StageResult:
    spec, task = config.spec, config.task
    mistakes = gate_mistakes(task, spec.evaluation.gates)
    if mistakes:
        raise BadInput("UnknownGate", f"evaluation.gates: {'; '.join(mistakes)}")
    data = open_prepared(store, scratch)
    found = fetch_folder(store, ADAPTER_FOLDER, scratch)
    if found is None:
        raise BadInput(
            "NotTrained",
            f"artifacts: {store.uri}/{ADAPTER_FOLDER} holds no adapter; run the stage train first",
        )
    adapter_path, manifest = found
    previous = fetch_previous(config, adapter_path, scratch)
    folder = base_folder(config, scratch, weights=True)
    encoder = load_encoder(folder, spec.base_model.family)
    hardware = choose_hardware(spec.fine_tune.precision, spec.compute.gpus, weights_bytes(folder))
    model = load_adapter(load_base(folder, hardware), adapter_path)
    answerer = Answerer(model, encoder, data, hardware, task)
    parts = {part: data.part(part) for part in PARTS}
    examples, validation = parts["test"], parts["validation"]
    compare = spec.evaluation.compare_with
    with_base = compare in ("base", "baseAndControl")
    fair = [] if previous is None else previous.unseen(examples)

    asked = len(examples) * (2 if with_base else 1) + len(validation) + len(fair)
    progress = ProgressReporter("evaluate", asked)
    asker = Asker(task, store, f"{ANSWERS_FOLDER}/{manifest.digest[:12]}", progress, stop)
    seconds = timed(answerer, examples[:TIMED_ROWS], stop)
    judged = asker.ask("adapter", answerer, examples)
    field, floor = floor_of(task, spec.evaluation.gates)
    sure = asker.ask("validation", answerer, validation)
    curve = confidence_curve(task, sure, field, floor) if sure else None
    others: dict[str, Other] = {}
    if with_base:
        with model.disable_adapter():
            others["base"] = Other(range(len(examples)), asker.ask("base", answerer, examples))
    if compare in ("control", "baseAndControl"):
        others["control"] = _control(examples)
    if previous is not None:
        model.load_adapter(str(previous.folder), adapter_name=PREVIOUS)
        model.set_adapter(PREVIOUS)
        said = asker.ask(f"previous-{previous.digest[:12]}", answerer, [examples[row] for row in fair])
        model.set_adapter(TRAINED)
        others[PREVIOUS] = _previous(previous, fair, said, len(examples))
    evaluation = Evaluation(
        task=task,
        examples=examples,
        judged=judged,
        others=others,
        doubled=doubled_of([example for part in PARTS for example in parts[part]]),
        curve=curve,
        checked=None
        if curve is None or curve.threshold is None
        else point_at(task, judged, field, curve.threshold),
        seconds=seconds,
        missed=missed_gates(task, spec.evaluation.gates, judged),
    )
    facts = {"adapterDigest": manifest.digest, "dataDigest": data.digest}
    return _ended(store, data, evaluation, facts)


def _control(examples: Sequence[Example]) -> Other:
    """Today's model, on the rows that have its answer."""
    rows = [number for number, example in enumerate(examples) if example.control is not None]
    judged = [Judged(examples[row].truth, examples[row].control, examples[row].group) for row in rows]
    return Other(rows, judged)


def _previous(previous: PreviousModel, rows: Sequence[int], judged: Sequence[Judged], examples: int) -> Other:
    left = None if previous.learnt is None else examples - len(rows)
    return Other(rows, judged, {"uri": previous.uri, "digest": previous.digest, "leftOut": left})


def _ended(
    store: ArtifactStore, data: PreparedData, evaluation: Evaluation, facts: dict[str, Any]
) -> StageResult:
    task, summary = evaluation.task, evaluation.summary()
    document = {**facts, **evaluation.document()}
    worst = [
        WorstError(
            evaluation.error(row),
            contact_sheet([data.picture(evaluation.examples[row])], tile_pixels=TILE_PIXELS),
        )
        for row in evaluation.wrong_rows()[:SHOWN_ERRORS]
    ]
    store.put(EVALUATION_PAGE, evaluation_page(task, document, worst))
    store.put(EVALUATION_FILE, json.dumps(document, indent=1).encode())
    if evaluation.missed:
        doubt = _doubt(store)
        why = "" if doubt is None else f". Training: {doubt}"
        raise BadInput(
            "EvaluationGateFailed", f"evaluation.gates: {'; '.join(evaluation.missed)}{why}", summary
        )
    return StageResult(
        stage="evaluate", outcome="done", message=_sentence(evaluation, summary), evaluation=summary
    )


def _doubt(store: ArtifactStore) -> str | None:
    """What the training's own losses said against the adapter."""
    try:
        said: str | None = json.loads(store.get(TRAINING_FILE)).get("doubt")
    except (FileNotFoundError, ValueError):
        return None
    return said


def _sentence(evaluation: Evaluation, summary: EvaluationSummary) -> str:
    field = evaluation.task.decisive_field
    parts = [f"{field} {summary.accuracy[field]:.3f} on {summary.examples} test rows"]
    for name, shares in (
        ("base", summary.accuracy_before),
        ("today's model", summary.accuracy_control),
        ("the previous model", summary.accuracy_previous),
    ):
        if field in shares:
            parts.append(f"{name} {shares[field]:.3f}")
    if field in summary.human_agreement:
        parts.append(f"people agree in {summary.human_agreement[field]:.3f} of {summary.human_rows}")
    return ", ".join(parts)
