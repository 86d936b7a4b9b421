"""What the API server refuses of a search, as CEL made from the table of settings. Pure text."""

from __future__ import annotations

from collections.abc import Iterable

from cutover.api.base import ApiModel
from cutover.api.cel import Rule
from cutover.api.trainingrun import TrainingRunSpec
from cutover.api.tuning import SETTINGS, Parameter, Setting, Tuning

_NAMES = ", ".join(SETTINGS)


def _at(name: str) -> str:
    return f"self.space['{name}']"


def _every(name: str, holds: str) -> str:
    """CEL: every number written for a setting satisfies `holds`, a condition on `v`."""
    p = _at(name)
    return (
        f"!('{name}' in self.space) || ((!has({p}.values) || {p}.values.all(v, {holds})) && "
        f"(!has({p}.min) || [{p}.min].all(v, {holds})) && (!has({p}.max) || [{p}.max].all(v, {holds})))"
    )


def _bounds(name: str, setting: Setting) -> Iterable[Rule]:
    yield Rule(
        _every(name, f"v >= {setting.least:.6f} && v <= {setting.most:.6f}"),
        f"tuning.space: {name} must stay within {setting.least:g} and {setting.most:g}; correct values, min or max",
        field=".space",
    )
    if setting.whole:
        yield Rule(
            _every(name, "double(int(v)) == v"),
            f"tuning.space: {name} takes whole numbers; correct values, min or max",
            field=".space",
        )


def _choices(name: str, setting: Setting) -> str:
    """CEL: how many different values a setting has, a million standing for a range of real numbers."""
    p = _at(name)
    many = f"has({p}.min) && has({p}.max) ? {p}.max - {p}.min + 1.0 : 1.0" if setting.whole else "1000000.0"
    return f"(!('{name}' in self.space) ? 1.0 : has({p}.values) ? double(size({p}.values)) : {many})"


_COMBINATIONS = " * ".join(_choices(name, setting) for name, setting in SETTINGS.items())

TUNING_RULES: dict[type[ApiModel], tuple[Rule, ...]] = {
    Parameter: (
        Rule(
            "has(self.values) ? !has(self.min) && !has(self.max) : has(self.min) && has(self.max)",
            "a setting of tuning.space needs either values, for example [8, 16], or min and max",
        ),
        Rule(
            "!has(self.min) || !has(self.max) || self.min < self.max",
            "tuning.space: min must be below max; exchange them, or write one value as values",
            field=".min",
        ),
        Rule(
            "!self.log || !has(self.values)",
            "tuning.space: log belongs to min and max; remove it, or give a range in place of values",
            field=".log",
            reason="FieldValueForbidden",
        ),
        Rule(
            "!self.log || !has(self.min) || self.min > 0.0",
            "tuning.space: a logarithm needs min above 0; raise min or set log to false",
            field=".min",
        ),
    ),
    Tuning: (
        Rule("size(self.space) > 0", f"tuning.space is empty; name at least one of {_NAMES}", field=".space"),
        Rule(
            f"self.space.all(name, name in {list(SETTINGS)})",
            f"tuning.space: unknown setting; what can be searched is {_NAMES} (epochs are what trials are stopped by)",
            field=".space",
        ),
        *(rule for name, setting in SETTINGS.items() for rule in _bounds(name, setting)),
        Rule(
            f"double(self.trials) <= {_COMBINATIONS}",
            "tuning.trials is above the number of different settings in tuning.space; lower it or widen the space",
            field=".trials",
        ),
    ),
    TrainingRunSpec: (
        Rule(
            "!has(self.tuning) || self.dataset.split.validation > 0.0",
            "tuning compares trials on the validation part; set dataset.split.validation above 0, for example 0.1",
            field=".tuning",
        ),
        Rule(
            "!(has(self.tuning) && has(self.trial))",
            "spec.trial is the operator's own and cannot search itself; remove it",
            field=".trial",
            reason="FieldValueForbidden",
        ),
    ),
}
