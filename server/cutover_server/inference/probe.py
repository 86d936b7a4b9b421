"""The stored probe of an adapter, and the verdict on what a served model answers to it. Needs no model library.

The trainer stores one question with the log-probabilities its adapter, and the bare base, give the answer. The
served model's must be nearer to the trained ones than a tenth of the distance between the two (mean absolute
difference per answer token). `judge` is pure.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from cutover.probe import PROBE_FILE, Probe
from cutover_server.inference.refusal import Unservable

TOLERATED_SHARE = 0.1
LEAST_BASE_DISTANCE = 1e-3
"""Below it the probe cannot tell the adapter from the base (nats per token)."""


@dataclass(frozen=True, slots=True)
class Proof:
    """Distances in nats per answer token."""

    distance: float
    base_distance: float

    @property
    def holds(self) -> bool:
        return (
            self.base_distance >= LEAST_BASE_DISTANCE
            and self.distance <= TOLERATED_SHARE * self.base_distance
        )


def judge(served: Sequence[float], trained: Sequence[float], base: Sequence[float]) -> Proof:
    return Proof(distance=_mean_distance(served, trained), base_distance=_mean_distance(base, trained))


def _mean_distance(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)


def read_probe(folder: Path) -> Probe | None:
    """The stored probe; none when the folder has no probe.json. Raises Unservable for an unusable one."""
    path = folder / PROBE_FILE
    if not path.is_file():
        return None
    try:
        probe = Probe.model_validate(json.loads(path.read_bytes()))
    except (ValueError, ValidationError) as error:
        raise Unservable("ProbeUnreadable", f"{PROBE_FILE} of {folder.name}: {error}"[:500]) from error
    lengths = {len(probe.answer_token_ids), len(probe.adapter_logprobs), len(probe.base_logprobs)}
    if lengths == {0} or len(lengths) != 1:
        raise Unservable(
            "ProbeUnreadable", f"{PROBE_FILE} of {folder.name}: answer and log-probabilities differ in length"
        )
    return probe


def check_prompt(asked: Sequence[int], trained: Sequence[int]) -> None:
    """Raises Unservable when an engine's prompt (token ids) is not the one trained on."""
    if list(asked) == list(trained):
        return
    first = next(
        (i for i, (a, b) in enumerate(zip(asked, trained, strict=False)) if a != b),
        min(len(asked), len(trained)),
    )
    raise Unservable(
        "PromptMismatch",
        f"the prompt differs from the one trained on: {len(asked)} tokens against {len(trained)}, first difference "
        f"at {first}; processor, template or tokenizer is another",
    )


def disproof(proof: Proof, base: Sequence[float], bare: Sequence[float]) -> Unservable:
    """Why a proof does not hold. `base`: stored log-probabilities without the adapter, `bare`: the engine's own."""
    if proof.base_distance < LEAST_BASE_DISTANCE:
        return Unservable(
            "ProbeTellsNothing",
            f"the probe's adapter and base differ by {proof.base_distance:.2g} nats per token only: the adapter "
            "changes nothing there, so nothing can be proven",
        )
    off = _mean_distance(bare, base)
    if off > TOLERATED_SHARE * proof.base_distance:
        cause = f"the base is another one: without the adapter it is {off:.3g} off the stored base values"
    else:
        cause = "the base is the right one, the adapter is not applied as trained"
    return Unservable(
        "AdapterProofFailed",
        f"served log-probabilities are {proof.distance:.3g} nats per token from the trained ones; at most "
        f"{TOLERATED_SHARE * proof.base_distance:.3g} is allowed (a tenth of the base-adapter distance "
        f"{proof.base_distance:.3g}); {cause}",
    )
