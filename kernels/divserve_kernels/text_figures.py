"""The figures of given tokens: what is kept of the distributions at the positions of a scored text.

==========  ======================  =====================================================
``numba``   CPU                     four passes over cached rows, all cores, no temporaries
``torch``   any                     whole-tensor operations
==========  ======================  =====================================================
"""

from __future__ import annotations

from torch import Tensor

from divserve_kernels import backends, text_figures_torch

__all__ = ["text_figures"]


def text_figures(
    tokens: Tensor,
    chosen: Tensor,
    own: Tensor,
    guide: Tensor | None = None,
    reference: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The figures of a slice of positions; see `divserve_contract.Figures`.

    Args:
        tokens: ``[S] int64``: the given tokens.
        chosen: ``[S, V]`` logits that the tokens are sampled from; ``own``, unless a method is
            applied.
        own: ``[S, V]`` raw logits of the served model.
        guide: ``[S, V]`` raw logits of its guide.
        reference: ``[S, V']`` raw logits of another model; V' ≤ V.

    Returns:
        ``[S, len(FIGURES)] float32``, and the log-sum-exp of ``chosen``, ``[S] float32``; on the
        same device, not synchronised.
    """
    if backends.choose(own.device).name != "numba":
        return text_figures_torch.text_figures(tokens, chosen, own, guide, reference)
    # numba takes a second to import.
    from divserve_kernels import numba_text_figures

    return numba_text_figures.text_figures(tokens, chosen, own, guide, reference)
