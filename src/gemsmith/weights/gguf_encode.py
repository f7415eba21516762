"""Numbers -> the blocks of GGUF files, rounded as llama.cpp rounds them.

Source: ggml-org/ggml, src/ggml-quants.c (`quantize_row_q8_0_ref`, `quantize_row_q4_0_ref`).
"""

import torch
from jaxtyping import Float, UInt8
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
        _check_finite(found, wide, block)
        return found.view(torch.uint8)
    rows = wide.view(-1, block.n_items)
    scales, values = {"Q8_0": _q8_0, "Q4_0": _q4_0}[block.name](rows)
    stored = scales.to(torch.float16)
    _check_finite(stored, rows.abs().amax(1, keepdim=True), block)
    return torch.cat((stored.view(torch.uint8), values.view(torch.uint8)), dim=1).view(-1)


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
    return scales, values[:, :16] | (values[:, 16:] << 4)


def _inverse(scales: Float[Tensor, "n 1"]) -> Float[Tensor, "n 1"]:
    return torch.where(scales == 0, 0.0, 1 / scales)


def _check_finite(stored: Tensor, numbers: Tensor, block: BlockFormat) -> None:
    is_finite = stored.isfinite()
    if bool(is_finite.all()):
        return
    worst = numbers[~is_finite].flatten()[0].item()
    advice = "Write another type." if abs(worst) < float("inf") else "The model is damaged and cannot be written."
    raise ConfigError(f"weights must be finite in {block.name}; got {worst}. {advice}")
