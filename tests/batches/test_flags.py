"""The flags: defaults, bad values, and the page that lists them."""

from __future__ import annotations

import re
from argparse import ArgumentParser, Namespace
from dataclasses import fields
from pathlib import Path

import pytest

from divserve.batches.flags import BatchSettings, add_flags
from divserve.batches.shapes import ENDPOINTS, CreateBatch
from divserve.errors import StartupError
from tests.support.models import ROOT


def parse(*argv: str) -> Namespace:
    parser = ArgumentParser()
    add_flags(parser)
    return parser.parse_args(argv)


def test_the_defaults_are_those_of_the_settings() -> None:
    assert BatchSettings.of(parse()) == BatchSettings()


def test_the_documentation_has_every_flag_and_default() -> None:
    text = (ROOT / "docs" / "batches.md").read_text()
    rows = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| `--")]
    told = {flag.split("`")[1].split()[0]: default.strip() for flag, default in rows}
    assert len(told) == len(fields(BatchSettings))
    for field in fields(BatchSettings):
        default = told[f"--{field.name.replace('_', '-')}"]
        if field.default is None:
            assert default in ("off", "half of the engine's")
        else:
            assert re.fullmatch(str(field.default), default)


def test_the_folder_is_made(tmp_path: Path) -> None:
    settings = BatchSettings.of(parse("--batch-dir", str(tmp_path / "a" / "b")))
    assert settings.batch_dir == tmp_path / "a" / "b"
    made = {path.name for path in (tmp_path / "a" / "b").iterdir()}
    assert made == {"files", "batches", "incoming"}
    assert [*(tmp_path / "a" / "b" / "incoming").iterdir()] == []


@pytest.mark.parametrize("flag", ["--batch-max-rows", "--batch-max-lines"])
def test_values_that_make_no_sense(flag: str) -> None:
    with pytest.raises(StartupError, match=f"{flag} is at least 1, not 0"):
        BatchSettings.of(parse(flag, "0"))


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StartupError, match=r"--batch-dir .*/file: Not a directory"):
        BatchSettings.of(parse("--batch-dir", str(tmp_path / "file")))


def test_the_body_takes_the_endpoints() -> None:
    for endpoint in ENDPOINTS:
        CreateBatch.model_validate(
            {"input_file_id": "f", "endpoint": endpoint, "completion_window": "24h"}
        )
