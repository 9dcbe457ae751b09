"""What other people's clients and browsers ask for beside the guided routes."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient

from divserve.edges.auth import client_of, network_of
from tests.support.chat import CAD, MESSAGES
from tests.support.fake_client import FakeClient, arguments

ORIGIN = "https://app.example"
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-custom"}


@pytest.fixture(scope="module")
def http(fake_engine: FakeClient) -> TestClient:
    from divserve.server import build_app

    args = arguments()
    args.served_model_name = ["smol", "Team/Smol 1"]
    args.decodings = {"faithful": CAD}
    args.api_key = ["sk-1"]
    args.allowed_origins = [ORIGIN]
    app = asyncio.run(build_app(fake_engine, args))  # type: ignore[arg-type]
    return TestClient(app, headers={"Authorization": "Bearer sk-1"})


def test_every_listed_model_can_be_retrieved(http: TestClient) -> None:
    listed = {card["id"]: card for card in http.get("/v1/models").json()["data"]}
    assert listed.keys() >= {"smol", "Team/Smol 1", "smol@faithful", "Team/Smol 1@small"}
    for name, card in listed.items():
        # OpenAI's client escapes the slash, curl does not.
        for path in (quote(name, safe=""), quote(name)):
            answer = http.get(f"/v1/models/{path}")
            assert answer.status_code == 200, path
            assert answer.json()["id"] == name
            assert answer.json().keys() == card.keys()
            assert answer.json()["object"] == "model"


def test_a_model_that_is_not_there(http: TestClient) -> None:
    answer = http.get("/v1/models/smol@unfaithful")
    assert answer.status_code == 404
    assert answer.json()["error"] == {
        "message": "The model 'smol@unfaithful' does not exist; /v1/models lists all.",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }


def test_anthropics_client_is_let_in(http: TestClient) -> None:
    body = {"model": "smol", "messages": MESSAGES, "max_tokens": 5}
    for key, status in {"sk-1": 200, "sk-2": 401}.items():
        answer = TestClient(http.app).post("/v1/messages", json=body, headers={"x-api-key": key})
        assert answer.status_code == status
        assert answer.json()["type"] == ("message" if status == 200 else "error")


@pytest.mark.parametrize("path", ["/health", "/live", "/ready", "/ping"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_probes_answer_without_a_key(http: TestClient, path: str, method: str) -> None:
    assert TestClient(http.app).request(method, path).status_code == 200


def test_an_origin_that_is_allowed(http: TestClient) -> None:
    preflight = http.options("/v1/models", headers={**PREFLIGHT, "Origin": ORIGIN})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == ORIGIN
    # A page may read why it is rejected, too.
    rejected = TestClient(http.app).get("/v1/models", headers={"Origin": ORIGIN})
    assert rejected.status_code == 401
    assert rejected.headers["access-control-allow-origin"] == ORIGIN


def test_an_origin_that_is_not_allowed(http: TestClient) -> None:
    preflight = http.options("/v1/models", headers={**PREFLIGHT, "Origin": "https://evil.example"})
    assert preflight.status_code == 400
    assert preflight.json()["error"]["message"] == "Disallowed CORS origin"
    assert "access-control-allow-origin" not in preflight.headers


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unknown", "unknown"),
        ("", ""),
    ],
)
def test_a_subscriber_of_ipv6_is_one_client(address: str, counted: str) -> None:
    """A /64 has more addresses than any table can hold."""
    assert network_of(address) == counted
    scope: Any = {"type": "http", "client": (address, 5)}
    assert client_of(scope) == f"address {counted}"
