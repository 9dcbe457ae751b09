"""Admission of groups: make their rows, admit all members or none, hold them one token back.

A member that is not released stops one token before the end of its known tokens, so nothing is
sampled until the whole group can sample in one step (`divserve.engine.scheduler.scheduler`).
"""

from __future__ import annotations

from typing import Any

from vllm.utils.math_utils import cdiv
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from divserve.decoding import Spec
from divserve.engine.order import Order
from divserve.engine.scheduler.group import Group

__all__ = ["AdmissionMixin"]


class AdmissionMixin(Scheduler):
    """State of all groups, and the hooks vLLM calls while it admits requests and sizes chunks."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._groups: dict[str, Group] = {}
        """Group of each member, by request id."""
        self._one_token: dict[str, Group] = {}
        """Groups with a prompt of one token, by primary id: the candidates for a join."""
        self._released: set[str] = set()
        """Members that may take their sampling token in this step."""
        self._joining: set[str] = set()
        """Waiting one-token members that enter in this step."""
        self._blocked: set[str] = set()
        """Members that block the head of the waiting line in this step."""
        self._partial: Group | None = None
        """The group of which only a part is admitted; there is never a second one. Groups that lack
        only one-token members do not count: those join by force (see `LockstepMixin`)."""
        self._failed: dict[str, str] = {}
        """Why a request is about to end with an error, by request id."""
        self._budget = 0
        """Tokens left for members that are not joining, in a step with joins."""

    def add_request(self, request: Request) -> None:
        """Adds the request, and its other rows if it has a method. Never raises: that kills all."""
        order = Order.of(request.sampling_params)
        if order is None or request.request_id in self.requests:
            super().add_request(request)
            return
        spec = order.spec
        max_tokens = min(request.max_tokens, self._longest_output(request, spec))
        if why := self._refusal(request, spec, max_tokens):
            super().add_request(request)
            self._failed[request.request_id] = why
            return
        group = Group.create(request, order, max_tokens)
        for member in group.members:
            super().add_request(member)
            self._groups[member.request_id] = group
        if any(m.num_prompt_tokens == 1 for m in (group.primary, *group.guides)):
            self._one_token[request.request_id] = group

    def _refusal(self, request: Request, spec: Spec, max_tokens: int) -> str | None:
        """Why the group can never run; the front end checks the same before, with better words."""
        if not all(spec.texts):
            return "the guide prompt is empty"
        if max_tokens < 1 or not self._fits_empty(request, spec):
            return (
                "the prompt and its guide leave no room for an answer in the context and KV cache"
            )
        if self.max_num_active_reqs < 1 + len(spec.texts):
            return f"this request needs --max-num-seqs of at least {1 + len(spec.texts)}"
        if request.resumable or request.prompt_token_ids is None:
            return "guided decoding takes no streaming input and no prompt embeddings"
        return None

    def _longest_output(self, request: Request, spec: Spec) -> int:
        """Most tokens that all rows can grow by in the context length and the whole KV cache."""
        lengths = (request.num_prompt_tokens, *map(len, spec.guides))
        room = self.max_model_len - max(lengths)
        blocks = self._cache_blocks()
        if spec.look is not None:
            # The probe of a candidate for the last token reads it and samples one more.
            room, blocks = room - 1, blocks - self._blocks_for(1)
        if sum(self._blocks_for(n + room) for n in lengths) <= blocks:
            return int(room)
        low, high = 0, room
        while low < high:
            middle = (low + high + 1) // 2
            if sum(self._blocks_for(n + middle) for n in lengths) <= blocks:
                low = middle
            else:
                high = middle - 1
        return int(low)

    def _fits_empty(self, request: Request, spec: Spec) -> bool:
        """Whether an empty engine holds all prompts at once: the grounding text is read beside."""
        lengths = (request.num_prompt_tokens, *map(len, spec.texts))
        return (
            max(lengths) < self.max_model_len
            and sum(self._blocks_for(n + 1) for n in lengths) <= self._cache_blocks()
        )

    def _cache_blocks(self) -> int:
        manager = self.kv_cache_manager
        return int(manager.block_pool.num_gpu_blocks - 1 - manager.watermark_blocks)

    def _blocks_for(self, num_tokens: int) -> int:
        managers = self.kv_cache_manager.coordinator.single_type_managers
        return sum(cdiv(num_tokens, manager.block_size) for manager in managers)

    def _handle_blocked_waiting_request(self, request: Request) -> bool:
        if request.request_id in self._failed:
            return False
        ready = bool(super()._handle_blocked_waiting_request(request))
        group = self._groups.get(request.request_id)
        if group is None or not ready or request.request_id in self._joining:
            return ready
        if len(group.members) == 1:
            return True
        return self._may_admit(request, group)

    def _may_admit(self, request: Request, group: Group) -> bool:
        """False skips the member in this step; True may still block the line (see `_blocked`)."""
        others = [m for m in group.members if m is not request]
        if any(
            self._is_blocked_waiting_status(m.status) or m.num_stale_output_tokens for m in others
        ):
            # The other one cannot come in yet (its grammar compiles, say): hold no memory for it.
            return False
        if request.num_tokens == 1 and group.holds(request):
            return False
        if self._partial is not None and self._partial is not group:
            if self._partial.running() and self._partial.lacks_prefill():
                return False
            self._partial = None
        if group.running() == 0 and not self._fits(group):
            self._blocked.add(request.request_id)
        elif group.running() == 0 and group.lacks_prefill(besides=request):
            self._partial = group
        return True

    def _fits(self, group: Group) -> bool:
        """Slots and KV blocks for the prompts of all members, or an empty engine to try in."""
        if not self.running:
            return True
        owed = sum(len(g.members) - n for g in self._one_token.values() if (n := g.running()))
        slots = self.max_num_active_reqs - len(self.running) - owed
        need = sum(self._blocks_for(m.num_tokens) for m in group.members)
        manager = self.kv_cache_manager
        free = manager.block_pool.get_num_free_blocks() - manager.watermark_blocks
        return bool(len(group.members) <= slots and need <= free)

    def _get_local_prefix_cache_hit(self, request: Request) -> tuple[Any, int, int, bool]:
        blocks, cached, boundary, diverged = super()._get_local_prefix_cache_hit(request)
        held = self._is_held(request) and request.request_id not in self._joining
        if held and cached and cached >= request.num_tokens - 1:
            # The held token must not be the only one left to compute.
            cached = (request.num_tokens - 2) // self.block_size * self.block_size
            blocks = self.kv_cache_manager.truncate_computed_blocks(blocks, cached)
        return blocks, cached, boundary, diverged

    def _reserve_prefill_lookahead(
        self, request: Request, num_computed_tokens: int, num_new_tokens: int
    ) -> int:
        """vLLM's last word on the size of a chunk; 0 skips a running request and ends admission.

        Called for every row in every step, so the stock rule is repeated here instead of called: it
        only rounds chunks for a kind of speculative decoding, which is refused at start-up.
        """
        tokens = max(num_new_tokens, 0)
        if not self._groups:
            return tokens
        request_id = request.request_id
        if request_id in self._blocked:
            return 0
        if self._is_held(request):
            known = request.num_tokens + request.num_output_placeholders
            tokens = max(0, min(tokens, known - num_computed_tokens - 1))
        if self._joining and request_id not in self._joining:
            tokens = min(tokens, self._budget)
            self._budget -= tokens
        return tokens

    def _is_held(self, request: Request) -> bool:
        """Whether the request is a member that has to stop one token before its sample."""
        group = self._groups.get(request.request_id)
        return (
            group is not None and group.holds(request) and request.request_id not in self._released
        )
