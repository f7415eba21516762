"""Attention of one layer, and the plan of a forward pass: which queries meet which keys.

The plan is worked out once per pass and window, and every layer of that window follows it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from gemsmith.config import LayerSpec, ModelConfig
from gemsmith.kernels.cached_attention import Run, Stored
from gemsmith.model import ops
from gemsmith.model.cache import KVCache, held_positions
from gemsmith.model.layout import Layout, Segment, visible
from gemsmith.model.linear import Device, Linear, of_one_input
from gemsmith.model.norm import RMSNorm

# Queries that share one slice of keys: fewer make small products, more compute keys that are hidden anyway.
QUERIES_PER_BLOCK = 128
# Keys of a cached document are taken in multiples of this: each new shape of a product costs a
# library its preparation anew, some 0.1 ms for oneDNN.
KEY_STEP = 64


@dataclass(frozen=True)
class Block:
    """Queries [start, stop) of each row against `keys` of the stored `slots`; mask None shows all."""

    queries: slice
    slots: slice
    keys: slice
    mask: Bool[Tensor, "B T S"] | None


# Document, position and span (if there are any) of tokens, each Int[B T].
Facts = tuple[Tensor, Tensor, Tensor | None]


class Pass:
    """One forward pass: its layout, its cache, and what all layers share of it."""

    def __init__(self, layout: Layout, cache: KVCache | None) -> None:
        self.layout, self.cache = layout, cache
        self._angles: dict[tuple[int, float, float], tuple[Tensor, Tensor]] = {}
        self._plans: dict[tuple[int | None, int], list[Block]] = {}
        self._places: dict[int, Int[Tensor, " T"]] = {}
        self._first_keys: dict[int | None, Int[Tensor, " T"]] = {}
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
            n_rows = self.layout.n_rows
            self._kept[index] = (
                k.unflatten(0, (n_rows, -1)).transpose(1, 2),
                v.unflatten(0, (n_rows, -1)).transpose(1, 2),
            )
            return
        keys, values = self.cache.keys[index], self.cache.values[index]
        n_places = keys.shape[2]
        if n_places not in self._places:
            self._places[n_places] = self.layout.positions % n_places
        where = (self.layout.documents, slice(None), self._places[n_places])
        self.cache.write(index, where, k, v)
        self._kept[index] = (keys, values)

    def forget(self, index: int) -> None:
        """Let go of what layer `index` kept, unless it lies in the cache anyway."""
        if self.cache is None:
            del self._kept[index]

    def first_keys(self, window: int | None) -> Int[Tensor, " T"] | None:
        """Return the first place on the flat axis that each token may see in layers of this window.

        With nothing cached, no spans and one direction, a token sees the places from there to its own,
        so this says what a mask would. None where it would not.
        """
        if self.cache is not None or self.layout.spans is not None or self.layout.direction != "causal":
            return None
        if window not in self._first_keys:
            self._first_keys[window] = self.layout.first_keys(window)
        return self._first_keys[window]

    @property
    def runs(self) -> list[Run] | None:
        """The documents of a pass over a cache whose tokens see all that came before them; None for other passes."""
        if self.cache is None or self.layout.spans is not None or self.layout.direction != "causal":
            return None
        return [(s.start, s.stop, s.slot, s.position) for s in self.layout.segments]

    def kept(self, index: int) -> tuple[Shaped[Tensor, "n K S H"], Shaped[Tensor, "n K S H"]]:
        """Return the keys and values of layer `index` as they lie: the cache's, or this pass's own."""
        return self._kept[index]

    def seen(
        self, index: int, block: Block, dtype: torch.dtype
    ) -> tuple[Float[Tensor, "n K S H"], Float[Tensor, "n K S H"]]:
        """Return the keys and values a block needs, for arithmetic in `dtype`."""
        if self.cache is not None:
            return self.cache.read(index, block.slots, block.keys, dtype)
        keys, values = self._kept[index]
        return keys[block.slots, :, block.keys], values[block.slots, :, block.keys]

    def plan(self, window: int | None, n_places: int) -> list[Block]:
        """Return which queries meet which keys in layers of this window, in the order of the rows."""
        if (window, n_places) not in self._plans:
            segments, blocks = self.layout.segments, []
            if self.cache is None:
                together = segments[:1] if self.layout.n_rows > 1 else segments
                for segment in together:
                    blocks += self._flat_blocks(segment, window) if segment.slot >= 0 else []
            elif self.layout.n_rows > 1:
                blocks = [self._cached_block(segments, window, n_places)]
            else:
                blocks = [self._cached_block((s,), window, n_places) for s in segments if s.slot >= 0]
            self._plans[window, n_places] = blocks
        return self._plans[window, n_places]

    def _flat_blocks(self, segment: Segment, window: int | None) -> list[Block]:
        """Plan tokens whose keys are all in this pass: one document, or all rows at once."""
        one_way = self.layout.direction == "causal" and self.layout.spans is None
        blocks = []
        for start in range(segment.start, segment.stop, QUERIES_PER_BLOCK):
            stop = min(start + QUERIES_PER_BLOCK, segment.stop)
            first = segment.start if window is None or not one_way else max(segment.start, start - window + 1)
            queries, keys = slice(start, stop), slice(first, stop if one_way else segment.stop)
            mask = None
            if keys.stop - keys.start > 1:
                mask = self._mask(self._facts(queries), self._facts(keys), window)
            blocks.append(Block(queries, slice(0, self.layout.n_rows), keys, mask))
        return blocks

    def _cached_block(self, segments: Sequence[Segment], window: int | None, n_places: int) -> Block:
        """Plan a document, or equal rows of them, whose earlier keys lie in the cache."""
        head = segments[0]
        queries = slice(head.start, head.stop) if self.layout.n_rows == 1 else slice(0, head.n_tokens)
        slots = slice(head.slot, head.slot + len(segments))
        length = max(s.position + s.n_tokens for s in segments)
        first = 0
        if window is not None and length <= n_places:
            first = max(0, min(s.position for s in segments) - window + 1)
        # Whole steps of keys, so that products of a few shapes serve a growing document.
        first, stop = first // KEY_STEP * KEY_STEP, -(-length // KEY_STEP) * KEY_STEP
        keys = slice(first, min(stop, n_places))
        device = self.layout.positions.device
        held = torch.stack([held_positions(s.position + s.n_tokens, n_places, device)[keys] for s in segments])
        documents = torch.arange(slots.start, slots.stop, device=device)[:, None].expand_as(held)
        facts = self._facts(queries)
        spans = None
        if facts[2] is not None:
            spans = torch.full((len(segments), n_places), -1, dtype=torch.long, device=device)
            spans = spans.scatter(1, facts[1] % n_places, facts[2])[:, keys]
        return Block(queries, slots, keys, self._mask(facts, (documents, held, spans), window))

    def _facts(self, tokens: slice) -> Facts:
        """Return document, position and span of some tokens of each row."""
        layout = self.layout
        documents, positions = (
            x.unflatten(0, (layout.n_rows, -1))[:, tokens] for x in (layout.documents, layout.positions)
        )
        spans = None if layout.spans is None else layout.spans.unflatten(0, (layout.n_rows, -1))[:, tokens]
        return documents, positions, spans

    def _mask(self, queries: Facts, keys: Facts, window: int | None) -> Bool[Tensor, "B T S"]:
        return visible(queries, keys, window=window, direction=self.layout.direction)


class Attention(nn.Module):
    """Softmax attention with grouped heads, rotary positions, and optional cap, window and norms on q and k."""

    def __init__(
        self, config: ModelConfig, index: int, *, dtype: torch.dtype | None = None, device: Device = None
    ) -> None:
        super().__init__()
        spec = config.layers[index]
        self.spec, self.source = spec, index if spec.kv_source is None else spec.kv_source
        self.is_read_again = any(layer.kv_source == index for layer in config.layers)
        d_query, d_key = spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim
        self.q_proj = Linear(config.d_model, d_query, dtype=dtype, device=device)
        self.o_proj = Linear(d_query, config.d_model, dtype=dtype, device=device)
        self.q_norm = RMSNorm(spec.head_dim, config.norm_eps, dtype=dtype, device=device) if spec.has_qk_norm else None
        if spec.kv_source is None:
            self.k_proj = Linear(config.d_model, d_key, dtype=dtype, device=device)
            self.v_proj = Linear(config.d_model, d_key, dtype=dtype, device=device)
            self.k_norm = (
                RMSNorm(spec.head_dim, config.norm_eps, dtype=dtype, device=device) if spec.has_qk_norm else None
            )

    def forward(self, x: Float[Tensor, "T D"], step: Pass) -> Float[Tensor, "T D"]:
        """Return what the tokens read from the tokens they may see."""
        spec, adapters = self.spec, step.layout.adapters
        angles = step.angles(spec)
        q, *k_v = of_one_input(self._projections(), x, adapters)
        q = q.unflatten(-1, (spec.n_heads, spec.head_dim))
        # The scale goes into q before its one rounding; scores are then q.k, or cap * tanh(q.k).
        factor = spec.attn_scale if spec.attn_softcap is None else spec.attn_scale / spec.attn_softcap
        q = ops.rotate(q if self.q_norm is None else self.q_norm(q), angles, factor=factor)
        if k_v:
            k, v = (y.unflatten(-1, (spec.n_kv_heads, spec.head_dim)) for y in k_v)
            step.keep(self.source, ops.rotate(k if self.k_norm is None else self.k_norm(k), angles), v)
        read = self._read(q, step).flatten(1)
        if spec.kv_source is None and not self.is_read_again:
            step.forget(self.source)
        return self.o_proj(read, adapters)

    def _projections(self) -> tuple[Linear, ...]:
        """Return what makes queries and, in layers with keys of their own, keys and values."""
        return (self.q_proj,) if self.spec.kv_source is not None else (self.q_proj, self.k_proj, self.v_proj)

    def _read(self, q: Float[Tensor, "T N H"], step: Pass) -> Float[Tensor, "T N H"]:
        """Return the values each query collects, block by block of the plan."""
        cap = self.spec.attn_softcap
        scale = 1.0 if cap is None else cap  # what is left of the scale, see forward
        keys, values = step.kept(self.source)
        if ops.has_ranged_attention(q, keys) and (first := step.first_keys(self.spec.window)) is not None:
            k, v = (x.transpose(1, 2).flatten(0, 1) for x in (keys, values))  # T K H, as they were kept
            return ops.ranged_attention(q, k, v, first, scale=scale, cap=cap)
        if (cache := step.cache) is not None and (runs := step.runs) is not None:
            scales = cache.key_scales.get(self.source), cache.value_scales.get(self.source)
            stored = Stored(keys, values, *scales)
            if ops.has_cached_attention(q, stored, runs):
                return ops.cached_attention(q, stored, runs, window=self.spec.window, scale=scale, cap=cap)
        rows = q.unflatten(0, (step.layout.n_rows, -1))  # B T N H
        outputs, done = [], 0
        for block in step.plan(self.spec.window, keys.shape[2]):
            if block.queries.start > done:  # filler tokens in between see nothing
                outputs.append(torch.zeros_like(rows[:, done : block.queries.start]))
            k, v = step.seen(self.source, block, q.dtype)
            queries = rows[:, block.queries]
            outputs.append(ops.attention(queries, k, v, block.mask, scale=scale, cap=cap))
            done = block.queries.stop
        if done < rows.shape[1]:
            outputs.append(torch.zeros_like(rows[:, done:]))
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)).flatten(0, 1)
