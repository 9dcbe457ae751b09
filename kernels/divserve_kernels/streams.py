"""What is done in a step: the programs, kept by slot, and the streams of the rows they guide."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from divserve_contract import PARAMETERS, Form, Program
from divserve_kernels.layout import ABSENT

__all__ = ["Programs", "Streams"]


class Programs:
    """Programs by slot on the device, as a structure of arrays; sent only when they change."""

    def __init__(self, capacity: int, device: torch.device) -> None:
        self.table = torch.zeros(len(PARAMETERS), capacity, device=device)
        """``[len(PARAMETERS), capacity] float32``: one array per parameter; doubled when full."""
        self._host: dict[int, Program] = {}

    def write(self, programs: Mapping[int, Sequence[float]]) -> None:
        """Stores programs by slot without waiting for the device.

        Raises:
            ValueError: a program has not one number for each of ``PARAMETERS``, or lets the weights
                of `Form.PROBABILITY` depend on the JSD.
        """
        if not programs:
            return
        for slot, numbers in programs.items():
            if len(numbers) != len(PARAMETERS):
                raise ValueError(f"{len(numbers)} numbers, not {len(PARAMETERS)}")
            program = Program(*numbers)
            if program.form == Form.PROBABILITY and program.jsd_scale != 0:
                raise ValueError("Form.PROBABILITY has constant weights")
            self._host[slot] = program
        while max(programs) >= self.table.shape[1]:
            self.table = torch.cat((self.table, torch.zeros_like(self.table)), dim=1)
        slots = send(list(programs), torch.int64, self.table.device)
        values = send(list(programs.values()), torch.float32, self.table.device)
        self.table.index_copy_(1, slots, values.T)

    def forms(self, slots: Iterable[int]) -> frozenset[Form]:
        """The forms that occur in these slots."""
        return frozenset(Form(int(self._host[slot].form)) for slot in slots)

    def any_third(self, slots: Iterable[int]) -> bool:
        """Whether a third stream has a weight in these slots."""
        return any(self._host[slot].third_weight != 0 for slot in slots)

    def any_plausibility(self, slots: Iterable[int]) -> bool:
        """Whether one of these slots keeps plausible tokens only."""
        return any(self._host[slot].log_plausibility > -math.inf for slot in slots)

    def any_nucleus(self, slots: Iterable[int]) -> bool:
        """Whether one of these slots keeps a nucleus only."""
        return any(self._host[slot].top_p < 1 for slot in slots)


@dataclass(frozen=True, slots=True)
class Streams:
    """The streams of one step's guided rows, as a structure of arrays on the logits' device.

    A stream index is a row of the step's logits, `ABSENT`, or a row of the side tensor
    (`side_row`). The last four fields are what the host knows, so that no device is asked.
    """

    primary: Tensor
    """``[G] int64``: rows that are overwritten; `ABSENT` leaves a row out."""
    guide: Tensor
    """``[G] int64``: their guides; absent: the primary itself."""
    third: Tensor
    """``[G] int64``: third streams; absent: zeros."""
    table: Tensor
    """``[len(PARAMETERS), slots] float32``: `Programs.table`."""
    slot: Tensor
    """``[G] int64``: columns of ``table``."""
    forms: frozenset[Form]
    any_third: bool
    any_nucleus: bool
    any_plausibility: bool

    def __len__(self) -> int:
        return self.primary.shape[0]

    def part(self, start: int, stop: int) -> Streams:
        """The guided rows ``start:stop``, as views."""
        part = slice(start, stop)
        return replace(
            self,
            primary=self.primary[part],
            guide=self.guide[part],
            third=self.third[part],
            slot=self.slot[part],
        )

    @classmethod
    def pack(
        cls,
        programs: Programs,
        slots: Sequence[int],
        primary: Sequence[int],
        guide: Sequence[int] | None = None,
        third: Sequence[int] | None = None,
    ) -> Streams:
        """Builds the arrays on the host and sends them without waiting for the device."""
        none = [ABSENT] * len(slots)
        streams = (primary, none if guide is None else guide, none if third is None else third)
        assert all(len(stream) == len(slots) for stream in streams)
        device = programs.table.device
        sent = send([*streams, slots], torch.int64, device)
        return cls(
            primary=sent[0],
            guide=sent[1],
            third=sent[2],
            table=programs.table,
            slot=sent[3],
            forms=programs.forms(slots),
            any_third=programs.any_third(slots),
            any_nucleus=programs.any_nucleus(slots),
            any_plausibility=programs.any_plausibility(slots),
        )


def send(values: object, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of ``values`` on ``device``; pinned, so that the host does not wait."""
    host = torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)
