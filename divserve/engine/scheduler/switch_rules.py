"""Entropy-adaptive switching: ends a segment when the other model is to go on.

The rule needs the entropy of the token just decoded, which the workers report with it. So the rule
is applied where vLLM checks whether a token ends its request, and a switch is such an end: it costs
no extra step and adds nothing to the text. If a step gives several tokens, it is asked one by one.
The state of the rule travels back with the token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm.v1.request import Request

from divserve.decoding import STATISTICS, Switch, SwitchRule
from divserve.engine.order import Order
from divserve.engine.reported import Statistics

__all__ = ["SwitchRules"]

REFUSED = "the grammar does not accept what the other model wrote; the request was stopped"
ENTROPY = STATISTICS.index("entropy")


class SwitchRules:
    """Rules of the segments that run on this engine."""

    def __init__(self) -> None:
        self._rules: dict[str, SwitchRule] = {}
        self._switched: dict[str, Switch] = {}
        """State of the rule of each segment that ends in this update because of it."""
        self._unread: set[str] = set()
        """Continuations whose grammar has yet to read the tokens so far."""

    def __len__(self) -> int:
        return len(self._rules) + len(self._switched) + len(self._unread)

    def resume(self, request: Request, order: Order) -> None:
        """Gives a continuation the output that another engine has decoded."""
        request.append_output_token_ids(list(order.output))
        # vLLM asserts that at most the prompt comes from the cache.
        request.prefill_stats = None
        if request.use_structured_output:
            self._unread.add(request.request_id)

    def add(self, request_id: str, switch: Switch) -> None:
        """Adds the rule of a segment."""
        self._rules[request_id] = SwitchRule(switch)

    def why_refused(self, request: Request, grammars: Any) -> str | None:
        """Feeds a continuation's tokens so far to its grammar, once; why it rejects them, or None.

        Args:
            request: about to be admitted, so its grammar is compiled.
            grammars: vLLM's ``StructuredOutputManager``.
        """
        if request.request_id not in self._unread:
            return None
        self._unread.discard(request.request_id)
        accepted = grammars.accept_tokens(request, list(request.output_token_ids))
        return None if accepted else REFUSED

    def observe(self, request_id: str, statistics: Sequence[Statistics]) -> int | None:
        """Shows a segment's rule the tokens that it is about to take.

        Args:
            request_id: id of the segment's request.
            statistics: of these tokens, in order.

        Returns:
            How many of them the segment takes, because the other model is to make the next one;
            None if it goes on.
        """
        rule = self._rules.get(request_id)
        if rule is not None:
            for count, found in enumerate(statistics, 1):
                if rule.observe(found[ENTROPY]):
                    return count
        return None

    def switch(self, request_id: str) -> None:
        """A segment ends because of its rule."""
        self._switched[request_id] = self._rules[request_id].state

    def take_switch(self, request_id: str) -> Switch | None:
        """Returns, once, the state of the rule of a segment that has ended because of it."""
        return self._switched.pop(request_id, None)

    def forget(self, request_id: str) -> None:
        """The request has ended."""
        self._rules.pop(request_id, None)
        self._unread.discard(request_id)
