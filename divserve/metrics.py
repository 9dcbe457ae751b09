"""divserve's own Prometheus metrics, beside vLLM's; all of them are on ``/metrics``."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

__all__ = [
    "AGREEMENT", "ENGINE_CACHE", "ENGINE_REQUESTS", "ENGINE_UP", "OVERLAP", "SWITCHES", "TOKENS",
]  # fmt: skip

OVERLAP = Histogram(
    "divserve_draft_overlap",
    "Draft quality by token: sum over the vocabulary of min(expert, amateur), 1 where they agree.",
    buckets=(0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0),
)
AGREEMENT = Counter(
    "divserve_amateur_tokens",
    "Tokens that were compared with an amateur, by whether its likeliest token was the expert's.",
    ("agrees",),
)
SWITCHES = Counter(
    "divserve_switches", "Hand-overs of entropy_switch, by the model that went on.", ("to",)
)
TOKENS = Counter(
    "divserve_switched_tokens", "Tokens of entropy_switch, by the model that made them.", ("model",)
)
ENGINE_UP = Gauge("divserve_engine_up", "1 while the engine lives, by engine.", ("engine",))
ENGINE_REQUESTS = Gauge(
    "divserve_engine_requests",
    "Requests of the small engine by state (vLLM's own gauges are those of the large one).",
    ("engine", "state"),
)
ENGINE_CACHE = Gauge(
    "divserve_engine_kv_cache_usage", "Share of the small engine's KV blocks in use.", ("engine",)
)
