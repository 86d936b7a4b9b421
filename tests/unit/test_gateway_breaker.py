"""The breaker as a machine: whatever happens to it, in whatever order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cutover_server.gateway.breaker import Breaker, BreakerRules, State

RULES = BreakerRules()
EVENTS = st.lists(
    st.tuples(st.sampled_from(["ok", "fail", "abandon"]), st.floats(0.0, 40.0)), min_size=1, max_size=200
)


def opened(now: float = 0.0, chance: float = 0.5) -> Breaker:
    breaker = Breaker(RULES, lambda: chance)
    for _ in range(RULES.consecutive_failures):
        assert breaker.allows(now)
        breaker.failed(now)
    return breaker


def test_a_run_of_failures_opens_it_and_a_success_breaks_the_run() -> None:
    breaker = Breaker(RULES, lambda: 0.5)
    for event in (
        breaker.failed,
        breaker.failed,
        breaker.succeeded,
        breaker.failed,
        breaker.failed,
        breaker.failed,
    ):
        event(0.0)
    assert breaker.state is State.CLOSED
    assert opened().state is State.OPEN


def test_a_high_error_rate_opens_it_only_with_enough_requests() -> None:
    breaker = Breaker(RULES, lambda: 0.5)
    for count in range(1, RULES.minimum_count + 1):
        (breaker.failed if count % 2 == 0 else breaker.succeeded)(0.0)
        assert (breaker.state is State.OPEN) == (count >= RULES.minimum_count)


def test_one_probe_at_a_time_and_two_close_it() -> None:
    breaker = opened()
    assert not breaker.allows(RULES.open_seconds - 0.01)
    assert breaker.allows(RULES.open_seconds)
    assert not breaker.allows(RULES.open_seconds + 1)
    breaker.succeeded(RULES.open_seconds + 2)
    assert breaker.is_open()
    assert breaker.allows(RULES.open_seconds + 2)
    breaker.succeeded(RULES.open_seconds + 3)
    assert breaker.state is State.CLOSED


def test_a_failed_probe_opens_it_for_longer() -> None:
    breaker = opened()
    assert breaker.allows(5.0)
    breaker.failed(5.0)
    assert not breaker.allows(5.0 + 2 * RULES.open_seconds - 0.01)
    assert breaker.allows(5.0 + 2 * RULES.open_seconds)


def test_it_waits_as_long_as_the_arm_asked() -> None:
    breaker = Breaker(RULES, lambda: 0.5)
    for _ in range(RULES.consecutive_failures):
        breaker.failed(0.0, retry_after_seconds=30.0)
    assert not breaker.allows(29.0)
    assert breaker.allows(30.0)


def test_jitter_keeps_replicas_apart() -> None:
    assert opened(chance=0.0).allows(4.0)
    assert not opened(chance=0.999).allows(5.9)


@given(EVENTS)
def test_it_never_stays_shut_for_ever_and_never_floods(events: list[tuple[str, float]]) -> None:
    breaker = Breaker(RULES, lambda: 0.5)
    now, in_flight = 0.0, 0
    for event, pause in events:
        now += pause
        before = breaker.state
        allowed = breaker.allows(now)
        if before is State.CLOSED:
            assert allowed
        if not allowed:
            continue
        in_flight += 1
        if event == "ok":
            breaker.succeeded(now)
        elif event == "fail":
            breaker.failed(now)
        else:
            breaker.abandoned()
    # Wait out the longest pause and the patience with a lost probe: it lets a request through again.
    now += RULES.longest_open_seconds * (1 + RULES.jitter) + RULES.probe_patience_seconds
    assert breaker.allows(now)
    for _ in range(RULES.probes_to_close):
        breaker.succeeded(now)
    assert breaker.state is State.CLOSED


@given(st.lists(st.booleans(), max_size=300))
def test_it_opens_exactly_when_the_rules_say(outcomes: list[bool]) -> None:
    """Against a plain model of the rules, up to the first opening."""
    breaker = Breaker(RULES, lambda: 0.5)
    seen: list[bool] = []
    for ok in outcomes:
        (breaker.succeeded if ok else breaker.failed)(0.0)
        seen.append(ok)
        last = seen[-RULES.window :]
        run = seen[-RULES.consecutive_failures :]
        expected = not ok and (
            (len(run) == RULES.consecutive_failures and not any(run))
            or (len(last) >= RULES.minimum_count and last.count(False) >= RULES.error_rate * len(last))
        )
        assert (breaker.state is State.OPEN) == expected
        if expected:
            return
