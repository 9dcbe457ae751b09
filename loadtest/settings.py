"""The options, for both locust's command line and ``python -m loadtest``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loadtest.mix import Mix, decoding, lengths, weights
from loadtest.shapes import SHAPES

__all__ = ["add_arguments", "mix", "to_argv", "values"]

QUESTIONS = Path(__file__).parents[1] / "tests" / "data" / "questions.jsonl"


def _checked(check: Callable[[str], Any]) -> Callable[[str], str]:
    """An argparse type that keeps the text, so that it can be passed on to locust."""

    def text(value: str) -> str:
        try:
            check(value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return value

    return text


def _methods(text: str) -> None:
    for kind in weights(text):
        decoding(kind, "document")


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError("a share is from 0 to 1")
    return value


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError("must be above 0")
    return value


def _not_negative(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError("must be 0 or above")
    return value


# Strings and numbers only: locust sends the parsed values to its workers, and cannot send paths.
KNOBS: dict[str, dict[str, Any]] = {
    "--model": {"default": "", "help": "model to ask (default: the first one served)"},
    "--shape": {
        "choices": [*SHAPES],
        "default": "soak",
        "help": "users over time: steady, a ramp, 4 steps, or a spike (default soak)",
    },
    "--guided-share": {
        "type": _share,
        "default": 0.5,
        "help": "share of guided requests (default 0.5)",
    },
    "--mix": {
        "type": _checked(_methods),
        "default": "cad=2,adacad=1,kl_temperature=1",
        "help": "methods of the guided requests with their weights; join several of one request "
        "with + (default cad=2,adacad=1,kl_temperature=1)",
    },
    "--max-tokens": {
        "type": _checked(lengths),
        "default": "16-48",
        "help": "ranges of max_tokens with their weights, such as 16-32=3,128 (default 16-48)",
    },
    "--ignore-eos": {
        "action": "store_true",
        "help": "answers run to max_tokens, so that their length does not depend on the method",
    },
    "--temperature": {"type": float, "default": 0.7, "help": "of every request (default 0.7)"},
    "--prompts": {
        "default": str(QUESTIONS),
        "help": "JSON lines with question, answers and perhaps document (default: the tests' own)",
    },
    "--notes": {
        "type": int,
        "default": 4,
        "help": "sentences of the documents made for questions without one (default 4)",
    },
    "--think": {
        "type": float,
        "default": 0.5,
        "help": "mean pause of a user between requests, seconds (exponential; default 0.5)",
    },
    "--rate": {
        "type": _not_negative,
        "default": 0.0,
        "help": "requests a second that begin at random times (Poisson), whether or not others are "
        "answered; nobody waits or comes again then (default 0: users wait for their answers)",
    },
    "--max-wait": {
        "type": float,
        "default": 10.0,
        "help": "longest wait after a 429, whatever its Retry-After says (default 10 s)",
    },
    "--timeout": {
        "type": _positive,
        "default": 120.0,
        "help": "seconds without a byte after which a request has failed (default 120)",
    },
    "--slo-ttft": {
        "type": _positive,
        "default": 1000.0,
        "help": "limit of the time to first token for goodput, ms (default 1000)",
    },
    "--slo-tpot": {
        "type": _positive,
        "default": 200.0,
        "help": "limit of the time per output token for goodput, ms (default 200)",
    },
    "--seed": {"type": int, "default": 0, "help": "of prompts, kinds and pauses (default 0)"},
}


def add_arguments(parser: argparse._ActionsContainer) -> None:
    """Adds every knob."""
    for name, options in KNOBS.items():
        parser.add_argument(name, **options)


def values(given: argparse.Namespace) -> dict[str, Any]:
    """The knobs by name, as values that JSON can hold."""
    found = {name[2:].replace("-", "_") for name in KNOBS}
    return {key: value for key, value in vars(given).items() if key in found}


def to_argv(given: argparse.Namespace) -> list[str]:
    """The knobs as arguments of another command line."""
    found = []
    for name, options in KNOBS.items():
        value = getattr(given, name[2:].replace("-", "_"))
        if options.get("action") != "store_true":
            found.append(f"{name}={value}")
        elif value:
            found.append(name)
    return found


def mix(given: argparse.Namespace) -> Mix:
    """The mix of requests that the knobs describe."""
    return Mix(given.guided_share, weights(given.mix), lengths(given.max_tokens))
