"""The divergences against the plain formulas in float64, and their gradient through the head."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from divserve.distill.losses import divergence, head_loss, hidden_error
from divserve.distill.settings import Loss

LOSSES: tuple[Loss, ...] = get_args(Loss)


def peaked(vocab: int, at: int, height: float) -> Tensor:
    logits = torch.zeros(vocab)
    logits[at] = height
    return logits


CASES = {
    "random": (torch.randn(7, generator=torch.Generator().manual_seed(1)) * 3,
               torch.randn(7, generator=torch.Generator().manual_seed(2)) * 3),
    "two tokens": (torch.tensor([0.0, 1.0]), torch.tensor([2.0, -1.0])),
    "disjoint peaks": (peaked(50, 3, 60.0), peaked(50, 4, 60.0)),
    "peak against uniform": (peaked(50, 3, 200.0), torch.zeros(50)),
    "uniform against peak": (torch.zeros(50), peaked(50, 3, 200.0)),
    "far from zero": (torch.tensor([1e4, 1e4 + 1, 1e4 - 2]), torch.tensor([-1e4, -1e4, -1e4 + 3])),
}  # fmt: skip


def plain(loss: Loss, z1: Tensor, z2: Tensor, beta: float) -> float:
    """The definitions, token by token."""

    def logs(z: Tensor) -> list[float]:
        values = z.double().tolist()
        top = max(values)
        total = top + math.log(math.fsum(math.exp(value - top) for value in values))
        return [value - total for value in values]

    def kl(a: list[float], b: list[float]) -> float:
        return math.fsum(math.exp(x) * (x - y) for x, y in zip(a, b, strict=True))

    def mixed(x: float, y: float) -> float:
        top = max(x, y)
        return top + math.log(beta * math.exp(x - top) + (1 - beta) * math.exp(y - top))

    p, q = logs(z1), logs(z2)
    m = [mixed(x, y) for x, y in zip(p, q, strict=True)]
    return {
        "forward_kl": lambda: kl(p, q),
        "reverse_kl": lambda: kl(q, p),
        "jsd": lambda: beta * kl(p, m) + (1 - beta) * kl(q, m),
        "tv": lambda: (
            math.fsum(abs(math.exp(x) - math.exp(y)) for x, y in zip(p, q, strict=True)) / 2
        ),
    }[loss]()


@pytest.mark.parametrize("beta", [0.5, 0.1])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("loss", LOSSES)
def test_divergences_are_the_papers(loss: Loss, case: str, beta: float) -> None:
    z1, z2 = CASES[case]
    found = divergence(loss, z1[None], z2[None], beta)
    assert found.shape == (1,)
    assert found.item() == pytest.approx(plain(loss, z1, z2, beta), rel=2e-5, abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_equal_distributions_are_at_zero_with_no_gradient(loss: Loss) -> None:
    teacher = torch.stack([peaked(21, 1, 90.0), torch.zeros(21), CASES["random"][0].repeat(3)])
    # A constant changes no distribution.
    assert divergence(loss, teacher, teacher + 5).abs().max() < 1e-6
    student = teacher.clone().requires_grad_()
    value = divergence(loss, teacher, student)
    assert value.abs().max() < 1e-7
    value.sum().backward()
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-6


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_finite_and_right(loss: Loss, case: str) -> None:
    z1, z2 = (z.double() for z in CASES[case])
    student = z2.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(divergence(loss, z1[None], student[None]).sum(), student)
    assert gradient.isfinite().all()
    for index in range(min(len(z2), 6)):
        step = torch.zeros_like(z2)
        step[index] = 1e-5
        slope = (plain(loss, z1, z2 + step, 0.5) - plain(loss, z1, z2 - step, 0.5)) / 2e-5
        assert gradient[index].item() == pytest.approx(slope, rel=1e-3, abs=1e-5)


def test_relations_between_them() -> None:
    z1, z2 = (z[None] for z in CASES["random"])
    assert torch.equal(divergence("forward_kl", z1, z2), divergence("reverse_kl", z2, z1))
    assert torch.allclose(divergence("jsd", z1, z2), divergence("jsd", z2, z1))
    accepted = torch.minimum(z1.softmax(-1), z2.softmax(-1)).sum(-1)
    assert torch.allclose(divergence("tv", z1, z2), 1 - accepted)


@pytest.mark.parametrize("chunk", [1, 3, 10, 64])
@pytest.mark.parametrize("loss", LOSSES)
def test_chunks_give_the_gradient_of_the_whole(loss: Loss, chunk: int) -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 30, bias=False).requires_grad_(False)
    teacher, student = torch.randn(10, 8), torch.randn(10, 8, requires_grad=True)
    mean = divergence(loss, head(teacher), head(student)).mean()
    mean.backward()
    value, gradient = head_loss(loss, head, teacher, student, chunk=chunk)
    assert value == pytest.approx(mean.item(), rel=1e-5)
    assert student.grad is not None
    torch.testing.assert_close(gradient, student.grad, rtol=1e-4, atol=1e-6)


def test_hidden_error_is_relative() -> None:
    teacher = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert hidden_error(teacher, teacher).item() == 0
    assert hidden_error(teacher, 2 * teacher).item() == 1
    assert hidden_error(teacher, torch.zeros_like(teacher)).item() == 1
    assert hidden_error(10 * teacher, 11 * teacher).item() == pytest.approx(0.01)
