"""Products of a few rows with a matrix as it lies, at the speed it can be read: the fast equal of F.linear."""

import torch
from jaxtyping import Float
from torch import Tensor

from gemsmith.kernels import native
from gemsmith.kernels.operators import define

# Rows up to which reading the matrix takes longer than multiplying.
MAX_ROWS = 8


def is_suitable(x: Tensor, weight: Tensor) -> bool:
    """Tell whether the kernel serves this product: of few rows, without a gradient."""
    n_rows = x.numel() // max(1, x.shape[-1])
    has_gradient = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    fits = x.ndim > 0 and x.shape[-1] == weight.shape[1]
    return fits and 0 < n_rows <= MAX_ROWS and not has_gradient and native.serves(x, weight)


def linear(x: Float[Tensor, "*T d_in"], weight: Float[Tensor, "d_out d_in"]) -> Float[Tensor, "*T d_out"]:
    """Return x @ weight.T in the dtype of x, summed in float32."""
    return _linear(x, weight)


def _forward(x: Tensor, weight: Tensor) -> Tensor:
    d_out, d_in = weight.shape
    weight = weight.contiguous()
    wide = x.float().contiguous()
    y = torch.empty(*x.shape[:-1], d_out)
    native.need().gs_dense_linear(
        wide.data_ptr(), weight.data_ptr(), y.data_ptr(), x.numel() // max(1, d_in), d_in, d_out,
        native.DTYPES[weight.dtype],
    )  # fmt: skip
    return y.to(x.dtype)


_linear = define(
    "dense_linear(Tensor x, Tensor weight) -> Tensor",
    compute=_forward,
    shape=lambda x, weight: x.new_empty(*x.shape[:-1], weight.shape[0]),
)
