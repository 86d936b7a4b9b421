"""How a training on several nodes has ended, from how each node has. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cutover.contract import ExitCode


@dataclass(frozen=True, slots=True)
class End:
    """Of one node's workers."""

    code: int
    words: str = ""
    """A StageResult as JSON; empty where the worker had no time for one."""
    lost: bool = False
    """Nobody knows: the node does not answer any more. The code stands for what that means to the others."""


def agreed(ends: Mapping[int, End]) -> End:
    """What every node ends with. `ends` by node, in the order in which they got into trouble.

    A refusal explains the connections it broke, and so does a lost node: without it the others would be taken for
    failures, which count. Of failures the first explains the rest. Done is said by the node of rank 0.
    """
    found = list(ends.values())
    refused = next((end for end in found if end.code == ExitCode.BAD_INPUT), None)
    lost = next((end for end in found if end.lost), None)
    failed = next((end for end in found if end.code), None)
    return refused or lost or failed or ends[0]
