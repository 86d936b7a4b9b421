"""Stateless chance: every row once an epoch, another order each epoch, nothing to restore."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cutover.api.trainingrun import Augmentation
from cutover_trainer.schedule import Distortion, Schedule
from fakes import training_example

TASK = training_example.task()


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 3), st.integers(0, 9))
def test_an_epoch_has_every_row_once(rows: int, batch: int, epochs: int, seed: int) -> None:
    schedule = Schedule(rows, batch, epochs, seed)
    for epoch in range(epochs):
        steps = range(epoch * schedule.steps_per_epoch, (epoch + 1) * schedule.steps_per_epoch)
        assert sorted(row for step in steps for row in schedule.batch(step)) == list(range(rows))
    assert schedule.steps == epochs * schedule.steps_per_epoch


def test_a_fresh_schedule_draws_the_same() -> None:
    one, two = Schedule(100, 8, 3, 5), Schedule(100, 8, 3, 5)
    wanted = Augmentation()
    assert [one.batch(step) for step in range(39)] == [two.batch(step) for step in reversed(range(39))][::-1]
    assert one.view(20, wanted) == one.view(14, wanted) == 1
    assert one.distortion(1, 7, wanted) == two.distortion(1, 7, wanted)
    assert one.distortion(1, 7, wanted) != one.distortion(2, 7, wanted)
    assert one.dropout_seed(3) == two.dropout_seed(3) != one.dropout_seed(4)
    assert one.dropout_seed(3) != Schedule(100, 8, 3, 6).dropout_seed(3)
    assert Schedule(100, 8, 3, 6).batch(0) != one.batch(0)


def test_views_are_taken_in_turn_and_the_first_are_those_of_a_run_without() -> None:
    schedule = Schedule(100, 8, 5, 5)
    starts = [schedule.steps_per_epoch * epoch for epoch in range(5)]
    assert [schedule.view(step, Augmentation()) for step in starts] == [0, 1, 2, 3, 4]
    assert [schedule.view(step, Augmentation(views=2)) for step in starts] == [0, 1, 0, 1, 0]
    assert [schedule.view(step, Augmentation(enabled=False, views=3)) for step in starts] == [0] * 5


def test_augmentation_stays_within_what_was_asked() -> None:
    schedule = Schedule(50, 8, 1, 0)
    drawn = [schedule.distortion(0, row, Augmentation()) for row in range(50)]
    assert all(abs(one.rotation_degrees) <= 10 and abs(one.brightness - 1) <= 0.15 for one in drawn)
    assert schedule.distortion(0, 1, Augmentation(enabled=False)) == Distortion()


def test_the_learning_rate_warms_up_and_falls() -> None:
    schedule = Schedule(800, 8, 1, 0)
    rates = [schedule.learning_rate(step, 1.0) for step in range(schedule.steps)]
    top = rates.index(max(rates))
    assert max(rates) == 1.0
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert 0 < rates[-1] < 0.03
