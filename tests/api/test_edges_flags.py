"""The flags: defaults, values, and invalid values."""

from __future__ import annotations

import re
from argparse import ArgumentParser, Namespace
from dataclasses import fields
from pathlib import Path

import pytest

from divserve.edges.flags import EdgeSettings, add_flags
from divserve.errors import StartupError
from tests.support.models import ROOT


def parse(*argv: str, shutdown_timeout: int = 0) -> Namespace:
    parser = ArgumentParser()
    add_flags(parser)
    return parser.parse_args(argv, Namespace(shutdown_timeout=shutdown_timeout))


def test_the_defaults_are_those_of_the_settings() -> None:
    assert EdgeSettings.of(parse()) == EdgeSettings()


def test_every_setting_has_a_flag_with_its_default_in_the_help() -> None:
    parser = ArgumentParser()
    add_flags(parser)
    text = parser.format_help()
    for field in fields(EdgeSettings):
        assert f"--{field.name.replace('_', '-')}" in text
    assert "(default: 4194304)" in " ".join(text.split())


def test_the_documentation_has_every_flag_and_default() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    rows = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| `--")]
    told = {flag.split("`")[1].split()[0]: default.strip() for flag, default in rows}
    for field in fields(EdgeSettings):
        default = told[f"--{field.name.replace('_', '-')}"]
        if isinstance(field.default, bool) or field.default is None:
            assert default in ("none", "no limit", "off")
        else:
            assert re.search(rf"\b{field.default:g}\b|\b{field.default:.0f}\b", default)


def test_vllms_timeout_is_the_default_of_ours() -> None:
    assert EdgeSettings.of(parse(shutdown_timeout=60)).drain_timeout == 60
    assert EdgeSettings.of(parse("--drain-timeout", "0", shutdown_timeout=60)).drain_timeout == 0


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--max-queue", "-1"),
        ("--drain-timeout", "-0.1"),
        ("--max-n", "0"),
        ("--max-body-bytes", "0"),
        ("--body-timeout", "0.0"),
        ("--body-timeout", "nan"),
        ("--max-json-depth", "0"),
        ("--max-stop-strings", "-1"),
        ("--max-concurrent-per-key", "0"),
        ("--max-batch-prompts", "-5"),
        ("--max-trace-tokens", "0"),
        ("--max-trace-candidates", "0"),
        ("--send-timeout", "0.0"),
        ("--max-bytes-in-flight", "0"),
        ("--max-rows-per-request", "0"),
        ("--max-messages", "0"),
        ("--max-parts", "0"),
        ("--max-tools", "0"),
        ("--max-json-values", "0"),
    ],
)
def test_values_that_make_no_sense(flag: str, value: str) -> None:
    with pytest.raises(StartupError, match=f"{flag} is at least .*, not {value}"):
        EdgeSettings.of(parse(flag, value))


def test_a_file_of_keys_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    with pytest.raises(StartupError, match=r"--api-key-file .*: No such file"):
        EdgeSettings.of(parse("--api-key-file", str(path)))
    path.write_text("key")
    assert EdgeSettings.of(parse("--api-key-file", str(path))).api_key_file == path


@pytest.mark.parametrize("given", [[""], ["sk-1", ""], [" "]])
def test_an_empty_key(given: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a variable that is not set, say: the server would be open."""
    args = parse()
    args.api_key = given
    with pytest.raises(StartupError, match="--api-key: the key is empty"):
        EdgeSettings.of(args)
    monkeypatch.setenv("VLLM_API_KEY", given[-1])
    args.api_key = ["sk-1"]
    EdgeSettings.of(args)
    args.api_key = None
    with pytest.raises(StartupError, match="VLLM_API_KEY: the key is empty"):
        EdgeSettings.of(args)
    monkeypatch.setenv("VLLM_API_KEY", "sk-1")
    EdgeSettings.of(args)


def test_a_rate_that_is_none() -> None:
    assert EdgeSettings.of(parse("--rate-limit", "600/minute")).rate_limit == "600/minute"
    with pytest.raises(StartupError, match="--rate-limit"):
        EdgeSettings.of(parse("--rate-limit", "often"))
