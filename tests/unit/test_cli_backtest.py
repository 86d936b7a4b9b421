"""`backtest` as a process would see it: on what a simulated Prometheus has kept, and on files."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from cutover.contract import rollout_key
from cutover_cli.main import main
from fakes.recorded_town import STEPS, kept, led, manifest, recorded, rows
from fakes.rollout_town import START, Behaviour


def moment(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%d %H:%M:%S UTC").replace(tzinfo=UTC)


def entered(text: str) -> list[datetime]:
    return [moment(line[:23]) for line in text.splitlines() if re.search(r"  enters( \*)?  ", line)]


@pytest.fixture
def backtest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*words: str, code: int = 0, **changes: Any) -> str:
        assert main(["backtest", "-f", manifest(tmp_path, **changes), *words]) == code
        caught = capsys.readouterr()
        return str(caught.out if code == 0 else caught.err)

    return call


def test_the_same_rollout_is_decided_again_as_it_was(tmp_path: Path, backtest: Any) -> None:
    town = recorded()
    status = led(town)["status"]
    text = backtest("--samples", kept(town, tmp_path))
    again = entered(text)
    assert len(again) == len(STEPS)
    for at, record in zip(again, status["steps"], strict=True):
        assert abs((at - datetime.fromisoformat(record["enteredAt"])).total_seconds()) <= 20
    assert "It would have been promoted on" in text
    assert "shadow 100% passed, weight 25% passed, weight 100% passed" in text
    assert "*" not in text
    assert "✔accuracy" in text


def test_a_bad_candidate_is_stopped_at_the_same_look(tmp_path: Path, backtest: Any) -> None:
    town = recorded(candidate=Behaviour(accuracy=0.75))
    status = led(town)["status"]
    text = backtest("--samples", kept(town, tmp_path))
    assert (
        f"It would have been rolled back on {datetime.fromisoformat(status['finishedAt']):%Y-%m-%d %H:%M}"
        in text
    )
    assert status["message"] in text
    assert "✖accuracy" in text


def test_a_stricter_limit_would_have_stopped_it(tmp_path: Path, backtest: Any) -> None:
    town = recorded(candidate=Behaviour(accuracy=0.95, errors=0.03))
    gates = [{"metric": "accuracy", "limit": 0.90}, {"metric": "errorRate", "limit": 0.01}]
    text = backtest("--samples", kept(town, tmp_path), gates=gates)
    assert "rolled back" in text
    assert "ErrorRateAboveLimit" in text
    assert "the first line with a star" not in text


def test_a_step_left_earlier_than_it_was_is_marked(tmp_path: Path, backtest: Any) -> None:
    town = recorded()
    steps = [STEPS[0], {"weight": 10, "minDuration": "60s", "minRequests": 50}, STEPS[2]]
    text = backtest("--samples", kept(town, tmp_path), steps=steps)
    assert "weight 10% passed*" in text
    assert " enters *" in text
    assert "the recorded share of the traffic was another" in text


@pytest.mark.parametrize(
    "first",
    [
        {"shadow": 100, "minDuration": "150s", "minRequests": 50},
        {"shadow": 100, "minDuration": "60s", "minRequests": 5000},
        {"shadow": 10, "minDuration": "150s", "minRequests": 50},
    ],
    ids=["longer", "more requests", "fewer copies"],
)
def test_a_shadow_step_the_recording_left_or_copied_otherwise_is_marked(
    tmp_path: Path, backtest: Any, first: dict[str, Any]
) -> None:
    text = backtest("--samples", kept(recorded(), tmp_path), steps=[first, *STEPS[1:]])
    lines = [line for line in text.splitlines() if line.startswith("2030-")]
    marked = [" * " in line for line in lines]
    assert marked == sorted(marked)
    assert "1/3 shadow" in lines[marked.index(True)]
    assert "waits *" in lines[marked.index(True)]
    assert "the recorded share of the traffic was another" in text


def test_what_was_counted_before_the_range_is_no_evidence(tmp_path: Path, backtest: Any) -> None:
    town = recorded()
    samples = kept(town, tmp_path)
    whole = backtest("--samples", samples)
    start = datetime.fromtimestamp(town.now - 60, UTC).isoformat()
    part = backtest("--samples", samples, "--from", start)
    counts = [
        max(int(n) for n in re.findall(r"(?:accuracy [\d.]+ \(n=|of )(\d+)", text)) for text in (whole, part)
    ]
    assert 0 < counts[1] <= 75 < counts[0], "people give 25 labels a minute, and 60 s are late"
    assert "It would still be at 1/3 shadow 100%" in part


def test_an_outage_in_the_recording_is_a_hold_not_a_zero(tmp_path: Path, backtest: Any) -> None:
    town = recorded(ticks=60, outage=range(5, 40))
    text = backtest("--samples", kept(town, tmp_path))
    assert "MetricsUnavailable" in text
    assert "?accuracy" in text
    assert len(entered(text)) >= 2


def test_trouble_after_the_promotion_is_not_the_reason_of_the_promotion(
    tmp_path: Path, backtest: Any
) -> None:
    town = recorded()
    path = Path(kept(town, tmp_path))
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "to": document["to"] + 900}))
    whole = backtest("--samples", str(path))
    end, later = whole[whole.index("It would have been promoted on") :].split("\nSteps: ")
    assert ": Promoted: passed the last step: " in end
    assert "MetricsUnavailable" not in end
    assert re.search(r"\nAt the last look, .*: MetricsUnavailable: metrics unavailable since", later)


@pytest.mark.parametrize(
    "problem", ["nothing", "no file", "other rollout", "two rollouts", "empty", "turned", "no from"]
)
def test_what_cannot_be_replayed_is_said(tmp_path: Path, backtest: Any, problem: str) -> None:
    town = recorded(ticks=10)
    path = kept(town, tmp_path)
    document = json.loads(Path(path).read_text())
    if problem == "nothing":
        Path(path).write_text("[]")
        assert "holds no recorded samples" in backtest("--samples", path, code=1)
    if problem == "no file":
        assert "No such file" in backtest("--samples", str(tmp_path / "none.json"), code=1)
    if problem == "other rollout":
        assert "no samples of rollout abc" in backtest("--samples", path, "--rollout", "abc", code=1)
    if problem == "two rollouts":
        series = document["answers"]["cutover_requests_total"][0]["data"]["result"]
        series.append({**series[0], "metric": {**series[0]["metric"], "rollout": "second"}})
        Path(path).write_text(json.dumps(document))
        assert "name one with --rollout" in backtest("--samples", path, code=1)
    if problem == "empty":
        Path(path).write_text(json.dumps({**document, "answers": {}}))
        assert "no samples of cutover_requests_total" in backtest("--samples", path, code=1)
    if problem == "turned":
        assert "must lie before" in backtest("--samples", path, "--from", "2040-01-01T00:00:00Z", code=1)
    if problem == "no from":
        assert "--from is missing" in backtest("--prometheus", "http://127.0.0.1:1", code=1)


CUSTOM = {
    "metric": "custom",
    "name": "appeals",
    "limit": 0.1,
    "bad": "appealed_total",
    "total": "claims_total",
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gatewayRef": "elsewhere"}, ["spec.gatewayRef is elsewhere", "are of gateway assessor"]),
        (
            {"gates": [{"metric": "accuracy", "field": "nosuch", "limit": 0.9}]},
            ["accuracy-nosuch judges field nosuch", "are of damageType, overall"],
        ),
        ({"gates": [CUSTOM]}, ["bad of gate appeals is appealed_total, which was not recorded", ": none;"]),
    ],
)
def test_a_manifest_whose_needs_were_not_recorded_is_refused(
    tmp_path: Path, backtest: Any, changes: dict[str, Any], said: list[str]
) -> None:
    samples = kept(recorded(ticks=30), tmp_path)
    text = backtest("--samples", samples, code=1, **changes)
    assert all(part in text for part in [*said, "--prometheus URL --save FILE"]), text


def test_what_a_recording_is_about_is_said_at_its_top(tmp_path: Path, backtest: Any) -> None:
    path = Path(kept(recorded(ticks=30), tmp_path))
    assert "Note:" not in backtest("--samples", str(path))
    other = {"model": {"uri": "https://models.example/v1", "version": "damage-v7"}}
    text = backtest("--samples", str(path), candidate=other, serving={"engine": "external"}, hold=True)
    head = text.split("\n\n", maxsplit=1)[0]
    assert "Note: candidate.model.version of the manifest is damage-v7, recorded was damage-v1" in head
    assert "Note: spec.hold is set and ignored here." in head
    document = json.loads(path.read_text())
    del document["answers"]["cutover_labels_matured_total"]
    path.write_text(json.dumps(document))
    head = backtest("--samples", str(path)).split("\n\n", maxsplit=1)[0]
    assert "Note: there are no labels of rollout" in head


def test_a_replay_ends_soon_after_the_last_sample(tmp_path: Path, backtest: Any) -> None:
    town = recorded()
    path = kept(town, tmp_path)
    text = backtest("--samples", path, "--to", "2031-03-20T00:00:00Z")
    last = datetime.fromtimestamp(town.now, UTC)
    assert f"Note: the last sample is of {last:%Y-%m-%d %H:%M:%S} UTC: followed until " in text
    assert "not until 2031-03-20 00:00:00 UTC." in text
    looks = re.search(r"([\d,]+) looks", text)
    assert looks is not None
    assert int(looks[1]) < 200
    late = backtest(
        "--samples", path, "--from", "2030-12-01T00:00:00Z", "--to", "2031-01-01T00:00:00Z", code=1
    )
    assert "lies after the last sample" in late
    endless = backtest("--samples", path, "--tick", "1ms", "--to", "2031-03-20T00:00:00Z", code=1)
    assert "makes 99" in endless
    assert "name an earlier --to or a longer --tick" in endless


def test_a_time_before_the_calendar_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["backtest", "-f", manifest(tmp_path), "--from", "99999999d"])
    assert caught.value.code == 2
    assert "99999999d ago is before the year 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"from": float("nan")}, "from is nan, not Unix seconds"),
        ({"to": float("inf")}, "to is inf, not Unix seconds"),
        ({"to": 1e12}, "to is 1000000000000.0, not Unix seconds"),
        ({"schemaVersion": 2}, "schemaVersion is 2, this version reads 1; update"),
        ({"time": float("nan")}, "the time nan is not Unix seconds"),
        ({"value": "abc"}, "could not convert string to float: 'abc'"),
    ],
)
def test_a_malformed_recording_is_named(
    tmp_path: Path, backtest: Any, change: dict[str, Any], said: str
) -> None:
    path = Path(kept(recorded(ticks=10), tmp_path))
    document = json.loads(path.read_text())
    one = document["answers"]["cutover_requests_total"][0]["data"]["result"][3]
    for at, name in enumerate(("time", "value")):
        if name in change:
            one["values"][1][at] = change.pop(name)
            said = f"cutover_requests_total, series {json.dumps(one['metric'])}: ValueError: {said}"
    path.write_text(json.dumps({**document, **change}))
    assert said in backtest("--samples", str(path), code=1)


def test_a_manifest_that_can_never_work_is_refused(tmp_path: Path, backtest: Any) -> None:
    town = recorded()
    text = backtest("--samples", kept(town, tmp_path), gates=[{"metric": "latency", "limit": 1.7}], code=1)
    assert "LimitNotAnEdge" in text
    wrong = backtest("--samples", kept(town, tmp_path), gates=[{"metric": "speed"}], code=1)
    assert "spec.gates.0.metric" in wrong


# ---------------------------------------------------------------- from Prometheus
class Server:
    """Answers `selector[window]` at a time, as Prometheus 3 does: the left end is open."""

    def __init__(self, series: dict[str, list[dict[str, Any]]]) -> None:
        self.series = series
        self.asked: list[tuple[str, float, int]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                body = json.dumps(server.answer(form["query"][0], float(form["time"][0]))).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def answer(self, query: str, at: float) -> dict[str, Any]:
        found = re.fullmatch(r"(\w*)(?:\{(.*)\})?\[(\d+)s\]", query)
        assert found is not None, query
        window = int(found[3])
        self.asked.append((query, at, window))
        matchers = re.findall(r'(\w+)(=~|!=|=)"((?:[^"\\]|\\.)*)"', found[2] or "")
        result = []
        for row in [row for known in self.series.values() for row in known]:
            labels = dict(row["metric"])
            if "le" in labels:
                labels["__name__"] += "_bucket"
            fits = labels["__name__"].startswith(found[1]) and all(
                _fits(labels.get(name, ""), how, text.replace("\\\\", "\\")) for name, how, text in matchers
            )
            values = [v for v in row["values"] if at - window < v[0] <= at]
            if values and fits:
                result.append({"metric": labels, "values": values})
        return {"status": "success", "data": {"resultType": "matrix", "result": result}}


def _fits(value: str, how: str, text: str) -> bool:
    if how == "=~":
        return re.fullmatch(text, value) is not None
    return (value == text) == (how == "=")


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    found: list[Server] = []
    yield found
    for server in found:
        server.http.shutdown()
        server.http.server_close()


@pytest.mark.parametrize("by_name", [True, False])
def test_ranges_are_read_in_pieces_kept_and_replayed_alike(
    tmp_path: Path, backtest: Any, servers: list[Server], by_name: bool
) -> None:
    town = recorded()
    server = Server(rows(town))
    servers.append(server)
    named = ("--rollout", rollout_key(led(town)["metadata"]["uid"])) if by_name else ()
    start, end = (datetime.fromtimestamp(at, UTC).isoformat() for at in (START - 9000, town.now))
    samples = str(tmp_path / "kept.json")
    common = ("--from", start, "--to", end, *named)
    live = backtest("--prometheus", server.url, "--save", samples, *common)
    assert "It would have been promoted" in live
    pieces = sorted({at for _, at, _ in server.asked})
    assert len(pieces) == 3
    assert max(window for _, _, window in server.asked) <= 3600
    assert backtest("--samples", samples, *common) == live.split("\n", 1)[1]


def test_a_users_own_counters_are_read_kept_and_judged(
    tmp_path: Path, backtest: Any, servers: list[Server]
) -> None:
    town = recorded()
    times = [START + 10 * n for n in range(int((town.now - START) / 10) + 1)]
    for name, per_tick in (("appealed_total", 30.0), ("claims_total", 100.0)):
        town.history[(name, (("instance", "a"), ("job", "claims")))] = [
            (at, per_tick * n) for n, at in enumerate(times)
        ]
    gate = {"metric": "custom", "name": "appeals", "limit": 0.1, "bad": 'appealed_total{job="claims"}'}
    gates = [{"metric": "accuracy", "limit": 0.9}, {**gate, "total": "claims_total"}]
    servers.append(Server(rows(town)))
    start, end = (datetime.fromtimestamp(at, UTC).isoformat() for at in (START, town.now))
    samples = str(tmp_path / "kept.json")
    words = ("--from", start, "--to", end)
    live = backtest("--prometheus", servers[0].url, "--save", samples, *words, gates=gates)
    assert "rolled back" in live
    assert "CustomShareAboveLimit: appeals 30 % of" in live
    assert backtest("--samples", samples, *words, gates=gates) == live.split("\n", 1)[1]


def test_a_prometheus_that_is_not_there_is_named_without_its_password(backtest: Any) -> None:
    text = backtest("--prometheus", "http://me:hush@127.0.0.1:9", "--from", "1h", code=1)
    assert "cannot be reached" in text
    assert "hush" not in text
