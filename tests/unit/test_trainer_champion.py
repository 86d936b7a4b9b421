"""The alias `champion`: whatever order the rollouts' words arrive in, and wherever a Job is cut short, one version has it."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutover.contract import ExitCode
from cutover.stages import StageResult
from cutover_trainer.__main__ import main
from cutover_trainer.champion_rule import TAG_FOUND
from fakes.mlflow_model import CutShort, ModelInMemory, Told
from fakes.training_example import http_service


def at(number: int) -> str:
    return f"2026-11-24T19:{number:02d}:00.000Z"


def expected(jobs: list[Told], by_hand: str | None) -> str | None:
    """By definition: the latest promotion that its own rollout has not withdrawn later."""
    last: dict[str, Told] = {}
    for job in sorted(jobs, key=lambda job: job[3]):
        last[job[0]] = job
    standing = [(job[3], job[1]) for job in last.values() if job[2]]
    if standing:
        return max(standing)[1]
    withdrawn = {job[1] for job in last.values()}
    return by_hand if by_hand not in withdrawn else None


@st.composite
def histories(draw: st.DrawFn) -> list[Told]:
    """Up to five rollouts, each of one version, promoted and perhaps withdrawn (and so again), at different times."""
    times = iter(draw(st.permutations(range(20))))
    jobs: list[Told] = []
    for number in range(draw(st.integers(1, 5))):
        version = str(draw(st.integers(1, 4)))
        moments = sorted(next(times) for _ in range(draw(st.integers(1, 4))))
        jobs += [(f"r{number}", version, turn % 2 == 0, at(when)) for turn, when in enumerate(moments)]
    return jobs


@settings(max_examples=120, deadline=None)
@given(histories(), st.data())
def test_order_repetition_and_cuts_play_no_part(jobs: list[Told], data: st.DataObject) -> None:
    registry = ModelInMemory({str(version): {} for version in range(1, 5)})
    # Of one rollout the operator runs one Job after the other; those of different rollouts come in any order.
    queues = {name: [job for job in jobs if job[0] == name] for name in {job[0] for job in jobs}}
    while queues:
        name = data.draw(st.sampled_from(sorted(queues)))
        job = queues[name].pop(0)
        if not queues[name]:
            del queues[name]
        for writes in data.draw(st.lists(st.integers(0, 2), max_size=2)):
            registry.writes_left = writes
            try:
                registry.tell(job)
            except CutShort:
                continue
            finally:
                registry.writes_left = 1_000
        registry.tell(job)
    assert registry.champion == expected(jobs, None)


@settings(max_examples=100, deadline=None)
@given(st.permutations(range(6)), st.booleans())
def test_two_jobs_at_once_leave_the_later_promotion(times: list[int], withdrawn: bool) -> None:
    mine: Told = ("a", "1", True, at(times[0]))
    other: Told = ("b", "2", True, at(times[1]))
    before: Told = ("c", "3", True, at(times[2]))
    registry = ModelInMemory({"1": {}, "2": {}, "3": {}})
    registry.tell(before)
    jobs = [before, mine, other]
    registry.between = [other]
    if withdrawn and times[3] > times[1]:
        registry.between.insert(0, ("b", "2", False, at(times[3])))
        jobs.append(("b", "2", False, at(times[3])))
    registry.tell(mine)
    while registry.between:
        registry.tell(registry.between.pop())
    assert registry.champion == expected(jobs, None)


def test_a_champion_made_by_hand_gets_the_alias_back() -> None:
    registry = ModelInMemory({"1": {}, "2": {}, "3": {}}, champion="1")
    assert registry.tell(("a", "2", True, at(1))) == "ChampionSet"
    assert registry.champion == "2"
    assert registry.tell(("b", "3", True, at(2))) == "ChampionSet"
    assert registry.tell(("b", "3", False, at(3))) == "ChampionWithdrawn"
    assert registry.champion == "2"
    assert registry.tell(("a", "2", False, at(4))) == "ChampionWithdrawn"
    assert registry.champion == "1"


def test_a_hand_that_moved_the_alias_away_is_left_alone_by_a_withdrawal() -> None:
    registry = ModelInMemory({"1": {}, "2": {}})
    registry.tell(("a", "2", True, at(1)))
    registry.champion = "1"
    assert registry.tell(("a", "2", False, at(2))) == "ChampionKept"
    assert registry.champion == "1"
    registry.champion = None
    assert registry.tell(("a", "2", False, at(2))) == "ChampionKept"
    assert registry.champion is None


# ------------------------------------------------------------------ a real server
def model(mlflow_url: str, name: str, versions: int) -> Any:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=mlflow_url, registry_uri=mlflow_url)
    client.create_registered_model(name)
    for number in range(versions):
        client.create_model_version(name, source=f"s3://artifacts/{number}")
    return client


def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, job: Told, name: str, *more: str
) -> tuple[int, StageResult]:
    log = tmp_path / "termination.json"
    monkeypatch.setenv("CUTOVER_TERMINATION_LOG", str(log))
    rollout, version, promoted, when = job
    said = [f"--url={url}", f"--model={name}", f"--version={version}", f"--at={when}", f"--uid={rollout}"]
    outcome = "promoted" if promoted else "withdrawn"
    code = main(["champion", *said, f"--rollout=claims/{rollout}", f"--outcome={outcome}", *more])
    return code, StageResult.model_validate(json.loads(log.read_text()))


def test_promotions_and_withdrawals_on_a_real_server(
    mlflow_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = model(mlflow_url, "moved", 3)
    client.set_registered_model_alias("moved", "candidate", "3")
    client.set_registered_model_alias("moved", "previous", "2")

    def told(job: Told) -> tuple[str, dict[str, str]]:
        code, result = command(tmp_path, monkeypatch, mlflow_url, job, "moved")
        assert (code, result.stage, result.outcome) == (ExitCode.DONE, "champion", "done"), result.message
        aliases = client.get_registered_model("moved").aliases
        return result.reason, {name: str(version) for name, version in aliases.items()}

    others = {"candidate": "3", "previous": "2"}
    for _ in range(2):
        assert told(("a", "1", True, at(1))) == ("ChampionSet", {**others, "champion": "1"})
    assert told(("b", "3", True, at(5))) == ("ChampionSet", {**others, "champion": "3"})
    assert told(("c", "2", True, at(3))) == ("ChampionKept", {**others, "champion": "3"})
    assert told(("b", "3", False, at(6))) == ("ChampionWithdrawn", {**others, "champion": "2"})
    assert told(("b", "3", False, at(6))) == ("ChampionKept", {**others, "champion": "2"})
    # A promotion whose Job comes after the withdrawal of the same rollout does not undo it.
    assert told(("b", "3", True, at(5)))[1] == {**others, "champion": "2"}
    assert told(("c", "2", False, at(7))) == ("ChampionWithdrawn", {**others, "champion": "1"})
    assert told(("a", "1", False, at(8))) == ("ChampionWithdrawn", others)
    tags = client.get_model_version("moved", "3").tags
    assert tags == {"cutover.rollout.b": f"withdrawn {at(6)} claims/b"}


def test_on_a_real_server_the_alias_goes_back_to_whom_a_person_gave_it(
    mlflow_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = model(mlflow_url, "by-hand", 2)
    client.set_registered_model_alias("by-hand", "champion", "1")
    assert command(tmp_path, monkeypatch, mlflow_url, ("a", "2", True, at(1)), "by-hand")[0] == ExitCode.DONE
    assert client.get_model_version_by_alias("by-hand", "champion").version == "2"
    assert client.get_model_version("by-hand", "1").tags == {TAG_FOUND: "promoted 0 by hand"}
    assert command(tmp_path, monkeypatch, mlflow_url, ("a", "2", False, at(2)), "by-hand")[0] == ExitCode.DONE
    assert client.get_model_version_by_alias("by-hand", "champion").version == "1"


def test_a_version_that_is_gone_is_named_and_needs_no_withdrawal(
    mlflow_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = model(mlflow_url, "gone", 2)
    job: Told = ("a", "2", True, at(1))
    assert command(tmp_path, monkeypatch, mlflow_url, job, "gone")[0] == ExitCode.DONE
    client.delete_model_version("gone", "2")
    code, result = command(tmp_path, monkeypatch, mlflow_url, job, "gone")
    assert (code, result.reason) == (ExitCode.BAD_INPUT, "VersionNotFound")
    assert "no version 2 of gone" in result.message
    for name in ("gone", "never-there"):
        code, result = command(tmp_path, monkeypatch, mlflow_url, ("a", "2", False, at(2)), name)
        assert (code, result.reason) == (ExitCode.DONE, "VersionNotFound")


def test_a_server_that_is_away_is_worth_another_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        code, result = command(tmp_path, monkeypatch, url, ("a", "1", True, at(1)), "m")
    assert (code, result.outcome, result.reason) == (ExitCode.FAILED, "failed", "RegistryUnavailable")
    assert "status.registry.url" in result.message


def test_a_refused_token_names_the_secret_and_not_the_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    seen: list[str | None] = []

    def answer(path: str, headers: dict[str, str]) -> tuple[int, bytes]:
        seen.append(headers.get("authorization"))
        return 403, b"no"

    with http_service(answer) as url:
        code, result = command(
            tmp_path, monkeypatch, url, ("a", "1", True, at(1)), "m", "--token-file", str(token)
        )
    assert (code, result.reason) == (ExitCode.BAD_INPUT, "RegistryRefused")
    assert "status.registry.secretName" in result.message
    assert "s3cret" not in result.message
    assert set(seen) == {"Bearer s3cret"}
