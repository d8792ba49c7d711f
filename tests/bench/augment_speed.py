"""Karras augmentation per image, over all images of its own draws, against the published pipeline (scikit-image).

    python tests/bench/augment_speed.py --published k-diffusion/k_diffusion/augmentation.py [--rounds 7] [--side 256]

Both with one thread, at a probability of 0.12, on the same pictures: theirs one PIL image after the other, ours in batches
of 32. Without --published the same call of scikit-image is timed with our matrices: the draws are then left out of theirs.
"""

import argparse
import importlib.util
import time

import numpy as np
import torch
from alternate import alternate, machine, ratios, show, spread
from PIL import Image
from skimage import transform

from hdit_cli.data.augment import augment, draw, matrices

PROBABILITY, IMAGES, BATCH = 0.12, 128, 32


def published(path):
    spec = importlib.util.spec_from_file_location("published", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.KarrasAugmentationPipeline(a_prob=PROBABILITY)


def warped(image, matrix):
    values = np.asarray(image, dtype=np.float32) / 255
    inverse = transform.AffineTransform(matrix).inverse
    return transform.warp(values, inverse, order=3, mode="reflect", clip=False, preserve_range=True)


def milliseconds(function):
    start = time.thread_time()
    function()
    return (time.thread_time() - start) / IMAGES * 1e3


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--published")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--side", type=int, default=256)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (IMAGES, 3, chosen.side, chosen.side), dtype=torch.uint8, generator=generator)
    images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pixels]
    x0 = pixels.float() / 127.5 - 1
    matrix = matrices(draw(np.arange(IMAGES), seed=0, probability=PROBABILITY), height=chosen.side, width=chosen.side)
    pipeline = published(chosen.published) if chosen.published else None

    def theirs():
        for image, m in zip(images, matrix.numpy(), strict=True):
            if pipeline is None:
                warped(image, m)
            else:
                pipeline(image)

    def ours():
        for first in range(0, IMAGES, BATCH):
            index = np.arange(first, first + BATCH)
            augment(x0[first : first + BATCH], index=index, seed=0, probability=PROBABILITY)

    ways = {"published": lambda: milliseconds(theirs), "ours": lambda: milliseconds(ours)}
    found = alternate(ways, rounds=chosen.rounds)
    told = {f"{name}, milliseconds of a core per image": spread(times, digits=2) for name, times in found.items()}
    told["times faster"] = ratios(*found.values())
    show({"machine": machine("torch", "scikit-image", "numpy"), f"{chosen.side} px": told})


if __name__ == "__main__":
    main()
