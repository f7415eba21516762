"""A quantized matrix <-> its tensors in a file of the compressed-tensors layout.

Packed, values are unsigned (the smallest one is 0) and fill 32-bit words from their low end along a
row, zeros likewise down a column. Plain, they are int8 as they are.
Source: compressors/pack_quantized and compressors/naive_quantized of vllm-project/compressed-tensors 0.20.
"""

from collections.abc import Collection, Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Int32, UInt8
from torch import Tensor

from gemsmith.errors import CheckpointError
from gemsmith.kernels.quantized import Quantized, Scheme, pack_nibbles, unpack_nibbles
from gemsmith.weights.compressed import PACKED, PLAIN
from gemsmith.weights.header import WEIGHT_DTYPES, Entry
from gemsmith.weights.keys import PACKED_WEIGHT, SCALE, SHAPE, WEIGHT, ZERO
from gemsmith.weights.shards import Stored, dense

LEAVES = (WEIGHT, PACKED_WEIGHT, SCALE, ZERO, SHAPE)
_WORD_BYTES = 4
_SIGN = 0x80  # flipped, it turns int8 into a byte in which the smallest value is 0


def store(q: Quantized, layout: str) -> dict[str, Stored]:
    """Return the tensors of a matrix by the last part of their names."""
    found = {SCALE: dense(q.scales)}
    d_out, d_in = q.shape
    bits = q.scheme.bits
    if layout == PLAIN:
        found[WEIGHT] = dense(q.values)
    else:
        shape = (d_out, _n_words(d_in, bits))
        found[PACKED_WEIGHT] = Stored(shape, torch.int32, lambda: _words(_unsigned(q.values)))
        found[SHAPE] = dense(torch.tensor(q.shape))
    if q.zeros is not None:
        found[ZERO] = dense(q.zeros if layout == PLAIN else _pack_zeros(q.zeros, bits))
    return found


def read_scheme(name: str, stored: Mapping[str, Entry], shape: tuple[int, int], declared: Collection[Scheme]) -> Scheme:
    """Return the scheme the tensors of a module have, by their shapes alone.

    Args:
        name: Of the module, for errors.
        stored: Its tensors by the last part of their names.
        shape: (d_out, d_in) in the configuration.
        declared: What quantization_config allows.

    Raises:
        CheckpointError: A tensor is missing, or none of the schemes fits the tensors.
    """
    first = next(iter(stored.values()))
    wanted = (PACKED_WEIGHT, SHAPE, SCALE) if PACKED_WEIGHT in stored else (WEIGHT, SCALE)
    missing = next((leaf for leaf in wanted if leaf not in stored), None)
    if missing is not None:
        raise CheckpointError(
            f"checkpoint {str(first.path.parent)!r} has no tensor {name + '.' + missing!r}; the other tensors of this "
            "module are there. Was the save interrupted?"
        )
    for scheme in declared:
        if _is_stored_as(scheme, stored, shape):
            return scheme
    found = ", ".join(f"{leaf} {entry.dtype} {list(entry.shape)}" for leaf, entry in stored.items())
    raise CheckpointError(
        f"tensors of {name!r} must have the shapes of a declared scheme for {list(shape)}; got {found} in "
        f"{str(first.path)!r}. Do config.json and weights belong together?"
    )


def _is_stored_as(scheme: Scheme, stored: Mapping[str, Entry], shape: tuple[int, int]) -> bool:
    d_out, d_in = shape
    if (scheme.bits == 4 and d_in % 2) or (scheme.group is not None and d_in % scheme.group):
        return False
    n_groups = scheme.n_groups(d_in)
    wanted = {SCALE: (d_out, n_groups)}
    if PACKED_WEIGHT in stored:
        wanted |= {PACKED_WEIGHT: (d_out, _n_words(d_in, scheme.bits)), SHAPE: (2,)}
        zeros, dtypes = (_n_words(d_out, scheme.bits), n_groups), {PACKED_WEIGHT: ("I32",), ZERO: ("I32",)}
    else:
        wanted |= {WEIGHT: shape}
        zeros, dtypes = (d_out, n_groups), {WEIGHT: ("I8",), ZERO: ("I8",)}
        if scheme.bits == 4:
            return False
    if not scheme.is_symmetric:
        wanted[ZERO] = zeros
    dtypes |= {SCALE: tuple(WEIGHT_DTYPES), SHAPE: ("I64", "I32")}
    return {leaf: entry.shape for leaf, entry in stored.items()} == wanted and all(
        entry.dtype in dtypes[leaf] for leaf, entry in stored.items()
    )


def restore(name: str, tensors: Mapping[str, Tensor], shape: tuple[int, int], scheme: Scheme) -> Quantized:
    """Return a matrix from its tensors, of the shapes read_scheme checked; a view of them where it can be one.

    Raises:
        CheckpointError: The recorded shape is another one.
    """
    d_out, d_in = shape
    zeros = tensors.get(ZERO)
    if PACKED_WEIGHT not in tensors:
        return Quantized(scheme, shape, tensors[WEIGHT], tensors[SCALE], zeros)
    if tuple(tensors[SHAPE].tolist()) != shape:
        raise CheckpointError(
            f"{name}.{SHAPE} must be {list(shape)}; got {tensors[SHAPE].tolist()}. "
            "Do config.json and weights belong together?"
        )
    values = tensors[PACKED_WEIGHT].view(torch.uint8)[:, : d_in * scheme.bits // 8].contiguous()
    return Quantized(
        scheme,
        shape,
        values if scheme.bits == 4 else (values ^ _SIGN).view(torch.int8),
        tensors[SCALE],
        None if zeros is None else _unpack_zeros(zeros, d_out, scheme.bits),
    )


def layout_of(stored: Collection[str]) -> str:
    """Return how a module with tensors of these names lies in its file."""
    return PACKED if PACKED_WEIGHT in stored else PLAIN


def _n_words(n_values: int, bits: int) -> int:
    return -(-n_values * bits // (8 * _WORD_BYTES))


def _unsigned(values: Tensor) -> UInt8[Tensor, "..."]:
    return values if values.dtype == torch.uint8 else values.view(torch.uint8) ^ _SIGN


def _words(rows: UInt8[Tensor, "d_out n_bytes"]) -> Int32[Tensor, "d_out n_words"]:
    padded = F.pad(rows, (0, -rows.shape[1] % _WORD_BYTES))
    return padded.reshape(-1).view(torch.int32).view(rows.shape[0], -1)


def _pack_zeros(zeros: Tensor, bits: int) -> Int32[Tensor, "n_words n_groups"]:
    columns = _unsigned(zeros).T.contiguous()
    if bits == 4:
        columns = pack_nibbles(F.pad(columns, (0, columns.shape[1] % 2)))
    return _words(columns).T.contiguous()


def _unpack_zeros(packed: Int32[Tensor, "n_words n_groups"], d_out: int, bits: int) -> Tensor:
    columns = packed.T.reshape(-1).view(torch.uint8).view(packed.shape[1], -1)
    if bits == 4:
        return unpack_nibbles(columns)[:, :d_out].T.contiguous()
    return (columns[:, :d_out].T.contiguous() ^ _SIGN).view(torch.int8)
