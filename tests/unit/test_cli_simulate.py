"""`simulate` as a process would see it: a table that says what it assumed, and pictures that are well-formed."""

from __future__ import annotations

import math
import re
import shlex
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cutover.api.modelrollout import ModelRolloutSpec
from cutover.selective import auroc
from cutover_cli.arguments import parser
from cutover_cli.chart import HEIGHT, WIDTH, Axis, Line, line_chart
from cutover_cli.main import main
from cutover_cli.manifest import read_manifest
from cutover_cli.sureness import CurveError, by_auroc, from_curve
from cutover_cli.worlds import Assumptions, label_rate_of, limit_of, slow_share, tick_of
from cutover_operator.rollout.threshold import EDGES
from cutover_operator.simulation import Together
from fakes.rollout_town import rollout_spec

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = str(ROOT / "examples/building-damage/modelrollout.yaml")
PAGE = ROOT / "docs/decisions-explained.md"
SVG = "{http://www.w3.org/2000/svg}"
QUICK = ("--rps", "0.2", "--runs", "12", "--tick", "4h")


def simulated(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    assert main(["simulate", "-f", EXAMPLE, *words]) == code
    caught = capsys.readouterr()
    return caught.out if code == 0 else caught.err


def row(text: str, title: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(title))


def test_a_good_and_a_bad_candidate_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    text = simulated(capsys, "--accuracy", "0.97", "0.7", *QUICK)
    assert "12 runs each, seed 1, a look every 4h" in text
    assert row(text, "promoted").split()[1:] == ["100.0", "%", "0.0", "%"]
    assert row(text, "rolled back").split()[2:] == ["0.0", "%", "100.0", "%"]
    assert "accuracy-damagetype 100 %" in row(text, "stopped by")
    assert "labels to certify" in row(text, "information limit")
    assert "labels to catch" in row(text, "information limit")
    assert text.count("STEP ") == 2
    bad = text[text.index("Steps at accuracy 0.7") :]
    assert row(bad, "weight 50%").split()[2:5] == ["0", "%", "-"]


def test_the_same_seed_gives_the_same_answer(capsys: pytest.CaptureFixture[str]) -> None:
    one, two, other = (
        simulated(capsys, "--accuracy", "0.93", *QUICK, "--seed", seed) for seed in ("3", "3", "4")
    )
    assert one == two != other


def test_an_undecided_run_takes_for_ever(capsys: pytest.CaptureFixture[str]) -> None:
    """On the limit: nearly all runs are undecided, so neither half of them nor nine of ten are decided in time."""
    text = simulated(capsys, "--accuracy", "0.90", *QUICK, "--runs", "40")
    assert 0 < float(row(text, "undecided").split()[1]) < 100
    assert row(text, "time to the decision, median").split()[-2:] == [">", "14d"]
    assert row(text, "  nine of ten within").split()[-2:] == [">", "14d"]
    entered, *times = row(text, "weight 50%").split()[2:]
    assert 0 < int(entered) < 40
    assert times == ["%", ">", "14d", ">", "14d", "-"]
    lines = simulated(
        capsys, "--accuracy", "0.90", "0.8", "0.97", "0.98", *QUICK, "--runs", "40"
    ).splitlines()
    times_of = {line.split()[0]: line for line in lines if re.match(r"0\.\d", line)}
    assert times_of["0.9"].count("> 14d") == 2
    assert times_of["0.97"].count("> 14d") == 0


def test_many_candidates_have_a_line_each_and_a_power_curve(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "power.svg"
    words = ("--accuracy", "0.8", "0.9", "0.95", "0.97", *QUICK, "--picture", str(picture))
    lines = simulated(capsys, *words).splitlines()
    assert [line.split()[0] for line in lines if re.match(r"0\.\d", line)] == ["0.8", "0.9", "0.95", "0.97"]
    root = ElementTree.parse(picture).getroot()
    names = [text.text for text in root.iter(f"{SVG}text")]
    assert {"promoted", "rolled back", "undecided"} <= set(names)
    words_of_it = root.findtext(f"{SVG}desc") or ""
    assert "0.97: 100 % promoted" in words_of_it
    assert "kubectl cutover simulate" in words_of_it


def test_one_candidate_is_drawn_over_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "time.svg"
    simulated(capsys, "--accuracy", "0.97", *QUICK, "--picture", str(picture))
    names = [text.text for text in ElementTree.parse(picture).getroot().iter(f"{SVG}text")]
    assert "promoted 100 %" in names
    assert "hours since the first step" in names


def test_failing_requests_stop_it_without_a_label(capsys: pytest.CaptureFixture[str]) -> None:
    text = simulated(capsys, "--accuracy", "0.97", "--error-rate", "0.4", *QUICK)
    assert row(text, "rolled back").split()[2] == "100.0"
    assert "errorrate" in row(text, "stopped by")


def test_slow_answers_stop_it(capsys: pytest.CaptureFixture[str]) -> None:
    text = simulated(capsys, "--accuracy", "0.97", "--latency-p95", "6", *QUICK)
    assert "latency" in row(text, "stopped by")


def test_deadlines_that_roll_back_and_what_decides_nothing_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = [
        {"shadow": 100, "minDuration": "1d", "deadline": "2d", "onDeadline": "rollback"},
        {"weight": 100, "minDuration": "1d"},
    ]
    words = ["simulate", "--accuracy", "0.9", *QUICK, "-f"]
    assert main([*words, manifest(tmp_path, steps=steps, freeze=True), "--label-rate", "0"]) == 0
    text = capsys.readouterr().out
    assert row(text, "stopped by").split()[2:] == ["deadline", "100", "%"]
    head = text.split("\n\n", maxsplit=1)[0]
    assert "Note: spec.freeze is set and ignored here." in head
    assert "Note: no answer is labelled (--label-rate 0), so nothing can prove accuracy-damagetype." in head
    assert main([*words, manifest(tmp_path)]) == 0
    assert "Note:" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--accuracy", "93"], "not a share between 0 and 1"),
        (["--accuracy", "0.9", "--rps", "0"], "not greater than 0"),
        (["--accuracy", "0.9", "--runs", "0"], "not between 1 and 10000"),
        (["--accuracy", "0.9", "--runs", "inf"], "inf is not between 1 and 10000"),
        (["--accuracy", "0.9", "--runs", "nan"], "nan is not between 1 and 10000"),
        (["--accuracy", "0.9", "--runs", "2.9"], "a whole number"),
        (["--accuracy", "0.9", "--seed", "-1"], "'-1' is not a whole number of 0 or more"),
        (["--accuracy", "0.9", "--rps", "1e16"], "are more than 1e+06"),
        ([], "--accuracy"),
    ],
)
def test_a_wrong_command_line_is_refused(
    capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["simulate", "-f", EXAMPLE, *words])
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_what_cannot_be_read_or_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content, said in (
        ("kind: Other", "it has none"),
        ("a: [", "rollout.yaml"),
        ("kind: ModelRollout\nspec: {gatewayRef: a}", "spec.candidate"),
    ):
        path = tmp_path / "rollout.yaml"
        path.write_text(content)
        assert main(["simulate", "-f", str(path), "--accuracy", "0.9"]) == 1
        assert said in capsys.readouterr().err
    nowhere = str(tmp_path / "none" / "p.svg")
    assert "No such file" in simulated(capsys, "--accuracy", "0.97", *QUICK, "--picture", nowhere, code=1)


# ---------------------------------------------------------------- pairs, strata, confidence
def manifest(tmp_path: Path, **changes: object) -> str:
    """The example, changed: gates, analysis, fallback."""
    document = yaml.safe_load(Path(EXAMPLE).read_text())
    document["spec"].update(changes)
    path = tmp_path / "rollout.yaml"
    path.write_text(yaml.safe_dump(document))
    return str(path)


MARGIN = {"gates": [{"metric": "accuracy", "margin": 0.02}, {"metric": "errorRate", "limit": 0.05}]}
STRATA = {"analysis": {"labels": {"strata": "disagreement"}}}
AUTO = {"fallback": {"autoConfidence": True}}
CURVE = "confidence,share,accuracy\n0,0.1,0.4\n0.9,0.3,0.9\n0.99,0.6,0.98\n"


def test_a_margin_is_simulated_by_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["simulate", "-f", manifest(tmp_path, **MARGIN), "--accuracy", "0.94", "0.8", *QUICK]
    assert main([*words, "--discordance", "0.14"]) == 0
    text = capsys.readouterr().out
    assert row(text, "promoted").split()[1:] == ["100.0", "%", "0.0", "%"]
    assert row(text, "rolled back").split()[2:] == ["0.0", "%", "100.0", "%"]
    assert "8 %, 6 %" in row(text, "only the candidate right, only the control")
    assert "Not simulated" not in text
    # The more alike both err, the less the pairs that agree cost.
    near = simulated_hours(capsys, [*words[:4], "0.93", *QUICK, "--runs", "40", "--discordance", "0.03"])
    far = simulated_hours(capsys, [*words[:4], "0.93", *QUICK, "--runs", "40", "--discordance", "0.14"])
    assert near < far


def simulated_hours(capsys: pytest.CaptureFixture[str], words: list[str]) -> float:
    assert main(words) == 0
    said = row(capsys.readouterr().out, "weight 50%").split()[4]
    found = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?", said)
    assert found, said
    return 24 * int(found[1] or 0) + int(found[2] or 0)


def test_strata_show_what_follows_for_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["simulate", "-f", manifest(tmp_path, **STRATA), "--accuracy", "0.96", "0.8", *QUICK]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert row(text, "promoted").split()[1:] == ["100.0", "%", "0.0", "%"]
    assert row(text, "the same answer of both").split()[-4:] == ["88.5", "%", "74.4", "%"]
    assert main([*words[:4], "0.96", *QUICK, "--agreement", "0.9", "--agreed-accuracy", "0.99"]) == 0
    # 0.96 of all = 0.9 x 0.99 + 0.1 x 0.69
    assert "99 %, 69 %" in row(capsys.readouterr().out, "  candidate right there, elsewhere")


def test_confidence_decides_what_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Right in 0.85 of all and sure of it: with a threshold the answers kept meet 0.9, without one they cannot."""
    path, picture = manifest(tmp_path, **AUTO), tmp_path / "power.svg"
    words = ["simulate", "-f", path, "--accuracy", "0.85", *QUICK, "--auroc", "0.9"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert row(text, "promoted").split()[1] == "100.0"
    assert 0.3 <= float(row(text, "threshold at the end").split()[-1]) < 0.999
    assert 50 <= float(row(text, "its answers kept").split()[-2]) <= 97
    many = ["simulate", "-f", path, "--accuracy", "0.8", "0.85", "0.9", "0.95", *QUICK, "--auroc", "0.9"]
    assert main([*many, "--picture", str(picture)]) == 0
    assert "THRESHOLD" in capsys.readouterr().out
    names = [text.text for text in ElementTree.parse(picture).getroot().iter(f"{SVG}text")]
    assert {"answers kept", "% of runs; kept: % of answers"} <= set(names)


def test_a_measured_curve_of_confidence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    curve = tmp_path / "curve.csv"
    curve.write_text(CURVE)
    words = ["simulate", "-f", manifest(tmp_path, fallback={"confidence": 0.9}), *QUICK]
    words += ["--confidence-curve", str(curve)]
    assert main([*words, "--accuracy", "0.898"]) == 0
    text = capsys.readouterr().out
    assert row(text, "threshold at the end").split()[-1] == "0.9"
    # Of the 98 % that are no errors 90 % are sure enough.
    assert row(text, "its answers kept").split()[-2] == "88"
    assert main([*words, "--accuracy", "0.95"]) == 1
    assert "right in 0.898, not 0.95" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("edge,share\n", "line 1: expected the header confidence,share,accuracy"),
        ("confidence,share,accuracy\n0.9,1\n", "line 2: expected three numbers"),
        ("confidence,share,accuracy\n0.91,1,0.9\n", "line 2: confidence 0.91 is no lower edge"),
        ("confidence,share,accuracy\n0.9,1,1.9\n", "line 2: share and accuracy must lie"),
        ("confidence,share,accuracy\n0.9,0.5,0.9\n0.9,0.5,0.9\n", "line 3: confidence 0.9 is named twice"),
        ("confidence,share,accuracy\n0.9,0.5,0.9\n", "the shares add up to 0.5"),
    ],
)
def test_a_curve_that_cannot_be_is_refused(text: str, said: str) -> None:
    with pytest.raises(CurveError, match=re.escape(said)):
        from_curve(text)


@pytest.mark.parametrize(
    ("changes", "words", "said"),
    [
        ({}, ["--discordance", "0.1"], "--discordance would change nothing"),
        ({}, ["--tick", "3d", "--horizon", "2d"], "--tick 3d is longer than --horizon 2d"),
        ({"gates": [{"metric": "accuracy", "limit": 0.9}]}, ["--cost", "1"], "--cost 1 would change nothing"),
        ({}, ["--auroc", "0.8"], "leave --auroc and --confidence-curve out"),
        (AUTO, [], "with --auroc or --confidence-curve"),
        ({"fallback": {"confidence": 0.87}}, ["--auroc", "0.8"], "try 0.85 and 0.9"),
        (MARGIN, ["--discordance", "0.5"], "between 0.01 and 0.15"),
        (MARGIN, ["--agreement", "0.8"], "alone changes nothing for pairs"),
        (STRATA, ["--agreed-accuracy", "0.9"], "goes with --agreement"),
        (STRATA, ["--agreement", "0.2"], "agree on between"),
        (AUTO, ["--confidence-curve", "nowhere.csv"], "nowhere.csv: No such file"),
    ],
)
def test_assumptions_that_cannot_be_or_change_nothing_are_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, object],
    words: list[str],
    said: str,
) -> None:
    path = manifest(tmp_path, **changes)
    assert main(["simulate", "-f", path, "--accuracy", "0.93", *QUICK, *words]) == 1
    assert said in capsys.readouterr().err


@given(st.floats(0.05, 0.99), st.floats(0.55, 0.97))
def test_a_calibrated_confidence_has_the_accuracy_and_the_auroc_asked_for(
    accuracy: float, area: float
) -> None:
    found = by_auroc(accuracy, area)
    assert sum(found.shares) == pytest.approx(1.0)
    assert found.overall == pytest.approx(accuracy, abs=1e-6)
    edges = [*EDGES, 1.0]
    for low, high, share, right in zip(edges[:-1], edges[1:], found.shares, found.accuracy, strict=True):
        assert share < 1e-9 or low - 1e-6 <= right <= high + 1e-6
    # Bins lose a little of the order inside them, most where nearly all answers fall into one.
    right = [share * a for share, a in zip(found.shares, found.accuracy, strict=True)]
    wrong = [share * (1 - a) for share, a in zip(found.shares, found.accuracy, strict=True)]
    binned = auroc(right, wrong)
    assert 0.5 - 1e-9 <= binned <= area + 1e-6
    if 0.6 <= accuracy <= 0.95:
        assert binned >= area - 0.04


@given(st.floats(0.01, 0.99), st.floats(0.01, 0.99), st.none() | st.floats(0, 1), st.none() | st.floats(0, 1))
def test_two_models_together_keep_their_accuracies(
    mine: float, theirs: float, discordance: float | None, agreement: float | None
) -> None:
    together = Together(discordance, agreement)
    both, one, other, alike, different = (float(v) for v in together.shares(mine, theirs))
    assert min(both, one, other, alike, different) >= -1e-9
    assert both + one + other + alike + different == pytest.approx(1.0)
    assert both + one == pytest.approx(mine)
    assert both + other == pytest.approx(theirs)
    if together.refusal(mine, theirs) is None:
        assert discordance is None or one + other == pytest.approx(discordance, abs=1e-8)
        assert agreement is None or both + alike == pytest.approx(agreement, abs=1e-8)


# ---------------------------------------------------------------- what is assumed
def spec(**changes: object) -> ModelRolloutSpec:
    return ModelRolloutSpec.model_validate(rollout_spec(**changes))


def test_a_p95_at_the_limit_is_five_percent_slower_than_it() -> None:
    assert slow_share(spec(), 2.0) == pytest.approx(0.05)
    assert slow_share(spec(), 1.2) < 0.01 < 0.2 < slow_share(spec(), 4.0)


def test_labels_follow_the_budget_and_ticks_the_steps() -> None:
    budget = spec(analysis={"interval": "10s", "labels": {"perHour": 60}})
    assert label_rate_of(budget, 0.2) == pytest.approx(60 / 720)
    assert label_rate_of(budget, 0.001) == 1.0
    assert tick_of(budget, 3600.0) == 10.0
    example = read_manifest(EXAMPLE).spec
    assert tick_of(example, 14 * 86_400.0) == 600.0


def test_the_information_limit_is_walds() -> None:
    assumed = Assumptions(2.0, 0.05, 0.0, None, 0.92, 0.02, 0.005, 600.0, 86_400.0)
    steps = [{"shadow": 100}, {"weight": 100}]
    rollout = spec(steps=steps, analysis={"labels": {"deadline": "2h"}})
    found = limit_of(rollout, assumed, 0.93)
    assert found is not None
    assert (found.kind, round(found.labels)) == ("certify", 542)
    assert found.hours == pytest.approx(542 / 360 + 2, abs=0.01)
    assert limit_of(rollout, assumed, 0.90) is None
    worse = limit_of(rollout, assumed, 0.85)
    assert worse is not None
    assert worse.kind == "catch"


# ---------------------------------------------------------------- pictures
@given(
    st.lists(st.tuples(st.floats(-10, 10), st.floats(-50, 150)), min_size=1, max_size=20),
    st.text("ab<&>\"'é", min_size=1, max_size=8),
)
def test_any_line_stays_inside_a_well_formed_picture(points: list[tuple[float, float]], name: str) -> None:
    lines = [Line(name, sorted(points), stairs) for stairs in (True, False)]
    text = line_chart(name, Axis("x", 0.0, 1.0), Axis("y", 0.0, 100.0), lines, name, marker=0.5)
    root = ElementTree.fromstring(text)
    assert root.findtext(f"{SVG}title") == name
    for path in root.iter(f"{SVG}path"):
        for at_x, at_y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path.get("d") or ""):
            assert 0 <= float(at_x) <= WIDTH
            assert 0 <= float(at_y) <= HEIGHT


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_few_round_and_inside(low: float, width: float) -> None:
    ticks = Axis("x", low, low + width).ticks
    assert 2 <= len(ticks) <= 8
    assert all(low - 1e-6 * width <= t <= low + width * (1 + 1e-6) for t in ticks)
    assert math.isfinite(sum(ticks))


# ---------------------------------------------------------------- the page
def shown() -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("kubectl cutover ")]
    return [shlex.split(line)[2:] for line in lines]


def test_the_page_shows_commands_that_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With few runs and far looks, and the pictures elsewhere."""
    monkeypatch.chdir(ROOT)
    commands = shown()
    assert len(commands) >= 4
    for command in commands:
        assert command[0] == "simulate"
        quick = [*command, "--runs", "2", "--tick", "8h"]
        if "--picture" in command:
            quick += ["--picture", str(tmp_path / "picture.svg")]
        assert main(quick) == 0
        assert "information limit" in capsys.readouterr().out.lower()


def test_the_pages_pictures_were_made_by_the_commands_beside_them() -> None:
    named = {parser().parse_args(command).picture: shlex.join(command) for command in shown()}
    pictures = {path: command for path, command in named.items() if path}
    assert len(pictures) == 4
    assert {ROOT / path for path in pictures} == set((ROOT / "docs/pictures").glob("*.svg"))
    for path, command in pictures.items():
        assert Path(path).name in PAGE.read_text().split(command, 1)[1]
        words = ElementTree.parse(ROOT / path).getroot().findtext(f"{SVG}desc") or ""
        assert words.endswith(f"Made by: kubectl cutover {command}")
