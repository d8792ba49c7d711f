"""A critic that judges patches (PatchGAN; Isola et al. 2017, arXiv 1611.07004): which parts of a picture look real."""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

_GROUPS = 8  # of the norms; normalised for each picture by itself, so that what is said of one hangs on no other


class PatchCritic(nn.Module):
    """Convolutions that halve the map, then two that do not; each value of the last map judges the patch that it sees.

    Args:
        width: channels after the first convolution, doubled at each one after it up to 8 times as many.
        layers: convolutions that halve the map.
        pictures: channels of the pictures.
    """

    def __init__(self, *, width: int = 64, layers: int = 3, pictures: int = 3) -> None:
        super().__init__()
        widths = [pictures, *(width * min(2**i, 8) for i in range(layers + 1))]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 4, stride=1 if i == layers else 2, padding=1)
            for i, (before, after) in enumerate(pairwise(widths))
        )
        self.norms = nn.ModuleList(nn.GroupNorm(_GROUPS, after) for after in widths[2:])
        self.judge = nn.Conv2d(widths[-1], 1, 4, padding=1)
        for conv in (*self.convolutions, self.judge):
            nn.init.normal_(conv.weight, std=0.02)  # type: ignore[arg-type]
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """Pictures (N, 3, H, W) to the maps of each layer, and last the verdicts (N, 1, h, w): the larger, the more real."""
        maps, x = [], pictures
        for i, conv in enumerate(self.convolutions):
            x = conv(x)
            x = F.leaky_relu(self.norms[i - 1](x) if i else x, 0.2)
            maps.append(x)
        return [*maps, self.judge(x)]
