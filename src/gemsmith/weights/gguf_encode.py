"""Numbers -> the blocks of GGUF files, rounded as llama.cpp rounds them.

Source: ggml-org/ggml, src/ggml-quants.c (`quantize_row_q8_0_ref`, `quantize_row_q4_0_ref`).
"""

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

from gemsmith.errors import ConfigError
from gemsmith.weights.gguf_blocks import BlockFormat


def encode_blocks(numbers: Float[Tensor, " n_items"], block: BlockFormat) -> UInt8[Tensor, " n_bytes"]:
    """Return the bytes of whole blocks in F32, F16, BF16, Q8_0 or Q4_0.

    Raises:
        ConfigError: A number is not finite, or too large for the format; it is named.
    """
    wide = numbers.float()
    if block.dtype is not None:
        found = wide.to(block.dtype)
        _check_finite(found, wide, block.name)
        return found.view(torch.uint8)
    rows = wide.view(-1, block.n_items)
    scales, values = {"Q8_0": _q8_0, "Q4_0": _q4_0}[block.name](rows)
    return _join(scales, values, rows.abs().amax(1, keepdim=True), block.name)


def join_q8_0(values: Int8[Tensor, "n 32"], scales: Float[Tensor, "n 1"]) -> UInt8[Tensor, " n_bytes"]:
    """Return Q8_0 blocks of values as they are; their scales are rounded to float16.

    Raises:
        ConfigError: A scale is not finite, or too large for float16.
    """
    return _join(scales, values, scales, "Q8_0")


def join_q4_0(values: UInt8[Tensor, "n 32"], scales: Float[Tensor, "n 1"]) -> UInt8[Tensor, " n_bytes"]:
    """Return Q4_0 blocks of values of 0 to 15, of which 8 means 0; their scales are rounded to float16.

    Raises:
        ConfigError: A scale is not finite, or too large for float16.
    """
    return _join(scales, _halves(values), scales, "Q4_0")


def _join(scales: Tensor, values: Tensor, numbers: Tensor, name: str) -> UInt8[Tensor, " n_bytes"]:
    """Return blocks of a float16 scale and the bytes of the values; `numbers` stand in the message."""
    stored = scales.to(torch.float16)
    _check_finite(stored, numbers, name)
    return torch.cat((stored.view(torch.uint8), values.view(torch.uint8)), dim=1).view(-1)


def _halves(values: UInt8[Tensor, "n 32"]) -> UInt8[Tensor, "n 16"]:
    """Return bytes that hold value j in the low half and value j + 16 in the high one."""
    return values[:, :16] | (values[:, 16:] << 4)


def _q8_0(rows: Float[Tensor, "n 32"]) -> tuple[Float[Tensor, "n 1"], Tensor]:
    """Return steps of a 127th of the largest magnitude, and values of -127 to 127."""
    scales = rows.abs().amax(1, keepdim=True) / 127
    steps = rows * _inverse(scales)
    # Halves go away from zero, not to the even neighbor.
    whole = steps.abs().floor()
    return scales, (steps.sign() * (whole + (2 * (steps.abs() - whole)).floor())).to(torch.int8)


def _q4_0(rows: Float[Tensor, "n 32"]) -> tuple[Float[Tensor, "n 1"], Tensor]:
    """Return steps that make the number of largest magnitude -8, and values of 0 to 15, of which 8 means 0."""
    extreme = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    scales = extreme / -8
    values = (rows.double() * _inverse(scales).double() + 8.5).clamp(0, 15).to(torch.uint8)
    return scales, _halves(values)


def _inverse(scales: Float[Tensor, "n 1"]) -> Float[Tensor, "n 1"]:
    return torch.where(scales == 0, 0.0, 1 / scales)


def _check_finite(stored: Tensor, numbers: Tensor, name: str) -> None:
    is_finite = stored.isfinite()
    if bool(is_finite.all()):
        return
    worst = numbers[~is_finite].flatten()[0].item()
    advice = "Write another type." if abs(worst) < float("inf") else "The model is damaged and cannot be written."
    raise ConfigError(f"weights must be finite in {name}; got {worst}. {advice}")
