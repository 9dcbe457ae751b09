"""A server with n-gram drafts, as users of the openai client see it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support.chat import Streamed, account, chat, complete
from tests.support.metrics import Changes, scraped
from tests.support.models import ROOT
from tests.support.server import API_KEY, TOGETHER, serving

pytestmark = pytest.mark.long

PAGE = ROOT / "docs" / "speculation.md"
COMMAND = next(
    line for line in PAGE.read_text(encoding="utf-8").splitlines() if "divserve serve" in line
)
"""The first command of the page."""
TEXT = (
    "The lighthouse on Skellan Point was built in 1871 by the engineer Maren Tolliver. It stands "
    "43 metres tall, and its lamp burned whale oil until 1904, when it was replaced by an electric "
    "lamp made in Ghent. "
)
TASK = f"\n\nAgain, word for word: {TEXT[:40]}"
PROMPT = TEXT + TASK
GUIDED = {"method": "adacad", "guide": {"prompt": TASK}, "trace": True}
MESSAGES: list[Any] = [{"role": "user", "content": f"{TEXT}\nRepeat this text word for word."}]
TOKENS = 48


@pytest.fixture(scope="module")
def url(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that verifies all drafts, so that they do not depend on how busy the machine is."""
    flags = [*shlex.split(COMMAND)[3:], "--no-draft-governor"]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with serving(smollm2, log, flags, environment=TOGETHER) as (url, _):
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=API_KEY, max_retries=0) as client:
        yield client


def without_drafts(client: openai.OpenAI, decoding: Any) -> str:
    """The greedy answer, asked for one token at a time: no answer's first token is a draft."""
    text = ""
    for _ in range(TOKENS):
        if decoding:
            decoding = {**decoding, "guide": {"prompt": TASK + text}}
        text += complete(client, decoding, prompt=PROMPT + text, max_tokens=1).choices[0].text
    return text


@pytest.mark.parametrize("decoding", [None, GUIDED], ids=["plain", "guided"])
def test_the_text_is_that_without_drafts(client: openai.OpenAI, decoding: Any) -> None:
    answer = complete(client, decoding, prompt=PROMPT, max_tokens=TOKENS, logprobs=2)
    (choice,) = answer.choices
    assert choice.text == without_drafts(client, decoding)
    assert answer.usage.completion_tokens == len(choice.logprobs.tokens) == TOKENS
    assert "".join(choice.logprobs.tokens) == choice.text


def test_the_account_has_every_token_and_its_drafts(url: str, client: openai.OpenAI) -> None:
    changes = Changes(lambda: scraped(url))
    answer = complete(client, GUIDED, prompt=PROMPT, max_tokens=TOKENS)
    found = account(answer.choices[0])
    draft = found["draft"]
    assert "".join(entry["token"] for entry in found["trace"]) == answer.choices[0].text
    assert found["applied_steps"] == len(found["trace"]) == TOKENS
    assert 2 * draft["rounds"] < draft["accepted"] <= draft["proposed"] <= 5 * draft["rounds"]
    assert draft["accepted"] + draft["rounds"] <= TOKENS
    for name, key in (("proposed_tokens", "proposed"), ("accepted_tokens", "accepted")):
        assert changes.of(f"draft_{name}_total", method="adacad") == draft[key]
    assert changes.of("draft_rounds_total", method="adacad") == draft["rounds"]
    assert "draft" not in account(complete(client, GUIDED, prompt=PROMPT, max_tokens=1).choices[0])


@pytest.mark.parametrize("interval", [1, 9])
def test_a_stream_equals_the_whole(client: openai.OpenAI, interval: int) -> None:
    """Chunks of several tokens carry the text, log-probs and trace entries of all of them."""
    decoding = {"method": "cad", "alpha": 0.2, "guide": {"without": TEXT}, "trace": True}
    fields: Any = {"messages": MESSAGES, "max_tokens": TOKENS, "logprobs": True}
    (whole,) = chat(client, decoding, **fields).choices
    usage = {"include_usage": True, "continuous_usage_stats": True}
    more = {"stream_interval": interval}
    streamed = Streamed(
        chat(client, decoding, stream=True, stream_options=usage, extra_body=more, **fields)
    )
    report = account(whole)
    assert streamed.text == {0: whole.message.content}
    assert streamed.trace == {0: report["trace"]}
    assert streamed.summary[0]["draft"] == report["draft"]
    assert streamed.usage.completion_tokens == TOKENS
    sizes, told = [], 0
    for chunk in streamed.chunks[1:-1]:
        (choice,) = chunk.choices
        told += len(choice.logprobs.content)
        sizes.append(len(choice.logprobs.content))
        assert len(account(choice)["trace"]) == sizes[-1]
        assert chunk.usage.completion_tokens == told
    assert max(sizes) > 4
    assert sum(sizes) == TOKENS


@pytest.mark.parametrize("stop", ["electric", "oil until 19", " 1904, when"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_inside_accepted_tokens(
    client: openai.OpenAI, stop: str, stream: bool
) -> None:
    fields: Any = {"prompt": PROMPT, "max_tokens": TOKENS}
    whole = complete(client, GUIDED, **fields).choices[0].text
    answer = complete(client, GUIDED, stop=stop, stream=stream, **fields)
    if stream:
        streamed = Streamed(answer)
        text, found, ends = streamed.text[0], streamed.summary[0], streamed.finish[0]
        trace = streamed.trace[0]
    else:
        (choice,) = answer.choices
        text, found, ends = choice.text, account(choice), choice.finish_reason
        trace = found["trace"]
        assert answer.usage.completion_tokens == len(trace)
    assert text == whole[: whole.index(stop)]
    assert ends == "stop"
    assert found["applied_steps"] == len(trace) < TOKENS
    assert found["draft"]["accepted"] + found["draft"]["rounds"] <= len(trace)
    assert (text + stop).startswith("".join(entry["token"] for entry in trace)[: len(text)])


def test_sampled_choices_have_their_own_drafts(client: openai.OpenAI) -> None:
    """Without the governor a seed repeats the answer, drafts included."""
    fields: Any = {"prompt": PROMPT, "max_tokens": TOKENS, "n": 2, "temperature": 0.8, "seed": 3}
    first, second = (complete(client, GUIDED, **fields).choices for _ in range(2))
    assert [choice.text for choice in first] == [choice.text for choice in second]
    assert first[0].text != first[1].text
    for choice in first:
        found = account(choice)
        assert found["draft"]["rounds"] > 0
        assert found["applied_steps"] == len(found["trace"])


@pytest.mark.parametrize("decoding", [None, GUIDED], ids=["plain", "guided"])
def test_top_k_alone(client: openai.OpenAI, decoding: Any) -> None:
    """vLLM's verification of no drafts at all ends the engine on CPU."""
    fields: Any = {"prompt": PROMPT, "max_tokens": TOKENS}
    sampled = complete(client, decoding, temperature=1, extra_body={"top_k": 1}, **fields)
    assert sampled.choices[0].text == complete(client, decoding, **fields).choices[0].text


def test_a_schema_and_a_tool(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"year": {"type": "integer"}, "text": {"type": "string", "maxLength": 80}},
        "required": ["year", "text"],
    }
    form = {"type": "json_schema", "json_schema": {"name": "found", "schema": schema}}
    decoding = {"method": "cad", "alpha": 0.2, "guide": {"without": TEXT}}
    fields: Any = {"messages": MESSAGES, "max_tokens": 100}
    (choice,) = chat(client, decoding, response_format=form, **fields).choices
    assert set(json.loads(choice.message.content)) == {"year", "text"}
    assert account(choice)["draft"]["accepted"] > 0


def test_several_at_once(client: openai.OpenAI) -> None:
    """Guided and plain answers in one batch are what they are alone."""
    kinds: list[Any] = [None, GUIDED] * 4

    def ask(decoding: Any) -> tuple[str, int]:
        (choice,) = complete(client, decoding, prompt=PROMPT, max_tokens=TOKENS).choices
        return choice.text, account(choice)["draft"]["accepted"] if decoding else 0

    alone = [ask(decoding) for decoding in kinds[:2]]
    with ThreadPoolExecutor(len(kinds)) as pool:
        assert list(pool.map(ask, kinds)) == alone * 4


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("decoding", [None, GUIDED], ids=["plain", "guided"])
@pytest.mark.parametrize("field", [{"min_p": 0.1}, {"logit_bias": {"5": 1}}], ids=list)
def test_what_drafts_exclude(
    client: openai.OpenAI, field: dict[str, Any], decoding: Any, stream: bool
) -> None:
    (name,) = field
    with pytest.raises(openai.BadRequestError, match="--speculative-config: leave it out") as no:
        complete(client, decoding, temperature=1, stream=stream, extra_body=field)
    assert no.value.param == name
    greedy = complete(client, decoding, extra_body={"min_p": 0.0}, max_tokens=2)
    assert greedy.usage.completion_tokens == 2
