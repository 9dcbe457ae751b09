"""Prefix-aware routing: requests whose prompts begin alike go to the same replica.

Ray's proxy chooses a replica before it has read the body, so it cannot know the prompt. `Front`
reads the body, and its handle to the replicas chooses one with `PrefixRouter`. A request and its
guides are one body, so they go together, and a replica has cached both or neither.

Ray's own ``PrefixCacheAffinityRouter`` is not used: it needs the packages of ``ray[llm]``, and
reads text only, so that other models, tools and adapters would look alike.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from argparse import ArgumentParser
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from divserve.edges import flags as edge_flags
from divserve.edges.body import GuardBody
from divserve.http.asgi import EMPTY, is_json, read_body

__all__ = ["Call", "Front", "PrefixRouter", "answered", "blocks_of"]

BLOCK = 256
"""Characters of a prompt that are compared at a time; shorter prompts go where there is room."""
MOST_BLOCKS = 64
"""Blocks of a prompt that are compared: the rest hardly decides between replicas."""
KNOWN = 100_000
"""Blocks that a router remembers (about 20 MB)."""
BEFORE_PROMPT = ("model", "tools", "system")
"""Fields of a body that are rendered before its prompt, or choose an adapter."""
PROMPTS = ("messages", "prompt", "input")


@dataclass(frozen=True)
class Call:
    """An HTTP request on its way to a replica."""

    scope: dict[str, Any]
    body: bytes
    blocks: list[bytes] = field(default_factory=list)
    """As `blocks_of` returns them."""


def blocks_of(body: bytes) -> list[bytes]:
    """A digest for each whole block of the prompt, over all that precedes it; [] without a prompt.

    Args:
        body: JSON, or anything else.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return []
    if not isinstance(value, dict):
        return []
    prompt = next((value[name] for name in PROMPTS if value.get(name)), None)
    if prompt is None:
        return []
    text = json.dumps([*(value.get(name) for name in BEFORE_PROMPT), prompt])
    digest = hashlib.blake2b(digest_size=16)
    found = []
    for block in range(min(len(text) // BLOCK, MOST_BLOCKS)):
        digest.update(text[block * BLOCK : (block + 1) * BLOCK].encode())
        found.append(digest.digest())
    return found


class PrefixRouter(RequestRouter):
    """Prefers the replica that was last sent the longest part of a prompt, unless it is too busy.

    Each router knows what went through it: the requests under way, and which replica had a block. A
    new prompt goes to the least busy replica, of several to the one that has waited longest.
    """

    def initialize_state(self, most_ahead: int = 8) -> None:
        """Called by Ray Serve.

        Args:
            most_ahead: requests that a replica may have more than the least busy one and still be
                preferred.
        """
        self._most_ahead = most_ahead
        self._sent_to: OrderedDict[bytes, ReplicaID] = OrderedDict()
        self._under_way: Counter[ReplicaID] = Counter()
        self._used: dict[ReplicaID, int] = {}
        self._sent = 0

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Called when replicas have come or gone."""
        super().update_replicas(replicas)
        there = {each.replica_id for each in replicas}
        self._used = {name: at for name, at in self._used.items() if name in there}

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Ranks of replicas; Ray Serve takes one of the first that accepts the request."""
        if pending_request is not None:
            # Otherwise it would ask again at once while all replicas are full.
            pending_request.routing_context.should_backoff = True
        loads = {each.replica_id: self._under_way[each.replica_id] for each in candidate_replicas}
        least = min(loads.values(), default=0)
        idle = [each for each in candidate_replicas if loads[each.replica_id] == least]
        idle.sort(key=lambda each: self._used.get(each.replica_id, 0))
        ranks = [idle[:1], candidate_replicas]
        for block in reversed(_blocks(pending_request)):
            owner = self._sent_to.get(block)
            if owner in loads:
                if loads[owner] - least <= self._most_ahead:
                    ranks.insert(0, [self.curr_replicas[owner]])
                break
        return ranks

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: object
    ) -> None:
        """Called once a replica has accepted a request."""
        for block in _blocks(pending_request):
            self._sent_to[block] = replica_id
            self._sent_to.move_to_end(block)
        while len(self._sent_to) > KNOWN:
            self._sent_to.popitem(last=False)

    def on_send_request(self, replica_id: ReplicaID) -> None:
        """Called when a request is sent to a replica, which may still reject it."""
        super().on_send_request(replica_id)
        self._under_way[replica_id] += 1
        self._sent += 1
        self._used[replica_id] = self._sent

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Called once for each request that was sent, however it has ended."""
        self._under_way[replica_id] -= 1
        if self._under_way[replica_id] <= 0:
            del self._under_way[replica_id]


def _blocks(request: PendingRequest | None) -> list[bytes]:
    # Ray sends a router as a copy of its code, whose `Call` is another class than the front's.
    found: list[bytes] = getattr(request.args[0], "blocks", []) if request and request.args else []
    return found


@serve.deployment(name="front")
@serve.ingress()
class Front:
    """Reads the body of each request and passes it on, without an engine.

    A body that is too large or too slow is rejected here as by a replica, before its key is known.
    Flags for that in a file of ``--config`` are not seen here.
    """

    def __init__(self, argv: list[str], replicas: DeploymentHandle) -> None:
        parser = ArgumentParser(allow_abbrev=False)
        edge_flags.add_flags(parser)
        args, _ = parser.parse_known_args(argv)
        # Made once: a handle made for each request would know nothing of the others.
        self._answers = replicas.options(stream=True, method_name="answer")
        self._app = GuardBody(self._pass_on, edge_flags.EdgeSettings(**vars(args)))

    def __serve_build_asgi_app__(self) -> Any:
        """The application that Ray Serve calls."""
        return self._app

    async def _pass_on(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        messages = await read_body(receive) or [EMPTY]
        if messages[-1]["type"] == "http.disconnect":
            return
        body = b"".join(message.get("body", b"") for message in messages)
        blocks = blocks_of(body) if is_json(scope) else []
        async for replies in self._answers.remote(Call(_plain(scope), body, blocks)):
            for reply in replies:
                await send(reply)


def _plain(scope: dict[str, Any]) -> dict[str, Any]:
    """The part of an ASGI scope that a client has sent; the rest are objects of this process."""
    return {name: value for name, value in scope.items() if name not in ("app", "state", "router")}


async def answered(app: Any, call: Call) -> AsyncIterator[list[dict[str, Any]]]:
    """The messages with which an ASGI application answers `call`, in lists as they come.

    Args:
        app: if the iterator is closed, its request is cancelled.
        call: from `Front`.
    """
    replies: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
    asked = False

    async def receive() -> dict[str, Any]:
        nonlocal asked
        if asked:
            # Nobody will ever say that the client has left: the task is cancelled instead.
            await asyncio.get_running_loop().create_future()
        asked = True
        return {"type": "http.request", "body": call.body, "more_body": False}

    async def run() -> None:
        try:
            await app(call.scope, receive, replies.put)
        finally:
            replies.put_nowait(None)

    task = asyncio.create_task(run())
    try:
        ended = False
        while not ended:
            batch = [await replies.get()]
            while not replies.empty():
                batch.append(replies.get_nowait())
            ended = batch[-1] is None
            if made := [reply for reply in batch if reply is not None]:
                yield made
        await task
    finally:
        task.cancel()
