"""Instructive decoding's guide: the same request with a distorted instruction.

The instruction is the text given in ``instruction``, wherever it occurs; without one it is every
system and developer message of the chat.
"""

from __future__ import annotations

from collections.abc import Sequence

from divserve.api.cut import found, replaced
from divserve.api.messages import Message, edited_all, texts_of
from divserve.decoding import Instructive
from divserve.errors import InvalidRequest

__all__ = ["noisy_messages", "noisy_prompt"]

INSTRUCTING = ("system", "developer")


def noisy_messages(messages: Sequence[Message], method: Instructive, param: str) -> list[Message]:
    """The messages of the guide; ``param`` is the method's path in the body.

    Raises:
        InvalidRequest: there is no such instruction, or none to shuffle or remove.
    """
    if (instruction := method.instruction) is not None:
        texts = [text for message in messages for text in texts_of(message.get("content"))]
        _check_found(instruction, texts, "the messages", param)
        return edited_all(messages, _distorted_in(texts, method, instruction, param))
    if any(message.get("role") in INSTRUCTING for message in messages):
        return [
            _distorted(message, method) if message.get("role") in INSTRUCTING else message
            for message in messages
        ]
    if method.noise in ("null", "shuffle"):
        raise InvalidRequest(
            f"The noise '{method.noise}' needs an instruction: send a system message, or give the "
            "text to distort as 'instruction'.",
            param=f"{param}.noise",
        )
    return [{"role": "system", "content": method.distorted("")}, *messages]


def noisy_prompt(prompt: str, method: Instructive, param: str) -> str:
    """The guide's prompt of a text completion; ``param`` is the method's path in the body.

    Raises:
        InvalidRequest: the instruction is missing or does not occur.
    """
    if method.instruction is None:
        raise InvalidRequest(
            "A text prompt has no system message: give the text to distort as 'instruction', or a "
            "'guide'.",
            param=f"{param}.instruction",
            code="missing_required_parameter",
        )
    _check_found(method.instruction, [prompt], "the prompt", param)
    return _distorted_in([prompt], method, method.instruction, param)[0]


def _distorted(message: Message, method: Instructive) -> Message:
    # An empty message stays: without one, templates put in their own instruction.
    return {**message, "content": method.distorted("\n".join(texts_of(message.get("content"))))}


def _distorted_in(
    texts: Sequence[str], method: Instructive, instruction: str, param: str
) -> list[str]:
    return replaced(instruction, method.distorted(instruction), texts, f"{param}.instruction")


def _check_found(instruction: str, texts: Sequence[str], where: str, param: str) -> None:
    if not found(instruction, texts):
        raise InvalidRequest(
            f"The instruction does not occur in {where}: give it exactly as it stands there.",
            param=f"{param}.instruction",
        )
