"""The workers that train one run together: who computes which rows, and what they tell one another.

Data parallel: every worker holds the whole model and takes its part of each batch; gradients are summed over the workers
once a step, in one buffer. That is what torch's DistributedDataParallel does, without its demand that every parameter
takes part in every step. A worker alone is a team of one and talks to nobody.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as distributed
from torch.distributed.rendezvous import rendezvous

from cutover_trainer.outcome import StageFailed
from cutover_trainer.workers import LOCAL_RANK, RANK, RENDEZVOUS, SIZE

PATIENCE = timedelta(minutes=30)
"""A worker waits as long for the others: for the leader's checkpoint, or for a download."""


@dataclass(frozen=True, slots=True)
class Team:
    rank: int = 0
    size: int = 1
    device: Any = "cpu"
    local_rank: int = 0
    """Number on its own machine."""

    @classmethod
    def join(cls, device: Any, numbers: str = "") -> Team:
        """Meets the others, if the environment names any. Raises StageFailed where one of them computes with other
        `numbers`: on another kind of device they would wait for one another, in another precision add up what does not
        belong together."""
        size = int(os.environ.get(SIZE, "1"))
        if size == 1:
            return cls()
        rank = int(os.environ[RANK])
        if device.type == "cuda":
            torch.cuda.set_device(device)
        store, _, _ = next(rendezvous(os.environ[RENDEZVOUS], rank, size, timeout=PATIENCE))
        store.set(f"numbers/{rank}", numbers)
        for other in range(size):
            theirs = store.get(f"numbers/{other}").decode()
            if theirs != numbers:
                raise StageFailed(
                    "CardsDiffer",
                    f"compute.gpuProduct: worker {rank} computes with {numbers}, worker {other} with {theirs}; name one "
                    "product for all, or a fineTune.precision that all have; a card may also have been lost",
                )
        distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=PATIENCE,
        )
        return cls(rank, size, device, int(os.environ[LOCAL_RANK]))

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def part(self, rows: Sequence[int]) -> tuple[int, Sequence[int]]:
        """The first of my places in a batch, and my rows; parts differ by one row at most and may be empty."""
        start, end = (len(rows) * number // self.size for number in (self.rank, self.rank + 1))
        return start, rows[start:end]

    def sums(self, values: Sequence[float]) -> list[float]:
        """The same figures for all, summed over the workers."""
        if self.size == 1:
            return list(values)
        held = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(held)
        return [float(value) for value in held.cpu()]

    def sum_gradients(self, parameters: Iterable[Any]) -> None:
        """In place. A worker that had no row adds nothing."""
        if self.size == 1:
            return
        learning = list(parameters)
        for parameter in learning:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([parameter.grad.flatten() for parameter in learning])
        distributed.all_reduce(flat)
        start = 0
        for parameter in learning:
            end = start + parameter.numel()
            parameter.grad.copy_(flat[start:end].view_as(parameter))
            start = end

    def told(self, text: str) -> str:
        """What the leader said; the others' words are not heard."""
        if self.size == 1:
            return text
        said = [text if self.leads else None]
        distributed.broadcast_object_list(said, src=0, device=self.device)
        return str(said[0])

    @contextmanager
    def one_a_machine_first(self) -> Iterator[None]:
        """One worker of each machine, then the others."""
        first = self.local_rank == 0
        if not first:
            self.wait()
        yield
        if first:
            self.wait()

    def wait(self) -> None:
        """Until all are here."""
        self.sums([0.0])

    def leave(self) -> None:
        if self.size > 1:
            distributed.destroy_process_group()
