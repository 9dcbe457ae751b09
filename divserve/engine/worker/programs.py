"""The programs of groups by slot, and the kernel's index arrays for some of them."""

from __future__ import annotations

import numpy as np
import torch

from divserve.engine.order import GroupOrder
from divserve.engine.worker.slots import SLOTS
from divserve.engine.worker.staging import Staging
from divserve_contract import Program
from divserve_kernels import Programs, Streams

__all__ = ["GroupPrograms"]


class GroupPrograms:
    """Two programs a slot, kept on the device: the contrast's, then the temperature's own."""

    def __init__(self, device: torch.device) -> None:
        self._programs = Programs(2 * SLOTS, device)
        self._staged: dict[int, Program] = {}

    def add(self, slot: int, order: GroupOrder) -> None:
        """Notes the programs of a new group, or of one that comes back."""
        self._staged[2 * slot] = order.program
        if order.temperature_program is not None:
            self._staged[2 * slot + 1] = order.temperature_program

    def send(self) -> None:
        """Sends the programs of all groups that are new in this step."""
        staged, self._staged = self._staged, {}
        self._programs.write(staged)

    def streams(
        self,
        programs: np.ndarray,
        primary: np.ndarray,
        guide: np.ndarray,
        third: np.ndarray,
        staging: Staging,
    ) -> Streams:
        """What the kernel does for some groups; all arrays are ``[G] int64``.

        Args:
            programs: twice a group's slot, or the next number for its second program.
            primary, guide, third: as in `Streams`.
            staging: sends them.
        """
        sent = staging.put(np.array((primary, guide, third, programs)))
        return Streams.of(self._programs, programs, sent)
