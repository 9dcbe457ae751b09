"""Data-parallel ranks behind one client, each in its own process, for async tests."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from divserve.decoding import METHODS, Stack
from divserve.startup.extras import Extras
from tests.support.engine import DEFAULTS
from tests.support.two_engines import Pair

__all__ = ["FLAGS", "GAUGES", "PROMPT", "SEED", "Ranks", "data_parallel", "spec"]

FLAGS = ("--data-parallel-size", "2", "--distributed-executor-backend", "uni")
"""Of ``divserve serve``; the workers run inside the ranks' processes, which saves two starts."""

GAUGES = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
SIZE = 2
PROMPT = list(range(20, 60))
"""What `Ranks.ask_rank` asks."""
SEED = 7
"""Of its draws."""


class Ranks(Pair):
    """The client of the ranks and its event loop."""

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Runs a coroutine to its end; tells how the ranks ended if they did."""
        from divserve.engine.client.gone import EngineStopped

        try:
            return super().run(work)
        except EngineStopped as error:
            processes = self.client.engine_core.resources.engine_manager.processes
            for process in processes:
                process.join(1)
            codes = [process.exitcode for process in processes]
            raise AssertionError(f"the ranks have stopped; their exit codes are {codes}") from error

    def sample(self, name: str, rank: int, **labels: str) -> float:
        """A sample of one of vLLM's metrics of a rank."""
        from prometheus_client import REGISTRY

        model = self.client.model_config.served_model_name
        value = REGISTRY.get_sample_value(
            f"vllm:{name}", {"model_name": model, "engine": str(rank), **labels}
        )
        assert value is not None, name
        return float(value)

    def figures(self) -> dict[str, float]:
        """What must be 0 when nothing runs, after each rank has reported it."""

        async def nudge() -> None:
            """Idle ranks report nothing: asks each once more, and awaits its last report."""
            await asyncio.gather(*(self.ask_rank(rank) for rank in range(SIZE)))
            await asyncio.sleep(0.3)

        self.run(nudge())
        core = self.client.engine_core
        return {
            "states": len(self.client.output_processor.request_states),
            "accounts": len(self.client.ledger._accounts),
            "by request": len(self.client.ledger._by_request),
            "in flight": len(core.reqs_in_flight),
            "counted in flight": sum(core.engine_inflight.values()),
            **{
                f"{name} {rank}": self.sample(name, rank) for name in GAUGES for rank in range(SIZE)
            },
        }

    async def ask_rank(self, rank: int, order: Any = None, tokens: int = 1) -> list[int]:
        """A request to one rank, as the header ``X-data-parallel-rank`` asks for it."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False,
            seed=SEED,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args=None if order is None else {"divserve": order},
        )  # fmt: skip
        self._requests += 1
        inputs = {"type": "token", "prompt_token_ids": PROMPT}
        name, answer = f"r{self._requests}", []
        async for output in self.client.generate(inputs, params, name, data_parallel_rank=rank):
            answer = list(output.outputs[0].token_ids)
        return answer


def spec(method: str, guide: list[int] | None) -> Any:
    """What the front end asks for; None for a plain request."""
    if guide is None:
        return None
    body = {"method": method, "guide": {"prompt": guide}}
    return Stack([METHODS[method].model_validate(body)]).spec(0.0, [guide])


@contextmanager
def data_parallel(model: Path, extras: Extras | None = None, **options: Any) -> Iterator[Ranks]:
    """Starts two ranks, with what runs beside the model; stops them at the end."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    from divserve.startup.engines import guided_engine

    settings: dict[str, Any] = {
        **DEFAULTS, "skip_tokenizer_init": True, "disable_log_stats": False,
        "data_parallel_size": SIZE, "distributed_executor_backend": "uni",
    }  # fmt: skip
    args = AsyncEngineArgs(model=str(model), **settings | options)
    with asyncio.Runner() as runner:
        engine = guided_engine(args, extras)
        client = runner.run(engine.__aenter__())
        try:
            yield Ranks(runner, client)
        finally:
            runner.run(engine.__aexit__(None, None, None))
            # vLLM leaves this to the end of the process.
            client.engine_core.resources.ctx.destroy(linger=0)
