"""Guided completions on top of vLLM's serving class. Plain requests pass through untouched."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

from divserve.api.guide import checked, completion_prompt, not_rendered
from divserve.api.serving import GuidedServing, is_guided
from divserve.api.stream import Stream, StreamReport, reported
from divserve.engine.openai import ErrorResponse, OpenAIServingCompletion, VLLMValidationError

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
            self._check_primary(rendered, "prompt")
            request.give_guides(await self._guides(request, rendered))
        return rendered

    def request_output_to_completion_response(
        self, final_res_batch: Sequence[Any], request: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """vLLM's answer, with the account in every choice."""
        response = super().request_output_to_completion_response(
            final_res_batch, request, *args, **kwargs
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
        result_generator: AsyncIterator[tuple[int, Any]],
        *args: Any,
        **kwargs: Any,
    ) -> AsyncGenerator[str, None]:
        """vLLM's events; those of a guided request carry the account."""
        generate: Stream = super().completion_stream_generator
        if not is_guided(request):
            return generate(request, engine_inputs, result_generator, *args, **kwargs)
        report = self._stream_report(request)
        results = _recorded(result_generator, report)
        events = generate(request, engine_inputs, results, *args, **kwargs)
        return reported(events, results, report)

    async def _guides(self, request: Any, primaries: Sequence[Any]) -> list[list[int]]:
        """The guide's token ids for each of the rendered prompts."""
        guide = request.decoding.guide
        if guide is None:
            return [primary["prompt_token_ids"][-1:] for primary in primaries]
        if isinstance(guide.prompt, list):
            return [self._checked_ids(guide.prompt)] * len(primaries)
        twin = request.model_copy(
            update={
                "prompt": completion_prompt(request.prompt, guide),
                "suffix": None if guide.prompt is not None else request.suffix,
                "echo": False,
                "max_tokens": None,
            }
        )
        guides = await self._render_guides(lambda: self.online_renderer.render_completion(twin))
        return guides * len(primaries) if guide.prompt is not None else guides

    def _checked_ids(self, token_ids: list[int]) -> list[int]:
        limit = self.engine_client.max_guide_tokens
        try:
            self.renderer.validate_token_ids(token_ids)
        except VLLMValidationError as error:
            raise not_rendered(error, limit, param="decoding.guide.prompt") from None
        return checked(token_ids, limit)


async def _recorded(
    results: AsyncIterator[tuple[int, Any]], report: StreamReport
) -> AsyncGenerator[tuple[int, Any], None]:
    """The results with the index of their prompt, recorded one by one."""
    async for prompt, result in results:
        report.record(prompt, result.outputs)
        yield prompt, result
