"""Defaults for a small CPU machine; any flag or variable that the user sets takes precedence.

One is replaced even if the user has set it: float32 for models that do not run in it.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import MutableMapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from divserve.startup import container

__all__ = [
    "environment_defaults", "flag_defaults", "float32_fails", "share_cores", "with_working_dtype",
]  # fmt: skip

LONGEST_CONTEXT = 4096
GIB = 1 << 30
BINDING = "VLLM_CPU_OMP_THREADS_BIND"
KERNELS = "256"
CPU_INFO = Path("/proc/cpuinfo")
IN_FLOAT32 = ("compressed-tensors", "torchao")
"""Quantisation methods that vLLM runs in float32, on CPUs without AMX; it refuses it for others."""


def environment_defaults(environment: MutableMapping[str, str], model: str | None) -> None:
    """Sets the variables that vLLM and oneDNN read; a local model needs no hub."""
    cores, limit = sorted(os.sched_getaffinity(0)), container.core_limit()
    if limit is not None and limit < len(cores):
        # The limit is a share of all cores' time: if bound to some, threads compete with others'.
        environment.setdefault(BINDING, "nobind")
        environment.setdefault("OMP_NUM_THREADS", str(limit))
    # vLLM's own choice leaves one core idle, which is half of a two-core machine.
    environment.setdefault(BINDING, _listed(cores))
    # oneDNN caches a kernel for every shape, and each number of tokens in a step needs new ones.
    # Its default of 1024 (0.7 MB each) fills over hours, like a leak; to rebuild one takes 1 ms.
    environment.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", KERNELS)
    environment.setdefault("VLLM_NO_USAGE_STATS", "1")
    if model is not None and Path(model).is_dir():
        environment.setdefault("HF_HUB_OFFLINE", "1")


def share_cores(environment: MutableMapping[str, str], ranks: int) -> None:
    """Gives each rank cores of its own, unless the user has bound the threads.

    vLLM wants one list per rank, and takes `environment_defaults`' single list for one rank only.

    Args:
        environment: as `environment_defaults` has left it.
        ranks: workers of one engine times engines, on this machine.
    """
    cores = sorted(os.sched_getaffinity(0))
    if environment.get(BINDING) != _listed(cores):
        return
    cuts = [rank * len(cores) // ranks for rank in range(ranks + 1)]
    shares = [cores[i:j] or [cores[i]] for i, j in pairwise(cuts)]
    environment[BINDING] = "|".join(map(_listed, shares))


def _listed(cores: list[int]) -> str:
    return ",".join(map(str, cores))


def flag_defaults(model: str | None) -> dict[str, Any]:
    """Defaults for vLLM's flags on CPU.

    float32, because CPUs without AVX-512 or AMX have no bfloat16 matrix product and lose two thirds
    of their throughput with it (some models need it: `with_working_dtype`); blocks of 32 tokens, so
    that short prompts hit the prefix cache; no compilation, which costs a minute at every cold
    start and gains a fifth in speed.
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


def with_working_dtype(engine_args: Any) -> Any:
    """The same arguments, or a copy with bfloat16 for a model that does not run in float32 on CPU.

    Args:
        engine_args: vLLM's ``EngineArgs``.
    """
    from vllm.logger import init_logger
    from vllm.platforms import current_platform
    from vllm.transformers_utils.config import get_config

    if not current_platform.is_cpu() or engine_args.dtype not in ("float32", "float"):
        return engine_args
    try:
        config = get_config(
            engine_args.hf_config_path or engine_args.model,
            engine_args.trust_remote_code,
            engine_args.revision,
            engine_args.code_revision,
            engine_args.config_format,
        )
    except Exception:
        # Of which class depends on the hub's library and mode. vLLM will say what is wrong.
        return engine_args
    why = float32_fails(config, engine_args.quantization, has_amx())
    if why is None:
        return engine_args
    init_logger("vllm.divserve").warning(
        "%s: bfloat16 instead of float32, because %s on this CPU", engine_args.model, why
    )
    args = copy.copy(engine_args)
    args.dtype = "bfloat16"
    return args


def float32_fails(config: Any, quantization: str | None, amx: bool) -> str | None:
    """Why vLLM cannot run a model in float32 on CPU; None if it can.

    Args:
        config: Hugging Face's.
        quantization: vLLM's flag.
        amx: whether the CPU has AMX, for which vLLM has kernels of its own.
    """
    text = config.get_text_config()
    if hasattr(text, "linear_num_value_heads"):
        return "vLLM's gated delta networks take only bfloat16"
    quantized = getattr(config, "quantization_config", None)
    method = quantized.get("quant_method") if isinstance(quantized, dict) else quantization
    if (quantized or quantization) and (amx or method not in IN_FLOAT32):
        return "vLLM's kernels for quantised weights do not take it"
    if amx and getattr(text, "kv_lora_rank", None):
        return "vLLM's latent attention for AMX does not take it"
    return None


def has_amx() -> bool:
    """Whether the CPU has AMX; vLLM then uses other kernels."""
    return CPU_INFO.exists() and "amx_tile" in CPU_INFO.read_text()


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
