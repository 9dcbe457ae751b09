"""A large and a small engine behind one client, each in its own process, for async tests."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from divserve.decoding import METHODS, Stack
from tests.support.engine import DEFAULTS, ENVIRONMENT
from tests.support.platform import MEMORY_SHARE, ON_GPU

__all__ = ["Answer", "Pair", "switching", "two_engines"]


def switching(**fields: Any) -> Any:
    """The engine's order of a request that moves."""
    method = METHODS["entropy_switch"].model_validate({"method": "entropy_switch", **fields})
    return Stack(method).spec(0.0, [None])


@dataclass
class Answer:
    """One choice as a client collects it from the stream."""

    tokens: list[int] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    rows: list[tuple[float, ...]] = field(default_factory=list)
    logprobs: list[dict[int, Any]] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    @property
    def switches(self) -> int:
        """How often the model changed."""
        return sum(a != b for a, b in pairwise(self.models))


class Pair:
    """The client and its event loop."""

    def __init__(self, runner: asyncio.Runner, client: Any) -> None:
        self._runner = runner
        self.client = client
        self._requests = 0

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Runs a coroutine to its end."""
        return self._runner.run(work)

    async def ask(self, prompt: list[int], order: Any = None, **fields: Any) -> list[Answer]:
        """The answers to a prompt: all choices."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        settings = {"temperature": 0, "max_tokens": 40, "ignore_eos": True}
        params = SamplingParams(
            **(settings | fields),
            output_kind=RequestOutputKind.DELTA,
            extra_args=None if order is None else {"divserve": order},
        )
        self._requests += 1
        answers = [Answer() for _ in range(params.n)]
        inputs = {"type": "token", "prompt_token_ids": prompt}
        async for output in self.client.generate(inputs, params, f"r{self._requests}"):
            for choice in output.outputs:
                answer = answers[choice.index]
                answer.tokens += choice.token_ids
                answer.text += choice.text
                answer.models += getattr(choice, "models", [])
                answer.rows += getattr(choice, "guidance", [])
                answer.logprobs += choice.logprobs or []
                if choice.finish_reason is not None:
                    answer.finish_reason = choice.finish_reason
                    answer.stop_reason = choice.stop_reason
        return answers

    def ask_all(self, requests: list[tuple[list[int], Any]], **fields: Any) -> list[Answer]:
        """The answers to several prompts with their orders, requested at once."""

        async def asked() -> list[Answer]:
            found = await asyncio.gather(*(self.ask(p, o, **fields) for p, o in requests))
            return [answer for (answer,) in found]

        answers: list[Answer] = self.run(asked())
        return answers

    def figures(self) -> dict[str, float]:
        """What must be 0 when nothing runs, after the engines have reported it."""
        from prometheus_client import REGISTRY

        async def nudge() -> None:
            """Idle engines report nothing: asks each once more, and awaits its last report."""
            from divserve.engine.order import OnSmall

            await asyncio.gather(self.ask([9, 8]), self.ask([9, 8], OnSmall(None)))
            await asyncio.sleep(0.3)

        self.run(nudge())
        large = self.client.inner
        labels = {"model_name": large.model_config.served_model_name, "engine": "0"}
        values = {
            "answers under way": len(self.client._hand_off),
            "segments": len(self.client._hand_off._segments),
            "states": len(large.output_processor.request_states),
            "small states": len(self.client.small.inner.output_processor.request_states),
            "accounts": len(self.client.ledger._accounts),
            **{
                name: REGISTRY.get_sample_value(f"vllm:{name}", labels)
                for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
            },
            **{
                f"small {state}": REGISTRY.get_sample_value(
                    "divserve_engine_requests", {"engine": "small", "state": state}
                )
                for state in ("running", "waiting")
            },
            "small cache": REGISTRY.get_sample_value(
                "divserve_engine_kv_cache_usage", {"engine": "small"}
            ),
        }
        return {name: -1.0 if value is None else value for name, value in values.items()}


@contextmanager
def two_engines(
    large: Path, small: Path, *, amateurs: dict[str, str] | None = None, **options: Any
) -> Iterator[Pair]:
    """Starts both engines, the large one with its amateurs; stops them at the end."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    from divserve.startup.engines import guided_engine
    from divserve.startup.extras import Extras

    settings: dict[str, Any] = {**DEFAULTS, "disable_log_stats": False}
    if ON_GPU:
        settings["gpu_memory_utilization"] = 2 * MEMORY_SHARE
    args = AsyncEngineArgs(model=str(large), **settings | options)
    try:
        with asyncio.Runner() as runner:
            extras = Extras(amateurs or {}, small=str(small), small_share=0.5)
            engine = guided_engine(args, extras)
            client = runner.run(engine.__aenter__())
            try:
                yield Pair(runner, client)
            finally:
                runner.run(engine.__aexit__(None, None, None))
                for stopped in (client.inner, client.small.inner):
                    # vLLM leaves this to the end of the process.
                    stopped.engine_core.resources.ctx.destroy(linger=0)
    finally:
        # `Extras.split_memory` removes it.
        os.environ.update(ENVIRONMENT)
