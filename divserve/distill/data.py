"""Prompts as token ids: from a file, or written by the teacher itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from divserve.distill.sampling import generator, sample
from divserve.distill.teacher import Teacher
from divserve.errors import StartupError

__all__ = ["read", "split", "write"]

HELD_OUT = 32
"""Prompts kept for evaluation, or an eighth of all if that is less."""
_QUESTION = 32
"""Maximum number of tokens in a question that the teacher writes."""
_OPENING = 8
"""Number of tokens in an opening that a teacher without a chat template writes."""
_BATCH = 64
_GAP = "\x1f"


def read(file: Path, teacher: Teacher, room: int) -> list[list[int]]:
    """Returns the distinct prompts of `file` that leave `room` tokens of the teacher's context.

    Text files: each line is a user's message, or plain text if the teacher has no chat template.
    JSON lines (``.jsonl``): ``{"messages": […]}``, ``{"prompt": "text"}`` or ``{"prompt": [token
    ids]}``.

    Raises:
        StartupError: a line cannot be read, or fewer than two prompts are left.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise StartupError(f"cannot read the prompts of {file}: {error}") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            ids = _from_json(line, teacher) if file.suffix == ".jsonl" else _ask(line, teacher)
        except (ValueError, KeyError, TypeError) as error:
            raise StartupError(f"{file}, line {number}: {error}") from error
        if 0 < len(ids) <= teacher.context - room:
            found.append(ids)
    return _distinct(found, f"{file} holds")


def write(
    teacher: Teacher, count: int, seed: int, tick: Callable[[], None] = lambda: None
) -> list[list[int]]:
    """Returns up to `count` distinct prompts in the teacher's own words.

    A chat model is given the beginning of a user's turn and completes it (Magpie, Xu et al., ICLR
    2025, arXiv 2406.08464); others write the opening of a text. `tick` is called once per token.
    """
    chat = teacher.tokenizer is not None and teacher.tokenizer.chat_template
    opening = _user_turn(teacher) if chat else _beginning(teacher)
    found = []
    for index, start in enumerate(range(0, count, _BATCH)):
        batch = [opening] * min(_BATCH, count - start)
        random = generator(seed, "prompts", index)
        length = _QUESTION if chat else _OPENING
        drawn = sample(teacher.model, batch, length, teacher.stops, random, tick=tick)
        for tokens, more in zip(drawn.tokens.tolist(), drawn.count.tolist(), strict=True):
            written = tokens[: len(opening) + more]
            found.append(_as_prompt(written[len(opening) :], teacher) if chat else written)
    return _distinct([ids for ids in found if ids], f"{teacher.folder} wrote")


def split(prompts: list[list[int]], seed: int) -> tuple[list[list[int]], list[list[int]]]:
    """Returns the prompts to train on and those held out, which no training step sees."""
    order = torch.randperm(len(prompts), generator=generator(seed, "split", 0)).tolist()
    held = max(1, min(HELD_OUT, len(prompts) // 8))
    return [prompts[i] for i in order[held:]], [prompts[i] for i in order[:held]]


def _from_json(line: str, teacher: Teacher) -> list[int]:
    entry = json.loads(line)
    prompt = entry.get("messages") or entry["prompt"] if isinstance(entry, dict) else None
    if isinstance(prompt, str):
        return _encode(prompt, teacher)
    if not isinstance(prompt, list) or not prompt:
        raise ValueError('a line is {"messages": […]}, {"prompt": "…"} or {"prompt": [ids]}')
    if all(type(token) is int and 0 <= token < _vocabulary(teacher) for token in prompt):
        return prompt
    if not all(isinstance(message, dict) for message in prompt):
        raise ValueError(f"token ids are integers from 0 to {_vocabulary(teacher) - 1}")
    return _render(prompt, _tokenizer(teacher))


def _vocabulary(teacher: Teacher) -> int:
    return int(teacher.model.lm_head.out_features)


def _ask(text: str, teacher: Teacher) -> list[int]:
    tokenizer = _tokenizer(teacher)
    if not tokenizer.chat_template:
        return _encode(text, teacher)
    return _render([{"role": "user", "content": text}], tokenizer)


def _render(messages: list[dict[str, str]], tokenizer: Any) -> list[int]:
    if not tokenizer.chat_template:
        raise ValueError("the teacher has no chat template for messages")
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _encode(text: str, teacher: Teacher) -> list[int]:
    return list(_tokenizer(teacher)(text)["input_ids"])


def _tokenizer(teacher: Teacher) -> Any:
    if teacher.tokenizer is None:
        raise ValueError('the teacher has no tokenizer: give lines of {"prompt": [token ids]}')
    return teacher.tokenizer


def _user_turn(teacher: Teacher) -> list[int]:
    """What the chat template puts before a user's first words."""
    message = [{"role": "user", "content": _GAP}]
    text = teacher.tokenizer.apply_chat_template(message, tokenize=False)
    before = text.partition(_GAP)[0]
    return list(teacher.tokenizer(before, add_special_tokens=False)["input_ids"])


def _beginning(teacher: Teacher) -> list[int]:
    """The one token that texts begin with."""
    config = teacher.model.config
    ids = (config.bos_token_id, *teacher.stops, 0)
    return [next(token for token in ids if token is not None)]


def _as_prompt(question: list[int], teacher: Teacher) -> list[int]:
    text = teacher.tokenizer.decode(question, skip_special_tokens=True).strip()
    return _ask(text, teacher) if text else []


def _distinct(prompts: list[list[int]], whose: str) -> list[list[int]]:
    found = [list(ids) for ids in dict.fromkeys(map(tuple, prompts))]
    if len(found) < 2:
        raise StartupError(f"{whose} {len(found)} usable prompts: two are the least")
    return found
