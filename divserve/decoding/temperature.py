"""What the temperature methods (kl_temperature, entropy_temperature) share."""

from __future__ import annotations

__all__ = ["MIN_TEMPERATURE", "lowest_factor"]

MIN_TEMPERATURE = 1e-4
"""No method cools a token below this, as in the code of Chang et al. 2023."""


def lowest_factor(temperature: float) -> float:
    """The factor that reduces ``temperature`` (> 0) to `MIN_TEMPERATURE`; 1 if it is below."""
    return min(1.0, MIN_TEMPERATURE / temperature)
