"""What the second stream reads, without a model: the text processing of ``divserve.api.guide``."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from divserve.api.guide import chat_fields, checked, completion_prompt, not_rendered
from divserve.decoding import Guide
from divserve.decoding.cad import Cad
from divserve.errors import InvalidRequest
from divserve.http.errors import invalid_body
from divserve.http.openai import VLLMValidationError

DOCUMENT = "The tower is blue.\nIt was painted in 1999. (a+b)*"


def chat_messages(messages: list[Any], guide: Guide) -> list[Any]:
    return chat_fields(messages, None, cad(guide), "decoding").read.messages


def cad(guide: Guide) -> Cad:
    return Cad(method="cad", guide=guide)


def prompt_of(prompt: Any, guide: Guide) -> Any:
    return completion_prompt(prompt, cad(guide), "decoding").read


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def test_text_is_removed_from_every_place_and_role() -> None:
    messages = [
        {"role": "system", "content": f"Use this: {DOCUMENT}"},
        user(
            [{"type": "text", "text": f"{DOCUMENT}{DOCUMENT}?"}, {"type": "text", "text": "Why?"}]
        ),
        {"role": "tool", "tool_call_id": "1", "content": DOCUMENT},
    ]

    guide = chat_messages(messages, Guide(without=DOCUMENT))

    assert [message["content"] for message in guide] == [
        "Use this: ",
        [{"type": "text", "text": "?"}, {"type": "text", "text": "Why?"}],
        "",
    ]
    assert guide[2]["tool_call_id"] == "1"


def test_the_primary_is_left_alone() -> None:
    messages = [user([{"type": "text", "text": "a document"}]), user("a document")]
    chat_messages(messages, Guide(without="document"))
    assert messages == [user([{"type": "text", "text": "a document"}]), user("a document")]


def test_messages_without_content_are_kept() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    assert chat_messages([user("x y"), call], Guide(without=" y")) == [user("x"), call]


def test_parts_without_text_are_kept() -> None:
    refusal = {"type": "refusal", "refusal": "x y"}
    parts = [refusal, "x y", {"type": "text", "text": "x y"}]
    guide = chat_messages([user(parts)], Guide(without=" y"))
    assert guide == [user([refusal, "x", {"type": "text", "text": "x"}])]


@pytest.mark.parametrize("order", [["ab", "abc"], ["abc", "ab"]])
def test_a_longer_text_wins_over_one_that_it_contains(order: list[str]) -> None:
    assert chat_messages([user("1 abc 2 ab 3")], Guide(without=order)) == [user("1  2  3")]


def test_texts_that_overlap_leave_no_remainder() -> None:
    guide = Guide(without=["foo bar", "bar baz"])
    assert chat_messages([user("one foo bar baz two")], guide) == [user("one  two")]
    assert prompt_of("one foo bar baz two", guide) == "one  two"


def test_the_number_of_texts_is_bounded() -> None:
    assert len(Guide(without=["a"] * 64).texts()) == 64
    with pytest.raises(ValidationError, match="has 65 texts; the most is 64") as refusal:
        Cad.model_validate({"method": "cad", "guide": {"without": ["a"] * 65}})
    assert invalid_body(refusal.value.errors()).param == "guide.without"
    shown = Guide.model_json_schema()["properties"]["without"]["anyOf"]
    assert shown[1] == {"items": {"type": "string"}, "maxItems": 64, "type": "array"}


def test_removal_makes_no_new_occurrence() -> None:
    """One pass: removing "ab" from "aabb" leaves "ab", which stays."""
    assert chat_messages([user("aabb")], Guide(without="ab")) == [user("ab")]


@pytest.mark.parametrize(
    ("without", "param"),
    [
        ("missing", "decoding.guide.without"),
        (["here", "missing"], "decoding.guide.without.1"),
        ("The  tower", "decoding.guide.without"),
    ],
)
def test_a_text_that_does_not_occur_is_refused(without: Any, param: str) -> None:
    with pytest.raises(InvalidRequest, match="exactly as it stands") as refusal:
        chat_messages([user("The tower is here")], Guide(without=without))
    assert refusal.value.param == param


def test_text_is_removed_from_the_documents_of_the_template() -> None:
    documents = [{"title": "A", "text": "Lyon."}, {"title": "B", "text": "Paris. Lyon."}]
    twin = chat_fields([user("Where?")], documents, cad(Guide(without="Lyon.")), "decoding")
    assert (twin.read.messages, twin.by) == ([user("Where?")], "without")
    assert [one["text"] for one in twin.read.documents or ()] == ["", "Paris. "]
    whole = cad(Guide(messages=[user("b")]))
    assert chat_fields([user("a")], documents, whole, "decoding").read.documents is None


def test_guide_messages_replace_the_messages() -> None:
    whole = [user("b"), user([{"type": "text", "text": "c"}, "d"]), {"role": "tool"}]
    assert chat_messages([user("a")], Guide(messages=whole)) == whole


@pytest.mark.parametrize(
    "message",
    [
        {}, {"content": "no role"}, {"role": 1, "content": "a"}, user([5]), user(["a", {}]),
        user([{"type": "text", "text": 5}]), {"content": [{"type": "text", "text": "a"}]},
    ],
)  # fmt: skip
def test_guide_messages_must_be_messages(message: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        chat_messages([user("a")], Guide(messages=[user("b"), message]))
    assert refusal.value.param == "decoding.guide.messages.1"
    assert refusal.value.message == (
        "Message 1 of the guide is not a chat message: it needs a 'role' and 'content'."
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [("é\n", "'é\\n'"), ("x" * 60, f"'{'x' * 60}'"), ("x" * 61, f"'{'x' * 57}'…")],
)
def test_what_is_missing_is_shown_if_it_is_short(text: str, shown: str) -> None:
    for missing, refused in (
        (lambda: chat_messages([user("a")], Guide(without=text)), "the messages"),
        (lambda: prompt_of("a", Guide(without=text)), "the prompt"),
    ):
        with pytest.raises(InvalidRequest) as refusal:
            missing()
        assert refusal.value.param == "decoding.guide.without"
        assert refusal.value.message == (
            f"The text to leave out does not occur in {refused}: give it exactly as it stands "
            f"there, with the same spaces and line breaks ({shown})."
        )


def test_each_prompt_gets_its_own_guide() -> None:
    guide = Guide(without=["Doc one. ", "Doc two. "])
    prompts = ["Doc one. Who?", "Doc two. Who?"]
    assert prompt_of(prompts, guide) == ["Who?", "Who?"]
    assert prompt_of("Doc one. Doc two. Who?", guide) == "Who?"


def test_a_prompt_without_any_of_the_texts_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="prompt 1: ") as refusal:
        prompt_of(["Doc. Who?", "Who?"], Guide(without="Doc. "))
    assert refusal.value.param == "decoding.guide.without"


@pytest.mark.parametrize("prompt", [[1, 2], [[1, 2], [3]]])
def test_token_ids_have_no_text_to_remove(prompt: Any) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        prompt_of(prompt, Guide(without="x"))
    assert refusal.value.param == "decoding.guide.without"
    assert refusal.value.message == (
        "'without' needs a text prompt: with token ids, give the guide as 'prompt'."
    )


@pytest.mark.parametrize("prompt", ["text", [5, 6]])
def test_a_guide_prompt_is_taken_as_it_is(prompt: Any) -> None:
    assert prompt_of(["a", "b"], Guide(prompt=prompt)) == prompt


def test_length_of_the_guide() -> None:
    assert checked([1, 2, 3], limit=3, param="decoding.guide") == [1, 2, 3]
    with pytest.raises(InvalidRequest) as empty:
        checked([], limit=3, param="decoding.guide")
    with pytest.raises(InvalidRequest, match="4 tokens; at most 3") as long:
        checked([1, 2, 3, 4], limit=3, param="decoding.guide")
    assert empty.value.message == "The guide is empty: leave at least one token in it."
    assert empty.value.param == long.value.param == "decoding.guide"
    assert long.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("parameter", "value", "message", "code"),
    [
        (
            "input_tokens",
            257,
            "The guide has at least 257 tokens; at most 99 tokens fit. Shorten it.",
            "context_length_exceeded",
        ),
        (
            "input_text",
            5000,
            "The guide has 5000 characters; at most 99 tokens fit. Shorten it.",
            "context_length_exceeded",
        ),
        ("prompt", 5, "The guide can not be rendered: the reason", "invalid_value"),
        (None, None, "The guide can not be rendered: the reason", "invalid_value"),
    ],
)
def test_what_vllms_renderer_says_of_a_guide(
    parameter: str | None, value: Any, message: str, code: str
) -> None:
    error = VLLMValidationError("the reason", parameter=parameter, value=value)
    refused = not_rendered(error, 99, "decoding.guide")
    assert (refused.message, refused.param, refused.code) == (message, "decoding.guide", code)
