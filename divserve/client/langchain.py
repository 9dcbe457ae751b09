"""LangChain: a chat model whose messages have the account.

``ChatDivserve(…, extra_body=decoding(…))`` is langchain-openai's ``ChatOpenAI``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from divserve.client.accounts import plain

try:
    from langchain_openai import ChatOpenAI
except ImportError as error:
    raise ImportError("divserve.client.langchain needs the package langchain-openai") from error

__all__ = ["ChatDivserve"]


class ChatDivserve(ChatOpenAI):
    """``ChatOpenAI`` with the account in ``response_metadata["decoding"]``.

    In a stream the last chunk has it, and each has the trace entries of its tokens; adding chunks
    up, as LangChain does, adds up the trace. The route is /v1/chat/completions.
    """

    def _create_chat_result(self, response: Any, generation_info: Any = None) -> Any:
        result = super()._create_chat_result(response, generation_info)
        choices = plain(response)["choices"]
        for generation, choice in zip(result.generations, choices, strict=True):
            _keep(generation, choice)
        return result

    def _convert_chunk_to_generation_chunk(self, chunk: Any, *known: Any) -> Any:
        generation = super()._convert_chunk_to_generation_chunk(chunk, *known)
        # With a `response_format`, events of the openai client's stream helper have the chunk.
        choices = chunk.get("choices") or chunk.get("chunk", {}).get("choices")
        if generation is not None and choices:
            _keep(generation, choices[0])
        return generation


def _keep(generation: Any, choice: Mapping[str, Any]) -> None:
    if account := choice.get("decoding"):
        generation.message.response_metadata["decoding"] = account
