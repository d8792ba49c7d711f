"""LPIPS as others keep it: VGG16 of torchvision, the heads of the lpips package, or that package's module whole.

Names of a file's tensors => names of ours; what is not in it, LPIPS does not use.
"""

import re
from collections.abc import Iterable

TITLE = "VGG16 and the heads of LPIPS"
VGG16 = "vgg16-397923af.pth"  # of torchvision; its name says how its SHA-256 begins
VGG16_URL = f"https://download.pytorch.org/models/{VGG16}"
VGG16_SHA256 = "397923af"
HEADS_URL = "https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1/vgg.pth"
HEADS_SHA256 = "a78928a0"  # of that file; version 0.0 has others, for pictures that are not scaled
_FEATURE = re.compile(r"(?:features|net\.slice[1-5])\.(\d{1,2})\.(weight|bias)", re.ASCII)
_HEAD = re.compile(r"(?:lin|lins\.)(\d)\.(?:model\.[01]\.)?weight", re.ASCII)


def features_in(names: Iterable[str]) -> dict[str, str]:
    """The tensors of a stack of convolutions, of whatever network: `features.N.weight`, `features.N.bias`."""
    found = ((name, _FEATURE.fullmatch(name)) for name in names)
    return {name: f"features.{match[1]}.{match[2]}" for name, match in found if match}


def heads_in(names: Iterable[str]) -> dict[str, str]:
    """The tensors of heads, of whatever network: `linK.weight`. Where a file holds one twice, `linK` before `lins.K`."""
    found = ((name, _HEAD.fullmatch(name)) for name in sorted(names, reverse=True))
    ours = {f"lin{match[1]}.weight": name for name, match in found if match}
    return {name: own for own, name in ours.items()}


def unused(names: Iterable[str]) -> list[str]:
    """The tensors that belong neither to the convolutions nor to the heads: a classifier's."""
    return sorted(name for name in names if not _FEATURE.fullmatch(name) and not _HEAD.fullmatch(name))
