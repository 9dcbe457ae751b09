"""How often each token occurs in a large corpus: what ``dc_pdd`` compares with."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from divserve.errors import StartupError

__all__ = ["load", "log_frequencies"]


def load(path: Path) -> np.ndarray:
    """The counts of a file that ``numpy.save`` has written: ``[V]``, one per token id.

    Raises:
        StartupError: it cannot be read, or holds anything but counts.
    """
    try:
        counts = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise StartupError(f"--frequencies {path}: {error}") from None
    valid = isinstance(counts, np.ndarray) and counts.ndim == 1 and counts.dtype.kind in "iu"
    if not valid or not len(counts) or int(counts.min()) < 0:
        raise StartupError(
            f"--frequencies {path}: not a list of counts, one whole number for each token id"
        )
    found: np.ndarray = counts
    return found


def log_frequencies(counts: np.ndarray) -> np.ndarray:
    """log((count + 1) / (Σ counts + V)) of counts ``[V]``, as ``[V] float64``."""
    whole = counts.astype(np.float64)
    found: np.ndarray = np.log((whole + 1) / (whole.sum() + len(whole)))
    return found
