"""The decision as a table and as random stories: what each check answers, and what holds whatever happens."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
import yaml
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cutover.api.trainingrun import PodUse, TrainingRun
from cutover.stages import StageResult
from cutover.task import Task
from cutover_operator.plan import Apply, Delete, Plan
from cutover_operator.port import JOBS, Object
from cutover_operator.training.decide import CHECKS, decide
from cutover_operator.training.observed import JobSeen, PodSeen, Trouble
from cutover_operator.training.outcome import judge
from cutover_operator.training.settle import current
from cutover_operator.training.spending import EARLIER, KEPT_PODS, counted, spent_seconds
from cutover_operator.training.world import NoTask, Site, World
from fakes.training_town import PARTS, SPEC, START, TASK

SITE = Site(("http://assessments:8080",), "trainer:1")
READ_TASK = Task.model_validate(yaml.safe_load(TASK))


def world(
    status: Object | None = None,
    jobs: tuple[JobSeen, ...] = (),
    pods: tuple[PodSeen, ...] = (),
    task: Task | NoTask = READ_TASK,
    site: Site = SITE,
    name: str = "run",
    generation: int = 1,
    **spec: Any,
) -> World:
    parent: Object = {
        "apiVersion": "cutover.dev/v1alpha1",
        "kind": "TrainingRun",
        "metadata": {"name": name, "namespace": "ns", "uid": "u" * 36, "generation": generation},
        "spec": SPEC | spec,
        "status": status or {},
    }
    return World(parent, TrainingRun.from_object(parent), task, site, jobs, pods)


def reason(plan: Plan) -> str:
    assert plan.status is not None
    return str(plan.status["reason"])


def made(plan: Plan) -> list[str]:
    return [
        action.obj["metadata"]["name"]
        for action in plan.after
        if isinstance(action, Apply) and action.obj["kind"] == "Job"
    ]


def job(stage: str, attempt: int = 1, active: bool = True, **more: Any) -> JobSeen:
    return JobSeen(f"run-{stage}-{attempt}", f"uid-{stage}-{attempt}", stage, attempt, active, **more)


def pod(of: JobSeen, over: bool = False, **more: Any) -> PodSeen:
    return PodSeen(
        f"{of.name}-x", f"pod-{of.uid}", of.name, of.stage, "u" * 36, over, created_at=START, **more
    )


def running(stage: str = "prepare", attempt: int = 1) -> Object:
    return {
        "observedGeneration": 1,
        "stage": stage,
        "stages": [{"name": stage, "state": "Running", "attempt": attempt, "job": f"run-{stage}-{attempt}"}],
    }


TRAIN: Object = running("train") | {
    "stages": [{"name": "prepare", "state": "Done"}, *running("train")["stages"]]
}


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (world(), "StageStarting"),
        (world(suspend=True), "Suspended"),
        (world(name="x" * 64), "NameTooLong"),
        (world(task=NoTask("TaskNotFound", "create it")), "TaskNotFound"),
        (world(site=Site((), "trainer:1")), "UrlNotAllowed"),
        (
            world(registry={"mlflow": {"url": "http://other:5000", "modelName": "m"}}),
            "UrlNotAllowed",
        ),
        (world(site=Site(SITE.allowed_urls, "")), "NoTrainerImage"),
        (world(running() | {"specDigest": "another"}), "SpecChanged"),
        (world(running(), (job("prepare"),)), "PodPending"),
        (world(running(), (job("prepare"),), (pod(job("prepare"), running=True),)), "StageRunning"),
        (world(running(), (job("prepare"),), (pod(job("prepare"), over=True),)), "StageEnding"),
        (
            world(
                running(),
                (job("prepare"),),
                (pod(job("prepare"), trouble=Trouble("ImagePullBackOff", "no such image")),),
            ),
            "ImagePullBackOff",
        ),
        (
            world(
                running(),
                (job("prepare"),),
                (pod(job("prepare"), trouble=Trouble("CreateContainerConfigError", 'secret "x" not found')),),
            ),
            "CreateContainerConfigError",
        ),
        (world(running(), (job("prepare", 7),)), "EarlierPodEnding"),
        (world(running(), (), (pod(job("train")),)), "EarlierPodEnding"),
        (
            world(running() | {"specDigest": "another"}, (job("prepare"),)),
            "PodPending",
        ),
        (
            world(
                {
                    "observedGeneration": 1,
                    "stages": [{"name": "prepare", "state": "Waiting", "notBefore": "2026-11-22T08:00:30Z"}],
                }
            ),
            "BackingOff",
        ),
        (world({"observedGeneration": 1, "stages": [{"name": "prepare", "state": "Failed"}]}), "StageFailed"),
        (
            world(
                TRAIN | {"pods": [{"uid": "a", "gpuSeconds": 50 * 3600.0}], "stages": TRAIN["stages"]},
                compute={"gpus": 1},
            ),
            "BudgetExceeded",
        ),
    ],
)
def test_what_each_check_answers(given: World, wanted: str) -> None:
    plan = decide(given, START + timedelta(seconds=20))
    assert reason(plan) == wanted
    assert bool(made(plan)) == (wanted == "StageStarting")


def test_a_run_that_is_going_is_left_alone_in_every_detail() -> None:
    given = world(running(), (job("prepare"),), (pod(job("prepare"), running=True),))
    first = decide(given, START)
    second = decide(world(first.status, given.jobs, given.pods), START + timedelta(seconds=25))
    assert first.after == second.after == ()
    assert second.status == first.status


def test_an_older_job_at_work_is_deleted_by_its_uid() -> None:
    plan = decide(world(running(), (job("prepare", 7),)), START)
    assert plan.after == (Delete(JOBS, "ns", "run-prepare-7", "uid-prepare-7"),)


def test_a_pod_on_a_dead_node_is_not_waited_for_for_ever() -> None:
    left = pod(job("prepare"), delete_by=START, node="dead")
    assert reason(decide(world(running(), (), (left,)), START + timedelta(seconds=170))) == "EarlierPodEnding"
    assert reason(decide(world(running(), (), (left,)), START + timedelta(seconds=190))) == "StageStarting"


def test_the_job_of_a_committed_attempt_is_made_again_under_the_same_name() -> None:
    first = decide(world(), START)
    second = decide(world(first.status), START + timedelta(hours=2))
    assert made(first) == made(second)
    assert first.status is not None
    assert second.status == first.status


def test_a_pod_that_never_starts_is_told_with_what_it_waits_for() -> None:
    source = {"http": {"url": "http://assessments:8080/x", "secretRef": {"name": "auth", "key": "admin"}}}
    given = world(running(), (job("prepare"),), (pod(job("prepare")),), dataset={"source": source})
    assert reason(decide(given, START + timedelta(seconds=30))) == "PodPending"
    plan = decide(given, START + timedelta(seconds=70))
    assert reason(plan) == "PodNotStarting"
    assert "Secret 'auth' with key 'admin'; claim 'artifacts'; claim 'models'" in str(plan.status)


def test_an_unreadable_object_says_so_once() -> None:
    parent: Object = {
        "metadata": {"name": "run", "namespace": "ns", "uid": "u", "generation": 2},
        "status": {"stage": "train"},
    }
    plan = decide(World(parent, "spec.dataset: missing", NoTask("", ""), SITE), START)
    assert plan.status is not None
    assert plan.status["stage"] == "train"
    assert [c["type"] for c in plan.status["conditions"]] == ["Reconciling", "Stalled"]
    again = decide(
        World({**parent, "status": plan.status}, "spec.dataset: missing", NoTask("", ""), SITE), START
    )
    assert again == Plan()


def test_an_object_on_its_way_out_is_left_alone() -> None:
    given = world()
    given.parent["metadata"]["deletionTimestamp"] = "2026-11-22T08:00:00Z"
    assert decide(given, START) == Plan()


ENDED = {"exit_code": 1, "over": True}


@pytest.mark.parametrize(
    ("given", "seen", "kind", "why"),
    [
        (job("train", active=False, succeeded=True), None, "interrupted", "ResultGone"),
        (job("train", active=False, succeeded=True), {"exit_code": 0}, "failed", "NoResult"),
        (
            job("train", active=False, message="Container x failed with exit code 65 matching"),
            None,
            "badInput",
            "BadInput",
        ),
        (
            job("train", active=False, message="Container x failed with exit code 75 matching"),
            None,
            "interrupted",
            "Interrupted",
        ),
        (job("train", active=False), None, "interrupted", "PodGone"),
        (job("train", active=False), {"exit_code": 137, "killed_for": "OOMKilled"}, "failed", "OutOfMemory"),
        (job("train", active=False), {"exit_code": 137, "disrupted": True}, "interrupted", "PodDisrupted"),
        (job("train", active=False), {"exit_code": 137}, "failed", "StageFailed"),
        (job("train", active=False), {"exit_code": 143}, "interrupted", "PodDisrupted"),
        (job("train", active=False), {"reason": "Evicted", "disrupted": True}, "failed", "Evicted"),
        (job("train", active=False), {"exit_code": 1}, "failed", "StageFailed"),
        (job("train", active=False), {}, "interrupted", "PodDisrupted"),
    ],
)
def test_how_an_attempt_ended(given: JobSeen, seen: Object | None, kind: str, why: str) -> None:
    outcome = judge("train", given, [] if seen is None else [pod(given, over=True, **seen)])
    assert (outcome.kind, outcome.reason) == (kind, why)


def test_the_stages_own_words_come_first() -> None:
    said = StageResult(stage="prepare", outcome="badInput", reason="TooFewExamples", message="812 rows")
    ended = job("prepare", active=False)
    outcome = judge("prepare", ended, [pod(ended, over=True, exit_code=65, result=said)])
    assert (outcome.reason, outcome.message) == ("TooFewExamples", "812 rows")
    other = StageResult(stage="train", outcome="done")
    assert (
        judge(
            "prepare", job("prepare", active=False, succeeded=True), [pod(ended, over=True, result=other)]
        ).kind
        == "failed"
    )


def test_a_pod_on_its_way_out_is_counted_to_the_second() -> None:
    """It may be gone at the next look; one that goes on running is counted in grains."""
    at = START + timedelta(seconds=12.5)
    seen = pod(job("train"), running=True, gpus=2, started_at=START)
    assert spent_seconds(counted([], [seen], at)) == 0.0
    leaving = replace(seen, delete_by=START + timedelta(seconds=70))
    assert spent_seconds(counted([], [leaving], at)) == 25.0
    # A node that does not answer holds the pod's object; its grace is what can be meant.
    assert spent_seconds(counted([], [leaving], START + timedelta(hours=1))) == 140.0


def test_folding_old_pods_keeps_the_sum() -> None:
    known = [PodUse(uid=f"p{n}", gpu_seconds=10.0) for n in range(KEPT_PODS + 25)]
    for _ in range(3):
        known = counted(known, [], START)
        assert len(known) <= KEPT_PODS + 1
    assert known[-1].uid == EARLIER
    assert spent_seconds(known) == 10.0 * (KEPT_PODS + 25)


def test_the_checks_are_in_the_order_the_policy_says() -> None:
    assert [check.__name__ for check in CHECKS] == [
        "failed_for_good",
        "suspended",
        "overdrawn",
        "job_runs",
        "name_too_long",
        "spec_changed",
        "task_unusable",
        "url_not_allowed",
        "no_image",
        "claim_not_shared",
        "forecast_over_budget",
        "budget_spent",
        "others_at_work",
        "backing_off",
        "search",
        "start",
    ]


class Story(RuleBasedStateMachine):
    """Jobs end in every way there is, in any order, with pauses, edits and forgotten actions between."""

    @initialize()
    def open(self) -> None:
        self.now: datetime = START
        self.status: Object = {}
        self.jobs: dict[str, JobSeen] = {}
        self.pods: dict[str, PodSeen] = {}
        self.suspended = False
        self.generation = 1
        self.made: list[tuple[str, int]] = []
        self.budget = 50.0

    def _world(self) -> World:
        return world(
            self.status,
            tuple(self.jobs.values()),
            tuple(self.pods.values()),
            generation=self.generation,
            suspend=self.suspended,
            compute={"gpus": 1, "gpuHourBudget": self.budget, "maxAttempts": 3},
        )

    def _act(self, plan: Plan, acts: bool) -> None:
        self.status = plan.status or self.status
        if not acts:
            return
        for action in plan.after:
            if isinstance(action, Apply) and action.obj["kind"] == "Job":
                self._make(action.obj)
            elif isinstance(action, Delete) and action.resource == JOBS and action.name in self.jobs:
                assert self.jobs[action.name].uid == action.uid
                gone = self.jobs.pop(action.name)
                for uid, one in list(self.pods.items()):
                    if one.job == gone.name:
                        del self.pods[uid]

    def _make(self, obj: Object) -> None:
        name, labels = obj["metadata"]["name"], obj["metadata"]["labels"]
        if name in self.jobs:
            return
        stage, attempt = labels["cutover.dev/stage"], int(labels["cutover.dev/attempt"])
        self.made.append((stage, attempt))
        uid = f"job-{len(self.made)}"
        self.jobs[name] = JobSeen(name, uid, stage, attempt, active=True)
        gpus = 1 if stage in ("train", "evaluate") else 0
        self.pods[uid] = PodSeen(
            f"{name}-x", uid, name, stage, "u" * 36, False, True, self.now, self.now, gpus=gpus
        )

    @rule(acts=st.booleans())
    def pass_over(self, acts: bool) -> None:
        self._act(decide(self._world(), self.now), acts)

    @rule(seconds=st.sampled_from([1, 12, 60, 900, 4000]))
    def wait(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @rule()
    def toggle_suspend(self) -> None:
        self.suspended = not self.suspended
        self.generation += 1

    @rule()
    def raise_budget(self) -> None:
        self.budget += 1
        self.generation += 1

    @precondition(lambda self: any(one.active for one in self.jobs.values()))
    @rule(how=st.sampled_from(["done", "done", "done", "crash", "interrupted", "bad", "gone", "silent"]))
    def end_the_job(self, how: str) -> None:
        one = next(one for one in self.jobs.values() if one.active)
        uid = one.uid
        code = {"crash": 1, "interrupted": 75, "bad": 65}.get(how, 0)
        self.jobs[one.name] = JobSeen(
            one.name, uid, one.stage, one.attempt, active=False, succeeded=how in ("done", "silent")
        )
        if how == "gone":
            self.pods.pop(uid, None)
        elif uid in self.pods:
            said = StageResult.model_validate({"stage": one.stage, "outcome": "done", **PARTS[one.stage]})
            old = self.pods[uid]
            self.pods[uid] = PodSeen(
                old.name,
                uid,
                one.name,
                one.stage,
                old.owner_uid,
                over=True,
                created_at=old.created_at,
                started_at=old.started_at,
                ended_at=self.now,
                gpus=old.gpus,
                exit_code=code,
                result=said if how == "done" else None,
            )

    @invariant()
    def one_at_work(self) -> None:
        assert sum(one.active for one in getattr(self, "jobs", {}).values()) <= 1

    @invariant()
    def attempts_are_never_skipped(self) -> None:
        for stage in ("prepare", "train", "evaluate", "register"):
            numbers = [number for name, number in getattr(self, "made", []) if name == stage]
            assert sorted(set(numbers)) == list(range(1, len(set(numbers)) + 1))

    @invariant()
    def stages_are_done_in_order(self) -> None:
        states = [stage["state"] == "Done" for stage in getattr(self, "status", {}).get("stages", [])]
        assert states == sorted(states, reverse=True)

    @invariant()
    def deciding_twice_is_deciding_once(self) -> None:
        if not hasattr(self, "now"):
            return
        first = decide(self._world(), self.now)
        kept, self.status = self.status, first.status or self.status
        second = decide(self._world(), self.now)
        self.status = kept
        assert second.status is not None
        assert first.status is not None
        one = current(TrainingRun.from_object({"spec": SPEC, "status": first.status}).status)
        two = current(TrainingRun.from_object({"spec": SPEC, "status": second.status}).status)
        assert one == two


TestStory = Story.TestCase
TestStory.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
