"""Made-up rows: only where they are asked for and a class is short, in the training part alone, marked for ever."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutover.api.trainingrun import Synthetic
from cutover.contract import ExitCode
from cutover.stages import StageResult
from cutover_trainer.examples import PreparedData
from cutover_trainer.outcome import BadInput
from cutover_trainer.split import PARTS, Member, Shares, divide, groups_of
from cutover_trainer.synthetic import choose, most_synthetic
from fakes.training_example import rows, run_stage, stage_document, write_rows


def prepare(
    tmp_path: Path, documents: list[Any], made: list[Any] | None, **dataset: Any
) -> tuple[int, StageResult, dict[str, Any]]:
    file = write_rows(tmp_path / "rows.jsonl", documents)
    document = stage_document(tmp_path / "run", file, dataset=dataset)
    if made is not None:
        document["syntheticPath"] = str(write_rows(tmp_path / "made.jsonl", made))
    code, result = run_stage("prepare", document, tmp_path)
    report = tmp_path / "run/data/report.json"
    return code, result, json.loads(report.read_text()) if report.exists() else {}


def part(tmp_path: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / f"run/data/{name}.jsonl").read_text().splitlines()]


def made_up(count: int, seed: int = 77) -> list[dict[str, Any]]:
    return [{**row, "id": f"made-{row['id']}"} for row in rows(count, seed)]


FROM_CLAIM = {"claim": {"name": "made"}}


def test_a_short_class_is_filled_up_in_training_alone_and_every_place_says_so(tmp_path: Path) -> None:
    # 10 rows of each class, of which 8 are for training.
    code, result, report = prepare(
        tmp_path, rows(80), made_up(80), synthetic={**FROM_CLAIM, "upToPerClass": 9, "maxShare": 0.5}
    )
    assert code == ExitCode.DONE, result.message
    train = part(tmp_path, "train")
    marked = [row for row in train if row["synthetic"]]
    assert {row["id"].startswith("made-") for row in marked} == {True}
    assert sum(row["id"].startswith("made-") for row in train) == len(marked) == 8
    assert {row["truth"]["damageType"] for row in marked} == {row["truth"]["damageType"] for row in train}
    for name in ("validation", "test"):
        assert not any(row["synthetic"] for row in part(tmp_path, name))
    assert all(row["people"] == [] for row in marked)
    assert result.data is not None
    assert (result.data.rows, result.data.train, result.data.synthetic) == (80, 72, 8)
    assert "8 of the training rows are synthetic" in result.message
    assert report["rows"] == report["validated"] == 80
    assert report["synthetic"] == {
        "found": 80,
        "used": 8,
        "shareOfTraining": 8 / 72,
        "perClass": dict.fromkeys(report["perClass"], 1),
        "leftOut": {"ClassNotShort": 72},
    }
    facts = json.loads((tmp_path / "run/data/MANIFEST.json").read_text())["facts"]
    assert facts == {"rows": 80, "syntheticRows": 8}
    page = (tmp_path / "run/data/report.html").read_text()
    assert "8 of 80 made-up rows are used" in page
    assert "synthetic, in the training part only" in page


def test_rows_that_say_so_are_never_taken_for_real_ones(tmp_path: Path) -> None:
    documents = rows(88)
    for row in documents[::11]:
        row["synthetic"] = True
    code, result, report = prepare(tmp_path, documents, None)
    assert code == ExitCode.DONE, result.message
    assert result.data is not None
    assert (result.data.rows, result.data.synthetic) == (80, 0)
    assert sum(len(part(tmp_path, name)) for name in PARTS) == 80
    assert report["synthetic"]["leftOut"] == {"NotAskedFor": 8}
    finding = next(one for one in report["findings"] if one["kind"] == "SyntheticNotAskedFor")
    assert finding["lines"] == [1, 12, 23, 34, 45, 56, 67, 78]
    assert "dataset.synthetic" in finding["remedy"]


def test_rows_of_the_export_that_say_so_are_used_when_the_run_asks(tmp_path: Path) -> None:
    documents = [*rows(80), *({**row, "synthetic": True, "validated": False} for row in made_up(8))]
    _, result, report = prepare(tmp_path, documents, None, synthetic={"upToPerClass": 100})
    assert result.data is not None
    assert (result.data.rows, result.data.synthetic) == (80, 8)
    assert report["synthetic"]["perClass"] == dict.fromkeys(report["perClass"], 1)


def test_a_row_made_from_a_test_photograph_is_left_out(tmp_path: Path) -> None:
    documents = rows(80)
    prepare(tmp_path, documents, None)
    held = {row["id"] for name in ("validation", "test") for row in part(tmp_path, name)}
    made: list[dict[str, Any]] = []
    for number, row in enumerate(documents):
        copied = {**row, "id": f"copy-{number}", "group_id": f"elsewhere-{number}"}
        renamed = {
            **made_up(1, 500 + number)[0],
            "id": f"same-building-{number}",
            "group_id": row["group_id"],
        }
        repeated = {**made_up(1, 700 + number)[0], "id": row["id"], "group_id": f"third-{number}"}
        if row["id"] in held:
            made += [copied, renamed, repeated]
    (tmp_path / "again").mkdir()
    code, result, report = prepare(
        tmp_path / "again", documents, [*made, *made_up(16)], synthetic={**FROM_CLAIM, "maxShare": 0.5}
    )
    assert code == ExitCode.DONE, result.message
    assert report["synthetic"]["leftOut"] == {"KnowsHeldOutRows": 48}
    assert report["synthetic"]["used"] == 16
    finding = next(one for one in report["findings"] if one["kind"] == "SyntheticKnowsTest")
    assert finding["rows"] == 48
    for name in ("validation", "test"):
        assert [row["id"] for row in part(tmp_path / "again", name)] == [
            row["id"] for row in part(tmp_path, name)
        ]


@pytest.mark.parametrize(
    ("count", "quality", "reason", "said"),
    [
        (30, {"minExamples": 40}, "TooFewExamples", "30 validated examples"),
        (40, {"minPerClass": 6}, "TooFewPerClass", "fewer than 6"),
    ],
)
def test_made_up_rows_count_for_no_demand(
    tmp_path: Path, count: int, quality: dict[str, Any], reason: str, said: str
) -> None:
    synthetic = {**FROM_CLAIM, "maxShare": 0.5}
    code, result, _ = prepare(tmp_path, rows(count), made_up(80), synthetic=synthetic, quality=quality)
    assert (code, result.reason) == (ExitCode.BAD_INPUT, reason)
    assert said in result.message


def test_bad_made_up_rows_neither_hide_nor_are_hidden(tmp_path: Path) -> None:
    torn: list[Any] = ["{torn"]
    code, result, report = prepare(tmp_path, rows(100), [*torn, *made_up(16)], synthetic=FROM_CLAIM)
    assert (code, result.reason) == (ExitCode.BAD_INPUT, "UnreadableRows")
    assert "dataset.synthetic: 1 of 17 rows are unusable" in result.message
    assert report["bad"][0]["line"] == 101
    (tmp_path / "real").mkdir()
    code, result, _ = prepare(tmp_path / "real", [*torn, *rows(16)], made_up(100), synthetic=FROM_CLAIM)
    assert (code, result.reason) == (ExitCode.BAD_INPUT, "UnreadableRows")
    assert "dataset: 1 of 17 rows" in result.message


@pytest.mark.parametrize(
    ("made", "reason", "said"),
    [
        ([], "EmptyDataset", "dataset.synthetic.claim: it has no rows"),
        (None, "SourceNotFound", "dataset.synthetic.claim: no JSON lines"),
    ],
)
def test_a_source_of_made_up_rows_that_is_none(
    tmp_path: Path, made: list[Any] | None, reason: str, said: str
) -> None:
    document = stage_document(
        tmp_path / "run", write_rows(tmp_path / "rows.jsonl", rows(16)), dataset={"synthetic": FROM_CLAIM}
    )
    document["syntheticPath"] = str(tmp_path / "made.jsonl")
    if made is not None:
        write_rows(tmp_path / "made.jsonl", made)
    code, result = run_stage("prepare", document, tmp_path)
    assert (code, result.reason) == (ExitCode.BAD_INPUT, reason)
    assert said in result.message


def test_a_mark_that_is_no_mark_is_refused(tmp_path: Path) -> None:
    documents = rows(16)
    documents[3]["synthetic"] = "yes"
    _, result, report = prepare(tmp_path, documents, None)
    assert result.reason == "UnreadableRows"
    assert (report["bad"][0]["reason"], report["bad"][0]["field"]) == ("InvalidSynthetic", "synthetic")


def test_a_test_part_with_made_up_rows_is_not_read(tmp_path: Path) -> None:
    prepare(tmp_path, rows(40), None)
    found = part(tmp_path, "test")
    found[0]["synthetic"] = True
    folder = tmp_path / "run/data"
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    data = PreparedData(folder, "digest")
    assert data.part("train")
    with pytest.raises(BadInput, match="synthetic rows") as caught:
        data.part("test")
    assert caught.value.reason == "SyntheticHeldOut"


# ------------------------------------------------------------------ the choice alone
@given(st.integers(0, 5000), st.floats(0.01, 0.5))
def test_the_share_is_kept_and_used(real: int, share: float) -> None:
    most = most_synthetic(real, share)
    assert most <= share * (real + most) + 1e-6
    assert most + 1 > share * (real + most + 1) - 1 - 1e-6


KEYS = st.lists(st.sampled_from("abcdefghijkl"), min_size=1, max_size=2).map(tuple)


@given(
    st.lists(st.tuples(KEYS, st.sampled_from("xyz")), min_size=6, max_size=30),
    st.lists(st.tuples(KEYS, st.sampled_from("xyz")), max_size=30),
    st.integers(1, 12),
    st.floats(0.05, 0.5),
    st.integers(0, 5),
)
def test_no_made_up_row_knows_a_row_that_judges(
    real_rows: list[tuple[tuple[str, ...], str]],
    made_rows: list[tuple[tuple[str, ...], str]],
    up_to: int,
    share: float,
    seed: int,
) -> None:
    real = [Member(f"r{n}", keys, name) for n, (keys, name) in enumerate(real_rows)]
    made = [Member(f"m{n}", keys, name) for n, (keys, name) in enumerate(made_rows)]
    parts = divide(real, groups_of(real), Shares(0.6, 0.2, 0.2), seed)
    choice = choose(made, real, parts, [], Synthetic(up_to_per_class=up_to, max_share=share), seed)
    held = {key for member in real if parts[member.row] != "train" for key in member.keys}
    used = [made[index] for index in choice.used]
    assert all(held.isdisjoint(member.keys) for member in used)
    training = [member.stratum for member in real if parts[member.row] == "train"]
    assert len(used) <= share * (len(training) + len(used)) + 1e-6
    for name in "xyz":
        added = sum(member.stratum == name for member in used)
        assert not added or training.count(name) + added <= up_to
    left = [index for rows in choice.left_out.values() for index in rows]
    assert sorted([*left, *choice.used]) == list(range(len(made)))
    # The order of the file does not matter.
    again = choose(made[::-1], real, parts, [], Synthetic(up_to_per_class=up_to, max_share=share), seed)
    assert {made[::-1][index].row for index in again.used} == {member.row for member in used}
