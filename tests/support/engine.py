"""An engine in this process, whose scheduler the tests can access."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import msgspec

from divserve.decoding import METHODS, Stack
from divserve.engine.order import ORDER_KEY, Order
from divserve.engine.reported import Report
from tests.support import platform

LOAD_FORMAT = "divserve_amateurs"
"""`divserve.engine.models.loader.LOAD_FORMAT`, without importing vLLM here."""
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
os.environ.update(ENVIRONMENT)
DEFAULTS: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 1024,
    "max_num_batched_tokens": 64,
    "max_num_seqs": 16,
    "block_size": 32,
}
"""Arguments of all engines of tests, unless they ask for others."""


def order(
    method: str, guide: list[int] | None, temperature: float = 0.0, **fields: Any
) -> dict[str, Any]:
    """``SamplingParams.extra_args`` of a request with one method."""
    body = {"method": method, **fields}
    return stacked([body], [guide], temperature)


def stacked(
    bodies: list[dict[str, Any]],
    guides: list[list[int] | None],
    temperature: float = 0.0,
    grounding: list[int] | None = None,
) -> dict[str, Any]:
    """``SamplingParams.extra_args`` of a request with these methods and their guides' token ids."""
    parsed = []
    for body, guide in zip(bodies, guides, strict=True):
        given = {} if guide is None else {"guide": {"prompt": guide}}
        parsed.append(METHODS[body["method"]].model_validate({**given, **body}))
    stack = Stack(parsed)
    in_order = [guides[parsed.index(method)] for method in stack.methods]
    return Order(stack.spec(temperature, in_order, grounding or ())).pack()


def llm_arguments(
    options: dict[str, Any], lockstep: bool, on_gpu: bool = platform.ON_GPU
) -> dict[str, Any]:
    """Arguments of `vllm.LLM`: the defaults of tests, those of the platform, then what is asked.

    Args:
        options: of `Engine`: vLLM's, and ``amateurs``, ``look_back``, ``asynchronous``, ``blocks``.
        lockstep: whether divserve is installed in the engine.
        on_gpu: the platform.
    """
    asked = dict(options)
    asynchronous = asked.pop("asynchronous", False)
    settings: dict[str, Any] = {
        **DEFAULTS,
        "disable_log_stats": True,
        **platform.engine_options(lockstep=lockstep, asynchronous=asynchronous, on_gpu=on_gpu),
    }
    if blocks := asked.pop("blocks", None):
        settings["num_gpu_blocks_override"] = blocks
    amateurs, look_back = asked.pop("amateurs", {}), asked.pop("look_back", False)
    if amateurs or look_back:
        extra = {
            "amateurs": amateurs,
            "hidden_states": look_back,
            "load_format": asked.pop("load_format", "auto"),
            "extra": {},
        }
        settings |= {"load_format": LOAD_FORMAT, "model_loader_extra_config": extra}
    return settings | asked


class Engine:
    """A vLLM ``LLM`` in this process with (or without) the lock-step scheduler."""

    def __init__(self, model: Path, *, lockstep: bool = True, **options: Any) -> None:
        from vllm import LLM

        options |= platform.told()
        self.asynchronous = options.get("asynchronous", False)
        if self.asynchronous and not platform.ON_GPU:
            from tests.support.async_cpu import allow_async_scheduling

            allow_async_scheduling()
        tokenizer = (model / "tokenizer.json").exists()
        settings = {"skip_tokenizer_init": not tokenizer} | llm_arguments(options, lockstep)
        self.llm = LLM(model=str(model), **settings)
        self.core = self.llm.llm_engine
        self.scheduler: Any = self.core.engine_core.engine_core.scheduler
        self.total_blocks = self.free_blocks()

    def generate(self, cases: list[tuple[list[int], Any]], **options: Any) -> list[Any]:
        """Runs ``(prompt token ids, SamplingParams)`` together; vLLM's outputs in order."""
        outputs = self.llm.generate(
            [{"prompt_token_ids": prompt} for prompt, _ in cases],
            [params for _, params in cases],
            use_tqdm=False,
            **options,
        )
        return list(outputs)

    def free_blocks(self) -> int:
        """KV blocks in the free list."""
        return int(self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks())

    def leftovers(self) -> dict[str, int]:
        """Everything that must be 0 when nothing runs."""
        for _ in range(3):
            if self.core.has_unfinished_requests():
                self.core.step()
        s = self.scheduler
        return {
            "running": len(s.running),
            "waiting": len(s.waiting),
            "requests": len(s.requests),
            "holding": len(s.kv_holding_waiting),
            "blocks": self.total_blocks - self.free_blocks(),
            **(known_of(s) if hasattr(s, "groups") else {}),
        }

    def close(self) -> None:
        """Releases the engine's memory."""
        self.core.engine_core.shutdown()


def known_of(scheduler: Any) -> dict[str, int]:
    """What the objects of a `LockstepScheduler` know of requests; all 0 when nothing runs."""
    groups = scheduler.groups
    return {
        "groups": len(groups),
        "ready": len(groups.ready),
        "entering": len(groups.entering),
        "singles": len(groups.singles),
        "held": len(groups.held),
        "alarms": len(scheduler.alarms),
        "rules": len(scheduler.switch_rules),
        "failed": len(scheduler.endings.failed),
        "figures": len(scheduler.figures),
        "drafting": len(scheduler.drafts.governor or ()),
        "loads": len(scheduler.transfer),
        "deferred": len(scheduler.deferred_frees),
    }


def report_of(output: Any) -> Report | None:
    """The scheduler's report in one of vLLM's outputs, which keeps it."""
    packed = (output.kv_transfer_params or {}).get(ORDER_KEY)
    return (
        packed if packed is None or isinstance(packed, Report) else msgspec.convert(packed, Report)
    )


def counted(owner: Any, name: str) -> list[Any]:
    """Records the calls of a method of `owner`, which still works."""
    calls: list[Any] = []
    method = getattr(owner, name)

    def counting(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return method(*args, **kwargs)

    setattr(owner, name, counting)
    return calls


def random_prompt(rng: random.Random, length: int, vocab: int) -> list[int]:
    """Random token ids without special ones."""
    return [rng.randrange(5, vocab - 2) for _ in range(length)]
