"""Rotary positions in one pass, without float32 copies: the fast equal of ops.plain_rotate."""

import torch
from jaxtyping import Float
from torch import Tensor

from gemsmith.kernels import native
from gemsmith.kernels.operators import define, differentiate, rows


def is_suitable(x: Tensor) -> bool:
    """Tell whether the kernel serves this tensor: tokens and heads may lie any distance apart."""
    return x.ndim == 3 and x.shape[-1] % 2 == 0 and native.serves(x)


def rotate(
    x: Float[Tensor, "T heads H"],
    angles: tuple[Float[Tensor, "T half"], Float[Tensor, "T half"]],
    *,
    factor: float = 1.0,
) -> Float[Tensor, "T heads H"]:
    """Return what ops.plain_rotate returns; the angles get no gradient."""
    return _rotate(x, *angles, factor, 1.0)


def _compute(x: Tensor, cosine: Tensor, sine: Tensor, factor: float, direction: float) -> Tensor:
    x, cosine, sine = rows(x), cosine.contiguous(), sine.contiguous()
    out = _like(x)
    native.need().gs_rotate(
        x.data_ptr(), cosine.data_ptr(), sine.data_ptr(), out.data_ptr(), *x.shape, x.stride(0), x.stride(1),
        factor, direction, native.DTYPES[x.dtype],
    )  # fmt: skip
    return out


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


_rotate = define(
    "rotate(Tensor x, Tensor cosine, Tensor sine, float factor, float direction) -> Tensor",
    compute=_compute,
    shape=lambda x, cosine, sine, factor, direction: _like(x),
)


def _keep(ctx, inputs, output):
    _, cosine, sine, ctx.factor, ctx.direction = inputs
    ctx.save_for_backward(cosine, sine)


differentiate(
    _rotate,
    keep=_keep,
    backward=lambda ctx, grad: (_rotate(grad, *ctx.saved_tensors, ctx.factor, -ctx.direction), None, None, None, None),
)
