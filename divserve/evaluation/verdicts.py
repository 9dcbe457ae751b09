"""What the rows of a task show of a method, in a few words."""

from __future__ import annotations

from collections.abc import Sequence

from divserve.evaluation.table import Row

__all__ = ["SIGNIFICANT", "beside_controls", "verdict"]

SIGNIFICANT = 0.05


def verdict(row: Row) -> str:
    """An arm against the first one of its table."""
    if row.all_flips == 0:
        return "does nothing"
    if row.accuracy is None:
        if row.change.low <= 0 <= row.change.high:
            return "no difference shown"
        return "more diverse" if row.change.low > 0 else "less diverse"
    if row.p >= SIGNIFICANT:
        return "no difference shown"
    return "helps" if row.won > row.lost else "hurts"


def beside_controls(row: Row, table: Sequence[Row]) -> str:
    """A sampled method against plain sampling, and whether it beats both controls.

    Args:
        row: the method's.
        table: all rows of the sampled arms.
    """
    word = verdict(row)
    if word != "helps":
        return word
    controls = [one.control for one in table if one.control and one.control.of == row.arm]
    beaten = [one.p < SIGNIFICANT and one.won > one.lost for one in controls]
    if not controls:
        return "helps (no control)"
    return "helps beyond its controls" if all(beaten) else "helps no more than a control"
