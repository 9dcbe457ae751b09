"""The distorted instruction of a request: where it is found, and the error if it is not."""

from __future__ import annotations

from typing import Any

import pytest

from divserve.api.guide import chat_fields, completion_prompt
from divserve.api.noise import noisy_messages, noisy_prompt
from divserve.decoding import Instructive
from divserve.errors import InvalidRequest


def method(**fields: Any) -> Instructive:
    return Instructive(method="instructive", **fields)


def refusal(prompt: Any, **fields: Any) -> tuple[str, str | None, str]:
    """Message, path and code."""
    noisy = noisy_prompt if isinstance(prompt, str) else noisy_messages
    with pytest.raises(InvalidRequest) as refused:
        noisy(prompt, method(**fields), "decoding.0")
    return refused.value.message, refused.value.param, refused.value.code


USER = {"role": "user", "content": "Add. 1+1"}


def test_a_text_prompt_without_an_instruction() -> None:
    assert refusal("Add. 1+1") == (
        (
            "A text prompt has no system message: give the text to distort as 'instruction', or a "
            "'guide'."
        ),
        "decoding.0.instruction",
        "missing_required_parameter",
    )


@pytest.mark.parametrize(("prompt", "where"), [("Add. 1", "the prompt"), ([USER], "the messages")])
def test_an_instruction_that_stands_nowhere(prompt: Any, where: str) -> None:
    assert refusal(prompt, instruction="Sum.") == (
        f"The instruction does not occur in {where}: give it exactly as it stands there.",
        "decoding.0.instruction",
        "invalid_value",
    )


@pytest.mark.parametrize("noise", ["null", "shuffle"])
def test_messages_without_an_instruction(noise: Any) -> None:
    assert refusal([USER], noise=noise) == (
        (
            f"The noise '{noise}' needs an instruction: send a system message, or give the text to "
            "distort as 'instruction'."
        ),
        "decoding.0.noise",
        "invalid_value",
    )


@pytest.mark.parametrize("noise", ["opposite", "null", "shuffle", "random_words"])
def test_noise_takes_the_place_of_the_instruction(noise: Any) -> None:
    text = "one two three four five"
    made = method(noise=noise, noise_seed=7, instruction=text)
    noisy = made.distorted(text)
    assert noisy_prompt(f"{text}! {text}?", made, "decoding") == f"{noisy}! {noisy}?"
    messages: list[Any] = [{"role": "user", "content": f"{text}!"}, USER]
    assert noisy_messages(messages, made, "decoding") == [
        {"role": "user", "content": f"{noisy}!"},
        USER,
    ]


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_system_message_is_distorted_as_a_whole(role: str) -> None:
    """Its texts are lines of one instruction."""
    made = method(noise="shuffle", noise_seed=3)
    parts = [{"type": "text", "text": "one two"}, {"type": "text", "text": "three four five"}]
    given: list[Any] = [{"role": role, "content": parts, "name": "me"}, USER]
    assert noisy_messages(given, made, "decoding") == [
        {"role": role, "content": made.distorted("one two\nthree four five"), "name": "me"},
        USER,
    ]


def test_messages_without_one_get_one() -> None:
    made = method(noise="random_words", noise_seed=5)
    assert noisy_messages([USER], made, "decoding") == [
        {"role": "system", "content": made.distorted("")},
        USER,
    ]


def noisy(messages: list[Any], **fields: Any) -> list[Any]:
    return chat_fields(messages, None, method(**fields), "decoding.0").read.messages


BRIEF = {"role": "user", "content": "Be brief. Hi"}
MESSAGES = [
    {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
    BRIEF,
]


def test_noise_takes_the_place_of_the_system_message() -> None:
    assert noisy(MESSAGES, noise="null") == [{"role": "system", "content": ""}, MESSAGES[1]]
    assert noisy(MESSAGES)[0]["content"].startswith("Always respond with the opposite")
    assert noisy(MESSAGES)[1:] == MESSAGES[1:]


def test_noise_of_a_given_instruction_goes_everywhere() -> None:
    assert noisy(MESSAGES, noise="null", instruction="Be brief.") == [
        {"role": "system", "content": [{"type": "text", "text": ""}]},
        {**BRIEF, "content": " Hi"},
    ]
    with pytest.raises(InvalidRequest, match="does not occur in the messages") as refusal:
        noisy(MESSAGES, instruction="Be long.")
    assert refusal.value.param == "decoding.0.instruction"


def test_noise_without_a_system_message() -> None:
    assert noisy([USER], noise="random_words")[0]["role"] == "system"
    for noise in ("null", "shuffle"):
        with pytest.raises(InvalidRequest, match="needs an instruction") as refusal:
            noisy([USER], noise=noise)
        assert refusal.value.param == "decoding.0.noise"


def test_noise_of_a_prompt_needs_the_instruction() -> None:
    null = method(noise="null", instruction="Add. ")
    assert completion_prompt(["Add. 1+1", "Add. 2"], null, "decoding").read == ["1+1", "2"]
    assert completion_prompt("Add. 1+1", null, "decoding").read == "1+1"
    for prompt, fields, param in (
        ("Add. 1", {}, "decoding.instruction"),
        ("Sum. 1", {"instruction": "Add."}, "decoding.instruction"),
        ([1, 2], {"instruction": "Add."}, "decoding.instruction"),
    ):
        with pytest.raises(InvalidRequest) as refusal:
            completion_prompt(prompt, method(**fields), "decoding")
        assert refusal.value.param == param
