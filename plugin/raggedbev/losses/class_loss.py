"""Sums of class losses in one pass: logits and labels in, one sum per segment (for instance per decoder layer) out.

The operator computes what `terms.sigmoid_focal_loss` and `terms.quality_focal_loss` compute, without any tensor of the
logits' size; its gradient is a second pass. Where nothing is compiled, the terms run as they are.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from raggedbev._extension import load_operator
from raggedbev.losses.terms import quality_focal_loss, sigmoid_focal_loss

__all__ = ["focal_loss_sums", "quality_focal_loss_sums"]


def focal_loss_sums(
    logits: Tensor, labels: Tensor, *, valid: Tensor | None = None, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Focal loss (Lin et al. 2017, equation 5), summed over everything but the first dimension.

    Differentiable once.

    Args:
        logits: [S, ..., C] float32 or float64.
        labels: [S, ...] int64 class (leading dimensions broadcast); outside [0, C): background.
        valid: [S, ...] bool (leading dimensions broadcast), rows that count; others have no loss and no gradient, NaN
            logits included. None: all.
        alpha: weight of positives.
        gamma: focusing exponent.

    Returns:
        [S].

    Raises:
        ValueError, TypeError: shapes, types or devices do not fit.
    """
    return _sums(
        _flat(logits, 1),
        _flat(_expanded("labels", labels, logits)),
        None,
        None if valid is None else _flat(_expanded("valid", valid, logits)),
        float(alpha),
        float(gamma),
    )


def quality_focal_loss_sums(logits: Tensor, labels: Tensor, quality: Tensor, *, beta: float = 2.0) -> Tensor:
    """Quality focal loss (Li et al. 2020, equation 5), summed over everything but the first dimension.

    Differentiable once.

    Args:
        logits: [S, ..., C] float32 or float64.
        labels: [S, ...] int64 class; outside [0, C): background.
        quality: [S, ...] target score of the row's class; no gradient flows to it.
        beta: exponent of the distance between score and target.

    Returns:
        [S].

    Raises:
        ValueError, TypeError: shapes, types or devices do not fit.
    """
    quality = _flat(_expanded("quality", quality.detach().to(logits.dtype), logits))
    return _sums(_flat(logits, 1), _flat(_expanded("labels", labels, logits)), quality, None, 0.0, float(beta))


def _expanded(name: str, values: Tensor, logits: Tensor) -> Tensor:
    """`values` with one entry for each row of `logits`."""
    rows = logits.shape[:-1]
    if values.device != logits.device:
        raise ValueError(f"{name} must be on {logits.device} like the logits, got {values.device}")
    try:
        return values.expand(rows)
    except RuntimeError:
        raise ValueError(
            f"{name} must have the rows {tuple(rows)} of the logits, got shape {tuple(values.shape)}"
        ) from None


def _flat(tensor: Tensor, own_dims: int = 0) -> Tensor:
    """[S, ..., own] as [S, R, own]."""
    if tensor.dim() < 1 + own_dims:
        raise ValueError(f"logits must be [S, ..., C], got shape {tuple(tensor.shape)}")
    end = tensor.dim() - own_dims
    return tensor.reshape(tensor.shape[0], math.prod(tensor.shape[1:end]), *tensor.shape[end:])


def _sums_with_torch(
    logits: Tensor, labels: Tensor, quality: Tensor | None, valid: Tensor | None, alpha: float, gamma: float
) -> Tensor:
    if valid is not None:
        logits = torch.where(valid.unsqueeze(-1), logits, 0.0)
    if quality is None:
        loss = sigmoid_focal_loss(logits, labels, alpha, gamma)
    else:
        loss = quality_focal_loss(logits, labels, quality, gamma)
    if valid is not None:
        loss = loss * valid.unsqueeze(-1)
    return loss.flatten(1).sum(1)


def _slopes_with_torch(
    slopes: Tensor,
    logits: Tensor,
    labels: Tensor,
    quality: Tensor | None,
    valid: Tensor | None,
    alpha: float,
    gamma: float,
) -> Tensor:
    with torch.enable_grad():
        inputs = logits.detach().requires_grad_()
        sums = _sums_with_torch(inputs, labels, quality, valid, alpha, gamma)
    return torch.autograd.grad(sums, inputs, slopes)[0]


def _sums_fake(logits: Tensor, *_args: object) -> Tensor:
    return logits.new_empty(logits.shape[:1])


def _slopes_fake(_slopes: Tensor, logits: Tensor, *_args: object) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


_slopes = load_operator("class_loss_slopes", fallback=_slopes_with_torch, fake=_slopes_fake)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    logits, labels, quality, valid, ctx.alpha, ctx.gamma = inputs
    ctx.save_for_backward(logits, labels, quality, valid)


def _backward(ctx: Any, slopes: Tensor) -> tuple[Tensor, None, None, None, None, None]:
    return _slopes(slopes, *ctx.saved_tensors, ctx.alpha, ctx.gamma), None, None, None, None, None


_sums = load_operator("class_loss_sums", fallback=_sums_with_torch, fake=_sums_fake, gradient=(_save, _backward))
