"""Blocks of 256 numbers: groups of 16 or 32 whose scales are small integers under one scale of their own.

Source: ggml-org/ggml, src/ggml-common.h (block_q4_K, block_q5_K, block_q6_K) and src/ggml-quants.c.
"""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor


def half(raw: UInt8[Tensor, "n n_bytes"], at: int) -> Float[Tensor, "n 1"]:
    """Return the float16 that begins at a byte of every block, in float32."""
    return raw[:, at : at + 2].contiguous().view(torch.float16).float()


def nibbles(raw: UInt8[Tensor, "n n_bytes"]) -> UInt8[Tensor, "n twice"]:
    """Return the low halves of all bytes, then the high halves."""
    return torch.cat((raw & 15, raw >> 4), dim=1)


def decode_q4_k(raw: UInt8[Tensor, "n 144"]) -> Float[Tensor, "n 256"]:
    """Return (d * scale) * q - (dmin * least) with 4-bit q, in 8 groups of 32."""
    steps, least = _scales_and_minima(raw)
    return (_paired_nibbles(raw[:, 16:]).float() * steps - least).flatten(1)


def decode_q5_k(raw: UInt8[Tensor, "n 176"]) -> Float[Tensor, "n 256"]:
    """Return what Q4_K means, with a fifth bit: bit g of byte l belongs to number l of group g."""
    steps, least = _scales_and_minima(raw)
    top = (raw[:, None, 16:48] >> torch.arange(8, dtype=torch.uint8)[:, None]) & 1
    values = _paired_nibbles(raw[:, 48:]) | (top << 4)
    return (values.float() * steps - least).flatten(1)


def decode_q6_k(raw: UInt8[Tensor, "n 210"]) -> Float[Tensor, "n 256"]:
    """Return (d * scale) * (q - 32) with 6-bit q, in 16 groups of 16."""
    low = raw[:, :128].unflatten(1, (2, 64))
    low = torch.cat((low & 15, low >> 4), dim=2)  # per half of the block: low nibbles of 64 bytes, then high
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None]
    high = (raw[:, 128:192].unflatten(1, (2, 1, 32)) >> shifts) & 3
    values = (low | (high.flatten(2) << 4)).flatten(1).float() - 32.0
    scales = raw[:, 192:208].contiguous().view(torch.int8).float()
    return (values.unflatten(1, (16, 16)) * (half(raw, 208) * scales)[..., None]).flatten(1)


def _paired_nibbles(raw: UInt8[Tensor, "n 128"]) -> UInt8[Tensor, "n 8 32"]:
    """Return groups of 32: the low halves of 32 bytes are one group, the high halves the next."""
    quarters = raw.unflatten(1, (4, 1, 32))
    return torch.cat((quarters & 15, quarters >> 4), dim=2).flatten(1, 2)


def _scales_and_minima(raw: UInt8[Tensor, "n n_bytes"]) -> tuple[Float[Tensor, "n 8 1"], Float[Tensor, "n 8 1"]]:
    """Return the step and the offset of each of 8 groups, from 12 bytes of 6-bit numbers.

    The first four of either kind are the low six bits of their bytes; the other four have their low
    half in the last four bytes and their top two bits where those left room.
    """
    first, second, last = raw[:, 4:8], raw[:, 8:12], raw[:, 12:16]
    scales = torch.cat((first & 63, (last & 15) | ((first >> 2) & 48)), dim=1)
    minima = torch.cat((second & 63, (last >> 4) | ((second >> 2) & 48)), dim=1)
    return (half(raw, 0) * scales.float())[..., None], (half(raw, 2) * minima.float())[..., None]
