"""Inception v3 as pytorch-fid runs it: the original FID network, in the layout of its file of weights.

Szegedy et al. 2015 (arXiv 1512.00567), with what TensorFlow's file of 2015-12-05 does otherwise: average pooling leaves
the padding out of the mean, the last block pools by the maximum, and there are 1,008 classes. Pictures are resized by
torch's bilinear filter without antialiasing, which clean-fid warns of; that is pytorch-fid's protocol.

Parameter names are those of the file pt_inception-2015-12-05-6726825d.pth, which `hdit convert` turns into safetensors.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from hdit_cli import files, runtime
from hdit_cli.errors import DataError
from hdit_cli.metrics.feature_net import BATCH, channels_last, rows

URL = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
FILE = "pt_inception-2015-12-05.safetensors"
SOURCE_SHA256 = "6726825d"  # the published file's begins so; its name says it
SOURCE = "source.sha256"  # metadata of the converted file: the SHA-256 of what it was made from
SIDE = 299
RESIZE = "bilinear-299-no-antialias"
FEATURES, CLASSES = 2048, 1008
SPATIAL_CHANNELS, SPATIAL_SIDE = 7, 17  # of what sFID takes (Nash et al. 2021, arXiv 2103.03841)


class Conv(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(
        self, inner: int, outer: int, kernel: tuple[int, int], *, stride: int = 1, padding: bool = False
    ) -> None:
        super().__init__()
        around = (kernel[0] // 2, kernel[1] // 2) if padding else (0, 0)
        self.conv = nn.Conv2d(inner, outer, kernel, stride=stride, padding=around, bias=False)
        self.bn = nn.BatchNorm2d(outer, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def chain(inner: int, *steps: tuple[int, tuple[int, int]]) -> list[Conv]:
    """Convolutions one after another, sizes kept."""
    made = []
    for outer, kernel in steps:
        made.append(Conv(inner, outer, kernel, padding=True))
        inner = outer
    return made


def average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class MixedA(nn.Module):
    """35 x 35."""

    def __init__(self, inner: int, *, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(inner, 64, (1, 1))
        self.branch5x5_1, self.branch5x5_2 = chain(inner, (48, (1, 1)), (64, (5, 5)))
        doubled = chain(inner, (64, (1, 1)), (96, (3, 3)), (96, (3, 3)))
        self.branch3x3dbl_1, self.branch3x3dbl_2, self.branch3x3dbl_3 = doubled
        self.branch_pool = Conv(inner, pooled, (1, 1))

    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        doubled = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, doubled, self.branch_pool(average(x))], 1)


class MixedB(nn.Module):
    """35 x 35 => 17 x 17."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.branch3x3 = Conv(inner, 384, (3, 3), stride=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = chain(inner, (64, (1, 1)), (96, (3, 3)))
        self.branch3x3dbl_3 = Conv(96, 96, (3, 3), stride=2)

    def forward(self, x: Tensor) -> Tensor:
        doubled = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), doubled, F.max_pool2d(x, 3, stride=2)], 1)


class MixedC(nn.Module):
    """17 x 17; a 7 x 7 filter as a row and a column."""

    def __init__(self, inner: int, *, c: int) -> None:
        super().__init__()
        row, column = (1, 7), (7, 1)
        self.branch1x1 = Conv(inner, 192, (1, 1))
        single = chain(inner, (c, (1, 1)), (c, row), (192, column))
        self.branch7x7_1, self.branch7x7_2, self.branch7x7_3 = single
        doubled = chain(inner, (c, (1, 1)), (c, column), (c, row), (c, column), (192, row))
        for number, conv in enumerate(doubled, start=1):
            self.add_module(f"branch7x7dbl_{number}", conv)
        self.branch_pool = Conv(inner, 192, (1, 1))

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        doubled = x
        for number in range(1, 6):
            doubled = self.get_submodule(f"branch7x7dbl_{number}")(doubled)
        return torch.cat([self.branch1x1(x), single, doubled, self.branch_pool(average(x))], 1)


class MixedD(nn.Module):
    """17 x 17 => 8 x 8."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = Conv(inner, 192, (1, 1)), Conv(192, 320, (3, 3), stride=2)
        narrow = chain(inner, (192, (1, 1)), (192, (1, 7)), (192, (7, 1)))
        self.branch7x7x3_1, self.branch7x7x3_2, self.branch7x7x3_3 = narrow
        self.branch7x7x3_4 = Conv(192, 192, (3, 3), stride=2)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([three, seven, F.max_pool2d(x, 3, stride=2)], 1)


class MixedE(nn.Module):
    """8 x 8; the last one pools by the maximum, as the published network does."""

    def __init__(self, inner: int, *, last: bool) -> None:
        super().__init__()
        self.last = last
        self.branch1x1 = Conv(inner, 320, (1, 1))
        self.branch3x3_1 = Conv(inner, 384, (1, 1))
        self.branch3x3_2a, self.branch3x3_2b = (
            Conv(384, 384, (1, 3), padding=True),
            Conv(384, 384, (3, 1), padding=True),
        )
        self.branch3x3dbl_1, self.branch3x3dbl_2 = chain(inner, (448, (1, 1)), (384, (3, 3)))
        self.branch3x3dbl_3a = Conv(384, 384, (1, 3), padding=True)
        self.branch3x3dbl_3b = Conv(384, 384, (3, 1), padding=True)
        self.branch_pool = Conv(inner, 192, (1, 1))

    def forward(self, x: Tensor) -> Tensor:
        three, doubled = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.last else average(x)
        return torch.cat(
            [
                self.branch1x1(x),
                self.branch3x3_2a(three),
                self.branch3x3_2b(three),
                self.branch3x3dbl_3a(doubled),
                self.branch3x3dbl_3b(doubled),
                self.branch_pool(pooled),
            ],
            1,
        )


class InceptionV3(nn.Module):
    """(N, 3, 299, 299) in [-1, 1] => (N, 2048); `fc` is the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, (3, 3), stride=2)
        self.Conv2d_2a_3x3 = Conv(32, 32, (3, 3))
        self.Conv2d_2b_3x3 = Conv(32, 64, (3, 3), padding=True)
        self.Conv2d_3b_1x1 = Conv(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = Conv(80, 192, (3, 3))
        self.Mixed_5b = MixedA(192, pooled=32)
        self.Mixed_5c = MixedA(256, pooled=64)
        self.Mixed_5d = MixedA(288, pooled=64)
        self.Mixed_6a = MixedB(288)
        self.Mixed_6b = MixedC(768, c=128)
        self.Mixed_6c = MixedC(768, c=160)
        self.Mixed_6d = MixedC(768, c=160)
        self.Mixed_6e = MixedC(768, c=192)
        self.Mixed_7a = MixedD(768)
        self.Mixed_7b = MixedE(1280, last=False)
        self.Mixed_7c = MixedE(2048, last=True)
        self.fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.both(x)[0]

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Also what sFID takes, (N, 7, 17, 17): the first channels of a 1 x 1 branch in the last block but one of 17 x 17."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))  # (N, 64, 147, 147)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))  # (N, 192, 71, 71)
        x = F.max_pool2d(x, 3, stride=2)  # (N, 192, 35, 35)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))  # (N, 288, 35, 35)
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))  # (N, 768, 17, 17)
        spatial = self.Mixed_6d.branch1x1(x)[:, :SPATIAL_CHANNELS]
        x = self.Mixed_6e(self.Mixed_6d(x))
        return self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))).mean((2, 3)), spatial


def shapes() -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors that a file of weights may hold, by name."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in InceptionV3().state_dict().items()}


def parameter_names() -> set[str]:
    """Names of the tensors that a file of weights must hold."""
    return {name for name in shapes() if not name.endswith("num_batches_tracked")}


def _resized(picture: np.ndarray) -> np.ndarray:  # uint8 (H, W, 3) => float32 (3, 299, 299) in [0, 1]
    x = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
    return F.interpolate(x, size=(SIDE, SIDE), mode="bilinear", align_corners=False)[0].numpy()


class FidInception:
    """pytorch-fid's feature net; a `FeatureNet`."""

    kind, resize, spatial = "pytorch-fid", RESIZE, 0

    def __init__(self, path: Path | None = None, *, device: torch.device | None = None) -> None:
        """Loads a file that `hdit convert` made: `path`, else the one in the cache.

        Raises:
            DataError: missing, damaged, or no such weights.
        """
        self.path = path or runtime.cache_folder() / FILE
        if not self.path.is_file():
            raise DataError(
                f"the pytorch-fid weights are missing: there is no file {self.path}",
                hint=f"download {URL} (95 MB), then `hdit convert {Path(URL).name} --out {self.path}`",
            )
        self.classifier = True
        self.sha256 = files.sha256(self.path)
        self.device = device or torch.device("cpu")
        tensors, source = self._read()
        self.published = source.startswith(SOURCE_SHA256)
        self._net = InceptionV3().eval().requires_grad_(False)
        try:
            self._net.load_state_dict(tensors, strict=False)  # batches that were counted in training: not in every file
        except RuntimeError as error:
            problem = str(error).splitlines()[1].strip()
            raise DataError(f"{self.path} does not fit Inception v3: {problem}", hint=f"convert {URL}") from error
        self._output = tensors["fc.weight"].float().numpy()  # (1008, 2048)
        self._net.to(self.device)

    def _read(self) -> tuple[dict[str, Tensor], str]:
        try:
            with safe_open(self.path, framework="pt") as stored:
                tensors = {name: stored.get_tensor(name) for name in stored.offset_keys()}
                source = (stored.metadata() or {}).get(SOURCE, "")
        except (SafetensorError, OSError) as error:
            raise DataError(
                f"{self.path} is no safetensors file", hint="`hdit convert FILE.pth --out FILE.safetensors` makes one"
            ) from error
        missing = sorted(parameter_names() - set(tensors))
        if missing:
            raise DataError(f"{self.path} does not fit Inception v3: it has no {missing[0]}", hint=f"convert {URL}")
        return tensors, source

    def __call__(self, pictures: list[np.ndarray]) -> np.ndarray:
        """uint8 pictures (H, W, 3), of any sizes => float32 (N, 2048)."""
        x = np.stack([_resized(picture) for picture in pictures])
        return rows(
            x, lambda x: self._net(channels_last(2 * x - 1)), device=self.device, batch=BATCH.get(self.device.type, 16)
        )

    def logits(self, features: np.ndarray) -> np.ndarray:
        """float (N, 2048) features => (N, 1008), without the bias: so the Inception Score was published."""
        return features @ self._output.T


def _resized_as_tensorflow(picture: np.ndarray) -> np.ndarray:  # uint8 (H, W, 3) => float32 (3, 299, 299) in [0, 255]
    """Bilinear between the pixel at i * size / 299, rounded down, and the next: TensorFlow's filter before half-pixel centres."""
    x = picture.astype(np.float32)
    for axis in (1, 0):
        size = x.shape[axis]
        place = np.arange(SIDE, dtype=np.float32) * np.float32(size / SIDE)
        first = place.astype(np.int64)
        share = (place - first).astype(np.float32)
        share = share[:, None] if axis == 1 else share[:, None, None]
        low, high = (x.take(np.minimum(index, size - 1), axis=axis) for index in (first, first + 1))
        x = low + (high - low) * share
    return np.ascontiguousarray(x.transpose(2, 0, 1))


class ADMInception(FidInception):
    """The same weights as the evaluation suite of guided-diffusion (ADM) feeds them, with spatial features; a `FeatureNet`.

    The suite runs TensorFlow's graph, which resizes as TensorFlow did in 2015: scores against its reference files, in which
    DiT's and ADM's tables are given, take this net. Spatial features are flattened row by row, the channel fastest.
    """

    kind, resize = "adm", "bilinear-299-tensorflow"
    spatial = SPATIAL_CHANNELS * SPATIAL_SIDE**2  # 2,023

    def __call__(self, pictures: list[np.ndarray]) -> np.ndarray:
        """uint8 pictures (H, W, 3), of any sizes => float32 (N, 2048 + 2023): pooled features, then spatial ones."""
        x = np.stack([_resized_as_tensorflow(picture) for picture in pictures])
        return rows(x, self._run, device=self.device, batch=BATCH.get(self.device.type, 16))

    def _run(self, x: Tensor) -> Tensor:
        pooled, spatial = self._net.both(channels_last((x - 128) / 128))
        return torch.cat([pooled, spatial.permute(0, 2, 3, 1).flatten(1)], dim=1)
