"""Prompts: what a file may contain, what a teacher writes, what is held out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from divserve.distill import data
from divserve.distill.teacher import Teacher
from divserve.errors import StartupError

USER = [{"role": "user", "content": "Hi there"}]


def write(path: Path, *lines: object) -> Path:
    text = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("\n".join(text) + "\n")
    return path


def test_lines_of_text_are_user_messages(tmp_path: Path, spoken: Teacher) -> None:
    file = write(tmp_path / "p.txt", "Hi there", "", "   ", "Hi there", "Why?")
    first, second = data.read(file, spoken, 10)
    text = spoken.tokenizer.apply_chat_template(USER, tokenize=False, add_generation_prompt=True)
    assert spoken.tokenizer.decode(first) == text
    assert "Why?" in spoken.tokenizer.decode(second)


def test_json_lines(tmp_path: Path, spoken: Teacher) -> None:
    file = write(
        tmp_path / "p.jsonl", {"messages": USER}, {"prompt": "Once upon"}, {"prompt": [5, 6, 7]}
    )
    chat, text, ids = data.read(file, spoken, 10)
    assert spoken.tokenizer.decode(chat).endswith("<|im_start|>assistant\n")
    assert spoken.tokenizer.decode(text) == "Once upon"
    assert ids == [5, 6, 7]


def test_prompts_that_leave_no_room_are_left_out(tmp_path: Path, big: Teacher) -> None:
    context = big.context
    lines = [{"prompt": [3] * length} for length in (1, 2, context - 10, context - 9)]
    kept = data.read(write(tmp_path / "p.jsonl", *lines), big, 10)
    assert [len(ids) for ids in kept] == [1, 2, context - 10]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "line 2: "),
        ({"text": "x"}, "prompt"),
        ({"prompt": []}, "a line is"),
        ([1, 2], "a line is"),
        ({"prompt": [1, 512]}, "from 0 to 511"),
        ({"prompt": [1, True]}, "from 0 to 511"),
        ({"prompt": "words"}, "no tokenizer"),
        ({"messages": USER}, "no tokenizer"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, big: Teacher, line: object, reason: str) -> None:
    file = write(tmp_path / "p.jsonl", {"prompt": [1]}, line)
    with pytest.raises(StartupError, match="line 2") as error:
        data.read(file, big, 10)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_too_few_prompts_and_no_file(tmp_path: Path, big: Teacher) -> None:
    with pytest.raises(StartupError, match="holds 1 usable prompts"):
        data.read(write(tmp_path / "p.jsonl", {"prompt": [1]}, {"prompt": [1]}), big, 10)
    with pytest.raises(StartupError, match="cannot read"):
        data.read(tmp_path / "nothing.txt", big, 10)


def test_a_teacher_without_tokenizer_writes_openings(big: Teacher) -> None:
    prompts = data.write(big, 70, seed=0)
    assert len(prompts) == len(set(map(tuple, prompts))) > 60
    assert all(ids[0] == big.model.config.bos_token_id and len(ids) <= 9 for ids in prompts)
    assert prompts == data.write(big, 70, seed=0) != data.write(big, 70, seed=1)


def test_a_chat_teacher_writes_the_words_of_a_user(spoken: Teacher) -> None:
    prompts = data.write(spoken, 4, seed=0)
    before, after = (
        spoken.tokenizer.apply_chat_template(
            [{"role": "user", "content": "|"}], tokenize=False, add_generation_prompt=True
        )
    ).split("|<")  # fmt: skip
    for ids in prompts:
        text = spoken.tokenizer.decode(ids)
        assert text.startswith(before)
        assert text.endswith("<" + after)
        assert len(text) > len(before) + len(after) + 1


@pytest.mark.parametrize(("count", "held"), [(2, 1), (7, 1), (80, 10), (1000, 32)])
def test_held_out_prompts_are_not_trained_on(count: int, held: int) -> None:
    prompts = [[index] for index in range(count)]
    training, kept = data.split(prompts, seed=0)
    assert len(kept) == held
    assert sorted(training + kept) == prompts
    assert (training, kept) == data.split(prompts, seed=0)
