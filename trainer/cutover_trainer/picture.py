"""Turns the bytes of a picture somebody sent into the one form that is kept: upright RGB without metadata.

Nothing is trusted: formats, number of pixels and completeness are checked before a pixel is used.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cutover_trainer.near_duplicates import perceptual_hash

MAX_PIXELS = 50_000_000
MAX_SIDE_PIXELS = 2048
"""Larger pictures are scaled down: no supported model looks closer."""
MIN_SIDE_PIXELS = 16
"""Smaller ones are placeholders and tracking pixels, not photographs."""
FORMATS = ("JPEG", "PNG", "WEBP")


class UnusablePicture(Exception):
    """Says what is wrong with the bytes."""


@dataclass(frozen=True, slots=True)
class KeptPicture:
    sha256: str
    """Of the kept bytes: two uploads of one photograph have one name."""
    data: bytes
    width: int
    height: int
    perceptual_hash: int


def keep(data: bytes) -> KeptPicture:
    """Decode, turn upright, strip metadata, bound the size. Raises UnusablePicture."""
    image, lossy = _decoded(data)
    if min(image.size) < MIN_SIDE_PIXELS:
        raise UnusablePicture(
            f"{image.width} x {image.height} pixels; a photograph has {MIN_SIDE_PIXELS} a side"
        )
    bounds = np.array(image.getextrema())
    if np.array_equal(bounds[:, 0], bounds[:, 1]):
        raise UnusablePicture("of one colour all over: nothing can be seen on it")
    if max(image.size) > MAX_SIDE_PIXELS:
        image.thumbnail((MAX_SIDE_PIXELS, MAX_SIDE_PIXELS), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if lossy:
        image.save(buffer, "JPEG", quality=95, subsampling=0)
    else:
        image.save(buffer, "PNG")
    kept = buffer.getvalue()
    return KeptPicture(
        hashlib.sha256(kept).hexdigest(), kept, image.width, image.height, perceptual_hash(image)
    )


def load(data: bytes) -> Image.Image:
    """A kept picture, decoded."""
    return _decoded(data)[0]


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey values: left to itself Pillow would clip them to white."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image, np.uint32) >> 8).astype(np.uint8))


def _decoded(data: bytes) -> tuple[Image.Image, bool]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(io.BytesIO(data), formats=FORMATS)
        if opened.width * opened.height > MAX_PIXELS:
            raise UnusablePicture(
                f"{opened.width} x {opened.height} pixels; at most {MAX_PIXELS} are decoded"
            )
        lossy = opened.format == "JPEG"
        upright = _eight_bits(ImageOps.exif_transpose(opened))
    except UnidentifiedImageError:
        raise UnusablePicture("not a JPEG, PNG or WebP picture") from None
    except Image.DecompressionBombError:
        raise UnusablePicture(f"more than {MAX_PIXELS} pixels") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise UnusablePicture(f"damaged: {error}"[:200]) from None
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        opaque = Image.new("RGBA", upright.size, "white")
        opaque.alpha_composite(upright.convert("RGBA"))
        upright = opaque
    clean = Image.new("RGB", upright.size)
    clean.paste(upright.convert("RGB"))
    return clean, lossy
