"""Bodies on which a validator fails: a 400 that names the field, on every route."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient
from pydantic import BaseModel, model_validator

from divserve.errors import InvalidRequest
from divserve.http import bodies, errors


class Body(BaseModel):
    """Its validator assumes what has not been checked yet, as vLLM's do."""

    prompt: str | list[int] = ""
    options: Any = None
    other: Any = None
    messages: list[Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def read(cls, data: Any) -> Any:
        if data.get("prompt") is None:
            raise ValueError("needs a prompt")
        if data.get("options") is not None:
            data["options"].get("regex")
        if data.get("other") == "refused":
            raise InvalidRequest("refused", param="other", code="mine")
        if data.get("other") == "gone":
            raise HTTPException(404, "gone")
        if data.get("other") == data.get("messages") == [{}]:
            raise LookupError("both")
        if data.get("messages") == "quote":
            raise LookupError(data)
        return data


@pytest.fixture
def http() -> TestClient:
    app = FastAPI()
    errors.install(app)

    @app.post("/read")
    async def read(body: Body) -> str:
        return str(body.prompt)

    @app.post("/later")
    async def later(body: Body) -> None:
        raise KeyError("not the client's fault")

    bodies.install(app)
    # Twice, as an app that is built again from the same routes: the adapters are wrapped once.
    bodies.install(app)
    return TestClient(app, raise_server_exceptions=False)


@pytest.mark.parametrize("prompt", ["a", [1, 2]])
@pytest.mark.parametrize("rest", [{}, {"messages": [{"a": 1}]}, {"other": {"a": 1}}])
@pytest.mark.parametrize("first", [True, False])
def test_the_field_is_named(http: TestClient, prompt: Any, rest: Any, first: bool) -> None:
    bad = {"options": False}
    body = {**bad, "prompt": prompt, **rest} if first else {**rest, "prompt": prompt, **bad}
    answer = http.post("/read", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"] == {
        "message": "options: not a valid value "
        "(AttributeError: 'bool' object has no attribute 'get')",
        "type": "invalid_request_error",
        "param": "options",
        "code": "invalid_value",
    }


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ([], "AttributeError: 'list' object has no attribute 'get'"),
        ({"prompt": "a", "other": [{}], "messages": [{}]}, "LookupError: both"),
    ],
)
def test_no_field_is_named_where_there_is_not_one(http: TestClient, body: Any, error: str) -> None:
    answer = http.post("/read", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == f"The body cannot be read ({error})"
    assert answer.json()["error"]["param"] is None


def test_other_answers_stay(http: TestClient) -> None:
    assert http.post("/read", json={"prompt": "a"}).json() == "a"
    assert "needs a prompt" in http.post("/read", json={}).json()["error"]["message"]
    refused = http.post("/read", json={"prompt": "a", "other": "refused"})
    assert refused.json()["error"]["code"] == "mine"
    assert http.post("/read", json={"prompt": "a", "other": "gone"}).status_code == 404


def test_a_reason_is_short(http: TestClient) -> None:
    answer = http.post("/read", json={"prompt": "a", "options": {"x": "y"}, "z" * 9999: 1})
    assert answer.status_code == 200
    error = http.post("/read", json={"prompt": "a", "other": {"k" * 9999: 1}, "messages": "quote"})
    assert len(error.json()["error"]["message"]) < 300


def test_the_schema_is_made_from_the_same_adapters(http: TestClient) -> None:
    schema = http.get("/openapi.json").json()
    assert "options" in schema["components"]["schemas"]["Body"]["properties"]


def test_what_fails_after_validation_is_a_500(http: TestClient) -> None:
    assert http.post("/later", json={"prompt": "a"}).status_code == 500
