"""Linears with weights in oneDNN's blocked order: the fast equal of ops.linear for bfloat16 on CPUs.

Rows of a plain weight reach one core at a time with gaps in between; in blocked order the reads of a
matrix-vector product are consecutive, which on the machines measured so far makes it half as fast again.
"""

import torch
from jaxtyping import Float
from torch import Tensor

# Rows the blocked order is chosen for. Measured from 1 to 4,096: all but 1 serve every count well.
_ROWS_HINT = 16


def is_available() -> bool:
    """Tell whether this torch and this processor have fast bfloat16 products in blocked order."""
    has_ops = hasattr(torch.ops.mkldnn, "_linear_pointwise") and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    return torch.backends.mkldnn.is_available() and has_ops and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def can_pack(weight: Tensor) -> bool:
    """Tell whether a weight is one that blocked order helps."""
    return weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and not weight.is_mkldnn and is_available()


def pack(weight: Float[Tensor, "d_out d_in"]) -> Tensor:
    """Return the weight in blocked order: an opaque tensor of the same shape; `to_dense` undoes it."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _ROWS_HINT)


def linear(x: Float[Tensor, "*T d_in"], weight: Tensor) -> Float[Tensor, "*T d_out"]:
    """Return what ops.linear returns, for a packed weight."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def gated_gelu(x: Float[Tensor, "T d_in"], gate: Tensor, up: Tensor) -> Float[Tensor, "T F"]:
    """Return ops.gated_gelu(linear(x, gate), linear(x, up)) for packed weights, fused into the two products."""
    opened = torch.ops.mkldnn._linear_pointwise(x, gate, None, "gelu", [], "tanh")
    return torch.ops.mkldnn._linear_pointwise.binary(x, opened, up, None, "mul")
