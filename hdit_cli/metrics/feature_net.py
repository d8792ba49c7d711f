"""What every feature net offers, and how the command line names one.

`inception`, `pytorch-fid`, `adm`, `dinov2`, `clip`, each with `:PATH` behind it where the file is not in the cache, or the path
of a `.pt2` file.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from hdit_cli import catalog
from hdit_cli.errors import DataError, NonFiniteError, UsageError
from hdit_cli.metrics.metric import Needs
from hdit_cli.precision import computing

EXPORTED = ".pt2"

# One shape for every call, the last one filled up: how a set is split changes no feature by more than rounding in float32,
# and on a CPU those of the Inception nets not at all. A multiple of it as `--batch-size` wastes nothing.
BATCH = {"cpu": 4, "mps": 32, "cuda": 64}


class FeatureNet(Protocol):
    """uint8 pictures => float32 (N, D), one row for each, a function of that picture alone.

    Attributes:
        kind: its name in the catalog.
        path: the file or folder of its weights.
        sha256: of those.
        published: whether they are those that papers used; scores of others cannot be compared with anyone's.
        resize: how pictures come to the net's size; a part of the protocol.
        classifier: whether it has classes of its own.
        spatial: how many numbers at the end of a row are those of sFID; 0 where it has none.
    """

    kind: str
    path: Path
    sha256: str
    published: bool
    resize: str
    classifier: bool
    spatial: int

    def __call__(self, pictures: list[np.ndarray]) -> np.ndarray:
        """uint8 pictures (H, W, 3), of any sizes => float32 (N, D)."""
        ...

    def logits(self, features: np.ndarray) -> np.ndarray | None:
        """float (N, D) features => float (N, K) logits of the net's own classes; None where it has no classifier."""
        ...


def parse(named: str) -> tuple[str, Path | None]:
    """Kind and path of a feature net as named by the user: `dinov2:FOLDER`, `inception`, `net.pt2`.

    Raises:
        UsageError: no such net.
    """
    kind, colon, rest = named.partition(":")
    if kind in catalog.names("features") and kind != "exported":
        return kind, Path(rest) if colon and rest else None
    if named.endswith(EXPORTED):
        return "exported", Path(named)
    known = ", ".join(name for name in catalog.names("features") if name != "exported")
    raise UsageError(f"--features {named!r} names no feature net", hint=f"one of {known} (NAME:PATH), or a .pt2 file")


def split(named: str) -> list[str]:
    """The nets of a list with commas, each as `parse` takes it. A path that is there may have commas of its own.

    Raises:
        UsageError: no such net.
    """
    if "," in named and not _is_there(named):
        parts = [part.strip() for part in named.split(",")]
        for part in parts:
            parse(part)
        return parts
    parse(named)
    return [named]


def _is_there(named: str) -> bool:
    try:
        path = parse(named)[1]
    except UsageError:
        return False
    return path is not None and path.exists()


def is_inception(net: FeatureNet) -> bool:
    """Whether FID and KID of its features are called so."""
    return net.kind in ("inception", "pytorch-fid", "adm")


def serves(net: FeatureNet, needs: Needs) -> bool:
    """Whether a metric that needs this is one of the net's features."""
    fits = {"features": True, "inception": is_inception(net), "logits": net.classifier, "spatial": net.spatial > 0}
    return needs is not None and fits[needs]


def given(net: FeatureNet, features: np.ndarray, needs: Needs) -> np.ndarray:
    """What a metric takes, of the rows (N, D) that the net gave."""
    cut = features.shape[1] - net.spatial
    if needs == "spatial":
        return features[:, cut:]
    pooled = features[:, :cut]
    found = net.logits(pooled) if needs == "logits" else pooled
    assert found is not None
    return found


def facts(net: FeatureNet) -> dict[str, Any]:
    """What must be told beside a score."""
    told = {"net": net.kind, "file": str(net.path), "sha256": net.sha256, "published": net.published}
    return {**told, "resize": net.resize}


def channels_last(x: Tensor) -> Tensor:
    """The same (N, C, H, W) with the channels innermost on a CPU, where convolutions are 1.5 to 2 times as fast so."""
    return x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" else x


@torch.inference_mode()
def rows(pictures: np.ndarray, run: Callable[[Tensor], Tensor], *, device: torch.device, batch: int) -> np.ndarray:
    """Features of pictures of one size in batches of one shape: (N, 3, H, W) => float32 (N, D).

    Args:
        run: (batch, 3, H, W) of the dtype of `pictures`, on the device => (batch, D).

    Raises:
        DataError: the net gives something else.
        NonFiniteError: it gives NaN or infinity.
    """
    found = []
    for start in range(0, len(pictures), batch):
        part = torch.from_numpy(np.ascontiguousarray(pictures[start : start + batch]))
        count = len(part)
        part = torch.cat([part, part[:1].expand(batch - count, -1, -1, -1)]).to(device)
        with computing("fp32", device):  # IEEE, whatever samples are made in
            out = run(part)
        if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != batch:
            shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise DataError(f"the feature net gives {shape}, not a row for each of {batch} pictures", hint="(N, D)")
        found.append(out[:count].float().cpu())
    features = torch.cat(found).numpy()
    if not np.isfinite(features).all():
        raise NonFiniteError("the feature net gave NaN or infinity", hint="check its weights")
    return features
