"""Paella's tokenizer (Rampas et al. 2022, arXiv 2211.07292): pixels to the nearest rows of a codebook and back.

Convolutional, with a few blocks a level and most of them on the smallest map. Parameter names are those of the authors'
published weights. Maps are (N, C, H, W); pixels are in [0, 1], as its weights were trained.
"""

from collections.abc import Iterable, Iterator
from typing import ClassVar, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from hdit_cli import runtime
from hdit_cli.models.codecs.autoencoder import Autoencoder, Through
from hdit_cli.models.codecs.counts import forget_counts

_EPS = 1e-6
_LAYERS = (nn.Conv2d, nn.Linear)
_DISTANCES = 1 << 26  # between places and codes that are held at a time
COMMITMENT = 0.25  # weight of the pull of the encoder towards its codes, beside 1 for the pull of the codes


def layer_norm(x: Tensor) -> Tensor:
    """Over the channels of a map (N, C, H, W), without weights."""
    return F.layer_norm(x.movedim(1, -1), x.shape[1:2], eps=_EPS).movedim(-1, 1)


class Edges(nn.Module):
    """Repeats the outermost values of a map once around it.

    As `nn.ReplicationPad2d(1)`, whose gradient has another layout than torch's compiler is told, so that compiled code stops.
    """

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x[..., :1], x, x[..., -1:]], dim=3)
        return torch.cat([x[:, :, :1], x, x[:, :, -1:]], dim=2)


class ResBlock(nn.Module):
    """Depthwise convolution and a perceptron per pixel, each beside x and scaled by learned numbers that are 0 at the start."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.depthwise = nn.Sequential(Edges(), nn.Conv2d(width, width, 3, groups=width))
        self.channelwise = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.gammas = nn.Parameter(torch.zeros(6))
        for layer in (self.depthwise[1], self.channelwise[0], self.channelwise[2]):
            nn.init.xavier_uniform_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        g = self.gammas
        x = x + g[2] * self.depthwise(layer_norm(x) * (1 + g[0]) + g[1])
        y = (layer_norm(x) * (1 + g[3]) + g[4]).movedim(1, -1)
        return x + g[5] * self.channelwise(y).movedim(-1, 1)

    def macs(self, height: int, width: int) -> int:
        return height * width * sum(each.weight.numel() for each in self.modules() if isinstance(each, _LAYERS))


class Norm(nn.BatchNorm2d):
    """A batch norm that does not count its batches.

    In training the statistics are those of all processes' images, and the running ones move when they are told to: a step that is
    refused must leave no trace in them.
    """

    seen: tuple[Tensor, Tensor] | None = None  # mean and variance of the last batch

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        forget_counts(self)

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        over = (0, 2, 3)
        wide = input.float() if input.dtype in (torch.bfloat16, torch.float16) else input
        values = runtime.summed(wide.new_tensor(wide.numel() / wide.shape[1]))
        mean = runtime.summed(wide.sum(over)) / values
        centred = wide - mean[:, None, None]
        variance = runtime.summed(centred.square().sum(over)) / values
        self.seen = (mean.detach(), (variance * values / (values - 1).clamp(min=1)).detach())
        scale = (variance + self.eps).rsqrt() * self.weight
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)

    @torch.no_grad()
    def follow(self, keep: Tensor) -> None:
        """Moves the running statistics towards the last batch's where `keep` is 1."""
        if self.seen is None or self.momentum is None:
            return
        for running, now in zip((self.running_mean, self.running_var), self.seen, strict=True):
            assert running is not None
            running.copy_(torch.where(keep > 0, torch.lerp(running, now.to(running.dtype), self.momentum), running))
        self.seen = None


class Quantised(NamedTuple):
    """What quantising made.

    Attributes:
        codes: (N, C, h, w), rows of the codebook, through which gradients go to z as if it were they.
        indices: int64 (N, h, w).
        loss: 0-d, the pull of the codes towards z and, 0.25 times, of z towards its codes; means over all values.
        each: (N,), the same of each image.
    """

    codes: Tensor
    indices: Tensor
    loss: Tensor
    each: Tensor


class Quantiser(nn.Module):
    """A codebook (K, C), U(-1/K, 1/K) at the start."""

    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self.codebook = nn.Embedding(codes, width)
        nn.init.uniform_(self.codebook.weight, -1 / codes, 1 / codes)

    def nearest(self, z: Tensor) -> Tensor:
        """Index of the nearest row by Euclidean distance, the first of equals: (N, C, h, w) to int64 (N, h, w)."""
        rows, book = rearrange(z, "n c h w -> (n h w) c"), self.codebook.weight
        at_once = max(1, _DISTANCES // len(book))
        with torch.autocast(z.device.type, enabled=False):  # in bfloat16 the nearest is often another one
            found = [self._nearest(some) for some in rows.to(book.dtype).split(at_once)]
        return torch.cat(found).view(z.shape[0], *z.shape[2:])

    def _nearest(self, rows: Tensor) -> Tensor:
        book = self.codebook.weight
        distance = rows.square().sum(1, keepdim=True) - 2 * rows @ book.mT + book.square().sum(1)
        return distance.argmin(1)

    def rows(self, indices: Tensor) -> Tensor:
        """int64 (N, h, w) to the rows (N, C, h, w)."""
        return self.codebook(indices).movedim(-1, 1)

    def forward(self, z: Tensor) -> Quantised:
        indices = self.nearest(z.detach())
        codes = self.rows(indices)
        pull, commitment = (codes - z.detach()).square(), (z - codes.detach()).square()
        loss = pull.mean() + COMMITMENT * commitment.mean()
        each = pull.flatten(1).mean(1) + COMMITMENT * commitment.flatten(1).mean(1)
        return Quantised(z + (codes - z).detach(), indices, loss, each)


class Encoded(NamedTuple):
    """Pixels in latent space: what was quantised and what not, both divided by `scale_factor`; tokens; the loss of quantising."""

    quantised: Tensor
    z: Tensor
    indices: Tensor
    loss: Tensor


class VQVAE(Autoencoder):
    """Encoder, codebook, decoder.

    Args:
        levels: of the map; its side is halved once by joining 2 x 2 pixels and once between levels.
        bottleneck_blocks: blocks of the decoder on the smallest map; every other level has one.
        c_hidden: width of the smallest map, halved at each level outwards.
        c_latent: channels of a code.
        codebook_size: number of codes.
        scale_factor: what latents are divided by for a network that draws them.
        codebook_start: "uniform" as the authors begin, U(-1/K, 1/K), or "normal", N(0, 1), as the batch norm has the latents: then
            far more codes are used.
    """

    title: ClassVar[str] = "Vector-quantised autoencoder"
    paper: ClassVar[str] = "2211.07292"
    architecture: ClassVar[str] = "paella-vq"
    gaussian: ClassVar[bool] = False

    def __init__(
        self,
        *,
        levels: int = 2,
        bottleneck_blocks: int = 12,
        c_hidden: int = 384,
        c_latent: int = 4,
        codebook_size: int = 8192,
        scale_factor: float = 0.3764,
        codebook_start: str = "uniform",
    ) -> None:
        super().__init__()
        self.factor, self.vocabulary, self.channels, self.scale_factor = (
            2**levels,
            codebook_size,
            c_latent,
            scale_factor,
        )
        widths = [c_hidden // 2 ** (levels - 1 - i) for i in range(levels)]
        self.in_block = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, widths[0], 1))
        down: list[nn.Module] = []
        for i, width in enumerate(widths):
            if i:
                down.append(nn.Conv2d(widths[i - 1], width, 4, stride=2, padding=1))
            down.append(ResBlock(width, 4 * width))
        down.append(nn.Sequential(nn.Conv2d(widths[-1], c_latent, 1, bias=False), Norm(c_latent)))
        self.down_blocks = nn.Sequential(*down)
        self.latents = c_latent
        self.vquantizer = Quantiser(codebook_size, c_latent)
        if codebook_start == "normal":
            nn.init.normal_(self.vquantizer.codebook.weight)
        up: list[nn.Module] = [nn.Sequential(nn.Conv2d(c_latent, widths[-1], 1))]
        for i in reversed(range(levels)):
            up += [ResBlock(widths[i], 4 * widths[i]) for _ in range(bottleneck_blocks if i == levels - 1 else 1)]
            if i:
                up.append(nn.ConvTranspose2d(widths[i], widths[i - 1], 4, stride=2, padding=1))
        self.up_blocks = nn.Sequential(*up)
        self.out_block = nn.Sequential(nn.Conv2d(widths[0], 12, 1), nn.PixelShuffle(2))

    def latent(self, pixels: Tensor) -> Tensor:
        """What is quantised, (N, C, h, w), of pixels (N, 3, H, W) in [0, 1]; H and W are multiples of `factor`."""
        return self.down_blocks(self.in_block(pixels))

    def encode(self, pixels: Tensor) -> Encoded:
        """Pixels (N, 3, H, W) in [0, 1] to tokens, and to codes through which gradients go."""
        z = self.latent(pixels)
        found = self.vquantizer(z)
        return Encoded(found.codes / self.scale_factor, z / self.scale_factor, found.indices, found.loss)

    def decode(self, x: Tensor) -> Tensor:
        """Latents (N, C, h, w), divided by `scale_factor`, to pixels, which may lie beyond [0, 1]."""
        return self.out_block(self.up_blocks(x * self.scale_factor))

    def decode_indices(self, indices: Tensor) -> Tensor:
        """Tokens int64 (N, h, w) to pixels, which may lie beyond [0, 1]."""
        return self.out_block(self.up_blocks(self.vquantizer.rows(indices)))

    @property
    def reach(self) -> int:
        """How many tokens away at most the pixels of a token change with another one."""
        levels = sum(isinstance(module, nn.ConvTranspose2d) for module in self.up_blocks) + 1
        blocks = sum(isinstance(module, ResBlock) for module in self.up_blocks)
        return blocks + levels

    def macs_each(self, height: int, width: int) -> tuple[int, int]:
        """Multiply-accumulates of encoding a picture of this size, with the search for the nearest codes, and of decoding it."""
        h, w = height // self.factor, width // self.factor
        encode = _macs([*self.in_block, *self.down_blocks], height, width)
        search = h * w * self.vquantizer.codebook.weight.numel()
        return encode + search, _macs([*self.up_blocks, *self.out_block], h, w)

    # While it is trained

    @property
    def last(self) -> Tensor:
        return self.out_block[0].weight  # type: ignore[return-value]

    @property
    def codebook(self) -> Tensor:
        """(K, C)."""
        return self.vquantizer.codebook.weight

    def norms(self) -> list[Norm]:
        """What keeps running statistics."""
        return [module for module in self.modules() if isinstance(module, Norm)]

    def through(self, pixels: Tensor, noise: Tensor | None = None) -> Through:
        """As `Autoencoder.through`; charged for the distance between latent and codes."""
        z = self.latent((pixels + 1) / 2)
        found = self.vquantizer(z)
        picture = self.out_block(self.up_blocks(found.codes))
        return Through(picture * 2 - 1, found.each, z, found.indices)


def _macs(modules: Iterable[nn.Module], height: int, width: int) -> int:
    """Multiply-accumulates of modules one after another on a map of this size."""
    total = 0
    for module in _flat(modules):
        if isinstance(module, nn.PixelUnshuffle):
            height, width = height // 2, width // 2
        elif isinstance(module, ResBlock):
            total += module.macs(height, width)
        elif isinstance(module, nn.Conv2d):
            height, width = height // module.stride[0], width // module.stride[0]
            total += height * width * module.weight.numel()
        elif isinstance(module, nn.ConvTranspose2d):
            total += height * width * module.weight.numel()
            height, width = 2 * height, 2 * width
    return total


def _flat(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    for module in modules:
        yield from module if isinstance(module, nn.Sequential) else (module,)
