"""The death of one data-parallel rank: requests on the others end with the same error.

vLLM ends the other ranks at once, and these end their requests as if a client had aborted them
(finish reason "abort"), which looks like an answer. Only then is the engine marked as dead.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.engine import FinishReason
from vllm.v1.engine.exceptions import EngineDeadError

__all__ = ["install"]


def install(output_processor: Any, resources: Any) -> None:
    """Makes the output processor raise the error of a dead engine in place of such an end.

    Requests that a client aborts are forgotten first, so what an engine says of them is ignored.

    Args:
        output_processor: vLLM's.
        resources: of vLLM's client of the engines.
    """
    process_outputs = output_processor.process_outputs

    def process(outputs: list[Any], *args: Any, **kwargs: Any) -> Any:
        ends = any(output.finish_reason == FinishReason.ABORT for output in outputs)
        # None in one of several API processes, whose parent tells it (`startup.processes`).
        if ends and getattr(resources.engine_manager, "failed_proc_name", None) is not None:
            resources.engine_dead = True
            raise EngineDeadError
        return process_outputs(outputs, *args, **kwargs)

    output_processor.process_outputs = process
