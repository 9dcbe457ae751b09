"""The formulas, one function each. ℓ: log-probs; μ: −entropy; σ²: varentropy; r: the reference."""

from __future__ import annotations

import math
import zlib as compression

import numpy as np

from divserve.scores.text import ScoredText

__all__ = [
    "binoculars", "binoculars_paper", "dc_pdd", "fast_detect", "fast_detect_reference",
    "log_rank", "lowercase", "mean_of", "min_k", "min_k_pp", "pmi", "ppl", "reference", "zlib",
]  # fmt: skip


def mean_of(text: ScoredText, name: str) -> float:
    """The mean of one figure."""
    return float(text[name].mean())


def ppl(text: ScoredText) -> float:
    """exp(loss); ∞ where that is too large for a float."""
    try:
        return math.exp(text.loss)
    except OverflowError:
        return math.inf


def log_rank(text: ScoredText) -> float:
    """mean log rank."""
    return float(np.log(text["rank"]).mean())


def pmi(text: ScoredText) -> float:
    """Σ log p(token | prompt) − log p(token | guide)."""
    return float((text["own_logprob"] - text["guide_logprob"]).sum())


def zlib(text: ScoredText) -> float:
    """mean ℓ per compressed byte."""
    return -text.loss / len(compression.compress(text.content))


def lowercase(text: ScoredText) -> float:
    """loss(text) / loss(text in lower case), both of the plain model."""
    return _ratio(-mean_of(text, "own_logprob"), text.lower_loss)


def reference(text: ScoredText) -> float:
    """loss / loss of the reference, both of plain models."""
    return _ratio(-mean_of(text, "own_logprob"), -mean_of(text, "reference_logprob"))


def min_k(text: ScoredText) -> float:
    """mean of the ⌊kN⌋ smallest ℓ, at least one."""
    return _smallest(text["logprob"], text.k)


def min_k_pp(text: ScoredText) -> float:
    """The same of (ℓ − μ)/σ; 0 where σ is 0."""
    deviation = np.sqrt(text["varentropy"])
    centred = text["logprob"] + text["entropy"]
    certain = deviation == 0
    normal = np.where(certain, 0.0, centred / np.where(certain, 1.0, deviation))
    return _smallest(normal, text.k)


def dc_pdd(text: ScoredText) -> float:
    """mean of min(p·log(1/f), cap) over the first occurrence of each token id.

    Ids beyond the list of frequencies are as rare as those that were never seen.
    """
    if (known := text.log_frequencies) is None:
        return math.nan
    ids, first = np.unique(np.asarray(text.token_ids), return_index=True)
    rare = np.where(ids < len(known), known[np.minimum(ids, len(known) - 1)], known.min())
    products = -np.exp(text["logprob"][first]) * rare
    return float(np.minimum(products, text.cap).mean())


def fast_detect(text: ScoredText) -> float:
    """(Σℓ − Σμ) / √Σσ²; 0 where no token has a choice."""
    return _normal((text["logprob"] + text["entropy"]).sum(), text["varentropy"].sum())


def fast_detect_reference(text: ScoredText) -> float:
    """The same with mean and variance of ℓ under the reference."""
    surplus = (text["own_logprob"] + text["cross_entropy"]).sum()
    return _normal(surplus, text["cross_variance"].sum())


def binoculars(text: ScoredText) -> float:
    """loss / cross-entropy of the reference to the model."""
    return _ratio(-mean_of(text, "own_logprob"), mean_of(text, "cross_entropy"))


def binoculars_paper(text: ScoredText) -> float:
    """loss of the reference / the same cross-entropy."""
    return _ratio(-mean_of(text, "reference_logprob"), mean_of(text, "cross_entropy"))


def _smallest(values: np.ndarray, share: float) -> float:
    count = max(1, int(len(values) * share))
    return float(np.sort(values)[:count].mean())


def _normal(surplus: float, variance: float) -> float:
    return float(surplus / math.sqrt(variance)) if variance > 0 else 0.0


def _ratio(over: float, under: float | None) -> float:
    return over / under if under else math.nan
