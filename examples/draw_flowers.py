"""Draws a small labelled set of flower-like pictures: four classes told apart by colour and by shape.

The same seed gives the same pixels. Sub-folders are the classes, as `hdit prepare` wants them:

    python examples/draw_flowers.py flowers --count 400 --size 32 --seed 0
"""

import argparse
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SUPERSAMPLE = 4  # each pixel is the mean of 4 x 4: smooth edges


@dataclass(frozen=True)
class Flower:
    """One class. Colours are RGB in 0..255, lengths are shares of the flower's radius."""

    petals: int
    petal_width: float  # half the width of a petal
    pointed: bool
    petal: tuple[int, int, int]
    centre: tuple[int, int, int]
    centre_radius: float


FLOWERS = {
    "cornflower": Flower(8, 0.20, True, (62, 74, 214), (40, 20, 96), 0.26),
    "daisy": Flower(12, 0.13, False, (246, 244, 238), (240, 190, 30), 0.30),
    "poppy": Flower(4, 0.46, False, (214, 32, 30), (28, 22, 26), 0.22),
    "sunflower": Flower(14, 0.19, True, (248, 196, 20), (96, 54, 20), 0.44),
}


def draw(flower: Flower, *, size: int, rng: np.random.Generator) -> np.ndarray:
    """One picture: the flower at a random place, size and angle before a random meadow. uint8 (size, size, 3)."""
    side = size * SUPERSAMPLE
    rows, columns = np.mgrid[0:side, 0:side] / (side - 1) * 2 - 1  # [-1, 1] over the picture
    picture = meadow(rows, columns, rng)
    x, y = rng.uniform(-0.10, 0.10, size=2)
    radius, turn = rng.uniform(0.70, 0.90), rng.uniform(0, 2 * np.pi)
    tint = rng.uniform(0.90, 1.06)
    across, down = (columns - x) / radius, (rows - y) / radius
    distance = np.hypot(across, down)
    sector = 2 * np.pi / flower.petals
    angle = np.mod(np.arctan2(down, across) - turn, sector) - sector / 2  # from the axis of the nearest petal
    along, aside = distance * np.cos(angle), np.abs(distance * np.sin(angle))
    inside = aside < petal_outline(along, flower)
    shade = 0.76 + 0.24 * np.clip(distance, 0, 1)  # darker towards the middle
    rim = 1 - 0.18 * np.clip(aside / flower.petal_width, 0, 1)  # tells a petal from its neighbour
    picture[inside] = (np.asarray(flower.petal) * (tint * shade * rim)[..., None])[inside]
    middle = distance < flower.centre_radius
    light = 1 - 0.25 * distance / flower.centre_radius
    picture[middle] = (np.asarray(flower.centre) * light[..., None])[middle]
    pooled = picture.reshape(size, SUPERSAMPLE, size, SUPERSAMPLE, 3).mean(axis=(1, 3))
    return np.clip(np.rint(pooled), 0, 255).astype(np.uint8)


def meadow(rows: np.ndarray, columns: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A green background, lighter in a random direction. float (H, W, 3) in 0..255."""
    green = np.array([rng.uniform(40, 90), rng.uniform(110, 160), rng.uniform(40, 80)])
    angle = rng.uniform(0, 2 * np.pi)
    slope = rows * np.sin(angle) + columns * np.cos(angle)
    return green * (1 + 0.22 * slope)[..., None]


def petal_outline(along: np.ndarray, flower: Flower) -> np.ndarray:
    """Half the width of a petal at a distance from the middle; negative where there is none."""
    share = np.clip(along, 0, 1)
    if flower.pointed:
        width = np.minimum(share / 0.45, (1 - share) / 0.55)  # widest at 0.45, then straight to a point
    else:
        width = np.sqrt(np.clip(1 - (2 * share - 1) ** 2, 0, 1))  # an ellipse from the middle to the tip
    return np.where((along > 0) & (along < 1), width * flower.petal_width, -1.0)


def keep(path: Path, pixels: np.ndarray) -> None:
    """Writes a PNG; one that is there already stays as it is, so that a data set made from it is not out of date."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    if not path.is_file() or path.read_bytes() != stream.getvalue():
        path.write_bytes(stream.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description="Draws a small labelled set of flower-like pictures.")
    parser.add_argument("out", type=Path, help="folder for the pictures; one sub-folder for each class")
    parser.add_argument("--count", type=int, default=400, help="pictures in all (default 400)")
    parser.add_argument("--size", type=int, default=32, help="side in pixels (default 32)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for number in range(options.count):
        name = list(FLOWERS)[number % len(FLOWERS)]
        rng = np.random.default_rng([options.seed, number])  # each picture has its own numbers
        folder = options.out / name
        folder.mkdir(parents=True, exist_ok=True)
        pixels = draw(FLOWERS[name], size=options.size, rng=rng)
        keep(folder / f"{name}-{number:04d}.png", pixels)
    print(f"{options.count} pictures of {len(FLOWERS)} classes in {options.out}")


if __name__ == "__main__":
    main()
