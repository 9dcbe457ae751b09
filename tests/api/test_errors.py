"""Exceptions as OpenAI error JSON."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from fastapi import FastAPI, HTTPException, Request
from fastapi.testclient import TestClient
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException

from divserve.api.requests import ChatRequest, CompletionsRequest
from divserve.decoding import METHODS, Decoding
from divserve.errors import DecodingFailed, InvalidRequest
from divserve.http import errors

GUIDE = {"prompt": "x"}
LONG = "p" * 99_999
EXAMPLE = (
    'Input should be an object, such as {"method": "cad", "guide": {"without": "the document"}}'
)
MISSING = "missing_required_parameter"
INVALID = "invalid_value"


class Body(BaseModel):
    model: str
    decoding: Decoding | None = None


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()
    errors.install(app)

    @app.post("/ask")
    async def ask(body: Body) -> str:
        return body.model

    @app.post("/chat")
    async def chat(body: ChatRequest) -> str:
        return body.model or ""

    @app.post("/either")
    async def either(body: CompletionsRequest | ChatRequest) -> str:
        return body.model or ""

    @app.post("/parses")
    async def parses(request: Request) -> None:
        try:
            await request.json()
        except json.JSONDecodeError as error:
            raise HTTPException(400, "JSON decode error") from error

    @app.post("/refused")
    async def refused() -> None:
        raise InvalidRequest("shorten it", param="decoding.guide", code="context_length_exceeded")

    @app.get("/page")
    async def page(limit: int) -> int:
        return limit

    @app.post("/raise")
    async def any_error(request: Request) -> None:
        raise request.app.state.error

    @app.post("/failed")
    async def failed() -> None:
        raise DecodingFailed("lost")

    return TestClient(app)


def error_of(client: TestClient, decoding: Any) -> dict[str, Any]:
    response = client.post("/ask", json={"model": "m", "decoding": decoding})
    assert response.status_code == 400
    error: dict[str, Any] = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    return error


@pytest.mark.parametrize(
    ("decoding", "param", "code"),
    [
        ({"method": "nope"}, "decoding.method", "invalid_value"),
        ({}, "decoding.method", "missing_required_parameter"),
        ({"method": "cad", "alpha": -1, "guide": GUIDE}, "decoding.alpha", "invalid_value"),
        ({"method": "cad", "alpha": "x", "guide": GUIDE}, "decoding.alpha", "invalid_value"),
        ({"method": "cad", "beta": 1, "guide": GUIDE}, "decoding.beta", "unknown_parameter"),
        ({"method": "cad"}, "decoding.guide", "missing_required_parameter"),
        ({"method": "cad", "guide": {}}, "decoding.guide", "invalid_value"),
        ({"method": "cad", "guide": GUIDE | {"without": "y"}}, "decoding.guide", "invalid_value"),
        ({"method": "cad", "guide": GUIDE, "trace": "last"}, "decoding.trace", "invalid_value"),
        ({"method": "cad", "guide": GUIDE, "trace": None}, "decoding.trace", "invalid_value"),
        (
            {"method": "cad", "guide": GUIDE, "trace": {"at": "x"}},
            "decoding.trace.at",
            "invalid_value",
        ),
        (
            {"method": "cad", "guide": GUIDE, "trace": {"top": 21}},
            "decoding.trace.top",
            "invalid_value",
        ),
        (
            [{"method": "cad", "guide": GUIDE, "trace": {"top": 0}}],
            "decoding.0.trace.top",
            "invalid_value",
        ),
        ({"method": "cad", "guide": {"without": ""}}, "decoding.guide.without", "invalid_value"),
        ({"method": "cad", "guide": {"prompt": []}}, "decoding.guide.prompt", "invalid_value"),
        ({"method": "cad", "guide": {"prompt": 5}}, "decoding.guide.prompt", "invalid_value"),
        ({"method": "cad", "guide": {"x": 1}}, "decoding.guide.x", "unknown_parameter"),
        (
            {"method": "cad", "guide": {"between": ["a", ""]}},
            "decoding.guide.between.0.1",
            "invalid_value",
        ),
        *(
            ({"method": "cad", "guide": {"between": wrong}}, "decoding.guide.between", INVALID)
            for wrong in (["a"], ["a", "b", "c"], [["a", "b"], ["c"]], ["a", "a"], [1], "ab")
        ),
        ({"method": "cad", "guide": {"between": []}}, "decoding.guide.between", "invalid_value"),
        (
            {"method": "cad", "guide": {"between": [["a", "b"]] * 17}},
            "decoding.guide.between",
            "invalid_value",
        ),
        ({"method": "cad", "guide": {"role": ""}}, "decoding.guide.role", "invalid_value"),
        *(
            ({"method": "cad", "guide": {"message": wrong}}, "decoding.guide.message", INVALID)
            for wrong in ("x", "1", 1.0, True, 10**30)
        ),
        (
            {"method": "cad", "guide": {"role": "system", "message": 0}},
            "decoding.guide",
            "invalid_value",
        ),
        ({"method": "cad", "guide": {"first_of": []}}, "decoding.guide.first_of", "invalid_value"),
        (
            {"method": "cad", "guide": {"first_of": [{}]}},
            "decoding.guide.first_of.0",
            "invalid_value",
        ),
        (
            {"method": "cad", "guide": {"prompt": "x", "if_missing": "plain"}},
            "decoding.guide.if_missing",
            "invalid_value",
        ),
        (
            {"method": "cad", "guide": GUIDE | {"if_missing": "x"}},
            "decoding.guide.if_missing",
            "invalid_value",
        ),
        (5, "decoding", "invalid_value"),
        ("", "decoding.preset", "invalid_value"),
        ({"preset": "x", "guide": {}}, "decoding.guide", "invalid_value"),
        ({"preset": "x", "sigma": 1}, "decoding.sigma", "unknown_parameter"),
        ({"context_weight": 2.1}, "decoding.context_weight", "invalid_value"),
        ({"context_weight": "much"}, "decoding.context_weight", "invalid_value"),
        ({"context_weight": True}, "decoding.context_weight", "invalid_value"),
        ([], "decoding", "invalid_value"),
        ([{"method": "cfg"}, {"method": "nope"}], "decoding.1.method", "invalid_value"),
        ([{"method": "cfg", "scale": "x"}], "decoding.0.scale", "invalid_value"),
        ([{"method": "cfg"}, {"method": "vdgd"}], "decoding.1.grounding", MISSING),
        ([{"method": "cad", "guide": {"x": 1}}], "decoding.0.guide.x", "unknown_parameter"),
    ],
)
def test_a_field_that_does_not_validate(
    client: TestClient, decoding: Any, param: str, code: str
) -> None:
    error = error_of(client, decoding)
    assert (error["param"], error["code"]) == (param, code)
    assert error["message"].startswith(f"{param}: ")
    if code == "unknown_parameter":
        assert error["message"] == f"{param}: unknown field"


@pytest.mark.parametrize(
    ("decoding", "message"),
    [
        ({"method": "cad", "alph": 1, "guide": GUIDE},
         "decoding.alph: unknown field (did you mean 'alpha'?)"),
        ([{"method": "cad", "alph": 1, "guide": GUIDE}],
         "decoding.0.alph: unknown field (did you mean 'alpha'?)"),
        ({"method": "cad", "guide": {"promt": "x"}},
         "decoding.guide.promt: unknown field (did you mean 'prompt'?)"),
        ({"method": "cad", "guide": GUIDE, "trace": {"tops": 5}},
         "decoding.trace.tops: unknown field (did you mean 'top'?)"),
        ({"method": "cad", "guide": GUIDE, "trace": 5},
         "decoding.trace: must be true, false, \"final\", or an object with 'top' and 'at'"),
        ({"method": "cad", "guide": GUIDE, LONG: 1}, f"decoding.{LONG}: unknown field"),
        ({"preset": "x", "context_wait": 1},
         "decoding.context_wait: unknown field (did you mean 'context_weight'?)"),
        ({"method": "cad", "guide": {"first_of": [{"betwen": ["a", "b"]}]}},
         "decoding.guide.first_of.0.betwen: unknown field (did you mean 'between'?)"),
        ({"context_weight": -1},
         'decoding.context_weight: must be a number from 0 to 2, or "auto"'),
        (["entropy_temperature"],
         'decoding.0: Input should be an object, such as {"method": "entropy_temperature"}'),
        (5, f"decoding: {EXAMPLE}"),
        ({"method": "cad", "guide": "x"}, "decoding.guide: Input should be an object"),
        ({"method": "cad", "guide": {"first_of": ["role"]}},
         "decoding.guide.first_of.0: Input should be an object"),
        ({"method": "cad", "alpha": "x", "guide": GUIDE},
         "decoding.alpha: Input should be a number"),
    ],
)  # fmt: skip
def test_an_error_says_what_to_write(client: TestClient, decoding: Any, message: str) -> None:
    assert error_of(client, decoding)["message"] == message


@pytest.mark.parametrize("seed", [2**64, 1e300, -(2**63) - 1, "one", 1.5])
def test_the_words_are_not_about_python(client: TestClient, seed: Any) -> None:
    body = {"messages": [{"role": "user", "content": "a"}], "seed": seed}
    error = client.post("/chat", json=body).json()["error"]
    assert error["param"] == "seed"
    assert re.fullmatch(
        r"seed: Input should be (an integer( of 64 bits)?|(less|greater) than or equal to -?\d+)",
        error["message"],
    )


def test_a_path_without_a_field_is_none(client: TestClient) -> None:
    """Of a body that may be one of two, the path has internal markers only."""
    error = client.post("/either", json=5).json()["error"]
    assert (error["message"], error["param"]) == ("Input should be an object (and 1 more)", None)


def test_an_unknown_method_is_answered_with_the_known_ones(client: TestClient) -> None:
    known = ", ".join(METHODS)
    message = error_of(client, {"method": "adacat"})["message"]
    told = "decoding.method: unknown method 'adacat' (did you mean 'adacad'?); the methods are "
    assert message == told + known
    message = error_of(client, {"method": "nope"})["message"]
    assert message == f"decoding.method: unknown method 'nope'; the methods are {known}"
    message = error_of(client, {})["message"]
    assert message == f"decoding.method: names no method; the methods are {known}"


def test_the_other_errors_are_counted(client: TestClient) -> None:
    error = error_of(client, {"method": "cad", "alpha": -1, "beta": 1, "guide": GUIDE})
    assert error["message"] == (
        "decoding.alpha: Input should be greater than or equal to 0 (and 1 more)"
    )


def test_a_body_of_vllm_has_clean_paths(client: TestClient) -> None:
    body = {"messages": [{"role": "user", "content": "a"}], "decoding": {"method": "cad"}}
    error = client.post("/chat", json=body | {"n": "many"}).json()["error"]
    assert error["param"] == "n"
    assert client.post("/chat", json=body).json()["error"]["param"] == "decoding.guide"
    assert client.post("/chat", json={"model": "m"}).json()["error"]["param"] == "messages"


def test_a_query_that_does_not_validate(client: TestClient) -> None:
    error = client.get("/page", params={"limit": "ten"}).json()["error"]
    assert (error["param"], error["code"]) == ("query.limit", "invalid_value")


@pytest.mark.parametrize("path", ["/ask", "/parses"])
def test_a_body_that_is_no_json(client: TestClient, path: str) -> None:
    headers = {"content-type": "application/json"}
    response = client.post(path, content=b'{"model": ', headers=headers)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_json"
    assert response.json()["error"]["message"] == "The body is not valid JSON: Expecting value"
    assert response.json()["error"]["param"] is None


def test_routes_that_are_not_there(client: TestClient) -> None:
    gone = client.get("/nowhere")
    assert gone.status_code == 404
    assert gone.json()["error"] == {
        "message": "There is no GET /nowhere here; /openapi.json lists the routes.",
        "type": "invalid_request_error",
        "param": None,
        "code": "not_found",
    }
    other = client.get("/ask")
    assert (other.status_code, other.headers["allow"]) == (405, "POST")
    assert other.json()["error"]["message"] == "There is no GET /ask: this route takes POST."
    assert other.json()["error"]["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (HTTPException(404, "no such page"), "no such page"),
        (HTTPException(409, "Not Found"), "Not Found"),
        (HTTPException(405), "There is no POST /raise: this route takes another method."),
        (StarletteHTTPException(406, "no"), "no"),
    ],
)
def test_exceptions_of_the_framework(
    client: TestClient, error: StarletteHTTPException, message: str
) -> None:
    client.app.state.error = error  # type: ignore[attr-defined]
    response = client.post("/raise")
    assert response.status_code == error.status_code
    assert response.json()["error"]["message"] == message


def test_our_exceptions_keep_status_param_and_code(client: TestClient) -> None:
    refused, failed = client.post("/refused"), client.post("/failed")
    assert refused.status_code == 400
    assert refused.json()["error"] == {
        "message": "shorten it",
        "type": "invalid_request_error",
        "param": "decoding.guide",
        "code": "context_length_exceeded",
    }
    assert failed.status_code == 500
    assert failed.json()["error"]["code"] == "decoding_failed"
    assert failed.json()["error"]["type"] == "server_error"


def test_what_lacks_a_path_or_a_reason() -> None:
    error = errors.invalid_body([{"type": "json_invalid", "loc": ("body", 3), "msg": "m"}])
    assert error.message == "The body is not valid JSON: "
    error = errors.invalid_body([{"type": "value_error", "loc": ("body",), "msg": "no good"}])
    assert (error.message, error.param) == ("no good", None)


def test_errors_that_are_plain_strings() -> None:
    """vLLM reports a wrong content type as a bare string."""
    error = errors.invalid_body(["Unsupported Media Type: Only 'application/json' is allowed"])
    assert "application/json" in error.message
    assert json.dumps(errors.error_body(error))
