"""Perceptual hashes: pictures that are the same photograph, re-encoded, resized or brightened.

Pure numerics. A hash is 64 bits of the low frequencies of a 32 x 32 greyscale copy; pairs within a Hamming distance of
5 are taken as one photograph (a false pair only makes a group larger).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.fft import dctn

NEAR_DISTANCE_BITS = 5
MAX_HASHES = 100_000
"""Above it only equal hashes are paired: the comparison of all pairs would take minutes."""
_SIDE = 32
_KEPT = 8
_ROWS_AT_ONCE = 512


def perceptual_hash(image: Image.Image) -> int:
    grey = np.asarray(image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS), np.float64)
    low = dctn(grey, norm="ortho")[:_KEPT, :_KEPT].ravel()
    bits = low > np.median(low[1:])
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def near_pairs(hashes: Sequence[int], distance_bits: int = NEAR_DISTANCE_BITS) -> list[tuple[int, int]]:
    """Index pairs (low, high): each picture with the first one of the same hash, and those first ones with one another
    within the distance. A thousand copies of one placeholder are a thousand pairs, not half a million."""
    if len(hashes) > MAX_HASHES:
        distance_bits = 0
    first: dict[int, int] = {}
    equal = [(first.setdefault(value, index), index) for index, value in enumerate(hashes)]
    pairs = [pair for pair in equal if pair[0] != pair[1]]
    if distance_bits == 0:
        return pairs
    values, places = np.array(list(first), dtype=np.uint64), list(first.values())
    for start in range(0, len(values), _ROWS_AT_ONCE):
        block: npt.NDArray[np.uint64] = values[start : start + _ROWS_AT_ONCE]
        distances = np.bitwise_count(block[:, None] ^ values[None, start:])
        rows, columns = np.nonzero(np.triu(distances <= distance_bits, 1))
        pairs.extend(
            (places[start + row], places[start + column]) for row, column in zip(rows, columns, strict=True)
        )
    return pairs
