"""How a stage may end other than well: each ending is an exception that knows its exit code and its outcome."""

from __future__ import annotations

from typing import ClassVar, Literal

from cutover.api.trainingrun import EvaluationSummary
from cutover.contract import ExitCode

Outcome = Literal["done", "badInput", "interrupted", "failed", "budgetExceeded"]


class StageEnded(Exception):
    """`reason` is CamelCase for a condition; the message is one sentence for a person."""

    outcome: ClassVar[Outcome] = "failed"
    exit_code: ClassVar[ExitCode] = ExitCode.FAILED

    def __init__(self, reason: str, message: str, evaluation: EvaluationSummary | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.evaluation = evaluation


class StageFailed(StageEnded):
    """The world failed, not the input: trying again may help."""


class BadInput(StageEnded):
    """Trying again cannot help; the message names the field, the value and the remedy."""

    outcome = "badInput"
    exit_code = ExitCode.BAD_INPUT


class Interrupted(StageEnded):
    """The pod was asked to leave; everything worth keeping is committed."""

    outcome = "interrupted"
    exit_code = ExitCode.INTERRUPTED


class BudgetExceeded(StageEnded):
    """The GPU time granted is used up; the checkpoint continues once the budget is raised."""

    outcome = "budgetExceeded"
    exit_code = ExitCode.INTERRUPTED
