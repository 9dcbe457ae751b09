"""The figures of `bench.texts`, computed by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench.texts import Embedder, coherence, diversity, rep_n

OPENINGS = Path(__file__).parent / "data" / "openings.jsonl"


@pytest.mark.parametrize(
    ("text", "n", "expected"),
    [
        ("a b c d", 2, 0.0),
        ("a b a b", 2, 100 / 3),  # ab, ba, ab
        ("a b a b", 3, 0.0),  # aba, bab
        ("a a a a a", 2, 75.0),  # aa four times
        ("a a a a a", 4, 50.0),
        ("a a a a a", 1, 80.0),
        ("a b c a b c a b", 3, 50.0),  # abc, bca, cab, abc, bca, cab
        ("a b", 2, 0.0),
        ("a", 2, 0.0),
        ("", 2, 0.0),
    ],
)
def test_rep_n(text: str, n: int, expected: float) -> None:
    assert rep_n(text.split(), n) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b c d e", 1.0),
        ("a a a a a", 1 / 4 * 1 / 3 * 1 / 2),
        ("a b c a b c a b", 3 / 7 * 3 / 6 * 3 / 5),
        ("", 1.0),
    ],
)
def test_diversity(text: str, expected: float) -> None:
    assert diversity(text.split()) == pytest.approx(expected)


def test_token_ids_count_like_words() -> None:
    assert rep_n([7, 8, 7, 8], 2) == pytest.approx(100 / 3)


def test_coherence_is_the_cosine_of_each_pair() -> None:
    directions = {"east": [1.0, 0.0], "north": [0.0, 1.0], "north-east": [0.5**0.5, 0.5**0.5]}
    found = coherence(
        lambda texts: torch.tensor([directions[text] for text in texts]),
        ["east", "east", "east"],
        ["east", "north", "north-east"],
    )
    assert found == pytest.approx([1.0, 0.0, 0.5**0.5])


def test_an_embedding_is_the_mean_over_the_texts_own_tokens(tiny_with_tokenizer: Path) -> None:
    embed = Embedder.load(tiny_with_tokenizer, "tiny")
    texts = ["The sea.", "", "A much longer text about something else, with more words in it."]
    ids = embed.tokenizer(texts[0], return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        mean = embed.model(ids).last_hidden_state[0].mean(0)
    together = embed(texts)
    torch.testing.assert_close(together[0], mean / mean.norm(), atol=1e-5, rtol=1e-4)
    assert together.norm(dim=-1).tolist() == pytest.approx([1.0, 0.0, 1.0])
    assert coherence(embed, texts[:1], texts[:1]) == pytest.approx([1.0])


def test_the_openings() -> None:
    lines = [json.loads(line) for line in OPENINGS.read_text(encoding="utf-8").splitlines()]
    novels = [line for line in lines if "continuation" in line]
    assert (len(lines), len(novels)) == (64, 32)
    assert len({line["id"] for line in lines}) == len({line["text"] for line in lines}) == 64
    assert all(32 <= len(line["text"].split()) <= 60 for line in lines)
    assert all(line["source"] for line in lines)
    assert all(180 <= len(line["continuation"].split()) <= 270 for line in novels)
