"""What is done in a step: the programs, kept by slot, and the rows that follow them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from divserve_contract import PARAMETERS, Form, Program
from divserve_kernels.layout import ABSENT

__all__ = ["Programs", "Streams"]


# Bits of what a program requires: those of the forms, then these.
_THIRD, _NUCLEUS, _PLAUSIBILITY = (1 << len(Form) + i for i in range(3))


class Programs:
    """Programs by slot on the device, as a structure of arrays; sent only when they change."""

    def __init__(self, capacity: int, device: torch.device) -> None:
        self.table = torch.zeros(len(PARAMETERS), capacity, device=device)
        """``[len(PARAMETERS), capacity] float32``: one array per parameter; doubled when full."""
        self._needs = np.zeros(capacity, np.uint8)
        """What each program requires (`_needs`), so that the device need not be read."""

    def write(self, programs: Mapping[int, Sequence[float]]) -> None:
        """Stores programs by slot without waiting for the device.

        Raises:
            ValueError: a program does not have one number for each of ``PARAMETERS``, or makes the
                weights of `Form.PROBABILITY` depend on the JSD.
        """
        if not programs:
            return
        for numbers in programs.values():
            if len(numbers) != len(PARAMETERS):
                raise ValueError(f"{len(numbers)} numbers, not {len(PARAMETERS)}")
            program = Program(*numbers)
            if program.form == Form.PROBABILITY and program.jsd_scale != 0:
                raise ValueError("Form.PROBABILITY has constant weights")
        while max(programs) >= self.table.shape[1]:
            self.table = torch.cat((self.table, torch.zeros_like(self.table)), dim=1)
            self._needs = np.concatenate((self._needs, np.zeros_like(self._needs)))
        self._needs[list(programs)] = [_needs(Program(*numbers)) for numbers in programs.values()]
        slots = send(list(programs), torch.int64, self.table.device)
        values = send(list(programs.values()), torch.float32, self.table.device)
        self.table.index_copy_(1, slots, values.T)

    def needs(self, slots: Sequence[int] | np.ndarray) -> int:
        """What the programs of these slots require together, as bits."""
        return int(np.bitwise_or.reduce(self._needs[slots]))


@dataclass(frozen=True, slots=True)
class Streams:
    """The rows of one step, as a structure of arrays on the logits' device.

    A stream index is a row of the step's logits, `ABSENT`, or a row of the side tensor
    (`side_row`). The last four fields are on the host, so that the device need not be read.
    """

    primary: Tensor
    """``[G] int64``: rows that are overwritten; `ABSENT` leaves a row out."""
    guide: Tensor
    """``[G] int64``: their guides; if `ABSENT`, the primary itself."""
    third: Tensor
    """``[G] int64``: third streams; if `ABSENT`, zeros."""
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
        """The rows ``start:stop``, as views."""
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
        """Builds the arrays on the host and sends them without waiting for the device.

        Raises:
            ValueError: they differ in length.
        """
        none = [ABSENT] * len(slots)
        streams = (primary, none if guide is None else guide, none if third is None else third)
        if any(len(stream) != len(slots) for stream in streams):
            raise ValueError("as many primaries, guides and third streams as programs")
        sent = send([*streams, slots], torch.int64, programs.table.device)
        return cls.of(programs, slots, sent)

    @classmethod
    def of(cls, programs: Programs, slots: Sequence[int] | np.ndarray, sent: Tensor) -> Streams:
        """Builds it from arrays that are on the device, or will be before they are used.

        Args:
            programs: the programs.
            slots: ``[G]``: columns of their table.
            sent: ``[4, G] int64``: the primaries, guides, third streams and ``slots``.
        """
        primary, guide, third, slot = sent.unbind()
        needs = programs.needs(slots)
        return cls(
            primary=primary,
            guide=guide,
            third=third,
            table=programs.table,
            slot=slot,
            forms=frozenset(form for form in Form if needs & 1 << form),
            any_third=bool(needs & _THIRD),
            any_nucleus=bool(needs & _NUCLEUS),
            any_plausibility=bool(needs & _PLAUSIBILITY),
        )


def _needs(program: Program) -> int:
    """A program's form, and the other parts of the operation that it requires, as bits."""
    return (
        1 << int(program.form)
        | _THIRD * (program.third_weight != 0)
        | _NUCLEUS * (program.top_p < 1)
        | _PLAUSIBILITY * (program.log_plausibility > -math.inf)
    )


def send(values: object, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of ``values``, lists or an array, on ``device``; the host does not wait for a GPU.

    torch pins no tensor while making it from an array, so the copy to pinned memory is a step of
    its own. Memory is pinned for no empty tensor.
    """
    host = torch.tensor(values, dtype=dtype)
    if device.type == "cuda" and host.numel():
        host = torch.empty_like(host, pin_memory=True).copy_(host)
    return host.to(device, non_blocking=True)
