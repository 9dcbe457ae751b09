"""What guided chat and completions share: their accounts, their guides' limits and their errors."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from divserve.api.errors import error_body
from divserve.api.guide import checked, not_rendered
from divserve.api.report import ChoiceReport
from divserve.api.requests import Guided
from divserve.api.stream import StreamReport
from divserve.engine.openai import (
    ErrorResponse,
    VLLMValidationError,
    decode_token_ids,
    format_token_id_placeholder,
)
from divserve.errors import ApiError, InvalidRequest

__all__ = ["GuidedServing", "is_guided"]

T = TypeVar("T")


def is_guided(request: Any) -> bool:
    """Whether the request asks for a method; vLLM's own request types never do."""
    return isinstance(request, Guided) and request.decoding is not None


class GuidedServing:
    """To be put before one of vLLM's serving classes."""

    engine_client: Any
    renderer: Any
    return_tokens_as_token_ids: bool

    def create_streaming_error_response(self, message: Any, *args: Any, **kwargs: Any) -> str:
        """The JSON of an error event: our own errors keep their type, param and code."""
        if isinstance(message, ApiError):
            return json.dumps(error_body(message))
        error: str = super().create_streaming_error_response(message, *args, **kwargs)  # type: ignore[misc]
        return error

    def _choice_report(self, request: Any, prompt: int) -> ChoiceReport:
        """An empty account of a choice of the prompt of this index."""
        method = request.decoding
        return ChoiceReport(
            method,
            method.method,
            request.sampled_at,
            request.guide_lengths[prompt],
            partial(self._texts, request.return_tokens_as_token_ids),
        )

    def _stream_report(self, request: Any) -> StreamReport:
        """Empty accounts of all choices of a streaming request."""
        new = partial(self._choice_report, request)
        return StreamReport(new, request.n or 1, request.decoding.trace)

    def _texts(self, as_token_ids: bool | None, token_ids: Sequence[int]) -> list[str]:
        """The text of each token, as logprobs show it."""
        if as_token_ids is None:
            as_token_ids = self.return_tokens_as_token_ids
        if as_token_ids or self.renderer.tokenizer is None:
            return [format_token_id_placeholder(token_id) for token_id in token_ids]
        return [text for text, _ in decode_token_ids(list(token_ids), self.renderer.tokenizer)]

    def _check_primary(self, engine_inputs: Sequence[Any], param: str) -> None:
        """Refuses prompts that fit the model but leave their guide no room.

        Raises:
            InvalidRequest: a prompt is too long.
        """
        limit = self.engine_client.max_guide_tokens
        for engine_input in engine_inputs:
            if (length := len(engine_input["prompt_token_ids"])) > limit:
                raise InvalidRequest(
                    f"The prompt has {length} tokens; at most {limit} fit together with a guide.",
                    param=param,
                    code="context_length_exceeded",
                )

    async def _render_guides(
        self, render: Callable[[], Awaitable[Sequence[Any] | ErrorResponse]]
    ) -> list[list[int]]:
        """The token ids of the guides that `render` renders.

        Raises:
            InvalidRequest: a guide can not be rendered, is empty or too long.
        """
        limit = self.engine_client.max_guide_tokens
        try:
            rendered = await render()
        except VLLMValidationError as error:
            raise not_rendered(error, limit) from None
        except (ValueError, TypeError, LookupError, AttributeError, AssertionError) as error:
            # What templates and vLLM's renderer raise for messages that no type forbids.
            raise InvalidRequest(
                f"The guide can not be rendered: {error}", param="decoding.guide"
            ) from error
        if isinstance(rendered, ErrorResponse):
            raise InvalidRequest(
                f"The guide can not be rendered: {rendered.error.message}", param="decoding.guide"
            )
        return [checked(engine_input["prompt_token_ids"], limit) for engine_input in rendered]
