"""The arithmetic of the network, written plainly; the only place that chooses a faster equal.

Precision, as the published reference code has it: norms in float32 with the weight applied as
1 + w before the cast; rotary angles in float32; the embedding scale rounded to the weight's dtype.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from gemsmith.kernels import blocked_attention, dense_linear, fused_geglu, fused_norm, fused_rope, rounded_linear
from gemsmith.kernels import cached_attention as cached
from gemsmith.kernels import quantized_linear as packed_quantized
from gemsmith.kernels import ranged_attention as ranged
from gemsmith.kernels.quantized import Quantized, plain_quantized_linear

_only_plain = False


@contextmanager
def plain_only() -> Iterator[None]:
    """Run everything inside with the plain functions, to compare the faster ones with.

    The switch is one for the whole process: torch.compile can look at it, threads share it.
    """
    global _only_plain
    before, _only_plain = _only_plain, True
    try:
        yield
    finally:
        _only_plain = before


def is_plain() -> bool:
    """Tell whether plain_only is in force."""
    return _only_plain


def linear(x: Float[Tensor, "*T d_in"], weight: Float[Tensor, "d_out d_in"]) -> Float[Tensor, "*T d_out"]:
    """Return x @ weight.T in the dtype of x, a weight of another dtype rounded to it."""
    if weight.dtype != x.dtype:
        return rounded_linear.linear(x, weight)
    if not _only_plain and dense_linear.is_suitable(x, weight):
        return dense_linear.linear(x, weight)
    return F.linear(x, weight)


def quantized_linear(
    x: Float[Tensor, "*T d_in"], weight: Quantized | packed_quantized.Packed
) -> Float[Tensor, "*T d_out"]:
    """Return plain_quantized_linear with x rounded to 8 bits, by the fastest way there is for these tensors.

    Where x has a gradient, x is not rounded.
    """
    if isinstance(weight, packed_quantized.Packed):
        if not _only_plain and packed_quantized.is_suitable(x, weight):
            return packed_quantized.linear(x, weight)
        weight = packed_quantized.unpack(weight)
    has_gradient = x.requires_grad and torch.is_grad_enabled()
    return plain_quantized_linear(x, weight, rounds_activations=not has_gradient)


def quantized_linears(
    x: Float[Tensor, "*T d_in"], weights: Sequence[packed_quantized.Packed]
) -> list[Float[Tensor, "*T _"]]:
    """Return quantized_linear(x, weight) of each weight, x rounded once where they may share it."""
    if not _only_plain and all(packed_quantized.is_suitable(x, weight) for weight in weights):
        return packed_quantized.linears(x, weights)
    return [quantized_linear(x, weight) for weight in weights]


def quantized_feed_forward(
    x: Float[Tensor, "T d_in"],
    gate: packed_quantized.Packed,
    up: packed_quantized.Packed,
    down: packed_quantized.Packed,
) -> Float[Tensor, "T d_out"]:
    """Return down(gelu(gate(x)) * up(x)) of matrices in few bits, by the fastest way there is for these tensors."""
    if not _only_plain and packed_quantized.can_feed(x, gate, up, down):
        return packed_quantized.feed_forward(x, gate, up, down)
    return quantized_linear(gated_gelu(*quantized_linears(x, (gate, up))), down)


def plain_rms_norm(x: Float[Tensor, "*T D"], weight: Float[Tensor, " D"], eps: float) -> Float[Tensor, "*T D"]:
    """Return x / rms(x) * (1 + weight), computed in float32 and cast once, at the end.

    Source: RMSNorm, arXiv:1910.07467; the offset of one is Gemma's: stored weights lie around 0.
    """
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * scale * (1.0 + weight.float())).to(x.dtype)


def rms_norm(x: Float[Tensor, "*T D"], weight: Float[Tensor, " D"], eps: float) -> Float[Tensor, "*T D"]:
    """Return what plain_rms_norm returns, by the fastest way there is for these tensors."""
    if not _only_plain and fused_norm.is_suitable(x, weight):
        return fused_norm.rms_norm(x, weight, eps)
    return plain_rms_norm(x, weight, eps)


def norm_add(
    residual: Float[Tensor, "*T D"], y: Float[Tensor, "*T D"], weight: Float[Tensor, " D"], eps: float
) -> Float[Tensor, "*T D"]:
    """Return residual + rms_norm(y, weight, eps), the norm rounded to its dtype before the sum."""
    if not _only_plain and fused_norm.is_suitable(y, weight):
        return fused_norm.norm_add(residual, y, weight, eps)
    return residual + plain_rms_norm(y, weight, eps)


def plain_gated_gelu(gate: Float[Tensor, "T F"], up: Float[Tensor, "T F"]) -> Float[Tensor, "T F"]:
    """Return gelu(gate) * up with the tanh form of GELU, which is Gemma's whatever its files say.

    Source: GLU variants, arXiv:2002.05202; GELU, arXiv:1606.08415, section 2.
    """
    return F.gelu(gate, approximate="tanh") * up


def gated_gelu(gate: Float[Tensor, "T F"], up: Float[Tensor, "T F"]) -> Float[Tensor, "T F"]:
    """Return what plain_gated_gelu returns, by the fastest way there is for these tensors."""
    if not _only_plain and fused_geglu.is_suitable(gate, up):
        return fused_geglu.gated_gelu(gate, up)
    return plain_gated_gelu(gate, up)


def softcap(scores: Float[Tensor, "*S"], cap: float | None) -> Float[Tensor, "*S"]:
    """Return cap * tanh(scores / cap); None leaves the scores alone.

    Source: Gemma 2 report, arXiv:2408.00118, section 2.
    """
    return scores if cap is None else torch.tanh(scores / cap) * cap


def rope_angles(
    positions: Int[Tensor, " T"], *, head_dim: int, theta: float, factor: float
) -> tuple[Float[Tensor, "T half"], Float[Tensor, "T half"]]:
    """Return cosine and sine of the rotary angle of each position and pair, in float32.

    Args:
        factor: Positions count 1 / factor of their distance (linear scaling).

    Source: RoFormer, arXiv:2104.09864; linear scaling, arXiv:2306.15595.
    """
    frequencies = rope_frequencies(head_dim=head_dim, theta=theta, factor=factor, device=positions.device)
    angles = positions.float()[:, None] * frequencies
    return angles.cos(), angles.sin()


def rope_frequencies(
    *, head_dim: int, theta: float, factor: float, device: torch.device | str | None = None
) -> Float[Tensor, " half"]:
    """Return the radians by which each pair of a head turns from position to position, in float32."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    return 1.0 / (theta**exponent) / factor


def plain_rotate(
    x: Float[Tensor, "T heads H"],
    angles: tuple[Float[Tensor, "T half"], Float[Tensor, "T half"]],
    *,
    factor: float = 1.0,
) -> Float[Tensor, "T heads H"]:
    """Return x with the pair (i, i + H/2) of every head turned by its angle and times `factor`, in float32."""
    cos, sin = angles[0][:, None], angles[1][:, None]
    if factor != 1.0:
        cos, sin = cos * factor, sin * factor
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def rotate(
    x: Float[Tensor, "T heads H"],
    angles: tuple[Float[Tensor, "T half"], Float[Tensor, "T half"]],
    *,
    factor: float = 1.0,
) -> Float[Tensor, "T heads H"]:
    """Return what plain_rotate returns, by the fastest way there is for these tensors."""
    if not _only_plain and fused_rope.is_suitable(x):
        return fused_rope.rotate(x, angles, factor=factor)
    return plain_rotate(x, angles, factor=factor)


def embedding_scale(d_model: int, dtype: torch.dtype) -> Float[Tensor, ""]:
    """Return sqrt(d_model) as the weight's dtype holds it: 55.5, not 55.43, for 3072 in bfloat16."""
    return torch.tensor(math.sqrt(d_model), dtype=dtype)


def plain_attention(
    q: Float[Tensor, "B T N H"],
    k: Float[Tensor, "B K S H"],
    v: Float[Tensor, "B K S H"],
    mask: Bool[Tensor, "B T S"] | None,
    *,
    scale: float,
    cap: float | None,
) -> Float[Tensor, "B T N H"]:
    """Return softmax(cap * tanh(q.k * scale / cap)) v over the keys each query may see.

    Query heads share key heads in groups of N / K. The cap comes before the mask: capping -inf
    would let hidden keys in again. A query that sees nothing gets zeros. The softmax is in float32.

    Args:
        mask: True where a query may attend; None where every query sees every key.
    """
    n_groups = q.shape[2] // k.shape[1]
    keys, values = (x.repeat_interleave(n_groups, dim=1) for x in (k, v))
    scores = torch.einsum("btnh,bnsh->bnts", q, keys).float() * scale
    scores = softcap(scores, cap)
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None], torch.finfo(torch.float32).min)
    weights = torch.softmax(scores, dim=-1)
    if mask is not None:
        weights = weights.masked_fill(~mask[:, None], 0.0)
    return torch.einsum("bnts,bnsh->btnh", weights.to(v.dtype), values)


def has_ranged_attention(q: Float[Tensor, "T N H"], k: Shaped[Tensor, "n K S H"]) -> bool:
    """Tell whether ranged_attention, which is a kernel alone, serves tensors such as these."""
    return not _only_plain and ranged.is_suitable(q, k[0].transpose(0, 1))


def ranged_attention(
    q: Float[Tensor, "T N H"],
    k: Float[Tensor, "T K H"],
    v: Float[Tensor, "T K H"],
    first: Int[Tensor, " T"],
    *,
    scale: float,
    cap: float | None,
) -> Float[Tensor, "T N H"]:
    """Return plain_attention on one flat axis, where token t sees the places first[t] to t, none if first[t] > t."""
    return ranged.attention(q, k, v, first, scale=scale, cap=cap)


def has_cached_attention(q: Float[Tensor, "T N H"], stored: cached.Stored, runs: Sequence[cached.Run]) -> bool:
    """Tell whether cached_attention, which is a kernel alone, serves tensors such as these."""
    return not _only_plain and cached.is_suitable(q, stored, runs)


def cached_attention(
    q: Float[Tensor, "T N H"],
    stored: cached.Stored,
    runs: Sequence[cached.Run],
    *,
    window: int | None,
    scale: float,
    cap: float | None,
) -> Float[Tensor, "T N H"]:
    """Return plain_attention of the tokens of each run to their own documents' tokens up to themselves."""
    return cached.attention(q, stored, runs, window=window, scale=scale, cap=cap)


def attention(
    q: Float[Tensor, "B T N H"],
    k: Float[Tensor, "B K S H"],
    v: Float[Tensor, "B K S H"],
    mask: Bool[Tensor, "B T S"] | None,
    *,
    scale: float,
    cap: float | None,
) -> Float[Tensor, "B T N H"]:
    """Return what plain_attention returns, by the fastest way there is for these tensors."""
    if _only_plain:
        return plain_attention(q, k, v, mask, scale=scale, cap=cap)
    return blocked_attention.attention(q, k, v, mask, scale=scale, cap=cap)
