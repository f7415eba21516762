"""Attention along one axis of tokens, each of which sees a range of keys; scores are never stored.

The fast equal of ops.plain_attention under the mask `first[t] <= j <= t`, in value and gradient.
"""

import ctypes

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gemsmith.kernels import native
from gemsmith.kernels.operators import define, differentiate, rows


def is_suitable(q: Tensor, k: Tensor) -> bool:
    """Tell whether the kernels serve these tensors, [T, heads, head_dim] each."""
    return q.ndim == 3 and k.ndim == 3 and q.dtype == k.dtype and q.shape[1] % k.shape[1] == 0 and native.serves(q, k)


def attention(
    q: Float[Tensor, "T N H"],
    k: Float[Tensor, "T K H"],
    v: Float[Tensor, "T K H"],
    first: Int[Tensor, " T"],
    *,
    scale: float,
    cap: float | None,
) -> Float[Tensor, "T N H"]:
    """Return attention of token t to the keys first[t] <= j <= t, with scores cap * tanh(q.k * scale / cap).

    Documents, rows and windows all lie in `first`. A token with first[t] > t sees nothing and gets zeros.

    Args:
        first: The first key each token sees, as int32.
        cap: None leaves the scores alone.
    """
    return _attention(q, k, v, first, scale, cap or 0.0)[0]


class _Heads(ctypes.Structure):
    """gs_heads of csrc/attention.h: where a tensor [T, heads, head_dim] lies."""

    _fields_ = [("data", ctypes.c_void_p), ("token_stride", ctypes.c_int64), ("head_stride", ctypes.c_int64)]

    @classmethod
    def of(cls, x: Tensor) -> "_Heads":
        return cls(x.data_ptr(), x.stride(0), x.stride(1))


class _Call(ctypes.Structure):
    """gs_attention_call of csrc/attention.h."""

    _fields_ = [
        *((name, _Heads) for name in ("q", "k", "v", "grad")),
        *((name, ctypes.c_void_p) for name in ("first", "out", "logsumexp", "dq", "dk", "dv")),
        *((name, ctypes.c_int64) for name in ("n_tokens", "n_heads", "n_kv_heads", "head_dim")),
        *((name, ctypes.c_float) for name in ("scale", "cap")),
        ("dtype", ctypes.c_int32),
    ]


def _forward(q: Tensor, k: Tensor, v: Tensor, first: Tensor, scale: float, cap: float) -> tuple[Tensor, Tensor]:
    q, k, v, first = rows(q), rows(k), rows(v), first.contiguous()
    out, logsumexp = _outputs(q)
    call = _Call(
        _Heads.of(q), _Heads.of(k), _Heads.of(v), _Heads(), first.data_ptr(), out.data_ptr(), logsumexp.data_ptr(),
        None, None, None, q.shape[0], q.shape[1], k.shape[1], q.shape[2], scale, cap, native.DTYPES[q.dtype],
    )  # fmt: skip
    native.need().gs_attention(ctypes.byref(call))
    return out, logsumexp


def _backward(  # noqa: PLR0913
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    first: Tensor,
    scale: float,
    cap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    grad, q, k, v, first = rows(grad), rows(q), rows(k), rows(v), first.contiguous()
    out, logsumexp = out.contiguous(), logsumexp.contiguous()
    dq, dk, dv = _gradients(q, k, v)
    call = _Call(
        _Heads.of(q), _Heads.of(k), _Heads.of(v), _Heads.of(grad), first.data_ptr(), out.data_ptr(),
        logsumexp.data_ptr(), dq.data_ptr(), dk.data_ptr(), dv.data_ptr(), q.shape[0], q.shape[1], k.shape[1],
        q.shape[2], scale, cap, native.DTYPES[q.dtype],
    )  # fmt: skip
    native.need().gs_attention_backward(ctypes.byref(call))
    return dq, dk, dv


def _outputs(q: Tensor) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)


def _gradients(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in tensors)


_attention = define(
    "ranged_attention(Tensor q, Tensor k, Tensor v, Tensor first, float scale, float cap) -> (Tensor, Tensor)",
    compute=_forward,
    shape=lambda q, k, v, first, scale, cap: _outputs(q),
)
_attention_backward = define(
    "ranged_attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor logsumexp, Tensor first, "
    "float scale, float cap) -> (Tensor, Tensor, Tensor)",
    compute=_backward,
    shape=lambda grad, q, k, v, out, logsumexp, first, scale, cap: _gradients(q, k, v),
)


def _keep(ctx, inputs, output):
    q, k, v, first, *ctx.numbers = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, *output, first)


def _differentiate(ctx, grad, _):
    if grad is None:
        return None, None, None, None, None, None
    return *_attention_backward(grad, *ctx.saved_tensors, *ctx.numbers), None, None, None


differentiate(_attention, keep=_keep, backward=_differentiate)
