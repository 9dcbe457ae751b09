"""The programs of groups by slot, and the kernel's index arrays for a selection of groups."""

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
    """Two programs per slot, kept on the device: the contrast's, then the temperature's."""

    def __init__(self, device: torch.device) -> None:
        self._programs = Programs(2 * SLOTS, device)
        self._staged: dict[int, Program] = {}

    def add(self, slot: int, order: GroupOrder) -> None:
        """Notes the programs of a group that is new or resumes."""
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
        """The kernel's index arrays for some groups; all arrays are ``[G] int64``.

        Args:
            programs: twice a group's slot, plus 1 for its second program.
            primary, guide, third: as in `Streams`.
            staging: sends the arrays to the device.
        """
        sent = staging.put(np.array((primary, guide, third, programs)))
        return Streams.of(self._programs, programs, sent)
