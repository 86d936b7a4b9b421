"""ASHA as a pure function: what it promotes, what it costs, and that neither depends on who is late."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutover.api.trainingrun import FineTune
from cutover.api.tuning import SETTINGS, Tuning
from cutover_operator.training.halving import cost_epochs, judge, ladder
from cutover_operator.training.suggest import settings_of, suggestions, with_settings
from fakes.asha_published import certain, published, run

NINE = ladder(9, 9, "asha")
LOSSES = st.one_of(st.none(), st.integers(0, 6).map(float))


def curve_of(seed: int, trials: int) -> Any:
    """Learning curves that cross: what is best early is not always best late."""
    chance = random.Random(seed)
    floors = [chance.uniform(0.1, 1.0) for _ in range(trials)]
    rates = [chance.uniform(0.3, 1.5) for _ in range(trials)]
    return lambda trial, epochs: floors[trial - 1] + math.exp(-rates[trial - 1] * epochs)


def test_nine_trials_over_nine_epochs() -> None:
    assert [(rung.epochs, rung.places) for rung in NINE] == [(1.0, 9), (3.0, 3), (9.0, 1)]
    assert cost_epochs(NINE) / 9 == pytest.approx(2.333, abs=0.001)
    assert [(rung.epochs, rung.places) for rung in ladder(9, 3, "asha")] == [
        (pytest.approx(1 / 3, abs=1e-6), 9),
        (1.0, 3),
        (3.0, 1),
    ]


@pytest.mark.parametrize(
    ("trials", "scheduler", "rungs", "full_runs"),
    [
        (1, "asha", 1, 1),
        (2, "asha", 1, 2),
        (3, "asha", 2, 5 / 3),
        (64, "asha", 3, 148 / 9),
        (9, "none", 1, 9),
    ],
)
def test_ladders(trials: int, scheduler: Any, rungs: int, full_runs: float) -> None:
    ladder_ = ladder(trials, 9, scheduler)
    assert len(ladder_) == rungs
    assert ladder_[-1].epochs == 9
    assert cost_epochs(ladder_) / 9 == pytest.approx(full_runs, abs=0.01)


def test_a_trial_is_promoted_when_nobody_outstanding_can_displace_it() -> None:
    results: dict[tuple[int, int], float | None] = {(n, 0): n / 10 for n in range(1, 7)}
    assert judge(NINE, results).due == ((7, 0), (8, 0), (9, 0))  # three may still be better than all
    results[7, 0] = 0.9
    assert judge(NINE, results).due == ((1, 1), (8, 0), (9, 0))  # two may be better: one place is certain
    results |= {(8, 0): 0.05, (9, 0): None}
    assert judge(NINE, results).due == ((1, 1), (2, 1), (8, 1))


def test_equal_losses_go_to_the_lower_number() -> None:
    results: dict[tuple[int, int], float | None] = {(n, 0): 1.0 for n in range(1, 10)}
    assert judge(NINE, results).due == ((1, 1), (2, 1), (3, 1))


def test_failed_trials_are_never_promoted_and_the_best_survivor_wins() -> None:
    results: dict[tuple[int, int], float | None] = {(n, 0): None for n in range(1, 10)}
    assert judge(NINE, results) == judge(NINE, dict(results))
    assert judge(NINE, results).finished
    assert judge(NINE, results).winner is None
    results |= {(4, 0): 0.5, (5, 0): 0.4}
    assert judge(NINE, results).due == ((4, 1), (5, 1))
    results |= {(4, 1): 0.3, (5, 1): 0.2, (5, 2): None}
    state = judge(NINE, results)
    assert (state.finished, state.winner) == (True, 4)


@given(st.data())
def test_the_end_does_not_depend_on_the_order_of_arrival(data: st.DataObject) -> None:
    """Whatever arrives when: nobody is ever taken back, the winner is that of a search that waits for everybody."""
    trials = data.draw(st.integers(1, 12))
    rungs = ladder(trials, 9, "asha")
    truth = {(t, r.number): data.draw(LOSSES) for t in range(1, trials + 1) for r in rungs}
    results: dict[tuple[int, int], float | None] = {}
    trained = set()
    while due := judge(rungs, results).due:
        assert not judge(rungs, results).finished
        one = data.draw(st.sampled_from(due))
        results[one] = truth[one]
        trained.add(one)
        later = judge(rungs, results).due
        assert set(due) - {one} <= set(later)
    assert judge(rungs, results).finished

    # A search that waits for everybody at every rung.
    entrants, reached = list(range(1, trials + 1)), set()
    for rung in rungs:
        reached |= {(trial, rung.number) for trial in entrants}
        good = sorted((v, t) for t in entrants if (v := truth[t, rung.number]) is not None)
        last = [trial for _, trial in good]
        entrants = last[: rungs[rung.number + 1].places] if rung is not rungs[-1] else entrants
    assert trained == reached
    assert sum(rung.places for rung in rungs) >= len(trained)
    if last:
        assert judge(rungs, results).winner == last[0]


def test_cost_and_winner_on_learning_curves_with_delays() -> None:
    """200 sets of curves, each run with one worker and with four that are late by chance. The operator's search always
    costs 2.33 full runs and always crowns the same; ASHA as published often costs more than 2.5, and the winner depends
    on who was late. The figures stand in docs/decisions/0011."""
    ours, theirs, changed = [], [], {"certain": 0, "published": 0}
    for seed in range(200):
        curve = curve_of(seed, 9)
        alone, late, again = (run(NINE, curve, certain, w, s) for w, s in ((1, 0), (4, seed), (4, seed + 1)))
        assert alone.epochs == late.epochs == again.epochs == 21.0
        changed["certain"] += len({alone.winner, late.winner, again.winner}) > 1
        other = [run(NINE, curve, published, w, s) for w, s in ((1, 0), (4, seed), (4, seed + 1))]
        changed["published"] += len({one.winner for one in other}) > 1
        ours.append(late)
        theirs.append(other[1])
    assert changed["certain"] == 0
    assert changed["published"] >= 5
    assert sum(one.epochs > 2.5 * 9 for one in theirs) > 40
    loss, seconds = (
        [sum(getattr(one, name) for one in told) / len(told) for told in (ours, theirs)]
        for name in ("loss", "seconds")
    )
    assert loss[0] <= loss[1] + 0.01
    assert seconds[0] <= 1.1 * seconds[1]


def test_a_crash_that_forgets_everything_changes_nothing_about_the_next_move() -> None:
    """The function is all there is: asked again with the same results it says the same."""
    told = run(NINE, curve_of(3, 9), certain, 2, 5)
    failing = run(NINE, curve_of(3, 9), certain, 2, 5, fails=lambda trial, rung: trial == told.winner)
    assert failing.winner != told.winner
    assert failing.epochs <= told.epochs


# ------------------------------------------------------------------ suggestions
def tuning(trials: int, **space: Any) -> Tuning:
    return Tuning.model_validate({"trials": trials, "space": space, "seed": 3})


def test_a_range_is_covered_evenly() -> None:
    nine = suggestions(tuning(9, learningRate={"min": 1e-5, "max": 1e-3, "log": True}))
    slices = sorted(int(math.log10(one["learningRate"] / 1e-5) / 2 * 9) for one in nine)
    assert slices == list(range(9))
    linear = suggestions(tuning(4, **{"lora.dropout": {"min": 0.0, "max": 0.4}}))
    assert sorted(int(one["lora.dropout"] / 0.1) for one in linear) == [0, 1, 2, 3]


def test_a_small_space_is_tried_without_repeating() -> None:
    grid = tuning(6, **{"batchSize": {"min": 4, "max": 6}, "lora.rank": {"values": [8, 16]}})
    tried = {tuple(sorted(one.items())) for one in suggestions(grid)}
    assert len(tried) == 6


def test_settings_are_the_same_for_ever() -> None:
    """A new version of a library must not draw others in the middle of a search."""
    space = {"learningRate": {"min": 2e-5, "max": 5e-4, "log": True}, "lora.rank": {"values": [8, 16, 32]}}
    assert suggestions(tuning(3, **space)) == (
        {"learningRate": 8.711e-05, "lora.rank": 8.0},
        {"learningRate": 0.0001913, "lora.rank": 32.0},
        {"learningRate": 2.93e-05, "lora.rank": 16.0},
    )


@given(
    st.integers(1, 64),
    st.integers(0, 2**31 - 1),
    st.dictionaries(
        st.sampled_from(sorted(SETTINGS)), st.tuples(st.floats(0, 0.99), st.floats(0.01, 1), st.booleans())
    ),
)
def test_suggestions_stay_within_bounds_and_fit_the_fine_tune_section(
    trials: int, seed: int, ends: dict[str, tuple[float, float, bool]]
) -> None:
    space: dict[str, Any] = {}
    for name, (low, width, log) in ends.items():
        setting = SETTINGS[name]
        span = setting.most - setting.least
        least = setting.least + low * span
        most = min(setting.most, least + width * span)
        least, most = (round(least), round(most)) if setting.whole else (least, most)
        if least < most:
            space[name] = {"min": least, "max": most, "log": log and least > 0}
    wanted = Tuning.model_validate({"trials": trials, "space": space, "seed": seed})
    for settings in suggestions(wanted):
        for name, value in settings.items():
            assert wanted.space[name].min <= value <= wanted.space[name].max  # type: ignore[operator]
        placed = with_settings(FineTune(), settings)
        assert settings_of(placed, settings) == settings


def test_the_table_of_settings_has_the_bounds_of_the_fine_tune_section() -> None:
    for name, setting in SETTINGS.items():
        for value in (setting.least, setting.most):
            with_settings(FineTune(), {name: value})
        with pytest.raises(ValueError, match=r"greater|less"):
            with_settings(FineTune(), {name: setting.most * 2})
