"""Attention of one layer, and the plan of a forward pass: which queries meet which keys.

The plan is worked out once per pass and window, and every layer of that window follows it.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gemsmith.config import LayerSpec, ModelConfig
from gemsmith.model import ops
from gemsmith.model.cache import KVCache, held_positions
from gemsmith.model.layout import Layout, Segment, visible
from gemsmith.model.linear import Linear
from gemsmith.model.norm import RMSNorm

# Queries that share one slice of keys: small enough to skip most keys a causal or local mask hides.
QUERIES_PER_BLOCK = 512


@dataclass(frozen=True)
class Block:
    """Queries `rows` of the flat axis against keys `keys` of store row `slot`; mask None shows all."""

    rows: slice
    slot: int
    keys: slice
    mask: Bool[Tensor, "T S"] | None


class Pass:
    """One forward pass: its layout, its cache, and what all layers share of it."""

    def __init__(self, config: ModelConfig, layout: Layout, cache: KVCache | None) -> None:
        self.layout, self.cache = layout, cache
        self._angles: dict[tuple[int, float, float], tuple[Tensor, Tensor]] = {}
        self._plans: dict[tuple[int | None, int], list[Block]] = {}
        self._places: dict[int, Int[Tensor, " T"]] = {}
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def angles(self, spec: LayerSpec) -> tuple[Float[Tensor, "T half"], Float[Tensor, "T half"]]:
        """Return the rotary angles of the layer's base and scaling."""
        key = (spec.head_dim, spec.rope_theta, spec.rope_factor)
        if key not in self._angles:
            self._angles[key] = ops.rope_angles(
                self.layout.positions, head_dim=spec.head_dim, theta=spec.rope_theta, factor=spec.rope_factor
            )
        return self._angles[key]

    def keep(self, index: int, k: Float[Tensor, "T K H"], v: Float[Tensor, "T K H"]) -> None:
        """Store the keys and values layer `index` has computed, in the cache if there is one."""
        if self.cache is None:
            self._kept[index] = (k.transpose(0, 1)[None], v.transpose(0, 1)[None])
            return
        keys, values = self.cache.keys[index], self.cache.values[index]
        n_places = keys.shape[2]
        if n_places not in self._places:
            self._places[n_places] = self.layout.positions % n_places
        where = (self.layout.documents, slice(None), self._places[n_places])
        keys[where] = k.to(keys.dtype)
        values[where] = v.to(values.dtype)
        self._kept[index] = (keys, values)

    def kept(self, index: int) -> tuple[Float[Tensor, "n K S H"], Float[Tensor, "n K S H"]]:
        """Return the keys and values of layer `index`: the cache's, or this pass's own as one slot."""
        return self._kept[index]

    def plan(self, window: int | None, n_places: int) -> list[Block]:
        """Return which queries meet which keys in layers of this window."""
        if (window, n_places) not in self._plans:
            make = self._flat_blocks if self.cache is None else self._cached_blocks
            self._plans[window, n_places] = [
                block for segment in self.layout.segments if segment.slot >= 0 for block in make(segment, window, n_places)
            ]
        return self._plans[window, n_places]

    def _flat_blocks(self, segment: Segment, window: int | None, n_places: int) -> list[Block]:
        """Plan a document whose keys are all in this pass."""
        one_way = self.layout.direction == "causal" and self.layout.spans is None
        blocks = []
        for start in range(segment.start, segment.stop, QUERIES_PER_BLOCK):
            stop = min(start + QUERIES_PER_BLOCK, segment.stop)
            first = segment.start if window is None or not one_way else max(segment.start, start - window + 1)
            rows, keys = slice(start, stop), slice(first, stop if one_way else segment.stop)
            mask = None if keys.stop - keys.start == 1 else self._mask(rows, self._facts(keys), window)
            blocks.append(Block(rows, 0, keys, mask))
        return blocks

    def _cached_blocks(self, segment: Segment, window: int | None, n_places: int) -> list[Block]:
        """Plan a document whose earlier keys lie in the cache."""
        length = segment.position + segment.n_tokens
        rows, device = slice(segment.start, segment.stop), self.layout.positions.device
        wraps = length > n_places
        first = 0 if wraps or window is None else max(0, segment.position - window + 1)
        keys = slice(first, min(length, n_places))
        if segment.n_tokens == 1 and not wraps:
            return [Block(rows, segment.slot, keys, None)]
        positions = held_positions(length, n_places, device)[keys]
        spans = None
        if self.layout.spans is not None:
            spans = torch.full((n_places,), -1, dtype=torch.long, device=device)
            spans[self.layout.positions[rows] % n_places] = self.layout.spans[rows]
            spans = spans[keys]
        documents = torch.full_like(positions, segment.slot)
        return [Block(rows, segment.slot, keys, self._mask(rows, (documents, positions, spans), window))]

    def _facts(self, rows: slice) -> tuple[Tensor, Tensor, Tensor | None]:
        layout = self.layout
        return layout.documents[rows], layout.positions[rows], None if layout.spans is None else layout.spans[rows]

    def _mask(
        self, rows: slice, keys: tuple[Tensor, Tensor, Tensor | None], window: int | None
    ) -> Bool[Tensor, "T S"]:
        return visible(self._facts(rows), keys, window=window, direction=self.layout.direction)


class Attention(nn.Module):
    """Softmax attention with grouped heads, rotary positions, and optional cap, window and norms on q and k."""

    def __init__(self, config: ModelConfig, index: int, **factory: object) -> None:
        super().__init__()
        spec = config.layers[index]
        self.spec, self.source = spec, index if spec.kv_source is None else spec.kv_source
        d_query, d_key = spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim
        self.q_proj = Linear(config.d_model, d_query, **factory)
        self.o_proj = Linear(d_query, config.d_model, **factory)
        self.q_norm = RMSNorm(spec.head_dim, config.norm_eps, **factory) if spec.has_qk_norm else None
        if spec.kv_source is None:
            self.k_proj = Linear(config.d_model, d_key, **factory)
            self.v_proj = Linear(config.d_model, d_key, **factory)
            self.k_norm = RMSNorm(spec.head_dim, config.norm_eps, **factory) if spec.has_qk_norm else None

    def forward(self, x: Float[Tensor, "T D"], step: Pass) -> Float[Tensor, "T D"]:
        """Return what the tokens read from the tokens they may see."""
        spec, adapters = self.spec, step.layout.adapters
        angles = step.angles(spec)
        q = self.q_proj(x, adapters).unflatten(-1, (spec.n_heads, spec.head_dim))
        q = ops.rotate(q if self.q_norm is None else self.q_norm(q), angles)
        if spec.kv_source is None:
            k = self.k_proj(x, adapters).unflatten(-1, (spec.n_kv_heads, spec.head_dim))
            v = self.v_proj(x, adapters).unflatten(-1, (spec.n_kv_heads, spec.head_dim))
            step.keep(self.source, ops.rotate(k if self.k_norm is None else self.k_norm(k), angles), v)
        return self.o_proj(self._read(q, step).flatten(1), adapters)

    def _read(self, q: Float[Tensor, "T N H"], step: Pass) -> Float[Tensor, "T N H"]:
        """Return the values each query collects, block by block of the plan."""
        keys, values = step.kept(self.source)
        outputs, row = [], 0
        for block in step.plan(self.spec.window, keys.shape[2]):
            if block.rows.start > row:  # filler tokens in between see nothing
                outputs.append(q.new_zeros(block.rows.start - row, *q.shape[1:]))
            k, v = keys[block.slot][:, block.keys], values[block.slot][:, block.keys]
            outputs.append(
                ops.attention(
                    q[block.rows], k, v, block.mask, scale=self.spec.attn_scale, cap=self.spec.attn_softcap
                )
            )
            row = block.rows.stop
        if row < q.shape[0]:
            outputs.append(q.new_zeros(q.shape[0] - row, *q.shape[1:]))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)
