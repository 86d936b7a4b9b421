"""How sure a simulated candidate is of its answers: by one number, or by a curve somebody measured. Pure.

With one number, the scores of right and of wrong answers are normal with the same spread (the binormal model of ROC
analysis, Green and Swets 1966), as far apart as the AUROC says, and the confidence is the chance of being right at that
score: calibrated.
"""

from __future__ import annotations

import csv
import io
import math

import numpy as np
from scipy.special import logit, ndtr, ndtri

from cutover_cli.errors import Refused
from cutover_operator.rollout.threshold import EDGES
from cutover_operator.simulation import Sureness

COLUMNS = ("confidence", "share", "accuracy")
ROUNDING = 0.005
"""By how much the shares of a curve may miss 1, and its accuracy the one that was given."""


class CurveError(Refused):
    """The curve of confidence cannot be used."""


def by_auroc(accuracy: float, auroc: float) -> Sureness:
    """Answers right in `accuracy` whose calibrated confidence has this area under the ROC curve; 1/2 < auroc < 1."""
    apart = math.sqrt(2.0) * float(ndtri(auroc))
    inner = (logit(np.asarray(EDGES[1:])) - logit(accuracy) + apart**2 / 2) / apart
    edges = np.concatenate([[-np.inf], inner, [np.inf]])
    right = accuracy * np.diff(ndtr(edges - apart))
    shares = right + (1 - accuracy) * np.diff(ndtr(edges))
    shares = shares / shares.sum()
    found = np.where(shares > 0, right / np.where(shares > 0, shares, 1.0), 0.0)
    return Sureness(tuple(float(s) for s in shares), tuple(float(a) for a in np.clip(found, 0.0, 1.0)))


def from_curve(text: str) -> Sureness:
    """CSV with the columns confidence (the lower edge of a bin), share (of all answers) and accuracy (in that bin); bins
    that are left out hold no answers. Raises CurveError, which names the line."""
    rows = list(csv.reader(io.StringIO(text)))
    if not rows or tuple(cell.strip() for cell in rows[0]) != COLUMNS:
        raise CurveError(f"line 1: expected the header {','.join(COLUMNS)}")
    shares, accuracy = [0.0] * len(EDGES), [0.0] * len(EDGES)
    for number, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        try:
            edge, share, right = (float(cell) for cell in row)
        except ValueError:
            raise CurveError(f"line {number}: expected three numbers, found {','.join(row)!r}") from None
        if edge not in EDGES:
            allowed = ", ".join(f"{e:g}" for e in EDGES)
            raise CurveError(
                f"line {number}: confidence {edge:g} is no lower edge of a bin; use one of {allowed}"
            )
        if not (0 <= share <= 1 and 0 <= right <= 1):
            raise CurveError(f"line {number}: share and accuracy must lie between 0 and 1")
        at = EDGES.index(edge)
        if shares[at]:
            raise CurveError(f"line {number}: confidence {edge:g} is named twice")
        shares[at], accuracy[at] = share, right
    whole = sum(shares)
    if abs(whole - 1) > ROUNDING:
        raise CurveError(f"the shares add up to {whole:g}; they must add up to 1")
    return Sureness(tuple(share / whole for share in shares), tuple(accuracy))
