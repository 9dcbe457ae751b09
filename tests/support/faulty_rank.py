"""A worker in which a test makes one rank fail."""

from __future__ import annotations

from typing import Any

from vllm.distributed.parallel_state import get_tp_group

from divserve.engine.worker.contrast import Contrast
from divserve.engine.worker.grounding import Groundings
from divserve.engine.worker.vocabulary import VocabularyCap
from divserve.engine.worker.worker import GuidedCPUWorker

__all__ = ["FAULTS", "FaultyWorker"]

FAULTS: dict[str, tuple[Any, str]] = {
    "an order is taken up": (VocabularyCap, "add"),
    "a step is laid out": (VocabularyCap, "lay_out"),
    "a text is read": (Groundings, "_reduce"),
    "logits are guided": (Contrast, "apply"),
}
"""What raises an exception when it is called next, by what it does."""


class FaultyWorker(GuidedCPUWorker):
    """Named in ``worker_cls``; called through ``collective_rpc``."""

    def fail_once(self, fault: str, rank: int) -> None:
        """Makes the next call of one of `FAULTS` raise on one rank."""
        if get_tp_group().rank_in_group != rank:
            return
        owner, name = FAULTS[fault]
        works = getattr(owner, name)

        def raises(*args: Any, **kwargs: Any) -> None:
            setattr(owner, name, works)
            raise RuntimeError("for this test")

        setattr(owner, name, raises)
