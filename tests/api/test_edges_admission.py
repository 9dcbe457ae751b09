"""How many requests are admitted at a time, and how often: clients, the queue, the drain."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Coroutine
from typing import Any

import pytest
from fastapi.testclient import TestClient

from divserve.edges.rates import Rates, parse
from divserve.errors import StartupError
from tests.support.edges import Call, small_app

REFUSED_WITHIN_S = 0.05


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 20))


def refusal(call: Call, code: str, retry_after: str) -> None:
    assert f'"code":"{code}"'.encode() in call.body
    assert call.headers["retry-after"] == retry_after
    assert call.headers["x-request-id"]
    assert call.read == 0


def test_the_queue_is_bounded() -> None:
    """Two rows run and one waits; the fourth request is rejected quickly, with its body unread."""

    async def test() -> None:
        app = small_app(rows=2, max_queue=1)
        waiting = [Call(app, "/wait/1") for _ in range(3)]
        assert [await call.started() for call in waiting] == [200] * 3
        start = time.perf_counter()
        refused = Call(app, "/echo", b"x" * 1000)
        assert await refused.ended() == 429
        assert time.perf_counter() - start < REFUSED_WITHIN_S
        refusal(refused, "queue_full", "1")
        assert b'"The server is busy: its queue is full. Try again later."' in refused.body
        assert await Call(app, "/v1/models", method="GET").ended() == 200
        app.state.gate.set()
        assert [await call.ended() for call in waiting] == [200] * 3
        assert await Call(app, "/echo", b"x").ended() == 200
        assert len(app.state.traffic) == app.state.traffic.rows == 0

    run(test())


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("PUT", "/echo", 405), ("PATCH", "/echo", 405), ("DELETE", "/echo", 405),
        ("POST", "/read", 405), ("POST", "/nowhere", 404), ("DELETE", "/nowhere", 404),
    ],
)  # fmt: skip
def test_no_body_is_read_that_no_route_takes(method: str, path: str, status: int) -> None:
    """The answer comes while the body is still on its way, whatever else is in progress."""

    async def test() -> None:
        app = small_app(rows=1, max_queue=0)
        waiting = Call(app, "/wait/1")
        assert await waiting.started() == 200
        refused = Call(app, path, b"x" * 100, method=method, stalls=True)
        assert await refused.ended() == status
        assert refused.read == 0
        app.state.gate.set()
        await waiting.task
        assert app.state.traffic.rows == 0

    run(test())


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_whatever_has_a_body_is_counted(method: str) -> None:
    async def test() -> None:
        app = small_app(rows=1, max_queue=0, max_body_bytes=100, max_concurrent_per_key=1)
        assert await Call(app, "/put", b"x" * 101, method=method).ended() == 413
        slow = Call(app, "/put", b"x", method=method, stalls=True)
        while not app.state.traffic.rows:
            await asyncio.sleep(0)
        assert dict(app.state.traffic.of_client) == {"address 10.0.0.1": 1}
        refused = Call(app, "/put", b"x", method=method)
        assert await refused.ended() == 429
        refusal(refused, "queue_full", "1")
        slow.task.cancel()
        await asyncio.wait({slow.task})
        assert await Call(app, "/put", b"x", method=method).ended() == 200

    run(test())


def test_the_bytes_of_all_bodies_are_bounded() -> None:
    """While they arrive and until their requests end; a client that leaves makes room."""

    async def test() -> None:
        app = small_app(rows=9, max_body_bytes=100, max_bytes_in_flight=150)
        traffic = app.state.traffic
        slow = [Call(app, "/echo", b"x" * 60, stalls=True), Call(app, "/wait/1", b"x" * 60)]
        assert await slow[1].started() == 200
        assert traffic.size == 120
        refused = Call(app, "/echo", b"x" * 30, b"x")
        assert await refused.ended() == 429
        assert b'"code":"queue_full"' in refused.body
        assert refused.headers["retry-after"] == "1"
        assert traffic.size == 120
        assert await Call(app, "/echo", b"x" * 30).ended() == 200
        app.state.gate.set()
        await slow[1].task
        assert traffic.size == 60
        slow[0].task.cancel()
        await asyncio.wait({slow[0].task})
        assert traffic.size == 0

    run(test())


def test_a_body_of_the_largest_size_fits_alone() -> None:
    async def test() -> None:
        app = small_app(max_body_bytes=100, max_bytes_in_flight=1)
        assert await Call(app, "/echo", b"x" * 100).ended() == 200

    run(test())

    run(test())


def test_a_request_counts_with_its_rows() -> None:
    async def test() -> None:
        app = small_app(rows=2, max_queue=1)
        large = Call(app, "/wait/3")
        assert await large.started() == 200
        assert await Call(app, "/echo").ended() == 429
        app.state.gate.set()
        await large.ended()
        assert await Call(app, "/echo").ended() == 200

    run(test())


def test_requests_that_came_together() -> None:
    """Each was admitted as one row; once the second turns out to need two, the queue is full."""

    async def test() -> None:
        app = small_app(rows=3, max_queue=0)
        bodies = asyncio.Event()
        first, second, third = (Call(app, f"/wait/{rows}", after=bodies) for rows in (4, 2, 1))
        while app.state.traffic.rows < 3:
            await asyncio.sleep(0)
        bodies.set()
        assert await first.started() == 200
        assert await second.ended() == 429
        assert b'"code":"queue_full"' in second.body
        assert second.headers["retry-after"] == "1"
        assert await third.started() == 200
        app.state.gate.set()
        assert [await call.ended() for call in (first, third)] == [200, 200]
        assert app.state.traffic.rows == 0

    run(test())


def test_clients_that_leave_make_room() -> None:
    async def test() -> None:
        app = small_app(rows=1, max_queue=0)
        for _ in range(5):
            call = Call(app, "/wait/4")
            assert await call.started() == 200
            call.leave()
            await call.task
        assert app.state.traffic.rows == 0
        assert not app.state.traffic.of_client

    run(test())


def test_a_key_has_so_many_requests_at_a_time() -> None:
    async def test() -> None:
        app = small_app(["a", "b"], rows=100, max_concurrent_per_key=2)
        one, two = ({"Authorization": f"Bearer {key}"} for key in "ab")
        first, second = (Call(app, "/wait/1", headers=one) for _ in range(2))
        assert [await call.started() for call in (first, second)] == [200, 200]
        third = Call(app, "/echo", headers=one)
        assert await third.ended() == 429
        refusal(third, "concurrency_limit_exceeded", "1")
        assert await Call(app, "/echo", headers=two).ended() == 200
        first.leave()
        await first.task
        assert await Call(app, "/echo", headers=one).ended() == 200
        app.state.gate.set()
        await second.task

    run(test())


def test_a_key_has_so_many_rows_at_a_time() -> None:
    """A request that alone takes more is admitted, while its client has no other."""

    async def test() -> None:
        app = small_app(rows=100, max_concurrent_per_key=4)
        first = Call(app, "/wait/3")
        assert await first.started() == 200
        second = Call(app, "/wait/2")
        assert await second.ended() == 429
        assert b'"code":"concurrency_limit_exceeded"' in second.body
        assert b"more than 4 rows" in second.body
        assert await Call(app, "/wait/2", client=("10.0.0.2", 5)).started() == 200
        third = Call(app, "/wait/1")
        assert await third.started() == 200
        assert await Call(app, "/echo").ended() == 429
        app.state.gate.set()
        await asyncio.wait({first.task, third.task})
        assert await Call(app, "/wait/9").ended() == 200

    run(test())


def test_without_keys_it_is_an_address() -> None:
    async def test() -> None:
        app = small_app(rows=100, max_concurrent_per_key=1)
        reading, call = Call(app, "/read", method="GET"), Call(app, "/wait/1")
        assert await reading.started() == await call.started() == 200
        assert await Call(app, "/echo").ended() == 429
        assert await Call(app, "/echo", client=("10.0.0.2", 5)).ended() == 200
        assert await Call(app, "/echo", client=None).ended() == 200
        app.state.gate.set()
        await call.task
        await reading.task

    run(test())


def test_rates() -> None:
    http = TestClient(small_app(["a", "b"], rate_limit="2/minute"))
    mine = {"Authorization": "Bearer a"}
    for left in (1, 0):
        answer = http.post("/echo", headers=mine)
        assert answer.status_code == 200
        assert answer.headers["x-ratelimit-limit-requests"] == "2"
        assert answer.headers["x-ratelimit-remaining-requests"] == str(left)
        assert re.fullmatch(r"59\.\d+s|1m0s", answer.headers["x-ratelimit-reset-requests"])
    answer = http.post("/echo", headers=mine)
    assert answer.status_code == 429
    assert answer.json()["error"]["code"] == "rate_limit_exceeded"
    assert answer.json()["error"]["type"] == "rate_limit_error"
    told = r"Too many requests: the limit is 2 per 1 minute\. Wait (59\.\d|60\.0) s\."
    assert re.fullmatch(told, answer.json()["error"]["message"])
    assert 58 <= int(answer.headers["retry-after"]) <= 60
    assert int(answer.headers["retry-after-ms"]) > 58_000
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"
    assert http.get("/v1/models", headers=mine).status_code == 200
    assert http.post("/echo", headers={"Authorization": "Bearer b"}).status_code == 200


def test_a_rate_forgets() -> None:
    rates = Rates("2/second")
    assert [rates.ask("a").granted for _ in range(3)] == [True, True, False]
    time.sleep(1.05)
    assert rates.ask("a").granted


def test_several_rates_hold_together() -> None:
    rates = Rates("5/minute;2/second")
    asked = [rates.ask("a") for _ in range(3)]
    assert [a.granted for a in asked] == [True, True, False]
    assert [a.limit for a in asked] == [2, 2, 2]
    time.sleep(1.05)
    assert [rates.ask("a").remaining for _ in range(2)] == [1, 0]


@pytest.mark.parametrize("rate", ["", "fast", "10", "10/fortnight", "0/second", "-1/second"])
def test_rates_that_are_none(rate: str) -> None:
    with pytest.raises(StartupError, match="--rate-limit is like"):
        parse(rate)


def test_a_full_queue_uses_up_no_allowance() -> None:
    async def test() -> None:
        app = small_app(rows=1, max_queue=0, rate_limit="2/minute")
        call = Call(app, "/wait/1")
        await call.started()
        for _ in range(5):
            assert await Call(app, "/echo").ended() == 429
        app.state.gate.set()
        await call.task
        assert await Call(app, "/echo").ended() == 200
        assert await Call(app, "/echo").ended() == 429

    run(test())


def test_probes_while_it_drains() -> None:
    app = small_app(["sk"])
    http = TestClient(app)
    assert http.get("/ready").json() == {"status": "ready"}
    app.state.traffic.draining = True
    assert (http.get("/ready").status_code, http.get("/ready").json()["status"]) == (
        503,
        "draining",
    )
    assert http.get("/live").status_code == http.get("/health").status_code == 200


def test_probes_of_a_dead_engine() -> None:
    app = small_app()
    app.state.engine_client.alive = False
    http = TestClient(app)
    assert http.get("/ready").status_code == 503
    assert http.get("/ready").json() == {"status": "dead"}
    assert http.get("/live").status_code == 200


def test_a_server_that_drains_takes_nothing_new() -> None:
    async def test() -> None:
        app = small_app()
        call = Call(app, "/wait/1")
        await call.started()
        app.state.traffic.draining = True
        for method in ("GET", "POST"):
            refused = Call(app, "/v1/models", method=method)
            assert await refused.ended() == 503
            refusal(refused, "shutting_down", "5")
            assert "connection" not in refused.headers
        assert await app.state.traffic.empty(0.01) is False
        app.state.gate.set()
        assert await app.state.traffic.empty(5) is True
        assert call.body.endswith(b"[DONE]\n\n")
        await call.task

    run(test())


def test_a_hurried_drain_ends_at_once() -> None:
    async def test() -> None:
        app = small_app()
        traffic = app.state.traffic
        call = Call(app, "/wait/1")
        await call.started()
        waits = asyncio.ensure_future(traffic.empty(60))
        await asyncio.sleep(0)
        traffic.hurry()
        assert await waits is False
        assert await traffic.empty(60) is False
        assert await traffic.empty(0.01, hurried=True) is False
        app.state.gate.set()
        assert await traffic.empty(5, hurried=True) is True
        await call.task

    run(test())


def test_websockets_while_it_drains() -> None:
    async def test() -> None:
        app = small_app()
        app.state.traffic.draining = True
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any: ...

        await app({"type": "websocket", "path": "/x", "headers": []}, receive, send)
        assert sent == [{"type": "websocket.close", "code": 1012}]

    run(test())
