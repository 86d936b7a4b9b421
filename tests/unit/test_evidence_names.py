"""Series whose names are known from an earlier answer are counted as those that are read for the first time."""

from __future__ import annotations

from typing import Any

import pytest

from cutover.contract import COST, DURATION, REQUESTS
from cutover_operator.evidence.folding import Wanted, fold
from cutover_operator.evidence.labels import Labels, Names, name_in_ledger, series_id
from cutover_operator.evidence.ledger import Ledger
from cutover_operator.evidence.prometheus import samples_of
from cutover_operator.evidence.samples import Answer, Series, merged

OWN = {"rollout": "r", "arm": "candidate", "version": "v", "gateway": "g"}
WANTED = Wanted("r", "v", (2.0,), (0.01,))
METRICS = {REQUESTS: REQUESTS, COST: COST, f"{DURATION}_bucket": DURATION}


def document(at: float, count: float) -> dict[str, Any]:
    """Two replicas, one of them scraped by two jobs, of which one does not say the pod."""
    rows = []
    for number, places in enumerate(
        (
            [{"instance": "a:1", "pod": "g-0", "job": "one", "container": "c"}],
            [{"instance": "b:1", "pod": "g-1", "job": "one"}, {"instance": "b:1", "job": "two"}],
        )
    ):
        for place in places:
            for labels in (
                {"__name__": REQUESTS, **OWN, "outcome": "ok"},
                {"__name__": REQUESTS, **OWN, "outcome": "error"},
                {"__name__": COST, **OWN},
                {"__name__": f"{DURATION}_bucket", **OWN, "le": "2.0"},
                {"__name__": f"{DURATION}_bucket", **OWN, "le": "+Inf"},
            ):
                value = count * (number + 1)
                rows.append(
                    {"metric": labels | place, "values": [[at - 10, f"{value / 2}"], [at, f"{value}"]]}
                )
    return {"status": "success", "data": {"resultType": "matrix", "result": rows}}


def answers(answer: Answer) -> dict[str, Answer]:
    found: dict[str, list[Series]] = {}
    for one in answer.series:
        name = one.labels.metric if isinstance(one.labels, Labels) else one.label("__name__")
        found.setdefault(METRICS[name], []).append(one)
    return {metric: Answer(tuple(rows), answer.served_at) for metric, rows in found.items()}


@pytest.mark.parametrize("turns", [0, 1, 2])
def test_the_ledger_is_the_same_with_known_names(turns: int) -> None:
    """Also when names were forgotten in between, and under the names the ledger was stored with."""
    names = Names()
    plain = known = Ledger("uid", "v", 0.0)
    for at, count in ((100.0, 10.0), (110.0, 30.0), (120.0, 4.0), (130.0, 50.0)):
        plain = fold(plain, answers(samples_of(document(at, count), at)), WANTED)
        known = fold(known, answers(samples_of(document(at, count), at, names)), WANTED)
        known = Ledger.from_json(known.to_json())
        for _ in range(turns):
            names.turn()
    assert plain.to_json() == known.to_json()
    assert plain.total("requests/candidate/ok") == 3 * (10 + 20 + 4 + 46)
    assert plain.resets > 0


def test_a_name_is_worked_out_once_until_it_is_forgotten() -> None:
    names = Names()
    row = {"__name__": REQUESTS, **OWN, "instance": "a:1", "job": "one"}
    first = names.of(dict(row))
    assert (first.metric, "job" in first) == (REQUESTS, False)
    names.turn()
    assert names.of(dict(row)) is first
    names.turn()
    names.turn()
    assert names.of(dict(row)) is not first


def test_two_jobs_that_scrape_one_target_name_one_counter() -> None:
    names = Names()
    row = {"__name__": REQUESTS, **OWN, "instance": "a:1", "pod": "g-0"}
    one, other = (Series(names.of({**row, "job": job}), [(1.0, 5.0)]) for job in ("one", "two"))
    assert [list(s.samples) for s in merged([one, other])] == [[(1.0, 5.0)]]


def test_a_counter_of_somebody_else_keeps_all_its_labels() -> None:
    """Two of them may differ by a label of their own alone."""
    labels = {"instance": "a:1", "pod": "x", "queue": "q"}
    assert name_in_ledger("m", labels) == series_id("m", labels)
    assert name_in_ledger("m", labels) != name_in_ledger("m", labels | {"queue": "r"})


def test_an_edge_stands_in_for_the_label() -> None:
    labels = {**OWN, "instance": "a:1", "le": "2.0"}
    assert name_in_ledger(DURATION, labels, "2") == series_id(DURATION, {**labels, "le": "2"})
    assert Labels(labels).id_of(DURATION, "2") == series_id(DURATION, {**labels, "le": "2"})
