"""Extras, the models and stores beside the served model: flags, checks and shares of memory.

``--amateur`` and ``--tuned`` run in the served model's own engine
(`divserve.engine.models.loader`), ``--small`` in an engine beside it
(`divserve.engine.client.hand_off`); ``--look-back`` stores the served model's hidden states
(`divserve.engine.models.hidden_store`).
"""

from __future__ import annotations

import copy
import os
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from divserve.decoding import SMALL_SUFFIX
from divserve.errors import StartupError, one_line
from divserve.startup.amateur_drafts import is_drafter
from divserve.startup.checks import check_look_back
from divserve.startup.refused import AMATEUR, RECURRENT, refuse

__all__ = ["Extras", "add_flags"]

CACHE_VARIABLE = "VLLM_CPU_KVCACHE_SPACE"

PROBES = (
    "The quick brown fox jumps over 1,234 lazy dogs.",
    "  def f(x):\n\treturn {'a': x ** 2}\n\n",
    "Grüße, naïve façade — 東京 🦊",
)
"""Texts that tokenizers with the same vocabulary but other merges split differently."""


def add_flags(parser: ArgumentParser) -> None:
    """Adds the flags of `Extras` to the parser of ``divserve serve``."""
    group: Any = parser.add_argument_group("divserve: further models")
    group.add_argument(
        "--amateur",
        metavar="MODEL|drop:N",
        help="A weaker model with the same tokenizer, run beside the served one in its forward "
        "(contrastive, proxy_tuning, dexperts). drop:N makes it from the served model's own "
        "weights, without N of its middle layers.",
    )
    group.add_argument(
        "--tuned",
        metavar="MODEL",
        help="A small tuned model; --amateur is the same model before tuning (proxy_tuning, "
        "dexperts).",
    )
    group.add_argument(
        "--small",
        metavar="MODEL",
        help="A small model with the same tokenizer, in a second engine (entropy_switch; plain "
        f"requests to MODEL{SMALL_SUFFIX}).",
    )
    group.add_argument(
        "--small-share",
        type=float,
        default=0.25,
        metavar="SHARE",
        help="The small engine's share of the memory for both (default: 0.25): of the KV cache on "
        "CPU, of --gpu-memory-utilization on GPU.",
    )
    group.add_argument(
        "--small-tensor-parallel-size",
        type=int,
        default=1,
        metavar="N",
        help="The small engine's tensor parallelism (default: 1), on the first N of the "
        "served model's devices.",
    )

    group.add_argument(
        "--look-back",
        action="store_true",
        help="Store every token's hidden state in the KV cache (look_back); start-up prints its "
        "share of the cache.",
    )


@dataclass(frozen=True)
class Extras:
    """The extras that the flags ask for."""

    amateurs: dict[str, str] = field(default_factory=dict)
    """Under ``amateur`` and ``tuned``: a model, or ``drop:N``."""
    small: str | None = None
    small_share: float = 0.25
    small_ranks: int = 1
    """Tensor-parallel ranks of the small engine."""
    look_back: bool = False

    @classmethod
    def of(cls, args: Namespace) -> Extras:
        """Reads the flags.

        Raises:
            StartupError: they contradict each other, or ``drop:`` names no number.
        """
        amateurs = {name: value for name in ("amateur", "tuned") if (value := getattr(args, name))}
        if "tuned" in amateurs and "amateur" not in amateurs:
            raise StartupError("--tuned needs --amateur, the same model before it was tuned")
        if not 0 < args.small_share < 1:
            raise StartupError(f"--small-share is between 0 and 1, not {args.small_share}")
        if (ranks := args.small_tensor_parallel_size) < 1:
            raise StartupError(f"--small-tensor-parallel-size is at least 1, not {ranks}")
        if amateurs:
            from divserve.engine.models.drop import dropped_layers

            for model in amateurs.values():
                dropped_layers(model)
        return cls(amateurs, args.small, args.small_share, ranks, args.look_back)

    @property
    def names(self) -> frozenset[str]:
        """The available extras: any of ``amateur``, ``tuned``, ``small`` and ``look-back``."""
        there = {"small": self.small is not None, "look-back": self.look_back}
        return frozenset({*self.amateurs, *(name for name, given in there.items() if given)})

    def install(self, config: Any) -> None:
        """Makes a resolved ``VllmConfig`` load the extras of the served model's own engine.

        Raises:
            StartupError: an amateur does not fit the served model, or its states cannot be stored.
        """
        if self.look_back:
            check_look_back(config)
        if self.amateurs:
            self._check_amateurs(config)
        if self.look_back or self.amateurs:
            from divserve.engine.models.loader import load_options

            options = load_options(config.load_config, self.amateurs, self.look_back)
            for name, value in options.items():
                setattr(config.load_config, name, value)

    def _check_amateurs(self, config: Any) -> None:
        from divserve.engine.models.loader import amateur_config

        drops = any(model.startswith("drop:") for model in self.amateurs.values())
        refuse(AMATEUR, SimpleNamespace(config=config, drops=drops), " with --amateur")
        for model in self.amateurs.values():
            amateur = amateur_config(config.model_config, model)
            own = SimpleNamespace(config=SimpleNamespace(model_config=amateur))
            refuse((RECURRENT,), own, " with --amateur")
            if not model.startswith("drop:"):
                check_tokenizer(config.model_config, model)
            check_vocabulary(config.model_config, amateur, model)

    def small_arguments(self, engine_args: Any, served_name: str) -> Any:
        """The small engine's arguments: the served model's, except those specific to a model."""
        args = copy.copy(engine_args)
        own: dict[str, Any] = {
            "model": self.small,
            "served_model_name": [f"{served_name}{SMALL_SUFFIX}"],
            "tokenizer": None,
            "revision": None,
            "code_revision": None,
            "tokenizer_revision": None,
            "hf_config_path": None,
            "hf_overrides": {},
            "quantization": None,
            "enable_lora": False,
            "lora_modules": None,
            "load_format": "auto",
            "model_loader_extra_config": {},
            "override_generation_config": {},
            # Its heads need not be divisible by the served model's number of ranks.
            "tensor_parallel_size": self.small_ranks,
            "pipeline_parallel_size": 1,
            "decode_context_parallel_size": 1,
            "enable_expert_parallel": False,
            # `split_memory` divides the cache; the events of two engines would share an address.
            "num_gpu_blocks_override": None,
            "kv_events_config": None,
        }
        if is_drafter(getattr(args, "speculative_config", None)):
            # The small model has no amateur.
            own["speculative_config"] = None
        for name, value in own.items():
            if hasattr(args, name):
                setattr(args, name, value)
        return args

    def check_small(self, large: Any, small: Any) -> None:
        """Raises `StartupError` unless the small model can continue the large one's answers.

        Args:
            large, small: vLLM's ``ModelConfig``.
        """
        if self.small is None:
            raise StartupError("there is no small model to check")
        check_tokenizer(large, self.small)
        check_vocabulary(large, small, self.small)

    def split_memory(self, large: Any, small: Any) -> None:
        """Divides the memory between both engines.

        Args:
            large, small: resolved ``VllmConfig``, each as if it were alone.
        """
        # Otherwise the engines' processes would read the variable again.
        os.environ.pop(CACHE_VARIABLE, None)
        for config, share in ((large, 1 - self.small_share), (small, self.small_share)):
            cache = config.cache_config
            if cache.kv_cache_memory_bytes is not None:
                cache.kv_cache_memory_bytes = int(cache.kv_cache_memory_bytes * share)
            else:
                cache.gpu_memory_utilization *= share


def check_tokenizer(served: Any, model: str) -> None:
    """Raises `StartupError` unless ``model`` has the tokenizer of the served one.

    Args:
        served: vLLM's ``ModelConfig``; without a tokenizer nothing is compared.
        model: path or name.
    """
    if served.skip_tokenizer_init:
        return
    from vllm.tokenizers import get_tokenizer

    options = {
        "tokenizer_mode": served.tokenizer_mode,
        "trust_remote_code": served.trust_remote_code,
    }
    try:
        other: Any = get_tokenizer(model, **options)
    except (OSError, ValueError) as error:
        raise StartupError(f"{model} has no tokenizer to compare: {one_line(error)}") from error
    own: Any = get_tokenizer(served.tokenizer, revision=served.tokenizer_revision, **options)
    if own.get_vocab() != other.get_vocab() or any(
        own.encode(text) != other.encode(text) for text in PROBES
    ):
        raise StartupError(
            f"{served.model} and {model} have different tokenizers: their distributions cannot be "
            "compared token by token"
        )


def check_vocabulary(served: Any, other: Any, model: str) -> None:
    """Raises `StartupError` if a model has no embedding for a token of the served tokenizer."""
    if served.skip_tokenizer_init:
        return
    from vllm.tokenizers import cached_tokenizer_from_config

    tokens, rows = len(cached_tokenizer_from_config(served)), other.get_vocab_size()
    if rows < tokens:
        raise StartupError(f"{model} has {rows} rows for the {tokens} tokens of {served.model}")
