"""One answer from two engines: a request moves between the large one and the small one.

To vLLM's front end the answer is one request of the large engine: one detokenizer, one set of stop
strings, one count of logprobs and usage, one of the n choices. Behind it run *segments*, one at a
time. Each is a request to one of the engines that continues from the prompt and the tokens so far.
A segment ends in the step that decodes its last token (`divserve.engine.scheduler.switch_rules`):
there is no hand-off token. Its output is passed on, without the finish reason, as the answer's own,
and the next segment starts.

When the small engine dies, its answers continue on the large one, and new answers stay there.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from vllm.logger import init_logger
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.metrics.stats import IterationStats

from divserve import metrics
from divserve.engine.client.gone import EngineStopped
from divserve.engine.client.segments import Run
from divserve.engine.client.tasks import Tasks
from divserve.engine.order import Order

__all__ = ["HandOff"]

logger = init_logger("vllm.divserve")


class HandOff:
    """Sits between the front end and the cores of two engines, and tracks the answers that move.

    Args:
        large: vLLM's ``AsyncLLM``, already with its ledger; it owns the answers.
        small: the small model's ``AsyncLLM``.
    """

    def __init__(self, large: Any, small: Any) -> None:
        self.lost = False
        """Whether the small engine has died."""
        self._closed = False
        self._runs: dict[str, Run] = {}
        self._segments: dict[str, Run] = {}
        self._tasks = Tasks()
        self._large, self._small = large, small
        self._add_large = large.engine_core.add_request_async
        self._abort_large = large.engine_core.abort_requests_async
        self._process_large = large.output_processor.process_outputs
        self._process_small = small.output_processor.process_outputs
        self._fail_small = small.output_processor.propagate_error
        large.engine_core.add_request_async = self._add
        large.engine_core.abort_requests_async = self._abort
        large.output_processor.process_outputs = self._from_large
        small.output_processor.process_outputs = self._from_small
        small.output_processor.propagate_error = self._small_failed

    def __len__(self) -> int:
        """Number of answers under way that may move."""
        return len(self._runs)

    @property
    def on_small(self) -> bool:
        """Whether the small engine runs a segment of an answer."""
        return any(run.on_small and run.segment for run in self._runs.values())

    async def _add(self, request: Any) -> None:
        order = Order.of(request.sampling_params)
        if order is None or order.spec.switch is None:
            await self._add_large(request)
            return
        run = self._runs[request.request_id] = Run(request, order)
        try:
            await self._send(run)
        except Exception:
            self._forget(run)
            raise

    async def _send(self, run: Run) -> None:
        """Starts the next segment on the engine that is due, if that one is alive.

        Raises:
            Exception: the engine's client could not send it.
        """
        if self._closed or self._runs.get(run.request_id) is not run:
            return
        if self.lost:
            run.stay()
        on_small = run.wanted == "small"
        segment = run.start(on_small)
        self._segments[segment.request_id] = run
        try:
            await (self._small.engine_core.add_request_async if on_small else self._add_large)(
                segment
            )
        except EngineDeadError:
            if not on_small:
                raise
            self._go_on_large([run])
        if self._runs.get(run.request_id) is not run:
            await self._stop([run])

    async def _abort(self, request_ids: list[str]) -> None:
        """Aborts answers, on whichever engine their segments run, and vLLM's own requests."""
        own = [i for i in request_ids if i not in self._runs]
        try:
            await self._stop([self._forget(self._runs[i]) for i in request_ids if i in self._runs])
        finally:
            await self._abort_large(own)

    async def _stop(self, runs: Iterable[Run]) -> None:
        runs = [run for run in runs if run.segment]
        await self._abort_large([run.segment for run in runs if not run.on_small])
        await self._small.engine_core.abort_requests_async(
            [run.segment for run in runs if run.on_small]
        )

    def _forget(self, run: Run) -> Run:
        self._runs.pop(run.request_id, None)
        self._segments.pop(run.segment, None)
        return run

    def _from_large(self, outputs: list[Any], *args: Any, **kwargs: Any) -> Any:
        runs = self._take(outputs)
        result = self._process_large(outputs, *args, **kwargs)
        self._settle(runs, result)
        return result

    def _from_small(
        self, outputs: list[Any], timestamp: Any = None, stats: Any = None, **kwargs: Any
    ) -> Any:
        """Passes outputs of segments to the large engine; all others stay with the small one."""
        ours = [output for output in outputs if output.request_id in self._segments]
        if ours:
            outputs = [output for output in outputs if output.request_id not in self._segments]
            runs = self._take(ours)
            own_stats = IterationStats() if self._large.log_stats else None
            result = self._process_large(ours, timestamp, own_stats, **kwargs)
            self._settle(runs, result)
            if self._large.logger_manager is not None:
                self._large.logger_manager.record(None, own_stats)
        return self._process_small(outputs, timestamp, stats, **kwargs)

    def _take(self, outputs: list[Any]) -> list[Run]:
        runs = []
        for output in outputs:
            if (run := self._segments.get(output.request_id)) is not None:
                runs.append(run)
                run.take(output)
        return runs

    def _settle(self, runs: list[Run], result: Any) -> None:
        """After vLLM has processed the outputs: forgets ended answers, moves those that switch."""
        # These met a stop string, which only the front end sees: the segment may still run.
        stopped = [self._runs[i] for i in result.reqs_to_abort if i in self._runs]
        result.reqs_to_abort = [i for i in result.reqs_to_abort if i not in self._runs]
        alive = self._large.output_processor.request_states
        for run in runs:
            if run.request_id not in alive:
                self._forget(run)
            elif run.handing_over:
                self._segments.pop(run.segment, None)
                run.segment = ""
                if self.lost:
                    run.stay()
                else:
                    metrics.SWITCHES.labels(run.wanted).inc()
                self._go_on(run)
        if running := [run for run in stopped if not run.handing_over]:
            self._tasks.spawn(self._stop(running), _could_not_stop)

    def close(self) -> None:
        """The engines are about to stop: no answer moves any more."""
        self._closed = True

    def _small_failed(self, error: Exception) -> None:
        """The small engine has died: answers go on with the large one, its own requests fail."""
        if not self._closed:
            # An answer that is being handed over has a task, which will see that the engine died.
            stranded = [r for r in self._runs.values() if r.on_small and not r.handing_over]
            self._go_on_large(stranded)
        self._fail_small(error)

    def _go_on_large(self, runs: list[Run]) -> None:
        if not self.lost:
            for state in ("running", "waiting"):
                metrics.ENGINE_REQUESTS.labels("small", state).set(0)
            metrics.ENGINE_CACHE.labels("small").set(0)
        self.lost = True
        logger.error(
            "The small engine has died; %d answers go on with the large model alone", len(runs)
        )
        for run in runs:
            self._segments.pop(run.segment, None)
            run.segment, run.on_small = "", False
            self._go_on(run)

    def _go_on(self, run: Run) -> None:
        self._tasks.spawn(self._send(run), partial(self._failed, run))

    def _failed(self, run: Run, error: Exception) -> None:
        """The next segment could not be started: the answer ends with the error.

        Its generator then aborts the request, which stops what the engine may have got of it.
        """
        logger.error("An answer could not go on with its next segment", exc_info=error)
        state = self._large.output_processor.request_states.get(run.request_id)
        if state is None:
            self._forget(run)
        else:
            state.queue.put(EngineStopped() if isinstance(error, EngineDeadError) else error)


def _could_not_stop(error: Exception) -> None:
    # Their answers have ended, so nobody waits for these segments; they end at their last token.
    logger.error("Segments behind a stop string could not be stopped", exc_info=error)
