"""The ranks of an engine: what has failed on one has failed on all.

Every tensor-parallel rank guides its own copy of the logits, but the scheduler only hears from the
first. So a fault on another rank would make it feed tokens that nobody has guided; and a rank that
stays out of a collective operation would make the others wait forever. The ranks therefore agree on
the groups of every layout and on the success of every step, and a failure where they must act
together ends the process, which vLLM's executor notices. Of a pipeline, only the ranks of the last
stage have logits, and guide them.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed
from vllm.distributed.parallel_state import get_tp_group, get_world_group

from divserve.engine.faults import logger

__all__ = ["Ranks"]


class Ranks:
    """Ranks that must act together; one of them, or several.

    Args:
        group: vLLM's ``GroupCoordinator`` of several ranks; None for a single one.
    """

    def __init__(self, group: Any = None) -> None:
        self._group = group

    @classmethod
    def of_logits(cls) -> Ranks:
        """Those that sample from the same logits (tensor parallelism), once vLLM has made them."""
        group = get_tp_group()
        return cls(group if group.world_size > 1 else None)

    @classmethod
    def of_engine(cls, count: int) -> Ranks:
        """All ``count`` ranks of one engine, once vLLM has made them."""
        return cls(get_world_group() if count > 1 else None)

    @property
    def several(self) -> bool:
        """Whether there are other ranks."""
        return self._group is not None

    def agreed(self, well: np.ndarray) -> np.ndarray:
        """What holds on all ranks of ``well`` ``[N] bool``. All ranks must call it together."""
        if self._group is None:
            return well
        with self.together():
            flags = torch.from_numpy(well.astype(np.int32))
            distributed.all_reduce(flags, distributed.ReduceOp.MIN, self._group.cpu_group)
        everywhere: np.ndarray = flags.numpy().astype(np.bool_)
        return everywhere

    def failures(self, failed: bool, device: torch.device) -> Tensor | None:
        """The number of ranks that have failed, as ``[1] float32`` on the device; None for one.

        All ranks must call it together. Nothing waits for the device.
        """
        if self._group is None:
            return None
        with self.together():
            count = torch.full((1,), float(failed), device=device)
            distributed.all_reduce(count, group=self._group.device_group)
        return count

    @contextmanager
    def together(self) -> Iterator[None]:
        """Ends the process if what all ranks must do together fails on this one."""
        try:
            yield
        except Exception:
            if self._group is None:
                raise
            logger.critical("A rank cannot go on with the others: it ends", exc_info=True)
            # Its clean-up would wait for the other ranks.
            os.kill(os.getpid(), signal.SIGKILL)
            raise
