"""What a server without extras lists at /v1/decoding/methods."""

from __future__ import annotations

from divserve.api.routes import _describe
from divserve.decoding import METHODS
from divserve.evaluation.arms import Listed

__all__ = ["LISTED"]

LISTED = {name: Listed.of(_describe(name, method, frozenset())) for name, method in METHODS.items()}
