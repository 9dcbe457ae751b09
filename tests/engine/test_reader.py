"""The reader without an engine: how much memory it takes, whatever the length of a text."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from divserve.decoding import FIGURES, METHODS, Program, Reading
from divserve.engine.order import GroupOrder, ReadOrder
from divserve.engine.worker import reduction
from divserve.engine.worker.forward import Forward
from divserve.engine.worker.programs import GroupPrograms
from divserve.engine.worker.ranks import Ranks
from divserve.engine.worker.reader import Reader
from divserve_kernels import text_figures
from tests.support.counted_bytes import CountedBytes

CPU = torch.device("cpu")
VOCAB, HIDDEN, CHUNK = 151_936, 8, 2048


class Head:
    """A model's head that knows how many bytes of its logits are alive."""

    def __init__(self, vocab: int) -> None:
        self.vocab, self.alive, self.most, self.positions = vocab, 0, 0, 0

    def __call__(self, states: Tensor) -> Tensor:
        logits = torch.empty(len(states), self.vocab)
        self.alive += logits.nbytes
        self.most, self.positions = max(self.most, self.alive), self.positions + len(states)
        weakref.finalize(logits, self._freed, logits.nbytes)
        return logits

    def _freed(self, size: int) -> None:
        self.alive -= size


@pytest.fixture
def without_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures that cost nothing: what they are is tested elsewhere."""

    def nothing(tokens: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        return torch.zeros(len(tokens), len(FIGURES)), torch.zeros(len(tokens))

    monkeypatch.setattr(text_figures, "text_figures", nothing)


def request(name: str, prompt: list[int]) -> Any:
    return SimpleNamespace(req_id=name, prompt_token_ids=prompt, num_computed_tokens=0)


def order(reading: Reading, guides: tuple[str, ...]) -> GroupOrder:
    return GroupOrder(Program(), guides, None, False, 0, None, (), None, reading=reading)


def step(
    reader: Reader, head: Callable[[Tensor], Tensor], parts: dict[str, tuple[int, int]]
) -> None:
    """One step that feeds these parts of the rows."""
    names, places = [*parts], [start for start, _ in parts.values()]
    cached = SimpleNamespace(req_ids=names, num_computed_tokens=places)
    reader.observe(SimpleNamespace(scheduled_cached_reqs=cached, scheduled_new_reqs=[]))
    starts = np.cumsum([0, *(stop - start for start, stop in parts.values())])
    states = torch.zeros(int(starts[-1]), HIDDEN)
    reader.read(names, starts, Forward(nn.Module(), head, states), Ranks())


@pytest.mark.parametrize("tokens", [2048, 16_384])
@pytest.mark.usefixtures("without_arithmetic")
def test_memory_does_not_grow_with_the_text(tokens: int) -> None:
    """A slice of logits at a time, of a prompt and its guide; and 44 bytes for each token."""
    reader, head = Reader(VOCAB, CPU, GroupPrograms(CPU)), Head(VOCAB)
    text = [5] * tokens
    reader.add(0, order(Reading(tokens), ("g",)), request("p", [1, *text]))
    reader.add_guide(ReadOrder("p", 1), request("g", [2, *text]))
    for start in range(0, tokens + 1, CHUNK):
        stop = min(start + CHUNK, tokens + 1)
        step(reader, head, {"p": (start, stop), "g": (start, stop)})
    (found,) = reader.found(["p"]).values()
    assert head.positions == 2 * tokens
    assert head.most <= 4 * 4 * reduction.MOST_ENTRIES
    assert head.alive == 0
    assert sum(part.nbytes for part in found) == 4 * len(FIGURES) * tokens


@pytest.mark.parametrize("method", [None, "cad"])
def test_every_tensor_of_a_slice(method: str | None) -> None:
    """Also with the arithmetic, a method and likeliest tokens: four slices, however long a text."""
    slice_bytes, most = 4 * reduction.slice_length(VOCAB) * VOCAB, []
    for tokens in (64, 192):
        with CountedBytes() as counted:
            reading = Reading(tokens, top=20, guided=method is not None)
            reader, text = under(method, reading), [5] * tokens
            reader.add(0, order(reading, ("g",)), request("p", [1, *text]))
            reader.add_guide(ReadOrder("p", 1), request("g", [2, *text]))
            step(reader, random_head, {"p": (0, tokens + 1), "g": (0, tokens + 1)})
            (found,) = reader.found(["p"]).values()
        most.append(counted.most)
        assert 2 * slice_bytes < counted.most < 4.1 * slice_bytes
        assert sum(part.nbytes for part in found) == 4 * (len(FIGURES) + 2 * 20) * tokens
    # The results, and the states of the chunk.
    assert most[1] - most[0] < 1024 * 128


def random_head(states: Tensor) -> Tensor:
    return torch.randn(len(states), VOCAB)


def under(method: str | None, reading: Reading) -> Reader:
    """A reader whose first slot has this program."""
    programs = GroupPrograms(CPU)
    if method is not None:
        body = METHODS[method].model_validate({"method": method, "guide": {"prompt": "x"}})
        programs.add(0, replace(order(reading, ("g",)), program=body.program(1.0)))
        programs.send()
    return Reader(VOCAB, CPU, programs)


@pytest.mark.usefixtures("without_arithmetic")
def test_rows_at_different_paces_and_again_from_the_start() -> None:
    """The states of the row that is ahead are kept; a position is reduced once."""
    reader, head = Reader(50, CPU, GroupPrograms(CPU)), Head(50)
    text = [*range(5, 35)]
    reader.add_guide(ReadOrder("p", 1), request("g", [2, 3, *text]))
    reader.add(0, order(Reading(30), ("g",)), request("p", [1, *text]))
    step(reader, head, {"p": (0, 20)})
    assert head.positions == 0
    step(reader, head, {"p": (0, 25), "g": (0, 12)})
    assert head.positions == 2 * 11
    step(reader, head, {"g": (0, 12)})
    assert head.positions == 2 * 11
    step(reader, head, {"p": (25, 31), "g": (12, 32)})
    assert head.positions == 2 * 30
    assert reader.found(["p", "other"]).keys() == {"p"}
    step(reader, head, {"p": (31, 32), "g": (32, 33)})
    assert reader.found(["p"]) == {}
    reader.end("p")
    reader.end("g")
    assert reader.found(["p"]) == {}
