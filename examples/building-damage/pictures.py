"""Made-up photographs of building damage, and neutral pictures to pretrain a tiny base model on.

Every picture is a pure function of (seed, index, size): nothing is read, nothing is remembered. The damage pictures
come with their truth (damage type, severity), so that a training run, a stand-in for a hosted model and a stand-in
for a surveyor can agree on what is right. They show the *mechanics* of a rollout; they say nothing about real walls.

    python pictures.py --count 2400 --seed 11 > rows.jsonl      # rows as the assessments service exports them
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from PIL import Image, ImageDraw, ImageFilter

DAMAGE_TYPES = (
    "water_damage",
    "crack",
    "mould",
    "roof_damage",
    "structural_failure",
    "asbestos",
    "fire_damage",
    "no_damage",
)
SEVERITIES = ("minor", "moderate", "severe")
SIZE_PIXELS = 48
EXTENTS = (0.32, 0.62, 1.0)
"""How much of the picture each severity (or size, for the neutral pictures) affects."""

Pixels = npt.NDArray[np.float32]
Random = np.random.Generator
Colour = tuple[float, float, float]


@dataclass(frozen=True)
class DamagePicture:
    image: Image.Image
    damage_type: str
    severity: str

    @property
    def answer(self) -> dict[str, str]:
        return {"damageType": self.damage_type, "severity": self.severity}


@dataclass(frozen=True)
class NeutralPicture:
    """A shape of some colour and size on some surface; `caption` says so in words."""

    image: Image.Image
    shape: str
    surface: str
    colour: str
    size: str

    @property
    def caption(self) -> str:
        if self.shape == "nothing":
            return f"nothing on {self.surface}"
        return f"{self.size} {self.colour} {self.shape} on {self.surface}"


# ------------------------------------------------------------------ surfaces
def _filled(size: int, colour: Colour | npt.NDArray[np.float64] | float) -> Pixels:
    surface = np.empty((size, size, 3), np.float32)
    surface[:] = colour
    return surface


def _waves(random: Random, size: int, cells: int) -> Pixels:
    """Smooth noise in about -1..1."""
    coarse = Image.fromarray(random.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))


def _courses(size: int, height: int, width: int) -> tuple[Any, Any, Any]:
    """Row numbers, offsets within a row and along it, of a wall laid in half bond."""
    y, x = np.mgrid[0:size, 0:size]
    course = y // height
    return course, y % height, x + (course % 2) * (width // 2)


def _plaster(random: Random, size: int) -> Pixels:
    tone = np.array([224.0, 218.0, 205.0]) * random.uniform(0.76, 1.07) + random.normal(0, 6, 3)
    return _filled(size, tone) + 10 * _waves(random, size, 5)[..., None]


def _concrete(random: Random, size: int) -> Pixels:
    return _filled(size, random.uniform(126, 174)) + 14 * _waves(random, size, 9)[..., None]


def _brick(random: Random, size: int) -> Pixels:
    height, width = int(random.integers(6, 9)), int(random.integers(12, 18))
    course, within, along = _courses(size, height, width)
    tones = random.uniform(0.86, 1.12, (size // height + 2, 2 * size // width + 3))
    colour = np.array([150.0, 82.0, 64.0]) + random.normal(0, 9, 3)
    wall = (colour * tones[course, along // width][..., None]).astype(np.float32)
    wall[(within == 0) | (along % width == 0)] = 188 * random.uniform(0.86, 1.05)
    return wall


def _tiles(random: Random, size: int) -> Pixels:
    height, width = (int(value) for value in random.integers(9, 13, 2))
    _, within, along = _courses(size, height, width)
    colour = ((97.0, 99.0, 108.0), (149.0, 80.0, 57.0))[int(random.integers(2))]
    roof = _filled(size, colour) * (1.12 - 0.4 * within / height)[..., None].astype(np.float32)
    roof[along % width == 0] *= 0.6
    roof[within >= height - 2] *= 0.55
    return roof


def _corrugated(random: Random, size: int) -> Pixels:
    period, phase = random.uniform(6, 10), random.uniform(0, 2 * math.pi)
    ridge = 150 + 42 * np.sin(2 * math.pi * np.arange(size) / period + phase)
    return _filled(size, 1.0) * ridge.astype(np.float32)[None, :, None]


SURFACES: dict[str, Callable[[Random, int], Pixels]] = {
    "plaster": _plaster,
    "concrete": _concrete,
    "brick": _brick,
    "tiles": _tiles,
    "corrugated": _corrugated,
}
WALLS = ("plaster", "concrete", "brick")


# ------------------------------------------------------------------ marks on a surface
def _blend(surface: Pixels, colour: Any, share: Pixels) -> Pixels:
    return (surface * (1 - share[..., None]) + np.asarray(colour, np.float32) * share[..., None]).astype(
        np.float32
    )


def _drawn(
    size: int, draw: Callable[[ImageDraw.ImageDraw], None], opacity: float, blur_pixels: float
) -> Pixels:
    """Share of cover in 0..1 of what `draw` paints on a canvas of twice the size."""
    canvas = Image.new("L", (2 * size, 2 * size))
    draw(ImageDraw.Draw(canvas))
    soft = canvas.filter(ImageFilter.GaussianBlur(2 * blur_pixels)).resize(
        (size, size), Image.Resampling.BILINEAR
    )
    return np.asarray(soft, np.float32) * np.float32(opacity / 255)


def _blob_distance(random: Random, size: int, area: float) -> Pixels:
    """Signed distance (in picture widths) to the wobbly edge of a patch covering `area` of the picture."""
    y, x = np.mgrid[0:size, 0:size] / size
    centre_x, centre_y = random.uniform(0.3, 0.7, 2)
    radius = math.sqrt(area / math.pi) * (1 + 0.28 * _waves(random, size, 5))
    return np.asarray(np.hypot(x - centre_x, (y - centre_y) * random.uniform(0.8, 1.25)) - radius, np.float32)


def _line_cover(random: Random, size: int, extent: float) -> Pixels:
    """A jagged line through the middle; longer and wider with the extent."""
    length, step = size * (0.4 + 0.55 * extent), size * 0.085
    heading = random.uniform(0, 2 * math.pi)
    x, y = (
        size / 2
        + random.uniform(-0.1, 0.1, 2) * size
        - np.array([math.cos(heading), math.sin(heading)]) * length / 2
    )
    points = [(2 * x, 2 * y)]
    for _ in range(max(3, round(length / step))):
        turn = heading + random.normal(0, 0.55)
        x, y = x + math.cos(turn) * step, y + math.sin(turn) * step
        points.append((2 * x, 2 * y))
    return _drawn(size, lambda pen: pen.line(points, fill=255, width=round(2 + 3.4 * extent)), 0.95, 0.35)


def _dots_cover(random: Random, size: int, extent: float) -> Pixels:
    count = int(24 + 120 * extent)
    centres = random.uniform(0.3, 0.7, 2) * size + random.normal(0, size * (0.1 + 0.14 * extent), (count, 2))
    radii = random.uniform(0.8, 2.4, count)

    def draw(pen: ImageDraw.ImageDraw) -> None:
        for (x, y), radius in zip(centres, radii, strict=True):
            pen.ellipse((2 * (x - radius), 2 * (y - radius), 2 * (x + radius), 2 * (y + radius)), fill=225)

    return _drawn(size, draw, 0.95, 0.5)


def _holes_cover(random: Random, size: int, extent: float) -> Pixels:
    side = int(random.integers(10, 14))
    across = size // side
    count = min(across * across, max(1, round(1 + 8 * extent)))
    cells = random.permutation(across * across)[:count]
    shifts = random.uniform(-2, 2, (count, 4))

    def draw(pen: ImageDraw.ImageDraw) -> None:
        for cell, (left, top, right, bottom) in zip(cells, shifts, strict=True):
            x, y = (cell % across) * side + left, (cell // across) * side + top
            corners = (
                (x, y),
                (x + side, y + right),
                (x + side - abs(bottom), y + side),
                (x + abs(right), y + side),
            )
            pen.polygon([(2 * px, 2 * py) for px, py in corners], fill=255)

    return _drawn(size, draw, 0.96, 0.3)


def _hairs_cover(random: Random, size: int, extent: float) -> Pixels:
    count = int(20 + 140 * extent)
    starts = random.uniform(0, size, (count, 2))
    angles, lengths = random.uniform(0, math.pi, count), random.uniform(2, 5, count)
    ends = starts + np.stack([np.cos(angles), np.sin(angles)], 1) * lengths[:, None]

    def draw(pen: ImageDraw.ImageDraw) -> None:
        for (x0, y0), (x1, y1) in zip(starts, ends, strict=True):
            pen.line((2 * x0, 2 * y0, 2 * x1, 2 * y1), fill=230, width=1)

    return _drawn(size, draw, 0.9, 0.25)


def _shade_cover(random: Random, size: int, extent: float) -> Pixels:
    """Darkness creeping in from the top or the bottom edge."""
    depth = np.linspace(0, 1, size, dtype=np.float32)[:, None]
    if random.random() < 0.5:
        depth = 1 - depth
    return np.asarray(
        0.88 * np.clip((1.05 * extent - depth) * 3.2 + 0.55 * _waves(random, size, 6), 0, 1), np.float32
    )


def _shifted(random: Random, surface: Pixels, extent: float, gap: Any) -> Pixels:
    """The lower part has slipped sideways and down along a crooked edge, leaving a gap."""
    size = len(surface)
    columns = np.arange(size)
    edge = size * random.uniform(0.35, 0.6) + (columns - size / 2) * random.uniform(-0.5, 0.5)
    edge = edge + 3 * _waves(random, size, 6)[0]
    below = np.arange(size)[:, None] - edge[None, :]
    slip = int(3 + 7 * extent)
    broken = np.where((below > 0)[..., None], np.roll(surface, (slip, slip), (0, 1)), surface)
    return _blend(broken, gap, ((below > 0) & (below < 2 + 9 * extent)).astype(np.float32))


def _photographed(random: Random, surface: Pixels) -> Image.Image:
    """Uneven light, exposure and sensor noise."""
    size = len(surface)
    ramp = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    light = 1 + random.uniform(-0.22, 0.22) * (ramp[:, None] if random.random() < 0.5 else ramp[None, :])
    exposed = surface * np.broadcast_to(light, (size, size))[..., None] * random.uniform(0.82, 1.12)
    noisy = exposed + random.normal(0, random.uniform(2, 6), surface.shape)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


# ------------------------------------------------------------------ damage
def _water(random: Random, surface: Pixels, extent: float) -> Pixels:
    distance = _blob_distance(random, len(surface), 0.42 * extent)
    stained = _blend(
        surface, np.array([150, 112, 62]) + random.normal(0, 8, 3), 0.55 * np.clip(-14 * distance, 0, 1)
    )
    return _blend(stained, (96, 64, 30), 0.6 * np.exp(-((distance * len(surface) / 2.2) ** 2)))


def _crack(random: Random, surface: Pixels, extent: float) -> Pixels:
    for _ in range(2 if extent > 0.8 else 1):
        surface = _blend(surface, (28, 26, 25), _line_cover(random, len(surface), extent))
    return surface


def _mould(random: Random, surface: Pixels, extent: float) -> Pixels:
    colour = np.array([38, 58, 40]) + random.normal(0, 7, 3)
    return _blend(surface, colour, _dots_cover(random, len(surface), extent))


def _roof(random: Random, surface: Pixels, extent: float) -> Pixels:
    return _blend(surface, (30, 24, 20), _holes_cover(random, len(surface), extent))


def _failure(random: Random, surface: Pixels, extent: float) -> Pixels:
    return _shifted(random, surface, extent, np.array([34, 30, 28]) + random.normal(0, 4, 3))


def _asbestos(random: Random, surface: Pixels, extent: float) -> Pixels:
    weathered = surface * np.float32(0.96) + np.array([2, 5, 6], np.float32)
    return _blend(weathered, (238, 240, 240), _hairs_cover(random, len(surface), extent))


def _fire(random: Random, surface: Pixels, extent: float) -> Pixels:
    return _blend(surface, (22, 20, 19), _shade_cover(random, len(surface), extent))


def _sound(random: Random, surface: Pixels, extent: float) -> Pixels:
    return surface


@dataclass(frozen=True)
class _Kind:
    surfaces: tuple[str, ...]
    mark: Callable[[Random, Pixels, float], Pixels]


_KINDS = {
    "water_damage": _Kind(WALLS, _water),
    "crack": _Kind(WALLS, _crack),
    "mould": _Kind(WALLS, _mould),
    "roof_damage": _Kind(("tiles",), _roof),
    "structural_failure": _Kind(("brick", "concrete"), _failure),
    "asbestos": _Kind(("corrugated",), _asbestos),
    "fire_damage": _Kind(WALLS, _fire),
    "no_damage": _Kind(tuple(SURFACES), _sound),
}


def damage_picture(seed: int, index: int, size: int = SIZE_PIXELS) -> DamagePicture:
    """Picture number `index` of a series. The damage types take turns, so that every class is equally frequent."""
    random = np.random.default_rng([seed, index])
    damage_type = DAMAGE_TYPES[index % len(DAMAGE_TYPES)]
    kind = _KINDS[damage_type]
    level = 0 if damage_type == "no_damage" else int(random.integers(len(SEVERITIES)))
    surface = SURFACES[kind.surfaces[int(random.integers(len(kind.surfaces)))]](random, size)
    marked = kind.mark(random, surface, EXTENTS[level] * random.uniform(0.94, 1.06))
    return DamagePicture(_photographed(random, marked), damage_type, SEVERITIES[level])


def draw(seed: int, index: int) -> tuple[Image.Image, dict[str, str]]:
    """The picture and the right answer."""
    picture = damage_picture(seed, index)
    return picture.image, picture.answer


# ------------------------------------------------------------------ neutral pictures: no word of the damage vocabulary
SHAPES = ("blob", "line", "dots", "holes", "shift", "hairs", "shade", "nothing")
SIZES = ("small", "medium", "large")
COLOURS: dict[str, Colour] = {
    "red": (190, 50, 45),
    "green": (60, 140, 60),
    "blue": (60, 80, 190),
    "brown": (135, 95, 50),
    "black": (25, 24, 24),
    "white": (240, 240, 238),
    "yellow": (215, 195, 70),
    "grey": (120, 122, 124),
}
_COVERS: dict[str, Callable[[Random, int, float], Pixels]] = {
    "line": _line_cover,
    "dots": _dots_cover,
    "holes": _holes_cover,
    "hairs": _hairs_cover,
    "shade": _shade_cover,
}


def neutral_picture(seed: int, index: int, size: int = SIZE_PIXELS) -> NeutralPicture:
    """Any shape in any colour on any surface."""
    random = np.random.default_rng([seed, index, 1])
    shape, surface, colour = (
        names[int(random.integers(len(names)))] for names in (SHAPES, tuple(SURFACES), tuple(COLOURS))
    )
    level = int(random.integers(len(SIZES)))
    extent = EXTENTS[level] * random.uniform(0.94, 1.06)
    pixels = SURFACES[surface](random, size)
    paint = np.array(COLOURS[colour]) + random.normal(0, 8, 3)
    if shape == "shift":
        pixels = _shifted(random, pixels, extent, paint)
    elif shape == "blob":
        pixels = _blend(pixels, paint, 0.8 * np.clip(-14 * _blob_distance(random, size, 0.42 * extent), 0, 1))
    elif shape != "nothing":
        pixels = _blend(pixels, paint, _COVERS[shape](random, size, extent))
    return NeutralPicture(_photographed(random, pixels), shape, surface, colour, SIZES[level])


# ------------------------------------------------------------------ rows
def jpeg_bytes(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92, subsampling=0)
    return buffer.getvalue()


def data_url(image: Image.Image) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg_bytes(image)).decode()


def task_document() -> dict[str, Any]:
    """The task these pictures belong to, as `task.yaml` beside this file says it."""
    document = yaml.safe_load((Path(__file__).parent / "task.yaml").read_text())
    assert isinstance(document, dict)
    return document


def question(image_url: str) -> list[dict[str, Any]]:
    """The messages an application sends for a picture."""
    task = task_document()
    return [
        {"role": "system", "content": task["systemPrompt"]},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": task["userPrompt"]},
                {"type": "image_url", "image_url": {"url": image_url}},
            ],
        },
    ]


def mistaken_answer(answer: dict[str, str], seed: int, index: int, accuracy: float) -> dict[str, str]:
    """What a model that is right with probability `accuracy` would say: another damage type when it is wrong."""
    random = np.random.default_rng([seed, index, 2])
    if random.random() < accuracy:
        return dict(answer)
    others = [name for name in DAMAGE_TYPES if name != answer["damageType"]]
    return {**answer, "damageType": others[int(random.integers(len(others)))]}


def row(seed: int, index: int, control_accuracy: float = 0.92, size: int = SIZE_PIXELS) -> dict[str, Any]:
    """A validated assessment as the assessments service exports it."""
    picture = damage_picture(seed, index, size)
    return {
        "id": f"assessment-{seed}-{index:06d}",
        "group_id": f"building-{seed}-{index:06d}",
        "validated": True,
        "messages": [
            *question(data_url(picture.image)),
            {"role": "assistant", "content": json.dumps(picture.answer)},
        ],
        "control_answer": mistaken_answer(picture.answer, seed, index, control_accuracy),
        "labels": [picture.answer],
    }


def rows(
    seed: int, count: int, control_accuracy: float = 0.92, size: int = SIZE_PIXELS
) -> Iterator[dict[str, Any]]:
    return (row(seed, index, control_accuracy, size) for index in range(count))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=2400)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--size", type=int, default=SIZE_PIXELS, help="picture side in pixels")
    parser.add_argument(
        "--control-accuracy", type=float, default=0.92, help="how often the control answer is right"
    )
    arguments = parser.parse_args()
    for entry in rows(arguments.seed, arguments.count, arguments.control_accuracy, arguments.size):
        print(json.dumps(entry))


if __name__ == "__main__":
    main()
