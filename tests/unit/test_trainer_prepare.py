"""Stage prepare end to end: rows and pictures in, a divided data set and a report out."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cutover.contract import ExitCode
from cutover.stages import StageResult
from fakes.training_example import (
    BASE_MODEL,
    http_service,
    pictures,
    rows,
    run_stage,
    stage_document,
    write_rows,
)


def prepare(tmp_path: Path, documents: list[Any], **spec: Any) -> tuple[int, StageResult, dict[str, Any]]:
    file = write_rows(tmp_path / "rows.jsonl", documents)
    code, result = run_stage("prepare", stage_document(tmp_path / "run", file, **spec), tmp_path)
    report = tmp_path / "run/data/report.json"
    return code, result, json.loads(report.read_text()) if report.exists() else {}


def parts(tmp_path: Path) -> dict[str, list[dict[str, Any]]]:
    return {
        name: [json.loads(line) for line in (tmp_path / f"run/data/{name}.jsonl").read_text().splitlines()]
        for name in ("train", "validation", "test")
    }


def test_rows_become_three_parts_with_their_pictures(tmp_path: Path) -> None:
    code, result, report = prepare(tmp_path, rows(80))
    assert code == ExitCode.DONE
    assert result.data is not None
    assert (result.data.rows, result.data.bad_rows) == (80, 0)
    assert result.data.train + result.data.validation + result.data.test == 80
    found = parts(tmp_path)
    assert {name: len(entries) for name, entries in found.items()} == {
        "train": 64,
        "validation": 8,
        "test": 8,
    }
    assert {entry["truth"]["damageType"] for entry in found["test"]} == set(pictures().DAMAGE_TYPES)
    for entry in found["train"]:
        assert (tmp_path / "run/data/pictures" / entry["picture"]).is_file()
        assert "base64" not in json.dumps(entry)
    assert result.data.control_accuracy == report["controlAccuracy"]["damageType"]
    assert 0.8 < result.data.control_accuracy <= 1
    again_code, again = run_stage(
        "prepare", stage_document(tmp_path / "run", tmp_path / "rows.jsonl"), tmp_path
    )
    assert (again_code, again) == (0, result)


def test_the_same_rows_give_the_same_digest_in_any_order(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    _, one, _ = prepare(tmp_path / "a", rows(24))
    prepare(tmp_path / "b", rows(24)[::-1])
    first, second = parts(tmp_path / "a"), parts(tmp_path / "b")
    assert one.data is not None
    for name, entries in first.items():
        assert {entry["id"] for entry in entries} == {entry["id"] for entry in second[name]}


def test_rows_of_a_building_and_copies_of_a_picture_stay_together(tmp_path: Path) -> None:
    documents = rows(40)
    for number, row in enumerate(documents[:16]):
        row["group_id"] = f"building-{number // 8}"
    copy = {**documents[20], "id": "copy", "group_id": "elsewhere"}
    _, result, report = prepare(tmp_path, [*documents, copy])
    assert result.data is not None
    part_of = {entry["id"]: name for name, entries in parts(tmp_path).items() for entry in entries}
    for start in (0, 8):
        assert len({part_of[row["id"]] for row in documents[start : start + 8]}) == 1
    assert part_of["copy"] == part_of[documents[20]["id"]]
    assert report["groups"] == 40 - 16 + 2


def test_unvalidated_rows_are_never_trained_on(tmp_path: Path) -> None:
    documents = rows(40)
    for row in documents[::4]:
        row["validated"] = False
    code, result, report = prepare(tmp_path, documents, dataset={"quality": {"minValidatedShare": 0.5}})
    assert code == ExitCode.DONE
    assert result.data is not None
    assert result.data.train + result.data.validation + result.data.test == 30
    assert report["validated"] == 30


def test_bad_rows_below_the_limit_are_reported_and_left_out(tmp_path: Path) -> None:
    documents: list[Any] = rows(40)
    documents[3] = "{torn"
    documents[5]["messages"][1]["content"][1]["image_url"]["url"] = "http://127.0.0.1:9/secret.jpg"
    documents[7]["messages"][1]["content"][1]["image_url"]["url"] = "data:image/png;base64,AAAA"
    documents[9]["messages"][0]["content"] = "word " * 600
    code, result, report = prepare(tmp_path, documents, dataset={"quality": {"maxBadRowsShare": 0.2}})
    assert code == ExitCode.DONE
    assert result.data is not None
    assert result.data.bad_rows == 4
    listed = {(bad["line"], bad["reason"]) for bad in report["bad"]}
    assert listed == {
        (4, "UnreadableLine"),
        (6, "PictureRefused"),
        (8, "UnusablePicture"),
        (10, "Unencodable"),
    }
    assert "4 of 40 rows refused" in result.message


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("file:///etc/passwd", "scheme 'file'"),
        ("http://localhost/a.jpg", "not a public host"),
        ("http://169.254.169.254/latest/meta-data", "not a public address"),
        ("http://10.0.0.1:8080/a.jpg", "not a public address"),
        ("s3://somebody-elses/a.jpg", "outside the bucket"),
        ("data:text/html,hello", "not a JPEG, PNG or WebP"),
    ],
)
def test_pictures_the_trainer_must_not_open(tmp_path: Path, url: str, said: str) -> None:
    documents = rows(9)
    documents[0]["messages"][1]["content"][1]["image_url"]["url"] = url
    code, result, report = prepare(tmp_path, documents)
    assert (code, result.reason) == (ExitCode.BAD_INPUT, "UnreadableRows")
    assert said in report["bad"][0]["detail"]
    assert "1 of 9 rows" in result.message
    assert "maxBadRowsShare" in result.message


def test_pictures_of_the_export_come_with_its_token_and_passing_failures_are_retried(tmp_path: Path) -> None:
    documents = rows(16)
    bodies = {}
    for number, row in enumerate(documents):
        part = row["messages"][1]["content"][1]["image_url"]
        bodies[f"/pictures/{number}"] = base64.b64decode(part["url"].split(",")[1])
    failures = {"/pictures/3": 1}

    def answer(path: str, headers: dict[str, str]) -> tuple[int, bytes]:
        if headers.get("authorization") != "Bearer s3cret":
            return 401, b""
        if path.startswith("/export"):
            return 200, "".join(json.dumps(row) + "\n" for row in documents).encode()
        if failures.get(path, 0) > 0:
            failures[path] -= 1
            return 503, b""
        return 200, bodies[path]

    (tmp_path / "token").write_text("s3cret")
    with http_service(answer) as origin:
        for number, row in enumerate(documents):
            row["messages"][1]["content"][1]["image_url"] = f"{origin}/pictures/{number}"
        source = {"http": {"url": f"{origin}/export"}}
        document = stage_document(tmp_path / "run", dataset={"source": source})
        more = {"sourceTokenFile": str(tmp_path / "token"), "allowedOrigins": [origin]}
        code, result = run_stage("prepare", {**document, **more}, tmp_path)
        assert code == ExitCode.DONE, result.message
        failures["/pictures/5"] = 9
        other = {**document, **more, "artifacts": f"file://{tmp_path}/second"}
        code, result = run_stage("prepare", other, tmp_path)
    assert (code, result.reason) == (ExitCode.FAILED, "PicturesUnavailable")


@pytest.mark.parametrize(
    ("spec", "reason", "said"),
    [
        ({"dataset": {"quality": {"minExamples": 10_000}}}, "TooFewExamples", "16 validated examples"),
        (
            {"dataset": {"split": {"train": 0.5, "validation": 0.1, "test": 0.1}}},
            "InvalidSplit",
            "add up to 0.7",
        ),
        (
            {"evaluation": {"gates": [{"metric": "recall", "class": "flood", "min": 0.8}]}},
            "UnknownGate",
            "class 'flood' of a recall gate",
        ),
        ({"dataset": {"groupBy": "validated"}}, "TooFewGroups", "dataset.groupBy: 1 groups"),
        (
            {"baseModel": {"uri": "hf://org/name", "family": "llava_next"}},
            "WrongModelFamily",
            "baseModel.family",
        ),
    ],
)
def test_what_a_run_asks_in_vain(tmp_path: Path, spec: dict[str, Any], reason: str, said: str) -> None:
    code, result, _ = prepare(tmp_path, rows(16), **spec)
    assert (code, result.reason, result.outcome) == (ExitCode.BAD_INPUT, reason, "badInput")
    assert said in result.message
    assert not (tmp_path / "run/DONE-prepare.json").exists()


def test_a_missing_base_model_is_found_before_anything_is_fetched(tmp_path: Path) -> None:
    document = stage_document(tmp_path / "run", tmp_path / "absent.jsonl")
    document["baseModelPath"] = str(tmp_path / "models/absent")
    code, result = run_stage("prepare", document, tmp_path)
    assert (code, result.reason) == (ExitCode.BAD_INPUT, "BaseModelNotFound")
    assert "baseModel.uri: claim://models/tiny-llava" in result.message
    without_processor = tmp_path / "models/bare"
    without_processor.mkdir(parents=True)
    (without_processor / "config.json").write_bytes((BASE_MODEL / "config.json").read_bytes())
    code, result = run_stage("prepare", {**document, "baseModelPath": str(without_processor)}, tmp_path)
    assert (code, result.reason) == (ExitCode.BAD_INPUT, "BaseModelUnreadable")


def test_artifacts_of_another_specification_are_not_taken_for_ones_own(tmp_path: Path) -> None:
    prepare(tmp_path, rows(24))
    code, result, _ = prepare(tmp_path, rows(24), dataset={"seed": 9})
    assert (code, result.reason) == (ExitCode.BAD_INPUT, "ArtifactsOfAnotherSpec")


def test_a_process_that_only_prepares_does_without_torch_and_makes_the_same_data(tmp_path: Path) -> None:
    """transformers has two picture processors, with torch and without; their data must not differ."""
    (tmp_path / "here").mkdir()
    _, here, _ = prepare(tmp_path / "here", rows(24))
    document = stage_document(tmp_path / "run", write_rows(tmp_path / "rows.jsonl", rows(24)))
    (tmp_path / "stage.yaml").write_text(json.dumps(document))
    code = (
        "import sys\n"
        "sys.argv = ['cutover-trainer', 'prepare', '--config', sys.argv[1]]\n"
        "from cutover_trainer.__main__ import main\n"
        "code = main()\n"
        "loaded = [name for name in sys.modules if name.partition('.')[0] in ('torch', 'torchvision', 'peft')]\n"
        "print('loaded:', [name for name in loaded if sys.modules[name] is not None])\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "stage.yaml")],
        env={**os.environ, "CUTOVER_TERMINATION_LOG": str(tmp_path / "termination.json")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == ExitCode.DONE, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded: []"
    result = StageResult.model_validate_json((tmp_path / "termination.json").read_text())
    assert result.data is not None
    assert result.data == here.data
