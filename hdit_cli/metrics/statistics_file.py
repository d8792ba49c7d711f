"""Moments that others computed: `.npz` files of clean-fid, pytorch-fid, ADM (guided-diffusion) and EDM.

All hold `mu` and `sigma`, ADM's also `mu_s` and `sigma_s`, of spatial features. No pickle is read.
"""

import os
import zipfile
import zlib
from pathlib import Path

import numpy as np

from hdit_cli.errors import DataError
from hdit_cli.metrics.moments import Gaussian

_MOST_BYTES = 1 << 31  # of one array: 16,384 numbers a picture
_SYMMETRIC = 1e-5  # relative; float32 files are as good as that


def _read(path: Path, name: str) -> np.ndarray:
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as stream:
        if archive.getinfo(f"{name}.npy").file_size > _MOST_BYTES:
            raise ValueError(f"{name} is larger than any feature net's")
        return np.lib.format.read_array(stream, allow_pickle=False)


SPATIAL = ("mu_s", "sigma_s")  # what sFID compares


def read_statistics(path: Path, names: tuple[str, str] = ("mu", "sigma")) -> Gaussian:
    """Mean and covariance of features, from a file.

    Args:
        names: of the two arrays.

    Raises:
        DataError: missing, another kind of file, or no moments.
    """
    if path.suffix == ".pkl":
        raise DataError(
            f"{path} is a pickle, which may run code when it is read",
            hint="take mu and sigma out of it where you trust it: numpy.savez('reference.npz', mu=..., sigma=...)",
        )
    if not path.is_file():
        raise DataError(f"no file {path}", hint="check the path")
    try:
        mean, covariance = (_read(path, name) for name in names)
    except KeyError as error:
        raise DataError(f"{path} holds no {error.args[0].split(chr(39))[1].removesuffix('.npy')}", hint=_HINT) from None
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{os.fspath(path)} cannot be read as moments: {error}", hint=_HINT) from error
    problem = _problem(mean, covariance)
    if problem:
        raise DataError(f"{path}: {problem}", hint=_HINT)
    covariance = covariance.astype(np.float64)
    return Gaussian(mean.astype(np.float64), (covariance + covariance.T) / 2)


_HINT = "an .npz with mu (D,) and sigma (D, D), as clean-fid, pytorch-fid, guided-diffusion and EDM write it"


def _problem(mean: np.ndarray, covariance: np.ndarray) -> str:
    """What keeps the two arrays from being the moments of anything, or ""."""
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)) or len(mean) == 0:
        return f"mu of shape {mean.shape} and sigma of shape {covariance.shape} do not belong together"
    if mean.dtype.kind != "f" or covariance.dtype.kind != "f":
        return f"mu and sigma are {mean.dtype} and {covariance.dtype}, not real numbers"
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        return "NaN or infinity in it"
    covariance = covariance.astype(np.float64)
    largest = float(np.abs(covariance).max())
    if np.abs(covariance - covariance.T).max() > _SYMMETRIC * largest:
        return "sigma is not symmetric"
    rounding = _SYMMETRIC * float(np.linalg.norm(covariance)) + 1e-300  # a float32 file has eigenvalues below zero
    shifted = (covariance + covariance.T) / 2 + np.eye(len(mean)) * rounding
    try:
        np.linalg.cholesky(shifted)
    except np.linalg.LinAlgError:
        return "sigma has negative eigenvalues, so it is no covariance"
    return ""
