"""Messages that come back from the engine: what was measured, with the tokens of a step.

====================================  ==========================  =================================
from, to                              object                      carried by vLLM's
====================================  ==========================  =================================
worker, scheduler                     `Guidance`                  ``ModelRunnerOutput`` (attribute)
scheduler, API process                `Report`                    ``kv_transfer_params``
====================================  ==========================  =================================

How they are packed is told in `divserve.engine.order`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from divserve.decoding import ModelSize, Read, Switch
from divserve.decoding.spec import Top
from divserve.engine.order import ORDER_KEY

__all__ = ["NOTHING_GUIDED", "Guidance", "Report", "Statistics", "guidance_of", "set_guidance"]

Statistics = tuple[float, ...]
"""The numbers reported for one token: `divserve.decoding.STATISTICS`, followed by those of a second
program if there is one, or a `divserve.decoding.LookRow`."""


@dataclass(frozen=True, slots=True)
class Guidance:
    """What the workers report of one step."""

    statistics: dict[str, list[Statistics]]
    """By primary request id: of each position at which it could take a token."""
    seconds: float | None
    """How long the guidance operation took; None when it was not timed."""
    broken: frozenset[str] = frozenset()
    """Primaries whose statistics contain NaN."""
    tops: dict[str, list[Top]] = field(default_factory=dict)
    """Beside the statistics of each position, for the groups that ask for it."""
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
    tops: tuple[Top, ...] = ()
    """The likeliest tokens behind each of its tokens, if the request asks for them."""
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
