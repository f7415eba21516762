"""Attention in blocks of queries small enough for the cache: the fast equal of ops.plain_attention."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

# Scores of one block, over all heads. A few megabytes of float32 stay in the second-level cache
# of common CPUs; larger blocks pay for main memory at every pass over the scores.
MAX_BLOCK_SCORES = 1 << 20


def attention(
    q: Float[Tensor, "T N H"],
    k: Float[Tensor, "K S H"],
    v: Float[Tensor, "K S H"],
    mask: Bool[Tensor, "T S"] | None,
    *,
    scale: float,
    cap: float | None,
) -> Float[Tensor, "T N H"]:
    """Return what ops.plain_attention returns, without ever holding all scores at once."""
    if cap is None and (mask is None or bool(mask.any(-1).all())):
        return _uncapped(q, k, v, mask, scale=scale)
    n_tokens, n_heads, _ = q.shape
    rows = max(1, MAX_BLOCK_SCORES // (n_heads * k.shape[1]))
    if rows >= n_tokens:
        return _block(q, k, v, mask, scale=scale, cap=cap)
    blocks = [
        _block(q[i : i + rows], k, v, None if mask is None else mask[i : i + rows], scale=scale, cap=cap)
        for i in range(0, n_tokens, rows)
    ]
    return torch.cat(blocks)


def _uncapped(
    q: Float[Tensor, "T N H"],
    k: Float[Tensor, "K S H"],
    v: Float[Tensor, "K S H"],
    mask: Bool[Tensor, "T S"] | None,
    *,
    scale: float,
) -> Float[Tensor, "T N H"]:
    """Return uncapped attention by torch's own fused kernel."""
    n_groups = q.shape[1] // k.shape[0]
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None], k[None], v[None], attn_mask=mask, scale=scale, enable_gqa=n_groups > 1
    )
    return out[0].transpose(0, 1)


def _block(
    q: Float[Tensor, "T N H"],
    k: Float[Tensor, "K S H"],
    v: Float[Tensor, "K S H"],
    mask: Bool[Tensor, "T S"] | None,
    *,
    scale: float,
    cap: float | None,
) -> Float[Tensor, "T N H"]:
    """Return attention of one block: a batched product per key head, its query heads stacked."""
    n_tokens, n_heads, head_dim = q.shape
    n_kv_heads, n_keys, _ = k.shape
    n_groups = n_heads // n_kv_heads
    stacked = q.view(n_tokens, n_kv_heads, n_groups, head_dim).permute(1, 2, 0, 3)
    stacked = stacked.reshape(n_kv_heads, n_groups * n_tokens, head_dim)
    scores = torch.bmm(stacked, k.transpose(1, 2)).float()  # K (G T) S
    scores = scores * scale if cap is None else torch.tanh(scores * (scale / cap)) * cap
    scores = scores.view(n_kv_heads, n_groups, n_tokens, n_keys)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(torch.float32).min)
    weights = torch.softmax(scores, dim=-1)
    if mask is not None:
        weights = weights.masked_fill(~mask, 0.0)
    out = torch.bmm(weights.to(v.dtype).view(n_kv_heads, n_groups * n_tokens, n_keys), v)
    out = out.view(n_kv_heads, n_groups, n_tokens, head_dim).permute(2, 0, 1, 3)
    return out.reshape(n_tokens, n_heads, head_dim)
