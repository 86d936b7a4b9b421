"""Pictures: what is kept of them, what is refused, and which of them are one photograph."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cutover_trainer.augment import distorted
from cutover_trainer.near_duplicates import near_pairs, perceptual_hash
from cutover_trainer.picture import UnusablePicture, keep, load
from cutover_trainer.schedule import Distortion
from cutover_trainer.split import Member, groups_of
from fakes import training_example

drawn = training_example.pictures().damage_picture


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_orientation(image: Image.Image, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "a camera"
    return encoded(image, "JPEG", exif=exif.tobytes(), quality=95)


def test_metadata_goes_and_the_picture_stands_upright() -> None:
    image = Image.new("RGB", (64, 32), "white")
    image.paste("red", (0, 0, 32, 32))
    kept = keep(with_orientation(image, 6))
    assert (kept.width, kept.height) == (32, 64)
    assert b"a camera" not in kept.data
    upright = load(kept.data)
    assert upright.getpixel((16, 8)) == pytest.approx((255, 0, 0), abs=12)
    assert not upright.getexif()


def test_the_name_is_the_content() -> None:
    one, two = keep(encoded(drawn(1, 0).image, "PNG")), keep(encoded(drawn(1, 0).image, "PNG", optimize=True))
    assert one.sha256 == two.sha256
    assert keep(encoded(drawn(1, 1).image, "PNG")).sha256 != one.sha256


def test_transparency_becomes_white_and_large_pictures_are_scaled() -> None:
    glass = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    glass.paste((0, 0, 0, 255), (10, 10, 20, 20))
    assert load(keep(encoded(glass, "PNG")).data).getpixel((5, 5)) == (255, 255, 255)
    wide = Image.new("RGB", (4096, 1024))
    wide.paste("white", (0, 0, 2048, 1024))
    large = keep(encoded(wide, "WEBP"))
    assert (large.width, large.height) == (2048, 512)


def test_sixteen_bits_of_grey_are_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    kept = load(keep(encoded(Image.fromarray(ramp), "PNG")).data)
    assert np.asarray(kept).mean() == pytest.approx(127, abs=2)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not a JPEG, PNG or WebP"),
        (b"<svg/>", "not a JPEG, PNG or WebP"),
        (encoded(Image.new("RGB", (8, 8)), "GIF"), "not a JPEG, PNG or WebP"),
        (encoded(drawn(1, 0).image)[:400], "damaged"),
        (encoded(Image.new("1", (8000, 7000)), "PNG"), "8000 x 7000 pixels"),
        (encoded(Image.new("RGB", (1, 1)), "PNG"), "1 x 1 pixels"),
        (encoded(Image.new("RGB", (64, 64), "grey"), "PNG"), "one colour"),
    ],
)
def test_what_is_no_usable_picture(data: bytes, said: str) -> None:
    with pytest.raises(UnusablePicture, match=said):
        keep(data)


def test_copies_of_a_photograph_are_found_and_different_ones_are_not() -> None:
    originals = [drawn(3, index, 128).image for index in range(24)]
    copies = [
        load(encoded(image.resize((96, 96)).point(lambda value: min(255, int(value * 1.04))), quality=80))
        for image in originals
    ]
    hashes = [perceptual_hash(image) for image in originals + copies]
    pairs = set(near_pairs(hashes))
    found = sum((index, index + 24) in pairs for index in range(24))
    assert found >= 18
    assert all(two - one == 24 for one, two in pairs)


@given(st.lists(st.integers(0, 2**64 - 1), max_size=40), st.integers(0, 63))
def test_near_pairs_unite_exactly_what_is_within_the_distance(hashes: list[int], bit: int) -> None:
    hashes = [*hashes, *hashes[:3], *(value ^ (1 << bit) for value in hashes[:5])]
    wanted = [
        (one, two)
        for two in range(len(hashes))
        for one in range(two)
        if (hashes[one] ^ hashes[two]).bit_count() <= 5
    ]
    found = near_pairs(hashes)
    assert set(found) <= set(wanted)
    members = [Member(f"r{number}", (f"k{number}",), "a") for number in range(len(hashes))]
    assert groups_of(members, found) == groups_of(members, wanted)


def test_many_copies_of_one_placeholder_are_no_more_pairs_than_pictures() -> None:
    assert len(near_pairs([7] * 5000 + [8] * 5000)) == 9999


def test_distortion_is_a_function_of_what_was_drawn() -> None:
    image = drawn(1, 0).image
    by = Distortion(rotation_degrees=8, brightness=1.1, contrast=0.9)
    assert distorted(image, by).tobytes() == distorted(image, by).tobytes()
    assert distorted(image, by).size == image.size
    assert not np.array_equal(np.asarray(distorted(image, by)), np.asarray(image))
    assert distorted(image, Distortion()) is image
