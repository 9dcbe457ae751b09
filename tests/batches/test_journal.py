"""The journal: a line is answered if and only if its whole answer is on the disk."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from divserve.batches.journal import ERRORS, OUTPUT, Journal, key_of


def answer(custom_id: str) -> dict[str, Any]:
    usage = {"prompt_tokens": 7, "completion_tokens": 2}
    return {"custom_id": custom_id, "response": {"body": {"text": "x" * 50, "usage": usage}}}


def record(custom_id: str) -> bytes:
    return json.dumps(answer(custom_id)).encode() + b"\n"


def written(folder: Path, *ids: str) -> Journal:
    journal = Journal(folder)
    for custom_id in ids:
        journal.append(answer(custom_id), failed=custom_id.startswith("bad"))
    return journal


def test_answers_are_known_after_a_restart(tmp_path: Path) -> None:
    written(tmp_path, "a", "bad b", "c").close()
    again = Journal(tmp_path)
    assert again.done == {key_of("a"), key_of("bad b"), key_of("c")}
    assert (again.completed, again.failed) == (2, 1)
    again.append(answer("d"), failed=False)
    again.close()
    # Of four answers.
    assert (again.tokens["input"], again.tokens["output"]) == (28, 8)
    assert (tmp_path / OUTPUT).read_bytes() == record("a") + record("c") + record("d")
    assert (tmp_path / ERRORS).read_bytes() == record("bad b")


@pytest.mark.parametrize("kept", range(1, len(record("torn")), 7))
def test_a_torn_line_is_cut_and_answered_again(tmp_path: Path, kept: int) -> None:
    written(tmp_path, "a").close()
    with (tmp_path / OUTPUT).open("ab") as file:
        file.write(record("torn")[:kept])
    again = Journal(tmp_path)
    assert again.done == {key_of("a")}
    again.append(answer("torn"), failed=False)
    again.close()
    assert (tmp_path / OUTPUT).read_bytes() == record("a") + record("torn")


@pytest.mark.parametrize(
    "junk", [b"\n", b"\x00" * 40 + b"\n", b"[]\n", b'{"custom_id": 1}\n', b'{"id": 1}\n', b"\xff\n"]
)
def test_what_follows_a_line_that_is_none_is_not_trusted(tmp_path: Path, junk: bytes) -> None:
    """A loss of power may leave a gap; what was answered after it is answered again."""
    (tmp_path / OUTPUT).write_bytes(record("a") + junk + record("b"))
    journal = Journal(tmp_path)
    journal.close()
    assert journal.done == {key_of("a")}
    assert (tmp_path / OUTPUT).read_bytes() == record("a")


def test_an_answer_is_written_once(tmp_path: Path) -> None:
    journal = written(tmp_path, "a", "a")
    journal.append(answer("a"), failed=True)
    journal.close()
    assert (tmp_path / OUTPUT).read_bytes() == record("a")
    assert (tmp_path / ERRORS).read_bytes() == b""
    assert (journal.completed, journal.failed) == (1, 0)


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    journal = written(tmp_path, "a")
    file = journal._files[OUTPUT]

    class Full:
        """A file on a disk with room for ten more bytes."""

        def __init__(self, real: Any) -> None:
            self.real = real
            self.room = 10

        def write(self, data: bytes) -> int:
            if not self.room:
                raise OSError(28, "No space left on device")
            done: int = self.real.write(data[: self.room])
            self.room -= done
            return done

        def __getattr__(self, name: str) -> Any:
            return getattr(self.real, name)

    real, file._file = file._file, Full(file._file)  # type: ignore[assignment]
    with pytest.raises(OSError, match="No space"):
        journal.append(answer("b"), failed=False)
    assert key_of("b") not in journal.done
    assert (tmp_path / OUTPUT).read_bytes() == record("a")
    file._file = real
    journal.append(answer("b"), failed=False)
    journal.close()
    assert (tmp_path / OUTPUT).read_bytes() == record("a") + record("b")


def test_answers_become_durable_once_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    journal = written(tmp_path, "a", "b")
    assert synced == []
    now[0] += 1.0
    journal.append(answer("c"), failed=False)
    journal.append(answer("d"), failed=False)
    assert len(synced) == 2
    journal.close()
    assert len(synced) == 4
