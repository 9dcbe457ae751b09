"""The flags of the server's edges."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from divserve.edges.keys import KeyRing, check_given
from divserve.edges.rates import parse
from divserve.errors import StartupError
from divserve.http.fields import FieldLimits

__all__ = ["EdgeSettings", "add_flags"]

DRAIN_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class EdgeSettings(FieldLimits):
    """The values of the flags, or their defaults."""

    api_key_file: Path | None = None
    metrics_without_key: bool = False
    no_playground: bool = False
    max_concurrent_per_key: int | None = None
    rate_limit: str | None = None
    max_queue: int = 1024
    drain_timeout: float = DRAIN_TIMEOUT_S
    body_timeout: float = 60.0
    send_timeout: float = 60.0
    max_body_bytes: int = 4 * 1024 * 1024
    max_bytes_in_flight: int = 512 * 1024 * 1024
    max_json_depth: int = 64

    @classmethod
    def of(cls, args: Namespace) -> EdgeSettings:
        """Reads the flags.

        Raises:
            StartupError: a value makes no sense.
        """
        given = {field.name: getattr(args, field.name) for field in fields(cls)}
        if given["drain_timeout"] is None:
            # vLLM's flag for the same; its 0 is the default, not a request for 0 seconds.
            given["drain_timeout"] = args.shutdown_timeout or DRAIN_TIMEOUT_S
        settings = cls(**given)
        least = {"max_queue": 0, "drain_timeout": 0, "max_stop_strings": 0}
        for name, value in given.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            # Written so that NaN is refused too.
            if number and not value >= least.get(name, 1):
                raise StartupError(
                    f"--{name.replace('_', '-')} is at least {least.get(name, 1)}, not {value}"
                )
        if settings.rate_limit is not None:
            parse(settings.rate_limit)
        # Both are made again with the app; here a mistake is reported before a model is loaded.
        KeyRing(file=settings.api_key_file)
        check_given(getattr(args, "api_key", None))
        return settings


def add_flags(parser: ArgumentParser) -> None:
    """Adds the flags of `EdgeSettings` to the parser of ``divserve serve``."""
    default = EdgeSettings()
    group: Any = parser.add_argument_group("divserve: edges")
    group.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="API keys, one per line: KEY or NAME:KEY, # starts a comment. Read again when it "
        "changes. Adds to --api-key and VLLM_API_KEY.",
    )
    group.add_argument(
        "--metrics-without-key",
        action="store_true",
        help="Require no API key for /metrics.",
    )
    group.add_argument(
        "--no-playground",
        action="store_true",
        help="Do not serve the page at /playground.",
    )
    group.add_argument(
        "--max-concurrent-per-key",
        type=int,
        metavar="N",
        help="Most rows of concurrent requests per key, or per address where there are no keys: "
        "one for each prompt, choice and guide (default: no limit).",
    )
    group.add_argument(
        "--rate-limit",
        metavar="RATE",
        help="Request rate per key (or address), such as 600/minute or "
        '"10/second;5000/day" (default: no limit).',
    )
    group.add_argument(
        "--drain-timeout",
        type=float,
        metavar="SECONDS",
        help="Longest wait for answers in progress after SIGTERM (default: --shutdown-timeout, or "
        f"{DRAIN_TIMEOUT_S:.0f}).",
    )
    group.add_argument(
        "--body-timeout",
        type=float,
        default=default.body_timeout,
        metavar="SECONDS",
        help="Longest time for the whole body of a request to arrive "
        f"(default: {default.body_timeout:.0f}).",
    )
    group.add_argument(
        "--send-timeout",
        type=float,
        default=default.send_timeout,
        metavar="SECONDS",
        help="Longest time for which a client may read less than 64 KiB of an answer that waits "
        f"for it; then its connection is closed (default: {default.send_timeout:.0f}).",
    )
    for flag, what in {
        "--max-queue": "Most rows that wait while --max-num-seqs rows run; beyond that, requests "
        "are rejected with 429",
        "--max-body-bytes": "Largest body of a request, in bytes",
        "--max-bytes-in-flight": "Most bytes of the bodies of all requests in progress; beyond "
        "that, requests are rejected with 429",
        "--max-json-depth": "Deepest nesting of a JSON body",
        "--max-n": "Largest n (and best_of) of a request",
        "--max-stop-strings": "Most stop strings of a request",
        "--max-stop-length": "Longest stop string, in characters",
        "--max-batch-prompts": "Most prompts of a request",
        "--max-rows-per-request": "Most rows of a request: one for each prompt, choice and guide",
        "--max-trace-tokens": "Largest max_tokens of a request with a trace, times its choices",
        "--max-trace-candidates": "Most likely tokens in a trace: max_tokens of a request, times "
        "its choices, its trace's 'top' and its streams",
        "--max-messages": "Most messages of a request, with those of its guides",
        "--max-parts": "Most content parts and tool calls in all messages of a request",
        "--max-tools": "Most tools of a request",
        "--max-json-values": "Most values in a JSON body, without token ids",
    }.items():
        value = getattr(default, flag[2:].replace("-", "_"))
        group.add_argument(
            flag, type=int, default=value, metavar="N", help=f"{what} (default: {value})."
        )
