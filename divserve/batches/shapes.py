"""What clients send to the batch routes, and the pages in which lists are answered."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from divserve.errors import InvalidRequest

__all__ = ["ENDPOINTS", "EXPIRY", "FORM", "CreateBatch", "Expiry", "page", "window_s"]

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
"""The routes that a line may name."""

WINDOW = re.compile(r"([1-9][0-9]{0,2})([mhd])")
UNITS_S = {"m": 60, "h": 3600, "d": 86_400}
LONGEST_S = 30 * 86_400
HOUR_S = 3600

EXPIRY = ("expires_after[anchor]", "expires_after[seconds]")
"""Fields of an upload: when the file expires."""
FORM = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file", "purpose"],
                "properties": {
                    "file": {"type": "string", "format": "binary"},
                    "purpose": {"type": "string", "enum": ["batch"]},
                    EXPIRY[0]: {"type": "string", "enum": ["created_at"]},
                    EXPIRY[1]: {"type": "integer", "minimum": HOUR_S, "maximum": LONGEST_S},
                },
            }
        }
    },
}
"""The body of an upload, which the route reads by itself, for /openapi.json."""

Key = Annotated[str, StringConstraints(max_length=64)]
Value = Annotated[str, StringConstraints(max_length=512)]


class Expiry(BaseModel):
    """When a file expires."""

    model_config = ConfigDict(extra="forbid")

    anchor: Literal["created_at"]
    seconds: int = Field(ge=HOUR_S, le=LONGEST_S)


class CreateBatch(BaseModel):
    """The body of ``POST /v1/batches``."""

    model_config = ConfigDict(extra="forbid")

    input_file_id: str
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"]
    completion_window: str = Field(description='OpenAI takes "24h"; also "30m", "7d" …')
    metadata: Annotated[dict[Key, Value], Field(max_length=16)] | None = None
    output_expires_after: Expiry | None = None


def window_s(window: str) -> int:
    """Seconds of a completion window.

    Raises:
        InvalidRequest: it is none, or too long.
    """
    found = WINDOW.fullmatch(window)
    seconds = int(found[1]) * UNITS_S[found[2]] if found else 0
    if not 0 < seconds <= LONGEST_S:
        raise InvalidRequest(
            'completion_window: a number of minutes, hours or days such as "24h", 30 days at most.',
            param="completion_window",
        )
    return seconds


def page(
    items: Sequence[Any], after: str | None, limit: int, pattern: re.Pattern[str], newest: bool
) -> dict[str, Any]:
    """A page of a list, as OpenAI answers it.

    Args:
        items: all of them, each with an id; ids sort by age.
        after: the id after which the page begins.
        limit: most items of the page.
        pattern: of the ids.
        newest: whether the newest come first.

    Raises:
        InvalidRequest: `after` is not an id.
    """
    if after is not None and not pattern.fullmatch(after):
        raise InvalidRequest("after: send the last id of the page before.", param="after")
    items = sorted(items, key=lambda item: str(item.id), reverse=newest)
    if after is not None:
        items = [item for item in items if (item.id < after if newest else item.id > after)]
    shown = items[:limit]
    return {
        "object": "list",
        "data": [item.model_dump(mode="json") for item in shown],
        "first_id": shown[0].id if shown else None,
        "last_id": shown[-1].id if shown else None,
        "has_more": len(items) > limit,
    }
