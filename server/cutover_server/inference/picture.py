"""From the bytes of a picture to the RGB image the model's processor takes, or a `Refusal`.

Format and size are checked before any pixel is decoded. A picture is then treated as training pictures are: turned
upright, laid on white where it is transparent, and scaled down when it is very large.
"""

from __future__ import annotations

import io

from PIL import Image, ImageOps, UnidentifiedImageError

from cutover_server.inference.refusal import Refusal

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 50_000_000
MAX_SIDE_PIXELS = 2048


def open_picture(content: bytes) -> Image.Image:
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise Refusal(
                    400,
                    f"a picture of {width} x {height} pixels; at most {MAX_PIXELS // 1_000_000} million are read",
                    param="messages",
                    code="invalid_image",
                )
            return _as_trained(ImageOps.exif_transpose(image))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise Refusal(
            400,
            f"a picture of {len(content)} bytes is not a readable {', '.join(FORMATS)}",
            param="messages",
            code="invalid_image",
        ) from None


def _as_trained(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        opaque = Image.new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        image = opaque
    image = image.convert("RGB")
    if max(image.size) > MAX_SIDE_PIXELS:
        image.thumbnail((MAX_SIDE_PIXELS, MAX_SIDE_PIXELS), Image.Resampling.LANCZOS)
    return image
