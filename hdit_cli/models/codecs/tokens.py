"""Tokens of a frozen VQ tokenizer as the network sees them: int64 (N, h, w)."""

import torch
from torch import Tensor

from hdit_cli.models.codecs.frozen import Frozen
from hdit_cli.models.codecs.latents import TILE
from hdit_cli.models.codecs.vq_vae import VQVAE
from hdit_cli.precision import computing


class Tokens(Frozen):
    """A codec: pixels (N, 3, H, W) in [-1, 1] to tokens int64 (N, h, w), and back.

    Args:
        network: the tokenizer; its weights and the statistics of its norm never learn here.
        sha256: of its file.
    """

    kind = "vq-vae"
    network: VQVAE

    def __init__(self, network: VQVAE, *, sha256: str) -> None:
        super().__init__(network, sha256=sha256)
        self.vocabulary = network.vocabulary

    @property
    def channels(self) -> int:
        """One token in each place."""
        return 1

    @torch.no_grad()
    def moments(self, pixels: Tensor) -> Tensor:
        """The tokens: one image at a time and in IEEE float32 at least, so that they hang on nothing else."""
        with computing("fp32", pixels.device):
            found = [self._tokens(each[None].to(self.dtype)) for each in pixels]
        return torch.cat(found) if found else self._none(pixels)

    def latent(self, stored: Tensor, noise: Tensor | None) -> Tensor:
        """The tokens: nothing is drawn."""
        return stored

    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """Tokens of pixels; nothing is drawn."""
        return self.moments(pixels)

    def decode(self, x0: Tensor) -> Tensor:
        """Pixels of tokens, in [-1, 1]; one image at a time, and a large one in pieces, so that memory stays flat."""
        pixels = [self._decoded(each[None]) for each in x0]
        side = [length * self.factor for length in x0.shape[1:]]
        return torch.cat(pixels) if pixels else torch.empty(0, 3, *side, dtype=self.dtype, device=self.device)

    def _tokens(self, pixels: Tensor) -> Tensor:
        return self.network.vquantizer.nearest(self.network.latent((pixels + 1) / 2))

    def _none(self, pixels: Tensor) -> Tensor:
        side = [length // self.factor for length in pixels.shape[2:]]
        return torch.empty(0, *side, dtype=torch.int64, device=pixels.device)

    def _decoded(self, tokens: Tensor) -> Tensor:
        height, width = tokens.shape[1:]
        rows = [self._rows(tokens, top, width) for top in range(0, height, TILE)]
        return torch.cat(rows, dim=2).clamp(0, 1) * 2 - 1

    def _rows(self, tokens: Tensor, top: int, width: int) -> Tensor:
        return torch.cat([self._piece(tokens, top, left) for left in range(0, width, TILE)], dim=3)

    def _piece(self, tokens: Tensor, top: int, left: int) -> Tensor:
        """What lies below and right of a place, TILE tokens at most, decoded with all around it that it can see.

        The decoder only convolves, so that a piece is what it would be in the whole.
        """
        cuts, inner = [], []
        for start, length in ((top, tokens.shape[1]), (left, tokens.shape[2])):
            end = min(start + TILE, length)
            first, last = max(0, start - self.network.reach), min(end + self.network.reach, length)
            cuts.append(slice(first, last))
            inner.append(slice((start - first) * self.factor, (end - first) * self.factor))
        decoded = self.network.decode_indices(tokens[:, cuts[0], cuts[1]])
        return decoded[:, :, inner[0], inner[1]]
