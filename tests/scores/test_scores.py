"""Every score against golden vectors, and what it does where a formula has no value."""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from divserve.decoding import EXCLUDED, FIGURES, Read
from divserve.errors import StartupError
from divserve.scores import SCORES, ScoredText, Scoring, load, log_frequencies
from divserve_kernels.text_figures import text_figures
from tests.kernels.test_text_figures import REFERENCE, SCORING, TOKENS

COUNTS = np.array([50, 30, 15, 4])
GUIDE = torch.tensor([[1.0, 2, 0, -1], [0, 1, 0.5, 0], [1, 0, 0, 2]])
GOLDEN = {
    "loss": 0.715000,
    "ppl": 2.044186,
    "entropy": (0.947537 + 0.672078 + 1.048705) / 3,
    "varentropy": (0.616586 + 0.951464 + 0.577365) / 3,
    "rank": 4 / 3,
    "log_rank": math.log(2) / 3,
    "fast_detect": 0.357283,
    "fast_detect_reference": 1.370816,
    "binoculars": 0.473455,
    "binoculars_paper": 0.671174,
    "min_k": -1.493812,
    "min_k_pp": -0.585786,
    "zlib": -0.026481,
    "lowercase": 0.715000 / 0.5,
    "dc_pdd": 0.010000,
}
"""Of the specification: V = 4, three tokens."""


def golden(**fields: object) -> ScoredText:
    """The text of the golden vectors."""
    figures, _lse = text_figures(TOKENS, SCORING, SCORING, GUIDE, REFERENCE)
    return ScoredText(
        ScoredText.figures_of(Read(figures.numpy().tobytes())),
        TOKENS.tolist(),
        b"the cat sat on the mat",
        0.5,
        log_frequencies(COUNTS),
        **fields,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name: str) -> None:
    assert SCORES[name].compute(golden()) == pytest.approx(GOLDEN[name], abs=1e-5)


def test_golden_parameters() -> None:
    assert SCORES["min_k"].compute(golden(k=1.0)) == pytest.approx(-0.715000, abs=1e-5)
    assert SCORES["min_k_pp"].compute(golden(k=1.0)) == pytest.approx(0.177674, abs=1e-5)
    assert SCORES["dc_pdd"].compute(golden(cap=1.0)) == pytest.approx(0.726305, abs=1e-5)
    assert SCORES["dc_pdd"].compute(golden(cap=9.0)) == pytest.approx(0.980263, abs=1e-5)


def test_what_a_guide_adds() -> None:
    """The first two positions are those of the specification's pmi; the third adds nothing."""
    text = golden()
    assert SCORES["pmi"].compute(text) == pytest.approx(2.140131, abs=1e-5)
    assert SCORES["mean_pmi"].compute(text) == pytest.approx(2.140131 / 3, abs=1e-5)
    p, q = SCORING.double().softmax(-1), GUIDE.double().softmax(-1)
    kl = float((p * (p / q).log()).sum(-1).mean())
    m = (p + q) / 2
    jsd = float(((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)).mean() / 2)
    assert SCORES["kl"].compute(text) == pytest.approx(kl, abs=1e-5)
    assert SCORES["jsd"].compute(text) == pytest.approx(jsd, abs=1e-5)


def test_reference() -> None:
    tokens = torch.arange(3)
    loss = -float(REFERENCE.double().log_softmax(-1)[tokens, TOKENS].mean())
    assert SCORES["reference"].compute(golden()) == pytest.approx(0.715 / loss, abs=1e-5)


def made(**figures: list[float]) -> ScoredText:
    """A text with these figures; all others are missing."""
    count = len(next(iter(figures.values())))
    table = np.full((count, len(FIGURES)), math.nan)
    for name, values in figures.items():
        table[:, FIGURES.index(name)] = values
    return ScoredText(table, list(range(count)))


def test_tokens_that_are_excluded_make_the_loss_infinite() -> None:
    table = np.zeros((2, len(FIGURES)), np.float32)
    table[1, FIGURES.index("logprob")] = EXCLUDED
    text = ScoredText(ScoredText.figures_of(Read(table.tobytes())), [1, 2])
    assert text["logprob"].tolist() == [0.0, -math.inf]
    assert SCORES["loss"].compute(text) == SCORES["ppl"].compute(text) == math.inf


def test_a_perplexity_too_large_for_a_float() -> None:
    assert SCORES["ppl"].compute(made(logprob=[-2000.0])) == math.inf


def test_tokens_without_a_choice() -> None:
    """σ = 0: z is 0, and so is the curvature."""
    text = made(logprob=[0.0, -1.0], entropy=[0.0, 1.5], varentropy=[0.0, 0.25])
    assert SCORES["min_k_pp"].compute(text) == 0.0
    flat = made(logprob=[0.0], entropy=[0.0], varentropy=[0.0])
    assert SCORES["fast_detect"].compute(flat) == 0.0


def test_ratios_without_a_denominator() -> None:
    text = made(own_logprob=[-1.0], reference_logprob=[0.0])
    assert math.isnan(SCORES["reference"].compute(text))
    assert math.isnan(SCORES["lowercase"].compute(text))
    assert math.isnan(SCORES["dc_pdd"].compute(text))


def test_compression_is_that_of_zlib() -> None:
    text = golden()
    assert len(zlib.compress(text.content)) == 27


def test_ids_without_a_count_are_as_rare_as_the_rarest() -> None:
    """A padded vocabulary has ids that no tokenizer makes."""
    text = made(logprob=[math.log(0.5)])
    unseen = ScoredText(text.figures, [9], log_frequencies=log_frequencies(COUNTS), cap=9.0)
    wanted = -0.5 * math.log(5 / (99 + 4))
    assert SCORES["dc_pdd"].compute(unseen) == pytest.approx(wanted)


def test_frequencies() -> None:
    assert np.exp(log_frequencies(COUNTS)) == pytest.approx(
        [0.495146, 0.300971, 0.155340, 0.048544], abs=1e-6
    )


def test_frequencies_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "counts.npy"
    np.save(file, COUNTS)
    assert load(file).tolist() == COUNTS.tolist()
    for wrong in (COUNTS[:0], COUNTS / 2, COUNTS[None], -COUNTS, np.array(["a"])):
        np.save(file, wrong)
        with pytest.raises(StartupError, match="one whole number"):
            load(file)
    file.write_text("50\n30\n")
    with pytest.raises(StartupError, match=r"counts\.npy"):
        load(file)
    with pytest.raises(StartupError, match="No such file"):
        load(tmp_path / "none.npy")


def test_what_a_server_offers() -> None:
    plain, whole = Scoring(), Scoring(True, log_frequencies(COUNTS))
    assert plain.lacking(SCORES["loss"], ()) == []
    assert plain.lacking(SCORES["min_k"], ()) == ["--scores membership"]
    assert plain.lacking(SCORES["dc_pdd"], ()) == ["--scores membership", "--frequencies"]
    assert whole.lacking(SCORES["dc_pdd"], ()) == []
    assert whole.lacking(SCORES["binoculars"], ()) == ["--amateur"]
    assert whole.lacking(SCORES["binoculars"], {"amateur"}) == []
    assert all(entry["available"] for entry in whole.listed({"amateur"}))


def test_the_default_scores_need_nothing() -> None:
    alone, guided = ([SCORES[name] for name in Scoring.defaults(given)] for given in (False, True))
    assert not any(score.needs or score.membership for score in alone)
    assert {score.needs for score in guided} == {(), ("guide",)}
