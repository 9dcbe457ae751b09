"""The engine client that the OpenAI layer talks to: vLLM's own, plus the statistics of every token.

Plain requests get vLLM's generator itself and pay nothing per token. A guided request's outputs
carry the statistics of each token in ``CompletionOutput.guidance``. A token without them ends the
request with an error, so the client of a guided request never gets a plainly decoded token.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from typing import Any

from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from divserve import metrics
from divserve.decoding import Spec
from divserve.engine import faults
from divserve.engine.client import dead_ranks, half_characters
from divserve.engine.client.capacity import Capacity
from divserve.engine.client.gone import EngineStopped, ShuttingDown
from divserve.engine.client.hand_off import HandOff
from divserve.engine.client.ledger import Account, Ledger
from divserve.engine.client.model_size import parameter_ratio
from divserve.engine.client.orders import (
    check_adapters,
    check_drafts,
    check_extras,
    check_switch,
    order_of,
)
from divserve.engine.order import OnSmall, with_spec, without_orders
from divserve.errors import DecodingFailed, InvalidRequest, Unavailable

__all__ = ["GuidedClient"]

LOST = "the engine could not keep the two streams of this request in lock-step; retry the request"


class GuidedClient:
    """Wraps ``AsyncLLM``; every attribute that is not defined here is taken from it."""

    def __init__(self, inner: AsyncLLM, extras: frozenset[str] = frozenset()) -> None:
        self.inner = inner
        self.capacity = Capacity(inner.vllm_config, len(inner.engine_core.core_engines))
        self.extras = extras
        """Names of the models beside the served one."""
        half_characters.install(inner.output_processor)
        dead_ranks.install(inner.output_processor, inner.engine_core.resources)
        self.ledger = Ledger(inner.output_processor)
        self._propagate_error = inner.output_processor.propagate_error
        inner.output_processor.propagate_error = self._tell
        self.small: GuidedClient | None = None
        self.compute_ratio: float | None = None
        """Parameters of the small model over those of the large one; None if not known."""
        self._hand_off: HandOff | None = None
        self._loop = asyncio.get_running_loop()

    def attach_small(self, small: GuidedClient) -> None:
        """Adds a small engine; `shutdown` of this client stops it too."""
        self.small = small
        self._hand_off = HandOff(self.inner, small.inner)
        self.compute_ratio = parameter_ratio(small.model_config, self.model_config)

    def _tell(self, error: Exception) -> None:
        """Ends every request under way with the error of the engine."""
        if not isinstance(error, EngineDeadError):
            self._propagate_error(error)
            return
        for state in self.inner.output_processor.request_states.values():
            state.queue.put(EngineStopped())

    def health(self) -> dict[str, bool]:
        """Whether each engine is alive, under ``large`` and ``small``."""
        found = {"large": not self.inner.errored}
        if self.small is not None:
            found["small"] = not (self.small.inner.errored or self._small_is_lost())
        return found

    def _small_is_lost(self) -> bool:
        return self._hand_off is not None and self._hand_off.lost

    def large_works(self) -> bool:
        """Whether requests of the served model are under way."""
        return bool(self.inner.output_processor.request_states)

    def small_works(self) -> bool:
        """Whether the small engine has requests of its own or runs a segment of an answer."""
        moving = self._hand_off is not None and self._hand_off.on_small
        return moving or (self.small is not None and self.small.large_works())

    @property
    def dead_error(self) -> BaseException:
        """The error of requests that arrive after the engine has died."""
        return EngineStopped()

    def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **options: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """vLLM's ``generate``; outputs of guided requests carry ``guidance``.

        A request is guided if `divserve.engine.order.with_spec` has marked its parameters.

        Raises:
            VLLMValidationError: the mark is not one of ours, so a client must have put it there, or
                the server's drafts exclude a parameter.
            EngineStopped: the engine is dead.

        Raises (while iterating):
            InvalidRequest: the group can never fit in the KV cache.
            DecodingFailed: a token was sampled without its guide.
        """
        spec = order_of(sampling_params)
        if self.inner.errored:
            raise EngineStopped
        check_drafts(sampling_params, self.inner.vllm_config.speculative_config)
        if isinstance(spec, OnSmall):
            return self._on_small(prompt, sampling_params, spec, request_id, options)
        if spec is None:
            plain: AsyncGenerator[RequestOutput, None] = self.inner.generate(
                prompt, sampling_params, request_id, **options
            )
            return plain
        return self._guided(prompt, sampling_params, spec, request_id, options)

    async def _guided(
        self,
        prompt: Any,
        params: SamplingParams,
        spec: Spec,
        request_id: str,
        options: dict[str, Any],
    ) -> AsyncGenerator[RequestOutput, None]:
        if params.output_kind == RequestOutputKind.CUMULATIVE:
            raise ValueError("guided requests are collected as DELTA or FINAL_ONLY")
        self.capacity.check(len(prompt["prompt_token_ids"]), [len(s) for s in spec.texts])
        check_extras(spec, self.extras)
        adapters = self.inner.vllm_config.lora_config
        check_adapters(spec, options.get("lora_request"), adapters.max_loras if adapters else 0)
        if spec.switch is not None:
            check_switch(prompt["prompt_token_ids"], params, options, self._shared_vocab())
        vocab = None if spec.switch is None else self._shared_vocab()
        account, order = self.ledger.open(spec, vocab)
        order.put_on(params)
        inner = self.inner.generate(prompt, params, request_id, **options)
        try:
            async for output in inner:
                _account_for(output, account)
                yield output
        finally:
            # Closing vLLM's generator aborts what is still running, guide row included.
            await inner.aclose()
            self.ledger.close(account)

    def _shared_vocab(self) -> int:
        """Token ids below this one are known to both engines."""
        configs = [self.model_config, *([] if self.small is None else [self.small.model_config])]
        return min(int(config.get_vocab_size()) for config in configs)

    async def _on_small(
        self,
        prompt: Any,
        params: SamplingParams,
        order: OnSmall,
        request_id: str,
        options: dict[str, Any],
    ) -> AsyncGenerator[RequestOutput, None]:
        """Runs the request on the small model alone, plain or with a method that needs one model.

        Raises:
            Unavailable: its engine has stopped.
        """
        stopped = Unavailable("The engine of the small model has stopped.", param="model")
        if self.small is None or not self.health()["small"]:
            raise stopped
        params.extra_args = without_orders(params.extra_args)
        if order.spec is not None:
            with_spec(params, order.spec)
        outputs = self.small.generate(prompt, params, request_id, **options)
        try:
            async with aclosing(outputs):
                async for output in outputs:
                    yield output
        except EngineDeadError:
            raise stopped from None

    async def end_requests(self) -> None:
        """Ends every request under way with `ShuttingDown`; the engines drop what they ran.

        Raises:
            Exception: an engine could not be told; the requests have been ended all the same.
        """
        if self._hand_off is not None:
            self._hand_off.close()
        engines = [self.inner, *([] if self.small is None else [self.small.inner])]
        running = [dict(engine.output_processor.request_states) for engine in engines]
        for states in running:
            for state in states.values():
                # One object each: an exception collects the tracebacks of all who raise it.
                state.queue.put(ShuttingDown())
        aborts = (
            engine.engine_core.abort_requests_async(list(states))
            for engine, states in zip(engines, running, strict=True)
        )
        for error in await asyncio.gather(*aborts, return_exceptions=True):
            if error is not None and not isinstance(error, EngineDeadError):
                raise error

    def shutdown(self, timeout: float | None = None) -> None:
        """Stops the engine (``timeout`` seconds to finish), then ends the streams still open.

        vLLM alone would leave them, and so the server, waiting for an engine that is gone. An error
        of one step is raised after the others.
        """
        with ExitStack() as last_first:
            last_first.callback(self._end_streams)
            last_first.callback(self.inner.shutdown, timeout=timeout)
            if self.small is not None and self._hand_off is not None:
                self._hand_off.close()
                last_first.callback(self.small.shutdown, timeout=timeout)

    def _end_streams(self) -> None:
        if not self._loop.is_closed():
            gone = ShuttingDown()
            self._loop.call_soon_threadsafe(self.inner.output_processor.propagate_error, gone)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def _account_for(output: RequestOutput, account: Account) -> None:
    """Adds the statistics to each choice's tokens, or raises the error that the engine reported."""
    if account.error is not None and account.refused:
        raise InvalidRequest(account.error, param="decoding.guide", code="context_length_exceeded")
    if account.error is not None:
        code = "lockstep_lost" if account.error == faults.LOST else None
        raise DecodingFailed(account.error, param="decoding", code=code)
    for choice in output.outputs:
        rows = account.take(choice.index, len(choice.token_ids))
        if len(rows) != len(choice.token_ids):
            metrics.broken_pair("front_end", len(choice.token_ids) - len(rows))
            raise DecodingFailed(LOST, param="decoding", code="lockstep_lost")
        choice.guidance = rows
        choice.tops = account.take_tops(choice.index, len(choice.token_ids))
        choice.models = account.take_models(choice.index, len(choice.token_ids))
        choice.drafts = account.take_drafts(choice.index, len(choice.token_ids))
        choice.read = account.read
