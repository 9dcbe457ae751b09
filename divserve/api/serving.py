"""What the guided routes share: accounts, limits of guides, and errors."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar, cast

from divserve import metrics
from divserve.api.guide import Twin, check_differs, checked, not_rendered
from divserve.api.guided import Guided
from divserve.api.record import Noted, Record
from divserve.api.report import ChoiceReport, PlainReport
from divserve.api.stream import StreamReport
from divserve.api.texts import Decode, as_ids, decoder, undecoded
from divserve.decoding import Guide, Method
from divserve.errors import ApiError, InvalidRequest, NoDocument
from divserve.http.errors import error_body
from divserve.http.foreign import foreign_body
from divserve.http.openai import (
    ErrorResponse,
    VLLMValidationError,
)

__all__ = ["GuidedServing", "OwnErrors", "answered_as", "is_guided", "noted", "record_of"]

T = TypeVar("T")


def is_guided(request: Any) -> bool:
    """Whether the request asks for a method; vLLM's own request types never do."""
    return isinstance(request, Guided) and request.decoding is not None


def answered_as(request: Any, model: str) -> str:
    """The model name of the answer, where vLLM would put ``model``."""
    return request.answered_as(model) if isinstance(request, Guided) else model


def record_of(request: Any) -> Record | None:
    """The record of the HTTP request behind it, if one is kept."""
    return request.record if isinstance(request, Guided) else None


def noted(request: Any, results: Any, request_id: str, indexed: bool = False) -> Any:
    """The engine's results, noted in the record of the request if one is kept."""
    record = record_of(request)
    if record is None:
        return results
    record.answer_id = request_id
    return Noted(results, record, indexed)


class OwnErrors:
    """Mixin before one of vLLM's serving classes whose streams may end with an error event."""

    def create_streaming_error_response(self, message: Any, *args: Any, **kwargs: Any) -> str:
        """The JSON of an error event: our own errors keep their type, param and code."""
        if isinstance(message, ApiError):
            return json.dumps(error_body(message))
        error = json.loads(super().create_streaming_error_response(message, *args, **kwargs))  # type: ignore[misc]
        return json.dumps(foreign_body(error["error"]["code"], error)[1])


class GuidedServing(OwnErrors):
    """Mixin before one of vLLM's serving classes."""

    engine_client: Any
    renderer: Any
    return_tokens_as_token_ids: bool

    def _choice_report(self, request: Any, prompt: int) -> ChoiceReport:
        """An empty account of a choice of the prompt of this index."""
        if request.reason is not None:
            return PlainReport(request.stack, request.reason)
        report = ChoiceReport(
            request.stack,
            request.has_two_seconds(prompt),
            request.sampled_at,
            request.side_tokens(prompt),
            # Responses have no such field; the server's flag is theirs.
            self._decode(getattr(request, "return_tokens_as_token_ids", None)),
            self.engine_client.compute_ratio,
            request.found_by,
        )
        request.record.reports.append(report)
        return report

    def _stream_report(self, request: Any) -> StreamReport:
        """Empty accounts of all choices of a streaming request."""
        new = partial(self._choice_report, request)
        trace = request.stack.trace_by_token and request.reason is None
        return StreamReport(new, request.n or 1, trace)

    def _decode(self, as_token_ids: bool | None) -> Decode:
        """Finds the text of each token, as logprobs show it."""
        if as_token_ids is None:
            as_token_ids = self.return_tokens_as_token_ids
        if self.renderer.tokenizer is None:
            return undecoded
        decode = decoder(self.renderer.tokenizer)
        return as_ids(decode) if as_token_ids else decode

    def _check_primary(self, engine_inputs: Sequence[Any], param: str) -> None:
        """Rejects prompts that fit the model but leave no room for their guide.

        Raises:
            InvalidRequest: a prompt is too long.
        """
        limit = self.engine_client.capacity.max_guide_tokens
        for engine_input in engine_inputs:
            if (length := len(engine_input["prompt_token_ids"])) > limit:
                raise InvalidRequest(
                    f"The prompt has {length} tokens; at most {limit} fit together with a guide.",
                    param=param,
                    code="context_length_exceeded",
                )

    async def _give_guides(
        self, request: Any, source: Any, primaries: Sequence[Any], param: str
    ) -> None:
        """Gives the request the guides of all its methods and its grounding text.

        Args:
            request: a guided one.
            source: a copy of it that no renderer has changed.
            primaries: its rendered prompts.
            param: the field that they come from.

        Raises:
            InvalidRequest: a guide cannot be made as asked. If only its document is missing and it
                says so, the request is decoded plainly instead.
        """
        self._check_primary(primaries, param)
        made: list[tuple[Method, Twin[list[list[int]]]]] = []
        found_by: dict[str, str] = {}
        columns: list[Sequence[list[int] | None]] = []
        for method in request.stack.methods:
            column: Sequence[list[int] | None] = [None] * len(primaries)
            if method.guided:
                twin = next((one for other, one in made if _same_guide(method, other)), None)
                if twin is None:
                    try:
                        twin = await self._twin(request, source, method, primaries)
                    except NoDocument as error:
                        if cast(Guide, method.guide).if_missing == "refuse":
                            raise
                        request.decode_plainly(error.message)
                        return
                made.append((method, twin))
                if twin.by is not None and cast(Guide, method.guide).first_of is not None:
                    found_by[method.method] = twin.by
                column = twin.read
            columns.append(column)
        guides = list(zip(*columns, strict=True))
        request.give_guides(guides, self._grounding(request), found_by)
        read_beside = [request.side_tokens(prompt) for prompt in range(len(primaries))]
        for tokens in filter(None, read_beside):
            metrics.GUIDE_TOKENS.observe(tokens)
        request.record.guide_tokens = sum(read_beside)

    async def _twin(
        self, request: Any, source: Any, method: Method, primaries: Sequence[Any]
    ) -> Twin[list[list[int]]]:
        """The guides of a method, which differ from their prompts if they lack a part of them."""
        path = request.param_of(method)
        twin = await self._guides_of(source, method, path, primaries)
        if twin.by is not None and not request.read_by_another(method):
            prompts = [primary["prompt_token_ids"] for primary in primaries]
            check_differs(twin.read, prompts, f"{path}.guide")
        return twin

    @abstractmethod
    async def _guides_of(
        self, source: Any, method: Method, param: str, primaries: Sequence[Any]
    ) -> Twin[list[list[int]]]:
        """Token ids of the guide for each prompt; ``param`` is the method's path in the body."""

    def _grounding(self, request: Any) -> list[int]:
        """Token ids of the grounding text, with the special tokens of a standalone text.

        Raises:
            InvalidRequest: it has no tokens, or too many.
        """
        method = request.stack.grounded
        if method is None:
            return []
        param = f"{request.param_of(method)}.grounding"
        limit = self.engine_client.capacity.max_guide_tokens
        tokenizer = self.renderer.tokenizer
        if tokenizer is None:
            raise InvalidRequest("A grounding text needs the server's tokenizer.", param=param)
        token_ids = list(tokenizer.encode(method.grounding))
        if not token_ids or not method.grounding.strip():
            raise InvalidRequest("The grounding text is empty.", param=param)
        if len(token_ids) > limit:
            raise InvalidRequest(
                f"The grounding text has {len(token_ids)} tokens; at most {limit} fit. Shorten it.",
                param=param,
                code="context_length_exceeded",
            )
        return token_ids

    async def _render_guides(
        self, param: str, render: Callable[[], Awaitable[Sequence[Any] | ErrorResponse]]
    ) -> list[list[int]]:
        """The token ids of the guides that `render` renders; ``param`` is where they are asked for.

        Raises:
            InvalidRequest: a guide cannot be rendered, is empty or too long.
        """
        limit = self.engine_client.capacity.max_guide_tokens
        try:
            rendered = await render()
        except VLLMValidationError as error:
            raise not_rendered(error, limit, param) from None
        except (ValueError, TypeError, LookupError, AttributeError, AssertionError) as error:
            # Templates and vLLM's renderer raise these for messages that pass validation.
            raise InvalidRequest(f"The guide can not be rendered: {error}", param=param) from error
        if isinstance(rendered, ErrorResponse):
            # Only for flags of the request, with which its own prompt has passed.
            raise InvalidRequest(rendered.error.message, param=param)
        return [
            checked(engine_input["prompt_token_ids"], limit, param) for engine_input in rendered
        ]


def _same_guide(one: Method, other: Method) -> bool:
    """Whether two methods ask for the same second stream, so that it is rendered once."""
    distorts = one.distorts or other.distorts
    return not distorts and one.guide is not None and one.guide == other.guide
