"""gelu(gate) * up in one pass that keeps only gate and up: the fast equal of ops.plain_gated_gelu."""

import torch
from jaxtyping import Float
from torch import Tensor

from gemsmith.kernels import native
from gemsmith.kernels.operators import define, differentiate, rows


def is_suitable(gate: Tensor, up: Tensor) -> bool:
    """Tell whether the kernels serve these tensors."""
    return gate.ndim == 2 and gate.shape == up.shape and gate.dtype == up.dtype and native.serves(gate, up)


def gated_gelu(gate: Float[Tensor, "T F"], up: Float[Tensor, "T F"]) -> Float[Tensor, "T F"]:
    """Return what ops.plain_gated_gelu returns."""
    return _gated_gelu(gate, up)


def gated_gelu_joined(both: Float[Tensor, "T twice_F"]) -> Float[Tensor, "T F"]:
    """Return ops.plain_gated_gelu of the two halves of one product; their gradient is one tensor too."""
    return _gated_gelu_joined(both)


def _forward(gate: Tensor, up: Tensor) -> Tensor:
    gate, up = rows(gate), rows(up)
    out = _like(gate)
    native.need().gs_gated_gelu(
        gate.data_ptr(), up.data_ptr(), out.data_ptr(), *gate.shape, gate.stride(0), up.stride(0),
        native.DTYPES[gate.dtype],
    )  # fmt: skip
    return out


def _write_gradients(grad: Tensor, gate: Tensor, up: Tensor, dgate: Tensor, dup: Tensor) -> None:
    grad, gate, up = rows(grad), rows(gate), rows(up)
    native.need().gs_gated_gelu_backward(
        grad.data_ptr(), gate.data_ptr(), up.data_ptr(), dgate.data_ptr(), dup.data_ptr(), *gate.shape,
        grad.stride(0), gate.stride(0), up.stride(0), dgate.stride(0), native.DTYPES[gate.dtype],
    )  # fmt: skip


def _backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    dgate, dup = _like(gate), _like(up)
    _write_gradients(grad, gate, up, dgate, dup)
    return dgate, dup


def _joined_backward(grad: Tensor, both: Tensor) -> Tensor:
    gradient = _like(both)
    _write_gradients(grad, *both.chunk(2, dim=-1), *gradient.chunk(2, dim=-1))
    return gradient


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


_gated_gelu = define(
    "gated_gelu(Tensor gate, Tensor up) -> Tensor", compute=_forward, shape=lambda gate, up: _like(gate)
)
_gated_gelu_backward = define(
    "gated_gelu_backward(Tensor grad, Tensor gate, Tensor up) -> (Tensor, Tensor)",
    compute=_backward,
    shape=lambda grad, gate, up: (_like(gate), _like(up)),
)
_gated_gelu_joined = define(
    "gated_gelu_joined(Tensor both) -> Tensor",
    compute=lambda both: _forward(*both.chunk(2, dim=-1)),
    shape=lambda both: _like(both.chunk(2, dim=-1)[0]),
)
_gated_gelu_joined_backward = define(
    "gated_gelu_joined_backward(Tensor grad, Tensor both) -> Tensor",
    compute=_joined_backward,
    shape=lambda grad, both: _like(both),
)


def _keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


differentiate(_gated_gelu, keep=_keep, backward=lambda ctx, grad: tuple(_gated_gelu_backward(grad, *ctx.saved_tensors)))
differentiate(
    _gated_gelu_joined, keep=_keep, backward=lambda ctx, grad: _gated_gelu_joined_backward(grad, *ctx.saved_tensors)
)
