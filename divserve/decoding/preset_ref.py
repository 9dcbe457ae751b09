"""``decoding`` that names a preset, and the dial that says how much the document weighs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from divserve.decoding.guide import Guide
from divserve.decoding.trace import TraceField

__all__ = ["LARGEST_WEIGHT", "PresetField", "PresetRef"]

LARGEST_WEIGHT = 2.0

Name = Annotated[str, Field(min_length=1, max_length=128)]


def _weight(value: Any) -> Any:
    """A number in range, or "auto": one error instead of one for each of the two."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is None or value == "auto" or (number and 0 <= value <= LARGEST_WEIGHT):
        return value
    raise PydanticCustomError("weight_value", 'must be a number from 0 to 2, or "auto"')


class PresetRef(BaseModel):
    """A preset by its name, with what is changed in it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: Name | None = Field(
        default=None,
        description="One of /v1/decoding/presets. By default: that of the model's alias, else "
        '"faithful".',
    )
    context_weight: Annotated[
        float | Literal["auto"] | None,
        BeforeValidator(
            _weight,
            json_schema_input_type=Annotated[float, Field(ge=0, le=LARGEST_WEIGHT)]
            | Literal["auto"]
            | None,
        ),
    ] = Field(
        default=None,
        description="How much the document counts against what the model knows: 0 as without a "
        'method, 0.5 more, 2 very much ("cad" with this alpha); "auto": as much as they disagree '
        'at each token ("adacad"). Takes the place of the preset\'s contrast.',
    )
    guide: Guide | None = Field(
        default=None, description="What the second stream sees, instead of the preset's guides."
    )
    trace: TraceField = Field(
        default=None,
        description="Return the statistics of every token.",
        json_schema_extra={"default": False},
    )


def _by_name(value: Any) -> Any:
    return {"preset": value} if isinstance(value, str) else value


PresetField = Annotated[
    PresetRef, BeforeValidator(_by_name, json_schema_input_type=Name | PresetRef)
]
"""Type of a reference as it is sent: a name alone is short for the object."""
