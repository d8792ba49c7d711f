"""The memorisation check as a picture: the closest samples, each beside its nearest training pictures, and all distances.

Whether a sample copies a picture is for the eye: a number only says where to look. The distances of held-out pictures say
how close pictures come that nobody copied.
"""

import io

import numpy as np
from PIL import Image

from hdit_cli.engine.sampling.grid import grid_png
from hdit_cli.engine.scoring.picture_sets import PictureSet, StatisticsFile, Stored
from hdit_cli.engine.scoring.plot import Panel, curves_png
from hdit_cli.engine.scoring.scores import States
from hdit_cli.metrics.memorisation import Memorisation
from hdit_cli.metrics.neighbours import nearest

ROWS = 8  # samples shown, the closest first
NEIGHBOURS = 3
_BINS = 24  # of the histogram at most


def draw_nearest(pictures: PictureSet, reference: Stored | StatisticsFile, states: States) -> bytes:
    """A histogram over a grid: each row a sample and its three nearest pictures of the reference.

    Args:
        states: with those of the memorisation check.

    Returns:
        the bytes of a PNG file.
    """
    ours, theirs = states.pictures[Memorisation.name], states.reference[Memorisation.name]
    assert isinstance(ours, Memorisation) and isinstance(theirs, Memorisation) and isinstance(reference, Stored)
    index, _, x = ours.ordered()
    numbers, _, y = theirs.ordered()
    distance, place = nearest(x, y, k=min(NEIGHBOURS, len(y)))  # (N, k)
    shown = np.argsort(distance[:, 0], kind="stable")[:ROWS]
    samples = _read(pictures, index[shown])
    near = _read(reference, numbers[place[shown]].reshape(-1))
    columns = 1 + distance.shape[1]
    cells, labels = [], []
    for row, sample in enumerate(shown):
        cells += [samples[row], *near[row * (columns - 1) : (row + 1) * (columns - 1)]]
        labels += [f"sample {index[sample]}", *(f"{value:.3g}" for value in distance[sample])]
    held_out = states.held_out.get(Memorisation.name)
    histogram = _histogram(
        distance[:, 0], held_out.pairs(theirs).distance if isinstance(held_out, Memorisation) else None
    )
    grid = grid_png(
        _of_one_size(cells), labels=labels, columns=columns, caption="sample · nearest training pictures, distance"
    )
    return _stacked(histogram, grid)


def _read(of: PictureSet, index: np.ndarray) -> list[np.ndarray]:
    """The pictures of these numbers, in this order, uint8 (H, W, 3) each."""
    wanted = sorted(set(index.tolist()))
    found = {
        number: picture for numbers, batch in of.batches(wanted) for number, picture in zip(numbers, batch, strict=True)
    }
    return [found[number] for number in index.tolist()]


def _of_one_size(pictures: list[np.ndarray]) -> np.ndarray:
    """uint8 (n, H, W, 3), at the size of the first picture."""
    height, width = pictures[0].shape[:2]
    return np.stack([np.asarray(Image.fromarray(picture).resize((width, height))) for picture in pictures])


def _histogram(samples: np.ndarray, held_out: np.ndarray | None) -> bytes:
    """Share of pictures by their distance to the nearest training picture."""
    sets = {"samples": samples, **({} if held_out is None else {"held-out pictures": held_out})}
    together = np.concatenate(list(sets.values()))
    edges = np.histogram_bin_edges(together, bins=max(4, min(_BINS, round(len(samples) ** 0.5))))
    middles = (edges[:-1] + edges[1:]) / 2
    series: dict[str, list[float | None]] = {
        name: (np.histogram(values, edges)[0] / len(values)).tolist() for name, values in sets.items()
    }
    panel = Panel("share of pictures", series)
    return curves_png([panel], x=middles.tolist(), x_name="distance to the nearest training picture")


def _stacked(*pictures: bytes) -> bytes:
    """PNGs under each other."""
    parts = [Image.open(io.BytesIO(data), formats=("PNG",)).convert("RGB") for data in pictures]
    canvas = Image.new("RGB", (max(part.width for part in parts), sum(part.height for part in parts)), "white")
    top = 0
    for part in parts:
        canvas.paste(part, (0, top))
        top += part.height
    buffer = io.BytesIO()
    canvas.save(buffer, format="PNG")
    return buffer.getvalue()
