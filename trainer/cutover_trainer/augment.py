"""Applies a drawn distortion to a picture: rotation about the centre, brightness, contrast. Pure."""

from __future__ import annotations

from PIL import Image, ImageEnhance, ImageStat

from cutover_trainer.schedule import Distortion


def distorted(image: Image.Image, by: Distortion) -> Image.Image:
    """A new picture of the same size. Corners that rotation uncovers get the mean colour."""
    if by == Distortion():
        return image
    mean = tuple(round(value) for value in ImageStat.Stat(image).mean)
    turned = image.rotate(by.rotation_degrees, Image.Resampling.BILINEAR, fillcolor=mean)
    return ImageEnhance.Contrast(ImageEnhance.Brightness(turned).enhance(by.brightness)).enhance(by.contrast)
