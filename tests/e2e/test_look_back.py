"""Look-back decoding on a real server, as users of the openai client see it."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.support.chat import Streamed, account, chat, complete
from tests.support.server import API_KEY, Started, gauges, hang_up

OPENING = "The island is known for its birds. The birds of the island are known for"
LOOK = {"method": "look_back", "threshold": 1.0, "k": 4, "trace": True}
LEAVERS = 60
GRACE_S = 30


@pytest.fixture(scope="module")
def client(tiny_client: openai.OpenAI) -> openai.OpenAI:
    return tiny_client


@pytest.fixture(scope="module")
def look(client: openai.OpenAI) -> dict[str, Any]:
    """A threshold that some steps of these random models exceed, and others do not."""
    answer = complete(client, {**LOOK, "threshold": 0}, prompt=OPENING, max_tokens=40)
    distances = sorted(entry["kl_min"] for entry in account(answer.choices[0])["trace"])
    return {**LOOK, "threshold": distances[10]}


def test_the_account(client: openai.OpenAI, look: dict[str, Any]) -> None:
    """Every token has its distance; tokens of alarms have candidates and are one of them."""
    answer = complete(client, look, prompt=OPENING, max_tokens=40, temperature=0)
    found = account(answer.choices[0])
    trace = found["trace"]
    assert found["method"] == "look_back"
    assert found["applied_steps"] == len(trace) == answer.usage.completion_tokens == 40
    assert 0 < found["mean"]["alarm"] < 1
    for entry in trace:
        assert (entry["kl_min"] <= look["threshold"]) == (entry["alarm"] == 1)
        assert ("candidates" in entry) == (entry["alarm"] == 1)
        assert entry["nearest"] >= 1
        if entry["alarm"]:
            assert len(entry["candidates"]) == 4
            assert entry["token_id"] in {c["token_id"] for c in entry["candidates"]}
            assert all(c["kl"] >= 0 and isinstance(c["token"], str) for c in entry["candidates"])


def test_a_stream_has_no_seam(client: openai.OpenAI, look: dict[str, Any]) -> None:
    """With the same seed, it equals the whole answer, token by token, with the same trace."""
    fields: dict[str, Any] = {"max_tokens": 40, "temperature": 0.8, "seed": 5}
    whole = chat(client, look, **fields)
    streamed = Streamed(chat(client, look, stream=True, **fields))
    assert streamed.text == {0: whole.choices[0].message.content}
    assert streamed.trace == {0: account(whole.choices[0])["trace"]}
    assert account(whole.choices[0])["mean"]["alarm"] > 0


def test_two_answers_draw_by_themselves(client: openai.OpenAI) -> None:
    often = {**LOOK, "threshold": 100.0, "trace": False}
    answer = chat(client, often, n=2, temperature=1, seed=1, max_tokens=20)
    first, second = (choice.message.content for choice in answer.choices)
    assert first != second
    assert [account(c)["mean"]["alarm"] for c in answer.choices] == [1, 1]


def test_a_grammar_holds(client: openai.OpenAI) -> None:
    """Also where it forbids every candidate of an alarm."""
    often = {**LOOK, "threshold": 100.0}
    answer = chat(
        client,
        often,
        max_tokens=30,
        temperature=0,
        extra_body={"structured_outputs": {"regex": "[0-9]{4}-[0-9]{2}"}},
    )
    assert re.fullmatch("[0-9]{4}-[0-9]{2}", answer.choices[0].message.content)


def test_the_method_is_listed(tiny_server: Started) -> None:
    methods = _get(tiny_server.url, "/v1/decoding/methods")["data"]
    (entry,) = [method for method in methods if method["method"] == "look_back"]
    assert entry["available"] is True
    assert entry["parameters"]["properties"]["k"]["maximum"] == 20


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"threshold": -1}, "decoding.threshold"),
        ({"k": 0}, "decoding.k"),
        ({"k": 21}, "decoding.k"),
        ({"window": -1}, "decoding.window"),
        ({"reference": "past"}, "decoding.reference"),
        ({"guide": {"prompt": "x"}}, "decoding.guide"),
    ],
)
def test_bad_parameters(client: openai.OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, {**LOOK, **fields})
    assert caught.value.body["param"] == param  # type: ignore[index]


def test_it_stands_alone(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="look_back takes no other method beside it"):
        chat(client, [LOOK, {"method": "entropy_temperature"}])


def test_leavers_leave_nothing(tiny_server: Started) -> None:
    """Clients that leave at any moment of an answer full of alarms."""
    body = {
        "model": "smol",
        "prompt": OPENING,
        "max_tokens": 300,
        "stream": True,
        "decoding": {**LOOK, "threshold": 100.0, "k": 8},
    }
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda i: hang_up(tiny_server.url, body, 0.02 * (i % 30)), range(LEAVERS)))
    deadline = time.monotonic() + GRACE_S
    while any(gauges(tiny_server.url).values()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert set(gauges(tiny_server.url).values()) == {0}


def _get(url: str, path: str) -> Any:
    request = urllib.request.Request(f"{url}{path}", headers={"Authorization": f"Bearer {API_KEY}"})
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)
