"""Capped attention of many bfloat16 queries on a CPU: a fast equal of ops.plain_attention.

A soft cap bounds every score, so exp needs no running maximum: weights are exp(cap * tanh(q.k)) as they
stand, their sum divides the output, and the tanh happens inside the product that makes the scores.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# exp(cap) times the number of keys must stay far below the largest float32, 3e38.
_MAX_CAP = 60.0
# Fewer queries than these are better served by one batched product over all heads.
_MIN_QUERIES = 16
# Scores of one key head and slice of queries: they stay in the second-level cache while four passes go over them.
_MAX_SCORES = 1 << 20
_MAX_SLICE = 256


def is_suitable(q: Tensor, *, scale: float, cap: float | None) -> bool:
    """Tell whether `attention` serves these queries: bfloat16 on a CPU, not trained, scaled beforehand."""
    return (
        cap is not None
        and scale == cap <= _MAX_CAP
        and q.shape[1] >= _MIN_QUERIES
        and q.device.type == "cpu"
        and q.dtype == torch.bfloat16
        and not (torch.is_grad_enabled() and q.requires_grad)
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def attention(
    q: Float[Tensor, "B T N H"],
    k: Float[Tensor, "B K S H"],
    v: Float[Tensor, "B K S H"],
    mask: Bool[Tensor, "B T S"] | None,
    *,
    cap: float,
) -> Float[Tensor, "B T N H"]:
    """Return ops.plain_attention(..., scale=cap, cap=cap): scores are cap * tanh(q.k)."""
    if k.stride(2) != k.shape[3]:  # rows with gaps, which oneDNN multiplies a thousand times slower
        k, v = k.contiguous(), v.contiguous()
    n_groups = q.shape[2] // k.shape[1]
    size = max(32, min(_MAX_SLICE, _MAX_SCORES // (n_groups * k.shape[2])))
    out = torch.empty_like(q)
    for row in range(q.shape[0]):
        for start in range(0, q.shape[1], size):
            part = slice(start, start + size)
            seen = None if mask is None else mask[row, part]
            _slice(q[row, part], k[row], v[row], seen, cap=cap, out=out[row, part])
    return out


def _slice(
    q: Float[Tensor, "T N H"],
    k: Float[Tensor, "K S H"],
    v: Float[Tensor, "K S H"],
    mask: Bool[Tensor, "T S"] | None,
    *,
    cap: float,
    out: Float[Tensor, "T N H"],
) -> None:
    """Write the attention of a slice of queries to `out`, one key head after the other."""
    n_tokens, n_heads, head_dim = q.shape
    n_groups = n_heads // k.shape[0]
    keys, hidden = (slice(0, k.shape[1]), None) if mask is None else _needed(mask)
    if keys.stop == keys.start:
        out.zero_()
        return
    for head in range(k.shape[0]):
        heads = slice(head * n_groups, (head + 1) * n_groups)
        stacked = q[:, heads].transpose(0, 1).reshape(n_groups * n_tokens, head_dim)
        capped = torch.ops.mkldnn._linear_pointwise(stacked, k[head, keys], None, "tanh", [], "")  # (G T) S
        weights = capped.float().mul_(cap).exp_()
        if mask is not None and hidden is not None:
            some = slice(hidden.start - keys.start, hidden.stop - keys.start)
            weights.view(n_groups, n_tokens, -1)[:, :, some].mul_(mask[:, hidden])
        total = weights.sum(-1, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny)
        collected = torch.mm(weights.to(v.dtype), v[head, keys]).float().div_(total)
        out[:, heads] = collected.view(n_groups, n_tokens, head_dim).transpose(0, 1)


def _needed(mask: Bool[Tensor, "T S"]) -> tuple[slice, slice | None]:
    """Return the range of keys somebody sees, and within it the range somebody does not see, if any."""
    seen = mask.any(0).nonzero()
    if not len(seen):
        return slice(0, 0), None
    keys = slice(int(seen[0]), int(seen[-1]) + 1)
    unseen = (~mask[:, keys].all(0)).nonzero()
    if not len(unseen):
        return keys, None
    return keys, slice(keys.start + int(unseen[0]), keys.start + int(unseen[-1]) + 1)
