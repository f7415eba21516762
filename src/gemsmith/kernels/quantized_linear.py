"""Linears of matrices in 4 or 8 bits by integer products: the fast equal of quantized.plain_quantized_linear.

The form they read is described in csrc/quant.h. It is one for all instruction sets.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from gemsmith.kernels import early_packing, native
from gemsmith.kernels.operators import define
from gemsmith.kernels.quantized import ACTIVATION_GROUP, Quantized, Scheme, pack_nibbles

# Of csrc/quant.h.
_BLOCK = 16
# Fewer rows than these gain nothing from a gated layer in one call.
_LEAST_FED_ROWS = 16
SCALE_DTYPES = {**native.DTYPES, torch.float16: 2}


@dataclass(frozen=True)
class Packed:
    """A matrix in few bits in the order the kernels read it: blocks of 16 outputs.

    Attributes:
        values: uint8 [blocks, units of 32 inputs, 64 * bits].
        scales: [blocks, groups, 16], in the dtype they came in.
        zeros: uint8 as `scales`; None where the middle value means 0.
    """

    scheme: Scheme
    shape: tuple[int, int]
    values: Tensor
    scales: Tensor
    zeros: Tensor | None


def group_units(packed: Packed) -> int:
    """Return how many units of 32 inputs share a scale."""
    return (packed.scheme.group or 0) // ACTIVATION_GROUP or packed.values.shape[1]


def can_pack(q: Quantized) -> bool:
    """Tell whether the kernels know this scheme here."""
    group = q.scheme.group
    return native.is_loaded() and q.values.device.type == "cpu" and (group is None or group % ACTIVATION_GROUP == 0)


def pack(q: Quantized) -> Packed:
    """Return the matrix in the order the kernels read it, all threads at work."""
    d_out, d_in = q.shape
    n_blocks, n_units = -(-d_out // _BLOCK), -(-d_in // ACTIVATION_GROUP)
    values, size = q.values.contiguous(), (n_blocks, n_units, 64 * q.scheme.bits)
    packed = _packed_early(values, d_in, d_out, q.scheme.bits)
    if packed is None:
        packed = torch.empty(size, dtype=torch.uint8)
        native.need().gs_pack_quantized(values.data_ptr(), packed.data_ptr(), d_in, d_out, q.scheme.bits)
    zeros = q.zeros
    if zeros is not None:
        zeros = _blocks(_flip(zeros) if q.scheme.bits == 8 else zeros)
    return Packed(q.scheme, q.shape, packed.view(size), _blocks(q.scales), zeros)


def pack_blocks(raw: UInt8[Tensor, "d_out n_bytes"], scheme: Scheme) -> Packed:
    """Return a matrix in the order the kernels read it, from rows of GGUF's Q8_0 or Q4_0.

    Args:
        raw: Rows of blocks of 34 or 18 bytes: a float16 scale and the values of 32 inputs.
        scheme: 8 or 4 bits, a scale for each 32 inputs.
    """
    d_out, n_units = len(raw), raw.shape[1] // (2 + 4 * scheme.bits)
    size = (-(-d_out // _BLOCK), n_units)
    packed = torch.empty(*size, 64 * scheme.bits, dtype=torch.uint8)
    scales = torch.empty(*size, _BLOCK, dtype=torch.float16)
    shape = (d_out, n_units * ACTIVATION_GROUP)
    native.need().gs_pack_blocks(
        raw.contiguous().data_ptr(), packed.data_ptr(), scales.data_ptr(), shape[1], d_out, scheme.bits
    )
    return Packed(scheme, shape, packed, scales, None)


def unpack(packed: Packed, rows: Int[Tensor, " R"] | None = None) -> Quantized:
    """Return the matrix in its plain order, or the matrix of some of its rows."""
    (d_out, d_in), bits = packed.shape, packed.scheme.bits
    rows = torch.arange(d_out) if rows is None else rows
    scales = _rows(packed.scales, rows)
    zeros = None if packed.zeros is None else _rows(packed.zeros, rows)
    lanes = packed.values.view(len(packed.values), -1, _BLOCK, 4)[rows // _BLOCK, :, rows % _BLOCK]
    if bits == 8:
        values = _flip(lanes.flatten(1))[:, :d_in].contiguous()
        zeros = None if zeros is None else _flip(zeros)
    else:
        inputs = torch.cat((lanes & 15, lanes >> 4), dim=-1).flatten(1)
        values = pack_nibbles(inputs[:, :d_in])
    return Quantized(packed.scheme, (len(rows), d_in), values, scales, zeros)


def is_suitable(x: Tensor, packed: Packed) -> bool:
    """Tell whether the kernels serve this input: they have no gradient."""
    fits = x.ndim > 0 and x.shape[-1] == packed.shape[1] and packed.values.device == x.device
    return fits and native.serves(x) and not (x.requires_grad and torch.is_grad_enabled())


def linear(x: Float[Tensor, "*T d_in"], packed: Packed) -> Float[Tensor, "*T d_out"]:
    """Return plain_quantized_linear(x, q, rounds_activations=True)."""
    return linears(x, [packed])[0]


def linears(x: Float[Tensor, "*T d_in"], matrices: Sequence[Packed]) -> list[Float[Tensor, "*T _"]]:
    """Return linear(x, matrix) for each of the matrices, x rounded once where they may share it."""
    found = _linears(x.reshape(-1, x.shape[-1]), *_described(matrices))
    return [y.view(*x.shape[:-1], y.shape[1]) for y in found]


def can_feed(x: Tensor, gate: Packed, up: Packed, down: Packed) -> bool:
    """Tell whether feed_forward serves these matrices and is worth its call."""
    return (
        x.ndim == 2
        and len(x) >= _LEAST_FED_ROWS
        and all(is_suitable(x, packed) for packed in (gate, up))
        and down.values.device == x.device
        and down.shape[1] == gate.shape[0]
        and (gate.scheme, gate.shape, gate.scales.dtype) == (up.scheme, up.shape, up.scales.dtype)
    )


def feed_forward(x: Float[Tensor, "T d_in"], gate: Packed, up: Packed, down: Packed) -> Float[Tensor, "T d_out"]:
    """Return linear(plain_gated_gelu(linear(x, gate), linear(x, up)), down), equal in every bit to the three calls.

    What lies between the products is never stored.
    """
    return _feed_forward(x, *_described((gate, up, down)))


class _Call(ctypes.Structure):
    """gs_quant_call of csrc/quant.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "y", "values", "scales", "zeros", "scratch")),
        *((name, ctypes.c_int64) for name in ("n_rows", "d_in", "d_out", "group_units")),
        *((name, ctypes.c_int32) for name in ("bits", "dtype", "scale_dtype")),
    ]


def _described(matrices: Sequence[Packed]) -> tuple[list[Tensor], list[Tensor], list[Tensor | None], list[int]]:
    """Return the matrices as operators take them: values, scales, zeros, and (group_units, d_in, d_out) of each."""
    sizes = [n for m in matrices for n in (group_units(m), m.shape[1], m.shape[0])]
    return [m.values for m in matrices], [m.scales for m in matrices], [m.zeros for m in matrices], sizes


def _calls(
    x: Tensor,
    ys: Sequence[Tensor | None],
    values: list[Tensor],
    scales: list[Tensor],
    zeros: list[Tensor | None],
    sizes: list[int],
) -> ctypes.Array[_Call]:
    """Return the calls of some matrices, whose memory the caller keeps alive."""
    calls = (_Call * len(values))()
    for i, (y, zero) in enumerate(zip(ys, zeros, strict=True)):
        n_group_units, d_in, d_out = sizes[3 * i : 3 * i + 3]
        calls[i] = _Call(
            x.data_ptr(), None if y is None else y.data_ptr(), values[i].data_ptr(), scales[i].data_ptr(),
            None if zero is None else zero.data_ptr(), None, x.shape[0], d_in, d_out, n_group_units,
            values[i].shape[2] // (2 * ACTIVATION_GROUP), native.DTYPES[x.dtype], SCALE_DTYPES[scales[i].dtype],
        )  # fmt: skip
    return calls


def _run_linears(
    x: Tensor, values: list[Tensor], scales: list[Tensor], zeros: list[Tensor | None], sizes: list[int]
) -> list[Tensor]:
    x, ys = x.contiguous(), _outputs(x, values, scales, zeros, sizes)
    calls = _calls(x, ys, values, scales, zeros, sizes)
    native.need().gs_quantized_linears(calls, len(calls))
    return ys


def _run_feed_forward(
    x: Tensor, values: list[Tensor], scales: list[Tensor], zeros: list[Tensor | None], sizes: list[int]
) -> Tensor:
    x = x.contiguous()
    y = _outputs(x, values, scales, zeros, sizes[-3:])[0]
    native.need().gs_quantized_feed_forward(_calls(x, (None, None, y), values, scales, zeros, sizes))
    return y


def _outputs(
    x: Tensor, values: list[Tensor], scales: list[Tensor], zeros: list[Tensor | None], sizes: list[int]
) -> list[Tensor]:
    return [x.new_empty(x.shape[0], d_out) for d_out in sizes[2::3]]


_MATRICES = "Tensor x, Tensor[] values, Tensor[] scales, Tensor?[] zeros, int[] sizes"
_linears = define(f"quantized_linears({_MATRICES}) -> Tensor[]", compute=_run_linears, shape=_outputs)
_feed_forward = define(
    f"quantized_feed_forward({_MATRICES}) -> Tensor",
    compute=_run_feed_forward,
    shape=lambda x, values, scales, zeros, sizes: _outputs(x, values, scales, zeros, sizes[-3:])[0],
)


def _flip(values: Tensor) -> Tensor:
    """Return int8 as uint8 that counts from -128, and back."""
    return values.view(torch.uint8).bitwise_xor(128).view(torch.int8 if values.dtype == torch.uint8 else torch.uint8)


def _blocks(x: Tensor) -> Tensor:
    """Bring [d_out, n_groups] into blocks of 16 outputs: [blocks, n_groups, 16]."""
    d_out, n_groups = x.shape
    x, size = x.contiguous(), (-(-d_out // _BLOCK), n_groups, _BLOCK)
    early = _packed_early(x, n_groups, d_out, 8 * x.element_size())
    if early is not None:
        return early.view(x.dtype).view(size)
    blocks = x.new_empty(size)
    native.need().gs_pack_groups(x.data_ptr(), blocks.data_ptr(), n_groups, d_out, x.element_size())
    return blocks


def _packed_early(x: Tensor, width: int, n_rows: int, bits: int) -> Tensor | None:
    """Return the bytes of what was packed before torch was there."""
    found = early_packing.take(x.data_ptr(), width, n_rows, bits)
    return None if found is None else torch.frombuffer(found, dtype=torch.uint8)


def _rows(x: Tensor, rows: Tensor) -> Tensor:
    """Return rows of what _blocks has brought into blocks."""
    return x[rows // _BLOCK, :, rows % _BLOCK]
