"""Bodies before they are parsed: their size, their depth, and what their fields ask for."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from divserve.api.limits import rows_of
from divserve.api.requests import ChatRequest, CompletionsRequest
from divserve.edges.body import LARGE, check_depth, check_text, in_utf8
from divserve.edges.flags import EdgeSettings
from divserve.errors import InvalidRequest
from divserve.http.fields import check_fields
from tests.support.chat import MESSAGES, guided
from tests.support.edges import LIMITS, Call, small_app


@pytest.mark.parametrize("body", [b"[1]", b"null", b"5", b'"n"', b'{"n": 2}', b"{", b""])
def test_bodies_that_ask_for_nothing_too_much_reach_the_route(body: bytes) -> None:
    """Whatever JSON they hold, or none."""
    http = TestClient(small_app(max_n=2))
    headers = {"content-type": "application/json"}
    assert http.post("/echo", content=body, headers=headers).json() == {"bytes": len(body)}


@pytest.mark.parametrize("value", [None, "many", 3.5, [3], {"a": 3}, True])
@pytest.mark.parametrize("field", ["n", "best_of", "stop", "prompt", "messages", "stop_sequences"])
def test_other_types_are_for_the_route_to_refuse(field: str, value: Any) -> None:
    settings = EdgeSettings(**LIMITS)
    check_fields({field: value}.get, settings)


def test_rows() -> None:
    assert rows_of(CompletionsRequest(prompt="a")) == 1
    assert rows_of(ChatRequest.model_validate({"messages": MESSAGES, "n": None})) == 1
    assert rows_of(CompletionsRequest(prompt=["a", "b"], n=3)) == 6
    assert rows_of(CompletionsRequest(prompt=[1, 2, 3])) == 1
    embeds: Any = CompletionsRequest(prompt="a", prompt_embeds=[b"AA==", b"AA=="], n=2)
    assert rows_of(embeds) == 6
    chat: Any = {"messages": MESSAGES, "n": 2}
    assert rows_of(ChatRequest(**chat, decoding=guided())) == 4
    same = [guided("adacad"), guided("kl_temperature")]
    assert rows_of(ChatRequest(**chat, decoding=same)) == 4
    other = [guided("adacad"), guided("kl_temperature") | {"guide": {"without": "What"}}]
    assert rows_of(ChatRequest(**chat, decoding=other)) == 6
    assert rows_of(ChatRequest(**chat, decoding=guided("entropy_temperature"))) == 2


def size_error(answer: bytes) -> None:
    error = json.loads(answer)["error"]
    assert error["code"] == "request_too_large"
    assert "more than 5000 bytes" in error["message"]
    assert "--max-body-bytes" in error["message"]


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize(("size", "status"), [(5000, 200), (5001, 413)])
def test_bodies_are_counted_in_bytes(declared: bool, size: int, status: int) -> None:
    http = TestClient(small_app(**LIMITS))
    body = b"x" * size
    content: Any = body if declared else iter([body[:3000], body[3000:]])
    response = http.post("/echo", content=content, headers={"content-type": "text/plain"})
    assert response.status_code == status
    if status == 413:
        size_error(response.content)
    else:
        assert response.json() == {"bytes": size}


def test_counting_ends_with_the_limit() -> None:
    """No chunk beyond the limit is read, and nothing of a body that declares too large a size."""

    async def test() -> None:
        app = small_app(**LIMITS)
        call = Call(app, "/echo", *[b"x" * 1000] * 100)
        assert await call.ended() == 413
        assert call.read == 6
        call = Call(app, "/echo", *[b"x" * 1000] * 100, headers={"content-length": "100000"})
        assert await call.ended() == 413
        assert call.read == 0
        call = Call(app, "/echo", b"x" * 6000, headers={"content-length": "5"})
        assert await call.ended() == 413
        call = Call(app, "/echo", b"x" * 6000, headers={"content-length": "-5"})
        assert await call.ended() == 413
        assert app.state.asked == 0

    asyncio.run(test())


def test_a_client_that_leaves_while_it_sends() -> None:
    async def test() -> None:
        app = small_app(rows=1, max_queue=0)
        call = Call(app, "/echo", b"x", leaves=True)
        await asyncio.wait({call.task})
        assert app.state.traffic.rows == 0
        assert len(app.state.traffic) == 0

    asyncio.run(test())


def nested(depth: int) -> bytes:
    return b'{"a":[' * (depth // 2) + b"[]" * (depth % 2) + b"]}" * (depth // 2)


@pytest.mark.parametrize(("depth", "status"), [(12, 200), (13, 400), (900, 400), (2001, 400)])
def test_depth(depth: int, status: int) -> None:
    http = TestClient(small_app(**{**LIMITS, "max_body_bytes": 10**6}))
    for headers in ({"content-type": "application/json"}, {"content-type": "application/ld+json"}):
        response = http.post("/echo", content=nested(depth), headers=headers)
        assert response.status_code == status
        if status == 400:
            assert response.json()["error"]["code"] == "invalid_json"
            assert "12 levels" in response.json()["error"]["message"]
    text = http.post("/echo", content=nested(depth), headers={"content-type": "text/plain"})
    assert text.status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[[[[",
        b"]]]]",
        json.dumps({"a": "[[[[[[[[" * 9, "b": '\\"[[[[[[' * 9}).encode(),
        json.dumps([[[], {}, {"a": []}]] * 50).encode(),
        b'["' + b"[" * 100,
        b'"\\',
    ],
)
def test_shallow(body: bytes) -> None:
    check_depth(body, 4)


JSON = st.recursive(
    st.none() | st.integers() | st.text(alphabet='a"\\[]{}ü'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('["\\'), inner, max_size=3),
    max_leaves=20,
)


def depth_of(value: Any) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


@given(JSON, st.booleans())
def test_depth_is_what_a_parser_finds(value: Any, escaped: bool) -> None:
    body = json.dumps(value, ensure_ascii=escaped).encode()
    check_depth(body, depth_of(value))
    if depth_of(value):
        with pytest.raises(InvalidRequest):
            check_depth(body, depth_of(value) - 1)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32-le"])
def test_deep_in_every_encoding_of_json(encoding: str) -> None:
    text = json.dumps({"ü\\": "[", "b": [[[[[5]]]]]}, ensure_ascii=False)
    check_depth(in_utf8(text.encode(encoding)), 6)
    with pytest.raises(InvalidRequest):
        check_depth(in_utf8(text.encode(encoding)), 5)


def has_half_a_pair(body: bytes) -> bool:
    try:
        json.dumps(json.loads(body), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


PIECES = ["\\ud83d", "\\uDE00", "\\\\", "\\n", "ud83d", "a", "한", "😀", "\\u00e9", '\\"']


@given(st.lists(st.sampled_from(PIECES), max_size=8), st.sampled_from(["utf-8", "utf-16"]))
def test_half_a_pair_is_what_a_parser_finds(pieces: list[str], encoding: str) -> None:
    body = f'{{"model": "{"".join(pieces)}"}}'.encode(encoding)
    if has_half_a_pair(body):
        with pytest.raises(InvalidRequest, match="half of a surrogate pair"):
            check_text(in_utf8(body))
    else:
        check_text(in_utf8(body))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32-be"])
def test_half_a_pair_as_bytes(encoding: str) -> None:
    body = '{"a": "\ud83d"}'.encode(encoding, "surrogatepass")
    assert has_half_a_pair(body)
    with pytest.raises(InvalidRequest, match=r"such as \\ud83d alone\): send whole"):
        check_text(in_utf8(body))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ('{"model": "naïve"}'.encode("latin-1"), "byte 13 is not UTF-8 "),
        ("[]".encode("utf-16")[:-1], "byte 4 is not UTF-16 "),
    ],
)
def test_a_text_in_another_encoding(body: bytes, reason: str) -> None:
    http = TestClient(small_app())
    answer = http.post("/echo", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_json"
    assert answer.json()["error"]["message"].startswith(f"The body is not valid JSON: {reason}")
    # Only JSON has to be readable.
    assert (
        http.post("/echo", content=body, headers={"content-type": "audio/wav"}).status_code == 200
    )


@pytest.mark.parametrize("coding", ["gzip", "br", "gzip, identity", "x" * 99])
def test_a_compressed_body_is_refused_unread(coding: str) -> None:
    async def ask() -> Call:
        call = Call(small_app(), "/echo", b"[" * 100, headers={"content-encoding": coding})
        assert await call.ended() == 415
        return call

    call = asyncio.run(ask())
    assert call.read == 0
    error = json.loads(call.body)["error"]
    assert error["code"] == "unsupported_content_type"
    assert error["message"] == (
        f"The body has the content-encoding {coding[:20]!r}: send it uncompressed."
    )
    same = {"content-encoding": " Identity"}
    assert TestClient(small_app()).post("/echo", content=b"a", headers=same).status_code == 200


def test_half_a_pair_is_refused_on_every_route() -> None:
    http = TestClient(small_app())
    headers = {"content-type": "application/json"}
    response = http.post("/echo", content=b'{"model": "\\ud83d"}', headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_json")


@pytest.mark.parametrize(("size", "beside"), [(LARGE, False), (LARGE + 1, True)])
def test_large_bodies_are_examined_beside_the_loop(
    size: int, beside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []

    def examined(body: bytes, limit: int) -> None:
        assert len(body) == size
        threads.append(threading.get_ident())

    monkeypatch.setattr("divserve.edges.body.check_depth", examined)

    async def test() -> None:
        body = b'"' + b"a" * (size - 2) + b'"'
        json_body = {"content-type": "application/json"}
        assert await Call(small_app(), "/echo", body, headers=json_body).ended() == 200
        assert (threads != [threading.get_ident()]) == beside

    asyncio.run(test())


@pytest.mark.parametrize(
    "body",
    [
        b'"' + b'\\"' * 8_000_000 + b"[" * 99,
        b"[1]," * 4_000_000,
        b'"",' * 5_000_000 + b"[" * 99,
        b'"[",[],' * 2_000_000,
        rb"\ud83d\ude00" * 1_300_000,
        b"\\" * 16_000_000,
    ],
    ids=["quotes", "lists", "strings", "both", "pairs", "escapes"],
)
def test_no_body_takes_long(body: bytes) -> None:
    """In CPU time of this process: rereading the body for every bracket would take hours."""
    start = time.process_time()
    check_depth(body, 64)
    check_text(body)
    assert time.process_time() - start < 5
