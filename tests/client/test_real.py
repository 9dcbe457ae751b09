"""Clients of other projects keep the account. They are in an environment of their own.

``make test-clients`` installs it and runs these; elsewhere they are skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.client.real import CLIENTS
from tests.support.fake_client import ANSWER
from tests.support.models import ROOT

# vLLM reads its own deprecated field.
pytestmark = pytest.mark.filterwarnings("ignore:max_tokens is deprecated:DeprecationWarning")

BIN = ROOT / ".venv-clients" / "bin"
NEEDED = "needs the clients of other projects: make test-clients"
AI_SDK = ROOT / "examples" / "ai-sdk"

HELPERS_LOSE = {"openai", "anthropic"}
"""Their last answer comes from a stream helper, which keeps the last entries of the trace alone."""


def environment(address: str) -> dict[str, str]:
    """Variables of a program that asks the server, with divserve's Python package."""
    kept = {name: os.environ[name] for name in ("HOME", "PATH", "LANG") if name in os.environ}
    path = os.pathsep.join(map(str, (ROOT, ROOT / "kernels")))
    return {**kept, "PYTHONPATH": path, "OPENAI_BASE_URL": address, "OPENAI_API_KEY": "none"}


@pytest.mark.skipif(not BIN.exists(), reason=NEEDED)
@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_keeps_the_account(client: str, address: str) -> None:
    done = subprocess.run(
        [BIN / "python", "-m", "tests.client.real", client, address, "smol"],
        cwd=ROOT,
        env=environment(address),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])["answers"]
    assert [answer["text"] for answer in answers] == [ANSWER] * len(answers)
    assert [answer["steps"] for answer in answers] == [4] * len(answers)
    entries = [answer["entries"] for answer in answers]
    assert entries[:2] == [4, 4]
    if client in HELPERS_LOSE:
        assert entries[2] < 4


@pytest.mark.skipif(not (AI_SDK / "node_modules").exists(), reason=NEEDED)
def test_the_ai_sdk_keeps_the_account(address: str) -> None:
    node = shutil.which("node")
    assert node is not None
    done = subprocess.run(
        [node, "chat.mjs"],
        cwd=AI_SDK,
        env=environment(address) | {"MODEL": "smol"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    whole, account, streamed, summed = done.stdout.splitlines()
    assert whole == streamed == ANSWER
    assert account == summed
    assert account.endswith(", trace of 4 tokens")


def test_its_lock_file_names_no_host() -> None:
    lock = json.loads((AI_SDK / "package-lock.json").read_text())
    assert not [name for name, found in lock["packages"].items() if "resolved" in found]
    wanted = json.loads((AI_SDK / "package.json").read_text())["dependencies"]
    locked = {name: lock["packages"][f"node_modules/{name}"]["version"] for name in wanted}
    assert locked == wanted


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    """The test's own environment has none of them."""
    import importlib

    needed = {"langchain": "langchain-openai", "pydantic_ai": "pydantic-ai-slim"}
    for module, package in needed.items():
        expected = f"divserve.client.{module} needs the package {package}"
        with pytest.raises(ImportError, match=expected):
            importlib.import_module(f"divserve.client.{module}")
