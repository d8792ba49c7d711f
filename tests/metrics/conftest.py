"""A small random net in the shape of the published Inception file."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn


class Layers(nn.Module):
    """float32 (N, 3, 299, 299) in [-1, 1] => (N, D, 1, 1)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 5, stride=4)
        self.second = nn.Conv2d(8, features, 3, stride=4)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(torch.relu(self.second(torch.relu(self.first(x)))))


class Net(nn.Module):
    """The published file's outer shape: a submodule `layers`, and a forward of its own."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.layers = Layers(features)

    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        return self.layers((img - 128) / 128).flatten(1)


def save_net(folder: Path, *, features: int = 2048) -> Path:
    torch.manual_seed(0)
    path = folder / "inception-2015-12-05.pt"
    torch.jit.save(torch.jit.script(Net(features)), str(path))
    return path


@pytest.fixture(scope="session")
def net_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_net(tmp_path_factory.mktemp("weights"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HDIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
