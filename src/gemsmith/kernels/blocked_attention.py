"""Attention in blocks of queries small enough for the cache: the fast equal of ops.plain_attention."""

from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from gemsmith.kernels import capped_attention

# Scores of one block, over all heads. A few megabytes of float32 stay in the second-level cache
# of common CPUs; larger blocks pay for main memory at every pass over the scores.
MAX_BLOCK_SCORES = 1 << 20
# Up to this many key elements, float32 products beat bfloat16 ones, which a library prepares per shape.
MAX_WIDENED_KEYS = 1 << 18


def attention(
    q: Float[Tensor, "B T N H"],
    k: Float[Tensor, "B K S H"],
    v: Float[Tensor, "B K S H"],
    mask: Bool[Tensor, "B T S"] | None,
    *,
    scale: float,
    cap: float | None,
) -> Float[Tensor, "B T N H"]:
    """Return what ops.plain_attention returns, without ever holding all scores at once."""
    if capped_attention.is_suitable(q, scale=scale, cap=cap) and cap is not None:
        return capped_attention.attention(q, k, v, mask, cap=cap)
    n_rows, n_tokens, n_heads, _ = q.shape
    size = max(1, MAX_BLOCK_SCORES // (n_rows * n_heads * k.shape[2]))
    attend = _uncapped if cap is None else partial(_capped, cap=cap)
    if cap is None or size >= n_tokens:
        return attend(q, k, v, mask, scale=scale)
    pieces = [
        attend(q[:, i : i + size], k, v, None if mask is None else mask[:, i : i + size], scale=scale)
        for i in range(0, n_tokens, size)
    ]
    return torch.cat(pieces, dim=1)


def _uncapped(
    q: Float[Tensor, "B T N H"],
    k: Float[Tensor, "B K S H"],
    v: Float[Tensor, "B K S H"],
    mask: Bool[Tensor, "B T S"] | None,
    *,
    scale: float,
) -> Float[Tensor, "B T N H"]:
    """Return uncapped attention by torch's own fused kernel, which gives zeros where nothing is seen."""
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k,
        v,
        attn_mask=None if mask is None else mask[:, None],
        scale=scale,
        enable_gqa=q.shape[2] > k.shape[1],
    )
    return out.transpose(1, 2)


def _capped(
    q: Float[Tensor, "B T N H"],
    k: Float[Tensor, "B K S H"],
    v: Float[Tensor, "B K S H"],
    mask: Bool[Tensor, "B T S"] | None,
    *,
    scale: float,
    cap: float,
) -> Float[Tensor, "B T N H"]:
    """Return capped attention: one product per key head, the query heads that share it stacked."""
    if k.numel() <= MAX_WIDENED_KEYS and k.dtype != torch.float32 and not torch.is_grad_enabled():
        return _capped(q.float(), k.float(), v.float(), mask, scale=scale, cap=cap).to(v.dtype)
    n_rows, n_tokens, n_heads, head_dim = q.shape
    n_kv_heads = k.shape[1]
    stacked = q.unflatten(2, (n_kv_heads, -1)).permute(0, 2, 3, 1, 4).flatten(2, 3)  # B K (G T) H
    scores = torch.matmul(stacked, k.transpose(2, 3)).float()  # B K (G T) S
    scores = torch.tanh(scores if scale == cap else scores * (scale / cap)) * cap
    scores = scores.unflatten(2, (-1, n_tokens))  # B K G T S
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], torch.finfo(torch.float32).min)
    weights = torch.softmax(scores, dim=-1)
    out = torch.matmul(weights.to(v.dtype).flatten(2, 3), v)  # B K (G T) H
    out = out.unflatten(2, (-1, n_tokens)).permute(0, 3, 1, 2, 4)  # B T K G H
    out = out.reshape(n_rows, n_tokens, n_heads, head_dim)
    return out if mask is None else out.masked_fill(~mask.any(-1)[:, :, None, None], 0.0)
