"""The block formats of GGUF files: which there are, how long they are, and what numbers they hold.

A row of a matrix is cut into blocks of 32 or 256 numbers that share one or more scales. Every function
takes blocks as bytes, Int[n n_bytes], and returns their numbers, Float[n n_items], in float32.

Source: ggml-org/ggml, src/ggml-common.h (the structs) and src/ggml-quants.c (`dequantize_row_*`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from gemsmith.weights.gguf_super_blocks import decode_q4_k, decode_q5_k, decode_q6_k, half, nibbles

Decode = Callable[[UInt8[Tensor, "n n_bytes"]], Float[Tensor, "n n_items"]]
_PIECE_ITEMS = 1 << 20


@dataclass(frozen=True)
class BlockFormat:
    """How numbers lie in a file.

    Attributes:
        code: The format's number in the file.
        n_items: Numbers of one block.
        n_bytes: Bytes of one block.
    """

    name: str
    code: int
    n_items: int
    n_bytes: int
    decode: Decode

    @property
    def dtype(self) -> torch.dtype | None:
        """The torch dtype whose numbers lie in the file as they are, None for blocks."""
        return {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}.get(self.name)


def dequantize_blocks(
    raw: UInt8[Tensor, " n_bytes"], block: BlockFormat, *, dtype: torch.dtype
) -> Float[Tensor, " n_items"]:
    """Return the numbers of whole blocks, computed in float32 piece by piece and rounded once."""
    blocks = raw.view(-1, block.n_bytes)
    found = torch.empty(blocks.shape[0], block.n_items, dtype=dtype)
    per_piece = _PIECE_ITEMS // block.n_items
    for into, piece in zip(found.split(per_piece), blocks.split(per_piece), strict=True):
        into.copy_(block.decode(piece))
    return found.view(-1)


def split_q8_0(raw: UInt8[Tensor, "n 34"]) -> tuple[Tensor, Tensor]:
    """Return what Q8_0 blocks hold: int8 values [n, 32] and float16 scales [n, 1]."""
    return raw[:, 2:].contiguous().view(torch.int8), raw[:, :2].contiguous().view(torch.float16)


def split_q4_0(raw: UInt8[Tensor, "n 18"]) -> tuple[Tensor, Tensor]:
    """Return what Q4_0 blocks hold: uint8 values 0 to 15, of which 8 means zero, [n, 32], and float16 scales [n, 1]."""
    return nibbles(raw[:, 2:]), raw[:, :2].contiguous().view(torch.float16)


def _plain(dtype: torch.dtype) -> Decode:
    def decode(raw: UInt8[Tensor, "n n_bytes"]) -> Float[Tensor, "n n_items"]:
        return raw.view(dtype).float()

    return decode


def _q8_0(raw: UInt8[Tensor, "n 34"]) -> Float[Tensor, "n 32"]:
    values, scales = split_q8_0(raw)
    return values.float() * scales.float()


def _q4_0(raw: UInt8[Tensor, "n 18"]) -> Float[Tensor, "n 32"]:
    values, scales = split_q4_0(raw)
    return (values.float() - 8.0) * scales.float()


def _q4_1(raw: UInt8[Tensor, "n 20"]) -> Float[Tensor, "n 32"]:
    return nibbles(raw[:, 4:]).float() * half(raw, 0) + half(raw, 2)


def _q5_0(raw: UInt8[Tensor, "n 22"]) -> Float[Tensor, "n 32"]:
    return (_five_bits(raw[:, 2:6], raw[:, 6:]).float() - 16.0) * half(raw, 0)


def _q5_1(raw: UInt8[Tensor, "n 24"]) -> Float[Tensor, "n 32"]:
    return _five_bits(raw[:, 4:8], raw[:, 8:]).float() * half(raw, 0) + half(raw, 2)


def _five_bits(high: UInt8[Tensor, "n 4"], low: UInt8[Tensor, "n 16"]) -> UInt8[Tensor, "n 32"]:
    """Return values of 0 to 31: bit j of `high` is the top bit of value j."""
    bits = (high[:, :, None] >> torch.arange(8, dtype=torch.uint8)) & 1
    return nibbles(low) | (bits.flatten(1) << 4)


FORMATS = {
    block.code: block
    for block in (
        BlockFormat("F32", 0, 1, 4, _plain(torch.float32)),
        BlockFormat("F16", 1, 1, 2, _plain(torch.float16)),
        BlockFormat("Q4_0", 2, 32, 18, _q4_0),
        BlockFormat("Q4_1", 3, 32, 20, _q4_1),
        BlockFormat("Q5_0", 6, 32, 22, _q5_0),
        BlockFormat("Q5_1", 7, 32, 24, _q5_1),
        BlockFormat("Q8_0", 8, 32, 34, _q8_0),
        BlockFormat("Q4_K", 12, 256, 144, decode_q4_k),
        BlockFormat("Q5_K", 13, 256, 176, decode_q5_k),
        BlockFormat("Q6_K", 14, 256, 210, decode_q6_k),
        BlockFormat("BF16", 30, 1, 2, _plain(torch.bfloat16)),
    )
}
BY_NAME = {block.name: block for block in FORMATS.values()}
# Formats other programs write and we do not read, for the message.
FOREIGN = {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
