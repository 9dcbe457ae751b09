"""Clients of other projects keep the account. They are in an environment of their own.

``make test-clients`` installs it and runs these; elsewhere those are skipped whose package is not
there. The answer has five tokens, the last of them without text.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.client.real import CLIENTS
from tests.support.fake_client import ANSWER
from tests.support.models import ROOT

# vLLM reads its own deprecated field.
pytestmark = pytest.mark.filterwarnings("ignore:max_tokens is deprecated:DeprecationWarning")

BIN = ROOT / ".venv-clients" / "bin"
NEEDED = "needs the clients of other projects: make test-clients"
JAVASCRIPT = ROOT / "examples" / "javascript"
TOKENS = 5

LOST: dict[str, dict[str, tuple[int | None, int]]] = {
    "openai": {"helper's final answer": (None, 0)},
    "anthropic": {"helper's final answer": (None, 0)},
    "langchain": {"ChatOpenAI": (None, 0), "its stream": (None, 0)},
    "pydantic_ai": {"OpenAIChatModel": (None, 0)},
    "litellm": {"chunks alone": (None, 4), "chunks alone, final": (None, 0)},
}
"""Steps and trace entries of what docs/clients.md says is lost, by client and way of asking."""


def environment(address: str) -> dict[str, str]:
    """Variables of a program that asks the server, with divserve's Python package."""
    kept = {name: os.environ[name] for name in ("HOME", "PATH", "LANG") if name in os.environ}
    path = os.pathsep.join(map(str, (ROOT, ROOT / "kernels")))
    # LiteLLM fetches a list of prices otherwise.
    fixed = {"OPENAI_API_KEY": "none", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    return {**kept, **fixed, "PYTHONPATH": path, "OPENAI_BASE_URL": address}


def printed(command: list[Any], address: str, folder: Path = ROOT, **variables: str) -> str:
    """What a program prints that asks the server."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(address) | variables,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def check_client(python: str | Path, client: str, address: str) -> None:
    command = [python, "-m", "tests.client.real", client, address, "smol"]
    answers = json.loads(printed(command, address).splitlines()[-1])["answers"]
    assert {answer["text"] for answer in answers.values()} == {ANSWER}
    kept = dict.fromkeys(answers, (TOKENS, TOKENS)) | LOST.get(client, {})
    assert {way: (a["steps"], a["entries"]) for way, a in answers.items()} == kept


@pytest.mark.skipif(not BIN.exists(), reason=NEEDED)
@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_keeps_the_account(client: str, address: str) -> None:
    check_client(BIN / "python", client, address)


@pytest.mark.parametrize("client", ["openai", "openai_responses", "anthropic"])
def test_another_version_does_too(client: str, address: str) -> None:
    """The test's own, which vLLM needs."""
    check_client(sys.executable, client, address)


@pytest.mark.skipif(not (JAVASCRIPT / "node_modules").exists(), reason=NEEDED)
@pytest.mark.parametrize("program", ["openai.mjs", "ai-sdk.mjs"])
def test_javascript_keeps_the_account(program: str, address: str) -> None:
    node = shutil.which("node")
    assert node is not None
    lines = printed([node, program], address, JAVASCRIPT, MODEL="smol").splitlines()
    assert {text.partition(":")[2] for text in lines[::2]} == {f" {ANSWER}"}
    (account,) = set(lines[1::2])
    assert f'"applied_steps":{TOKENS}' in account
    assert account.endswith(f", trace of {TOKENS} tokens")


def test_its_lock_file_names_no_host() -> None:
    lock = json.loads((JAVASCRIPT / "package-lock.json").read_text())
    assert not [name for name, found in lock["packages"].items() if "resolved" in found]
    wanted = json.loads((JAVASCRIPT / "package.json").read_text())["dependencies"]
    locked = {name: lock["packages"][f"node_modules/{name}"]["version"] for name in wanted}
    assert locked == wanted


def test_versions_of_the_page_are_those_of_the_locks() -> None:
    page = (ROOT / "docs" / "clients.md").read_text()
    lock = (ROOT / "requirements" / "clients.lock").read_text().splitlines()
    pinned = dict(line.split("==") for line in lock if "==" in line)
    for distribution in ("lm-eval", *(name for name, _ in CLIENTS.values())):
        assert f"{distribution} {pinned[distribution]}" in page
    javascript = json.loads((JAVASCRIPT / "package.json").read_text())["dependencies"]
    for name, version in javascript.items():
        assert f"{name} {version}" in page
    for name in ("openai", "anthropic"):
        assert metadata.version(name) in page


@pytest.mark.parametrize(
    ("module", "package", "distribution"),
    [
        ("langchain", "langchain_openai", "langchain-openai"),
        ("pydantic_ai", "pydantic_ai", "pydantic-ai-slim"),
    ],
)
def test_a_missing_package_is_named(module: str, package: str, distribution: str) -> None:
    assert find_spec(package) is None, "this environment is to have none of them"
    name = f"divserve.client.{module}"
    with pytest.raises(ImportError, match=f"{name} needs the package {distribution}"):
        importlib.import_module(name)
