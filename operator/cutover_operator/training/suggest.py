"""The settings a search tries: all of them follow from the spec, so there is no study to lose. Pure.

A range is cut into as many slices as there are trials, and every slice is used once (Latin hypercube: McKay, Beckman
and Conover 1979); a space of few combinations is drawn from without putting back. Chance is SHA-256 of the seed and the
place, which no later version of a library draws otherwise.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterable
from typing import Any

from cutover.api.trainingrun import FineTune
from cutover.api.tuning import SETTINGS, Parameter, Tuning

MOST_COMBINATIONS = 4096
DIGITS = 4
"""Significant ones of a suggested number."""

Settings = dict[str, float]
"""Values by name of the setting."""


def suggestions(tuning: Tuning) -> tuple[Settings, ...]:
    """One for each trial, in their order."""
    space = dict(sorted(tuning.space.items()))
    choices = {name: _values(name, parameter) for name, parameter in space.items()}
    listed = [values for values in choices.values() if values is not None]
    if len(listed) == len(space) and math.prod(len(values) for values in listed) <= MOST_COMBINATIONS:
        grid = [dict(zip(space, point, strict=True)) for point in itertools.product(*listed)]
        order = _shuffled(len(grid), tuning.seed, "grid")
        return tuple(grid[order[trial % len(grid)]] for trial in range(tuning.trials))
    columns = {
        name: _column(name, parameter, choices[name], tuning.seed, tuning.trials)
        for name, parameter in space.items()
    }
    return tuple({name: column[trial] for name, column in columns.items()} for trial in range(tuning.trials))


def with_settings(fine_tune: FineTune, settings: Settings) -> FineTune:
    """The fine-tune section with the settings in their places. Raises pydantic.ValidationError for one out of bounds."""
    wire = fine_tune.to_wire()
    for name, value in settings.items():
        _place(wire, name)[name.split(".")[-1]] = int(value) if SETTINGS[name].whole else value
    return FineTune.model_validate(wire)


def settings_of(fine_tune: FineTune, names: Iterable[str]) -> Settings:
    """The settings as they stand in a fine-tune section."""
    wire = fine_tune.to_wire()
    return {name: float(_place(wire, name)[name.split(".")[-1]]) for name in names}


def settings_text(settings: Settings) -> str:
    """For a person: `learningRate 0.0003, lora.rank 16`."""
    return ", ".join(f"{name} {value:g}" for name, value in sorted(settings.items()))


def _place(wire: dict[str, Any], name: str) -> dict[str, Any]:
    """The object that holds the setting."""
    for part in name.split(".")[:-1]:
        wire = wire[part]
    return wire


def _values(name: str, parameter: Parameter) -> list[float] | None:
    """Every value a setting can have, if they can be counted."""
    if parameter.values is not None:
        return sorted(set(parameter.values))
    low, high = _ends(parameter)
    if not SETTINGS[name].whole or high - low >= MOST_COMBINATIONS:
        return None
    return [float(value) for value in range(math.ceil(low), math.floor(high) + 1)]


def _column(
    name: str, parameter: Parameter, values: list[float] | None, seed: int, trials: int
) -> list[float]:
    """One setting's value for each trial."""
    slices = _shuffled(trials, seed, name)
    shares = [(slices[trial] + _chance(seed, name, "within", trial)) / trials for trial in range(trials)]
    if parameter.values is not None and values is not None:
        return [values[min(int(share * len(values)), len(values) - 1)] for share in shares]
    return [_within(name, parameter, share) for share in shares]


def _within(name: str, parameter: Parameter, share: float) -> float:
    low, high = _ends(parameter)
    value = low * (high / low) ** share if parameter.log else low + (high - low) * share
    value = float(round(value)) if SETTINGS[name].whole else float(f"{value:.{DIGITS}g}")
    return min(max(value, low), high)


def _ends(parameter: Parameter) -> tuple[float, float]:
    assert parameter.min is not None
    assert parameter.max is not None
    return parameter.min, parameter.max


def _shuffled(count: int, seed: int, name: str) -> list[int]:
    return sorted(range(count), key=lambda place: _chance(seed, name, "order", place))


def _chance(*place: object) -> float:
    """A number in [0, 1) that belongs to the place."""
    return int.from_bytes(_digest(place)[:8]) / 2**64


def _digest(parts: Iterable[object]) -> bytes:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
