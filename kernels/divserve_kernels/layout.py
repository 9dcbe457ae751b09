"""The columns of the two small tables that a guidance call reads and writes.

``PARAMETERS``: one row per guided row, float32, in this order (see `divserve_kernels.reference`).
``STATISTICS``: one row per guided row, float32, returned; entropy and divergences in nats.
"""

from __future__ import annotations

__all__ = ["LOG_CLIP", "PARAMETERS", "STATISTICS"]

PARAMETERS = ("alpha", "jsd_scale", "floor", "kl_rate", "min_factor")
STATISTICS = ("entropy", "kl", "jsd", "alpha", "factor")

LOG_CLIP = -16.11809565095832
"""ln 1e-7: KL-guided temperature clips both distributions there (Chang et al. 2023, their code)."""
