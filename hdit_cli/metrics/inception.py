"""Features of Inception v3 as the clean-fid protocol takes them (Parmar et al. 2022, arXiv 2104.11222).

The net is NVIDIA's TorchScript copy of the original FID network. Pictures are resized by Pillow's bicubic filter in
float32, which filters well when shrinking, and never rounded; tests hold both steps to clean-fid's own results.
"""

import hashlib
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, cast
from urllib.request import urlopen

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hdit_cli import files, runtime
from hdit_cli.errors import DataError
from hdit_cli.metrics.feature_net import BATCH, channels_last, rows

URL = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt"
FILE = "inception-2015-12-05.pt"
SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"  # of the published file, 95,607,719 bytes
SIDE = 299
RESIZE = "bicubic-299"  # clean-fid's "clean" mode; part of a score's description and of a cache's key

Progress = Callable[[int, int], None]  # bytes done, bytes in all


def published_path() -> Path:
    """Where the published file is looked for, and put when downloaded."""
    return runtime.cache_folder() / FILE


def locate(path: Path | None = None) -> Path | None:
    """The weights file at hand, unchecked: `path`, or the file in the folder `path`, or in the cache; else None."""
    wanted = published_path() if path is None else path
    wanted = wanted / FILE if wanted.is_dir() else wanted
    return wanted if wanted.is_file() else None


def _missing(reason: str) -> DataError:
    return DataError(
        f"the Inception weights for FID and KID are missing: {reason}",
        hint=f"download {URL} (96 MB) on any machine and put it at {published_path()}, "
        "or give it with --inception PATH; `--metrics swd` needs no weights",
    )


def _copy(source: BinaryIO, target: BinaryIO, *, total: int, progress: Progress) -> str:
    digest, done = hashlib.sha256(), 0
    while True:
        try:
            block = source.read(1 << 20)
        except OSError as error:  # the network, not the disk
            raise _missing(f"the download broke off ({error})") from error
        if not block:
            return digest.hexdigest()
        target.write(block)
        digest.update(block)
        done += len(block)
        progress(done, total)


def download(*, progress: Progress = lambda done, total: None, url: str = URL, expected: str = SHA256) -> Path:
    """Downloads the published weights into the cache; the file appears there only whole and with the right SHA-256.

    Raises:
        DataError: no network, or other bytes than expected; says where to get the file and where to put it.
    """
    target = published_path()
    try:
        source = cast(BinaryIO, urlopen(url, timeout=20))
    except OSError as error:
        raise _missing(f"{url} cannot be reached ({getattr(error, 'reason', error)})") from error
    with source:
        total = int(getattr(source, "headers", {}).get("Content-Length") or 0)
        files.make_folder(target.parent)
        with files.replacing(target) as handle:
            found = _copy(source, handle, total=total, progress=progress)
            if found != expected:
                raise _missing(f"what came from {url} has SHA-256 {found}, not {expected}")
    return target


def resize(picture: np.ndarray) -> np.ndarray:
    """One picture to 299 x 299: uint8 (H, W, 3) => float32 (3, 299, 299) in [0, 255], not rounded."""
    out = np.empty((3, SIDE, SIDE), dtype=np.float32)
    _resize_into(picture, out)
    return out


def _resize_into(picture: np.ndarray, out: np.ndarray) -> None:
    for c in range(3):
        channel = Image.fromarray(picture[..., c].astype(np.float32))
        np.clip(np.asarray(channel.resize((SIDE, SIDE), Image.Resampling.BICUBIC)), 0, 255, out=out[c])


def resized(pictures: list[np.ndarray]) -> np.ndarray:
    """`resize` of each: float32 (N, 3, 299, 299)."""
    out = np.empty((len(pictures), 3, SIDE, SIDE), dtype=np.float32)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(_resize_into, pictures, out))  # raises what one of them raised
    return out


class Inception:
    """The feature net, of clean-fid; a `FeatureNet`."""

    def __init__(self, path: Path | None = None, *, device: torch.device | None = None) -> None:
        """Loads the weights from `path` (the file, or its folder), else from the cache.

        The file in the cache must be the published one. A file named by the user may be another one: TorchScript with
        a submodule `layers` that takes float32 (N, 3, 299, 299) in [-1, 1]; it is marked as not published. TorchScript
        is a program: name only files you trust.

        Raises:
            DataError: missing, damaged, or no such net.
        """
        found = locate(path)
        if found is None:
            raise _missing(f"there is no file {path if path is not None else published_path()}")
        self.kind, self.resize, self.spatial = "inception", RESIZE, 0
        self.path = found
        self.sha256 = files.sha256(found)
        self.published = self.sha256 == SHA256
        if path is None and not self.published:
            raise DataError(
                f"{found} is not the published Inception file: its SHA-256 is {self.sha256}, not {SHA256}",
                hint=f"remove it, then download {URL} again; to use another net on purpose: --inception {found}",
            )
        self.device = device or torch.device("cpu")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch deprecates TorchScript; the published file is TorchScript
                net = torch.jit.load(os.fspath(found), map_location=self.device).eval()
                self._layers = net.layers
        except (RuntimeError, AttributeError, ValueError) as error:
            raise DataError(
                f"{found} is not a TorchScript Inception net: {str(error).splitlines()[0]}",
                hint=f"the published file is at {URL}",
            ) from error
        weight = dict(net.named_parameters()).get("output.weight")  # (1008, 2048), the classifier
        self._output = None if weight is None else weight.detach().cpu().numpy()
        self.classifier = weight is not None

    def __call__(self, pictures: list[np.ndarray]) -> np.ndarray:
        """uint8 pictures (H, W, 3), of any sizes => float32 (N, D), D = 2048 for the published net.

        Raises:
            NonFiniteError: the net gave NaN or infinity.
        """
        batch = BATCH.get(self.device.type, 16)
        return rows(resized(pictures), self._run, device=self.device, batch=batch)

    def _run(self, x: Tensor) -> Tensor:
        return self._layers(channels_last((x - 128) / 128)).flatten(1)

    def logits(self, features: np.ndarray) -> np.ndarray | None:
        """float (N, 2048) features => (N, 1008), without the bias: so the Inception Score was published."""
        return None if self._output is None else features @ self._output.T
