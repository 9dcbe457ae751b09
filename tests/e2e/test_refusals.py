"""What a client gets when a request cannot be decoded as asked: a 400 that says what to change."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import openai
import pytest

from divserve.decoding import METHODS
from tests.support.chat import CAD, DOCUMENT, MESSAGES, chat, complete, guided
from tests.support.server import API_KEY, get

LONG = "word " * 2000
IDS = {"prompt": [504, 3575, 282]}


def cad(**guide: Any) -> dict[str, Any]:
    return {"method": "cad", "guide": guide}


Refusals = list[tuple[Any, dict[str, Any], str]]

# One for each place that rejects requests; `tests/api` has all cases.
CHAT_REFUSALS: Refusals = [
    ({"method": "nope", "guide": {"without": "x"}}, {}, "decoding.method"),
    ({"method": "cad"}, {}, "decoding.guide"),
    (cad(without="x", messages=MESSAGES), {}, "decoding.guide"),
    (guided(alpha=-1), {}, "decoding.alpha"),
    (cad(without=[DOCUMENT, "no"]), {}, "decoding.guide.without.1"),
    (cad(messages=[{"content": "a"}]), {}, "decoding.guide.messages.0"),
    (cad(messages=[{"role": "user", "content": LONG}]), {}, "decoding.guide"),
    (cad(messages=[{"role": "user", "content": LONG * 99}]), {}, "decoding.guide"),
    (CAD, {"extra_body": {"use_beam_search": True}}, "decoding"),
    (None, {"extra_body": {"vllm_xargs": {"divserve": "x"}}}, "vllm_xargs"),
]

COMPLETION_REFUSALS: Refusals = [
    (cad(without="x"), IDS, "decoding.guide.without"),
    (CAD, {"prompt": DOCUMENT}, "decoding.guide"),
    (cad(prompt=LONG), {}, "decoding.guide"),
    (cad(prompt=[400_000]), IDS, "decoding.guide.prompt"),
    (CAD, {"max_tokens": 0, "echo": True}, "max_tokens"),
]


def check(refusal: openai.BadRequestError, param: str) -> None:
    body: Any = refusal.body
    assert body.keys() == {"message", "type", "param", "code"}
    assert body["type"] == "invalid_request_error"
    assert isinstance(body["code"], str)
    assert body["param"] == param
    assert len(body["message"]) > 10


@pytest.mark.parametrize("stream", [False, True])
def test_chat_refuses(client: openai.OpenAI, stream: bool) -> None:
    for decoding, fields, param in CHAT_REFUSALS[stream::2]:
        with pytest.raises(openai.BadRequestError) as refusal:
            chat(client, decoding, stream=stream, **{k: dict(v) for k, v in fields.items()})
        check(refusal.value, param)


@pytest.mark.parametrize("stream", [False, True])
def test_completions_refuse(client: openai.OpenAI, stream: bool) -> None:
    for decoding, fields, param in COMPLETION_REFUSALS[stream::2]:
        with pytest.raises(openai.BadRequestError) as refusal:
            complete(client, decoding, stream=stream, **fields)
        check(refusal.value, param)


def test_a_guide_that_is_too_long_names_both_numbers(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="1024 tokens; at most 1023") as refusal:
        complete(client, cad(prompt=[504] * 1024))
    assert refusal.value.code == "context_length_exceeded"


@pytest.mark.parametrize("decoding", [None, CAD], ids=["plain", "guided"])
def test_a_prompt_that_is_too_long_keeps_vllms_error(client: openai.OpenAI, decoding: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="maximum context length is 1024") as refusal:
        complete(client, decoding, prompt=DOCUMENT + LONG, stream=True)
    assert refusal.value.param == "input_tokens"
    assert refusal.value.code == "context_length_exceeded"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("decoding", [None, CAD], ids=["plain", "guided"])
def test_what_the_engine_refuses_is_a_400_too(
    client: openai.OpenAI, decoding: Any, stream: bool
) -> None:
    """vLLM alone answers a streaming request with 200 and an error event."""
    with pytest.raises(openai.BadRequestError) as refusal:
        chat(client, decoding, stream=stream, logit_bias={"999999": 5})
    assert refusal.value.param == "logit_bias"


def post(server: str, path: str, body: Any) -> tuple[int, Any]:
    request = urllib.request.Request(
        f"{server}{path}",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json", "Authorization": f"Bearer {API_KEY}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


OTHER_ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions/render": {"messages": MESSAGES},
    "/v1/completions/render": {"prompt": "Hi"},
    "/invocations": {"prompt": "Hi", "max_tokens": 2},
    "/inference/v1/generate": {"token_ids": [504], "sampling_params": {"max_tokens": 2}},
    "/tokenize": {"prompt": "Hi"},
}


@pytest.mark.parametrize("path", OTHER_ROUTES)
def test_other_routes_refuse_decoding_and_work_without(server: str, path: str) -> None:
    body = {"model": "smol", **OTHER_ROUTES[path]}
    status, answer = post(server, path, {**body, "decoding": CAD})
    assert status == 400
    assert answer["error"]["param"] == "decoding"
    assert path in answer["error"]["message"]
    # vLLM disables the routes for disaggregated serving by default.
    assert post(server, path, body)[0] in (200, 403)


def test_openapi_shows_the_field(server: str) -> None:
    document = json.loads(get(server, "/openapi.json"))
    schemas = document["components"]["schemas"]
    for path, name in (
        ("/v1/chat/completions", "ChatRequest"),
        ("/v1/completions", "CompletionsRequest"),
        ("/v1/responses", "GuidedResponsesRequest"),
        ("/v1/messages", "MessagesRequest"),
        ("/v1/chat/completions/batch", "BatchRequest"),
    ):
        body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        assert body["schema"]["$ref"].endswith(f"/{name}")
        either = schemas[name]["properties"]["decoding"]["anyOf"]
        shapes = next(shape["oneOf"] for shape in either if "oneOf" in shape)
        (one,) = (shape for shape in shapes if "discriminator" in shape)
        (several,) = (shape for shape in shapes if shape.get("type") == "array")
        for union in (one, several["items"]):
            assert union["discriminator"]["propertyName"] == "method"
            assert set(union["discriminator"]["mapping"]) == set(METHODS)


def test_the_methods_are_listed(server: str, client: openai.OpenAI) -> None:
    listed: Any = client.get("/decoding/methods", cast_to=object)
    methods = {entry["method"]: entry for entry in listed["data"]}
    assert list(methods) == list(METHODS)
    assert methods["cad"]["guide_required"] is True
    assert methods["cfg"]["guide_required"] is False
    assert methods["adacad"]["parameters"]["properties"]["jsd_base"]["default"] == "nats"
    assert methods["kl_temperature"]["reports"] == ["entropy", "kl", "jsd", "temperature"]
    assert methods["cad"]["url"].startswith("https://arxiv.org/")


@pytest.mark.parametrize("path", ["/v1/decoding/methods", "/metrics", "/openapi.json", "/version"])
def test_all_routes_are_behind_the_api_key(server: str, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(f"{server}{path}", timeout=60)
    assert refusal.value.code == 401
    with refusal.value as response:
        assert json.load(response)["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("key", ["divserve", "divserve_row"])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/responses", {"input": "hi", "max_output_tokens": 2}),
        ("/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}),
        ("/completions", {"prompt": "hi", "max_tokens": 2, "stream": True}),
    ],
)
def test_orders_cannot_be_smuggled_past_the_front_end(
    client: openai.OpenAI, path: str, body: dict[str, Any], key: str
) -> None:
    """Arguments that the scheduler trusts are rejected on every route, and the engine survives."""
    for value in ("x", {"primary": "a", "row": [0.0]}, [1.0]):
        with pytest.raises(openai.BadRequestError):
            client.post(path, cast_to=object, body=body | {"vllm_xargs": {key: value}})
    assert chat(client).choices[0].message.content
