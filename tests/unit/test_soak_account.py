"""The soak's accounting must call a loss a loss: each test breaks one thing in a story that is whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from cutover.route import Arm, Route, assigned_to_candidate
from fakes.gateway_load import Asked, RouteSeen
from fakes.gateway_rig import TASK
from soak.gateway_account import Change, Down, Kill, Phase, Row, Story, excuse, lags
from soak.gateway_table import checks, lines, table

T = 1_800_000_000.0


def arm(name: str, host: str) -> Arm:
    return Arm(name=name, version=f"{name}-1", base_url=f"http://{host}:8080/v1", model=name)


ROUTE = Route(
    generation=3,
    task=TASK,
    control=arm("control", "gpt-4"),
    candidate=arm("candidate", "slow-model.ns.svc"),
    fallback=arm("backup", "backup"),
    salt="s",
    weight_basis_points=5000,
)


def one(number: int, **changes: object) -> Asked:
    key = f"soak-{number}"
    chosen = "candidate" if assigned_to_candidate(ROUTE, key) else "control"
    asked = Asked(
        key=key,
        client=("raw", "sdk")[number % 2],
        kind="small",
        phase="only",
        sent_at=T + number,
        ended_at=T + number + 0.5,
        result="answered",
        status=200,
        answer_id=f"id-{number}",
        heard=[(f"id-{number}", 200, chosen)],
        arm=chosen,
        version="1",
        attempts=1,
    )
    return replace(asked, **changes)  # type: ignore[arg-type]


def whole(count: int = 20) -> Story:
    asked = [one(number) for number in range(count)]
    return Story(
        asked=asked,
        phases=[Phase("only", T, T + count)],
        changes=[Change(T - 10, ROUTE)],
        seen=[RouteSeen(T + at, "pod-0", 3, 5000) for at in range(count)],
        rows=[Row(asked_one.answer_id, asked_one.key) for asked_one in asked],
    )


def broken(story: Story) -> list[str]:
    return [check.promise for check in checks(story) if not check.kept]


def failed(number: int, result: str, **changes: object) -> Asked:
    """Without an answer; `heard` is empty unless given."""
    plain: dict[str, object] = {"result": result, "answer_id": "", "heard": [], "status": 0}
    return one(number, **{**plain, **changes})


def refused(number: int, arm: str) -> Asked:
    return failed(number, "refused", status=502, arm=arm, heard=[(f"id-{number}", 502, arm)])


def chosen(wanted: str) -> int:
    return next(n for n in range(20) if assigned_to_candidate(ROUTE, f"soak-{n}") == (wanted == "candidate"))


def test_a_whole_story_keeps_every_promise() -> None:
    assert broken(whole()) == []
    (line,) = lines(whole())
    assert (line.sent, line.control + line.candidate, line.records) == (20, 20, 20)
    assert "FAIL" not in table(whole())


def lose_a_row(story: Story) -> None:
    del story.rows[7]


def repeat_a_row(story: Story) -> None:
    story.rows.append(story.rows[3])


def invent_a_second_record(story: Story) -> None:
    story.rows.append(Row("id-nobody-heard-of", "soak-3"))


def invent_a_request(story: Story) -> None:
    story.rows.append(Row("id-x", "soak-999"))


def fail_with_healthy_arms(story: Story) -> None:
    story.asked[4] = refused(4, story.asked[4].arm)


def break_without_a_kill(story: Story) -> None:
    story.asked[4] = failed(4, "broken")


def break_long_after_the_kill(story: Story) -> None:
    story.kills.append(Kill("gateway-0", T + 2.2, T + 2.2, T + 9))
    story.spooled_at_kill["gateway-0"] = 1
    story.asked[4] = failed(4, "broken")


def break_the_sdk_at_a_kill(story: Story) -> None:
    story.kills.append(Kill("gateway-0", T + 5.2, T + 5.2, T + 9))
    story.spooled_at_kill["gateway-0"] = 1
    story.asked[5] = failed(5, "broken", attempts=3)


def refuse_a_connection_at_a_kill(story: Story) -> None:
    story.kills.append(Kill("gateway-0", T + 4.2, T + 4.2, T + 9))
    story.spooled_at_kill["gateway-0"] = 1
    story.asked[6] = failed(6, "unreached")


def answer_with_nonsense(story: Story) -> None:
    story.down.append(Down("gpt-4", T, T + 99))
    story.asked[4] = one(4, result="invalid")


def stay_with_an_old_weight(story: Story) -> None:
    story.changes.append(
        Change(T + 5, ROUTE.model_copy(update={"generation": 4, "weight_basis_points": 9999}))
    )


def serve_the_wrong_arm(story: Story) -> None:
    other = "control" if story.asked[4].arm == "candidate" else "candidate"
    story.asked[4] = one(4, arm=other, heard=[("id-4", 200, other)])


def leave_records_on_a_spool(story: Story) -> None:
    story.left_on_spools = 2


def kill_with_an_empty_spool(story: Story) -> None:
    story.kills.append(Kill("gateway-0", T + 4.2, T + 4.2, T + 9))
    story.spooled_at_kill["gateway-0"] = 0


def send_less_than_meant(story: Story) -> None:
    story.unsent = 1


def go_wrong(story: Story) -> None:
    story.gone_wrong.append("only: a pod did not come back")


@pytest.mark.parametrize(
    ("damage", "promise"),
    [
        (lose_a_row, "every id a client was told"),
        (repeat_a_row, "no row twice"),
        (invent_a_second_record, "no row twice"),
        (invent_a_request, "no row twice"),
        (fail_with_healthy_arms, "no failed request that an allowed"),
        (break_without_a_kill, "no failed request that an allowed"),
        (break_long_after_the_kill, "no failed request that an allowed"),
        (break_the_sdk_at_a_kill, "the SDK with its default retries"),
        (refuse_a_connection_at_a_kill, "after a SIGKILL no connection"),
        (answer_with_nonsense, "no failed request that an allowed"),
        (stay_with_an_old_weight, "no gateway was wrong about the route"),
        (serve_the_wrong_arm, "every request went to the arm"),
        (leave_records_on_a_spool, "the spools are empty"),
        (kill_with_an_empty_spool, "a SIGKILL met a gateway whose spool"),
        (send_less_than_meant, "every phase was played to its end"),
        (go_wrong, "every phase was played to its end"),
    ],
)
def test_each_damage_breaks_its_promise(damage: Callable[[Story], None], promise: str) -> None:
    story = whole()
    damage(story)
    assert any(name.startswith(promise) for name in broken(story)), table(story)


def test_a_failure_is_excused_when_everybody_who_may_answer_was_down() -> None:
    number = chosen("control")
    story = whole()
    story.asked[number] = refused(number, "control")
    story.down = [Down("gpt-4", T, T + 99)]
    assert excuse(story, story.asked[number]) == "", "the fallback was healthy"
    story.down.append(Down("backup", T, T + 99))
    assert excuse(story, story.asked[number]) == "no healthy arm"
    assert broken(story) == []
    other = chosen("candidate")
    story.asked[other] = refused(other, "candidate")
    assert excuse(story, story.asked[other]) == "", "its own arm was healthy"


def test_an_outage_that_is_over_excuses_nothing() -> None:
    number = chosen("control")
    story = whole()
    story.down = [Down(name, T - 9, T + number - 0.1) for name in ("gpt-4", "backup")]
    story.asked[number] = refused(number, "control")
    assert excuse(story, story.asked[number]) == ""


def test_a_kill_excuses_what_was_in_flight_and_the_row_of_a_lost_reply() -> None:
    story = whole()
    story.kills.append(Kill("gateway-0", T + 4.2, T + 4.2, T + 9))
    story.spooled_at_kill["gateway-0"] = 5
    story.asked[4] = failed(4, "broken")
    assert excuse(story, story.asked[4]) == "in flight at a kill"
    assert broken(story) == [], "its record is there, and the client may not have heard of it"
    story.asked[5] = one(5, attempts=2)
    story.rows.append(Row("id-of-the-first-try", "soak-5"))
    assert broken(story) == [], "the SDK sent it twice, and the first reply was lost"


def test_a_lag_is_counted_from_the_change_and_more_is_allowed_after_blindness() -> None:
    story = whole()
    changed = ROUTE.model_copy(update={"generation": 4, "weight_basis_points": 5000})
    story.changes.append(Change(T + 2.5, changed))
    story.seen = [RouteSeen(T + at / 2, "pod-0", 3 if at < 10 else 4, 5000) for at in range(30)]
    (lag,) = lags(story)
    assert (lag.pod, lag.generation, lag.seconds) == ("pod-0", 4, 2.0)
    assert lag.allowed_seconds == story.watch_seconds
    story.blind = [(T, T + 4)]
    (lag,) = lags(story)
    assert lag.allowed_seconds == pytest.approx(1.5 + story.after_blindness_seconds)
