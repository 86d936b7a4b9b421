"""Whole events from raw samples, whatever the windows, the order and the restarts."""

from __future__ import annotations

import bisect
import itertools
import math
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from cutover_operator.evidence.labels import series_id
from cutover_operator.evidence.samples import (
    Series,
    growth,
    merged,
    per_second,
    scrape_interval,
    stale_after_seconds,
)

STEPS = st.lists(st.tuples(st.integers(0, 50), st.booleans()), min_size=1, max_size=40)


def counter(steps: list[tuple[int, bool]]) -> tuple[list[tuple[float, float]], int]:
    """Samples of a counter that is restarted where the flag says so, and what it really counted."""
    samples, value, whole = [], 0, 0
    for index, (added, restarted) in enumerate(steps):
        if restarted and value > added:
            value = 0
        value += added
        whole += added
        samples.append((1000.0 + 15 * index, float(value)))
    return samples, whole


@given(STEPS)
def test_every_event_is_counted_once(steps: list[tuple[int, bool]]) -> None:
    samples, whole = counter(steps)
    assert growth(samples, None).added == whole


@given(STEPS, st.data())
def test_windows_order_and_repetition_do_not_matter(
    steps: list[tuple[int, bool]], data: st.DataObject
) -> None:
    samples, whole = counter(steps)
    added, last = 0.0, None
    at = 0
    while at < len(samples):
        size = data.draw(st.integers(1, 10))
        overlap = data.draw(st.integers(0, 5))
        window = samples[max(0, at - overlap) : at + size]
        random.Random(at).shuffle(window)
        grown = growth(window + window[:1], last)
        added, last = added + grown.added, grown.last
        at += size
    assert added == whole


def test_values_no_counter_can_have_are_refused_and_reported() -> None:
    grown = growth([(1, 5.0), (2, math.nan), (3, math.inf), (4, -3.0), (5, 9.0)], None)
    assert (grown.added, grown.refused, grown.resets) == (9.0, 3, 0)
    nothing = growth([(6, math.nan)], grown.last)
    assert (nothing.added, nothing.last) == (0.0, (5, 9.0))


def test_a_reset_counts_what_came_after_it() -> None:
    grown = growth([(1, 100.0), (2, 30.0), (3, 31.0)], (0.0, 90.0))
    assert (grown.added, grown.resets) == (41.0, 1)


def test_a_series_is_known_by_its_labels_not_by_their_order() -> None:
    assert series_id("m", {"a": "1", "b": "2"}) == series_id("m", {"b": "2", "a": "1"})
    assert series_id("m", {"a": "1"}) != series_id("m", {"a": "2"})


def test_staleness_follows_the_scrape_interval_within_bounds() -> None:
    fast = Series({}, [(0, 0), (2, 1), (4, 1)])
    assert scrape_interval([fast]) == 2
    assert stale_after_seconds(2) == 15
    assert stale_after_seconds(30) == 90
    assert stale_after_seconds(600) == 180
    assert stale_after_seconds(scrape_interval([Series({}, [(0, 0)])])) == 120


def test_rate_uses_the_samples_distance_and_says_nothing_about_one_sample() -> None:
    assert per_second([Series({}, [(0, 0.0), (10, 50.0)]), Series({"p": "2"}, [(0, 0.0), (10, 10.0)])]) == 6.0
    assert per_second([Series({}, [(0, 7.0)])]) is None


def test_a_target_scraped_twice_is_one_counter() -> None:
    own = {"rollout": "r", "instance": "10.0.0.1:9090", "pod": "gw-0"}
    twice = [
        Series({**own, "job": "a"}, [(1, 5.0), (3, 9.0)]),
        Series({**own, "job": "b"}, [(2, 6.0), (4, 10.0)]),
    ]
    assert [growth(s.samples, None).added for s in merged(twice)] == [10.0]
    nameless = {key: value for key, value in own.items() if key != "pod"}
    assert len(merged([Series(own, [(1, 5.0)]), Series({**nameless, "job": "c"}, [(1, 5.0)])])) == 1
    assert len(merged([Series({**nameless, "job": "c"}, [(1, 5.0)])])) == 1
    apart = [Series({**own, "pod": p}, [(1, 5.0)]) for p in ("gw-0", "gw-1")]
    assert len(merged(apart)) == 2
    assert len(merged([Series({"job": "a"}, [(1, 1.0)]), Series({"job": "b"}, [(1, 1.0)])])) == 2


# ---------------------------------------------------------------- several scrapers of one target
SCRAPERS = st.lists(
    st.tuples(st.floats(0, 14.9), st.floats(0, 5.0), st.integers(0, 2**32 - 1)), min_size=2, max_size=3
)


@settings(max_examples=150, deadline=None)
@given(SCRAPERS, st.lists(st.integers(60, 400), max_size=4), st.integers(0, 2**32 - 1), st.booleans())
def test_scrapers_beside_each_other_are_one_counter(
    scrapers: list[tuple[float, float, int]], lives: list[int], seed: int, one_goes: bool
) -> None:
    """Each scrape reads up to seconds after its time, and the target begins anew now and then."""
    chance = random.Random(seed)
    begins = [0.0, *itertools.accumulate(float(seconds) for seconds in lives)]
    end = begins[-1] + 200.0
    events = sorted(chance.uniform(0.0, end) for _ in range(400))

    def value(at: float) -> tuple[int, float]:
        life = bisect.bisect_right(begins, at) - 1
        return life, float(bisect.bisect_right(events, at) - bisect.bisect_left(events, begins[life]))

    views: list[list[tuple[float, float]]] = []
    highest: dict[int, float] = {}
    for number, (offset, slowest, own_seed) in enumerate(scrapers):
        slow, samples = random.Random(own_seed), []
        for tick in range(int((end - offset) // 15)):
            at = offset + 15.0 * tick
            if one_goes and number == 0 and at > end / 2:
                break
            life, seen = value(min(at + slow.uniform(0.0, slowest), end))
            highest[life] = max(highest.get(life, 0.0), seen)
            samples.append((at, seen))
        views.append(samples)
    last, total, resets = None, 0.0, 0
    for now in range(10, int(end) + 20, 10):
        parts = [[s for s in samples if now - 75 <= s[0] <= now] for samples in views]
        series = [Series({"instance": "a", "replica": str(n)}, part) for n, part in enumerate(parts) if part]
        for one in merged(series):
            grown = growth(one.samples, last)
            total, last, resets = total + grown.added, grown.last, resets + grown.resets
    assert resets <= len(lives)
    # Who was slow may show the new process before who was quick shows the old one's last scrape: a lost tail, as flagged.
    at_the_end = sum(begin - 20.0 <= event < begin for begin in begins[1:] for event in events)
    assert 0.0 <= sum(highest.values()) - total <= at_the_end
