"""The semantics of the operation: golden vectors, neutral programs, and rejected input."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from divserve_contract import STATISTICS, Form, Program
from divserve_kernels import Streams, guide
from tests.kernels.cases import ALL, LONG, back_end, of_method, pairs, streams_of

Z1 = [2.0, 1.5, 0.3, -0.5, -1.0, -2.0]
Z2 = [1.8, 0.2, 1.6, -0.4, -1.2, -0.5]
INF = math.inf
NAMES = ["reference", *ALL]
OL = math.log(0.1)


def one_row(parameters: Any, streams: int) -> Streams:
    """Program 0 with row 1 as its guide and row 2, if there is one, as its third stream."""
    return streams_of([parameters], [0], [1], [2] if streams > 2 else None)


def statistics_of(name: str, parameters: Any, *streams: list[float]) -> dict[str, float]:
    """The statistics of one row."""
    logits = torch.tensor(streams)
    found = back_end(name)(logits, one_row(parameters, len(streams)), None, logits)
    return dict(zip(STATISTICS, found[0].tolist(), strict=True))


def guided(name: str, parameters: Any, *streams: list[float]) -> list[float]:
    """The guided logits of one row."""
    logits = torch.tensor(streams)
    back_end(name)(logits, one_row(parameters, len(streams)), None, logits)
    assert logits[1:].tolist() == torch.tensor(streams[1:]).tolist()
    return logits[0].tolist()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        (of_method("adacad"), [2.016446, 1.606900, 0.193100, -0.508223, -0.983554, -2.123347]),
        (of_method("adacad", floor=0.3), [2.06, 1.89, -0.09, -0.53, -0.94, -2.45]),
        (of_method("cad"), [2.10, 2.15, -0.35, -0.55, -0.90, -2.75]),
        (of_method("cad", alpha=1), [2.2, 2.8, -1.0, -0.6, -0.8, -3.5]),
        (of_method("cfg"), [2.10, 2.15, -0.35, -0.55, -0.90, -2.75]),
        (of_method("kl_temperature"), [z / 0.792008 for z in Z1]),
        (of_method("kl_temperature", sigma=0.1), [z / 0.097118 for z in Z1]),
        (of_method("kl_temperature", sigma=0.5), [z / 0.627277 for z in Z1]),
        (of_method("kl_temperature", sigma=2), [z / 0.889949 for z in Z1]),
        (Program(guide_weight=-0.3), [1.46, 1.44, -0.18, -0.38, -0.64, -1.85]),
        (Program(alpha=0.5, log_plausibility=OL), [2.10, 2.15, -0.35, -INF, -INF, -INF]),
        (Program(alpha=1, log_plausibility=OL), [2.2, 2.8, -1.0, -INF, -INF, -INF]),
        (
            Program(form=Form.SWITCH, alpha=1, log_ratio=math.log(4)),
            [-0.499936, 0.100064, -2.362380, -3.162380, -3.499936, -6.199936],
        ),
        (Program(entropy_rate=-0.1 * math.log2(0.8)), [z / (0.588941 / 0.6) for z in Z1]),
    ],
)
def test_golden_logits(name: str, parameters: Any, expected: list[float]) -> None:
    """Golden vectors, computed in float64 apart from this code."""
    assert guided(name, parameters, Z1, Z2) == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        # Contrastive decoding, original form, and CFG in log-probs: equal up to a constant.
        (Program(guide_weight=-1, log_plausibility=OL), [0.162443, 1.262443, -1.337557]),
        (Program(guide_weight=-2, log_plausibility=OL), [-0.110859, 2.589141, -1.410859]),
        (Program(alpha=0.5), [-0.581158, -0.531158, -3.031158, -3.231158, -3.581158, -5.431158]),
    ],
)
def test_golden_log_probs(name: str, parameters: Any, expected: list[float]) -> None:
    """The papers subtract log-probs; a row of logits differs from them only by a constant."""
    kept = torch.tensor(guided(name, parameters, Z1, Z2))[: len(expected)]
    wanted = torch.tensor(expected)
    torch.testing.assert_close(kept - kept[0], wanted - wanted[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_golden_uscd(name: str) -> None:
    """q = p1 − 0.7·p2 on p1 ≥ ⅔/V, negative ones dropped; above the gate nothing happens."""
    uscd = {"form": Form.PROBABILITY, "guide_weight": -0.7, "min_prob": 2 / 3}
    found = guided(name, Program(**uscd), Z1, Z2)
    assert [math.exp(z) for z in found[:2]] == pytest.approx([0.208804, 0.250795], abs=1e-5)
    assert found[2:] == [-INF] * 4
    assert guided(name, Program(**uscd, gate=0.3), Z1, Z2) == pytest.approx(Z1)
    figures = statistics_of(name, Program(**uscd), Z1, Z2)
    assert figures["kept"] == 2
    assert figures["alpha"] == pytest.approx(0.7)
    # s = 0.204166 with ddof 1 is Σp² = s²(V−1) + 1/V.
    assert figures["sum_p2"] == pytest.approx(0.204166**2 * 5 + 1 / 6, abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_uscd_falls_back_where_nothing_is_left(name: str) -> None:
    """Every q ≤ 0: the primary is unchanged."""
    parameters = Program(form=Form.PROBABILITY, guide_weight=-3)
    assert guided(name, parameters, Z1, Z1) == pytest.approx(Z1)
    assert statistics_of(name, parameters, Z1, Z1)["kept"] == 6


@pytest.mark.parametrize("name", NAMES)
def test_coiecd_leaves_a_dominant_token_alone(name: str) -> None:
    """One token near the top: the lower band is dropped."""
    z1, z2 = [6.0, 1, 0.5, -1, -2], [1.0, 3, 0.2, -1, -1.5]
    parameters = Program(form=Form.SWITCH, alpha=1, log_ratio=math.log(4))
    expected = [-0.012000, -5.012000, -5.512000, -9.820594, -11.320594]
    assert guided(name, parameters, z1, z2) == pytest.approx(expected, abs=1e-5)
    assert statistics_of(name, parameters, z1, z2)["alpha"] == 0
    assert statistics_of(name, parameters, Z1, Z2)["alpha"] == 1


@pytest.mark.parametrize("name", NAMES)
def test_vdgd_replaces_the_candidates_logits(name: str) -> None:
    """Grounding logits of a third row, on the nucleus of the primary."""
    grounding = [[0.5, 0.3, 0.1, 0.1], [0.05, 0.05, 0.6, 0.3]]
    logs = torch.tensor(grounding).log()
    parameters = Program(primary_weight=0, third_weight=1)
    for reduced, expected in (
        (logs.amax(0), [0.294118, 0.176471, 0.352941, 0.176471]),
        (logs.mean(0), [0.226284, 0.175278, 0.350557, 0.247881]),
    ):
        streams = ([0.0, 1.0, 0.5, 0.2], [0.0] * 4, reduced.tolist())
        found = torch.tensor(guided(name, parameters, *streams)).softmax(0)
        assert found.tolist() == pytest.approx(expected, abs=1e-5)
    nucleus = Program(primary_weight=0, third_weight=1, top_p=0.5, top_p_temperature=0.5)
    kept = guided(name, nucleus, [0.0, 1.0, 0.9, 0.2], [0.0] * 4, logs.amax(0).tolist())
    assert [math.isinf(z) for z in kept] == [True, False, False, True]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("top_p", "kept"), [(0.0, 1), (0.5, 1), (0.52, 2), (0.83, 3), (1.0, 6)])
def test_nucleus_keeps_the_token_over_the_line(name: str, top_p: float, kept: int) -> None:
    """p1 = .516 .313 .094 .042 .026 .009."""
    found = guided(name, Program(top_p=top_p), Z1, Z2)
    assert found == pytest.approx(Z1[:kept] + [-INF] * (6 - kept))
    assert statistics_of(name, Program(top_p=top_p), Z1, Z2)["kept"] == kept


@pytest.mark.parametrize("name", NAMES)
def test_golden_statistics(name: str) -> None:
    """Entropy, KL and JSD in nats; AdaCAD's weight is the JSD, in bits where asked."""
    tempered = statistics_of(name, of_method("kl_temperature"), Z1, Z2)
    adaptive = statistics_of(name, of_method("adacad", jsd_base="bits"), Z1, Z2)
    assert tempered["entropy"] == pytest.approx(1.199485, abs=1e-5)
    assert tempered["kl"] == pytest.approx(0.336412, abs=1e-5)
    assert tempered["factor"] == pytest.approx(0.792008, abs=1e-5)
    assert tempered["max_prob"] == pytest.approx(0.515623, abs=1e-5)
    assert tempered["kept"] == 6
    assert adaptive["jsd"] == pytest.approx(0.0822311, abs=1e-5)
    assert adaptive["alpha"] == pytest.approx(0.1186344, abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "neutral",
    [
        Program(),
        Program(form=Form.OBSERVE, alpha=3),
        of_method("cad", alpha=0),
        of_method("cfg", scale=1),
        of_method("kl_temperature", sigma=0),
    ],
)
def test_neutral_rows_are_bit_identical(name: str, neutral: tuple[float, ...]) -> None:
    """Invariant 2: no strength, no change, not even a rounding."""
    logits = torch.randn(2, LONG, generator=torch.Generator().manual_seed(0)) * 5
    before = logits.clone()
    back_end(name)(logits, pairs(logits, [neutral]), None, logits)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("name", NAMES)
def test_masked_guide_entries_count_as_the_smallest(name: str) -> None:
    """No +inf where only the guide is masked."""
    found = guided(name, Program(alpha=1), [1.0, 2.0, -INF], [-INF, 3.0, -INF])
    assert found == [2 * 1 - 3.0, 2 * 2 - 3.0, -INF]


def test_half_precision_results_are_refused() -> None:
    logits = torch.zeros(2, 4, dtype=torch.bfloat16)
    with pytest.raises(TypeError, match="float32"):
        guide(logits, pairs(logits, [of_method("cad")]))


def test_half_precision_logits_are_read() -> None:
    """The output is float32."""
    logits, out = torch.tensor([Z1, Z2]).bfloat16(), torch.zeros(2, 6)
    guide(logits, pairs(logits, [of_method("cad")]), out=out)
    assert out[0].tolist() == pytest.approx((1.5 * logits[0] - 0.5 * logits[1]).tolist(), abs=0.02)
