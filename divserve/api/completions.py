"""Guided completions on top of vLLM's serving class. Plain requests pass through untouched."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

from divserve.api.cut import beside_loop
from divserve.api.echo import log_probs_of
from divserve.api.guide import Twin, checked, completion_prompt, known_ids, not_rendered
from divserve.api.serving import GuidedServing, answered_as, is_guided, noted, record_of
from divserve.api.stream import Stream, StreamReport, reported
from divserve.decoding import Method
from divserve.engine.client.read import check_engine
from divserve.http.openai import ErrorResponse, OpenAIServingCompletion, VLLMValidationError

__all__ = ["GuidedCompletions"]


class GuidedCompletions(GuidedServing, OpenAIServingCompletion):
    """Renders a guide for every prompt, and adds the account to every choice."""

    async def render_completion_request(self, request: Any) -> Any:
        """vLLM's rendering; the guides of a guided request are given to it.

        Raises:
            InvalidRequest: a guide cannot be made as asked.
        """
        rendered = await super().render_completion_request(request)
        if is_guided(request) and not isinstance(rendered, ErrorResponse):
            await self._give_guides(request, request, rendered, "prompt")
            if request.scores_prompt and request.reason is None:
                check_engine(self.engine_client.vllm_config)
                request.score_prompts([prompt["prompt_token_ids"] for prompt in rendered])
        return rendered

    def request_output_to_completion_response(
        self,
        final_res_batch: Sequence[Any],
        request: Any,
        request_id: str,
        created: int,
        model: str,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """vLLM's answer, with the account in every choice."""
        if (record := record_of(request)) is not None:
            record.answer_id = request_id
            for prompt, result in enumerate(final_res_batch):
                record.note(prompt, result)
        if is_guided(request):
            for result in final_res_batch:
                self._give_log_probs(request, result)
        name = answered_as(request, model)
        response = super().request_output_to_completion_response(
            final_res_batch, request, request_id, created, name, *args, **kwargs
        )
        if is_guided(request):
            choices = iter(response.choices)
            for prompt, result in enumerate(final_res_batch):
                for output in result.outputs:
                    report = self._choice_report(request, prompt)
                    report.add(output)
                    next(choices).decoding = report.summary()
        return response

    def completion_stream_generator(
        self,
        request: Any,
        engine_inputs: Sequence[Any],
        results: AsyncIterator[tuple[int, Any]],
        request_id: str,
        created: int,
        model: str,
        *args: Any,
        **kwargs: Any,
    ) -> AsyncGenerator[str, None]:
        """vLLM's events; those of a guided request carry the account."""
        generate: Stream = super().completion_stream_generator
        results = noted(request, results, request_id, indexed=True)
        if not is_guided(request):
            name = answered_as(request, model)
            return generate(
                request, engine_inputs, results, request_id, created, name, *args, **kwargs
            )
        report = self._stream_report(request)
        give = partial(self._give_log_probs, request)
        recorded = _recorded(results, report, give)
        name = request.answered_as(model)
        events = generate(
            request, engine_inputs, recorded, request_id, created, name, *args, **kwargs
        )
        return reported(events, recorded, report)

    def _give_log_probs(self, request: Any, result: Any) -> None:
        """Gives the result the log-probs of its prompt's tokens, if they are asked for.

        Raises:
            DecodingFailed: the engine has not returned them.
        """
        if request.readings:
            prompt, (first, *_) = result.prompt_token_ids, result.outputs
            decode = self._decode(request.return_tokens_as_token_ids)
            result.prompt_logprobs = log_probs_of(prompt, first.read, request.logprobs, decode)

    async def _guides_of(
        self, source: Any, method: Method, param: str, primaries: Sequence[Any]
    ) -> Twin[list[list[int]]]:
        guide = method.guide
        if (known := known_ids(method, primaries)) is not None:
            return Twin(known)
        whole = None if guide is None else guide.prompt
        if isinstance(whole, list):
            return Twin([self._checked_ids(whole, f"{param}.guide")] * len(primaries))
        prompts = [source.prompt] if isinstance(source.prompt, str) else source.prompt
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        work = partial(completion_prompt, source.prompt, method, param)
        made = await beside_loop(texts, work)
        twin = source.model_copy(
            update={
                "prompt": made.read,
                "suffix": None if whole is not None else source.suffix,
                "echo": False,
                "max_tokens": None,
            }
        )
        guides = await self._render_guides(
            f"{param}.guide", lambda: self.online_renderer.render_completion(twin)
        )
        return Twin(guides * len(primaries) if whole is not None else guides, made.by)

    def _checked_ids(self, token_ids: list[int], param: str) -> list[int]:
        limit = self.engine_client.capacity.max_guide_tokens
        try:
            self.renderer.validate_token_ids(token_ids)
        except VLLMValidationError as error:
            raise not_rendered(error, limit, f"{param}.prompt") from None
        return checked(token_ids, limit, param)


async def _recorded(
    results: AsyncIterator[tuple[int, Any]],
    report: StreamReport,
    give: Callable[[Any], None],
) -> AsyncGenerator[tuple[int, Any], None]:
    """The results with the index of their prompt, recorded one by one.

    Args:
        results: as the engine returns them.
        report: records them.
        give: adds the log-probs of the prompt, which the first result of each choice has.
    """
    begun: set[tuple[int, int]] = set()
    async for prompt, result in results:
        report.record(prompt, result.outputs)
        if new := {(prompt, output.index) for output in result.outputs} - begun:
            begun |= new
            give(result)
        yield prompt, result
