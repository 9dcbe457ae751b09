"""The flags of scores of given texts."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from divserve.scores import Scoring, load, log_frequencies

__all__ = ["add_flags", "settings_of"]


def add_flags(parser: ArgumentParser) -> None:
    """Adds the flags to the parser of ``divserve serve``."""
    group: Any = parser.add_argument_group("divserve: scores of given texts")
    group.add_argument(
        "--scores",
        choices=["membership"],
        help="Also offer the scores that ask how familiar a text is (min_k, zlib …): they can be "
        "used to find out about the data that the model was tuned with.",
    )
    group.add_argument(
        "--frequencies",
        type=Path,
        metavar="FILE.npy",
        help="How often each token id occurs in a large corpus, for the score dc_pdd: whole "
        "numbers, written by numpy.save.",
    )


def settings_of(args: Namespace) -> Scoring:
    """Reads the flags.

    Raises:
        StartupError: the file of ``--frequencies`` cannot be used.
    """
    counts = None if args.frequencies is None else load(args.frequencies)
    found = None if counts is None else log_frequencies(counts)
    return Scoring(args.scores == "membership", found)
