"""TrainingRuns on a clock: what a person would see in the status, and which Jobs there ever were."""

from __future__ import annotations

import pytest
import yaml

from cutover_operator.port import CONFIG_MAPS, EVENTS, JOBS, PODS, TRAINING_RUNS
from fakes.training_town import (
    CRASHED,
    DONE,
    INTERRUPTED,
    KEY,
    LOST,
    NAMESPACE,
    RUN,
    SPEC,
    Ending,
    Town,
    bad_input,
    result,
)

CONDITIONS = [
    "DataReady",
    "Trained",
    "Evaluated",
    "Registered",
    "Succeeded",
    "BudgetExceeded",
    "Reconciling",
    "Stalled",
]


async def opened(**kwargs: object) -> Town:
    town = Town(**kwargs)  # type: ignore[arg-type]
    await town.open()
    return town


def with_compute(**compute: object) -> dict[str, object]:
    return {"compute": {**SPEC["compute"], **compute}}


async def test_four_stages_and_a_registered_model() -> None:
    town = await opened(behave={"train": [Ending(seconds=4440)]})
    await town.run_pass()
    assert [one["type"] for one in town.status["conditions"]] == CONDITIONS
    assert town.condition("DataReady") == ("Unknown", "StageRunning")
    await town.until(lambda: town.over, step=30)

    status = town.status
    assert town.jobs() == ["prepare-1", "train-1", "evaluate-1", "register-1"]
    assert {c["type"]: c["status"] for c in status["conditions"]} == {
        **dict.fromkeys(("DataReady", "Trained", "Evaluated", "Registered", "Succeeded"), "True"),
        **dict.fromkeys(("BudgetExceeded", "Reconciling", "Stalled"), "False"),
    }
    assert status["stage"] == "done"
    assert status["progressText"] == "100%"
    assert status["accuracyText"] == "0.934"
    assert status["modelText"] == "building-damage/3"
    assert status["gpuHours"] == "1.25"
    assert status["model"]["adapterUri"] == "claim://artifacts/x/adapter"
    assert {one["gpuSeconds"] for one in status["pods"]} == {4440.0, 60.0}
    reasons = {event["reason"] for event in town.kube.all(EVENTS)}
    assert reasons == {"StageStarted", "StageDone", "Succeeded"}


@pytest.mark.parametrize(
    ("gates", "shown"),
    [
        (
            [{"metric": "accuracy", "field": "damageType", "min": 0.9}, {"metric": "accuracy", "min": 0.8}],
            "0.950",
        ),
        ([{"metric": "jsonValidity", "min": 0.9}, {"metric": "accuracy", "min": 0.8}], "0.934"),
        ([{"metric": "recall", "field": "damageType", "class": "crack", "min": 0.5}], "0.950"),
        ([{"metric": "accuracy", "field": "unheardOf", "min": 0.9}], "0.934"),
    ],
)
async def test_the_accuracy_column_shows_what_the_first_gate_is_about(
    gates: list[dict[str, object]], shown: str
) -> None:
    town = await opened(spec={"evaluation": {"gates": gates}})
    await town.until(lambda: town.over)
    assert town.status["accuracyText"] == shown


async def test_a_settled_run_is_not_written_again() -> None:
    town = await opened()
    await town.until(lambda: town.over)
    version = town.kube.peek(*_ident())["metadata"]["resourceVersion"]
    changes: list[object] = []
    town.kube.watch(changes.append)
    for _ in range(20):
        await town.step(700)
    assert town.kube.peek(*_ident())["metadata"]["resourceVersion"] == version
    assert changes == []


async def test_progress_comes_from_the_log() -> None:
    town = await opened(behave={"train": [Ending(seconds=600)]})
    await town.until(lambda: town.jobs() == ["prepare-1", "train-1"])
    await town.step()
    pod = next(pod for pod in town.kube.all(PODS) if "train" in pod["metadata"]["name"])
    town.kube.logs[NAMESPACE, pod["metadata"]["name"]] = (
        "loading\n"
        '{"event": "progress", "stage": "train", "step": 1290, "steps": 3000, "loss": 0.4, "samplesPerSecond": 2.6}\n'
        '{"event": "checkpoint", "step": 1290}\n'
    )
    await town.step(10)
    assert town.status["progressText"] == "43%"
    assert town.status["progress"]["samplesPerSecond"] == 2.6
    assert town.status["stage"] == "train"


async def test_refused_input_is_final_and_speaks_for_itself() -> None:
    text = "dataset.quality.minExamples: 812 usable rows, 10000 wanted; collect more or lower it in a new run"
    town = await opened(behave={"prepare": [bad_input("prepare", "TooFewExamples", text)]})
    await town.until(lambda: town.over)
    await town.step(3600)
    assert town.jobs() == ["prepare-1"]
    assert town.condition("DataReady") == ("False", "TooFewExamples")
    assert town.condition("Succeeded") == ("False", "StageFailed")
    assert town.condition("Stalled") == ("True", "StageFailed")
    assert town.status["reason"] == "TooFewExamples"
    assert text in next(c["message"] for c in town.status["conditions"] if c["type"] == "DataReady")


async def test_an_edit_of_the_spec_tries_a_failed_stage_again() -> None:
    gate = bad_input("evaluate", "GateMissed", "evaluation.gates: accuracy 0.81, min 0.9")
    town = await opened(behave={"evaluate": [gate, DONE]})
    await town.until(lambda: town.over)
    assert town.condition("Evaluated") == ("False", "GateMissed")
    town.kube.edit(*_ident(), lambda obj: obj["spec"].update(evaluation={"gates": [{"min": 0.8}]}))
    await town.until(lambda: town.condition("Succeeded")[0] == "True")
    assert town.jobs()[-3:] == ["evaluate-1", "evaluate-2", "register-1"]


async def test_failures_back_off_and_end_at_max_attempts() -> None:
    town = await opened(spec=with_compute(maxAttempts=3), behave={"train": [CRASHED]})
    await town.until(lambda: town.stage("train")["failures"] == 1)
    first = town.clock
    assert town.condition("Reconciling") == ("True", "BackingOff")
    await town.until(lambda: town.stage("train")["attempt"] == 2)
    assert 30 <= (town.clock - first).total_seconds() <= 40
    await town.until(lambda: town.over)
    assert town.jobs() == ["prepare-1", "train-1", "train-2", "train-3"]
    assert town.condition("Trained") == ("False", "AttemptsUsedUp")
    assert "3 failed attempts" in town.stage("train")["message"]


async def test_interruptions_cost_no_attempt() -> None:
    town = await opened(
        spec=with_compute(maxAttempts=1), behave={"train": [INTERRUPTED, LOST, INTERRUPTED, DONE]}
    )
    await town.until(lambda: town.over)
    assert town.condition("Succeeded")[0] == "True"
    assert town.jobs() == [
        "prepare-1",
        "train-1",
        "train-2",
        "train-3",
        "train-4",
        "evaluate-1",
        "register-1",
    ]
    assert town.stage("train")["failures"] == 0


async def test_many_interruptions_leave_few_jobs() -> None:
    town = await opened(behave={"train": [INTERRUPTED] * 20 + [DONE]})
    await town.until(lambda: town.over)
    assert town.condition("Succeeded")[0] == "True"
    assert town.stage("train")["attempt"] == 21
    assert len(town.kube.all(JOBS)) <= 16
    assert len(town.kube.all(CONFIG_MAPS)) <= 17
    assert town.status["gpuHours"] == f"{(21 + 1) * 60 / 3600:.2f}"


async def test_exit_code_0_without_a_result_is_a_failure() -> None:
    town = await opened(spec=with_compute(maxAttempts=1), behave={"prepare": [Ending(message="hello")]})
    await town.until(lambda: town.over)
    assert town.condition("DataReady") == ("False", "AttemptsUsedUp")
    assert "did not say that it is done" in town.stage("prepare")["message"]


async def test_a_pod_that_finds_no_node_is_told_and_not_counted() -> None:
    text = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    town = await opened(behave={"train": [Ending(trouble=("Unschedulable", text))]})
    await town.until(lambda: "train-1" in town.jobs())
    await town.step(30)
    await town.step(3600)
    assert town.condition("Reconciling") == ("True", "Unschedulable")
    assert text in next(c["message"] for c in town.status["conditions"] if c["type"] == "Reconciling")
    assert town.condition("Stalled")[0] == "False"
    assert town.stage("train")["failures"] == 0
    assert town.status["gpuHours"] == "0.00"


async def test_suspend_gives_the_gpu_back_and_goes_on_afterwards() -> None:
    town = await opened(behave={"train": [Ending(seconds=500), DONE]})
    await town.until(lambda: "train-1" in town.jobs())
    await town.step(5)
    await town.step(60)
    town.kube.edit(*_ident(), lambda obj: obj["spec"].update(suspend=True))
    await town.run_pass()
    await town.step(60)
    assert town.jobs() == ["prepare-1"]
    assert town.condition("Reconciling") == ("False", "Suspended")
    assert town.stage("train")["state"] == "Waiting"
    await town.step(3600)
    assert town.jobs() == ["prepare-1"]
    town.kube.edit(*_ident(), lambda obj: obj["spec"].update(suspend=False))
    await town.run_pass()
    await town.until(lambda: town.over)
    assert town.stage("train")["attempt"] == 2
    assert town.stage("train")["failures"] == 0
    # The seconds before the suspension are still paid for.
    assert sum(one["gpuSeconds"] for one in town.status["pods"]) >= 60 + 60 + 60


async def test_a_queued_run_waits_for_kueue_and_may_be_taken_back() -> None:
    town = await opened(spec=with_compute(queueName="gpus"), behave={"train": [Ending(seconds=500)]})
    town.admitting = False
    await town.run_pass()
    await town.step(3600)
    assert town.kube.all(PODS) == []
    assert town.stage("prepare")["state"] == "Queued"
    assert town.status["reason"] == "Queued"
    assert town.condition("DataReady") == ("Unknown", "StageQueued")
    assert town.condition("Stalled")[0] == "False"

    town.admitting = True
    await town.until(lambda: town.jobs() == ["prepare-1", "train-1"])
    await town.step(5)
    await town.step(60)
    assert town.stage("train")["state"] == "Running"
    town.admitting = False
    await town.step(15)
    assert town.kube.all(PODS)[-1]["metadata"]["labels"]["cutover.dev/stage"] == "prepare"
    assert town.stage("train")["state"] == "Queued"
    assert "queue gpus" in next(c["message"] for c in town.status["conditions"] if c["type"] == "Reconciling")
    spent = sum(one["gpuSeconds"] for one in town.status["pods"])
    await town.step(7200)
    assert sum(one["gpuSeconds"] for one in town.status["pods"]) == spent >= 60

    town.admitting = True
    await town.until(lambda: town.over)
    assert town.condition("Succeeded")[0] == "True"
    assert town.jobs() == ["prepare-1", "train-1", "evaluate-1", "register-1"]
    assert (town.stage("train")["attempt"], town.stage("train")["failures"]) == (1, 0)


async def test_a_queued_attempt_that_ends_with_a_checkpoint_is_queued_anew() -> None:
    town = await opened(
        spec=with_compute(queueName="gpus", maxAttempts=1), behave={"train": [INTERRUPTED, DONE]}
    )
    await town.until(lambda: town.over)
    assert town.condition("Succeeded")[0] == "True"
    assert town.jobs() == ["prepare-1", "train-1", "train-2", "evaluate-1", "register-1"]


async def test_a_job_suspended_by_hand_is_told() -> None:
    town = await opened()
    await town.run_pass()
    name = town.stage("prepare")["job"]
    town.kube.edit(JOBS, NAMESPACE, name, lambda obj: obj["spec"].update(suspend=True))
    await town.run_pass()
    assert town.status["reason"] == "JobSuspended"
    assert town.stage("prepare")["state"] == "Queued"


async def test_no_attempt_starts_beside_a_pod_that_still_ends() -> None:
    town = await opened(behave={"train": [Ending(seconds=500), DONE]})
    await town.until(lambda: "train-1" in town.jobs())
    await town.step(10)
    pod = next(pod for pod in town.kube.all(PODS) if "train" in pod["metadata"]["name"])
    town.kube.edit(
        PODS, NAMESPACE, pod["metadata"]["name"], lambda obj: obj["metadata"].update(finalizers=["x/y"])
    )
    for wish in (True, False):
        town.kube.edit(*_ident(), lambda obj, wish=wish: obj["spec"].update(suspend=wish))
        await town.run_pass()
    job = next(job for job in town.kube.all(JOBS) if "train" in job["metadata"]["name"])
    await town.kube.delete(JOBS, NAMESPACE, job["metadata"]["name"])
    town.kube.force({**pod, "metadata": {**pod["metadata"], "name": "left-behind", "ownerReferences": []}})
    for _ in range(10):
        await town.run_pass()
    assert town.jobs() == ["prepare-1"]
    assert town.condition("Reconciling") == ("True", "EarlierPodEnding")
    town.kube.vanish(PODS, NAMESPACE, "left-behind")
    await town.run_pass()
    assert town.jobs() == ["prepare-1", "train-2"]


async def test_the_budget_stops_the_run_and_a_raise_continues_it() -> None:
    town = await opened(
        spec=with_compute(gpuHourBudget=2) | {"fineTune": {"epochs": 1}},
        behave={"train": [Ending(seconds=7300, code=75, message=result("train", "budgetExceeded")), DONE]},
    )
    await town.until(lambda: town.status.get("reason") == "BudgetExceeded", step=50)
    assert town.condition("BudgetExceeded") == ("True", "BudgetExceeded")
    assert town.condition("Stalled") == ("True", "BudgetExceeded")
    await town.step(7200)
    assert town.jobs() == ["prepare-1", "train-1"]
    town.kube.edit(*_ident(), lambda obj: obj["spec"]["compute"].update(gpuHourBudget=3))
    await town.until(lambda: town.over)
    assert town.jobs() == ["prepare-1", "train-1", "train-2", "evaluate-1", "register-1"]
    assert town.condition("BudgetExceeded") == ("False", "WithinBudget")
    config = yaml.safe_load(
        town.kube.peek(CONFIG_MAPS, NAMESPACE, town.stage("train")["job"])["data"]["stage.yaml"]
    )
    assert config["gpuSecondsLeft"] == 3 * 3600 - 7300
    assert config["attempt"] == 2


async def test_a_trainer_that_overdraws_is_stopped() -> None:
    town = await opened(
        spec=with_compute(gpuHourBudget=2) | {"fineTune": {"epochs": 1}},
        behave={"train": [Ending(seconds=99999)]},
    )
    await town.until(lambda: town.status.get("reason") == "BudgetExceeded", step=30)
    assert town.jobs() == ["prepare-1"]
    assert float(town.status["gpuHours"]) < 2.1


async def test_a_forecast_above_the_budget_asks_for_no_gpu() -> None:
    town = await opened(spec=with_compute(gpuHourBudget=1))
    await town.until(lambda: town.status.get("reason") == "ForecastOverBudget")
    assert town.jobs() == ["prepare-1"]
    message = next(c["message"] for c in town.status["conditions"] if c["type"] == "BudgetExceeded")
    assert "8000 rows x 3 epochs" in message
    assert "2.67" in message


async def test_a_forecast_knows_that_a_base_in_four_bits_is_slower() -> None:
    spec = with_compute(gpuHourBudget=3)
    town = await opened(spec=spec | {"fineTune": {"quantization": "nf4"}})
    await town.until(lambda: town.status.get("reason") == "ForecastOverBudget")
    message = next(c["message"] for c in town.status["conditions"] if c["type"] == "BudgetExceeded")
    assert "4.17" in message


async def test_a_missing_or_broken_task_is_named_and_found_when_mended() -> None:
    town = await opened(spec={"task": {"configMap": "absent"}})
    await town.run_pass()
    assert town.condition("Stalled") == ("True", "TaskNotFound")
    assert town.status["stage"] == ""
    broken = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "absent", "namespace": NAMESPACE},
        "data": {
            "task.yaml": "name: x\nsystemPrompt: a\nuserPrompt: b\nanswerSchema: {}\nscoredFields: [y]\n"
        },
    }
    await town.kube.as_user().create(broken)
    await town.step(40)
    assert town.condition("Stalled") == ("True", "TaskInvalid")
    assert "scoredFields" in next(c["message"] for c in town.status["conditions"] if c["type"] == "Stalled")
    good = town.kube.peek(CONFIG_MAPS, NAMESPACE, "task")["data"]
    town.kube.edit(CONFIG_MAPS, NAMESPACE, "absent", lambda obj: obj.update(data=good))
    await town.until(lambda: town.over)
    assert town.condition("Succeeded")[0] == "True"


async def test_a_url_off_the_allow_list_is_refused_before_any_job() -> None:
    source = {"http": {"url": "http://assessments:8080.evil.org/api"}}
    town = await opened(spec={"dataset": {**SPEC["dataset"], "source": source}})
    await town.run_pass()
    assert town.condition("Stalled") == ("True", "UrlNotAllowed")
    assert "http://assessments:8080, http://mlflow:5000" in str(town.status["conditions"])
    assert town.jobs() == []


async def test_a_job_deleted_by_hand_is_made_again_as_the_same_attempt() -> None:
    town = await opened(behave={"train": [Ending(seconds=500)]})
    await town.until(lambda: "train-1" in town.jobs())
    await town.step(10)
    name = town.stage("train")["job"]
    await town.kube.as_user().delete(JOBS, NAMESPACE, name)
    await town.run_pass()
    assert town.jobs() == ["prepare-1", "train-1"]
    assert town.stage("train")["job"] == name


async def test_a_deleted_run_gets_no_more_passes() -> None:
    town = await opened()
    await town.step()
    await town.kube.as_user().delete(*_ident())
    assert await town.loop.run_pass(KEY) is None
    assert town.kube.all(JOBS) == []


def _ident() -> tuple[object, str, str]:
    return TRAINING_RUNS, NAMESPACE, RUN
