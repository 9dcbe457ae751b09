"""How far the student is from the teacher: four divergences, and their gradient through the head.

p is the teacher's distribution, q the student's, both over V tokens. Training minimises the mean
over positions (DistillSpec, Zhou et al., ICLR 2024, arXiv 2310.08461, §4):

forward KL   KL(p‖q) = Σ p·ln(p/q)
reverse KL   KL(q‖p)
JSD          β·KL(p‖m) + (1−β)·KL(q‖m), m = β·p + (1−β)·q
TV           ½·Σ|p − q|, which is one minus the acceptance of speculative sampling
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from divserve.distill.settings import Loss

__all__ = ["chunk_size", "divergence", "head_loss", "hidden_error"]


def chunk_size(device: torch.device) -> int:
    """Positions whose logits exist at once; at V = 49,152, 25 MB per tensor on CPU."""
    return 128 if device.type == "cpu" else 1024


def divergence(loss: Loss, teacher: Tensor, student: Tensor, beta: float = 0.5) -> Tensor:
    """Returns the divergence of each position, `[T] float32`, in nats (TV: in 0..1).

    `teacher` and `student` are finite logits, `[T, V] float32`; `beta` is used only by the JSD.
    """
    log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
    if loss == "forward_kl":
        return (log_p.exp() * (log_p - log_q)).sum(-1)
    if loss == "reverse_kl":
        return (log_q.exp() * (log_q - log_p)).sum(-1)
    if loss == "tv":
        return (log_p.exp() - log_q.exp()).abs().sum(-1) / 2
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    kl_p = (log_p.exp() * (log_p - log_m)).sum(-1)
    kl_q = (log_q.exp() * (log_q - log_m)).sum(-1)
    return beta * kl_p + (1 - beta) * kl_q


def head_loss(
    loss: Loss,
    head: Any,
    teacher: Tensor,
    student: Tensor,
    beta: float = 0.5,
    chunk: int | None = None,
) -> tuple[float, Tensor]:
    """Returns the mean divergence of T positions and its gradient at `student`, `[T, H] float32`.

    `teacher` and `student` are the hidden states that `head` turns into logits, `[T, H]`. Only
    `chunk` positions (by default `chunk_size`) have logits at a time, so memory does not grow with
    T·V; the caller passes the gradient on with ``student.backward(gradient)``.
    """
    gradient = torch.empty_like(student, dtype=torch.float32)
    total, chunk = torch.zeros((), device=student.device), chunk or chunk_size(student.device)
    for start in range(0, len(student), chunk):
        part = slice(start, start + chunk)
        leaf = student[part].detach().requires_grad_()
        with torch.no_grad():
            wanted = head(teacher[part]).float()
        value = divergence(loss, wanted, head(leaf).float(), beta).sum() / len(student)
        (gradient[part],) = torch.autograd.grad(value, leaf)
        total += value.detach()
    return total.item(), gradient


def hidden_error(teacher: Tensor, student: Tensor) -> Tensor:
    """Σ(student − teacher)² / Σ teacher², a scalar; both `[T, H]`, 0 where they agree."""
    teacher, student = teacher.float(), student.float()
    return (student - teacher).square().sum() / teacher.square().sum()
