"""The evaluation's documents and page, and the earlier model it compares with."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cutover.api.trainingrun import EvaluationSummary
from cutover.contract import TERMINATION_LIMIT_BYTES
from cutover.stages import StageConfig, StageResult
from cutover_trainer.__main__ import termination_message
from cutover_trainer.adapter_facts import FACTS_FILE, AdapterFacts
from cutover_trainer.confidence_curve import confidence_curve, point_at
from cutover_trainer.evaluation_page import WorstError, evaluation_page
from cutover_trainer.evaluation_report import Evaluation, Other, doubled_of
from cutover_trainer.examples import Example, encode_lines
from cutover_trainer.manifest import commit_folder
from cutover_trainer.measures import Judged
from cutover_trainer.outcome import BadInput
from cutover_trainer.previous_model import fetch_previous
from cutover_trainer.storage import ArtifactStore
from fakes import training_example
from fakes.training_example import stage_document

TASK = training_example.task()
CRACK = {"damageType": "crack", "severity": "minor"}
MOULD = {"damageType": "mould", "severity": "minor"}


def example(number: int, name: str = "", control: Any = CRACK, people: Sequence[Any] = ()) -> Example:
    return Example(
        id=name or f"row-{number}",
        group=f"g{number // 2}",
        picture=f"{number:064x}",
        width=8,
        height=8,
        question=[],
        answer="",
        truth=CRACK,
        control=control,
        people=people,
    )


def judged(answer: Any, sure: float | None, group: str = "") -> Judged:
    return Judged(CRACK, answer, group, sure)


def evaluation(names: Sequence[str] = ("", "", "", ""), **changes: Any) -> Evaluation:
    """Four test rows: two right, one wrong and sure, one without a valid answer."""
    examples = [
        example(0, names[0]),
        example(1, names[1], None, [CRACK, CRACK]),
        example(2, names[2], MOULD, [CRACK, MOULD]),
        example(3, names[3], MOULD),
    ]
    said = [judged(CRACK, 0.99), judged(CRACK, 0.5), judged(MOULD, 0.97), judged(None, None)]
    curve = confidence_curve(TASK, said[:3], "damageType", 0.9)
    values: dict[str, Any] = {
        "task": TASK,
        "examples": examples,
        "judged": said,
        "others": {
            "base": Other(range(4), [judged(MOULD, 0.3)] * 4),
            "control": Other([0, 2, 3], [judged(CRACK, None), judged(MOULD, None), judged(MOULD, None)]),
            "previous": Other(
                [1, 3], [judged(CRACK, 0.9), judged(CRACK, 0.9)], {"uri": "s3://b/r/adapter", "leftOut": 2}
            ),
        },
        "doubled": doubled_of(examples),
        "curve": curve,
        "checked": point_at(TASK, said, "damageType", 0.5),
        "seconds": [0.1, 0.2],
        "missed": ["accuracy of overall is 0.5"],
        **changes,
    }
    return Evaluation(**values)


def document(found: Evaluation) -> dict[str, Any]:
    whole = {"adapterDigest": "a" * 64, "dataDigest": "d" * 64, **found.document()}
    read: dict[str, Any] = json.loads(json.dumps(whole))
    return read


def test_everything_that_was_measured_stands_in_the_document() -> None:
    found = document(evaluation())
    assert found["accuracy"]["damageType"]["value"] == 0.5
    assert found["accuracy"]["damageType"]["n"] == 4
    assert found["jsonValidity"]["value"] == 0.75
    assert found["macroF1"]["damageType"]["value"] == pytest.approx(2 * 2 / (4 + 2))
    assert found["recall"]["damageType"]["crack"]["value"] == 0.5
    control = found["comparisons"]["control"]
    assert (control["n"], control["accuracyOther"]["damageType"]["value"]) == (3, pytest.approx(1 / 3))
    assert control["mcnemar"]["damageType"] == {"onlyCandidate": 0, "onlyOther": 0, "pValue": 1.0}
    previous = found["comparisons"]["previous"]
    assert (previous["n"], previous["leftOut"], previous["uri"]) == (2, 2, "s3://b/r/adapter")
    assert previous["mcnemar"]["damageType"]["onlyOther"] == 1
    assert found["people"]["rows"] == found["people"]["testRows"] == 2
    assert found["people"]["agreement"]["damageType"]["value"] == 0.5
    # The model says mould where one person said crack and one mould, and crack where both did.
    assert found["people"]["modelWithOnePerson"]["damageType"]["value"] == 0.75
    assert found["confidence"]["part"] == "validation"
    assert found["confidence"]["rows"] == 3
    assert found["confidence"]["onTest"]["accuracy"]["n"] == 3


def test_the_surest_mistake_comes_first() -> None:
    listed = document(evaluation())["errors"]
    assert listed["rows"] == 2
    assert [error["id"] for error in listed["listed"]] == ["row-2", "row-3"]
    first, last = listed["listed"]
    assert (first["truth"], first["said"], first["confidence"]) == ("crack", "mould", 0.97)
    assert (first["control"], first["people"]) == ("mould", ["crack", "mould"])
    assert (last["said"], last["confidence"]) == ("(none)", None)


def test_what_is_absent_is_left_out() -> None:
    bare = evaluation(others={}, doubled=[], curve=None, checked=None, missed=[], seconds=[])
    found = document(bare)
    assert (found["comparisons"], found["people"], found["confidence"]) == ({}, None, None)
    said = evaluation_page(TASK, found, []).decode()
    for heading in ("How far people agree", "Answering only when sure", "Beside", "Gates missed"):
        assert heading not in said
    assert bare.summary().human_agreement == {}
    assert bare.summary().confidence is None


def test_the_page_is_complete_in_itself_and_escapes_what_rows_say() -> None:
    hostile = "<script>alert(1)</script>‮"
    found = evaluation(names=("", "", hostile, "x' onload='y"))
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    worst = [WorstError(found.error(row), buffer.getvalue()) for row in found.wrong_rows()]
    said = evaluation_page(TASK, document(found), worst).decode()
    assert "default-src 'none'" in said
    assert "<script" not in said
    assert "‮" not in said
    assert "&lt;script&gt;" in said
    assert "onload='y" not in said
    assert not re.search(r"(?:src|href)=\"(?!data:image/jpeg;base64,)", said)
    assert said.count("<img ") == 2
    assert said.index("&lt;script&gt;") < said.index("x&#x27; onload")
    for words in (
        "the untrained base",
        "2 left out that it was trained on",
        "<svg",
        "sure 0.970",
        "macro-F1",
    ):
        assert words in said


def test_a_summary_always_fits_into_the_termination_message() -> None:
    shares = {f"a-field-with-a-long-name-{number}": 0.123456 for number in range(31)} | {"overall": 0.5}
    summary = EvaluationSummary(
        examples=9,
        accuracy=shares,
        accuracy_before=shares,
        accuracy_control=shares,
        accuracy_previous=shares,
        macro_f1=shares,
        human_agreement=shares,
    )
    result = StageResult(stage="evaluate", outcome="done", message="x" * 2000, evaluation=summary)
    text = termination_message(result)
    assert len(text.encode()) < TERMINATION_LIMIT_BYTES
    kept = StageResult.model_validate_json(text).evaluation
    assert kept is not None
    assert kept.accuracy == {"a-field-with-a-long-name-0": 0.123456, "overall": 0.5}
    assert kept.examples == 9


# ------------------------------------------------------------------ the model before
def adapter(folder: Path, base_digest: str = "b" * 64) -> Path:
    facts = AdapterFacts(
        task="building-damage",
        base_uri="claim://models/tiny",
        base_revision="main",
        base_digest=base_digest,
        family="llava",
        data_digest="d",
        targets="language_model",
        steps=1,
        versions={},
    )
    store = ArtifactStore(f"file://{folder}")
    commit_folder(store, "adapter", {FACTS_FILE: facts.model_dump_json().encode(), "weights": b"w"}, {})
    return folder / "adapter"


def config(folder: Path) -> StageConfig:
    spec = stage_document(folder, evaluation={"previousAdapter": "claim://artifacts/old/adapter"})
    return StageConfig.model_validate({**spec, "previousAdapterPath": f"file://{folder}/adapter"})


def test_an_earlier_model_is_asked_only_what_it_has_not_learnt(tmp_path: Path) -> None:
    mine = adapter(tmp_path / "new")
    adapter(tmp_path / "old")
    found = fetch_previous(config(tmp_path / "old"), mine, tmp_path)
    assert found is not None
    assert found.learnt is None
    rows = [example(number) for number in range(4)]
    assert found.unseen(rows) == [0, 1, 2, 3]

    learnt = [example(1), example(2, "under another id")]
    (tmp_path / "old/data").mkdir()
    (tmp_path / "old/data/train.jsonl").write_bytes(encode_lines(learnt))
    found = fetch_previous(config(tmp_path / "old"), mine, tmp_path)
    assert found is not None
    assert found.unseen(rows) == [0, 3]
    without = config(tmp_path / "old").model_copy(update={"previous_adapter_path": None})
    assert fetch_previous(without, mine, tmp_path) is None


def test_an_earlier_model_that_cannot_be_compared_is_named(tmp_path: Path) -> None:
    mine = adapter(tmp_path / "new")
    with pytest.raises(
        BadInput, match=r"evaluation\.previousAdapter: claim://artifacts/old/adapter"
    ) as caught:
        fetch_previous(config(tmp_path / "old"), mine, tmp_path)
    assert caught.value.reason == "PreviousModelNotFound"
    adapter(tmp_path / "old", "c" * 64)
    with pytest.raises(BadInput, match="only adapters of one base") as caught:
        fetch_previous(config(tmp_path / "old"), mine, tmp_path)
    assert caught.value.reason == "PreviousModelOfAnotherBase"
    (tmp_path / "old/adapter/weights").write_bytes(b"torn")
    with pytest.raises(BadInput, match="no whole adapter"):
        fetch_previous(config(tmp_path / "old"), mine, tmp_path)
