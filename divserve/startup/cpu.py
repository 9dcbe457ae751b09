"""Defaults for a small CPU machine; any flag or variable that the user sets takes precedence."""

from __future__ import annotations

import json
import os
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from divserve.startup import container

__all__ = ["environment_defaults", "flag_defaults"]

LONGEST_CONTEXT = 4096
GIB = 1 << 30
KERNELS = "256"


def environment_defaults(environment: MutableMapping[str, str], model: str | None) -> None:
    """Sets the variables that vLLM and oneDNN read; a local model needs no hub."""
    cores, limit = sorted(os.sched_getaffinity(0)), container.core_limit()
    if limit is not None and limit < len(cores):
        # The limit is a share of all cores' time: if bound to some, threads compete with others'.
        environment.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        environment.setdefault("OMP_NUM_THREADS", str(limit))
    # vLLM's own choice leaves one core idle, which is half of a two-core machine.
    environment.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, cores)))
    # oneDNN caches a kernel for every shape, and each number of tokens in a step needs new ones.
    # Its default of 1024 (0.7 MB each) fills over hours, like a leak; to rebuild one takes 1 ms.
    environment.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", KERNELS)
    environment.setdefault("VLLM_NO_USAGE_STATS", "1")
    if model is not None and Path(model).is_dir():
        environment.setdefault("HF_HUB_OFFLINE", "1")


def flag_defaults(model: str | None) -> dict[str, Any]:
    """Defaults for vLLM's flags on CPU.

    float32, because CPUs without AVX-512 or AMX have no bfloat16 matrix product and lose two thirds
    of their throughput with it; blocks of 32 tokens, so that short prompts hit the prefix cache; no
    compilation, which costs a minute at every cold start and gains a fifth in speed.
    """
    defaults: dict[str, Any] = {
        "dtype": "float32",
        "block_size": 32,
        "enforce_eager": True,
        "max_num_seqs": 32,
        "max_num_batched_tokens": 1024,
    }
    if "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
        defaults["kv_cache_memory_bytes"] = _cache_bytes()
    if (context := _context_length(model)) is not None:
        defaults["max_model_len"] = min(context, LONGEST_CONTEXT)
    return defaults


def _cache_bytes() -> int:
    """An eighth of the container's or machine's memory, between 1 and 8 GiB."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    memory = min(memory, container.memory_limit() or memory)
    return min(max(memory // 8 // GIB, 1), 8) * GIB


def _context_length(model: str | None) -> int | None:
    """The context length from a local model's files; None if it would need a download."""
    if model is None or not (path := Path(model) / "config.json").is_file():
        return None
    length = json.loads(path.read_text()).get("max_position_embeddings")
    return length if isinstance(length, int) else None
