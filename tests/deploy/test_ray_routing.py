"""Prefix-aware routing of the Ray Serve application: what decides, and which replica it chooses."""

from __future__ import annotations

import asyncio
import json
import warnings
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.deploy import SETUP

pytest.importorskip("ray", reason=f"Ray Serve is not here: {SETUP}")

with warnings.catch_warnings():
    # Ray's own models are declared in a way that pydantic warns of.
    warnings.simplefilter("ignore")
    from deploy.ray.routing import BLOCK, MOST_BLOCKS, Call, PrefixRouter, answered, blocks_of

LONG = "The tower now stands in Berlin. " * 40


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", **fields}).encode()


def chat(*texts: str, **fields: Any) -> bytes:
    return body(messages=[{"role": "user", "content": text} for text in texts], **fields)


def test_a_longer_conversation_begins_with_the_blocks_of_the_shorter() -> None:
    shorter, longer = blocks_of(chat(LONG)), blocks_of(chat(LONG, LONG))
    assert len(LONG) // BLOCK <= len(shorter) < len(longer)
    assert longer[: len(shorter)] == shorter


@pytest.mark.parametrize(
    "other",
    [
        chat("X" + LONG),
        chat(LONG, model="m:adapter"),
        chat(LONG, tools=[{"type": "function"}]),
        chat(LONG, system="Be brief."),
        body(prompt=LONG),
    ],
)
def test_what_a_cache_could_not_share_has_no_block_in_common(other: bytes) -> None:
    assert not set(blocks_of(chat(LONG))) & set(blocks_of(other))


def test_guides_and_sampling_decide_nothing() -> None:
    guide = {"method": "adacad", "guide": {"without": LONG[:31]}}
    assert blocks_of(chat(LONG, decoding=guide, temperature=0)) == blocks_of(chat(LONG))


@pytest.mark.parametrize("nothing", [b"", b"{", b"[1]", b"[" * 100_000, body(), chat("short")])
def test_bodies_without_a_long_prompt(nothing: bytes) -> None:
    assert blocks_of(nothing) == []


def test_the_blocks_of_a_prompt_are_bounded() -> None:
    assert len(blocks_of(body(prompt=[1] * 100_000))) == MOST_BLOCKS


class Routed:
    """A `PrefixRouter` without Ray Serve around it.

    Args:
        replicas: how many there are.
        most_ahead: as the router takes it.
    """

    def __init__(self, replicas: int = 2, most_ahead: int = 2) -> None:
        self.router: Any = PrefixRouter.__new__(PrefixRouter)
        self.replicas = [SimpleNamespace(replica_id=name) for name in "abc"[:replicas]]
        self.router._replicas = {each.replica_id: each for each in self.replicas}
        self.router._use_replica_queue_len_cache = False
        self.router.initialize_state(most_ahead=most_ahead)

    def send(self, content: bytes) -> str:
        """Routes a request to the replica that is liked best; its name."""
        # As from the front: the router is a copy, to which the front's `Call` is a stranger.
        call = SimpleNamespace(blocks=blocks_of(content))
        request: Any = SimpleNamespace(args=[call], routing_context=SimpleNamespace())
        ranks = asyncio.run(self.router.choose_replicas(self.replicas, request))
        assert ranks[-1] == self.replicas
        assert request.routing_context.should_backoff
        name: str = ranks[0][0].replica_id
        self.router.on_send_request(name)
        self.router.on_request_routed(request, name, None)
        return name

    def end(self, name: str) -> None:
        self.router.on_request_completed(name, "id")


def test_prompts_that_begin_alike_stay_together_and_others_spread() -> None:
    routed = Routed(3)
    first = [routed.send(chat(f"{n}{LONG}")) for n in range(3)]
    assert sorted(first) == ["a", "b", "c"]
    for name in first:
        routed.end(name)
    for n in (2, 0, 1):
        assert routed.send(chat(f"{n}{LONG}", "And then?")) == first[n]


def test_new_prompts_spread_although_nothing_is_under_way() -> None:
    routed = Routed()
    names = []
    for n in range(4):
        names.append(routed.send(chat(f"{n}{LONG}")))
        routed.end(names[-1])
    assert names == ["a", "b", "a", "b"]


def test_a_replica_too_far_ahead_is_left_alone() -> None:
    routed = Routed(most_ahead=2)
    names = [routed.send(chat(LONG)) for _ in range(5)]
    # The third has its replica two ahead; the fourth goes elsewhere, and the prompt with it.
    assert names == ["a", "a", "a", "b", "b"]


def test_a_replica_that_has_gone_is_not_chosen() -> None:
    routed = Routed()
    assert routed.send(chat(LONG)) == "a"
    del routed.replicas[0]
    assert routed.send(chat(LONG)) == "b"


def test_nothing_is_kept_of_requests_that_have_ended() -> None:
    routed = Routed()
    for _ in range(3):
        routed.end(routed.send(chat(LONG)))
    assert not routed.router._under_way


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Repeats the body in two pieces, then waits for as long as it is told."""
    message = await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": message["body"], "more_body": True})
    try:
        await asyncio.sleep(scope["wait_s"])
    except asyncio.CancelledError:
        scope["cancelled"].append(True)
        raise
    if scope.get("fails"):
        raise ValueError("broken")
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def test_an_answer_comes_in_order_and_as_it_is_made() -> None:
    async def run() -> list[Any]:
        return [batch async for batch in answered(app, Call({"wait_s": 0.01}, b"x"))]

    first, last = asyncio.run(run())
    assert [message["type"] for message in first] == ["http.response.start", "http.response.body"]
    assert first[1]["body"] == b"x"
    assert not last[0]["more_body"]


def test_a_client_that_leaves_ends_its_request() -> None:
    cancelled: list[bool] = []

    async def run() -> None:
        answer: Any = answered(app, Call({"wait_s": 60, "cancelled": cancelled}, b"x"))
        await anext(answer)
        await answer.aclose()
        await asyncio.sleep(0)

    asyncio.run(run())
    assert cancelled == [True]


def test_an_application_s_error_reaches_the_caller() -> None:
    async def run() -> None:
        async for _ in answered(app, Call({"wait_s": 0, "fails": True}, b"x")):
            pass

    with pytest.raises(ValueError, match="broken"):
        asyncio.run(run())
