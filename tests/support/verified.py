"""What an engine of the tests does with draft tokens."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.support.engine import Engine

__all__ = ["Verified"]


class Verified:
    """Counts drafts of primaries and plain requests; notes members with others than their primary.

    Args:
        engine: with a drafter, on either model runner.
    """

    def __init__(self, engine: Engine) -> None:
        self._scheduler = engine.scheduler
        self._runner = engine.llm.llm_engine.model_executor.driver_worker.worker.model_runner
        self.accepted = self.rejected = 0
        self.uneven: list[str] = []
        """Ids of guides whose drafts or tokens were not those of their primary."""
        self._update = self._scheduler.update_from_output
        self._scheduler.update_from_output = self._updated
        if hasattr(self._runner, "req_states"):
            # The scheduler does not know them.
            self._sample = self._runner.sample
            self._runner.sample = self._sampled

    def counts(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {"accepted": self.accepted, "rejected": self.rejected, "uneven": self.uneven}

    def _updated(self, output: Any, made: Any) -> Any:
        drafts = output.scheduled_spec_decode_tokens
        tokens = {name: made.sampled_token_ids[made.req_id_to_index[name]] for name in drafts}
        guides = {g.request_id for group in self._scheduler.groups for g in group.guides}
        for name, taken in tokens.items():
            if taken and name not in guides:
                self.accepted += len(taken) - 1
                self.rejected += len(drafts[name]) - len(taken) + 1
        if not hasattr(self._runner, "req_states"):
            self._compare(drafts)
        self._compare(tokens)
        return self._update(output, made)

    def _sampled(self, hidden_states: Any, batch: Any, *args: Any) -> Any:
        counts = batch.num_draft_tokens_per_req
        if counts is not None:
            drafts = self._runner.req_states.draft_tokens[batch.idx_mapping].numpy(force=True)
            rows = zip(batch.req_ids, drafts, np.asarray(counts), strict=False)
            self._compare({name: row[:count].tolist() for name, row, count in rows})
        return self._sample(hidden_states, batch, *args)

    def _compare(self, of: dict[str, list[int]]) -> None:
        for group in self._scheduler.groups:
            for guide in group.guides:
                if of.get(guide.request_id, []) != of.get(group.name, []):
                    self.uneven.append(guide.request_id)
