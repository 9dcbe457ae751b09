"""divserve's own Prometheus metrics, beside vLLM's; all of them are on ``/metrics``.

``docs/metrics.md`` says what each one means and when to alert. Each API process counts for itself,
and the one that answers ``/metrics`` adds them up. So every gauge says how its values are combined,
and none may take its value from a function.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter as Counted
from collections.abc import Sequence

from prometheus_client import Counter, Gauge, Histogram

__all__ = ["BatchHistogram", "broken_pair"]


class BatchHistogram(Histogram):
    """A histogram that takes many values in one cheap call: every token has several."""

    def observe_all(self, amounts: Sequence[float]) -> None:
        """Observes every finite value; a single infinite one would spoil the sum for good."""
        finite = [amount for amount in amounts if math.isfinite(amount)]
        places = Counted(bisect_left(self._upper_bounds, amount) for amount in finite)
        for place, count in places.items():
            self._buckets[place].inc(count)
        self._sum.inc(sum(finite))


REQUESTS = Counter(
    "divserve_requests",
    "Requests of the guided routes that named no invalid field, by method and how they ended.",
    ("method", "outcome"),
)
GUIDED_STEPS = Counter("divserve_guided_steps", "Tokens decoded with their method, as handed out.")
UNGUIDED_STEPS = Counter(
    "divserve_unguided_steps", "Tokens sampled without their method and stopped: must stay 0."
)
BROKEN_PAIRS = Counter(
    "divserve_broken_pairs", "Guided requests that lost the lock-step, by what was noticed.",
    ("reason",),
)  # fmt: skip
KL = BatchHistogram(
    "divserve_kl_nats",
    "Divergence of the request's distribution from the guide's by token: KL(p1 || p2).",
    ("method",),
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 2, 3, 5, 10, 20),
)
JSD = BatchHistogram(
    "divserve_jsd_nats",
    "Jensen-Shannon divergence of the two streams by token; ln 2 = 0.693 at most.",
    ("method",),
    buckets=(0.0001, 0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
)
ENTROPY = BatchHistogram(
    "divserve_entropy_nats",
    "Entropy of the request's own distribution by token; ln V at most.",
    ("method",),
    buckets=(0.01, 0.03, 0.1, 0.3, 0.6, 1, 1.5, 2, 3, 4, 6, 8, 10, 12),
)
TEMPERATURE = BatchHistogram(
    "divserve_temperature",
    "Temperature that a temperature method made of the request's, by token.",
    ("method",),
    buckets=(0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.5, 2),
)
GUIDE_TOKENS = Histogram(
    "divserve_guide_prompt_tokens",
    "Tokens read beside a prompt: its guides and its grounding text.",
    buckets=(1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144),
)
PAIR_WAIT = Histogram(
    "divserve_pair_wait_seconds",
    "Time from a guided request's arrival in the scheduler until all its rows were admitted.",
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30,
             60, 120),
)  # fmt: skip
KERNEL = Histogram(
    "divserve_kernel_seconds",
    "Time of the guidance operation of a step, all its guided rows together: of every step on CPU, "
    "of one in 16 on NVIDIA.",
    buckets=(1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,
             0.5),
)  # fmt: skip
LOOK_BACK_TOKENS = Counter("divserve_look_back_tokens", "Tokens decoded with look_back.")
LOOK_BACK_ALARMS = Counter("divserve_look_back_alarms", "Tokens at which look_back raised alarm.")
LOOK_BACK_KL = BatchHistogram(
    "divserve_look_back_kl_min_nats",
    "Smallest divergence that look_back has seen, by token.",
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 2, 3, 5, 10, 20),
)
OVERLAP = BatchHistogram(
    "divserve_draft_overlap",
    "Draft quality by token: sum over the vocabulary of min(expert, amateur), 1 where they agree.",
    buckets=(0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0),
)
AGREEMENT = Counter(
    "divserve_amateur_tokens",
    "Tokens that were compared with an amateur, by whether its likeliest token was the expert's.",
    ("agrees",),
)
DRAFTS_PROPOSED = Counter(
    "divserve_draft_proposed_tokens",
    "Draft tokens of guided requests that were verified.",
    ("method",),
)
DRAFTS_ACCEPTED = Counter(
    "divserve_draft_accepted_tokens",
    "Draft tokens that guided requests have taken.",
    ("method",),
)
DRAFT_ROUNDS = Counter(
    "divserve_draft_rounds",
    "Steps of guided requests that verified draft tokens.",
    ("method",),
)
DRAFTS = {"proposed": DRAFTS_PROPOSED, "accepted": DRAFTS_ACCEPTED, "rounds": DRAFT_ROUNDS}
SWITCHES = Counter(
    "divserve_switches", "Hand-overs of entropy_switch, by the model that went on.", ("to",)
)
TOKENS = Counter(
    "divserve_switched_tokens", "Tokens of entropy_switch, by the model that made them.", ("model",)
)
ENGINE_UP = Gauge(
    "divserve_engine_up",
    "1 while the engine lives, by engine.",
    ("engine",),
    multiprocess_mode="livemin",
)
ENGINE_REQUESTS = Gauge(
    "divserve_engine_requests",
    "Requests of the small engine by state (vLLM's own gauges are those of the large one).",
    ("engine", "state"),
    multiprocess_mode="livesum",
)
ENGINE_CACHE = Gauge(
    "divserve_engine_kv_cache_usage",
    "Share of the small engine's KV blocks in use.",
    ("engine",),
    multiprocess_mode="livemax",
)
HTTP_REQUESTS = Counter(
    "divserve_http_requests",
    "HTTP requests by route template, method and status (499: the client left).",
    ("route", "method", "status"),
)
HTTP_SECONDS = Histogram(
    "divserve_http_request_seconds",
    "Time until the last byte of a response, by route template.",
    ("route",),
    buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600),
)
BATCHES = Gauge(
    "divserve_batches",
    "Batches of /v1/batches by status, of all clients.",
    ("status",),
    multiprocess_mode="livesum",
)
BATCH_LINES = Counter(
    "divserve_batch_lines", "Lines of batches that were answered, by how.", ("outcome",)
)


def broken_pair(reason: str, unguided: int) -> None:
    """Counts a request that lost the lock-step.

    Args:
        reason: what was noticed; one of a few words.
        unguided: its tokens that were sampled without their method.
    """
    BROKEN_PAIRS.labels(reason).inc()
    UNGUIDED_STEPS.inc(unguided)


for _reason in ("no_report", "not_numbers", "member_ended", "front_end"):
    # An alert on the increase of a series needs the series to exist from the start.
    BROKEN_PAIRS.labels(_reason)
