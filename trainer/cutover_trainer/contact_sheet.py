"""Many small pictures on one: what a person looks at to see whether data is what it claims to be. Pure."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image, ImageOps

TILE_PIXELS = 96
GAP_PIXELS = 4
COLUMNS = 8


def contact_sheet(
    images: Sequence[Image.Image], columns: int = COLUMNS, tile_pixels: int = TILE_PIXELS
) -> bytes:
    """A JPEG of the pictures, in rows from the left; each is fitted into a square tile."""
    step = tile_pixels + GAP_PIXELS
    across = min(columns, len(images))
    down = -(-len(images) // columns)
    sheet = Image.new("RGB", (across * step - GAP_PIXELS, down * step - GAP_PIXELS), "white")
    for number, image in enumerate(images):
        tile = ImageOps.contain(image, (tile_pixels, tile_pixels), Image.Resampling.BILINEAR)
        row, column = divmod(number, columns)
        left = column * step + (tile_pixels - tile.width) // 2
        top = row * step + (tile_pixels - tile.height) // 2
        sheet.paste(tile, (left, top))
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
