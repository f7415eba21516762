"""RMSNorm in one pass over memory, alone or added to a residual: the fast equal of ops.plain_rms_norm."""

import torch
from jaxtyping import Float
from torch import Tensor

from gemsmith.kernels import native
from gemsmith.kernels.operators import define, differentiate

# GS_NORM_PARTS of csrc/kernels.h.
_N_PARTS = 64


def is_suitable(x: Tensor, weight: Tensor) -> bool:
    """Tell whether the kernels serve these tensors."""
    return native.serves(x, weight) and x.shape[-1] == weight.shape[0]


def rms_norm(x: Float[Tensor, "*T D"], weight: Float[Tensor, " D"], eps: float) -> Float[Tensor, "*T D"]:
    """Return what ops.plain_rms_norm returns."""
    return _rms_norm(x, weight, eps)


def norm_add(
    residual: Float[Tensor, "*T D"], y: Float[Tensor, "*T D"], weight: Float[Tensor, " D"], eps: float
) -> Float[Tensor, "*T D"]:
    """Return residual + ops.plain_rms_norm(y, weight, eps), the norm rounded to its dtype before the sum."""
    return _norm_add(residual, y, weight, eps)


def _forward(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Tensor:
    x, weight = x.contiguous(), weight.contiguous()
    residual = None if residual is None else residual.contiguous()
    out, width = torch.empty_like(x), x.shape[-1]
    native.need().gs_rms_norm(
        x.data_ptr(), weight.data_ptr(), None if residual is None else residual.data_ptr(), out.data_ptr(),
        x.numel() // max(1, width), width, eps, native.DTYPES[x.dtype], native.DTYPES[weight.dtype],
    )  # fmt: skip
    return out


def _backward(grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    grad, x, weight = grad.contiguous(), x.contiguous(), weight.contiguous()
    width = x.shape[-1]
    dx, dweight = torch.empty_like(x), x.new_empty(width, dtype=torch.float32)
    parts = x.new_empty(_N_PARTS, width, dtype=torch.float32)
    native.need().gs_rms_norm_backward(
        grad.data_ptr(), x.data_ptr(), weight.data_ptr(), dx.data_ptr(), dweight.data_ptr(), parts.data_ptr(),
        x.numel() // max(1, width), width, eps, native.DTYPES[x.dtype], native.DTYPES[weight.dtype],
    )  # fmt: skip
    return dx, dweight


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


_rms_norm = define(
    "rms_norm(Tensor x, Tensor weight, float eps) -> Tensor", compute=_forward, shape=lambda x, weight, eps: _like(x)
)
_norm_add = define(
    "norm_add(Tensor residual, Tensor y, Tensor weight, float eps) -> Tensor",
    compute=lambda residual, y, weight, eps: _forward(y, weight, eps, residual),
    shape=lambda residual, y, weight, eps: _like(y),
)
_rms_norm_backward = define(
    "rms_norm_backward(Tensor grad, Tensor x, Tensor weight, float eps) -> (Tensor, Tensor)",
    compute=_backward,
    shape=lambda grad, x, weight, eps: (_like(x), x.new_empty(x.shape[-1], dtype=torch.float32)),
)


def _keep(ctx, inputs, output):
    *_, x, weight, ctx.eps = inputs
    ctx.save_for_backward(x, weight)


def _gradients(ctx, grad):
    x, weight = ctx.saved_tensors
    dx, dweight = _rms_norm_backward(grad, x, weight, ctx.eps)
    return dx, dweight.to(weight.dtype), None


differentiate(_rms_norm, keep=_keep, backward=_gradients)
differentiate(_norm_add, keep=_keep, backward=lambda ctx, grad: (grad, *_gradients(ctx, grad)))
