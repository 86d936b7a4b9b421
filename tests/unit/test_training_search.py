"""A search as the operator conducts it: the real reconciler, trials as runs, curves in place of training."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from cutover.contract import LABEL_OWNER_NAME, LABEL_STAGE
from cutover.stages import StageConfig
from cutover_operator.port import CONFIG_MAPS, EVENTS, JOBS, PODS, TRAINING_RUNS
from fakes.search_town import SearchTown, searching
from fakes.training_town import CRASHED, INTERRUPTED, NAMESPACE, RUN, Ending, bad_input

SHORT = {"fineTune": {"epochs": 3}}
"""Three trials over three epochs: rungs of one epoch and three."""


def short(**tuning: Any) -> dict[str, Any]:
    return searching(trials=3, **tuning) | SHORT


async def to_the_end(town: SearchTown) -> SearchTown:
    await town.open()
    await town.until(lambda: town.over, step=15)
    return town


def configs(town: SearchTown, stage: str) -> list[StageConfig]:
    return [
        StageConfig.model_validate(yaml.safe_load(item["data"]["stage.yaml"]))
        for item in town.kube.all(CONFIG_MAPS)
        if item["metadata"].get("labels", {}).get(LABEL_STAGE) == stage
    ]


def events(town: SearchTown, reason: str) -> list[str]:
    return [e["message"] for e in town.kube.all(EVENTS) if e["reason"] == reason]


async def test_nine_trials_find_the_best_within_two_and_a_half_runs() -> None:
    town = await to_the_end(SearchTown(spec=searching()))
    winner = town.status["tuning"]["winner"]
    best = town.trials[winner]
    assert best["settings"]["learningRate"] == pytest.approx(1.7e-4, rel=0.05)
    assert (best["rung"], best["state"]) == (2, "Done")
    assert len(town.runs()) == 9 + 3 + 1
    # Promoted trials go on, and the model itself is the winner's last checkpoint: nothing is trained twice.
    assert town.epochs_trained == pytest.approx(21.0, abs=0.01)
    assert town.condition("Tuned") == ("True", "StageDone")
    assert town.condition("Succeeded") == ("True", "Succeeded")
    assert town.kube.peek(TRAINING_RUNS, NAMESPACE, best["run"])["status"]["progressText"].startswith(
        "rung 2, 9 epochs: loss 0.26"
    )
    assert len(events(town, "TrialStarted")) == 9
    assert len(events(town, "TrialPromoted")) == 4
    assert len(events(town, "TrialDone")) >= 13

    # Prepared once; the test part touched once, by the winner.
    assert len(configs(town, "prepare")) == 1
    (evaluated,) = configs(town, "evaluate")
    assert evaluated.spec.fine_tune.learning_rate == best["settings"]["learningRate"]
    *trials, last = sorted(configs(town, "train"), key=lambda one: one.run.name == RUN)
    parent = evaluated.artifacts
    assert {one.data_artifacts for one in trials} == {parent}
    assert all(one.artifacts.startswith(f"{parent}/trials/t") for one in trials)
    assert {one.resume_artifacts for one in trials if one.spec.trial and one.spec.trial.rung == 0} == {""}
    folders = {one.artifacts for one in trials}
    assert all(one.resume_artifacts in folders for one in trials if one.spec.trial and one.spec.trial.rung)
    assert last.resume_artifacts == f"{parent}/trials/{best['folder']}"
    assert last.spec.tuning is None
    assert last.spec.fine_tune == evaluated.spec.fine_tune


async def test_how_far_it_is_and_what_it_costs_stand_in_the_columns() -> None:
    town = SearchTown(spec=searching())
    await town.open()
    await town.until(lambda: len(town.status.get("tuning", {}).get("trials", [])) == 6, step=15)
    assert town.status["stage"] == "tune"
    assert town.status["reason"] == "Searching"
    assert town.status["progressText"] == "trial 5 of 9, best 0.9598"
    of_trials = sum(
        use["gpuSeconds"]
        for run in town.kube.all(TRAINING_RUNS)
        if run["metadata"]["name"] != RUN
        for use in run.get("status", {}).get("pods", [])
    )
    assert of_trials >= 240
    assert sum(use["gpuSeconds"] for use in town.status["pods"]) == pytest.approx(of_trials, abs=30)


@pytest.mark.parametrize("parallelism", [3, 9])
async def test_the_winner_does_not_depend_on_how_many_run_at_a_time(parallelism: int) -> None:
    alone = await to_the_end(SearchTown(spec=searching()))
    town = SearchTown(spec=searching(parallelism=parallelism))
    await town.open()
    most = 0

    def seen() -> bool:
        nonlocal most
        alive = [pod for pod in town.kube.each(PODS) if pod["status"].get("phase") == "Running"]
        most = max(most, len(alive))
        return town.over

    await town.until(seen, step=15)
    assert most == parallelism
    assert town.status["tuning"]["winner"] == alone.status["tuning"]["winner"]
    assert town.epochs_trained == pytest.approx(21.0, abs=0.01)


async def test_without_a_scheduler_everybody_trains_to_the_end() -> None:
    town = await to_the_end(SearchTown(spec=short(scheduler="none")))
    assert len(town.runs()) == 3
    assert town.epochs_trained == pytest.approx(9.0, abs=0.01)


async def test_interrupted_and_crashed_trials_go_on_where_they_were() -> None:
    seen: dict[str, int] = {}

    def disturb(config: StageConfig) -> Ending | None:
        """The first attempt of every rung is taken away or crashes on its way."""
        if config.attempt > 1:
            return None
        seen[config.run.name] = 1
        other = INTERRUPTED if len(seen) % 2 else CRASHED
        return Ending(20.0, other.code, other.message)

    calm = await to_the_end(SearchTown(spec=short()))
    town = await to_the_end(SearchTown(spec=short(), disturb=disturb))
    assert seen
    assert town.status["tuning"]["winner"] == calm.status["tuning"]["winner"]
    assert town.epochs_trained == pytest.approx(calm.epochs_trained, abs=0.3)


async def test_suspended_in_the_middle_it_gives_everything_back_and_goes_on() -> None:
    calm = await to_the_end(SearchTown(spec=short()))
    town = SearchTown(spec=short(parallelism=2))
    await town.open()
    await town.until(lambda: len(town.runs()) == 2, step=15)
    await town.step(30)
    town.kube.edit(TRAINING_RUNS, NAMESPACE, RUN, lambda run: run["spec"].update(suspend=True))
    await town.until(
        lambda: not [j for j in town.kube.each(JOBS) if not j["status"].get("conditions")], step=5
    )
    assert town.status["reason"] == "Suspended"
    held = town.epochs_trained
    for _ in range(5):
        await town.step(100)
    assert town.epochs_trained == held
    assert len(town.runs()) == 2
    town.kube.edit(TRAINING_RUNS, NAMESPACE, RUN, lambda run: run["spec"].update(suspend=False))
    await town.until(lambda: town.over, step=15)
    assert town.status["tuning"]["winner"] == calm.status["tuning"]["winner"]
    assert town.epochs_trained == pytest.approx(calm.epochs_trained, abs=0.4)


async def test_the_budget_covers_all_trials_together() -> None:
    calm = await to_the_end(SearchTown(spec=short()))
    town = SearchTown(spec=short(parallelism=2))
    await town.open()

    def granted(hours: float) -> None:
        town.kube.edit(
            TRAINING_RUNS, NAMESPACE, RUN, lambda run: run["spec"]["compute"].update(gpuHourBudget=hours)
        )

    await town.until(lambda: len(town.runs()) == 2, step=15)
    granted(0.025)  # 90 of the 300 GPU-seconds
    await town.until(lambda: town.status.get("reason") == "BudgetExceeded", step=5)
    assert town.condition("BudgetExceeded")[0] == "True"
    for _ in range(20):
        await town.step(10)
    spent = float(sum(use["gpuSeconds"] for use in town.status["pods"]))
    assert 90 <= spent <= 180
    assert not [pod for pod in town.kube.each(PODS) if pod["status"]["phase"] == "Running"]
    granted(10)
    await town.until(lambda: town.over, step=15)
    assert town.condition("BudgetExceeded")[0] == "False"
    assert town.status["tuning"]["winner"] == calm.status["tuning"]["winner"]


async def test_a_forecast_over_the_budget_is_said_before_the_first_trial() -> None:
    town = SearchTown(spec=searching() | {"compute": {"gpus": 1, "gpuHourBudget": 10}})
    await town.open()
    await town.until(lambda: town.status.get("reason") == "ForecastOverBudget", step=15)
    assert town.runs() == []
    message = next(c["message"] for c in town.status["conditions"] if c["type"] == "BudgetExceeded")
    assert "9 trials" in message
    assert "18.67" in message  # 8,000 rows x 21 epochs at 2.5 a second


async def test_a_trial_that_cannot_be_trained_loses() -> None:
    def diverges(config: StageConfig) -> Ending | None:
        bad = config.spec.trial is not None and config.spec.fine_tune.learning_rate > 1.5e-4
        return bad_input("train", "TrainingDiverged", "fineTune.learningRate: lower it") if bad else None

    town = await to_the_end(SearchTown(spec=searching(), disturb=diverges))
    assert town.trials[town.status["tuning"]["winner"]]["settings"]["learningRate"] < 1.5e-4
    assert "Failed" in {entry["state"] for entry in town.trials.values()}
    assert any("lower it" in message for message in events(town, "TrialFailed"))


async def test_when_none_can_be_trained_the_run_fails_and_says_why() -> None:
    def diverges(config: StageConfig) -> Ending | None:
        return bad_input("train", "TrainingDiverged", "fineTune.learningRate: lower it")

    town = await to_the_end(SearchTown(spec=short(), disturb=diverges))
    assert town.condition("Tuned") == ("False", "NoTrialSucceeded")
    assert town.condition("Succeeded") == ("False", "StageFailed")
    message = next(c["message"] for c in town.status["conditions"] if c["type"] == "Tuned")
    assert "none of the 3 trials" in message
    assert "lower it" in message
    assert configs(town, "evaluate") == []


async def test_a_trials_run_that_somebody_deletes_is_made_again() -> None:
    town = SearchTown(spec=short())
    await town.open()
    await town.until(lambda: len(town.runs()) == 2, step=15)
    first = town.runs()[0]
    town.kube.vanish(TRAINING_RUNS, NAMESPACE, first)
    await town.until(lambda: town.over, step=15)
    assert first in town.runs()
    assert town.condition("Succeeded") == ("True", "Succeeded")
    spent = sum(use["gpuSeconds"] for use in town.status["pods"])
    assert spent >= 300  # what the deleted run had used still counts


async def test_a_trial_that_waits_for_somebody_is_named() -> None:
    town = SearchTown(spec=short())
    await town.open()
    await town.until(lambda: len(town.runs()) == 1, step=15)
    town.kube.vanish(CONFIG_MAPS, NAMESPACE, "task")
    await town.until(lambda: town.condition("Stalled")[0] == "True", step=15)
    assert town.condition("Stalled")[1] == "TaskNotFound"


async def test_what_may_change_reaches_the_trials_at_work() -> None:
    town = SearchTown(spec=short())
    await town.open()
    await town.until(lambda: len(town.runs()) == 1, step=15)
    town.kube.edit(TRAINING_RUNS, NAMESPACE, RUN, lambda run: run["spec"]["compute"].update(maxAttempts=9))
    await town.step()
    (run,) = town.runs()
    compute = town.kube.peek(TRAINING_RUNS, NAMESPACE, run)["spec"]["compute"]
    assert compute["maxAttempts"] == 9


async def test_names_fit_however_long_the_run_is_called() -> None:
    town = await to_the_end(SearchTown(spec=short()))
    assert all(len(name) <= 52 for name in town.runs())
    for job in town.kube.all(JOBS):
        assert len(job["metadata"]["labels"][LABEL_OWNER_NAME]) <= 63


async def test_a_search_that_failed_is_taken_up_again_when_its_spec_is_edited() -> None:
    broken = True

    def out_of_memory(config: StageConfig) -> Ending | None:
        return Ending(code=1, message="") if broken and config.spec.trial is not None else None

    compute = {"gpus": 1, "gpuHourBudget": 50, "maxAttempts": 1}
    town = await to_the_end(SearchTown(spec=short() | {"compute": compute}, disturb=out_of_memory))
    assert town.condition("Succeeded")[0] == "False"
    broken = False
    town.kube.edit(
        TRAINING_RUNS,
        NAMESPACE,
        RUN,
        lambda run: run["spec"]["compute"].update(memory="64Gi", maxAttempts=5),
    )
    await town.until(lambda: town.condition("Succeeded")[0] == "True", step=30)
    assert {trial["state"] for trial in town.status["tuning"]["trials"]} == {"Done"}


async def test_a_search_half_done_goes_on_with_less_budget_than_the_whole_would_need() -> None:
    town = SearchTown(spec=short())
    await town.open()
    await town.until(lambda: len(town.runs()) == 2, step=15)

    def edit(**spec: Any) -> None:
        town.kube.edit(TRAINING_RUNS, NAMESPACE, RUN, lambda run: run["spec"].update(**spec))

    edit(suspend=True)
    await town.until(lambda: town.status["reason"] == "Suspended", step=30)
    edit(suspend=False, compute={"gpus": 1, "gpuHourBudget": 4.0})
    for _ in range(5):
        await town.step(30)
    assert town.status["reason"] != "ForecastOverBudget"
