"""A stage's progress from the tail of its log. Pure; lines that are not progress are passed over."""

from __future__ import annotations

from pydantic import ValidationError

from cutover.api.trainingrun import Progress
from cutover.stages import ProgressLine

TAIL_LINES = 40


def latest(log: str, stage: str) -> Progress | None:
    """The last progress line of this stage."""
    for line in reversed(log.splitlines()):
        if '"progress"' not in line:
            continue
        try:
            said = ProgressLine.model_validate_json(line)
        except ValidationError:
            continue
        if said.stage == stage and said.step >= 0 and said.steps >= 0:
            return Progress(
                step=said.step,
                steps=said.steps,
                loss=said.loss,
                samples_per_second=said.samples_per_second,
            )
    return None


def text(progress: Progress | None) -> str:
    """`43%`; empty while the number of steps is unknown. 100 is kept for the last step."""
    if progress is None or progress.steps <= 0:
        return ""
    return f"{min(100, 100 * progress.step // progress.steps)}%"
