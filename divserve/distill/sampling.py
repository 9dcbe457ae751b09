"""Batched sampling, and the sequences that it yields."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["Sequences", "autocast", "generator", "hidden_states", "sample"]

_LOOK_EVERY = 8
"""Steps between two checks whether all rows have ended: each check waits for a GPU."""


@dataclass(frozen=True, slots=True)
class Sequences:
    """B prompts with sampled continuations of up to L tokens, padded on the right to T tokens."""

    tokens: Tensor  # [B, T] int64
    first: Tensor  # [B] int64: the position whose output predicts the first sampled token
    count: Tensor  # [B] int64: sampled tokens, an end token included
    teacher: Tensor  # [B, L, H]: the teacher's final hidden state before each sampled token

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, rows: Tensor) -> Sequences:
        """The sequences of `rows`, `[N] int64`, cut to the longest of them."""
        count, first = self.count[rows], self.first[rows]
        longest, end = int(count.max()), int((first + count).max()) + 1
        return Sequences(self.tokens[rows, :end], first, count, self.teacher[rows, :longest])

    def to(self, device: torch.device) -> Sequences:
        """The same sequences on `device`."""
        return Sequences(*(getattr(self, field.name).to(device) for field in fields(self)))

    @classmethod
    def joined(cls, parts: Sequence[Sequences]) -> Sequences:
        """All of `parts`, stacked along the batch."""
        width = max(part.tokens.shape[1] for part in parts)
        length = max(part.teacher.shape[1] for part in parts)
        return cls(
            torch.cat([pad(part.tokens, (0, width - part.tokens.shape[1])) for part in parts]),
            torch.cat([part.first for part in parts]),
            torch.cat([part.count for part in parts]),
            torch.cat(
                [pad(part.teacher, (0, 0, 0, length - part.teacher.shape[1])) for part in parts]
            ),
        )

    def sampled(self) -> tuple[Tensor, Tensor]:
        """Row and offset of every sampled token, both `[N] int64`, N = Σ count, by row."""
        offsets = torch.arange(self.teacher.shape[1], device=self.count.device)
        row, offset = (offsets < self.count[:, None]).nonzero(as_tuple=True)
        return row, offset


def generator(seed: int, purpose: str, index: int) -> torch.Generator:
    """A separate CPU generator for the `index`-th use of one purpose.

    An interrupted run needs no other random state to resume exactly where it stopped.
    """
    digest = hashlib.blake2b(f"{seed}/{purpose}/{index}".encode(), digest_size=4).digest()
    # Four bytes: the CPU generator ignores any others.
    return torch.Generator().manual_seed(int.from_bytes(digest))


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 for the forward passes on a GPU, float32 on CPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def hidden_states(model: Any, tokens: Tensor) -> Tensor:
    """The final hidden states `[B, T, H]` of `tokens`, `[B, T] int64`, padded on the right."""
    states: Tensor = model.model(input_ids=tokens, use_cache=False)[0]
    return states


@torch.no_grad()
def sample(
    model: Any,
    prompts: Sequence[Sequence[int]],
    length: int,
    stops: Sequence[int],
    random: torch.Generator,
    temperature: float = 1.0,
    tick: Callable[[], None] = lambda: None,
) -> Sequences:
    """Continues each of `prompts` with up to `length` tokens of `model`, until one of `stops`.

    The hidden states are those of `model`: the teacher's if the teacher samples. The same numbers
    are drawn from `random` whatever is sampled. `tick` is called once per token and may raise to
    stop.
    """
    from transformers import DynamicCache

    device = model.device
    prompt, mask = _padded_left(prompts, device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    luck = torch.rand(len(prompts), length, generator=random).to(device)
    ends = torch.tensor(list(stops), dtype=torch.int64, device=device)
    cache, step_tokens, tokens, states = DynamicCache(config=model.config), prompt, [], []
    done = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    with autocast(device):
        for step in range(length):
            state = model.model(
                input_ids=step_tokens,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )[0][:, -1]
            drawn = _draw(model.lm_head(state).float() / temperature, luck[:, step])
            states.append(state)
            tokens.append(drawn)
            done |= torch.isin(drawn, ends)
            tick()
            if step % _LOOK_EVERY == 0 and bool(done.all()):
                break
            step_tokens, positions = drawn[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, torch.ones_like(step_tokens)], dim=-1)
    return _joined(prompts, torch.stack(tokens, 1), torch.stack(states, 1), ends)


def _draw(logits: Tensor, luck: Tensor) -> Tensor:
    """One token per row, `[B] int64`, by inverting the distribution function at `luck`, `[B]`."""
    mass = logits.softmax(-1).cumsum(-1)
    # torch.multinomial draws V numbers per row, which takes longer than a step of a small model.
    drawn = torch.searchsorted(mass, (luck * mass[:, -1])[:, None], right=True)[:, 0]
    return drawn.clamp(max=logits.shape[-1] - 1)


def _padded_left(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """The prompts aligned right, and the mask of their tokens: both `[B, P] int64`."""
    longest = max(map(len, prompts))
    tokens = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(tokens, device=device), torch.tensor(mask, device=device)


def _joined(
    prompts: Sequence[Sequence[int]], tokens: Tensor, states: Tensor, ends: Tensor
) -> Sequences:
    """Prompts and continuations aligned left; what follows an end token is cut off."""
    ended = torch.isin(tokens, ends)
    count = torch.where(ended.any(-1), ended.int().argmax(-1) + 1, tokens.shape[1])
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=tokens.device)
    joined = torch.zeros(
        len(prompts), int((lengths + count).max()), dtype=torch.int64, device=tokens.device
    )
    for row, prompt in enumerate(prompts):
        start, more = len(prompt), int(count[row])
        joined[row, :start] = torch.tensor(prompt, device=tokens.device)
        joined[row, start : start + more] = tokens[row, :more]
    return Sequences(joined, lengths - 1, count, states[:, : int(count.max())])
