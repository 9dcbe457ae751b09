"""An engine ends when the process that started it has ended.

A process that is killed (by the kernel for want of memory, say) tells its children nothing. vLLM's
workers watch their engine, but the engine watches nobody: it would keep its memory and its device,
and the workers theirs, until somebody finds them.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import time
from threading import Thread

__all__ = ["end_with_parent"]

logger = logging.getLogger("vllm.divserve.engine")

GRACE_S = 10.0
"""Between the signal that ends an engine in order and the one that ends it at once."""


def end_with_parent() -> None:
    """From now on this process ends soon after the one that started it.

    Does nothing in a process that `multiprocessing` has not started.
    """
    if (parent := multiprocessing.parent_process()) is not None:
        Thread(target=_watch, args=(parent,), name="divserve-parent", daemon=True).start()


def _watch(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    logger.error("The process that started this engine has ended: the engine ends, too")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os.kill(os.getpid(), signal.SIGKILL)
