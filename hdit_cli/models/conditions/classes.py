"""The class of an image: a row of a table of embeddings, whose last row means "no class"."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Classes:
    """Labels 0 ... count - 1, and count for "no class"; or weights of all count + 1 rows.

    Attributes:
        count: number of classes.
        table: name of the parameter whose rows they are, (count + 1, width).
    """

    what: ClassVar[str] = "a class"
    required: ClassVar[bool] = False
    count: int
    table: str

    def none_like(self, value: Tensor) -> Tensor:
        """ "No class" for int64 (N,), or as weights for float (N, count + 1)."""
        if value.ndim == 1:
            return torch.full_like(value, self.count)
        empty = torch.zeros_like(value)
        empty[:, self.count] = 1
        return empty

    def dropped(self, label: Tensor, where: Tensor) -> Tensor:
        """Labels (N,) with "no class" where `where` (N,) is true."""
        return torch.where(where, self.count, label)


def embedded(table: Tensor, label: Tensor) -> Tensor:
    """The embedding (N, width) of labels: a row of the table for int64 (N,), for weights (N, rows) the sum of rows by weight."""
    return label.to(table.dtype) @ table if label.ndim == 2 else torch.nn.functional.embedding(label, table)


def label_or_none(label: Tensor | None, *, classes: int, like: Tensor) -> Tensor:
    """`label`, or "no class" for every row of `like` (N, ...).

    Raises:
        ValueError: a label for a network without classes.
    """
    if not classes:
        raise ValueError("this network has no classes: leave label out")
    return torch.full((like.shape[0],), classes, device=like.device) if label is None else label
