"""What is sent: mixes, lengths, documents, bodies, and users over time."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from divserve.decoding import METHODS
from loadtest.mix import Mix, Prompts, body, decoding, lengths, weights
from loadtest.settings import QUESTIONS
from loadtest.shapes import SHAPES, users_at


def test_weights() -> None:
    assert weights("cad=2, adacad,vdgd=0.5") == {"cad": 2, "adacad": 1, "vdgd": 0.5}


@pytest.mark.parametrize(
    "text", ["", "cad=-1", "cad=x", "cad=nan", "cad=inf", "a,a", "cad=0", ",a"]
)
def test_weights_that_say_nothing(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        weights(text)


def test_lengths() -> None:
    assert lengths("16-32=3,128") == {(16, 32): 3, (128, 128): 1}
    for wrong in ("0", "9-3", "a", "1-2-3"):
        with pytest.raises(ValueError, match=r"."):
            lengths(wrong)


def test_the_mix_keeps_its_shares() -> None:
    mix = Mix(0.25, {"cad": 3, "adacad": 1, "cfg": 0}, {(5, 8): 1, (20, 20): 1})
    rng = random.Random(1)
    kinds = Counter(mix.kind(rng) for _ in range(8000))
    assert kinds["plain"] / 8000 == pytest.approx(0.75, abs=0.03)
    assert kinds["cad"] / kinds["adacad"] == pytest.approx(3, rel=0.2)
    assert set(kinds) == set(mix.kinds()) == {"plain", "cad", "adacad"}
    assert {mix.max_tokens(rng) for _ in range(500)} == {5, 6, 7, 8, 20}


@pytest.mark.parametrize(("share", "kinds"), [(0, ["plain"]), (1, ["cad"])])
def test_all_plain_and_all_guided(share: float, kinds: list[str]) -> None:
    mix = Mix(share, {"cad": 1}, {(5, 8): 1})
    assert mix.kinds() == kinds
    assert {mix.kind(random.Random(n)) for n in range(50)} == set(kinds)


@pytest.mark.parametrize("kind", [*METHODS, "adacad+kl_temperature"])
def test_every_method_can_be_in_a_mix(kind: str) -> None:
    """`decoding` checks its own result against the server's type."""
    assert decoding(kind, "a document")


def test_what_no_server_would_take_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="'nope' is no method"):
        decoding("nope", "a document")
    with pytest.raises(ValueError, match="cad"):
        decoding("cad+adacad", "a document")


def test_made_documents_occur_in_the_prompt_and_speak_of_the_question() -> None:
    prompts = Prompts(QUESTIONS, notes=4)
    rng = random.Random(0)
    drawn = [prompts.draw(rng) for _ in range(50)]
    for document, question in drawn:
        assert question in document
        assert len(document.splitlines()) == 5
        asked = body("m", "cad", (document, question), 9, 0.5, False)
        assert asked["decoding"]["guide"]["without"] in asked["messages"][0]["content"]
    assert len({document for document, _ in drawn}) == 50


def test_own_documents_are_taken_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"question": "Who?", "document": "It was she."}) + "\n\n")
    assert Prompts(path, notes=4).draw(random.Random(0)) == ("It was she.", "Who?")


def test_plain_requests_get_the_same_prompt_and_no_method() -> None:
    asked = body("m", "plain", ("Document.", "Who?"), 9, 0.5, True)
    assert asked["messages"][0]["content"] == "Document.\n\nWho?"
    assert "decoding" not in asked
    assert asked["ignore_eos"] is True


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_end_and_never_exceed_the_users(shape: str) -> None:
    counts = [users_at(shape, t, 8, 100) for t in range(101)]
    assert counts.pop() is None
    assert all(count is not None and 1 <= count <= 8 for count in counts)
    assert 8 in counts


def test_shapes_have_their_form() -> None:
    at = {name: [users_at(name, t, 8, 100) for t in (0, 10, 45, 75, 99)] for name in SHAPES}
    assert at == {
        "soak": [1, 8, 8, 8, 8],
        "ramp": [1, 1, 4, 6, 8],
        "step": [2, 2, 4, 8, 8],
        "spike": [2, 2, 8, 2, 2],
    }
