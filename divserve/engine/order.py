"""Messages between processes: typed objects, carried by vLLM's own messages.

====================================  ==========================  =================================
from, to                              object                      carried by vLLM's
====================================  ==========================  =================================
API process, scheduler                `Order`                     ``SamplingParams.extra_args``
scheduler, worker (a new row)         `GroupOrder` `TextOrder`    ``SamplingParams.extra_args``
                                      `ProbeOrder` `ReadOrder`
scheduler, worker (a step)            ids of `set_chosen`         ``SchedulerOutput`` (attribute)
worker, scheduler                     `Guidance`                  ``ModelRunnerOutput`` (attribute)
scheduler, API process                `Report`                    ``kv_transfer_params``
====================================  ==========================  =================================

Between API process and scheduler vLLM uses msgpack, which turns everything in ``extra_args`` into
plain dicts. Between scheduler and worker it uses pickle, which keeps objects as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from divserve.decoding import Look, ModelSize, Program, Read, Reading, Spec, Switch

__all__ = [
    "NOTHING_GUIDED", "ORDER_KEY", "RESERVED_PREFIX", "GroupOrder", "Guidance", "OnSmall", "Order",
    "ProbeOrder", "ReadOrder", "Report", "RowOrder", "Statistics", "TextOrder", "chosen_of",
    "guidance_of", "row_order_of", "row_order_params", "set_chosen", "set_guidance", "spec_of",
    "with_spec", "without_orders",
]  # fmt: skip

ORDER_KEY = "divserve"
ROW_KEY = "divserve_row"
RESERVED_PREFIX = "divserve"
"""Clients may not use a key of ``extra_args`` that begins with this."""

Statistics = tuple[float, ...]
"""The numbers reported for one token: `divserve.decoding.STATISTICS`, followed by those of a second
program if there is one, or a `divserve.decoding.LookRow`."""


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
        "'decoding' of /v1/chat/completions or /v1/completions"
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


@dataclass(frozen=True, slots=True)
class Guidance:
    """What the workers report of one step."""

    statistics: dict[str, list[Statistics]]
    """By primary request id: of each position at which it could take a token."""
    seconds: float | None
    """How long the guidance operation took; None when it was not timed."""
    broken: frozenset[str] = frozenset()
    """Primaries whose statistics contain NaN."""
    reads: Mapping[str, Read] = field(default_factory=dict)
    """By primary request id: the figures of the texts that have been read."""


NOTHING_GUIDED = Guidance({}, None)


def set_guidance(runner_output: Any, guidance: Guidance) -> None:
    """Attaches the guidance to vLLM's output of the step."""
    runner_output.divserve_guidance = guidance


def guidance_of(runner_output: Any) -> Guidance:
    """What `set_guidance` has put there."""
    found: Guidance = getattr(runner_output, "divserve_guidance", NOTHING_GUIDED)
    return found


class Report(msgspec.Struct, omit_defaults=True):
    """What the front end is told beside the tokens of one output."""

    statistics: tuple[Statistics, ...] = ()
    """Statistics of each of its tokens."""
    drafted: int = 0
    """Draft tokens that the step has verified for it."""
    switch: Switch | None = None
    """The segment ends here and another engine goes on: the state of the rule."""
    model: ModelSize | None = None
    """The model that made the token; added by the front end itself."""
    error: str | None = None
    """Why the request fails."""
    refused: bool = False
    """Whether it was rejected because it can never run."""
    wait_s: float | None = None
    """Seconds until all rows of the group were admitted; reported once per request."""
    kernel_s: float | None = None
    """Seconds that the guidance operation of the step took; in one of the step's reports."""
    broken: str | None = None
    """How a group lost the lock-step: one of a few words."""
    unguided: int = 0
    """How many of its tokens were taken back."""
    read: Read | None = None
    """The figures of its text, beside its only token."""

    def put_on(self, output: Any) -> None:
        """Attaches it to vLLM's ``EngineCoreOutput``, which packs it, unless it is empty."""
        if self != NOTHING_TO_REPORT:
            output.kv_transfer_params = {**(output.kv_transfer_params or {}), ORDER_KEY: self}

    @classmethod
    def take_from(cls, output: Any) -> Report | None:
        """Takes the report off an output; None if there is none."""
        params = output.kv_transfer_params
        if params is None or (packed := params.pop(ORDER_KEY, None)) is None:
            return None
        output.kv_transfer_params = params or None
        # An engine in the same process has not packed it.
        return packed if isinstance(packed, Report) else msgspec.convert(packed, cls)


NOTHING_TO_REPORT = Report()
