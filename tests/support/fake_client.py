"""An engine client without an engine: it reads requests as vLLM does and answers from a script.

The HTTP layer above it is the real one, with SmolLM2's tokenizer and chat template.
"""

from __future__ import annotations

import asyncio
from argparse import Namespace
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np

from divserve.batches.flags import BatchSettings
from divserve.decoding import EXCLUDED, STATISTICS, Figures, Read, presets
from divserve.decoding.spec import Top
from divserve.edges.flags import EdgeSettings
from divserve.engine.compat import moved
from divserve.engine.order import OnSmall
from divserve.errors import ApiError
from divserve.scores import Scoring
from divserve.startup.extras import Extras
from tests.support.models import SMOLLM2

MAX_GUIDE_TOKENS, MAX_ROWS = 255, 8
ANSWER = " Lyon is the capital"
FIGURES = {"entropy": 1.0, "kl": 0.5, "jsd": 0.25, "alpha": 0.75}
ROW = tuple(FIGURES.get(name, 1.0) for name in STATISTICS)


class FakeClient:
    """Answers every request with the tokens of `ANSWER`, one result per token in a stream."""

    errored = False
    is_running = True
    compute_ratio = 0.25

    def __init__(self, config: Any) -> None:
        from vllm.renderers import renderer_from_config
        from vllm.v1.engine.input_processor import InputProcessor

        self.vllm_config = config
        self.capacity = SimpleNamespace(max_guide_tokens=MAX_GUIDE_TOKENS, max_rows=MAX_ROWS)
        self.model_config = config.model_config
        self.renderer = renderer_from_config(config)
        self.input_processor = InputProcessor(config, self.renderer)
        self.answer: list[int] = self.renderer.tokenizer.encode(ANSWER)
        self.orders: list[Any] = []
        """The engine's order of every request so far; None for a plain one."""
        self.fail_at: int | None = None
        """Number of tokens after which `error` is raised."""
        self.error: Exception = ApiError("broken")
        self.stall_at: int | None = None
        """Number of tokens after which it calls `stalled` and goes silent."""
        self.stalled: Callable[[], None] = lambda: None
        self.row: tuple[float, ...] = ROW
        self.excluded = 0
        """Tokens at the beginning of scored texts that the method excludes."""
        self.report = True
        """Whether statistics come with the tokens."""
        self.tops = True
        """Whether the likeliest tokens come with them, where they are asked for."""
        self.models: list[str] = []
        """The model of each token, for a request that moves between two."""
        self.engines = {"large": True, "small": True}

    def health(self) -> dict[str, bool]:
        return self.engines

    async def get_supported_tasks(self) -> tuple[str, ...]:
        return ("generate",)

    def check_admission(self, *args: Any, **kwargs: Any) -> None: ...

    async def check_health(self) -> None: ...

    async def is_tracing_enabled(self) -> bool:
        return False

    async def generate(
        self, prompt: Any, params: Any, request_id: str, **options: Any
    ) -> AsyncIterator[Any]:
        from vllm.outputs import RequestOutput
        from vllm.sampling_params import RequestOutputKind

        self.input_processor.process_inputs(request_id, prompt, params, ("generate",))
        order = (params.extra_args or {}).get("divserve")
        self.on_small = isinstance(order, OnSmall)
        order = order.spec if isinstance(order, OnSmall) else order
        self.orders.append(order and msgspec.to_builtins(order))
        stream = params.output_kind == RequestOutputKind.DELTA
        for done, token in enumerate(self.answer):
            if done == self.fail_at:
                raise self.error
            if done == self.stall_at:
                self.stalled()
                await asyncio.Event().wait()
            last = done + 1 == len(self.answer)
            if stream or last:
                tokens = [token] if stream else self.answer
                logprobs = None if params.logprobs is None else self._logprobs(tokens)
                outputs = [self._output(i, tokens, logprobs, last) for i in range(params.n)]
                ids, of_prompt = prompt["prompt_token_ids"], None
                if params.prompt_logprobs is not None:
                    of_prompt = [None, *self._logprobs(ids[1:])]
                for output in outputs:
                    output.read = self._read(order)
                yield RequestOutput(request_id, None, ids, of_prompt, outputs, finished=last)

    def _read(self, order: Any) -> Read | None:
        """The figures of a scored text: every one 0.5, its rank 2; its likeliest tokens 5, 6 …"""
        if order is None or order.reading is None or not self.report:
            return None
        asked = order.reading
        figures = np.full((asked.tokens, len(Figures._fields)), 0.5, np.float32)
        figures[:, Figures._fields.index("rank")] = 2
        for name in ("logprob", "own_logprob", "guide_logprob", "reference_logprob"):
            figures[:, Figures._fields.index(name)] = -0.5
        if not order.guides:
            for name in ("guide_logprob", "kl", "jsd"):
                figures[:, Figures._fields.index(name)] = np.nan
        longest = max(map(len, asked.ids), default=0)
        figures[: self.excluded, Figures._fields.index("logprob")] = EXCLUDED
        ids = np.tile(np.arange(5, 5 + asked.top, dtype=np.int32), (asked.tokens, 1))
        halves = [np.full((asked.tokens, n), -0.5, np.float32) for n in (asked.top, longest)]
        return Read(figures.tobytes(), ids.tobytes(), *(half.tobytes() for half in halves))

    def _logprobs(self, tokens: list[int]) -> list[Any]:
        from vllm.logprobs import Logprob

        text = self.renderer.tokenizer.decode
        return [{token: Logprob(-1.0, 1, text([token]))} for token in tokens]

    def _top(self, token: int, top: int) -> Top:
        """Of a primary, a guide and their contrast, which has dropped all tokens but one."""
        ids = (token, *(other for other in self.answer if other != token))[:top]
        logprobs = tuple(-0.5 - place for place in range(len(ids)))
        return ((ids, logprobs), (ids[::-1], logprobs), ((token,), (-1 / 3,)))

    def _output(self, index: int, tokens: list[int], logprobs: Any, last: bool) -> Any:
        from vllm.outputs import CompletionOutput

        text = self.renderer.tokenizer.decode(tokens)
        reason = "length" if last else None
        output = CompletionOutput(index, text, tokens, None, logprobs, finish_reason=reason)
        if self.orders[-1] is not None and self.report:
            output.guidance = [self.row] * len(tokens)
            if top := self.orders[-1]["top"]:
                output.tops = [self._top(token, top) for token in tokens] if self.tops else []
            output.models = [self.models.pop(0) for _ in tokens[: len(self.models)]]
        return output


def arguments(batches: BatchSettings | None = None, **edges: Any) -> Namespace:
    """The parsed arguments of a small server of SmolLM2.

    Args:
        batches: the flags of batches, if they are not the defaults.
        edges: flags of the edges that differ from their defaults.
    """
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = moved("make_arg_parser")(FlexibleArgumentParser())
    flags = ["--served-model-name", "smol", "--dtype", "float32", "--max-model-len", "256"]
    args: Namespace = parser.parse_args([str(SMOLLM2), *flags])
    args.model = args.model_tag
    args.decodings = presets.load([])
    args.log_format, args.log_prompts = None, False
    args.extras = Extras({"amateur": "drop:4"}, small="tiny")
    args.edges = EdgeSettings(**edges)
    args.batches = batches or BatchSettings()
    args.scoring = Scoring()
    return args
