"""Which part of a picture is made anew: what is white in a mask, and what is added around the picture."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from hdit_cli.engine.model import Model
from hdit_cli.engine.sampling.picture import StartPicture, read_picture_for
from hdit_cli.errors import UsageError

Margins = tuple[int, int, int, int]  # left, top, right, bottom


@dataclass(frozen=True)
class Paint:
    """What of a start picture is made anew.

    Attributes:
        mask: bool (1, H, W) over the picture, true where it is painted; None: nowhere.
        margins: pixels that are added around it, all of them painted.
        sha256: of the mask's file; "" where there is none.
    """

    mask: Tensor | None = None
    margins: Margins = (0, 0, 0, 0)
    sha256: str = ""

    def on(self, tokens: Tensor, *, factor: int) -> tuple[Tensor, Tensor]:
        """Tokens (1, h, w) of the picture on the whole canvas, and which are made anew: each that any paint touches.

        The margins repeat the picture's border: a strength below 1 begins with a share of the tokens that lie there.
        """
        place = torch.zeros_like(tokens, dtype=torch.bool)
        if self.mask is not None:
            place = F.max_pool2d(self.mask[:, None].float(), factor)[:, 0].bool().to(tokens.device)
        left, top, right, bottom = (side // factor for side in self.margins)
        around = (left, right, top, bottom)  # as torch counts: the last axis first
        height, width = tokens.shape[1:]
        rows, columns = (
            torch.arange(-before, side + after, device=tokens.device).clamp(0, side - 1)
            for before, side, after in ((top, height, bottom), (left, width, right))
        )
        return tokens[:, rows][:, :, columns], F.pad(place, around, value=True)


def check_paint(model: Model, *, mask: bool, margins: Margins) -> None:
    """Refuses paint that the model cannot lay on.

    Args:
        mask: whether there is one.

    Raises:
        UsageError: a model of another task, or margins that do not divide.
    """
    if not mask and not any(margins):
        return
    word = "--mask" if mask else "--outpaint"
    if not model.task.paints:
        raise UsageError(
            f"{word} is for models of tokens (task tokens), and this one learnt the task {model.recipe['task']['type']}",
            hint=f"leave {word} out; --init-image with --strength changes the whole picture",
        )
    units = [side * model.codec.factor for side in model.network.unit]
    for side, name, unit in zip(margins, ("left", "top", "right", "bottom"), (units[1], units[0]) * 2, strict=True):
        if side % unit:
            near = max(1, round(side / unit)) * unit  # never none: that adds nothing
            raise UsageError(
                f"--outpaint: {side} pixels on the {name} are no multiple of {unit}, the size of the model's pieces",
                hint=f"the nearest is {near}",
            )


def picture_size(canvas: tuple[int, int], margins: Margins) -> tuple[int, int]:
    """(H, W) of the picture inside a canvas."""
    left, top, right, bottom = margins
    return canvas[0] - top - bottom, canvas[1] - left - right


def canvas_size(picture: tuple[int, int], margins: Margins) -> tuple[int, int]:
    """(H, W) of a picture with its margins."""
    left, top, right, bottom = margins
    return picture[0] + top + bottom, picture[1] + left + right


def read_paint(
    mask: Path | str | None, *, margins: Margins, picture: StartPicture, size: tuple[int, int]
) -> Paint | None:
    """The paint for a start picture; None where all of it is made anew.

    Args:
        mask: file of a picture, or nothing; what is nearer to white than to black is painted.
        size: (height, width) in pixels of the start picture as the model sees it.

    Raises:
        DataError: the mask cannot be read.
        UsageError: it is of another size than the picture's file, or nothing in it is white.
    """
    if not mask:
        return Paint(margins=margins) if any(margins) else None
    found = read_picture_for(Path(mask), size=size, channels=1, option="--mask")
    if found.size != picture.size:
        (h, w), (height, width) = found.size, picture.size
        raise UsageError(
            f"the mask {mask} is {h}x{w}, and the picture {height}x{width}",
            hint="a mask has the size of its picture: white is painted, black stays",
        )
    painted = found.x0[:, 0] >= 0
    if not painted.any():
        raise UsageError(f"the mask {mask} is black: there is nothing to paint", hint="white is painted, black stays")
    return Paint(painted, margins, found.sha256)
