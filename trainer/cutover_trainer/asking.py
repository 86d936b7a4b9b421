"""Puts the questions of an evaluation, in pieces that are kept, and reads the answers as strictly as the gateway does."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import jsonschema_rs

from cutover.task import Task, Unreadable, read_answer
from cutover_trainer.examples import Example
from cutover_trainer.generate import Answer, Answerer
from cutover_trainer.joblog import ProgressReporter
from cutover_trainer.measures import Judged
from cutover_trainer.stopping import Stop
from cutover_trainer.storage import ArtifactStore

PIECE_ROWS = 64
BATCH_ROWS = 16


class Asker:
    """A piece whose answers are stored under `folder` is not asked again."""

    def __init__(
        self, task: Task, store: ArtifactStore, folder: str, progress: ProgressReporter, stop: Stop
    ) -> None:
        self._validator = jsonschema_rs.validator_for(task.answer_schema)
        self._store = store
        self._folder = folder
        self._progress = progress
        self._stop = stop
        self._done = 0

    def ask(self, name: str, answerer: Answerer, examples: Sequence[Example]) -> list[Judged]:
        """What the model says to every example; `name` tells one asking from another."""
        answers = [
            answer
            for start in range(0, len(examples), PIECE_ROWS)
            for answer in self._piece(
                f"{self._folder}/{name}-{start:06d}.json", answerer, examples[start : start + PIECE_ROWS]
            )
        ]
        return [self._judged(example, answer) for example, answer in zip(examples, answers, strict=True)]

    def _piece(self, name: str, answerer: Answerer, examples: Sequence[Example]) -> list[Answer]:
        try:
            stored = [Answer(**answer) for answer in json.loads(self._store.get(name))]
            self._done += len(examples)
            return stored
        except (FileNotFoundError, ValueError, TypeError):
            pass
        answers: list[Answer] = []
        for start in range(0, len(examples), BATCH_ROWS):
            self._stop.check()
            batch = examples[start : start + BATCH_ROWS]
            answers += answerer.answers(batch)
            self._done += len(batch)
            self._progress.report(self._done)
        self._store.put(name, json.dumps([asdict(answer) for answer in answers]).encode())
        return answers

    def _judged(self, example: Example, answer: Answer) -> Judged:
        return Judged(example.truth, self._read(answer.text), example.group, answer.confidence)

    def _read(self, text: str) -> dict[str, Any] | None:
        answer = read_answer(text)
        return None if isinstance(answer, Unreadable) or not self._validator.is_valid(answer) else answer


def timed(answerer: Answerer, examples: Sequence[Example], stop: Stop) -> list[float]:
    """Seconds per picture asked alone; the first answer warms up and is not counted."""
    seconds: list[float] = []
    for example in [*examples[:1], *examples]:
        stop.check()
        started = time.perf_counter()
        answerer.answers([example])
        seconds.append(time.perf_counter() - started)
    return seconds[1:]
