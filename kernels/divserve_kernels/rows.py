"""Which rows of a step's logits form pairs, and what is done to each pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from divserve_kernels.layout import PARAMETERS

__all__ = ["Rows"]


@dataclass(frozen=True, slots=True)
class Rows:
    """The guided rows of one step, as a structure of arrays on the logits' device."""

    primary: Tensor
    """``[G] int64``: rows of the primaries."""
    guide: Tensor
    """``[G] int64``: rows of their guides."""
    parameters: Tensor
    """``[G, len(PARAMETERS)] float32``."""

    def part(self, start: int, stop: int) -> Rows:
        """The pairs ``start:stop``, as views."""
        piece = slice(start, stop)
        return Rows(self.primary[piece], self.guide[piece], self.parameters[piece])

    @classmethod
    def pack(
        cls,
        primary: Sequence[int],
        guide: Sequence[int],
        parameters: Sequence[Sequence[float]],
        device: torch.device,
    ) -> Rows:
        """Builds the arrays on the host and sends them without waiting for the device."""
        pin = device.type == "cuda"

        def send(values: object, dtype: torch.dtype) -> Tensor:
            host = torch.tensor(values, dtype=dtype, pin_memory=pin)
            return host.to(device, non_blocking=True)

        assert all(len(row) == len(PARAMETERS) for row in parameters)
        return cls(
            primary=send(primary, torch.int64),
            guide=send(guide, torch.int64),
            parameters=send(parameters, torch.float32),
        )
