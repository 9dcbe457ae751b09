"""The field ``trace`` of a method: what is returned of every token, and when."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

__all__ = ["Trace", "TraceField"]

FINAL = "final"
MOST_TOP = 20
SWITCH: TypeAdapter[bool] = TypeAdapter(bool)


class Trace(BaseModel):
    """A trace that is asked for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    top: int | None = Field(
        default=None,
        ge=1,
        le=MOST_TOP,
        description="How many of the likeliest tokens of each stream are returned with each token.",
    )
    at: Literal["token", "final"] = Field(
        default="token",
        description='In a stream: each entry in the chunk of its token ("token"), or all of them '
        'in the chunk with the finish_reason ("final").',
    )


def _expanded(value: Any) -> Any:
    """What `Trace` is made of; None for no trace."""
    if isinstance(value, Mapping | Trace):
        return value
    if value == FINAL:
        return {"at": FINAL}
    try:
        return {} if SWITCH.validate_python(value) else None
    except ValidationError:
        raise PydanticCustomError(
            "trace_value", "must be true, false, \"final\", or an object with 'top' and 'at'"
        ) from None


TraceField = Annotated[
    Trace | None,
    BeforeValidator(_expanded, json_schema_input_type=bool | Literal["final"] | Trace),
]
"""Type of the field: ``true`` is ``{}``, ``"final"`` is ``{"at": "final"}``, ``false`` is None."""
