"""One token of each of some documents through a whole network in one call: csrc/decode.h.

Equal to Transformer.hidden and .logits for one new token a document, but for rounding: between the matrices
everything stays in float32.
"""

import ctypes
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gemsmith.errors import ConfigError
from gemsmith.kernels import native
from gemsmith.kernels.quantized_linear import SCALE_DTYPES, Packed, group_units
from gemsmith.kernels.thread_choice import ThreadChoice

# What csrc/decode_attention.inl has room for on its stack.
MAX_HEAD_DIM = 1024
_CACHE_DTYPES = {**native.DTYPES, torch.int8: 3}
_Stored = Tensor | Packed | None


class _Delta(ctypes.Structure):
    """gs_delta of csrc/decode.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("lora_a", "lora_b", "scale")),
        ("rank", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("dtype", "scale_dtype")),
    ]


class _Matrix(ctypes.Structure):
    """gs_matrix of csrc/decode.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("values", "scales", "zeros")),
        *((name, ctypes.c_int64) for name in ("d_in", "d_out", "group_units")),
        *((name, ctypes.c_int32) for name in ("bits", "scale_dtype")),
        ("delta", ctypes.c_void_p),
    ]


_MATRICES = ("q", "k", "v", "o", "gate", "up", "down")
_NORMS = ("before_attention", "after_attention", "before_feed_forward", "after_feed_forward", "q_norm", "k_norm")
_INTEGERS = ("token_ids", "positions", "slots", "adapters")
_CACHE = ("keys", "values", "key_scales", "value_scales")


class _Layer(ctypes.Structure):
    """gs_decode_layer of csrc/decode.h."""

    _fields_ = [
        *((name, _Matrix) for name in _MATRICES),
        *((name, ctypes.c_void_p) for name in (*_NORMS, "frequencies", *_CACHE)),
        *((name, ctypes.c_int64) for name in ("n_heads", "n_kv_heads", "head_dim", "n_places", "window")),
        *((name, ctypes.c_float) for name in ("scale", "cap")),
    ]


class _Call(ctypes.Structure):
    """gs_decode_call of csrc/decode.h."""

    _fields_ = [
        ("layers", ctypes.c_void_p),
        ("table", _Matrix),
        *((name, ctypes.c_void_p) for name in ("last_norm", *_INTEGERS, "logits", "scratch")),
        *((name, ctypes.c_int64) for name in ("n_layers", "n_rows", "capacity", "n_threads")),
        *((name, ctypes.c_float) for name in ("eps", "embedding_scale", "cap")),
        *((name, ctypes.c_int32) for name in ("norm_dtype", "cache_dtype")),
    ]


@dataclass(frozen=True)
class Delta:
    """The low-rank adapters of one matrix; the tensors are read where they lie.

    Attributes:
        lora_a, lora_b: Of one dtype, float32 or bfloat16; at least one adapter and rank 1.
        scale: Float32 or bfloat16.
    """

    lora_a: Float[Tensor, "A rank d_in"]
    lora_b: Float[Tensor, "A d_out rank"]
    scale: Float[Tensor, " A"]


@dataclass(frozen=True)
class Layer:
    """A block as the kernel sees it.

    Attributes:
        matrices: By the names q, k, v, o, gate, up and down; without k and v where a layer has none.
        norms: Weights by the names _NORMS has, those there are.
        frequencies: Float32 [head_dim / 2], radians per position.
        cache: keys and values [slots, K, places, H], and of 8-bit caches key_scales and value_scales.
        window: 0 for a global layer.
        cap: 0 for none.
    """

    matrices: dict[str, Tensor | Packed]
    norms: dict[str, Tensor]
    frequencies: Float[Tensor, " half"]
    cache: dict[str, Tensor]
    n_heads: int
    window: int
    scale: float
    cap: float


@dataclass(frozen=True)
class Network:
    """A network as the kernel sees it.

    Attributes:
        table: Embedding and head.
        capacity: Positions lie below it.
        cap: Of the logits, 0 for none.
    """

    layers: Sequence[Layer]
    table: Tensor | Packed
    last_norm: Tensor
    capacity: int
    eps: float
    embedding_scale: float
    cap: float


class DecodeStep:
    """Reads one token a document; everything that stays the same from step to step is prepared once.

    Args:
        n_threads: As many, or `fewer` where those turn out faster. The numbers are the same.
    """

    def __init__(self, network: Network, *, max_rows: int, n_threads: int, fewer: int | None = None) -> None:
        self._kept = network  # the library holds addresses of its tensors
        self._layers = (_Layer * len(network.layers))(*(_layer(layer) for layer in network.layers))
        self._vocab_size = network.table.shape[0]
        self._integers = (ctypes.c_int64 * (len(_INTEGERS) * max_rows))()
        self._logits = torch.empty(max_rows, self._vocab_size)
        at, item = ctypes.addressof(self._integers), 8 * max_rows
        self._max_rows = max_rows
        self._call = _Call(
            layers=ctypes.addressof(self._layers), table=_matrix(network.table),
            last_norm=network.last_norm.data_ptr(), logits=self._logits.data_ptr(), n_layers=len(network.layers),
            capacity=network.capacity, eps=network.eps, embedding_scale=network.embedding_scale, cap=network.cap,
            norm_dtype=native.DTYPES[network.last_norm.dtype],
            cache_dtype=_CACHE_DTYPES[network.layers[0].cache["keys"].dtype],
            **{name: at + i * item for i, name in enumerate(_INTEGERS)},
        )  # fmt: skip
        self._n_threads, self._choice = n_threads, ThreadChoice(fewer, n_threads) if fewer is not None else None
        self._address, self._run = ctypes.byref(self._call), native.need().gs_decode
        self.attach([{} for _ in network.layers])

    def attach(self, deltas: Sequence[Mapping[str, Delta]]) -> None:
        """Put these deltas on the matrices, by layer and the names of Layer.matrices, and no others."""
        self._deltas = deltas
        found = [(getattr(self._layers[i], name), delta) for i, x in enumerate(deltas) for name, delta in x.items()]
        self._attached = (_Delta * len(found))(*(_delta(delta) for _, delta in found))
        for layer in self._layers:
            for name in _MATRICES:
                getattr(layer, name).delta = None
        for place, (matrix, _) in enumerate(found):
            matrix.delta = ctypes.addressof(self._attached) + place * ctypes.sizeof(_Delta)
        self._n_adapters = min((len(delta.scale) for _, delta in found), default=None)
        self._call.n_rows, self._call.n_threads = self._max_rows, self._n_threads
        n_bytes = ctypes.c_int64()
        native.need().gs_decode_scratch(self._address, ctypes.addressof(n_bytes))
        self._scratch = torch.empty(n_bytes.value + 64, dtype=torch.uint8)
        self._call.scratch = (self._scratch.data_ptr() + 63) // 64 * 64

    def __call__(
        self,
        token_ids: Sequence[int],
        positions: Sequence[int],
        slots: Sequence[int],
        adapters: Sequence[int] | None = None,
    ) -> Float[Tensor, "B V"]:
        """Return the logits after each token, float32; the next call overwrites them.

        Args:
            slots: Of the cache, no one twice; each has all positions before its token's.
            adapters: Which low-rank delta each token uses, -1 for none; None lets every token use number 0.

        Raises:
            ConfigError: A matrix has no delta of such a number.
        """
        n, room = len(token_ids), self._max_rows
        chosen = [0] * n if adapters is None else list(adapters)
        assert 0 < n <= room
        assert len(positions) == len(slots) == len(chosen) == n
        assert min(token_ids) >= 0
        assert max(token_ids) < self._vocab_size
        assert max(positions) < self._call.capacity
        if self._n_adapters is not None and max(chosen) >= self._n_adapters:
            raise ConfigError(
                f"adapters must be below {self._n_adapters}, as many as every delta has; got {chosen}. "
                "Take -1 for tokens without one."
            )
        for i, numbers in enumerate((token_ids, positions, slots, chosen)):
            self._integers[i * room : i * room + n] = list(numbers)
        self._call.n_rows = n
        if self._choice is None:
            self._run(self._address)
        else:
            self._call.n_threads, started = self._choice.n_threads, time.perf_counter()
            self._run(self._address)
            self._choice.note(time.perf_counter() - started)
        return self._logits[:n]


def can_take(weight: _Stored) -> bool:
    """Tell whether a matrix or a norm's weight is in a form the kernel reads, which knows no strides."""
    if isinstance(weight, Packed):
        parts = (weight.values, weight.scales, weight.zeros)
        return all(x is None or (x.device.type == "cpu" and x.is_contiguous()) for x in parts)
    return weight is not None and native.serves(weight) and weight.is_contiguous()


def _matrix(matrix: _Stored) -> _Matrix:
    if matrix is None:
        return _Matrix()
    if isinstance(matrix, Packed):
        (d_out, d_in), zeros = matrix.shape, matrix.zeros
        return _Matrix(
            matrix.values.data_ptr(), matrix.scales.data_ptr(), None if zeros is None else zeros.data_ptr(),
            d_in, d_out, group_units(matrix), matrix.scheme.bits, SCALE_DTYPES[matrix.scales.dtype],
        )  # fmt: skip
    return _Matrix(
        values=matrix.data_ptr(), d_in=matrix.shape[1], d_out=matrix.shape[0], bits=8 * matrix.element_size()
    )


def _delta(delta: Delta) -> _Delta:
    a, b, scale = delta.lora_a, delta.lora_b, delta.scale
    return _Delta(
        a.data_ptr(), b.data_ptr(), scale.data_ptr(), a.shape[1], native.DTYPES[a.dtype], native.DTYPES[scale.dtype]
    )


def _layer(layer: Layer) -> _Layer:
    keys = layer.cache["keys"]
    found = _Layer(n_heads=layer.n_heads, window=layer.window, scale=layer.scale, cap=layer.cap)
    found.n_kv_heads, found.n_places, found.head_dim = keys.shape[1:]
    found.frequencies = layer.frequencies.data_ptr()
    for name in _MATRICES:
        setattr(found, name, _matrix(layer.matrices.get(name)))
    for name, tensor in (*layer.norms.items(), *layer.cache.items()):
        setattr(found, name, tensor.data_ptr())
    return found
