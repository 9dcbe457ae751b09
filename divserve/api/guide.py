"""What the second stream reads: turns a method's ``guide`` into a prompt, before any decoding.

``without`` removes text wherever it occurs verbatim, ``documents`` removes what is marked as a
document, ``noise`` distorts the instruction; ``messages`` and ``prompt`` replace the whole prompt.
vLLM renders the guide, so template, tools and flags are those of the primary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError

from divserve.api.cut import removed
from divserve.api.documents import without_documents
from divserve.api.messages import Message, edited_all, text_of, texts_of
from divserve.api.noise import noisy_messages, noisy_prompt
from divserve.decoding import Guide, Instructive, Method
from divserve.errors import InvalidRequest
from divserve.http.openai import ChatCompletionMessageParam, VLLMValidationError

__all__ = ["chat_fields", "checked", "completion_prompt", "known_ids", "not_rendered"]

Prompt = str | list[str] | list[int] | list[list[int]]

MESSAGES: TypeAdapter[list[Any]] = TypeAdapter(list[ChatCompletionMessageParam])


def known_ids(method: Method, primaries: Sequence[Any]) -> list[list[int]] | None:
    """The guides that need no rendering: the whole prompts, or their last tokens; else None.

    Args:
        method: the method whose guides they are.
        primaries: the request's rendered prompts.
    """
    guide = method.guide
    if guide is not None and guide.of_model_only and not method.distorts:
        return [primary["prompt_token_ids"] for primary in primaries]
    if guide is None and method.natural_guide == "last_token":
        return [primary["prompt_token_ids"][-1:] for primary in primaries]
    return None


def chat_fields(
    messages: Sequence[Message],
    documents: Sequence[dict[str, str]] | None,
    method: Method,
    param: str,
) -> dict[str, Any]:
    """The fields in which the guide of a chat request differs: ``messages`` and ``documents``.

    Args:
        messages: the request's own.
        documents: likewise.
        method: the method whose guide it is.
        param: its path in the body.

    Raises:
        InvalidRequest: a text to remove does not occur, there are no documents, or
            ``guide.messages`` are not valid messages.
    """
    guide = method.guide
    if guide is None or method.distorts:
        noise = cast(Instructive, method)
        return {"messages": noisy_messages(messages, noise, param), "documents": documents}
    if guide.messages is not None:
        return {"messages": _validated(guide.messages, param), "documents": None}
    if guide.documents:
        return {
            "messages": without_documents(messages, bool(documents), param),
            "documents": None,
        }
    places = [text for message in messages for text in texts_of(message.get("content"))]
    own = len(places)
    places += [text for document in documents or () for text in document.values()]
    left = _without(guide, places, "the messages", param)
    of_documents = iter(left[own:])
    return {
        "messages": edited_all(messages, left[:own]),
        "documents": documents and [{k: next(of_documents) for k in one} for one in documents],
    }


def completion_prompt(prompt: Prompt, method: Method, param: str) -> Prompt:
    """The guide's prompt of a completion request: one per prompt, or one for all of them.

    Args:
        prompt: the request's own.
        method: the method whose guide it is.
        param: its path in the body.

    Raises:
        InvalidRequest: the prompt is not text, or a text to remove does not occur.
    """
    guide = method.guide
    if guide is not None and guide.prompt is not None:
        return guide.prompt
    prompts = [prompt] if isinstance(prompt, str) else prompt
    texts_only = [text for text in prompts if isinstance(text, str)]
    distorts = guide is None or method.distorts
    path = f"{param}.instruction" if distorts else f"{param}.guide.without"
    if len(texts_only) != len(prompts):
        raise InvalidRequest(
            f"'{path.rpartition('.')[2]}' needs a text prompt: with token ids, give the guide as "
            "'prompt'.",
            param=path,
        )
    if guide is None or distorts:
        made = [noisy_prompt(text, cast(Instructive, method), param) for text in texts_only]
        return made[0] if isinstance(prompt, str) else made
    shortened = _without(guide, texts_only, "the prompt", param)
    for number, text in enumerate(texts_only):
        if len(text) == len(shortened[number]):
            raise InvalidRequest(
                f"None of the texts occurs in prompt {number}: every prompt needs its own guide.",
                param=path,
            )
    return shortened[0] if isinstance(prompt, str) else shortened


def checked(token_ids: Sequence[int], limit: int, param: str) -> list[int]:
    """The guide's token ids, neither empty nor longer than `limit` tokens.

    Raises:
        InvalidRequest: they are empty, or too many.
    """
    if not token_ids:
        raise InvalidRequest("The guide is empty: leave at least one token in it.", param=param)
    if len(token_ids) > limit:
        raise too_long(f"{len(token_ids)} tokens", limit, param)
    return list(token_ids)


def not_rendered(error: VLLMValidationError, limit: int, param: str) -> InvalidRequest:
    """The error for a guide that vLLM's renderer rejected."""
    match error.parameter:
        case "input_tokens":
            return too_long(f"at least {error.value} tokens", limit, param)
        case "input_text":
            return too_long(f"{error.value} characters", limit, param)
    return InvalidRequest(f"The guide can not be rendered: {error.args[0]}", param=param)


def too_long(size: str, limit: int, param: str) -> InvalidRequest:
    """The error for a guide of `size` where `limit` tokens fit."""
    return InvalidRequest(
        f"The guide has {size}; at most {limit} tokens fit. Shorten it.",
        param=param,
        code="context_length_exceeded",
    )


def _without(guide: Guide, places: Sequence[str], where: str, param: str) -> list[str]:
    """The places without any character of an occurrence of the guide's texts.

    Raises:
        InvalidRequest: a text does not occur, or they occur too often.
    """
    path = f"{param}.guide.without"
    left, missing = removed(guide.texts(), places, path)
    if missing:
        index = missing[0]
        raise InvalidRequest(
            f"The text to leave out does not occur in {where}: give it exactly as it stands "
            f"there, with the same spaces and line breaks ({_excerpt(guide.texts()[index])}).",
            param=f"{path}.{index}" if isinstance(guide.without, list) else path,
        )
    return left


def _excerpt(text: str) -> str:
    return repr(text) if len(text) <= 60 else f"{text[:57]!r}…"


def _validated(messages: list[Message], param: str) -> list[Message]:
    try:
        MESSAGES.validate_python(messages)
        wrong = next((i for i, message in enumerate(messages) if not _well_formed(message)), None)
    except ValidationError as error:
        wrong = int(error.errors()[0]["loc"][0])
    if wrong is not None:
        raise InvalidRequest(
            f"Message {wrong} of the guide is not a chat message: it needs a 'role' and 'content'.",
            param=f"{param}.guide.messages.{wrong}",
        )
    return messages


def _well_formed(message: Message) -> bool:
    """Checks what pydantic leaves out: it does not look into a list of content parts."""
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    texts = all(text_of(part) is not None for part in parts)
    return isinstance(message.get("role"), str) and texts
