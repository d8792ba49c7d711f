"""How a codebook is kept while it is learnt: as the mean of what it stands for, with codes that nobody uses put elsewhere.

van den Oord et al. 2017 (arXiv 1711.00937), appendix A.1: N <- d N + (1 - d) n, S <- d S + (1 - d) sum of z, code = S / N. The sums
start at S = code N: from S = 0 every code that the first step does not use would become the zero vector.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_TINY = 1e-5
RARE = 0.03  # a code is put elsewhere when it is used less than this share of the average


class Codebook(nn.Module):
    """The counts and sums of a codebook (K, C), and what was used since somebody last asked.

    Args:
        codes: K.
        width: C.
    """

    count: Tensor
    sums: Tensor
    usage: Tensor
    begun: Tensor

    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.ones(codes))
        self.register_buffer("sums", torch.zeros(codes, width))
        self.register_buffer("usage", torch.zeros(codes))
        self.register_buffer("begun", torch.zeros(()))  # 1 once the sums hold the codebook

    @torch.no_grad()
    def see(self, indices: Tensor, *, keep: Tensor, total: Callable[[Tensor], Tensor]) -> Tensor:
        """How often each code was used, (K,), on all processes; counted where `keep` is 1.

        Args:
            indices: int64, of any shape.
            total: sums over processes.
        """
        used = total(torch.bincount(indices.flatten(), minlength=len(self.usage)).to(self.usage.dtype))
        self.usage += keep * used
        return used

    @torch.no_grad()
    def follow(
        self,
        codes: Tensor,
        z: Tensor,
        indices: Tensor,
        *,
        decay: float,
        keep: Tensor,
        total: Callable[[Tensor], Tensor],
    ) -> None:
        """Moves codes (K, C), in place, to the running mean of the rows z (R, C) that became them; nothing where `keep` is 0."""
        used = self.see(indices, keep=keep, total=total)
        summed = total(torch.zeros_like(self.sums).index_add_(0, indices.flatten(), z.to(self.sums.dtype)))
        sums = torch.where(self.begun > 0, self.sums, codes * self.count[:, None])
        count, sums = torch.lerp(used, self.count, decay), torch.lerp(summed, sums, decay)
        n = count.sum()
        smoothed = (count + _TINY) / (n + len(count) * _TINY) * n
        self._take(keep > 0, codes, sums / smoothed[:, None], count, sums)

    @torch.no_grad()
    def restart(self, codes: Tensor, rows: Tensor, *, keep: Tensor) -> None:
        """Puts codes that are hardly used where z of this step are.

        Args:
            codes: (K, C), changed in place.
            rows: (K, C), a z for each code that may need one.
        """
        mean = self.count.mean()
        rare = self.count < RARE * mean
        moved = torch.where(rare[:, None], rows.to(codes.dtype), codes)
        count = torch.where(rare, mean, self.count)
        sums = torch.where(rare[:, None], moved * mean, self.sums)
        self._take(keep > 0, codes, moved, count, sums)

    def _take(self, kept: Tensor, codes: Tensor, moved: Tensor, count: Tensor, sums: Tensor) -> None:
        """Takes over where `kept`; chosen and not multiplied, as what is refused may be NaN."""
        codes.copy_(torch.where(kept, moved.to(codes.dtype), codes))
        self.count.copy_(torch.where(kept, count, self.count))
        self.sums.copy_(torch.where(kept, sums, self.sums))
        self.begun.copy_(torch.where(kept, torch.ones_like(self.begun), self.begun))

    def perplexity(self) -> tuple[float, float]:
        """exp of the entropy of what was used since the last call of `forget`, and the share of codes among it."""
        used = self.usage.double()
        if not float(used.sum()):
            return 0.0, 0.0
        p = used / used.sum()
        return float(torch.exp(-torch.special.xlogy(p, p).sum())), float((used > 0).double().mean())

    @torch.no_grad()
    def forget(self) -> None:
        """Begins to count anew what is used."""
        self.usage.zero_()


def one_of_each(z: Tensor, chosen: Tensor) -> Tensor:
    """Rows of z (R, C) by number, int64 (K,); a number beyond R gives a row of zeros: it belongs to another process."""
    inside = (chosen >= 0) & (chosen < len(z))
    return F.embedding(chosen.clamp(0, max(0, len(z) - 1)), z) * inside[:, None].to(z.dtype)
