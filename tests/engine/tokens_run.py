"""A codec of tokens and a small Paella on it, which trains in seconds."""

from pathlib import Path

import torch
from tiny_run import tiny_recipe

from hdit_cli.engine.run.codec_file import write
from hdit_cli.models.codecs.vq_vae import VQVAE as Network
from hdit_cli.recipe.vq_vae import VQVAE

K = 16
SECTION = VQVAE(levels=2, bottleneck_blocks=1, c_hidden=8, c_latent=4, codebook_size=K)
MODEL = {
    "type": "paella", "size": [4, 4], "vocabulary": K, "embedding": 8, "time_features": 8, "patch": 1, "widths": [8, 16],
    "heads": [0, 2], "blocks": [1, 1], "kinds": ["CT", "CTA"], "condition_width": 8, "text_width": 0, "clip_width": 0,
    "classes": "data",
}  # fmt: skip


def token_codec(path: Path, seed: int = 0) -> Path:
    """A codec of random weights whose codes lie where its maps are, so that pictures become different tokens."""
    torch.manual_seed(seed)
    network = Network(**SECTION.arguments()).eval()
    with torch.no_grad():
        for module in network.modules():
            if hasattr(module, "gammas"):
                torch.nn.init.normal_(module.gammas, std=0.5)
        z = network.latent(torch.rand(4, 3, 32, 32)).movedim(1, -1).flatten(0, 2)
        network.vquantizer.codebook.weight.copy_(z[torch.randperm(len(z))[:K]])
    write(path, network.state_dict(), SECTION)
    return path


def token_recipe(codec: Path, **changes):
    return tiny_recipe(
        model=MODEL,
        task={"type": "tokens"},
        codec__path=str(codec),
        **{"sample": {"n": 4, "steps": 3, "batch_size": 4, "cfg": 2.0}, **changes},
    )
