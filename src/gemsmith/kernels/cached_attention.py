"""Attention of many tokens to rings and full rows of a cache; scores are never stored.

The fast equal of ops.plain_attention under layout.visible, for one direction and no spans.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from gemsmith.kernels import native
from gemsmith.kernels.operators import define, rows

# First and last + 1 token of a document on the axis of a pass, its slot, and the position of the first.
Run = tuple[int, int, int, int]
CACHE_DTYPES = {**native.DTYPES, torch.int8: 3}
# With fewer tokens of each document, most of a tile would be empty.
LEAST_TOKENS = 8


@dataclass(frozen=True)
class Stored:
    """Keys and values of one layer: [slots, K, places, H], position p at place p % places.

    Attributes:
        key_scales, value_scales: Float32 [slots, K, places] where the cache has 8 bits.
    """

    keys: Shaped[Tensor, "n K S H"]
    values: Shaped[Tensor, "n K S H"]
    key_scales: Float[Tensor, "n K S"] | None = None
    value_scales: Float[Tensor, "n K S"] | None = None


def is_suitable(q: Tensor, stored: Stored, runs: Sequence[Run]) -> bool:
    """Tell whether the kernel serves these tensors, q being [T, heads, head_dim], and is worth its call."""
    keys = stored.keys
    return (
        max(stop - start for start, stop, _, _ in runs) >= LEAST_TOKENS
        and native.serves(q)
        and keys.device == q.device
        and keys.dtype in CACHE_DTYPES
        and keys.is_contiguous()
        and stored.values.is_contiguous()
        and q.shape[1] % keys.shape[1] == 0
        and not (torch.is_grad_enabled() and q.requires_grad)
    )


def attention(
    q: Float[Tensor, "T N H"],
    stored: Stored,
    runs: Sequence[Run],
    *,
    window: int | None,
    scale: float,
    cap: float | None,
) -> Float[Tensor, "T N H"]:
    """Return attention of each token to those of its document up to itself, which the cache holds already.

    Scores are cap * tanh(q.k * scale / cap). Tokens outside all runs get zeros.

    Args:
        window: Keys each token sees, its own included; None for all.
        cap: None leaves the scores alone.
    """
    numbers = [number for run in runs if run[2] >= 0 for number in run]
    return _attention(
        q, stored.keys, stored.values, stored.key_scales, stored.value_scales, numbers, window or 0, scale, cap or 0.0
    )


class _Call(ctypes.Structure):
    """gs_cached_attention_call of csrc/cached_attention.h."""

    _fields_ = [
        ("q", ctypes.c_void_p),
        ("token_stride", ctypes.c_int64),
        ("head_stride", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("keys", "values", "key_scales", "value_scales", "segments", "out")),
        *((name, ctypes.c_int64) for name in ("n_segments", "n_heads", "n_kv_heads", "head_dim", "n_places", "window")),
        *((name, ctypes.c_float) for name in ("scale", "cap")),
        *((name, ctypes.c_int32) for name in ("dtype", "cache_dtype")),
    ]


def _compute(  # noqa: PLR0913
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    key_scales: Tensor | None,
    value_scales: Tensor | None,
    runs: list[int],
    window: int,
    scale: float,
    cap: float,
) -> Tensor:
    q, segments = rows(q), (ctypes.c_int64 * len(runs))(*runs)
    is_whole = sum(runs[1::4]) - sum(runs[::4]) == len(q)
    out = q.new_empty(q.shape) if is_whole else q.new_zeros(q.shape)
    scales = (None if x is None else x.data_ptr() for x in (key_scales, value_scales))
    call = _Call(
        q.data_ptr(), q.stride(0), q.stride(1), keys.data_ptr(), values.data_ptr(), *scales,
        ctypes.addressof(segments), out.data_ptr(), len(runs) // 4, q.shape[1], keys.shape[1], q.shape[2],
        keys.shape[2], window, scale, cap, native.DTYPES[q.dtype], CACHE_DTYPES[keys.dtype],
    )  # fmt: skip
    native.need().gs_cached_attention(ctypes.byref(call))
    return out


_attention = define(
    "cached_attention(Tensor q, Tensor keys, Tensor values, Tensor? key_scales, Tensor? value_scales, int[] runs, "
    "int window, float scale, float cap) -> Tensor",
    compute=_compute,
    shape=lambda q, keys, values, key_scales, value_scales, runs, window, scale, cap: q.new_empty(q.shape),
)
