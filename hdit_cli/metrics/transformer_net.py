"""DINOv2 (Oquab et al. 2023, arXiv 2304.07193) and CLIP (Radford et al. 2021, arXiv 2103.00020) through transformers.

Weights come from a local folder, as `hf download` leaves it; nothing is fetched, no code in it is run, and only
safetensors are read. Still its configuration steers a large library: only a user names such a folder. Pictures are brought to the
net's square by Pillow's bicubic filter in float32, as for Inception, not cropped; then the net's own mean and deviation.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hdit_cli import files
from hdit_cli.errors import DataError
from hdit_cli.metrics.feature_net import BATCH, rows

_LARGEST_SIDE = 4096
_INSTALL = "pip install 'hdit-cli[features]'"


class TransformerNet(ABC):
    """A vision transformer in a local folder (`config.json`, `model.safetensors`); a `FeatureNet`."""

    kind: ClassVar[str]
    repository: ClassVar[str]  # a published one, to name in an error
    loader: ClassVar[str]  # class of transformers
    mean: tuple[float, ...]  # where the folder has no preprocessor_config.json
    deviation: tuple[float, ...]
    classifier = False
    spatial = 0

    def __init__(self, path: Path | None = None, *, device: torch.device | None = None) -> None:
        """Loads the net from a folder.

        Raises:
            DataError: transformers is not installed; the folder is missing, or holds no such net.
        """
        if path is None or not (path / "config.json").is_file():
            raise DataError(
                f"the weights of {self.kind} are missing: there is no {(path or Path('FOLDER')) / 'config.json'}",
                hint=f"`hf download {self.repository} --local-dir FOLDER`, then --features {self.kind}:FOLDER",
            )
        odd = next(
            (entry for entry in path.iterdir() if entry.exists() and not (entry.is_file() or entry.is_dir())), None
        )
        if odd is not None:
            raise DataError(f"{odd} is neither a file nor a folder", hint="take it out of the folder")
        self.path, self.published = path, False  # there are many; which one it is, the SHA-256 says
        self.device = device or torch.device("cpu")
        self._net: Any = self._load()
        self.sha256 = _sha256_of(path)
        self.side, self.mean, self.deviation = self._preparation()
        self.resize = f"bicubic-{self.side}"

    def _load(self) -> Any:
        try:
            loader = getattr(import_module("transformers"), self.loader)
        except ImportError as error:
            raise DataError(f"{self.kind} needs the package transformers", hint=_INSTALL) from error
        try:
            # a configuration may name code elsewhere, as its own or as its kernel of attention: neither is fetched
            told: dict[str, Any] = {"trust_remote_code": False, "attn_implementation": "sdpa"}
            net = loader.from_pretrained(self.path, local_files_only=True, use_safetensors=True, **told)
        except Exception as error:  # whatever a foreign configuration makes the library trip over
            raise DataError(
                f"{self.path} holds no {self.kind} net: {(str(error).splitlines() or [type(error).__name__])[0]}",
                hint=f"a folder with config.json and model.safetensors, such as {self.repository}",
            ) from error
        return net.eval().requires_grad_(False).to(self.device)

    def _preparation(self) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
        """Side in pixels, mean and deviation per channel: those of the folder, else the published ones."""
        stored = self.path / "preprocessor_config.json"
        try:
            told = json.loads(stored.read_text(encoding="utf-8")) if stored.is_file() else {}
            mean, deviation = told.get("image_mean", self.mean), told.get("image_std", self.deviation)
            side, mean, deviation = self.native_side(told), tuple(map(float, mean)), tuple(map(float, deviation))
            if not (0 < side <= _LARGEST_SIDE and len(mean) == len(deviation) == 3 and all(deviation)):
                raise ValueError("no size, or not three channels")
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"{stored} cannot be read: {error}"[:200], hint=f"as {self.repository} has it") from error
        return side, mean, deviation

    @abstractmethod
    def native_side(self, told: dict[str, Any]) -> int:
        """Height and width of the pictures that the net is given."""

    @abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """float32 (N, 3, side, side), normalised => (N, D)."""

    def _prepared(self, picture: np.ndarray) -> np.ndarray:  # uint8 (H, W, 3) => float32 (3, side, side)
        resized = [
            Image.fromarray(np.ascontiguousarray(channel)).resize((self.side, self.side), Image.Resampling.BICUBIC)
            for channel in picture.astype(np.float32).transpose(2, 0, 1)
        ]
        x = np.stack([np.asarray(channel) for channel in resized]).clip(0, 255) / 255
        mean, deviation = (np.asarray(v, dtype=np.float32)[:, None, None] for v in (self.mean, self.deviation))
        return ((x - mean) / deviation).astype(np.float32)

    def __call__(self, pictures: list[np.ndarray]) -> np.ndarray:
        """uint8 pictures (H, W, 3), of any sizes => float32 (N, D)."""
        with ThreadPoolExecutor(max_workers=4) as pool:
            x = np.stack(list(pool.map(self._prepared, pictures)))
        return rows(x, self.features, device=self.device, batch=BATCH.get(self.device.type, 16))

    def logits(self, features: np.ndarray) -> None:
        return None


class DINOv2(TransformerNet):
    """The class token after the last norm, as Stein et al. 2023 (arXiv 2306.04675) take it."""

    kind = "dinov2"
    repository = "facebook/dinov2-large"
    loader = "Dinov2Model"
    mean = (0.485, 0.456, 0.406)
    deviation = (0.229, 0.224, 0.225)

    def native_side(self, told: dict[str, Any]) -> int:
        crop = told.get("crop_size", {})
        return int(crop.get("height", 224))

    def features(self, x: Tensor) -> Tensor:
        return self._net(pixel_values=x).last_hidden_state[:, 0]


class CLIP(TransformerNet):
    """The projected embedding of the picture, not normalised."""

    kind = "clip"
    repository = "openai/clip-vit-base-patch32"
    loader = "CLIPVisionModelWithProjection"
    mean = (0.48145466, 0.4578275, 0.40821073)
    deviation = (0.26862954, 0.26130258, 0.27577711)

    def native_side(self, told: dict[str, Any]) -> int:
        return int(self._net.config.image_size)

    def features(self, x: Tensor) -> Tensor:
        return self._net(pixel_values=x).image_embeds


def _sha256_of(folder: Path) -> str:
    """Of the configuration and all weights, by name."""
    told = hashlib.sha256()
    names = sorted(p for p in folder.glob("*.safetensors")) + [
        p for name in ("config.json", "preprocessor_config.json") if (p := folder / name).is_file()
    ]
    for path in names:
        told.update(f"{path.name}\0{files.sha256(path)}\n".encode())
    return told.hexdigest()
