"""The guide without the documents: what is left of the messages, and what is rejected."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from divserve.api.documents import check_documents_rendered
from divserve.api.guide import chat_fields
from divserve.api.select import ChatTwin
from divserve.decoding import Guide
from divserve.decoding.cad import Cad
from divserve.errors import InvalidRequest

METHOD = Cad(method="cad", guide=Guide(documents=True))


def short(messages: list[Any]) -> list[Any]:
    twin = chat_fields(messages, None, METHOD, "decoding")
    assert twin.by == "marked"
    return twin.read.messages


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


MARKED = {"type": "text", "text": "Lyon.", "name": "document"}


def test_documents_are_left_out() -> None:
    question = {"type": "text", "text": "Where?"}
    assert short([user([MARKED, question])]) == [user([question])]
    assert short([user([MARKED]), user("Where?")]) == [user("Where?")]
    whole = chat_fields([user("Where?")], [{"text": "Lyon."}], METHOD, "decoding")
    assert (whole.read, whole.by) == (ChatTwin([user("Where?")], None), "documents")


def test_there_must_be_a_document_and_a_question() -> None:
    with pytest.raises(InvalidRequest) as none:
        short([user("Where?")])
    with pytest.raises(InvalidRequest) as nothing:
        short([user([MARKED])])
    assert none.value.param == "decoding.guide.documents"
    assert none.value.message == (
        'The request has no document: mark a text part of a message with "name": "document", or '
        "send 'documents'."
    )
    assert nothing.value.param == "messages"
    assert nothing.value.message == (
        "Nothing is left for the guide: the messages need a part besides the one that it lacks."
    )


def test_a_template_that_renders_no_documents() -> None:
    """With the field ``documents``, the prompt must change when the documents are left out."""
    given, none = SimpleNamespace(documents=[{"text": "a"}]), SimpleNamespace(documents=None)
    check_documents_rendered(given, [1, 2], [1, 3], "decoding")
    check_documents_rendered(none, [1, 2], [1, 2], "decoding")
    with pytest.raises(InvalidRequest) as refused:
        check_documents_rendered(given, [1, 2], (1, 2), "decoding")
    assert refused.value.param == "decoding.guide.documents"
    assert refused.value.message == (
        "This model's chat template does not render 'documents': put the text into a part of a "
        'message, marked with "name": "document".'
    )
