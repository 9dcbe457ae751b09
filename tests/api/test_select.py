"""The parts of a request that a guide can name, and the first of several."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from divserve.api import between
from divserve.api.between import without_between
from divserve.api.select import chat_twin, twin_prompts
from divserve.decoding import Guide
from divserve.errors import InvalidRequest, NoDocument

PAIR = ("<d>", "</d>")
PATH = "decoding.guide"
SYSTEM = {"role": "system", "content": "Be brief."}
FIRST: list[dict[str, Any]] = [{"between": PAIR}, {"documents": True}, {"role": "system"}]


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def left(messages: list[Any], field: Any = None, **guide: Any) -> tuple[list[Any], str | None]:
    found = chat_twin(Guide(**guide), messages, field, PATH)
    return found.read.messages, found.by


@pytest.mark.parametrize(
    ("place", "rest"),
    [
        ("a<d>x</d>b", "ab"),
        ("<d>x</d><d>y</d>", ""),
        ("<d>x<d>y</d>z</d>", "z</d>"),
        ("</d>a<d> </d><d>x</d>", "</d>a"),
    ],
)
def test_documents_go_with_their_markers(place: str, rest: str) -> None:
    assert without_between([PAIR], [place, "c"], "p") == [rest, "c"]


def test_several_pairs_may_overlap() -> None:
    pairs = [PAIR, ("[", "]")]
    assert without_between(pairs, ["1<d>a[b</d>c]2", "[x]"], "p") == ["12", ""]


TEXT = st.text(st.sampled_from("ab<>/d "), max_size=12)


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5), TEXT)
def test_what_is_outside_stays(parts: list[tuple[str, str]], end: str) -> None:
    """Against a split by hand, where the texts have no marker in them."""
    opening, closing = "\x01", "\x02"
    place = "".join(f"{outside}{opening}{inside}{closing}" for outside, inside in parts) + end
    expected = "".join(outside for outside, _ in parts) + end
    if any(inside.strip() for _, inside in parts):
        assert without_between([(opening, closing)], [place], "p") == [expected]
    else:
        with pytest.raises(NoDocument, match="no text between"):
            without_between([(opening, closing)], [place], "p")


MARKER = st.text("ab", min_size=1, max_size=2)
PAIRS = st.lists(st.tuples(MARKER, MARKER).filter(lambda pair: pair[0] != pair[1]), min_size=1)


def plainly(pairs: list[tuple[str, str]], place: str) -> str | None:
    """What no document covers, character by character; None if one does not end."""
    covered: set[int] = set()
    for opening, closing in pairs:
        at = 0
        while at < len(place):
            if not place.startswith(opening, at):
                at += 1
                continue
            stop = at + len(opening)
            while stop <= len(place) and not place.startswith(closing, stop):
                stop += 1
            if stop > len(place):
                return None
            covered.update(range(at, stop + len(closing)))
            at = stop + len(closing)
    return "".join(char for at, char in enumerate(place) if at not in covered)


@given(PAIRS, st.text("ab.", max_size=30))
def test_every_character_of_a_document_goes(pairs: list[tuple[str, str]], place: str) -> None:
    """Whatever the markers: they may contain, overlap and repeat each other."""
    expected = plainly(pairs, place)
    try:
        assert without_between(pairs, [place], "p") == [expected]
    except NoDocument:
        assert expected is not None
    except InvalidRequest:
        assert expected is None


def test_a_document_that_does_not_end() -> None:
    with pytest.raises(InvalidRequest, match="has no '</d>' behind it") as refused:
        left([user("<d>a"), user("</d>")], between=PAIR)
    assert refused.value.param == "decoding.guide.between"
    assert not isinstance(refused.value, NoDocument)


def test_documents_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(between, "MOST_FOUND", 2)
    with pytest.raises(InvalidRequest, match="more than 2 documents"):
        without_between([PAIR], ["<d>a</d>", "<d>a</d>" * 2], "p")


def test_documents_are_counted_as_they_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text of two megabytes with sixteen pairs would take gigabytes before it is refused."""
    seen: list[Any] = []
    spans = between._spans

    def counted(*given: Any) -> Any:
        for span in spans(*given):
            seen.append(span)
            yield span

    monkeypatch.setattr(between, "_spans", counted)
    monkeypatch.setattr(between, "MOST_FOUND", 5)
    with pytest.raises(InvalidRequest, match="more than 5 documents"):
        without_between([PAIR] * 16, ["<d>a</d>" * 1000], "p")
    assert len(seen) == 6


def test_messages_about_markers_are_short() -> None:
    """A stream of many choices repeats them."""
    pairs = [(str(number) * 256, "x" * 256) for number in range(4)]
    with pytest.raises(NoDocument, match="or other markers") as missing:
        without_between(pairs, ["a"], "p")
    assert len(missing.value.message) < 400
    assert repr("0" * 57) in missing.value.message
    assert repr("2" * 57) not in missing.value.message


def test_markers_work_in_parts_and_documents() -> None:
    parts = [{"type": "text", "text": "a<d>x</d>"}, {"type": "text", "text": "b"}]
    assert left([user(parts)], between=PAIR)[0] == [
        user([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])
    ]
    twin = chat_twin(Guide(between=PAIR), [user("q")], [{"text": "<d>x</d>y"}], PATH)
    assert twin.read.documents == [{"text": "y"}]


def test_roles_and_messages() -> None:
    messages = [SYSTEM, user("a"), user("b")]
    assert left(messages, role="system") == ([user("a"), user("b")], "role")
    assert left(messages, message=0) == ([user("a"), user("b")], "message")
    assert left(messages, message=-2) == ([SYSTEM, user("b")], "message")
    assert messages[0] is SYSTEM


@pytest.mark.parametrize(
    ("guide", "param", "told"),
    [
        ({"role": "tool"}, "role", "no message of the role 'tool'"),
        ({"message": 2}, "message", "no message 2: there are 2"),
        ({"message": -3}, "message", "no message -3"),
        ({"between": ("[", "]")}, "between", "no text between '\\[' and '\\]'"),
        ({"documents": True}, "documents", "has no document"),
        ({"without": "c"}, "without", "does not occur"),
        ({"without": ["a", "c"]}, "without.1", "does not occur"),
        ({"first_of": [{"role": "tool"}, {"message": 9}]}, "first_of",
         "No document was found. .*role 'tool'.*no message 9"),
    ],
)  # fmt: skip
def test_what_is_not_there(guide: dict[str, Any], param: str, told: str) -> None:
    with pytest.raises(NoDocument, match=told) as missing:
        left([user("a"), user("b")], **guide)
    assert missing.value.param == f"{PATH}.{param}"


@pytest.mark.parametrize("guide", [{"role": "user"}, {"first_of": [{"message": 0}]}])
def test_something_must_be_left(guide: dict[str, Any]) -> None:
    """Nor is the next selector tried: what the client meant is there."""
    with pytest.raises(InvalidRequest, match="Nothing is left for the guide") as refused:
        left([user("a")], **guide)
    assert not isinstance(refused.value, NoDocument)


def test_the_first_that_is_there() -> None:
    marked = user([{"type": "text", "text": "x", "name": "document"}])
    assert left([SYSTEM, user("<d>x</d>q"), marked], first_of=FIRST)[1] == "between"
    assert left([SYSTEM, user("q"), marked], first_of=FIRST) == ([SYSTEM, user("q")], "marked")
    assert left([SYSTEM, user("q")], [{"text": "x"}], first_of=FIRST)[1] == "documents"
    assert left([SYSTEM, user("q")], first_of=FIRST) == ([user("q")], "role")


def test_prompts() -> None:
    found = twin_prompts(Guide(first_of=FIRST), ["<d>x</d>a", "b<d>y</d>"], PATH)
    assert (found.read, found.by) == (["a", "b"], "between")
    with pytest.raises(NoDocument, match=r"Prompt 1: There is no text.*no 'documents'") as missing:
        twin_prompts(Guide(first_of=FIRST), ["<d>x</d>a", "b"], PATH)
    assert missing.value.param == f"{PATH}.first_of"
    either = Guide(first_of=[{"between": PAIR}, {"without": "b"}])
    assert twin_prompts(either, ["ab"], PATH).by == "without"
