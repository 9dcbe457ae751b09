"""The decoding methods: parameters, papers and formulas. Knows neither vLLM, HTTP nor tensors.

`METHODS` is the registry; `Decoding` is the type of the ``decoding`` field of a request, a union
discriminated by ``method``.
"""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import Field

from divserve.decoding.adacad import AdaCad
from divserve.decoding.base import Guide, Method
from divserve.decoding.cad import Cad
from divserve.decoding.cfg import Cfg
from divserve.decoding.kl_temperature import KlTemperature
from divserve.decoding.row import STATISTICS, Form, Row, Spec

__all__ = ["METHODS", "STATISTICS", "Decoding", "Form", "Guide", "Method", "Row", "Spec"]

Decoding = Annotated[Cad | AdaCad | Cfg | KlTemperature, Field(discriminator="method")]
"""Type of the ``decoding`` field: the one place where a new method is listed."""

METHODS: dict[str, type[Method]] = {
    get_args(cls.model_fields["method"].annotation)[0]: cls
    for cls in get_args(get_args(Decoding)[0])
}
"""Every method by its name."""
