"""The forward pass for training on full rows: the same numbers as `Transformer.hidden`, in fixed shapes.

Packed documents never cross a row, so attention runs row by row in slices of queries that look only
at the keys they can see. Every shape is fixed, which lets torch.compile fuse the rest.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gemsmith.config import NORM_LAYOUTS, LayerSpec, ModelConfig

QUERIES_PER_SLICE = 256  # below it matrix products lose speed, above it more hidden keys are computed


def hidden_rows(
    weights: Mapping[str, Tensor],
    token_ids: Int[Tensor, "B T"],
    *,
    config: ModelConfig,
    documents: Int[Tensor, "B T"],
    positions: Int[Tensor, "B T"],
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "B T D"]:
    """Return the hidden states after the final norm of rows of packed documents.

    Args:
        weights: Parameters under the names of `Transformer.named_parameters()`, usually float32
            masters; they are rounded to `dtype` where they are used.
        documents: Which document a token belongs to, not falling along a row.
        positions: Place of a token within its document.
        dtype: What the arithmetic runs in; norms and softmax stay in float32.
    """
    x = F.embedding(token_ids, weights["embed_tokens.weight"]).to(dtype)
    x = x * torch.tensor(config.d_model**0.5, dtype=dtype)
    rotations: dict[tuple[int, float, float], tuple[Tensor, Tensor]] = {}
    for index, spec in enumerate(config.layers):
        key = (spec.head_dim, spec.rope_theta, spec.rope_factor)
        if key not in rotations:
            rotations[key] = _rotation(positions, spec)
        layer = _Layer(weights, index, spec, config.norm_eps)
        x = layer.block(x, documents, rotations[key])
    return _norm(x, weights["norm.weight"], config.norm_eps)


class _Layer:
    """One block's weights and arithmetic."""

    def __init__(self, weights: Mapping[str, Tensor], index: int, spec: LayerSpec, eps: float) -> None:
        self.weights, self.prefix, self.spec, self.eps = weights, f"layers.{index}.", spec, eps

    def block(self, x: Tensor, documents: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        attention, feed_forward = NORM_LAYOUTS[self.spec.norms]
        y = self.attend(self.norm(x, attention[0]), documents, rotation)
        x = x + self.norm(y, attention[1])
        y = self.norm(x, feed_forward[0])
        gate = F.gelu(self.project(y, "mlp.gate_proj"), approximate="tanh")
        y = self.project(gate * self.project(y, "mlp.up_proj"), "mlp.down_proj")
        return x + self.norm(y, feed_forward[1])

    def norm(self, x: Tensor, name: str | None) -> Tensor:
        return x if name is None else _norm(x, self.weights[f"{self.prefix}{name}.weight"], self.eps)

    def project(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{self.prefix}{name}.weight"].to(x.dtype))

    def heads(self, x: Tensor, name: str) -> Tensor:
        y = self.project(x, f"self_attn.{name}_proj").unflatten(-1, (-1, self.spec.head_dim))
        if self.spec.has_qk_norm and name != "v":
            y = _norm(y, self.weights[f"{self.prefix}self_attn.{name}_norm.weight"], self.eps)
        return y

    def attend(self, x: Tensor, documents: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        q = _rotate(self.heads(x, "q"), rotation) * self.spec.attn_scale
        k = _rotate(self.heads(x, "k"), rotation)
        y = attend_rows(q, k, self.heads(x, "v"), documents=documents, spec=self.spec)
        return self.project(y.flatten(-2), "self_attn.o_proj")


def attend_rows(
    q: Float[Tensor, "B T N H"],
    k: Float[Tensor, "B T K H"],
    v: Float[Tensor, "B T K H"],
    *,
    documents: Int[Tensor, "B T"],
    spec: LayerSpec,
) -> Float[Tensor, "B T N H"]:
    """Attend within each row: causal, inside one document, inside the window of a local layer.

    Args:
        q: Already rotated and multiplied by `attn_scale`.
    """
    n_rows, n_tokens, n_heads, head_dim = q.shape
    n_kv_heads, group = k.shape[2], n_heads // k.shape[2]
    k, v = k.permute(0, 2, 3, 1), v.transpose(1, 2)  # B K H T and B K T H
    pieces = []
    for start in range(0, n_tokens, QUERIES_PER_SLICE):
        stop = min(start + QUERIES_PER_SLICE, n_tokens)
        first = 0 if spec.window is None else max(0, start - spec.window + 1) // 64 * 64
        queries = q[:, start:stop].unflatten(2, (n_kv_heads, group)).permute(0, 2, 3, 1, 4).flatten(2, 3)
        scores = (queries @ k[..., first:stop]).float()  # B K (G T) S
        if spec.attn_softcap is not None:
            scores = spec.attn_softcap * torch.tanh(scores / spec.attn_softcap)
        visible = _visible(documents, start, stop, first, spec.window)
        scores = scores.unflatten(2, (group, stop - start)).masked_fill(~visible[:, None, None], float("-inf"))
        shares = scores.softmax(-1).flatten(2, 3).to(v.dtype)
        y = (shares @ v[:, :, first:stop]).unflatten(2, (group, stop - start))
        pieces.append(y.permute(0, 3, 1, 2, 4).reshape(n_rows, stop - start, n_heads, head_dim))
    return torch.cat(pieces, 1)


def _visible(documents: Tensor, start: int, stop: int, first: int, window: int | None) -> Bool[Tensor, "B T S"]:
    """Mark the keys `first:stop` that the queries `start:stop` may see."""
    query = torch.arange(start, stop)[:, None]
    key = torch.arange(first, stop)[None, :]
    near = key <= query if window is None else (key <= query) & (key > query - window)
    return near[None] & (documents[:, start:stop, None] == documents[:, None, first:stop])


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalize in float32 and multiply by 1 + weight before rounding back."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * (1.0 + weight.float())).to(x.dtype)


def _rotation(positions: Tensor, spec: LayerSpec) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of the rotary angles, one per pair of a head's numbers."""
    half = torch.arange(0, spec.head_dim, 2, dtype=torch.float32) / spec.head_dim
    angles = (positions.float() / spec.rope_factor)[..., None] / spec.rope_theta**half
    return angles.cos()[:, :, None], angles.sin()[:, :, None]  # B T 1 H/2


def _rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = rotation
    a, b = x.float().chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)
