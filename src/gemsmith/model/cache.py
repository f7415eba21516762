"""Keys and values of the tokens already seen: rings for local layers, full rows for global ones.

A layer of window W needs the last W keys only. Its ring holds W + slack of them: the slack is what
a chunk of new tokens overwrites before it has attended, and what a rollback can take back.

A cache of dtype int8 holds every head's vector as whole numbers of 8 bits and one float32 scale.
"""

from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from gemsmith.config import ModelConfig
from gemsmith.errors import CacheError
from gemsmith.kernels.quantized import round_vectors

DEFAULT_SLACK = 512
# What keys and values can be held in.
CACHE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8)
_SCALE_BYTES = 4
# Slots, all heads, places: the index of some tokens in a layer's store.
Where = tuple[Int[Tensor, " T"], slice, Int[Tensor, " T"]]


class KVCache:
    """Keys and values by slot (one document each) and source layer.

    Attributes:
        capacity: Longest document, in tokens.
        slack: Places of a ring beyond its window: longest chunk of one pass, furthest rollback.
        lengths: Tokens written, per slot.
        dtype: Of the keys and values.
        keys, values: Per layer with keys of its own, [n_slots n_kv_heads places head_dim].
        key_scales, value_scales: Float32 [n_slots n_kv_heads places] per such layer of an int8 cache, whose
            vectors are about their stored numbers times the scale; empty for others.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        n_slots: int = 1,
        capacity: int | None = None,
        slack: int = DEFAULT_SLACK,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        if n_slots < 1 or slack < 1 or (capacity is not None and capacity < 1):
            raise CacheError(
                f"n_slots, capacity and slack must be at least 1; got {n_slots}, {capacity} and {slack}. "
                "Leave capacity out to hold the model's whole context."
            )
        if dtype not in CACHE_DTYPES:
            raise CacheError(
                f"dtype must be one of {', '.join(str(d).removeprefix('torch.') for d in CACHE_DTYPES)} for a cache; "
                f"got {dtype}. Choose one of them."
            )
        self.config, self.n_slots, self.slack, self.dtype = config, n_slots, slack, dtype
        self.capacity = config.max_seq_len if capacity is None else capacity
        self.lengths: Int[Tensor, " n_slots"] = torch.zeros(n_slots, dtype=torch.long)
        # A ring holds the window + slack positions before here: before the furthest one ever written and not
        # cleared, or before a later one where a resumed slot was given less than a ring has room for.
        self._furthest: Int[Tensor, " n_slots"] = torch.zeros(n_slots, dtype=torch.long)
        self.keys: dict[int, Shaped[Tensor, "n_slots K S H"]] = {}
        self.values: dict[int, Shaped[Tensor, "n_slots K S H"]] = {}
        self.key_scales: dict[int, Float[Tensor, "n_slots K S"]] = {}
        self.value_scales: dict[int, Float[Tensor, "n_slots K S"]] = {}
        for index, layer in enumerate(config.layers):
            if layer.kv_source is None:
                places = n_places(layer.window, self.capacity, slack)
                shape = (n_slots, layer.n_kv_heads, places, layer.head_dim)
                self.keys[index] = torch.zeros(shape, dtype=dtype, device=device)
                self.values[index] = torch.zeros(shape, dtype=dtype, device=device)
                if dtype == torch.int8:
                    self.key_scales[index] = torch.zeros(shape[:3], device=device)
                    self.value_scales[index] = torch.zeros(shape[:3], device=device)

    @property
    def stores(self) -> dict[str, dict[int, Tensor]]:
        """All that is stored, by kind and layer; scales of int8 caches only."""
        scales = {"key_scales": self.key_scales, "value_scales": self.value_scales}
        return {"keys": self.keys, "values": self.values, **scales}

    @property
    def n_bytes(self) -> int:
        """Bytes of all keys and values, scales included."""
        return sum(x.numel() * x.element_size() for x in self.tensors())

    def tensors(self) -> Iterator[Shaped[Tensor, "n_slots K S *H"]]:
        """Yield everything that is stored, one tensor after the other."""
        for layers in self.stores.values():
            yield from layers.values()

    @property
    def max_chunk(self) -> int:
        """Longest run of new tokens of one document that a single pass may bring."""
        windows = [layer.window for layer in self.config.layers if layer.window is not None]
        holds_all = all(window + self.slack >= self.capacity for window in windows)
        return self.capacity if holds_all else self.slack

    def reserve(self, slot: int, start: int, n_tokens: int) -> None:
        """Count `n_tokens` more tokens of a slot as written, beginning at position `start`.

        Raises:
            CacheError: The slot does not exist, `start` is not where it ends, or it would overflow.
        """
        if not 0 <= slot < self.n_slots:
            raise CacheError(f"slot must be one of the cache's {self.n_slots}; got {slot}. Make a larger cache.")
        length = int(self.lengths[slot])
        if start != length:
            raise CacheError(
                f"positions must continue where slot {slot} ends, at {length}; got {start}. Roll the cache back first."
            )
        if length + n_tokens > self.capacity:
            raise CacheError(
                f"a document must fit the cache's {self.capacity} tokens; got {length} + {n_tokens} in slot {slot}. "
                "Make the cache with a larger capacity."
            )
        self.lengths[slot] = length + n_tokens
        self._furthest[slot] = max(int(self._furthest[slot]), length + n_tokens)

    def write(self, index: int, where: Where, k: Float[Tensor, "T K H"], v: Float[Tensor, "T K H"]) -> None:
        """Store keys and values of layer `index` at places [slot, :, place], rounded to what the cache holds."""
        stores = ((self.keys, self.key_scales, k), (self.values, self.value_scales, v))
        for store, scales, x in stores:
            if self.dtype == torch.int8:
                store[index][where], found = round_vectors(x)
                scales[index][where] = torch.where(found.isfinite(), found, torch.nan)
            else:
                store[index][where] = x.to(self.dtype)

    def read(
        self, index: int, slots: slice, places: slice, dtype: torch.dtype
    ) -> tuple[Float[Tensor, "n K S H"], Float[Tensor, "n K S H"]]:
        """Return keys and values of layer `index` in `dtype`."""
        part = (slots, slice(None), places)
        k, v = self.keys[index][part], self.values[index][part]
        if self.dtype != torch.int8:
            return k.to(dtype), v.to(dtype)
        return (
            widened(k, self.key_scales[index][part], dtype),
            widened(v, self.value_scales[index][part], dtype),
        )

    def first_held(self, index: int, slot: int = 0) -> int:
        """Return the first position of a slot whose keys and values layer `index` still holds."""
        window = self.config.layers[index].window
        return 0 if window is None else max(0, int(self._furthest[slot]) - window - self.slack)

    def rollback(self, n_tokens: int, slot: int = 0) -> None:
        """Forget the last `n_tokens` of a slot, as if they had never been seen.

        Raises:
            CacheError: More than it holds, or so many that the rings no longer hold what came before.
        """
        length = int(self.lengths[slot])
        if not 0 <= n_tokens <= length:
            raise CacheError(
                f"rollback must lie within the {length} tokens of slot {slot}; got {n_tokens}. Clear it instead."
            )
        target = length - n_tokens
        if target == 0:
            return self.clear(slot)
        layers = self.config.layers
        if n_tokens and any(self.first_held(i, slot) > max(0, target - (layers[i].window or 0)) for i in self.keys):
            raise CacheError(
                f"rollback must return to {int(self._furthest[slot]) - self.slack} or later, for the rings hold no "
                f"window before it; got a return to {target}. Make the cache with more slack, or prefill the text."
            )
        self.lengths[slot] = target
        return None

    def clear(self, slot: int = 0) -> None:
        """Empty a slot."""
        self.lengths[slot] = 0
        self._furthest[slot] = 0

    def resume(self, slot: int, length: int, *, first_held: Mapping[int, int]) -> None:
        """Count a slot as holding `length` tokens whose keys and values have been put there from elsewhere.

        Args:
            first_held: By layer with keys of its own, the first position put there; all up to `length` follow.

        Raises:
            CacheError: The slot is not empty or does not exist, or they do not fit.
        """
        self.reserve(slot, 0, length)
        for index, first in first_held.items():
            window = self.config.layers[index].window
            if window is not None and first > 0:
                self._furthest[slot] = max(int(self._furthest[slot]), first + window + self.slack)

    def copy_slot(self, source: int, target: int) -> None:
        """Make slot `target` continue the document of slot `source`."""
        for store in self.tensors():
            store[target].copy_(store[source])
        self.lengths[target] = self.lengths[source]
        self._furthest[target] = self._furthest[source]


def n_places(window: int | None, capacity: int, slack: int) -> int:
    """Return how many keys a layer stores for documents of up to `capacity` tokens."""
    return capacity if window is None else min(capacity, window + slack)


def held_positions(length: int, places: int, device: torch.device | str | None = None) -> Int[Tensor, " S"]:
    """Return the position stored at each place of a ring after `length` tokens, -1 where none is.

    Position p lies at place p % places, so a full row is the ring that never wraps.
    """
    place = torch.arange(places, device=device)
    last = length - 1
    position = last - (last - place) % places
    return torch.where(position >= 0, position, -1)


def cache_bytes(
    config: ModelConfig,
    capacity: int,
    *,
    n_slots: int = 1,
    slack: int = DEFAULT_SLACK,
    dtype: torch.dtype = torch.bfloat16,
) -> int:
    """Return the bytes of a KVCache without making it: 2 n_kv_heads places vectors, summed over layers."""
    beside = _SCALE_BYTES if dtype == torch.int8 else 0
    return n_slots * sum(
        2 * layer.n_kv_heads * n_places(layer.window, capacity, slack) * (layer.head_dim * dtype.itemsize + beside)
        for layer in config.layers
        if layer.kv_source is None
    )


def widened(stored: Shaped[Tensor, "*n H"], scales: Float[Tensor, "*n"], dtype: torch.dtype) -> Float[Tensor, "*n H"]:
    """Return what vectors of an int8 cache stand for, computed in float32 and cast once."""
    return (stored.float() * scales[..., None]).to(dtype)
