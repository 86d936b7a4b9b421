"""When a stage has to leave: the pod's termination signal and the GPU time granted, asked between two pieces of work."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from types import FrameType

from cutover_trainer.outcome import BudgetExceeded, Interrupted


class Stop:
    """Polled; never interrupts a write."""

    def __init__(
        self,
        gpu_seconds_left: float | None = None,
        gpus: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._started_at = clock()
        self._gpus = gpus
        self._gpu_seconds_left = gpu_seconds_left
        self._signalled = False

    def listen(self) -> None:
        """From now on SIGTERM and SIGINT are requests, not an end."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    @staticmethod
    def over() -> None:
        """Everything is said: from now on the same signals change nothing. Python gives them their deadly meaning back
        while it clears up, which takes long with torch loaded; an end that was written would become another."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True

    @property
    def requested(self) -> bool:
        return self._signalled

    def gpu_seconds_used(self) -> float:
        return (self._clock() - self._started_at) * self._gpus

    def check(self) -> None:
        """Raises Interrupted or BudgetExceeded."""
        self._leave(self._signalled, self._out_of_time())

    def check_together(
        self, sums: Callable[[Sequence[float]], list[float]], own: Interrupted | None = None
    ) -> None:
        """The same for a team: when one has to leave all do, at the same step. `sums` adds figures over the workers,
        `own` is a reason that this worker alone knows."""
        flags = [own is not None, self._signalled, self._out_of_time()]
        others, signalled, out_of_time = sums([float(flag) for flag in flags])
        if others > 0:
            raise own or Interrupted("Interrupted", "the leader of the workers leaves; the others go with it")
        self._leave(signalled > 0, out_of_time > 0)

    def _out_of_time(self) -> bool:
        left = self._gpu_seconds_left
        return left is not None and self.gpu_seconds_used() >= left

    def _leave(self, signalled: bool, out_of_time: bool) -> None:
        if signalled:
            raise Interrupted(
                "Interrupted", "the pod was asked to stop; the next attempt continues from here"
            )
        if out_of_time:
            raise BudgetExceeded(
                "BudgetExceeded",
                f"compute.gpuHourBudget: the {self._gpu_seconds_left or 0:.0f} GPU-seconds that were left are used; "
                "the checkpoint is kept, raise the budget to continue",
            )
