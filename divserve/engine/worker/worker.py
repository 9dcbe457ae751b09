"""vLLM's workers with the guided runner installed; named in the engine's ``worker_cls``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from vllm.distributed.parallel_state import get_pp_group
from vllm.logger import init_logger
from vllm.v1.kv_cache_interface import MambaSpec
from vllm.v1.worker.cpu_worker import CPUWorker
from vllm.v1.worker.gpu_worker import Worker

# Importing the loader registers it in this process.
from divserve.engine.models import loader
from divserve.engine.models.asleep import AmateursAsleep
from divserve.engine.models.hidden_store import LAYER, store_of
from divserve.engine.worker import runner_v1, runner_v2
from divserve.engine.worker.lora import skip_base_rows
from divserve.engine.worker.ranks import Ranks
from divserve.engine.worker.rejection import expand_drafts
from divserve.errors import StartupError
from divserve_kernels.selfcheck import (
    KINDS,
    Kind,
    States,
    check,
    compile_ahead,
    takes_long,
)

if TYPE_CHECKING:
    from divserve_kernels.ahead import Ahead

__all__ = ["GuidedCPUWorker", "GuidedGPUWorker"]

logger = init_logger("vllm.divserve")


class _LoudRank:
    """Mixin before one of vLLM's workers: an exception in a step is heard on every rank.

    vLLM awaits the reply of one rank and only logs the exceptions of others, which would go on with
    another state than the rest, or leave the next stage of a pipeline waiting. The executor notices
    a process that ends.
    """

    parallel_config: Any

    def execute_model(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the model."""
        with Ranks.of_engine(self.parallel_config.world_size).together():
            return super().execute_model(*args, **kwargs)  # type: ignore[misc]

    def sample_tokens(self, *args: Any, **kwargs: Any) -> Any:
        """Samples the tokens of the step."""
        with Ranks.of_engine(self.parallel_config.world_size).together():
            return super().sample_tokens(*args, **kwargs)  # type: ignore[misc]


class GuidedCPUWorker(_LoudRank, CPUWorker):
    """CPU worker."""

    def init_device(self) -> None:
        """Checks the kernels, builds vLLM's runner, then hooks into it."""
        # Before vLLM binds this thread to one core, because the kernels' threads inherit its cores.
        _check_kernels(torch.device("cpu"), self.model_config.get_vocab_size())
        skip_base_rows()
        expand_drafts()
        super().init_device()
        _install(self)

    def load_model(self, **kwargs: Any) -> None:
        """Loads the models, then checks the hidden store."""
        super().load_model(**kwargs)
        _make_room_for_states(self)
        _check_store(self)

    def get_kv_cache_spec(self) -> dict[str, Any]:
        """As vLLM's, without states in the middle of a chunk: the CPU's kernel returns none.

        The scheduler then ends chunks where states are to be cached.
        """
        return {
            name: replace(spec, num_prefill_checkpoint_blocks=0, prefill_checkpoint_alignment=None)
            if isinstance(spec, MambaSpec)
            else spec
            for name, spec in super().get_kv_cache_spec().items()
        }

    def update_config(self, overrides: dict[str, Any]) -> None:
        """As vLLM's; raises `ValueError` if the extras would be lost."""
        loader.check_overrides(self.vllm_config.load_config, overrides)
        super().update_config(overrides)


class GuidedGPUWorker(_LoudRank, Worker):
    """CUDA worker."""

    def init_device(self) -> None:
        """Builds vLLM's runner, then hooks into it."""
        super().init_device()
        _install(self)
        vocab = self.model_config.get_vocab_size()
        self._ahead = _compile(self.device, vocab, _kinds(self), _states(self))

    def load_model(self, **kwargs: Any) -> None:
        """Loads the models, then checks the kernels and the hidden store."""
        super().load_model(**kwargs)
        _wait(self._ahead)
        kinds = _kinds(self, loader.amateur_vocab(self.get_model()))
        _check_kernels(self.device, self.model_config.get_vocab_size(), kinds)
        _check_store(self)
        self._amateurs = AmateursAsleep()

    def update_config(self, overrides: dict[str, Any]) -> None:
        """As vLLM's; raises `ValueError` if the extras would be lost."""
        loader.check_overrides(self.vllm_config.load_config, overrides)
        super().update_config(overrides)

    def sleep(self, level: int = 1) -> None:
        """As vLLM's, except that level 2 keeps the amateurs' weights."""
        self._amateurs.sleep(self.get_model(), level)
        super().sleep(level)

    def wake_up(self, tags: list[str] | None = None) -> None:
        """As vLLM's; then puts back the amateurs' weights."""
        super().wake_up(tags)
        self._amateurs.wake_up(tags)


def _install(worker: Any) -> None:
    module = runner_v2 if worker.use_v2_model_runner else runner_v1
    module.install(worker.model_runner)


def _make_room_for_states(worker: Any) -> None:
    """Allocates what a later stage of a pipeline receives.

    Model runner V1 of vLLM 0.32 does so in its warm-up, which it leaves out on CPU.
    """
    runner = worker.model_runner
    if not get_pp_group().is_first_rank and runner.intermediate_tensors is None:
        runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
            batch_size=runner.max_num_tokens, dtype=runner.dtype, device=runner.device
        )


def _kinds(worker: Any, amateurs_vocab: int | None = None) -> tuple[Kind, ...]:
    """The tensors that the kernels of a GPU are given; those of a CPU do not depend on them.

    Args:
        worker: the GPU worker.
        amateurs_vocab: if it is known.
    """
    dtype, load = worker.model_config.head_dtype, worker.vllm_config.load_config
    alone = Kind(dtype)
    if load.load_format == loader.LOAD_FORMAT and load.model_loader_extra_config["amateurs"]:
        return alone, Kind(dtype, dtype, amateurs_vocab)
    return (alone,)


def _states(worker: Any) -> States | None:
    """The store of hidden states that a GPU will have."""
    config = worker.vllm_config
    load, model = config.load_config, worker.model_config
    if (
        load.load_format != loader.LOAD_FORMAT
        or not load.model_loader_extra_config["hidden_states"]
    ):
        return None
    return States(config.cache_config.block_size, model.get_hidden_size(), model.dtype)


def _compile(
    device: torch.device, vocab: int, kinds: Sequence[Kind], states: States | None
) -> Ahead | None:
    """Starts to compile the kernels in other processes, if the back end is compiled that way."""
    ahead = compile_ahead(device, vocab, kinds, states)
    if ahead is not None and ahead.missing:
        logger.info(
            "Guidance kernels: compiling %d variants (once for this GPU) while the model is loaded",
            ahead.missing,
        )
    return ahead


def _wait(ahead: Ahead | None) -> None:
    if ahead is not None and ahead.missing:
        logger.info("Guidance kernels: compiled %.1f s after the model was loaded", ahead.wait())


def _check_kernels(device: torch.device, vocab: int, kinds: Sequence[Kind] = KINDS) -> None:
    """Compiles the kernels before the first request needs them, and checks their results."""
    if takes_long(device):
        logger.info("Guidance kernels: compiling them, once on this machine (about 10 s)")
    found = check(device, vocab, kinds)
    if not found.passed:
        raise StartupError(
            f"the {found.back_end} kernels are wrong on {device} (error {found.error:.1e}): "
            "please report the output of 'divserve doctor'; DIVSERVE_KERNELS=torch avoids them"
        )
    logger.info(
        "Guidance kernels: %s, largest error against float64 %.0e, ready in %.1f s",
        found.back_end,
        found.error,
        found.seconds,
    )


def _check_store(worker: Any) -> None:
    """Checks that hidden states reproduce the distributions, then logs their memory cost."""
    model = worker.get_model()
    store = store_of(model)
    if store is None:
        return
    store.check(model.compute_logits)
    store.warm()
    sizes = {
        name: spec.page_size_bytes / spec.block_size
        for name, spec in worker.get_kv_cache_spec().items()
    }
    own, total = sizes[LAYER], sum(sizes.values())
    logger.info(
        "Look-back: hidden states take %d of %d bytes per token of KV cache (%.1f %%)",
        own,
        total,
        100 * own / total,
    )
