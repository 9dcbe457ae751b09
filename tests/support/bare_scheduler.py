"""A scheduler without an engine, with simulated workers: a step takes milliseconds at most."""

from __future__ import annotations

import functools
import os
from collections import deque
from pathlib import Path
from typing import Any
from zlib import crc32

from divserve.decoding import STATISTICS
from divserve.engine.order import Order
from divserve.engine.reported import Guidance, guidance_of, set_guidance
from divserve.engine.scheduler.governor import OPTION
from tests.support.engine import ENVIRONMENT

os.environ.update(ENVIRONMENT)

BLOCK, LONGEST = 16, 1024
TOKEN = 5
"""The token that every row samples."""


@functools.cache
def configured(
    model: Path,
    max_rows: int,
    max_tokens: int,
    policy: str,
    max_loras: int,
    drafts: int = 0,
    governed: bool = True,
) -> Any:
    """vLLM's configuration; making one takes seconds."""
    from vllm.engine.arg_utils import EngineArgs

    drafter = {"method": "ngram", "num_speculative_tokens": drafts, "prompt_lookup_max": 2}
    return EngineArgs(
        speculative_config=drafter if drafts else None,
        additional_config={OPTION: governed},
        model=str(model),
        dtype="float32",
        enforce_eager=True,
        skip_tokenizer_init=True,
        max_model_len=LONGEST,
        block_size=BLOCK,
        max_num_seqs=max_rows,
        max_num_batched_tokens=max_tokens,
        scheduling_policy=policy,
        async_scheduling=False,
        enable_lora=max_loras > 0,
        max_loras=max(max_loras, 1),
    ).create_engine_config()


class BareScheduler:
    """A scheduler and its simulated workers.

    Args:
        cls: the class of the scheduler.
        model: a folder with a configuration; nothing is loaded.
        max_rows: rows at a time.
        max_tokens: tokens of a step.
        blocks: of the KV cache.
        policy: ``"fcfs"`` or ``"priority"``.
        ahead: steps that are scheduled before the first of them has run: 1 is synchronous.
        window: tokens of a sliding window, in a second KV cache group; 0: there is none.
        recurrent: vLLM's ``mamba_cache_mode`` of a KV cache group with recurrent state: ``"align"``
            with the prefix cache, ``"none"`` without it; empty: there is none.
        longest: vLLM's ``--long-prefill-token-threshold``; 0: none.
        adaptive: vLLM's ``--long-prefill-token-threshold-adaptive``.
        drafts: draft tokens of each row.
        governed: whether the governor chooses how many of them are verified.
        interval: vLLM's ``--prefill-schedule-interval``: data-parallel ranks leave prefills to
            every so many steps.
        stages: of a pipeline.
        v2: whether the workers run Model Runner V2.
        max_loras: vLLM's ``--max-loras``; 0: no adapters.
        transfer: vLLM's ``--kv-transfer-config``, with a connector that needs no model.
    """

    def __init__(
        self,
        cls: type[Any],
        model: Path,
        *,
        max_rows: int = 16,
        max_tokens: int = 64,
        blocks: int = 64,
        policy: str = "fcfs",
        ahead: int = 1,
        window: int = 0,
        recurrent: str = "",
        longest: int = 0,
        adaptive: bool = False,
        drafts: int = 0,
        governed: bool = True,
        interval: int = 1,
        stages: int = 1,
        v2: bool = False,
        max_loras: int = 0,
        transfer: dict[str, Any] | None = None,
    ) -> None:
        import torch
        from vllm.config import KVTransferConfig
        from vllm.v1.kv_cache_interface import (
            FullAttentionSpec,
            KVCacheConfig,
            KVCacheGroupSpec,
            MambaSpec,
            SlidingWindowSpec,
        )
        from vllm.v1.structured_output import StructuredOutputManager

        config = configured(model, max_rows, max_tokens, policy, max_loras, drafts, governed)
        config.cache_config.num_gpu_blocks = blocks
        shape: Any = {
            "block_size": BLOCK, "num_kv_heads": 1, "head_size": 1, "dtype": torch.float32,
        }  # fmt: skip
        specs = {"layer": FullAttentionSpec(**shape)}
        if window:
            specs["window"] = SlidingWindowSpec(**shape, sliding_window=window)
        if recurrent:
            specs["state"] = MambaSpec(
                block_size=LONGEST if recurrent == "none" else BLOCK,
                shapes=((1,),),
                dtypes=(torch.float32,),
                mamba_cache_mode=recurrent,
            )
        config.cache_config.mamba_cache_mode = recurrent or "none"
        config.cache_config.enable_prefix_caching = recurrent != "none"
        config.scheduler_config.async_scheduling = ahead > 1
        config.scheduler_config.long_prefill_token_threshold = longest
        config.scheduler_config.long_prefill_token_threshold_adaptive = adaptive
        config.parallel_config.pipeline_parallel_size = stages
        config.kv_transfer_config = KVTransferConfig(**transfer) if transfer else None
        config.scheduler_config.disable_hybrid_kv_cache_manager = bool(transfer)
        cache = KVCacheConfig(
            num_blocks=blocks,
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec([name], spec) for name, spec in specs.items()],
        )
        self._workers = workers_half(config, cache) if transfer else None
        self.scheduler = cls(
            vllm_config=config,
            kv_cache_config=cache,
            structured_output_manager=StructuredOutputManager(config),
            block_size=LONGEST if recurrent == "none" else BLOCK,
            hash_block_size=BLOCK,
        )
        self._window, self._interval = window, interval
        self._states = States(self.scheduler) if recurrent == "align" else None
        self.scheduler.use_v2_model_runner = v2
        self._ahead, self._steps = ahead, deque[tuple[Any, list[str]]]()
        self.answers: dict[str, int] = {}
        """Tokens of each request, by name."""
        self.errors: dict[str, str] = {}
        self.outputs: list[Any] = []
        """vLLM's outputs to the front end."""
        self.steps = 0

    def add(
        self,
        name: str,
        prompt: int,
        order: Order | None = None,
        tokens: int = 4,
        text: str | None = None,
        seed: int | None = None,
        **fields: Any,
    ) -> None:
        """Adds a request with a prompt of so many tokens; no two prompts have a common prefix.

        Args:
            name: the request's id.
            prompt: number of tokens.
            order: what the front end asks for.
            tokens: length limit of the answer.
            text: requests with the same have a common prefix; the name by default.
            seed: the answer is sampled; None: it is greedy.
            fields: of vLLM's ``Request``.
        """
        from vllm import SamplingParams
        from vllm.utils.hashing import get_hash_fn_by_name
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
        from vllm.v1.request import Request

        hashed = get_hash_fn_by_name("sha256")
        init_none_hash(hashed)
        params = SamplingParams(
            temperature=0 if seed is None else 1,
            seed=seed,
            max_tokens=tokens,
            ignore_eos=True,
            detokenize=False,
            extra_args=None if order is None else order.pack(),
        )
        first = 7 + crc32((text or name).encode()) % 400
        self.scheduler.add_request(
            Request(
                request_id=name,
                prompt_token_ids=[first + i for i in range(prompt)],
                sampling_params=params,
                pooling_params=None,
                block_hasher=get_request_block_hasher(BLOCK, hashed),
                **fields,
            )
        )

    def step(self) -> None:
        """Schedules a step, and runs the oldest pending one once there are enough."""
        output = self.scheduler.schedule(self.steps % self._interval != 0)
        requests = self.scheduler.requests
        sampling = [i for i in output.num_scheduled_tokens if not requests[i].is_prefill_chunk]
        if self._window:
            self._check_windows(output)
        if self._states is not None:
            self._states.run(output)
        self._steps.append((output, sampling))
        self.steps += 1
        if len(self._steps) >= self._ahead:
            self.update(*self._steps.popleft())

    def _check_windows(self, output: Any) -> None:
        """Asserts that every row has the blocks of the window before its first token."""
        of_window = self.scheduler.kv_cache_manager.coordinator.single_type_managers[1]
        for name, tokens in output.num_scheduled_tokens.items():
            request = self.scheduler.requests[name]
            done = request.num_computed_tokens
            # Drafts of steps in flight may be rejected.
            surely = min(done - tokens, done - request.num_in_flight_tokens)
            first = max(0, surely - self._window + 1)
            blocks = of_window.req_to_blocks[name][first // BLOCK : -(-done // BLOCK)]
            assert blocks, name
            assert not any(block.is_null for block in blocks), f"no window: {name}"

    def update(self, output: Any, sampling: list[str]) -> None:
        """Simulates the workers of a step: every row whose tokens have all been read samples."""
        made = self.played(output, sampling)
        if self._workers is not None:
            made.kv_connector_output = self._transfer(output)
        for client in self.scheduler.update_from_output(output, made).values():
            for one in client.outputs:
                self.outputs.append(one)
                self.answers[one.request_id] = self.answers.get(one.request_id, 0) + len(
                    one.new_token_ids
                )
                report = (one.kv_transfer_params or {}).get("divserve")
                if report is not None and getattr(report, "error", None):
                    self.errors[one.request_id] = report.error

    def _transfer(self, output: Any) -> Any:
        """What the workers' half of the connector does in a step."""
        from vllm.v1.outputs import KVConnectorOutput

        half: Any = self._workers
        half.bind_connector_metadata(output.kv_connector_metadata)
        half.start_load_kv(None)
        half.wait_for_save()
        results = half.get_transfer_results(output.finished_req_ids)
        return KVConnectorOutput(
            finished_sending=results.finished_sending,
            finished_recving=results.finished_recving,
            failed_recving=results.failed_recving,
            invalid_block_ids=half.get_block_ids_with_load_errors(),
        )

    def played(self, output: Any, sampling: list[str]) -> Any:
        """The ``ModelRunnerOutput`` of a step in which these rows sample."""
        return played(output, sampling)

    def run(self, steps: int = 1000) -> None:
        """Runs until nothing is left to do.

        Raises:
            RuntimeError: that takes too many steps.
        """
        for _ in range(steps):
            if not self.scheduler.requests:
                while self._steps:
                    self.update(*self._steps.popleft())
                return
            self.step()
        raise RuntimeError(f"stuck: {[*self.scheduler.requests]}")


class States:
    """What the blocks of recurrent state hold, as the workers write them."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        *_, self._manager = scheduler.kv_cache_manager.coordinator.single_type_managers
        self._texts: dict[int, tuple[int, ...]] = {}
        """By block: the tokens after which the state is that of the block."""

    def run(self, output: Any) -> None:
        """Runs a step, whose rows first read their states; asserts that they find them."""
        written: dict[int, tuple[int, ...]] = {}
        for name, tokens in output.num_scheduled_tokens.items():
            request = self._scheduler.requests[name]
            done, prompt = request.num_computed_tokens, request.prompt_token_ids
            text = (*prompt, *[TOKEN] * (done - len(prompt)))[:done]
            blocks = self._manager.req_to_blocks[name]
            if before := done - tokens:
                source = blocks[(before - 1) // BLOCK]
                assert not source.is_null, name
                assert self._texts[source.block_id] == text[:before], f"not its state: {name}"
            written[blocks[(done - 1) // BLOCK].block_id] = text
        self._texts |= written


def workers_half(config: Any, cache: Any) -> Any:
    """The half of a KV connector that belongs to the workers."""
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
    from vllm.distributed.kv_transfer.kv_connector.v1 import KVConnectorRole

    return KVConnectorFactory.create_connector(config, KVConnectorRole.WORKER, cache)


def played(output: Any, sampling: list[str]) -> Any:
    """A ``ModelRunnerOutput`` of a step in which these rows sample."""
    from vllm.v1.outputs import ModelRunnerOutput

    names, sampled = list(output.num_scheduled_tokens), set(sampling)
    made = ModelRunnerOutput(
        req_ids=names,
        req_id_to_index={name: i for i, name in enumerate(names)},
        sampled_token_ids=[[TOKEN] if name in sampled else [] for name in names],
    )
    statistics = {name: [(0.5,) * len(STATISTICS)] for name in sampling}
    set_guidance(made, Guidance(statistics, 1e-4))
    assert guidance_of(made).statistics is statistics
    return made
