"""The counts of requests in progress, against a plain list of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from divserve.edges.traffic import Ticket, Traffic
from divserve.errors import TooManyRequests
from divserve.http.scope import HOLD, WEIGH, hold, weigh

EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["enter", "leave", "weigh", "hold"]), st.integers(0, 9), st.integers(0, 5)
    )
)


@given(EVENTS)
def test_counts(events: list[tuple[str, int, int]]) -> None:
    traffic = Traffic()
    under_way: list[Ticket] = []
    for what, number, rows in events:
        if what == "enter":
            under_way.append(traffic.enter(f"client {number % 3}", rows))
        elif under_way:
            ticket = under_way[number % len(under_way)]
            if what == "hold":
                hold({"state": {HOLD: partial(traffic.hold, ticket)}}, rows)
            elif what == "weigh":
                weigh({"state": {WEIGH: partial(traffic.weigh, ticket)}}, rows)
                assert ticket.rows == rows
            else:
                under_way.remove(ticket)
                traffic.leave(ticket)
        assert len(traffic) == len(under_way)
        assert traffic.rows == sum(ticket.rows for ticket in under_way)
        of_client: Counter[str | None] = Counter()
        for ticket in under_way:
            of_client[ticket.client] += ticket.rows
        assert traffic.of_client == +of_client
        assert traffic.size == sum(ticket.size for ticket in under_way)
        assert 0 not in traffic.of_client.values()


def test_a_request_that_nobody_counts() -> None:
    weigh({}, 5)
    weigh({"state": {}}, 5)
    hold({}, 5)
    hold({"state": {}}, 5)


@pytest.mark.parametrize(("others", "rows", "fits"), [(2, 9, True), (3, 1, True), (3, 2, False)])
def test_rows_beyond_a_full_queue(others: int, rows: int, fits: bool) -> None:
    """The first request beyond the bound is admitted whole, and so is one of a single row."""
    traffic = Traffic(3)
    ticket = traffic.enter("a", 1)
    traffic.enter("b", others)
    if fits:
        traffic.weigh(ticket, rows)
        assert traffic.rows == others + rows
        traffic.weigh(ticket, 1)
        return
    with pytest.raises(TooManyRequests) as refused:
        traffic.weigh(ticket, rows)
    assert (refused.value.code, refused.value.retry_after_s) == ("queue_full", 1.0)
    assert traffic.rows == others + 1
    traffic.leave(ticket)
    assert traffic.rows == others


def test_a_request_of_nobody() -> None:
    traffic = Traffic()
    ticket = traffic.enter(None, 0)
    assert (len(traffic), dict(traffic.of_client)) == (1, {})
    traffic.leave(ticket)
    assert len(traffic) == 0


@pytest.mark.parametrize("hurried", [False, True])
def test_waiting_for_two(hurried: bool) -> None:
    async def test() -> None:
        traffic = Traffic()
        tickets = [traffic.enter("a", 1), traffic.enter("a", 2)]
        waits = asyncio.ensure_future(traffic.empty(20, hurried=hurried))
        for ticket in tickets:
            await asyncio.sleep(0)
            assert not waits.done()
            traffic.leave(ticket)
        assert await waits is True
        assert await traffic.empty(0) is True

    asyncio.run(test())
