"""MLflow's champion follows a rollout's end, whatever dies in between, and never the other way round."""

from __future__ import annotations

from copy import deepcopy
from itertools import pairwise
from typing import Any

import pytest

from cutover.contract import FINALIZER
from cutover_operator.loop import Loop
from cutover_operator.port import (
    EVENTS,
    JOBS,
    MODEL_ROLLOUTS,
    TRAINING_RUNS,
    Invalid,
    KubeError,
    Object,
    Resource,
)
from cutover_operator.rollout.gather import Watchtower
from cutover_operator.rollout.memory import Memory
from cutover_operator.rollout.registry import LONGEST_BACK_OFF_SECONDS, MISSING_SECONDS
from cutover_operator.watches import keys_of
from fakes.kube import Change
from fakes.kube_faults import Crash, Fault, FaultyKube
from fakes.mlflow_model import ChampionJobs, ModelInMemory, arguments
from fakes.rollout_town import NAMESPACE, SITE, Behaviour, Town, TownReconciler, started

URL = "http://mlflow:5000"
STEPS = [{"weight": 100, "minDuration": "10s", "minRequests": 1}]
MLFLOW = {"url": URL, "modelName": "damage", "version": "2", "secretRef": {"name": "mlflow", "key": "t"}}
SPEC: dict[str, Any] = {
    "candidate": {"model": {"uri": "claim://models/v2", "version": "damage-v2", "mlflow": MLFLOW}},
    "steps": STEPS,
    "gates": [{"metric": "errorRate", "limit": 0.05}],
}
RUN = "damage-run"
FROM_RUN: dict[str, Any] = {"candidate": {"trainingRunRef": {"name": RUN}}}


async def town_with(spec: dict[str, Any] = SPEC, **settings: Any) -> tuple[Town, ChampionJobs]:
    town = await started(spec=deepcopy(spec), requests_per_second=100.0, **settings)
    return town, ChampionJobs(town.kube, ModelInMemory({"1": {}, "2": {}}, champion="1"))


async def go(town: Town, jobs: ChampionJobs | None, ticks: int) -> dict[str, Any]:
    for _ in range(ticks):
        await town.tick()
        await town.run_pass()
        if jobs is not None:
            jobs.work()
    return await town.status()


async def until_finish(town: Town, jobs: ChampionJobs | None, finish: str) -> dict[str, Any]:
    for _ in range(120):
        status = await go(town, jobs, 1)
        if status.get("finish") == finish:
            return status
    raise AssertionError(f"not {finish}: {status.get('phase')} {status.get('message')}")


def updated(status: dict[str, Any]) -> tuple[str, str]:
    one = next(c for c in status["conditions"] if c["type"] == "RegistryUpdated")
    return one["status"], one["reason"]


def course(status: dict[str, Any]) -> dict[str, Any]:
    """What a rollout has decided. Figures are left out: a status written for another reason has newer ones."""
    kept = {name: status.get(name) for name in ("phase", "finish", "step", "weight", "reason", "verdict")}
    kept["steps"] = [(step["index"], step.get("outcome")) for step in status.get("steps", [])]
    kept["conditions"] = [
        (c["type"], c["status"], c["reason"], c["lastTransitionTime"])
        for c in status["conditions"]
        if c["type"] != "RegistryUpdated"
    ]
    return kept


def training_run(version: str = "2", **mlflow: Any) -> Object:
    model = {
        "name": "damage",
        "version": version,
        "baseUri": "hf://llava-hf/llava-1.5-7b-hf",
        "adapterUri": "claim://artifacts/a",
        "digest": "a" * 64,
        "mlflowRunId": "0123",
    }
    return {
        "apiVersion": TRAINING_RUNS.api_version,
        "kind": TRAINING_RUNS.kind,
        "metadata": {"name": RUN, "namespace": NAMESPACE},
        "spec": {
            "task": {"configMap": "t"},
            "dataset": {"source": {"claim": {"name": "d"}}},
            "baseModel": {"uri": "hf://llava-hf/llava-1.5-7b-hf"},
            "registry": {"mlflow": {"url": URL, "modelName": "damage", **mlflow}},
            "output": {"claim": {"name": "artifacts"}},
        },
        "status": {
            "stage": "register",
            "model": model,
            "conditions": [
                {
                    "type": "Succeeded",
                    "status": "True",
                    "reason": "Registered",
                    "message": "",
                    "observedGeneration": 1,
                    "lastTransitionTime": "2026-11-24T19:00:00Z",
                }
            ],
        },
    }


async def test_champion_follows_promotion_and_drift() -> None:
    town, jobs = await town_with()
    status = await until_finish(town, jobs, "Promoted")
    assert status["registry"]["outcome"] == "promoted", "committed with the promotion itself"
    status = await go(town, jobs, 2)
    assert updated(status) == ("True", "ChampionSet")
    assert jobs.model.champion == "2"
    (job,) = jobs.ran
    said = arguments(job)
    assert (said["url"], said["model"], said["version"], said["rollout"]) == (
        URL,
        "damage",
        "2",
        "claims/cut",
    )
    assert said["at"] == status["finishedAt"]
    before = await town.status()
    assert course(await go(town, jobs, 3))["phase"] == course(before)["phase"]
    assert len(jobs.ran) == 1, "nothing more to tell"

    town.candidate.errors = 0.5
    await until_finish(town, jobs, "RolledBack")
    status = await go(town, jobs, 3)
    assert updated(status) == ("True", "ChampionWithdrawn")
    assert jobs.model.champion == "1", "who was champion before"
    assert [arguments(one)["outcome"] for one in jobs.ran] == ["promoted", "withdrawn"]
    assert {"ChampionSet", "ChampionWithdrawn"} <= {e["reason"] for e in town.kube.all(EVENTS, NAMESPACE)}


async def test_the_job_may_do_nothing_but_its_one_thing() -> None:
    town, _ = await town_with()
    await until_finish(town, None, "Promoted")
    await go(town, None, 1)
    (job,) = town.kube.all(JOBS, NAMESPACE)
    pod = job["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True
    (secret,) = (volume["secret"] for volume in pod["volumes"] if "secret" in volume)
    assert secret == {"secretName": "mlflow", "items": [{"key": "t", "path": "token"}]}
    assert pod["containers"][0]["image"] == "trainer:1"
    assert job["spec"]["backoffLimit"] == 0
    (owner,) = job["metadata"]["ownerReferences"]
    assert owner["uid"] == town.kube.peek(MODEL_ROLLOUTS, NAMESPACE, "cut")["metadata"]["uid"]


async def test_a_rollout_that_names_no_registry_makes_no_job() -> None:
    spec = deepcopy(SPEC)
    del spec["candidate"]["model"]["mlflow"]
    town, jobs = await town_with(spec)
    await until_finish(town, jobs, "Promoted")
    status = await go(town, jobs, 3)
    assert updated(status) == ("Unknown", "NoRegistry")
    assert "registry" not in status
    assert not town.kube.all(JOBS)


async def test_one_that_was_never_promoted_says_nothing() -> None:
    town, jobs = await town_with(candidate=Behaviour(errors=0.5))
    await until_finish(town, jobs, "RolledBack")
    status = await go(town, jobs, 10)
    assert updated(status) == ("Unknown", "NotPromoted")
    assert not town.kube.all(JOBS)


async def test_a_registry_that_is_away_is_tried_ever_more_seldom_and_changes_nothing_else() -> None:
    town, jobs = await town_with()
    spec = deepcopy(SPEC)
    del spec["candidate"]["model"]["mlflow"]
    other, _ = await town_with(spec)
    jobs.away = True
    moments: list[float] = []
    for _ in range(160):
        count = len(jobs.ran)
        await go(town, jobs, 1)
        await go(other, None, 1)
        assert course(await town.status()) == course(await other.status())
        moments += [town.now] * (len(jobs.ran) - count)
    assert len(moments) >= 5
    waits = [later - earlier for earlier, later in pairwise(moments)]
    assert waits == sorted(waits)
    assert 30 <= waits[0] <= 30 + 3 * town.tick_seconds
    status = await town.status()
    assert updated(status) == ("False", "RegistryUnavailable")
    said = next(c["message"] for c in status["conditions"] if c["type"] == "RegistryUpdated")
    assert "damage version 2" in said
    assert "next attempt at" in said
    names = {job["metadata"]["name"] for job in jobs.ran}
    assert len(names) == len(jobs.ran), "a name for each attempt"
    jobs.away = False
    status = await go(town, jobs, int(LONGEST_BACK_OFF_SECONDS / town.tick_seconds) + 3)
    assert updated(status) == ("True", "ChampionSet")
    assert status["registry"]["failures"] == 0


async def test_a_refused_token_waits_the_longest_and_then_tries_again() -> None:
    town, jobs = await town_with()
    jobs.refused = True
    await until_finish(town, jobs, "Promoted")
    status = await go(town, jobs, 10)
    assert updated(status) == ("False", "RegistryRefused")
    assert len(jobs.ran) == 1
    jobs.refused = False
    status = await go(town, jobs, int(LONGEST_BACK_OFF_SECONDS / town.tick_seconds) + 3)
    assert updated(status) == ("True", "ChampionSet")


async def test_the_withdrawal_waits_for_the_end_of_a_promotion_that_is_still_at_work() -> None:
    town, jobs = await town_with()
    jobs.stuck = True
    await until_finish(town, jobs, "Promoted")
    await go(town, jobs, 2)
    town.candidate.errors = 0.5
    await until_finish(town, jobs, "RolledBack")
    status = await go(town, jobs, 5)
    assert [arguments(job)["outcome"] for job in town.kube.all(JOBS)] == ["promoted"]
    assert status["registry"]["state"] == "Outdated"
    assert updated(status)[0] == "False"
    jobs.stuck = False
    status = await go(town, jobs, 4)
    assert [arguments(job)["outcome"] for job in jobs.ran] == ["promoted", "withdrawn"]
    assert updated(status) == ("True", "ChampionWithdrawn")
    assert jobs.model.champion == "1"


async def test_a_retry_does_not_forget_the_withdrawal_and_a_second_promotion_counts() -> None:
    town, jobs = await town_with()
    await until_finish(town, jobs, "Promoted")
    await go(town, jobs, 2)
    jobs.away = True
    town.candidate.errors = 0.5
    await until_finish(town, jobs, "RolledBack")
    town.candidate.errors = 0.0
    town.edit(request={"id": "again", "action": "retry"})
    await go(town, jobs, 2)
    jobs.away = False
    for _ in range(60):
        status = await go(town, jobs, 1)
        if jobs.model.champion == "1":
            break
    assert jobs.model.champion == "1", "told although the rollout is under way again"
    await until_finish(town, jobs, "Promoted")
    status = await go(town, jobs, 3)
    assert jobs.model.champion == "2"
    assert updated(status) == ("True", "ChampionSet")


async def test_an_abort_after_the_promotion_withdraws_too() -> None:
    town, jobs = await town_with()
    await until_finish(town, jobs, "Promoted")
    await go(town, jobs, 2)
    town.edit(request={"id": "stop", "action": "abort"})
    status = await go(town, jobs, 3)
    assert (status["finish"], updated(status)) == ("Aborted", ("True", "ChampionWithdrawn"))


async def from_a_run(run: Object) -> tuple[Town, ChampionJobs]:
    town, jobs = await town_with()
    town.kube.vanish(MODEL_ROLLOUTS, NAMESPACE, "cut")
    town.kube.force(run)
    await town.submit(**{**deepcopy(SPEC), **FROM_RUN})
    return town, jobs


async def test_the_registry_of_a_training_run_is_known_when_the_run_is_gone() -> None:
    town, jobs = await from_a_run(training_run(secretRef={"name": "mlflow"}))
    await until_finish(town, jobs, "Promoted")
    await go(town, jobs, 2)
    assert jobs.model.champion == "2"
    town.kube.vanish(TRAINING_RUNS, NAMESPACE, RUN)
    town.candidate.errors = 0.5
    await until_finish(town, jobs, "RolledBack")
    # A namesake is another model, and no rollout has promoted it.
    town.kube.force(training_run(version="3"))
    status = await go(town, jobs, 3)
    assert updated(status) == ("True", "ChampionWithdrawn")
    assert [arguments(job)["version"] for job in jobs.ran] == ["2", "2"]
    assert (status["registry"]["secretName"], status["registry"]["secretKey"]) == ("mlflow", "token")
    assert jobs.model.champion == "1"


async def test_a_run_made_anew_before_the_promotion_is_the_one_that_counts() -> None:
    town, jobs = await from_a_run(training_run())
    jobs.model.tags["3"] = {}
    await go(town, jobs, 3)
    assert (await town.status())["registry"]["version"] == "2"
    town.kube.vanish(TRAINING_RUNS, NAMESPACE, RUN)
    town.kube.force(training_run(version="3"))
    await until_finish(town, jobs, "Promoted")
    status = await go(town, jobs, 2)
    assert (status["candidateVersion"], status["registry"]["version"]) == ("damage-3", "3")
    assert jobs.model.champion == "3"


async def test_a_run_that_is_not_in_mlflow_names_no_registry() -> None:
    run = training_run()
    run["spec"]["registry"], run["status"]["model"]["mlflowRunId"] = {}, ""
    town, jobs = await from_a_run(run)
    await until_finish(town, jobs, "Promoted")
    assert updated(await go(town, jobs, 2)) == ("Unknown", "NoRegistry")


async def test_a_url_that_is_not_allowed_is_named_and_stops_nothing() -> None:
    spec = deepcopy(SPEC)
    spec["candidate"]["model"]["mlflow"]["url"] = "http://elsewhere:5000"
    town, jobs = await town_with(spec)
    await until_finish(town, jobs, "Promoted")
    status = await go(town, jobs, 3)
    assert updated(status) == ("False", "UrlNotAllowed")
    assert not town.kube.all(JOBS)


async def test_a_pod_that_cannot_start_is_given_up_with_its_need_named() -> None:
    town, jobs = await town_with()
    jobs.stuck = True
    await until_finish(town, jobs, "Promoted")
    await go(town, jobs, 3)
    jobs.out_of_time()
    status = await go(town, jobs, 1)
    assert updated(status) == ("False", "DeadlineExceeded")
    assert "Secret 'mlflow' with key 't'" in status["registry"]["message"]
    assert status["registry"]["failures"] == 1


async def test_with_a_memory_the_job_is_made_and_its_end_seen_by_a_watch_and_then_nothing_is_read() -> None:
    town, jobs = await town_with()
    kube = Reads(town.kube)
    tower = Watchtower(kube, town, town, SITE, lambda: town.now)
    memory = Memory(tower, lambda: town.now)
    reconciler = TownReconciler(tower, [])
    town.loop = Loop(kube, [reconciler], lambda: town.clock, memories={MODEL_ROLLOUTS: memory})

    def watched(change: Change) -> None:
        for key in keys_of(change.resource, change.obj["metadata"]):
            town.loop.changed(key, change.obj["metadata"]["resourceVersion"])

    town.kube.watch(watched)
    await until_finish(town, jobs, "Promoted")
    status = await go(town, jobs, 4)
    assert updated(status) == ("True", "ChampionSet")
    kube.count = 0
    await go(town, jobs, 10)
    assert kube.count == 0
    town.candidate.errors = 0.5
    await until_finish(town, jobs, "RolledBack")
    assert updated(await go(town, jobs, 4)) == ("True", "ChampionWithdrawn")


class Reads(FaultyKube):
    """Counts them."""

    count = 0

    async def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        self.count += 1
        return await self.inner.get(resource, namespace, name)


class NoJobs(FaultyKube):
    """An API server, or a policy in front of it, that admits no Jobs."""

    async def apply(self, obj: Object) -> Object:
        if obj["kind"] == JOBS.kind:
            raise Invalid(422, "admission webhook denied the request")
        return await super().apply(obj)


async def test_a_job_the_api_server_refuses_fails_no_pass() -> None:
    town, jobs = await town_with()
    town.restart_operator(NoJobs(town.kube))
    await until_finish(town, jobs, "Promoted")
    status = await go(town, jobs, int(MISSING_SECONDS / town.tick_seconds) + 2)
    assert updated(status) == ("False", "JobMissing")
    assert status["phase"] == "Promoted"
    assert status["observedGeneration"] == 1
    (told,) = (e for e in town.kube.all(EVENTS, NAMESPACE) if e["reason"] == "NotMade")
    assert "admission webhook denied" in told["message"]
    town.candidate.errors = 0.5
    assert (await until_finish(town, jobs, "RolledBack"))["weight"] == 0


async def test_a_rollout_that_is_being_deleted_makes_no_job() -> None:
    town, jobs = await town_with()
    jobs.stuck = True
    await until_finish(town, None, "Promoted")
    count = len(town.kube.all(JOBS))
    await town.kube.delete(MODEL_ROLLOUTS, NAMESPACE, "cut")
    assert FINALIZER in town.kube.peek(MODEL_ROLLOUTS, NAMESPACE, "cut")["metadata"]["finalizers"]
    await town.run_pass()
    assert len(town.kube.all(JOBS)) <= count


async def story(faults: tuple[Fault, ...]) -> tuple[dict[str, Any], list[str]]:
    """Promoted, then drifting; the operator dies or loses a write where `faults` says."""
    town, jobs = await town_with()
    faulty = FaultyKube(town.kube, faults)
    town.restart_operator(faulty)
    seen: list[str | None] = []
    drifts = False
    for _ in range(60):
        await town.tick()
        try:
            await town.run_pass()
        except Crash:
            town.restart_operator(faulty)
        except KubeError:
            continue
        jobs.work()
        status = await town.status()
        if not seen or seen[-1] != jobs.model.champion:
            seen.append(jobs.model.champion)
        told = status.get("registry", {}).get("state") == "Done"
        if status.get("finish") == "Promoted" and told and not drifts:
            drifts, town.candidate.errors = True, 0.5
        if status.get("finish") == "RolledBack" and told:
            break
    end = {
        "finish": status["finish"],
        "outcome": status["registry"]["outcome"],
        "state": status["registry"]["state"],
        "condition": updated(status)[0],
        "champions": seen,
        "outcomes": sorted({arguments(job)["outcome"] for job in jobs.ran}),
        "tags": {version: sorted(tags) for version, tags in jobs.model.tags.items()},
    }
    return end, list(faulty.writes)


@pytest.mark.parametrize("kind", ["before", "after", "unavailable", "lost answer", "conflict"])
async def test_died_or_refused_at_any_write_the_end_is_the_same(kind: Any) -> None:
    undisturbed, writes = await story(())
    assert undisturbed["champions"] == ["1", "2", "1"]
    places = [number for number, what in enumerate(writes, 1) if "ModelRollout/" in what or "Job/" in what]
    assert sum("Job/" in what for what in writes) == 2
    for place in places:
        assert (await story((Fault(place, kind),)))[0] == undisturbed, f"{kind} {place}: {writes[place - 1]}"
