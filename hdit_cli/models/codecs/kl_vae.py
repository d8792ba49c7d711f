"""The autoencoder of latent diffusion (Rombach et al. 2022, arXiv 2112.10752): pixels to a Gaussian over latents and back.

Two convolutional networks. The encoder halves the map between its levels and ends in mean and log variance of each latent
value; the decoder mirrors it with one block more a level. Parameter names are those of the diffusers library's AutoencoderKL.
Maps are (N, C, H, W); pixels are in [-1, 1].
"""

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from hdit_cli.models.codecs.autoencoder import Autoencoder, Through

_EPS = 1e-6  # of every group norm
_LOG_VARIANCE = (-30.0, 20.0)  # what a log variance is clamped to, before anything is made of it


def _conv_macs(conv: nn.Conv2d, height: int, width: int) -> int:
    return height * width * conv.weight.numel()


class ResnetBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1 x 1 convolution beside it where the width changes."""

    def __init__(self, inputs: int, outputs: int, *, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs, eps=_EPS)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, outputs, eps=_EPS)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.conv_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x) + y

    def macs(self, height: int, width: int) -> int:
        return sum(_conv_macs(m, height, width) for m in self.modules() if isinstance(m, nn.Conv2d))


class Attention(nn.Module):
    """Every position attends to every other, one head as wide as the map."""

    def __init__(self, width: int, *, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, width, eps=_EPS)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor) -> Tensor:
        y = rearrange(self.group_norm(x), "n c h w -> n 1 (h w) c")
        y = F.scaled_dot_product_attention(self.to_q(y), self.to_k(y), self.to_v(y))
        return x + rearrange(self.to_out[0](y), "n 1 (h w) c -> n c h w", h=x.shape[2])

    def macs(self, height: int, width: int) -> int:
        tokens, c = height * width, self.to_q.in_features
        return 4 * tokens * c * c + 2 * tokens * tokens * c


class Downsampler(nn.Module):
    """Halves the map; the zeros are at the right and at the bottom alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsampler(nn.Module):
    """Doubles the map by repeating pixels, then convolves."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Blocks on maps of one size, each perhaps with attention behind it."""

    resizers: ClassVar[str]  # under which name the module lies that changes the size of the map
    resizer: ClassVar[Callable[[int], nn.Module]]

    def __init__(self, inputs: int, outputs: int, *, layers: int, groups: int, attends: bool, last: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(outputs if i else inputs, outputs, groups=groups) for i in range(layers)
        )
        self.attentions = nn.ModuleList(Attention(outputs, groups=groups) for _ in range(layers if attends else 0))
        self.add_module(self.resizers, nn.ModuleList([] if last else [type(self).resizer(outputs)]))

    @property
    def ends_in(self) -> nn.ModuleList:
        """What changes the size of the map: one module, or none."""
        found = self.get_submodule(self.resizers)
        assert isinstance(found, nn.ModuleList)
        return found

    def forward(self, x: Tensor) -> Tensor:
        for i, resnet in enumerate(self.resnets):
            x = resnet(x)
            if self.attentions:
                x = self.attentions[i](x)
        for resize in self.ends_in:
            x = resize(x)
        return x

    def macs(self, height: int, width: int) -> int:
        """Without what changes the size of the map."""
        return sum(block.macs(height, width) for block in (*self.resnets, *self.attentions))  # type: ignore[operator]


class DownBlock(Level):
    """A level of the encoder."""

    resizers, resizer = "downsamplers", Downsampler


class UpBlock(Level):
    """A level of the decoder."""

    resizers, resizer = "upsamplers", Upsampler


class MidBlock(nn.Module):
    """Block, attention, block, on the smallest map."""

    def __init__(self, width: int, *, groups: int, attends: bool) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([Attention(width, groups=groups)] if attends else [])
        self.resnets = nn.ModuleList(ResnetBlock(width, width, groups=groups) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)

    def macs(self, height: int, width: int) -> int:
        return sum(block.macs(height, width) for block in (*self.resnets, *self.attentions))  # type: ignore[operator]


class Encoder(nn.Module):
    """Pixels to mean and log variance, stacked."""

    def __init__(
        self,
        pictures: int,
        channels: int,
        *,
        widths: Sequence[int],
        layers: int,
        groups: int,
        attends: Sequence[bool],
        middle: bool,
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(pictures, widths[0], 3, padding=1)
        befores = (widths[0], *widths[:-1])
        self.down_blocks = nn.ModuleList(
            DownBlock(a, b, layers=layers, groups=groups, attends=attends[i], last=i == len(widths) - 1)
            for i, (a, b) in enumerate(zip(befores, widths, strict=True))
        )
        self.mid_block = MidBlock(widths[-1], groups=groups, attends=middle)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=_EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))

    def macs(self, height: int, width: int) -> int:
        total = _conv_macs(self.conv_in, height, width)
        for block in self.down_blocks:
            total += block.macs(height, width)  # type: ignore[operator]
            for down in block.downsamplers:  # type: ignore[union-attr]
                height, width = height // 2, width // 2
                total += _conv_macs(down.conv, height, width)
        return total + self.mid_block.macs(height, width) + _conv_macs(self.conv_out, height, width)


class Decoder(nn.Module):
    """Latents to pixels; `up_blocks.0` is the innermost level."""

    def __init__(
        self,
        pictures: int,
        channels: int,
        *,
        widths: Sequence[int],
        layers: int,
        groups: int,
        attends: Sequence[bool],
        middle: bool,
    ) -> None:
        super().__init__()
        inner = tuple(reversed(widths))
        self.conv_in = nn.Conv2d(channels, inner[0], 3, padding=1)
        self.mid_block = MidBlock(inner[0], groups=groups, attends=middle)
        befores = (inner[0], *inner[:-1])
        self.up_blocks = nn.ModuleList(
            UpBlock(a, b, layers=layers + 1, groups=groups, attends=attends[i], last=i == len(inner) - 1)
            for i, (a, b) in enumerate(zip(befores, inner, strict=True))
        )
        self.conv_norm_out = nn.GroupNorm(groups, inner[-1], eps=_EPS)
        self.conv_out = nn.Conv2d(inner[-1], pictures, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))

    def macs(self, height: int, width: int) -> int:
        total = _conv_macs(self.conv_in, height, width) + self.mid_block.macs(height, width)
        for block in self.up_blocks:
            total += block.macs(height, width)  # type: ignore[operator]
            for up in block.upsamplers:  # type: ignore[union-attr]
                height, width = 2 * height, 2 * width
                total += _conv_macs(up.conv, height, width)
        return total + _conv_macs(self.conv_out, height, width)


class Gaussian:
    """A diagonal Gaussian over latents.

    Args:
        moments: (N, 2 C, h, w): means, then log variances, which are clamped to [-30, 20].
    """

    def __init__(self, moments: Tensor) -> None:
        self.mean, log_variance = moments.chunk(2, dim=1)
        self.log_variance = log_variance.clamp(*_LOG_VARIANCE)

    @property
    def std(self) -> Tensor:
        return torch.exp(0.5 * self.log_variance)

    def sample(self, noise: Tensor) -> Tensor:
        """mean + std noise."""
        return self.mean + self.std * noise

    def kl(self) -> Tensor:
        """Kullback-Leibler divergence from N(0, 1) in nats, summed over the latent of each image: (N,)."""
        each = self.mean.square() + self.log_variance.exp() - 1 - self.log_variance
        return 0.5 * each.flatten(1).sum(1)

    def nll(self, z: Tensor) -> Tensor:
        """-log density of latents (N, C, h, w) in nats, summed over each image: (N,)."""
        each = _LN_2PI + self.log_variance + (z - self.mean).square() / self.log_variance.exp()
        return 0.5 * each.flatten(1).sum(1)


_LN_2PI = 1.8378770664093453


class KLVAE(Autoencoder):
    """Encoder, decoder, and the 1 x 1 convolutions between them and the latent, where there are any.

    Args:
        widths: channels of each level from the outermost; the map is halved between levels.
        channels: of the latent.
        layers: blocks of a level of the encoder; the decoder has one more.
        groups: of the group norms; every width is a multiple.
        attends: levels, counted from the outermost, whose blocks are each followed by attention.
        middle_attention: whether there is attention on the smallest map.
        quant, post_quant: whether there is a 1 x 1 convolution after the encoder, and before the decoder.
        pictures: channels of the pixels.
    """

    title: ClassVar[str] = "KL autoencoder"
    paper: ClassVar[str] = "2112.10752"
    architecture: ClassVar[str] = "kl-autoencoder"
    gaussian: ClassVar[bool] = True

    def __init__(
        self,
        *,
        widths: Sequence[int],
        channels: int,
        layers: int = 2,
        groups: int = 32,
        attends: Sequence[int] = (),
        middle_attention: bool = True,
        quant: tuple[bool, bool] = (True, True),
        pictures: int = 3,
    ) -> None:
        super().__init__()
        if bad := [width for width in widths if width % groups]:
            raise ValueError(f"a width of {bad[0]} is no multiple of {groups} groups")
        self.channels, self.factor, self.pictures = channels, 2 ** (len(widths) - 1), pictures
        self.latents = channels
        flags = [level in set(attends) for level in range(len(widths))]
        same = {"widths": widths, "layers": layers, "groups": groups, "middle": middle_attention}
        self.encoder = Encoder(pictures, channels, attends=flags, **same)
        self.decoder = Decoder(pictures, channels, attends=flags[::-1], **same)
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1) if quant[0] else None
        self.post_quant_conv = nn.Conv2d(channels, channels, 1) if quant[1] else None

    def moments(self, pixels: Tensor) -> Tensor:
        """Pixels (N, 3, H, W) in [-1, 1], H and W multiples of `factor`, to means and log variances (N, 2 C, h, w)."""
        moments = self.encoder(pixels)
        return moments if self.quant_conv is None else self.quant_conv(moments)

    def encode(self, pixels: Tensor) -> Gaussian:
        """The Gaussian over the latents of pixels (N, 3, H, W) in [-1, 1]."""
        return Gaussian(self.moments(pixels))

    def decode(self, z: Tensor) -> Tensor:
        """Latents (N, C, h, w) to pixels (N, 3, H, W), which may lie beyond [-1, 1]."""
        return self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z))

    def forward(self, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Gaussian]:
        """What pixels become by way of the latent that `noise` (N, C, h, w) draws, and its Gaussian."""
        gaussian = self.encode(pixels)
        return self.decode(gaussian.sample(noise)), gaussian

    @property
    def last(self) -> Tensor:
        return self.decoder.conv_out.weight

    def through(self, pixels: Tensor, noise: Tensor | None) -> Through:
        """As `Autoencoder.through`; charged for the divergence from N(0, 1), in nats of the whole latent."""
        gaussian = self.encode(pixels)
        z = gaussian.mean if noise is None else gaussian.sample(noise)
        return Through(self.decode(z), gaussian.kl(), gaussian.mean, gaussian.std)

    def macs_each(self, height: int, width: int) -> tuple[int, int]:
        """Multiply-accumulates of encoding, and of decoding, a picture of this size."""
        h, w = height // self.factor, width // self.factor
        between = [
            _conv_macs(conv, h, w) if conv is not None else 0 for conv in (self.quant_conv, self.post_quant_conv)
        ]
        return self.encoder.macs(height, width) + between[0], self.decoder.macs(h, w) + between[1]
