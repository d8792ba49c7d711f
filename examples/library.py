"""The package as a library: load a checkpoint, call its network and its denoiser, make images of one class.

python examples/library.py runs/quickstart/ckpt.safetensors pictures.png
"""

import argparse
from pathlib import Path

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

import hdit_cli


def to_x0(images: Tensor) -> Tensor:  # uint8 (N, H, W, 3) => float (N, 3, H, W) in [-1, 1]
    return rearrange(images, "n h w c -> n c h w").float() / 127.5 - 1


@torch.inference_mode()
def one_step(model: hdit_cli.Model, images: Tensor, *, sigma: float) -> tuple[Tensor, Tensor]:
    """Noises images and denoises them again with one call.

    Args:
        images: uint8 (N, H, W, 3).
        sigma: noise level; images lie in [-1, 1], so 0.3 is a little and 10 is nearly all.

    Returns:
        noisy and denoised, both float (N, 3, H, W).
    """
    x0 = to_x0(images).to(model.device)
    levels = torch.full((len(x0),), sigma, device=model.device)
    noisy = x0 + sigma * torch.randn_like(x0)
    return noisy, model.denoiser(noisy, levels)


def main() -> None:
    parser = argparse.ArgumentParser(description="Loads a checkpoint and makes four pictures of each class.")
    parser.add_argument("checkpoint", type=Path, help="a run folder, or its ckpt.safetensors")
    parser.add_argument("out", type=Path, help="a picture to write")
    parser.add_argument("--steps", type=int, default=20, help="steps of the sampler (default 20)")
    options = parser.parse_args()

    model = hdit_cli.load(options.checkpoint)
    print(f"step {model.step}, {model.weights} weights, classes: {', '.join(model.classes) or 'none'}")

    # the bare network: an image and a noise level for each, and a label where it has classes
    height, width = model.image_size
    x = torch.randn(2, model.channels, height, width, device=model.device)
    sigma = torch.tensor([0.1, 1.0], device=model.device)
    with torch.inference_mode():
        print("network:", tuple(model.network(x, sigma).shape))

    # image i is a function of (seed, i); "all" deals the images evenly over the classes
    label = "all" if model.classes else None
    n = 4 * max(1, len(model.classes))
    images = hdit_cli.generate(model, n=n, seed=0, steps=options.steps, label=label)  # uint8 (N, H, W, 3)

    # what the model makes of its own pictures under a little noise
    noisy, denoised = one_step(model, images, sigma=0.3)
    clean = to_x0(images).to(model.device)
    before, after = (float((each - clean).square().mean().sqrt()) for each in (noisy, denoised))
    print(f"root mean square error at sigma 0.3: {before:.3f} before the denoiser, {after:.3f} after it")

    grid = rearrange(images, "(rows four) h w c -> (rows h) (four w) c", four=4)
    Image.fromarray(grid.numpy()).save(options.out)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
