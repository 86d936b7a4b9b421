"""The split: no group divided, stable, and about the shares asked for in every class."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from cutover_trainer.split import PARTS, Member, Shares, class_counts, divide, groups_of

SHARES = Shares(0.8, 0.1, 0.1)

members_strategy = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 40), st.sampled_from("abc")), min_size=1, max_size=80
).map(
    lambda drawn: [
        Member(f"row-{number}", (f"building:{building}", f"picture:{picture}"), stratum)
        for number, (building, picture, stratum) in enumerate(drawn)
    ]
)


@given(members_strategy, st.integers(0, 5))
def test_rows_with_a_key_in_common_stay_together(members: list[Member], seed: int) -> None:
    groups = groups_of(members)
    parts = divide(members, groups, SHARES, seed)
    assert set(parts) == {member.row for member in members}
    for one in members:
        for other in members:
            if set(one.keys) & set(other.keys):
                assert parts[one.row] == parts[other.row]


@given(members_strategy, st.randoms(use_true_random=False))
def test_the_order_of_the_file_does_not_matter(members: list[Member], shuffler: random.Random) -> None:
    shuffled = list(members)
    shuffler.shuffle(shuffled)
    assert divide(members, groups_of(members), SHARES, 3) == divide(shuffled, groups_of(shuffled), SHARES, 3)


def test_every_class_is_divided_by_the_shares() -> None:
    members = [Member(f"r{number}", (f"k{number}",), "ab"[number % 10 == 0]) for number in range(1000)]
    counts = class_counts(divide(members, groups_of(members), SHARES, 0), members)
    assert counts == {
        "train": {"a": 720, "b": 80},
        "validation": {"a": 90, "b": 10},
        "test": {"a": 90, "b": 10},
    }


def test_another_seed_gives_another_split() -> None:
    members = [Member(f"r{number}", (f"k{number}",), "a") for number in range(100)]
    first, second = (divide(members, groups_of(members), SHARES, seed) for seed in (0, 1))
    assert first != second


def test_a_rare_class_still_reaches_the_test_part() -> None:
    members = [Member(f"r{number}", (f"k{number}",), "rare") for number in range(3)]
    parts = divide(members, groups_of(members), SHARES, 0)
    assert sorted(parts.values()) == ["test", "train", "train"]


def test_classes_too_rare_to_be_dealt_alone_are_dealt_together() -> None:
    members = [Member(f"r{number}", (f"k{number}",), f"class-{number // 2}") for number in range(16)]
    parts = divide(members, groups_of(members), SHARES, 0)
    assert sorted(parts.values()).count("test") == 2


def test_pictures_that_look_alike_join_groups() -> None:
    members = [Member(f"r{number}", (f"k{number}",), "a") for number in range(20)]
    groups = groups_of(members, [(0, 5), (5, 9)])
    assert groups[0] == groups[5] == groups[9]
    assert len(set(groups)) == 18
    assert set(divide(members, groups, SHARES, 0).values()) <= set(PARTS)
