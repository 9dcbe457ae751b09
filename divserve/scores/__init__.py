"""Scores of a given text, computed from the figures of its tokens: numbers only.

`SCORES` is the registry: a new score is one entry there and its tests. A score is a number, never a
verdict; each entry says what it is worth and when it fails.
"""

from divserve.scores.frequencies import load, log_frequencies
from divserve.scores.registry import SCORES, Score
from divserve.scores.settings import Scoring
from divserve.scores.text import ScoredText

__all__ = ["SCORES", "Score", "ScoredText", "Scoring", "load", "log_frequencies"]
