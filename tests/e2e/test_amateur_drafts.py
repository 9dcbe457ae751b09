"""A server whose amateur drafts: the account and the metrics of its answers."""

from __future__ import annotations

import json
from pathlib import Path

import openai
import pytest

from tests.support.chat import account, chat
from tests.support.metrics import parse, scraped
from tests.support.server import API_KEY, serving

pytestmark = pytest.mark.long

MOST = 3
DRAFTS = json.dumps({"method": "amateur", "num_speculative_tokens": MOST})


def test_account_and_metrics(tiny_with_tokenizer: Path, tmp_path: Path) -> None:
    """The amateur is the served model, so that it is always right: 21 tokens in six steps."""
    model = tiny_with_tokenizer
    flags = ("--amateur", str(model), "--speculative-config", DRAFTS, "--no-draft-governor")
    with serving(model, tmp_path / "log", flags) as (url, _):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=API_KEY, max_retries=0)
        whole = {"ignore_eos": True}
        (choice,) = chat(client, {"method": "contrastive"}, max_tokens=21, extra_body=whole).choices
        found = parse(scraped(url))
        drafts = {"proposed": 5 * MOST, "accepted": 5 * MOST, "rounds": 5}
        assert account(choice)["draft"] == drafts
        for name, count in drafts.items():
            unit = "" if name == "rounds" else "_tokens"
            key = (f"divserve_draft_{name}{unit}_total", frozenset({("method", "contrastive")}))
            assert found[key] == count
        # A grammar cannot check tokens that are not known yet.
        grammar = {"structured_outputs": {"regex": "[a-z]{9,12}"}}
        (choice,) = chat(client, {"method": "contrastive"}, extra_body=grammar).choices
        assert "draft" not in account(choice)
