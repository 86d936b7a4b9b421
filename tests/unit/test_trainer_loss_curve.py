"""What a loss curve says about the adapter: an entropy is paid by whoever guesses by frequency."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutover_trainer.loss_curve import label_entropy, nothing_learnt


def truths(counts: dict[str, int]) -> list[dict[str, str]]:
    return [{"damageType": name} for name, count in counts.items() for _ in range(count)]


def test_entropy_of_labels() -> None:
    assert label_entropy(truths({"a": 5, "b": 5})) == pytest.approx(math.log(2))
    assert label_entropy(truths({"a": 5})) == 0
    assert label_entropy([{"a": "x", "b": "1"}, {"b": "2", "a": "x"}]) == pytest.approx(math.log(2))


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 50), min_size=2))
def test_guessing_by_frequency_is_never_taken_for_learning(counts: dict[str, int]) -> None:
    entropy = label_entropy(truths(counts))
    tokens = 4.0
    guessing = entropy / tokens
    assert nothing_learnt(10 * guessing, guessing, tokens, entropy, 2e-4)
    assert nothing_learnt(10 * guessing, 0.5 * guessing, tokens, entropy, 2e-4) is None


def test_a_small_rate_is_named_as_the_likely_reason() -> None:
    said = nothing_learnt(0.225, 0.21, 13, None, 2e-5)
    assert said is not None
    assert "hardly fallen, 0.225 to 0.210" in said
    assert "fineTune.learningRate (2e-05" in said
    said = nothing_learnt(3.0, 0.21, 13, 2.9, 2e-3)
    assert said is not None
    assert "guessing by frequency" in said
    assert "learningRate" not in said


def test_free_text_in_answers_is_judged_by_the_fall_alone() -> None:
    assert nothing_learnt(3.0, 1.0, 40, None, 2e-4) is None
