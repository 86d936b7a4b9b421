"""What one query to Prometheus asks for: how far back, for how many rollouts, and in which words. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from cutover.contract import DURATION, SHADOW_DURATION
from cutover_operator.evidence.samples import Asked

WINDOWS_SECONDS = (75, 95, 130, 310, 610, 910, 1810, 3610, 7210, 21600)
"""Windows asked for; few of them, so that rollouts share queries, and wider by some seconds than usual intervals and the
slack, so that a pass a little late asks for no other. Beyond the last, resets in the gap stay unseen."""
SHORT_SECONDS = 130
"""Windows up to this one go into one query, for the longest of them: who is a little late asks with the others."""
SLACK_SECONDS = 60.0
"""How much later than its time a sample may become visible: a scrape that takes long, a remote storage that lags."""
TOGETHER = 300
"""Rollouts in one query: bounds its text and its answer. One company of 2,000 rollouts at 10 s goes into one."""
TOGETHER_SECONDS = 75 * TOGETHER
"""The same for windows beyond the short ones, times their length: an hour of everybody would fill the memory."""
HISTOGRAMS = frozenset({DURATION, SHADOW_DURATION})


def window_for(age_seconds: float) -> int:
    """The smallest window that surely holds everything since `age_seconds` ago."""
    for window in WINDOWS_SECONDS:
        if age_seconds + SLACK_SECONDS <= window:
            return window
    return WINDOWS_SECONDS[-1]


def together(window_seconds: int) -> int:
    """How many rollouts go into one query."""
    return TOGETHER if window_seconds <= SHORT_SECONDS else max(1, TOGETHER_SECONDS // window_seconds)


def query_for(group: Iterable[Asked], window_seconds: int) -> str:
    """One selector for all metrics of all these rollouts.

    A label that a metric does not carry matches the empty alternative: `le` is on histograms alone, `rollout` is not on
    a gateway's own gauges, `gateway` is not on totals from the database.
    """
    asked = list(group)
    names = {f"{m}_bucket" if m in HISTOGRAMS else m for one in asked for m in one.metrics}
    matchers = [f'__name__=~"{_any_of(names)}"']
    for label, values in (
        ("rollout", {one.rollout for one in asked}),
        ("gateway", {one.gateway for one in asked}),
    ):
        matchers.append(f'{label}=~"|{_any_of(values)}"')
    edges = sorted({edge for one in asked for edge in one.edges})
    if edges:
        matchers.append(f'le=~"|{"|".join(_edge_pattern(edge) for edge in edges)}|\\\\+Inf"')
    return f"{{{','.join(matchers)}}}[{window_seconds}s]"


def _any_of(values: Iterable[str]) -> str:
    return "|".join(re.escape(value).replace("\\", "\\\\") for value in sorted(values))


def _edge_pattern(edge: float) -> str:
    """`2` and `2.0`: how an edge is written depends on the client library and on the version of Prometheus."""
    short = f"{edge:g}".replace(".", "\\\\.")
    return short if "." in short else f"{short}|{short}\\\\.0"
