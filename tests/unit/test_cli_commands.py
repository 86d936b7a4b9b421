"""The plugin as a process would see it: through a stand-in for kubectl that keeps its objects in a file."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cutover.api.modelrollout import Request
from cutover_cli.arguments import parser
from cutover_cli.kubectl import Kubectl
from cutover_cli.main import main, run
from cutover_cli.orders import ACTIONS, change, request_id
from cutover_cli.waiting import Pace
from fakes.kubectl import ROLLOUTS, Cluster, stand_in


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    event = {"reason": "StepEntered", "message": "weight 5", "lastTimestamp": "2026-03-01T11:00:00Z"}
    rollout = {
        "metadata": {"name": "v7", "namespace": "claims", "uid": "u", "generation": 1},
        "spec": {"gatewayRef": "main", "steps": [{"weight": 5}, {"weight": 100}], "gates": []},
        "status": {"observedGeneration": 1, "phase": "Progressing", "stepText": "1/2 weight 5%"},
    }
    script, found = stand_in(tmp_path, {"events": [event], ROLLOUTS: rollout})
    monkeypatch.setenv("KUBECTL", str(script))
    return found


class Time:
    """A clock that the pauses move; something may happen at each pause."""

    def __init__(self, *happenings: Callable[[], None]) -> None:
        self.now = 0.0
        self._happenings = list(happenings)

    def pace(self) -> Pace:
        return Pace(lambda: self.now, self._pause)

    def _pause(self, seconds: float) -> None:
        self.now += seconds
        if self._happenings:
            self._happenings.pop(0)()


def call(*words: str, time: Time | None = None) -> tuple[int, str]:
    options = parser().parse_args(words)
    out = io.StringIO()
    code = run(options, Kubectl(options.namespace, options.context), out, (time or Time()).pace())
    return code, out.getvalue()


def test_get_shows_one_rollout_with_its_events(cluster: Cluster) -> None:
    code, text = call("get", "rollout", "v7", "-n", "claims", "--context", "prod")
    assert code == 0
    assert "1/2 weight 5 %" in text
    assert "StepEntered" in text
    assert all("--namespace=claims" in asked and "--context=prod" in asked for asked in cluster.asked)


def test_get_without_a_name_lists(cluster: Cluster) -> None:
    code, text = call("get", "mro", "-A")
    assert (code, "v7" in text, "--all-namespaces" in cluster.asked[0]) == (0, True, True)


def test_status_ends_well_only_when_promoted(cluster: Cluster) -> None:
    time = Time(lambda: cluster.set(phase="Promoted", finish="Promoted"))
    code, text = call("status", "v7", "--timeout", "60s", time=time)
    assert code == 0
    assert [line.split()[0] for line in text.splitlines()] == ["Progressing", "Promoted"]


@pytest.mark.parametrize("finish", ["RolledBack", "Aborted", "Superseded"])
def test_status_of_another_end_is_1(cluster: Cluster, finish: str) -> None:
    cluster.set(phase=finish, finish=finish)
    assert call("status", "v7", "--timeout", "60s")[0] == 1


def test_status_of_no_end_is_2_when_the_time_is_over(cluster: Cluster) -> None:
    time = Time()
    assert call("status", "v7", "--timeout", "60s", time=time)[0] == 2
    assert time.now == 60
    assert call("status", "v7")[0] == 2


def test_an_end_of_an_older_spec_is_no_end(cluster: Cluster) -> None:
    cluster.set(phase="Promoted", finish="Promoted", observedGeneration=0)
    assert call("status", "v7", "--timeout", "4s")[0] == 2


@pytest.mark.parametrize("action", ACTIONS)
def test_an_order_sets_a_new_request_and_nothing_else(cluster: Cluster, action: str) -> None:
    before = cluster.objects[ROLLOUTS]["spec"]
    code, text = call(action, "v7")
    spec = cluster.objects[ROLLOUTS]["spec"]
    request = spec.pop("request")
    assert code == 0
    assert request["action"] == action
    assert request["id"] in text
    assert spec == before
    patch = next(asked for asked in cluster.asked if asked[0] == "patch")
    assert "--field-manager=kubectl-cutover" in patch


def test_an_order_nobody_sees_is_2(cluster: Cluster) -> None:
    cluster.without_operator()
    code, text = call("abort", "v7", "--timeout", "6s")
    assert code == 2
    assert "has not seen it yet" in text
    assert call("abort", "v7", "--timeout", "0s")[0] == 0


def test_an_order_that_is_refused_is_1(cluster: Cluster) -> None:
    cluster.set(reason="RequestRefused", message="freeze is set")
    code, text = call("promote", "v7")
    assert (code, "freeze is set" in text) == (1, True)


def test_ids_are_valid_new_and_sorted_by_time() -> None:
    first = request_id("skip", datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC), "a1b2c3")
    second = request_id("skip", datetime(2026, 3, 1, 12, 0, 1, tzinfo=UTC), "000000")
    assert first < second
    assert Request.model_validate(change("skip", first)["spec"]["request"]).id == first


def test_explain_goes_through(cluster: Cluster) -> None:
    assert "no step has begun" in call("explain", "v7")[1]


@pytest.mark.parametrize(
    "words", [["explain", "v7"], ["get", "rollout", "v7"], ["status", "v7"], ["report", "v7"]]
)
def test_a_status_of_a_newer_operator_that_cannot_be_read_is_named(
    cluster: Cluster, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    cluster.set(phase="Pondering")
    assert main(words) == 1
    text = capsys.readouterr().err
    assert (
        "status.phase of v7 is 'Pondering': it was written by a newer operator; update kubectl-cutover"
        in text
    )
    assert main(["get", "rollout"]) == 0
    assert "Pondering" in capsys.readouterr().out


def test_a_spec_that_cannot_be_read_is_named(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "v7"]) == 1
    text = capsys.readouterr().err
    assert "the spec of v7 is not one this version knows: spec.candidate: the field is required" in text
    rollout = cluster.objects[ROLLOUTS]
    rollout["spec"]["steps"] = "x"
    cluster.put(**{ROLLOUTS: rollout})
    assert main(["explain", "v7"]) == 1
    assert "spec.steps of v7 is 'x', not a list of steps" in capsys.readouterr().err


def test_what_kubectl_says_is_passed_on(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["get", "rollout", "other"]) == 1
    assert "NotFound" in capsys.readouterr().err


def test_a_missing_kubectl_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECTL", "/nowhere/kubectl")
    assert main(["explain", "v7"]) == 1
    assert "$KUBECTL" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["get", "pods"], ["status", "v7", "--timeout", "soon"], []])
def test_a_wrong_command_line_is_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2


def test_the_plugin_needs_no_more_than_its_extra_installs() -> None:
    """Neither the operator's framework nor the other programs: whoever installs `cutover[cli]` has none of them."""
    code = """
import sys
for name in ("kopf", "prometheus_client", "torch", "transformers", "starlette", "sqlalchemy", "cutover_server"):
    sys.modules[name] = None
import cutover_cli.main, cutover_cli.backtest, cutover_cli.explain, cutover_cli.record, cutover_cli.simulate
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_get_does_not_wait_for_what_judges_evidence() -> None:
    code = "import sys, cutover_cli.main; print(sorted({'numpy', 'scipy', 'aiohttp'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
