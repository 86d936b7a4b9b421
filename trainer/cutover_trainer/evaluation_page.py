"""`evaluation.html`: what an evaluation found, for people, with pictures of the worst errors. Pure.

The surest mistakes come first: they are what no threshold of confidence catches, and as often a wrong label as a wrong
answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cutover.contract import FIELD_OVERALL
from cutover.task import Task
from cutover_trainer.measures import NO_CLASS
from cutover_trainer.page_parts import Html, figure, page, table, text

SHOWN_ERRORS = 24
TILE_PIXELS = 224
_NAMES = {"base": "the untrained base", "control": "today's model", "previous": "the previous model"}
_WIDTH, _HEIGHT, _MARGIN = 520, 260, 44


@dataclass(frozen=True, slots=True)
class WorstError:
    """An entry of `errors.listed` and its picture."""

    error: Mapping[str, Any]
    jpeg: bytes


def evaluation_page(task: Task, document: Mapping[str, Any], worst: Sequence[WorstError]) -> bytes:
    """`document` is `evaluation.json`."""
    return page(
        f"Evaluation: {task.name}",
        [
            f"<h1>Evaluation of {text(task.name)}</h1>",
            _head(task, document),
            _missed(document["missedGates"]),
            _measures(document),
            _comparisons(document["comparisons"]),
            _people(document["people"]),
            _recalls(document["recall"]),
            _confusion(task, document["confusion"][task.decisive_field]),
            _confidence(document["confidence"]),
            _errors(document["errors"], worst),
        ],
    )


def _head(task: Task, document: Mapping[str, Any]) -> str:
    rows, latency = document["summary"]["examples"], document["latencySeconds"]
    said = f"{rows} test rows in {document['groups']} groups; adapter {document['adapterDigest'][:12]}"
    if latency["n"]:
        said += (
            f"; one picture alone takes {latency['p50']:.3f} s at the median, {latency['p95']:.3f} s at the 95th "
            f"percentile ({latency['n']} asked, on the machine of this run)"
        )
    return f'<p>{text(said)}.</p><p class="fine">Intervals hold 95 %, rows of one group counted as dependent.</p>'


def _missed(missed: Sequence[str]) -> str:
    if not missed:
        return ""
    listed = "<br>".join(text(one) for one in missed)
    return f'<p class="stop"><b>Gates missed: not registered</b><br>{listed}</p>'


def _share(share: Mapping[str, float]) -> str:
    return f"{share['value']:.3f}  ({share['low']:.3f} to {share['high']:.3f})"


def _measures(document: Mapping[str, Any]) -> str:
    macro = document["macroF1"]
    rows = [
        [name, _share(share), _share(macro[name]) if name in macro else "", share["n"]]
        for name, share in document["accuracy"].items()
    ]
    rows.append(["valid JSON", _share(document["jsonValidity"]), "", document["jsonValidity"]["n"]])
    return "<h2>What it gets right</h2>" + table(
        ["field", "accuracy", "macro-F1", "rows"], rows, frozenset({3})
    )


def _comparisons(compared: Mapping[str, Any]) -> str:
    parts = []
    for name, other in compared.items():
        rows = [
            [
                field,
                _share(other["accuracy"][field]),
                _share(other["accuracyOther"][field]),
                test["onlyCandidate"],
                test["onlyOther"],
                f"{test['pValue']:.3g}",
            ]
            for field, test in other["mcnemar"].items()
            if field in other["accuracy"]
        ]
        left = other.get("leftOut")
        note = f", {left} left out that it was trained on" if left else ""
        if left is None and name == "previous":
            note = ", what it was trained on is unknown: it may know some of these rows"
        head = [
            "field",
            "this model",
            _NAMES[name],
            "only this right",
            "only the other",
            "p (McNemar, exact)",
        ]
        parts.append(
            f"<h2>Beside {text(_NAMES[name])}</h2><p>{text(other['n'])} rows both answered{text(note)}.</p>"
            + table(head, rows, frozenset({3, 4, 5}))
        )
    return "".join(parts)


def _people(people: Mapping[str, Any] | None) -> str:
    if people is None:
        return ""
    rows = [
        [
            field,
            _share(share),
            _share(people["modelWithOnePerson"][field]) if field in people["modelWithOnePerson"] else "",
            _share(people["accuracy"][field]) if field in people["accuracy"] else "",
        ]
        for field, share in people["agreement"].items()
    ]
    head = ["field", "two people agree", "the model agrees with one", "accuracy on those rows"]
    return (
        f"<h2>How far people agree</h2><p>{people['rows']} rows were labelled by two or more people, "
        f"{people['testRows']} of them in the test part. A model that agrees with a person as often as people agree "
        f"with each other has reached what these labels can show.</p>{table(head, rows)}"
    )


def _recalls(recall: Mapping[str, Any]) -> str:
    parts = []
    for field, classes in recall.items():
        rows = [
            [name, _share(share) if share["n"] else "no row", share["n"]] for name, share in classes.items()
        ]
        parts.append(
            f"<h2>Recall of {text(field)}</h2>{table(['class', 'found', 'rows'], rows, frozenset({2}))}"
        )
    return "".join(parts)


def _confusion(task: Task, matrix: Mapping[str, Mapping[str, int]]) -> str:
    names = [*task.classes(task.decisive_field), NO_CLASS]
    rows = [[truth, *(row.get(said, "") for said in names)] for truth, row in matrix.items()]
    return (
        f"<h2>Confusion of {text(task.decisive_field)}</h2><p>A row is the truth, a column the answer.</p>"
        + table(["", *names], rows, frozenset(range(1, len(names) + 1)))
    )


def _confidence(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    rows = [
        [
            f"{point['threshold']:g}",
            f"{point['keptShare']:.1%}",
            _share(point["accuracy"]) if point["accuracy"]["n"] else "",
            point["accuracy"]["n"],
            "yes" if point["certified"] else "",
        ]
        for point in found["points"]
    ]
    head = ["keep from", "kept", "right among the kept", "rows", "proven"]
    return (
        f"<h2>Answering only when sure</h2><p>{text(_verdict(found))}</p>{_curve(found)}"
        f"{table(head, rows, frozenset({0, 1, 3}))}"
        '<p class="fine">From the validation part. A threshold is proven when the kept answers reach the floor for '
        "certain, at a risk of 5 % over all thresholds.</p>"
    )


def _verdict(found: Mapping[str, Any]) -> str:
    area = "unknown" if found.get("auroc") is None else f"{found['auroc']:.3f}"
    said = f"{found['rows']} valid answers; AUROC {area} (0.5: confidence says nothing)."
    field = "all fields" if found["field"] == FIELD_OVERALL else found["field"]
    if found.get("floor") is None:
        return f"{said} No accuracy gate names a floor for {field}, so no threshold is proposed."
    if found.get("threshold") is None:
        return f"{said} No threshold is proven to keep {found['floor']:g} for {field}: more validation rows, or a better model."
    said += (
        f" Keeping answers from {found['threshold']:g} keeps {found['keptShare']:.1%}, proven to be right in "
        f"{found['floor']:g} of {field}."
    )
    test = found["onTest"]
    if test is not None and test["accuracy"]["n"]:
        said += f" On the test part it keeps {test['keptShare']:.1%}, right in {_share(test['accuracy'])}."
    return said


def _curve(found: Mapping[str, Any]) -> str:
    """Accuracy of the kept over the kept share, as lines; no script, nothing loaded."""
    points = [
        (point["keptShare"], point["accuracy"]["value"])
        for point in found["points"]
        if point["accuracy"]["n"]
    ]
    if len(points) < 2:
        return ""
    floor = found.get("floor")
    least = min([value for _, value in points] + ([floor] if floor is not None else []))
    bottom = max(0.0, least - 0.05)

    def place(share: float, value: float) -> str:
        x = _MARGIN + share * (_WIDTH - 2 * _MARGIN)
        y = _HEIGHT - _MARGIN - (value - bottom) / (1.0 - bottom or 1.0) * (_HEIGHT - 2 * _MARGIN)
        return f"{x:.1f},{y:.1f}"

    line = " ".join(place(*point) for point in points)
    lines = [
        f'<polyline points="{place(0, 1)} {place(0, bottom)} {place(1, bottom)}" fill="none" stroke="#4a545e"/>',
        f'<polyline points="{line}" fill="none" stroke="#4a7fb5" stroke-width="2"/>',
    ]
    if floor is not None:
        ends = f"{place(0, floor)} {place(1, floor)}"
        lines.append(f'<polyline points="{ends}" fill="none" stroke="#b3261e" stroke-dasharray="5 4"/>')
    words = [
        (4, _MARGIN - 8, f"right among the kept, {bottom:.2f} to 1"),
        (_WIDTH - 190, _HEIGHT - 14, "share of answers kept, 0 to 1"),
    ]
    lines += [
        f'<text x="{x}" y="{y}" font-size="12" fill="#4a545e">{text(said)}</text>' for x, y, said in words
    ]
    return (
        f'<svg role="img" aria-label="accuracy of the kept answers over their share" width="{_WIDTH}" '
        f'height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}">{"".join(lines)}</svg>'
    )


def _errors(errors: Mapping[str, Any], worst: Sequence[WorstError]) -> str:
    if not errors["rows"]:
        return f"<h2>Errors</h2><p>None in {text(errors['field'])}.</p>"
    shown = "".join(_error(one) for one in worst)
    return (
        f"<h2>Worst errors</h2><p>{errors['rows']} rows have another {text(errors['field'])} than people said; the "
        f"{len(worst)} the model was surest of. Look first whether the label is right.</p>"
        f'<div class="pairs">{shown}</div>'
    )


def _error(one: WorstError) -> str:
    error = one.error
    sure = "no confidence" if error["confidence"] is None else f"sure {error['confidence']:.3f}"
    about = [f"people: {error['truth']}", f"model: {error['said']} ({sure})"]
    if error["control"] is not None:
        about.append(f"today's model: {error['control']}")
    if error["people"]:
        about.append(f"each person: {', '.join(str(said) for said in error['people'])}")
    below = Html("<br>".join(text(said) for said in about))
    return f'<div>{figure(str(error["id"]), about, one.jpeg)}<p class="fine">{below}</p></div>'
