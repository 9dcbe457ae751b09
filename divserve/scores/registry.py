"""The scores: name, formula, direction, what each needs and what it is worth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from divserve.scores import formulas
from divserve.scores.text import ScoredText

__all__ = ["SCORES", "Need", "Score"]

Need = Literal["guide", "amateur", "frequencies", "text"]
"""What a score needs beside the text's tokens: a guide in the request, ``--amateur``,
``--frequencies``, or the text itself where token ids were sent."""


@dataclass(frozen=True)
class Score:
    """One score of a text."""

    formula: str
    larger_means: str | None
    """What larger values hint at; None where they hint at nothing but themselves."""
    worth: str
    """What it is good for, and when it fails."""
    compute: Callable[[ScoredText], float]
    needs: tuple[Need, ...] = ()
    membership: bool = False
    """Whether it asks how familiar a text is: only with ``--scores membership``."""
    url: str | None = None


MEMBER = "familiar"
NEAR_CHANCE = (
    "on clean splits of large corpora close to chance: it says how familiar a text is, never that "
    "it was in the training data"
)
CURVATURE = (
    "finds text that was decoded cold or truncated; on text sampled at temperature 1 it fails, and "
    "may point the other way (DMAP, arXiv:2602.11871). Thresholds hold for one pair of models only"
)

_DETECTGPT = "https://arxiv.org/abs/2310.05130"
_BINOCULARS = "https://arxiv.org/abs/2401.12070"
_DC_PDD = "https://arxiv.org/abs/2409.14781"

SCORES: dict[str, Score] = {
    "loss": Score(
        "−mean ℓ",
        "less likely text",
        "the mean cost of a token in nats; depends on topic, language and tokenizer",
        lambda text: text.loss,
    ),
    "ppl": Score(
        "exp(loss)",
        "less likely text",
        "as loss; comparable between models only if they share a tokenizer",
        formulas.ppl,
    ),
    "entropy": Score(
        "mean H(p)",
        "the model is less sure",
        "how open the model is at these positions, whatever stands there",
        partial(formulas.mean_of, name="entropy"),
    ),
    "varentropy": Score(
        "mean Var_p(log p)",
        None,
        "how much the surprise of a sampled token varies",
        partial(formulas.mean_of, name="varentropy"),
    ),
    "rank": Score(
        "mean rank of the token",
        "human",
        "robust for text decoded cold; single rare tokens dominate the mean",
        partial(formulas.mean_of, name="rank"),
    ),
    "log_rank": Score(
        "mean log rank",
        "human",
        "as rank, less dominated by rare tokens",
        formulas.log_rank,
    ),
    "pmi": Score(
        "Σ [log p(x | prompt) − log p(x | guide)]",
        "leans on what the guide lacks",
        "what the document adds to this answer in nats; grows with the length of the answer",
        formulas.pmi,
        ("guide",),
    ),
    "mean_pmi": Score(
        "pmi / N",
        "leans on what the guide lacks",
        "as pmi per token; a wrong answer that repeats the document's words scores high too",
        lambda text: formulas.pmi(text) / len(text.token_ids),
        ("guide",),
    ),
    "kl": Score(
        "mean KL(p(· | prompt) ‖ p(· | guide))",
        "leans on what the guide lacks",
        "how much the document changes the next-token distributions, whatever the answer says",
        partial(formulas.mean_of, name="kl"),
        ("guide",),
    ),
    "jsd": Score(
        "mean JSD(p(· | prompt), p(· | guide))",
        "leans on what the guide lacks",
        "as kl, bounded by ln 2: single tokens cannot dominate",
        partial(formulas.mean_of, name="jsd"),
        ("guide",),
    ),
    "fast_detect": Score(
        "(Σℓ − Σμ) / √Σσ²",
        "machine",
        CURVATURE,
        formulas.fast_detect,
        url=_DETECTGPT,
    ),
    "fast_detect_reference": Score(
        "(Σℓ − Σμ̃) / √Σσ̃², μ̃ and σ̃² of ℓ under the amateur",
        "machine",
        CURVATURE,
        formulas.fast_detect_reference,
        ("amateur",),
        url=_DETECTGPT,
    ),
    "binoculars": Score(
        "loss / mean −Σ r log p, r: the amateur",
        "human",
        CURVATURE,
        formulas.binoculars,
        ("amateur",),
        url=_BINOCULARS,
    ),
    "binoculars_paper": Score(
        "loss of the amateur / mean −Σ r log p",
        "human",
        CURVATURE,
        formulas.binoculars_paper,
        ("amateur",),
        url=_BINOCULARS,
    ),
    "min_k": Score(
        "mean of the ⌊kN⌋ smallest ℓ",
        MEMBER,
        NEAR_CHANCE,
        formulas.min_k,
        membership=True,
        url="https://arxiv.org/abs/2310.16789",
    ),
    "min_k_pp": Score(
        "mean of the ⌊kN⌋ smallest (ℓ − μ)/σ",
        MEMBER,
        NEAR_CHANCE,
        formulas.min_k_pp,
        membership=True,
        url="https://arxiv.org/abs/2404.02936",
    ),
    "zlib": Score(
        "mean ℓ / bytes of the compressed text",
        MEMBER,
        NEAR_CHANCE,
        formulas.zlib,
        membership=True,
        url="https://arxiv.org/abs/2012.07805",
    ),
    "lowercase": Score(
        "loss(text) / loss(text in lower case)",
        "not familiar",
        NEAR_CHANCE,
        formulas.lowercase,
        ("text",),
        membership=True,
        url="https://arxiv.org/abs/2012.07805",
    ),
    "reference": Score(
        "loss / loss of the amateur",
        "not familiar",
        NEAR_CHANCE,
        formulas.reference,
        ("amateur",),
        membership=True,
        url="https://arxiv.org/abs/2012.07805",
    ),
    "dc_pdd": Score(
        "mean of min(p·log(1/f), cap) over first occurrences, f: frequency in a corpus",
        MEMBER,
        NEAR_CHANCE + "; the cap is tuned for each model",
        formulas.dc_pdd,
        ("frequencies",),
        membership=True,
        url=_DC_PDD,
    ),
}
"""All scores by name, in the order in which they are listed."""
