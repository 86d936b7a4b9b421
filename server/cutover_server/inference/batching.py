"""The one thread that owns the model, and the bounded queue before it.

What waits with the same sampling settings runs as one batch. A job whose client has gone is dropped, waiting or
running. The queue admits or refuses at once; whatever it admitted is answered, also during a drain.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cutover_server.inference.chat import Sampling
from cutover_server.inference.generation import OnStep, Row, RowRun, Step


class QueueFull(Exception):
    """No room; the caller may come back after `retry_after_seconds`."""

    def __init__(self, waiting: int, retry_after_seconds: int) -> None:
        super().__init__(f"{waiting} requests wait already")
        self.waiting = waiting
        self.retry_after_seconds = retry_after_seconds


@dataclass(slots=True, eq=False)
class Job:
    """One row and where its answer goes. The callbacks run in the worker thread."""

    row: Row
    sampling: Sampling
    step: Callable[[Step], None]
    done: Callable[[RowRun], None]
    failed: Callable[[BaseException], None]
    cancelled: bool = False
    started: bool = field(default=False, init=False)


class Runs(Protocol):
    """Runs rows as one batch: `generation.generate` bound to a model."""

    def __call__(self, rows: Sequence[Row], sampling: Sampling, on_step: OnStep) -> list[RowRun]: ...


class Batcher:
    def __init__(self, run: Runs, *, max_queue: int, max_batch: int) -> None:
        self._run = run
        self._max_queue = max_queue
        self._max_batch = max_batch
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._admitted = 0
        """Places in the queue that are taken, by waiting jobs and by requests still being prepared."""
        self._running = 0
        self._closing = False
        self._batch_seconds = 1.0
        self.failures_in_a_row = 0

    # ---------------------------------------------------------- any thread
    def admit(self) -> None:
        """Take a place in the queue. Raises QueueFull. Give it up with `submit` or `release`."""
        with self._changed:
            if self._admitted >= self._max_queue:
                batches = -(-self._admitted // self._max_batch)
                raise QueueFull(self._admitted, max(1, min(30, round(batches * self._batch_seconds))))
            self._admitted += 1

    def release(self) -> None:
        """Give up a place that never became a job."""
        with self._changed:
            self._admitted -= 1
            self._changed.notify_all()

    def submit(self, job: Job) -> None:
        """Turn a place into a waiting job."""
        with self._changed:
            self._waiting.append(job)
            self._changed.notify_all()

    def cancel(self, job: Job) -> None:
        """Drop a job whose client has gone. Its callbacks are not called if it has not started."""
        with self._changed:
            job.cancelled = True
            if job in self._waiting:
                self._waiting.remove(job)
                self._admitted -= 1
                self._changed.notify_all()

    @property
    def queued(self) -> int:
        return self._admitted

    @property
    def running(self) -> int:
        return self._running

    def wait_idle(self, timeout_seconds: float) -> bool:
        """Whether everything admitted has been answered in time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._admitted == 0 and self._running == 0, timeout_seconds)

    def close(self) -> None:
        """Let the worker thread end once nothing waits."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    # ---------------------------------------------------------- the worker thread
    def work(self) -> None:
        """Run batches until closed."""
        while (batch := self._next_batch()) is not None:
            started = time.monotonic()
            try:
                self._run_batch(batch)
            finally:
                with self._changed:
                    self._batch_seconds = 0.7 * self._batch_seconds + 0.3 * (time.monotonic() - started)
                    self._running = 0
                    self._changed.notify_all()

    def _next_batch(self) -> list[Job] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            if not self._waiting:
                return None
            first = self._waiting.popleft()
            batch, left = [first], deque[Job]()
            for job in self._waiting:
                fits = job.sampling == first.sampling and first.sampling.seed is None
                (batch if fits and len(batch) < self._max_batch else left).append(job)
            self._waiting = left
            self._admitted -= len(batch)
            self._running = len(batch)
            return batch

    def _run_batch(self, batch: list[Job]) -> None:
        def on_step(index: int, step: Step) -> bool:
            job = batch[index]
            job.started = True
            if not job.cancelled:
                job.step(step)
            return not job.cancelled

        try:
            runs = self._run([job.row for job in batch], batch[0].sampling, on_step)
        except Exception as error:  # whatever the model raises must reach the client, not end the thread
            self._after_failure(batch, error)
            return
        self.failures_in_a_row = 0
        for job, run in zip(batch, runs, strict=True):
            job.done(run)

    def _after_failure(self, batch: list[Job], error: Exception) -> None:
        """A batch may fail for its size or for one of its rows: give each row its own run, unless it has begun."""
        if len(batch) > 1 and not any(job.started for job in batch):
            for job in batch:
                if not job.cancelled:
                    self._run_batch([job])
            return
        self.failures_in_a_row += 1
        for job in batch:
            job.failed(error)
