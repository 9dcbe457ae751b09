"""Admission of groups: all members or none, in queue order.

An admitted member stops one token before the end of its known tokens, so nothing is sampled until
the whole group can sample in one step. A group that fits into the rest of a step *as a whole* is
admitted and sampled at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from vllm.v1.request import Request

from divserve.engine.adapters import adapters_needed
from divserve.engine.order import Order
from divserve.engine.scheduler.adapters import Adapters, adapters_of
from divserve.engine.scheduler.blocks import Blocks
from divserve.engine.scheduler.group import BLOCKED, Group, is_admissible, remaining_tokens
from divserve.engine.scheduler.groups import Groups

__all__ = ["Admission", "Left", "Verdict"]


class Verdict(Enum):
    """The decision on a member at the head of the queue."""

    ADMIT = "admit"
    SKIP = "skip"
    """Not now, but others may be admitted before it."""
    STOP = "stop"
    """It waits for memory or rows, and nothing behind it is admitted in this step."""


@dataclass(slots=True)
class Left:
    """What running requests leave of a step for waiting ones."""

    rows: int
    tokens: int
    blocks: int
    longest: int
    """A member with more tokens would not be read in one step."""
    loras: set[int] = field(default_factory=set)
    """Ids of the step's adapters."""
    max_loras: int = 0

    def take(self, requests: Sequence[Request], blocks: int) -> bool:
        """Takes what these requests need without the prefix cache; False if that is too much."""
        self.rows -= len(requests)
        self.tokens -= sum(request.num_tokens for request in requests)
        self.blocks -= blocks
        self.loras |= adapters_of(requests)
        lacking = min(self.rows, self.tokens, self.blocks) < 0
        return not lacking and (not self.loras or len(self.loras) <= self.max_loras)


class Admission:
    """Decides which members vLLM may admit.

    Args:
        groups: all groups.
        blocks: the KV cache.
        adapters: the LoRA adapters in use.
        max_rows: most rows that run at a time.
        max_model_len: the longest context.
        reserved: blocks that unfinished prefills and loads have yet to take, if any are loaded.
    """

    def __init__(
        self,
        groups: Groups,
        blocks: Blocks,
        adapters: Adapters,
        max_rows: int,
        max_model_len: int,
        reserved: Callable[[], int],
    ) -> None:
        self._groups, self._blocks, self._adapters = groups, blocks, adapters
        self._reserved = reserved
        self._max_rows, self._max_model_len = max_rows, max_model_len
        self.partial: Group | None = None
        """The only group that is partly admitted. Groups that lack only one-token members do not
        count, because these members join in the step of the first sample."""

    def refusal(self, request: Request, order: Order, max_tokens: int) -> str | None:
        """Why a group can never run; the front end checks this earlier, with clearer messages."""
        texts = order.spec.texts
        if not all(texts):
            return "the guide prompt is empty"
        if max_tokens < 1 or not self._fits_empty(request, texts):
            return (
                "the prompt and its guide leave no room for an answer in the context and KV cache"
            )
        if self._max_rows < 1 + len(texts):
            return f"this request needs --max-num-seqs of at least {1 + len(texts)}"
        if len(adapters_needed(order.spec, request.lora_request)) > self._adapters.most:
            return f"this request needs more LoRA adapters than --max-loras {self._adapters.most}"
        if request.resumable or request.prompt_token_ids is None:
            return "guided decoding takes no streaming input and no prompt embeddings"
        return None

    def longest_output(self, request: Request, order: Order) -> int:
        """Most tokens by which all rows can grow within the context and the whole KV cache."""
        lengths = (request.num_prompt_tokens, *map(len, order.spec.guides))
        longest, blocks = self._max_model_len - max(lengths), self._blocks.total()
        if order.spec.look is not None:
            # A probe of a candidate for the last token reads that token and samples one more.
            longest, blocks = longest - 1, blocks - self._blocks.of_tokens(1)

        def fits(more: int) -> bool:
            return sum(self._blocks.of_tokens(n + more) for n in lengths) <= blocks

        if longest <= 0 or fits(longest):
            return int(longest)
        shortest = 0
        while shortest < longest:
            middle = (shortest + longest + 1) // 2
            if fits(middle):
                shortest = middle
            else:
                longest = middle - 1
        return int(shortest)

    def _fits_empty(self, request: Request, texts: Sequence[Sequence[int]]) -> bool:
        """Whether an empty engine holds all prompts at once, with the grounding text among them."""
        lengths = (request.num_prompt_tokens, *map(len, texts))
        return (
            max(lengths) < self._max_model_len
            and sum(self._blocks.of_tokens(n + 1) for n in lengths) <= self._blocks.total()
        )

    def verdict(self, member: Request, group: Group, running: int) -> Verdict:
        """Decides on a member at the head of the queue.

        Args:
            member: waits only to be admitted.
            group: its group.
            running: number of running requests.
        """
        if group.name in self._groups.ready:
            return Verdict.ADMIT
        if len(group.members) == 1:
            return Verdict.ADMIT if self._adapters.admits(group.members) else Verdict.SKIP
        others = [m for m in group.members if m is not member]
        if any(m.status in BLOCKED or m.num_stale_output_tokens for m in others):
            # Another member cannot be admitted yet (its grammar compiles, say): hold no memory.
            return Verdict.SKIP
        if remaining_tokens(member) == 1 and group.waits_for_others(member):
            return Verdict.SKIP
        if self.partial is not None and self.partial is not group:
            if self.partial.placed() and self.partial.lacks_prefill():
                if not group.placed() or group.lacks_prefill():
                    return Verdict.SKIP
            else:
                self.partial = None
        if group.running() == 0:
            if not self._adapters.admits(group.members):
                return Verdict.SKIP
            if not self._fits(group, running):
                return Verdict.STOP
            if group.lacks_prefill(besides=member):
                self.partial = group
            self._groups.enter(group)
        return Verdict.ADMIT

    def _fits(self, group: Group, running: int) -> bool:
        """Whether rows and KV blocks suffice for all members' prompts, or the engine is empty."""
        reserved = 0 if group.placed() else self._reserved()
        if not running and not reserved:
            return True
        entering = self._groups.entering.values()
        owed = sum(len(g.members) - n for g in entering if (n := g.running()))
        need = sum(map(self._blocks.missing, group.members))
        left = self._blocks.free() - self._blocks.watermark - reserved
        return len(group.members) <= self._max_rows - running - owed and need <= left

    def joining(self, rows: int) -> list[Group]:
        """Groups that lack only one-token members, which are admitted with the first sample.

        Args:
            rows: number of free rows.
        """
        found: list[Group] = []
        for group in self._groups.entering.values():
            members = group.joinable()
            if members and len(members) <= rows:
                rows -= len(members)
                found.append(group)
        return found

    def whole(self, line: Iterable[Request], left: Left) -> list[Group]:
        """Groups at the head of the queue that can be admitted and sampled in this step.

        Requests before them are counted as if nothing of them were cached, so that nothing can get
        between the members of a group.

        Args:
            line: waiting requests, in order; read only as far as there is room.
            left: what they can have; changed in place.
        """
        found: list[Group] = []
        waiting = iter(line)
        for request in waiting:
            group = self._groups.get(request.request_id)
            members = (request,) if group is None else group.members
            if request is not members[0] or not all(map(_is_simple, members)):
                break
            need = sum(self._blocks.of_tokens(m.num_tokens) for m in members)
            if not left.take(members, need):
                break
            if any(next(waiting, None) is not other for other in members[1:]):
                break
            if group is not None and group.guides and group.grounding is None:
                if any(member.num_tokens > left.longest for member in members):
                    break
                found.append(group)
        return found


def _is_simple(request: Request) -> bool:
    """Whether a request needs only rows, tokens and blocks to be admitted."""
    return is_admissible(request) and not request.has_encoder_inputs
