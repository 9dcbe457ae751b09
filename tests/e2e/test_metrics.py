"""The metrics of a real server: all are documented, and vLLM's are unchanged."""

from __future__ import annotations

import openai

from tests.support.chat import chat, guided
from tests.support.metrics import Changes, documented, families, scraped


def test_docs_and_server_agree(server: str, client: openai.OpenAI) -> None:
    """Names and types in both directions; labels of all metrics that have a sample."""
    chat(client, guided("adacad"))
    text = scraped(server)
    live, listed = families(text), documented()
    assert live.keys() == listed.keys()
    for name, (kind, labels) in live.items():
        assert kind == listed[name][0], name
        assert not labels or labels == listed[name][1], name


def test_the_engine_tells_of_its_pairs(server: str, client: openai.OpenAI) -> None:
    """Waiting and kernel times come from the engine's processes; vLLM's counters are unchanged."""
    changes = Changes(lambda: scraped(server))
    before = generation_tokens(server)
    chat(client, guided("adacad"), max_tokens=8, extra_body={"ignore_eos": True})
    assert changes.of("requests_total", method="adacad", outcome="ok") == 1
    assert changes.of("guided_steps_total") == 8
    assert changes.of("unguided_steps_total") == 0
    assert changes.of("pair_wait_seconds_count") == 1
    assert changes.of("kernel_seconds_count") == 8
    assert 0 < changes.of("kernel_seconds_sum") < 5
    route = "/v1/chat/completions"
    assert changes.of("http_requests_total", route=route, method="POST", status="200") == 1
    assert generation_tokens(server) - before == 8


def generation_tokens(server: str) -> float:
    """vLLM's own count of tokens."""
    (line,) = [
        line
        for line in scraped(server).splitlines()
        if line.startswith("vllm:generation_tokens_total{")
    ]
    return float(line.split()[-1])
