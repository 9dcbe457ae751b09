"""What the second stream sees, without a model: the text work of ``divserve.api.guide``."""

from __future__ import annotations

from typing import Any

import pytest

from divserve.api.guide import chat_fields, checked, completion_prompt
from divserve.decoding import Guide, Instructive
from divserve.decoding.cad import Cad
from divserve.errors import InvalidRequest

DOCUMENT = "The tower is blue.\nIt was painted in 1999. (a+b)*"


def chat_messages(messages: list[Any], guide: Guide) -> list[Any]:
    found: list[Any] = chat_fields(messages, None, cad(guide), "decoding")["messages"]
    return found


def cad(guide: Guide) -> Cad:
    return Cad(method="cad", guide=guide)


def prompt_of(prompt: Any, guide: Guide) -> Any:
    return completion_prompt(prompt, cad(guide), "decoding")


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


def test_removal_makes_no_new_occurrence() -> None:
    """One pass: what is left of "aabb" after removing "ab" is "ab", and it stays."""
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
    fields = chat_fields([user("Where?")], documents, cad(Guide(without="Lyon.")), "decoding")
    assert fields["messages"] == [user("Where?")]
    assert [one["text"] for one in fields["documents"]] == ["", "Paris. "]
    whole = cad(Guide(messages=[user("b")]))
    assert chat_fields([user("a")], documents, whole, "decoding")["documents"] is None


def test_guide_messages_replace_the_messages() -> None:
    assert chat_messages([user("a")], Guide(messages=[user("b")])) == [user("b")]


@pytest.mark.parametrize("message", [{}, {"content": "no role"}, {"role": 1, "content": "a"}])
def test_guide_messages_must_be_messages(message: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="Message 1 ") as refusal:
        chat_messages([user("a")], Guide(messages=[user("b"), message]))
    assert refusal.value.param == "decoding.guide.messages.1"


def test_each_prompt_gets_its_own_guide() -> None:
    guide = Guide(without=["Doc one. ", "Doc two. "])
    prompts = ["Doc one. Who?", "Doc two. Who?"]
    assert prompt_of(prompts, guide) == ["Who?", "Who?"]
    assert prompt_of("Doc one. Doc two. Who?", guide) == "Who?"


def test_a_prompt_without_any_of_the_texts_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="prompt 1: "):
        prompt_of(["Doc. Who?", "Who?"], Guide(without="Doc. "))


@pytest.mark.parametrize("prompt", [[1, 2], [[1, 2], [3]]])
def test_token_ids_have_no_text_to_remove(prompt: Any) -> None:
    with pytest.raises(InvalidRequest, match="give the guide as 'prompt'") as refusal:
        prompt_of(prompt, Guide(without="x"))
    assert refusal.value.param == "decoding.guide.without"


@pytest.mark.parametrize("prompt", ["text", [5, 6]])
def test_a_guide_prompt_is_taken_as_it_is(prompt: Any) -> None:
    assert prompt_of(["a", "b"], Guide(prompt=prompt)) == prompt


def test_length_of_the_guide() -> None:
    assert checked([1, 2, 3], limit=3, param="decoding.guide") == [1, 2, 3]
    with pytest.raises(InvalidRequest, match="empty") as empty:
        checked([], limit=3, param="decoding.guide")
    with pytest.raises(InvalidRequest, match="4 tokens; at most 3") as long:
        checked([1, 2, 3, 4], limit=3, param="decoding.guide")
    assert empty.value.param == long.value.param == "decoding.guide"
    assert long.value.code == "context_length_exceeded"


def noisy(messages: list[Any], **fields: Any) -> list[Any]:
    method = Instructive(method="instructive", **fields)
    found: list[Any] = chat_fields(messages, None, method, "decoding.0")["messages"]
    return found


CHAT = [
    {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
    user("Be brief. Hi"),
]


def test_noise_takes_the_place_of_the_system_message() -> None:
    assert noisy(CHAT, noise="null") == [{"role": "system", "content": ""}, CHAT[1]]
    assert noisy(CHAT)[0]["content"].startswith("Always respond with the opposite")
    assert noisy(CHAT)[1:] == CHAT[1:]


def test_noise_of_a_given_instruction_goes_everywhere() -> None:
    assert noisy(CHAT, noise="null", instruction="Be brief.") == [
        {"role": "system", "content": [{"type": "text", "text": ""}]},
        user(" Hi"),
    ]
    with pytest.raises(InvalidRequest, match="does not occur in the messages") as refusal:
        noisy(CHAT, instruction="Be long.")
    assert refusal.value.param == "decoding.0.instruction"


def test_noise_without_a_system_message() -> None:
    assert noisy([user("Hi")], noise="random_words")[0]["role"] == "system"
    for noise in ("null", "shuffle"):
        with pytest.raises(InvalidRequest, match="needs an instruction") as refusal:
            noisy([user("Hi")], noise=noise)
        assert refusal.value.param == "decoding.0.noise"


def test_noise_of_a_prompt_needs_the_instruction() -> None:
    method = Instructive(method="instructive", noise="null", instruction="Add. ")
    assert completion_prompt(["Add. 1+1", "Add. 2"], method, "decoding") == ["1+1", "2"]
    for prompt, fields, param in (
        ("Add. 1", {}, "decoding.instruction"),
        ("Sum. 1", {"instruction": "Add."}, "decoding.instruction"),
        ([1, 2], {"instruction": "Add."}, "decoding.instruction"),
    ):
        with pytest.raises(InvalidRequest) as refusal:
            completion_prompt(prompt, Instructive(method="instructive", **fields), "decoding")
        assert refusal.value.param == param


MARKED = {"type": "text", "text": "Lyon.", "name": "document"}


def test_documents_are_left_out() -> None:
    question = {"type": "text", "text": "Where?"}
    guide = Guide(documents=True)
    assert chat_messages([user([MARKED, question])], guide) == [user([question])]
    assert chat_messages([user([MARKED]), user("Where?")], guide) == [user("Where?")]
    whole = chat_fields([user("Where?")], [{"text": "Lyon."}], cad(guide), "decoding")
    assert whole == {"messages": [user("Where?")], "documents": None}


def test_there_must_be_a_document_and_a_question() -> None:
    with pytest.raises(InvalidRequest, match="mark a text part") as none:
        chat_messages([user("Where?")], Guide(documents=True))
    with pytest.raises(InvalidRequest, match="Nothing but documents") as nothing:
        chat_messages([user([MARKED])], Guide(documents=True))
    assert none.value.param == "decoding.guide.documents"
    assert nothing.value.param == "messages"
