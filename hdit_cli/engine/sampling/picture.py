"""A picture of the user's that sampling starts from, read by the rules that data sets are made by."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from hdit_cli import files
from hdit_cli.data.loader import to_x0
from hdit_cli.data.prepare.buckets import turned_size
from hdit_cli.data.prepare.options import PrepareOptions
from hdit_cli.data.prepare.pictures.fit import fit
from hdit_cli.data.prepare.pictures.pictures import read_picture
from hdit_cli.data.prepare.sources.refused import Refused
from hdit_cli.errors import DataError, UsageError

_LARGEST = 1 << 31  # bytes of a picture file


@dataclass(frozen=True)
class StartPicture:
    """A picture as the model sees pictures.

    Attributes:
        x0: float32 (1, C, H, W) in [-1, 1].
        sha256: of the file.
        size: (height, width) that it had, turned as it is meant.
    """

    x0: Tensor
    sha256: str
    size: tuple[int, int]


def read_picture_for(path: Path, *, size: tuple[int, int], channels: int, option: str = "--init-image") -> StartPicture:
    """Decodes, turns, crops and resizes a picture: EXIF turn applied, alpha over white, the centre filling the size.

    Args:
        size: (height, width) in pixels.
        channels: 3, or 1 for grey.
        option: that named it.

    Raises:
        DataError: no such file, or not a picture that is read.
        UsageError: the model makes something else than pictures.
    """
    if channels not in (1, 3):
        raise UsageError(f"the model makes pictures of {channels} channels", hint=f"leave {option} out")
    options = PrepareOptions(size=size)
    try:
        data = files.read_regular(path, most=_LARGEST)
        picture = read_picture(io.BytesIO(data), options)
        image, _ = fit(picture, options)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", hint=f"{option} FILE, one picture") from error
    except Refused as refused:
        raise DataError(
            f"{path} cannot be used: {refused.code}, {refused.detail}", hint="a whole picture file"
        ) from None
    pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
    planes = rearrange(torch.from_numpy(pixels), "h w ... -> 1 (...) h w")
    return StartPicture(to_x0(planes), files.sha256_of(data), turned_size(picture.size, picture.orientation))
