"""FID of each class by itself, from the rows: of few pictures, a small matrix takes the place of a large covariance."""

from typing import Any, ClassVar, Self

import numpy as np

from hdit_cli.errors import DataError
from hdit_cli.metrics.frechet import frechet_distance
from hdit_cli.metrics.metric import Bias, Needs
from hdit_cli.metrics.moments import Moments
from hdit_cli.metrics.rows import Rows


def frechet_of_rows(x: np.ndarray, y: np.ndarray) -> float:
    """Fréchet distance of the Gaussians fitted to two sets of rows, as `frechet_distance` of their moments.

    With X centred, Σx = XᵀX / (N - 1): tr (Σx Σy)^½ is the sum of the singular values of X Yᵀ / √((N - 1)(M - 1)), an
    (N, M) matrix.

    Args:
        x, y: float (N, D) and (M, D); N, M >= 2.
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    if min(len(x), len(y)) > x.shape[1] // 2:
        ours, theirs = Moments(), Moments()
        ours.update(x)
        theirs.update(y)
        return frechet_distance(ours, theirs)
    mean_x, mean_y = x.mean(0), y.mean(0)
    x, y = (x - mean_x) / np.sqrt(len(x) - 1), (y - mean_y) / np.sqrt(len(y) - 1)
    cross = float(np.linalg.svd(x @ y.T, compute_uv=False).sum())
    return max(float(((mean_x - mean_y) ** 2).sum() + (x**2).sum() + (y**2).sum()) - 2 * cross, 0.0)


class PerClassFID(Rows):
    """Mean over the classes, and the table; classes of fewer than two pictures on a side are left out."""

    name: ClassVar[str] = "fid-per-class"
    needs: ClassVar[Needs] = "inception"
    bias: ClassVar[Bias] = "upwards"

    def score(self, reference: Self) -> dict[str, Any]:
        """`classes`: of each class number its `fid`, `n` and `n_reference`.

        Raises:
            DataError: no class has two pictures on both sides; or features of different nets.
        """
        x, y = self.both(reference)
        label, their_label = self.ordered()[1], reference.ordered()[1]
        table: dict[int, dict[str, Any]] = {}
        for k in sorted(set(label.tolist()) & set(their_label.tolist()) - {-1}):
            ours, theirs = x[label == k], y[their_label == k]
            if min(len(ours), len(theirs)) >= 2:
                table[k] = {"fid": frechet_of_rows(ours, theirs), "n": len(ours), "n_reference": len(theirs)}
        if not table:
            raise DataError(
                "no class has two pictures on both sides", hint="more pictures, or leave fid-per-class out of --metrics"
            )
        return {"value": float(np.mean([row["fid"] for row in table.values()])), "classes": table}
