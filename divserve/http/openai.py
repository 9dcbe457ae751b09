"""What the API uses of vLLM's OpenAI front end; nothing else of the HTTP side imports vLLM.

| name | file of vLLM 0.32.0, under ``vllm/`` | what we rely on |
|---|---|---|
| `build_app` | entrypoints/launchers/app.py | routers, middleware and exception handlers of the server |
| `init_app_state` | entrypoints/launchers/api_server/app_state.py | puts ``openai_serving_chat`` and ``openai_serving_completion`` on ``app.state`` |
| `ChatCompletionRequest` | entrypoints/openai/chat_completion/protocol.py | extra fields are allowed; ``to_sampling_params`` is called once per prompt, in order |
| `CompletionRequest` | entrypoints/openai/completion/protocol.py | as above |
| `OpenAIServingChat` | entrypoints/openai/chat_completion/serving.py | ``render_chat_request``, ``chat_completion_full_generator``, ``chat_completion_stream_generator`` are methods that a subclass may wrap; a stream pulls the next result only after the chunks of the last one are out |
| `OpenAIServingCompletion` | entrypoints/openai/completion/serving.py | ``render_completion_request``, ``request_output_to_completion_response``, ``completion_stream_generator``, likewise; choice index = prompt index · n + output index |
| `AnthropicServingMessages` | entrypoints/anthropic/serving.py | ``create_messages`` converts what ``message_stream_converter`` gets from the chat's own stream; ``count_tokens`` raises what fails; ``anthropic_serving_messages`` on ``app.state`` |
| `AnthropicCountTokensRequest`, `AnthropicMessagesRequest`, `AnthropicMessagesResponse` | entrypoints/anthropic/protocol.py | ``messages`` are objects, not dicts; a subclass of the answer is sent with its own fields |
| `BatchChatCompletionRequest` | entrypoints/openai/chat_completion/protocol.py | ``to_chat_completion_request`` makes the chat of each conversation |
| `OpenAIServingChatBatch` | entrypoints/openai/chat_completion/batch_serving.py | ``render_batch_chat_request`` returns the chats that are sampled from; choice index = index of the conversation |
| `construct_tool_dicts` | entrypoints/openai/responses/utils.py | the tools of a response as a chat template takes them |
| `answer_batch`, `answer_responses` | entrypoints/openai/\\*/api_router.py | as the next two |
| `answer_chat`, `answer_completion` | entrypoints/openai/\\*/api_router.py | the route handlers without their decorators: they turn what serving returns into a response |
| `AuthenticationMiddleware` | entrypoints/serve/middleware/authenticate.py | vLLM's check of ``--api-key``: it guards some prefixes only, so ours takes its place |
| `OpenAIServingResponses` | entrypoints/openai/responses/serving.py | ``create_responses``, ``responses_full_generator``, ``responses_stream_generator`` and ``_render_resolved_response_inputs`` are methods that a subclass may wrap; a stream pulls the next result only after the events of the last one are out; a stream that fails raises |
| `ResponsesRequest` | entrypoints/openai/responses/protocol.py | validates each item of ``input`` by itself |
| `OnlineRenderer` | renderers/online_renderer.py | ``render_responses`` of the one on ``app.state.online_renderer`` is looked up at each call |
| `BaseModelPath` | entrypoints/openai/models/protocol.py | name and path of a served model; ``base_model_paths`` of ``openai_serving_models`` is one list, shared with its registry |
| `ErrorResponse`, `ErrorInfo` | entrypoints/serve/engine/protocol.py | returned (not raised) by serving; ``error.code`` is the HTTP status |
| `create_error_response` | entrypoints/serve/exception_handling/error_response.py | the `ErrorResponse` of an exception; it distinguishes vLLM's client errors from its failures |
| `VLLMError` | exceptions.py | the root of exceptions for which vLLM's app has a handler |
| `VLLMValidationError` | exceptions.py | ``parameter`` and ``value`` of a refused input |
| `clean_loc_for_param` | entrypoints/serve/exception_handling/handlers/validation.py | drops pydantic's internal markers from an error's path |
| `decode_token_ids`, `format_token_id_placeholder` | entrypoints/generate/base/serving.py | the text of single tokens, as logprobs show it |
| `Logprob` | logprobs.py | log-prob, rank and text of a token; serving looks the log-probs of a prompt up by token id, and shows as many as are asked for in their order |
| `LogprobsProcessor` | v1/engine/logprobs.py | ``_verify_tokens`` gives the text of tokens that end within a character |
| `has_non_text_content` | renderers/chat_utils.py | finds images, audio etc. in messages |
| `ChatCompletionMessageParam` | renderers/chat_utils.py | the type of one message |
| `load_aware_call`, `validate_json_request`, `with_cancellation` | entrypoints/serve/utils/api_utils.py | what vLLM puts around its routes |
"""  # noqa: E501

from __future__ import annotations

import inspect
from argparse import Namespace
from typing import Any

from vllm import envs
from vllm.entrypoints.anthropic.protocol import (
    AnthropicCountTokensRequest,
    AnthropicMessagesRequest,
    AnthropicMessagesResponse,
)
from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
from vllm.entrypoints.generate.base.serving import decode_token_ids, format_token_id_placeholder
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.openai.chat_completion.api_router import (
    create_batch_chat_completion,
    create_chat_completion,
)
from vllm.entrypoints.openai.chat_completion.batch_serving import OpenAIServingChatBatch
from vllm.entrypoints.openai.chat_completion.protocol import (
    BatchChatCompletionRequest,
    ChatCompletionRequest,
)
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.completion.api_router import create_completion
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
from vllm.entrypoints.openai.models.protocol import BaseModelPath
from vllm.entrypoints.openai.responses.api_router import create_responses
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
from vllm.entrypoints.openai.responses.utils import construct_tool_dicts
from vllm.entrypoints.serve.engine.protocol import ErrorInfo, ErrorResponse
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.entrypoints.serve.exception_handling.handlers.validation import clean_loc_for_param
from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware
from vllm.entrypoints.serve.utils.api_utils import (
    load_aware_call,
    validate_json_request,
    with_cancellation,
)
from vllm.exceptions import VLLMError, VLLMValidationError
from vllm.logprobs import Logprob
from vllm.renderers.chat_utils import ChatCompletionMessageParam, has_non_text_content
from vllm.v1.engine.logprobs import LogprobsProcessor

__all__ = [
    "AnthropicCountTokensRequest",
    "AnthropicMessagesRequest",
    "AnthropicMessagesResponse",
    "AnthropicServingMessages",
    "BaseModelPath",
    "BatchChatCompletionRequest",
    "ChatCompletionMessageParam",
    "ChatCompletionRequest",
    "CompletionRequest",
    "ErrorInfo",
    "ErrorResponse",
    "Logprob",
    "LogprobsProcessor",
    "OpenAIServingChat",
    "OpenAIServingChatBatch",
    "OpenAIServingCompletion",
    "OpenAIServingResponses",
    "ResponsesRequest",
    "VLLMError",
    "VLLMValidationError",
    "answer_batch",
    "answer_chat",
    "answer_completion",
    "answer_responses",
    "build_app",
    "clean_loc_for_param",
    "construct_tool_dicts",
    "create_error_response",
    "decode_token_ids",
    "format_token_id_placeholder",
    "has_non_text_content",
    "init_app_state",
    "load_aware_call",
    "take_api_keys",
    "validate_json_request",
    "with_cancellation",
]

answer_batch = inspect.unwrap(create_batch_chat_completion)
answer_responses = inspect.unwrap(create_responses)
answer_chat = inspect.unwrap(create_chat_completion)
answer_completion = inspect.unwrap(create_completion)


def take_api_keys(app: Any, args: Namespace) -> list[str]:
    """Takes over the keys that vLLM was given; vLLM no longer checks them in `app`."""
    app.user_middleware[:] = [
        middleware
        for middleware in app.user_middleware
        if middleware.cls is not AuthenticationMiddleware
    ]
    return [key for key in (args.api_key or [envs.VLLM_API_KEY]) if key]
