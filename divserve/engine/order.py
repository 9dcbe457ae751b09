"""Messages to the engine and its workers: typed objects, carried by vLLM's own messages.

====================================  ==========================  =================================
from, to                              object                      carried by vLLM's
====================================  ==========================  =================================
API process, scheduler                `Order`                     ``SamplingParams.extra_args``
scheduler, worker (a new row)         `GroupOrder` `TextOrder`    ``SamplingParams.extra_args``
                                      `ProbeOrder` `ReadOrder`
scheduler, worker (a step)            ids of `set_chosen`         ``SchedulerOutput`` (attribute)
====================================  ==========================  =================================

Those that come back are in `divserve.engine.reported`. Between API process and scheduler vLLM uses
msgpack, which turns everything in ``extra_args`` into plain dicts. Between scheduler and worker it
uses pickle, which keeps objects as they are.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from divserve.decoding import Look, Program, Reading, Spec, Switch

__all__ = [
    "ORDER_KEY", "RESERVED_PREFIX", "GroupOrder", "OnSmall", "Order", "ProbeOrder", "ReadOrder",
    "RowOrder", "TextOrder", "chosen_of", "row_order_of", "row_order_params", "set_chosen",
    "spec_of", "with_spec", "without_orders",
]  # fmt: skip

ORDER_KEY = "divserve"
ROW_KEY = "divserve_row"
RESERVED_PREFIX = "divserve"
"""Clients may not use a key of ``extra_args`` that begins with this."""


@dataclass(frozen=True, slots=True)
class OnSmall:
    """A request to the small engine alone, with a ``spec`` as for the large one. Never packed."""

    spec: Spec | None


@dataclass(frozen=True, slots=True)
class Order:
    """A guided request, from the front end to the scheduler."""

    spec: Spec
    ticket: int | None = None
    """The front end's account that its reports belong to."""
    vocab: int | None = None
    """Token ids from this one on must not be sampled: another engine lacks them. None: no limit."""
    output: tuple[int, ...] = ()
    """Tokens that another engine has already decoded."""

    def pack(self) -> dict[str, Any]:
        """``extra_args`` with this order, in plain types."""
        return {ORDER_KEY: msgspec.to_builtins(self)}

    def put_on(self, params: Any) -> None:
        """Puts it into vLLM's ``SamplingParams``, in place of the order or spec there."""
        params.extra_args = {**(params.extra_args or {}), **self.pack()}

    @classmethod
    def of(cls, params: Any) -> Order | None:
        """The order of ``SamplingParams``; None for a plain request (or a pooling one)."""
        packed = (params.extra_args or {}).get(ORDER_KEY) if params is not None else None
        return None if packed is None else msgspec.convert(packed, cls)

    def switched(self, switch: Switch | None, output: tuple[int, ...]) -> Order:
        """The same order for the next segment of an answer that moves between two engines."""
        return replace(self, spec=replace(self.spec, switch=switch), output=output)


def with_spec(params: Any, asked: Spec | OnSmall) -> None:
    """Marks ``SamplingParams`` as guided, for the engine client of the same process."""
    params.extra_args = {**(params.extra_args or {}), ORDER_KEY: asked}


def spec_of(params: Any) -> Spec | OnSmall | None:
    """What `with_spec` has put there; None if there is nothing.

    Raises:
        ValueError: one of our keys is there, but not from `with_spec`. Every route lets clients put
            JSON into ``extra_args``, which the scheduler and the workers trust.
    """
    extra = params.extra_args
    if not extra or not any(key.startswith(RESERVED_PREFIX) for key in extra):
        return None
    asked = extra.get(ORDER_KEY)
    if isinstance(asked, Spec | OnSmall) and ROW_KEY not in extra:
        return asked
    raise ValueError(
        f"extra arguments that begin with '{RESERVED_PREFIX}' are reserved: use the field "
        "'decoding' of the body"
    )


def without_orders(extra_args: dict[str, Any] | None) -> dict[str, Any] | None:
    """``extra_args`` without our keys; None if nothing is left."""
    found = {k: v for k, v in (extra_args or {}).items() if not k.startswith(RESERVED_PREFIX)}
    return found or None


@dataclass(frozen=True, slots=True)
class GroupOrder:
    """A primary, for the workers."""

    program: Program
    guides: tuple[str, ...]
    """Request ids of its guides."""
    temperature_program: Program | None
    grounded: bool
    """Whether a grounding text is its third stream."""
    amateurs: int
    """Number of amateurs that it is compared with."""
    vocab: int | None
    """As in `Order`."""
    output: tuple[int, ...]
    """As in `Order`."""
    look: Look | None
    document: tuple[int, int] = (0, 0)
    """Where the part of the prompt that the first guide lacks begins and ends; equal: nowhere."""
    top: int = 0
    """How many of the likeliest tokens of each stream are reported with a token."""
    reading: Reading | None = None
    """The end of all its prompts is scored; None: it is not."""


@dataclass(frozen=True, slots=True)
class TextOrder:
    """A request that reads a grounding text, for the workers."""

    primary: str
    tokens: int
    average: bool


@dataclass(frozen=True, slots=True)
class ProbeOrder:
    """A request that reads a candidate of look-back decoding, for the workers."""

    primary: str
    index: int
    """Index of the candidate."""
    token: int
    copied: int
    """First position in the KV block that is copied for it."""


@dataclass(frozen=True, slots=True)
class ReadOrder:
    """A guide whose end is scored together with that of its primary, for the workers."""

    primary: str
    column: int
    """1 for the first guide, 2 for the second."""


RowOrder = GroupOrder | TextOrder | ProbeOrder | ReadOrder


def row_order_params(order: RowOrder) -> dict[str, Any]:
    """``extra_args`` with what the workers must know of a row."""
    return {ROW_KEY: order}


def row_order_of(params: Any) -> RowOrder | None:
    """What the workers must know of a row; None for plain rows and most guides."""
    extra: dict[str, RowOrder] | None = None if params is None else params.extra_args
    return (extra or {}).get(ROW_KEY)


def set_chosen(scheduler_output: Any, request_ids: AbstractSet[str]) -> None:
    """Tells the workers which requests take one of their candidates in this step."""
    scheduler_output.divserve_chosen = frozenset(request_ids)


def chosen_of(scheduler_output: Any) -> frozenset[str]:
    """The requests that take one of their candidates in this step."""
    chosen: frozenset[str] = getattr(scheduler_output, "divserve_chosen", frozenset())
    return chosen
