"""The programs in ``examples/`` run, against the real application on an engine that is a fake."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from divserve.client import decoding
from divserve.decoding import presets
from tests.client.test_real import BIN, NEEDED, TOKENS, printed
from tests.support.fake_client import ANSWER
from tests.support.models import ROOT

# vLLM reads its own deprecated field.
pytestmark = pytest.mark.filterwarnings("ignore:max_tokens is deprecated:DeprecationWarning")

EXAMPLES = ROOT / "examples"
LM_EVAL = EXAMPLES / "lm-eval"


def run(python: str | Path, file: str, address: str, *arguments: str) -> str:
    """What an example prints."""
    return printed([python, EXAMPLES / file, *arguments], address, MODEL="smol")


def test_retrieval(address: str) -> None:
    found, answer, account = run(sys.executable, "rag.py", address).splitlines()
    assert found.startswith("found:   Since May, the bus to the airport costs 9 crowns")
    assert answer == f"answer:  {ANSWER}"
    assert json.loads(account.removeprefix("account: "))["applied_steps"] == TOKENS
    other = run(sys.executable, "rag.py", address, "May my dog run in the park in May?")
    assert other.startswith("found:   Dogs are allowed in the park")


def test_a_stream_in_colours(address: str) -> None:
    answer, account = run(sys.executable, "stream_colours.py", address).splitlines()
    assert answer == ANSWER
    assert account.startswith(f"adacad, {TOKENS} tokens, {{'entropy': 1.0,")


def test_a_batch(address: str) -> None:
    status, *answers = run(sys.executable, "batch.py", address).splitlines()
    assert status == "completed BatchRequestCounts(completed=3, failed=0, total=3)"
    said = f"{ANSWER!r} (adacad, {TOKENS} tokens)"
    assert sorted(answers) == [f"{country}: {said}" for country in ("France", "Italy", "Spain")]


@pytest.mark.skipif(not BIN.exists(), reason=NEEDED)
def test_langchain(address: str) -> None:
    whole, account, streamed, summed = run(BIN / "python", "langchain_rag.py", address).splitlines()
    assert whole == streamed == ANSWER
    assert account == summed
    assert "'method': 'adacad'" in account


@pytest.mark.skipif(not BIN.exists(), reason=NEEDED)
def test_a_task_of_lm_eval(address: str, tmp_path: Path) -> None:
    """The fake says Lyon to everything, which is right once."""
    model = {"model": "smol", "base_url": f"{address}/chat/completions"}
    command = [
        BIN / "lm_eval", "run", "--tasks", "moved,moved_adacad", "--include_path", LM_EVAL,
        "--apply_chat_template", "--model", "local-chat-completions",
        "--model_args", json.dumps(model), "--output_path", tmp_path,
    ]  # fmt: skip
    printed(command, address, HF_HOME=str(tmp_path / "hf"))
    (file,) = tmp_path.rglob("results_*.json")
    results = json.loads(file.read_text())["results"]
    assert {name: found["exact_match,contains"] for name, found in results.items()} == {
        "moved": 1 / 8,
        "moved_adacad": 1 / 8,
    }


def test_the_tasks_ask_for_what_there_is() -> None:
    """They are checked where lm-eval is not installed, too."""
    plain = yaml.safe_load((LM_EVAL / "moved.yaml").read_text())
    guided = yaml.safe_load((LM_EVAL / "moved_adacad.yaml").read_text())
    asked = guided["generation_kwargs"].pop("decoding")
    assert guided["generation_kwargs"] == plain["generation_kwargs"]
    decoding(asked)
    opening, closing = asked["guide"]["between"]
    assert plain["doc_to_text"].startswith(f"{opening}{{{{document}}}}{closing}")
    lines = [json.loads(line) for line in (LM_EVAL / "moved.jsonl").read_text().splitlines()]
    assert all(line["answer"] in line["document"] for line in lines)
    pattern = plain["filter_list"][0]["filter"][0]["regex_pattern"]
    assert sorted(line["answer"] for line in lines) == sorted(pattern.strip("()").split("|"))


def test_open_webui_beside_divserve(compose_schema: dict[str, object]) -> None:
    file = EXAMPLES / "open-webui" / "compose.yaml"
    overlay = yaml.safe_load(file.read_text())
    jsonschema.validate(overlay, compose_schema)
    base = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    assert set(overlay["services"]) - set(base["services"]) == {"open-webui"}
    preset = json.loads(overlay["configs"]["webui"]["content"])
    decoding(preset)
    assert "webui" not in presets.SHIPPED
    given = overlay["services"]["divserve"]
    (config,) = given["configs"]
    assert f"--preset webui={config['target']}" in given["entrypoint"][2]
    address = overlay["services"]["open-webui"]["environment"]["OPENAI_API_BASE_URL"]
    assert address == "http://divserve:8000/v1"


def test_every_example_is_tried() -> None:
    text = Path(__file__).read_text() + (ROOT / "tests" / "client" / "test_real.py").read_text()
    for file in EXAMPLES.rglob("*"):
        if file.suffix in (".py", ".yaml", ".mjs", ".jsonl") and "node_modules" not in file.parts:
            assert file.name in text or file.parent.name in text, file
