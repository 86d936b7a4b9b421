"""Gateway processes die for real under a mixed load, with the real database away: every id is accounted for.

The driver and the accounting are those of `make soak-gateway`, which goes through more of this for longer.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from soak.gateway_phases import Pace, Run
from soak.gateway_table import checks, lines, table
from soak.gateway_town import Processes

QUICK = Pace(requests_per_second=24.0, fault_seconds=1.0, settle_seconds=0.5, least_requests=30)
PHASES = ("control and fallback answer 500", "gateway killed, database away")


@pytest.mark.timeout(240)
def test_kills_and_outages_lose_no_record_and_fail_no_request_that_could_be_answered(tmp_path: Path) -> None:
    with Processes(tmp_path) as town:
        for _ in range(3):  # half of the traffic: enough to open the breakers of a candidate that is away
            town.next_weight()
        story = Run(town, QUICK, print).go(PHASES)
    assert all(check.kept for check in checks(story)), table(story)
    arms_away, killed = lines(story)
    assert arms_away.fallback > 0, table(story)
    assert arms_away.allowed > 0, table(story)
    assert killed.records >= killed.sent - killed.allowed, table(story)
