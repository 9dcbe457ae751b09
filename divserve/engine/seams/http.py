"""Seams of the HTTP side; `divserve.http.openai` has the table of what it re-exports."""

from __future__ import annotations

from divserve.engine.seams.seam import Seam, seams

__all__ = ["HTTP_SEAMS"]

CHAT = "vllm.entrypoints.openai.chat_completion.serving:OpenAIServingChat"
COMPLETION = "vllm.entrypoints.openai.completion.serving:OpenAIServingCompletion"
BASE = "vllm.entrypoints.generate.base.serving:GenerateBaseServing"
MESSAGES = "vllm.entrypoints.anthropic.serving:AnthropicServingMessages"
RESPONSES = "vllm.entrypoints.openai.responses.serving:OpenAIServingResponses"
BATCH = "vllm.entrypoints.openai.chat_completion.batch_serving:OpenAIServingChatBatch"
BATCH_BODY = "vllm.entrypoints.openai.chat_completion.protocol:BatchChatCompletionRequest"
RESPONSES_BODY = "vllm.entrypoints.openai.responses.protocol:ResponsesRequest"
RENDERER = "vllm.renderers.online_renderer:OnlineRenderer"
API_BATCH = "divserve/api/batch.py"
API_BODIES = "divserve/api/bodies.py"
API_CHAT = "divserve/api/chat.py"
API_COMPLETIONS = "divserve/api/completions.py"
API_GUIDE_MODELS = "divserve/api/guide_models.py"
API_MESSAGES = "divserve/api/anthropic.py"
API_REQUESTS = "divserve/api/requests.py"
API_RESPONSES = "divserve/api/responses.py"
API_SERVING = "divserve/api/serving.py"

HTTP_SEAMS: tuple[Seam, ...] = (
    *seams(
        CHAT, API_CHAT, "overridden",
        render_chat_request="renders the guides too",
        chat_completion_full_generator="the account of every choice",
        chat_completion_stream_generator="the account of every choice",
    ),
    *seams(
        "vllm.entrypoints.openai.models.serving:OpenAIServingModels", API_GUIDE_MODELS, "read",
        lora_requests="adapters by name", is_base_model="names of the served model",
    ),
    *seams(CHAT, API_CHAT, "read", online_renderer="renders guides"),
    *seams(
        COMPLETION, API_COMPLETIONS, "overridden",
        render_completion_request="renders the guides too",
        request_output_to_completion_response="the account of every choice",
        completion_stream_generator="the account of every choice",
    ),
    *seams(
        COMPLETION, API_COMPLETIONS, "read",
        online_renderer="renders guides", renderer="checks token ids", engine_client="sizes",
    ),
    *seams(
        BASE, API_SERVING, "overridden",
        create_streaming_error_response="our errors keep their type, param and code",
    ),
    *seams(
        BASE, API_SERVING, "read",
        engine_client="sizes", renderer="the tokenizer",
    ),
    *seams(
        CHAT, API_SERVING, "read", return_tokens_as_token_ids="how a trace shows tokens",
    ),
    *seams(
        "vllm.v1.engine.logprobs:LogprobsProcessor", "divserve/api/texts.py", "called",
        _verify_tokens="the text of a token that ends within a character",
    ),
    *seams(
        MESSAGES, API_MESSAGES, "overridden",
        create_messages="errors are told",
        to_chat_completion_request="the chat decodes as the message asks",
        _convert_block="keeps the mark of a document",
        _convert_message_content="a message that is one document stays a part",
        messages_full_converter="the account of the message",
        message_stream_converter="the account; an error of the chat below ends the events",
    ),
    *seams(
        BATCH, API_BATCH, "overridden",
        render_batch_chat_request="renders the guides too",
        chat_completion_full_generator_batch="the account of every choice",
    ),
    *seams(
        RESPONSES, API_RESPONSES, "overridden",
        create_responses="refuses background answers",
        _render_resolved_response_inputs="renders the guides too",
        responses_full_generator="the account of the response",
        responses_stream_generator="the account; a failure ends the events as an error",
    ),
    *seams(
        RESPONSES, API_RESPONSES, "read",
        online_renderer="renders guides", use_harmony="such a model's responses take no method",
    ),
    *seams(
        RENDERER, "divserve/server.py", "patched", render_responses="what cannot be read is a 400",
    ),
    *seams(RENDERER, API_RESPONSES, "called", preprocess_chat="renders guides of responses"),
    *seams(
        RENDERER, API_RESPONSES, "read",
        chat_template="that of the primary", chat_template_content_format="that of the primary",
        exclude_tools_when_tool_choice_none="the tools of the primary",
        parser="that of the primary",
    ),
    *seams(
        RENDERER, API_RESPONSES, "called", effective_chat_template_kwargs="those of the primary",
    ),
    *seams(
        RESPONSES_BODY, API_BODIES, "overridden",
        to_sampling_params="adds the order",
    ),
    *seams(
        RESPONSES_BODY, API_BODIES, "read",
        input="has pictures", include_reasoning="a trace would show it",
        truncation="prompt and guide would be cut at different places",
    ),
    *seams(
        BATCH_BODY, API_BODIES, "overridden",
        to_chat_completion_request="the chat decodes as the batch asks",
    ),
    *seams(BATCH_BODY, API_BODIES, "read", messages="the conversations"),
    *seams(
        "vllm.entrypoints.openai.chat_completion.protocol:ChatCompletionRequest", API_REQUESTS,
        "overridden", to_sampling_params="adds the order for the next prompt",
    ),
    *seams(
        "vllm.entrypoints.openai.completion.protocol:CompletionRequest", API_REQUESTS,
        "overridden", to_sampling_params="adds the order for the next prompt",
    ),
    *seams(
        "vllm.entrypoints.serve.engine.protocol:OpenAIBaseModel", API_REQUESTS, "overridden",
        field_names="vLLM's cache of known fields, one for each class",
    ),
    *seams(
        "vllm.entrypoints.serve.engine.protocol:OpenAIBaseModel", API_BODIES, "overridden",
        field_names="likewise",
    ),
    *seams(
        "vllm.entrypoints.openai.chat_completion.protocol:ChatCompletionRequest", API_REQUESTS,
        "read", messages="its guide's", include_reasoning="a trace would show it",
    ),
    *seams(
        "vllm.entrypoints.openai.completion.protocol:CompletionRequest", API_REQUESTS, "read",
        echo="its prompt can be scored", logprobs="likewise", max_tokens="0 decodes nothing",
        n="as many as best_of",
    ),
)  # fmt: skip
