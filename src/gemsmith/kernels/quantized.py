"""Matrices in 4 or 8 bits: what they are, how they come about by rounding, and their plain product."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

from gemsmith.errors import ConfigError

# Inputs of a row that share a scale where activations are rounded to 8 bits.
ACTIVATION_GROUP = 32
_LARGEST_ACTIVATION = 127
# vLLM and transformers hold scales in the model's dtype, so they are rounded before the weights are.
SCALE_DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Scheme:
    """How a matrix is stored in few bits.

    Attributes:
        bits: Of one value, 4 or 8.
        group: Inputs that share a scale; None lets a whole row (an output channel) share one.
        is_symmetric: Zero is the middle value of every group; otherwise each group says which value it is.
    """

    bits: Literal[4, 8]
    group: int | None
    is_symmetric: bool = True

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise ConfigError(f"bits must be 4 or 8; got {self.bits!r}. Choose one of these.")
        if self.group is not None and self.group < 1:
            raise ConfigError(f"group must be at least 1; got {self.group!r}. None gives each row one scale.")

    @property
    def lowest(self) -> int:
        """The smallest value: values go from here to `lowest + 2**bits - 1`."""
        return -(2 ** (self.bits - 1)) if self.bits == 8 else 0

    def n_groups(self, d_in: int) -> int:
        """Return how many scales a row of d_in inputs has.

        Raises:
            ConfigError: The group does not divide d_in, or two 4-bit values do not fill each byte.
        """
        if self.bits == 4 and d_in % 2:
            raise ConfigError(f"d_in must be even for 4 bits; got {d_in}. Keep this matrix in 8 bits.")
        if self.group is None:
            return 1
        if d_in % self.group:
            raise ConfigError(f"group must divide d_in; got {self.group} and {d_in}. Use a divisor, or None.")
        return d_in // self.group


@dataclass(frozen=True)
class Quantized:
    """A matrix [d_out, d_in] in few bits: w[o, i] is about (values[o, i] - zeros[o, g]) * scales[o, g].

    Attributes:
        shape: (d_out, d_in).
        values: int8 [d_out, d_in] for 8 bits; for 4 uint8 [d_out, d_in / 2] that holds input 2j in the low
            and 2j + 1 in the high half of byte j, each 0 to 15.
        scales: float32, bfloat16 or float16 [d_out, n_groups].
        zeros: The value that means 0, in the dtype of `values`, [d_out, n_groups]; None where it is the
            middle one: 0 for 8 bits, 8 for 4.
    """

    scheme: Scheme
    shape: tuple[int, int]
    values: Tensor
    scales: Tensor
    zeros: Tensor | None

    def __post_init__(self) -> None:
        d_out, d_in = self.shape
        n_groups = self.scheme.n_groups(d_in)
        dtype, width = (torch.int8, d_in) if self.scheme.bits == 8 else (torch.uint8, d_in // 2)
        _check("values", self.values, (d_out, width), (dtype,))
        _check("scales", self.scales, (d_out, n_groups), (torch.float32, torch.bfloat16, torch.float16))
        if self.scheme.is_symmetric != (self.zeros is None):
            had = "none" if self.zeros is None else "some"
            raise ConfigError(f"zeros must be given for asymmetric schemes alone; got {had} for {self.scheme}.")
        if self.zeros is not None:
            _check("zeros", self.zeros, (d_out, n_groups), (dtype,))

    @property
    def n_bytes(self) -> int:
        """Size of everything it holds."""
        return sum(x.nbytes for x in (self.values, self.scales, self.zeros) if x is not None)


def quantize(
    weight: Float[Tensor, "d_out d_in"], scheme: Scheme, *, scale_dtype: torch.dtype | None = None
) -> Quantized:
    """Return the matrix rounded to the nearest values of its scheme.

    A symmetric group of largest magnitude m has steps of 2 m / (2^bits - 1), an asymmetric one spans its
    range and 0; no weight is off by more than half a step, but for the rounding of the scale itself.

    Args:
        scale_dtype: Of the scales; the weight's by default.

    Raises:
        ConfigError: The scheme does not fit the shape, or a weight is no finite number.
    """
    values, scales, zeros = _nearest(weight, scheme, scale_dtype or weight.dtype)
    dtype = torch.int8 if scheme.bits == 8 else torch.uint8
    values = values.flatten(1).to(dtype)
    stored = values if scheme.bits == 8 else pack_nibbles(values)
    shape = (weight.shape[0], weight.shape[1])
    return Quantized(scheme, shape, stored, scales, None if scheme.is_symmetric else zeros.to(dtype))


def rounded(
    weight: Float[Tensor, "d_out d_in"],
    scheme: Scheme,
    *,
    scale_dtype: torch.dtype | None = None,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "d_out d_in"]:
    """Return what `dequantize(quantize(weight, scheme, scale_dtype=scale_dtype), dtype)` does, and store nothing."""
    values, scales, zeros = _nearest(weight, scheme, scale_dtype or weight.dtype)
    return values.sub_(zeros[..., None]).mul_(scales.float()[..., None]).view(weight.shape).to(dtype)


def _nearest(
    weight: Float[Tensor, "d_out d_in"], scheme: Scheme, scale_dtype: torch.dtype
) -> tuple[Float[Tensor, "d_out n_groups size"], Float[Tensor, "d_out n_groups"], Float[Tensor, "d_out n_groups"]]:
    """Return the whole numbers nearest to a matrix by groups, in float32, their scales, and their zeros."""
    d_out, d_in = weight.shape
    grouped = weight.detach().float().view(d_out, scheme.n_groups(d_in), -1)
    if not bool(grouped.isfinite().all()):
        bad = grouped[~grouped.isfinite()][0].item()
        raise ConfigError(f"weight must be finite; got {bad}. The matrix is damaged and cannot be rounded.")
    span = 2.0 * grouped.abs().amax(-1)
    if not scheme.is_symmetric:
        span = grouped.amax(-1).clamp(min=0) - grouped.amin(-1).clamp(max=0)
    scales = _scales(span / (2**scheme.bits - 1), scale_dtype)
    steps = scales.float()
    zeros = torch.full_like(steps, middle(scheme))
    if not scheme.is_symmetric:
        zeros = (scheme.lowest - grouped.amin(-1).clamp(max=0) / steps).round()
        zeros = zeros.clamp(scheme.lowest, scheme.lowest + 2**scheme.bits - 1)
    values = (grouped / steps[..., None]).add_(zeros[..., None]).round_()
    return values.clamp_(scheme.lowest, scheme.lowest + 2**scheme.bits - 1), scales, zeros


def dequantize(q: Quantized, dtype: torch.dtype = torch.float32) -> Float[Tensor, "d_out d_in"]:
    """Return the matrix that is stored, computed in float32 and cast once."""
    values = q.values if q.scheme.bits == 8 else unpack_nibbles(q.values)
    grouped = values.float().view(*q.scales.shape, -1)
    zeros = middle(q.scheme) if q.zeros is None else q.zeros.float()[..., None]
    return ((grouped - zeros) * q.scales.float()[..., None]).view(q.shape).to(dtype)


def plain_quantized_linear(
    x: Float[Tensor, "*T d_in"], q: Quantized, *, rounds_activations: bool = False
) -> Float[Tensor, "*T d_out"]:
    """Return x @ dequantize(q).T in the dtype of x, computed in float32.

    Args:
        rounds_activations: Round x to 8 bits first, as the kernels do.
    """
    wide = round_activations(x) if rounds_activations else x.float()
    return F.linear(wide, dequantize(q)).to(x.dtype)


def round_activations(x: Float[Tensor, "*T d_in"]) -> Float[Tensor, "*T d_in"]:
    """Return x in float32 as 8 bits hold it: per 32 inputs, multiples of their largest magnitude / 127.

    A row with a number that is not finite is NaN wherever it shares a scale.
    """
    values, scales = quantize_activations(x)
    return dequantize_activations(values, scales)[..., : x.shape[-1]]


def dequantize_activations(
    values: Int8[Tensor, "*T padded"], scales: Float[Tensor, "*T n_groups"]
) -> Float[Tensor, "*T padded"]:
    """Return the numbers that `quantize_activations` found, in float32."""
    return (values.unflatten(-1, (-1, ACTIVATION_GROUP)).float() * scales[..., None]).flatten(-2)


def quantize_activations(x: Float[Tensor, "*T d_in"]) -> tuple[Int8[Tensor, "*T padded"], Float[Tensor, "*T n_groups"]]:
    """Return int8 values, padded with zeros to whole groups of 32, and the scale of each group."""
    grouped = F.pad(x.float(), (0, -x.shape[-1] % ACTIVATION_GROUP)).unflatten(-1, (-1, ACTIVATION_GROUP))
    values, scales = round_vectors(grouped)
    return values.flatten(-2), scales


def round_vectors(x: Float[Tensor, "*n size"]) -> tuple[Int8[Tensor, "*n size"], Float[Tensor, "*n"]]:
    """Return vectors as int8 values times a float32 scale each, their largest magnitude / 127.

    Of a vector with a number that is not finite, values are 0 and the scale is not finite either.
    """
    wide = x.float()
    largest = wide.abs().amax(-1)
    inverse = torch.full_like(largest, _LARGEST_ACTIVATION) / largest  # a number / tensor would be rounded twice
    scales = torch.where(inverse.isinf(), 0.0, largest * (1.0 / _LARGEST_ACTIVATION))
    inverse = torch.where(inverse.isfinite(), inverse, 0.0)
    values = (wide * inverse[..., None]).round().nan_to_num(0.0)
    return values.to(torch.int8), scales


def middle(scheme: Scheme) -> int:
    """Return the value that means 0 where a scheme is symmetric."""
    return 8 if scheme.bits == 4 else 0


def pack_nibbles(values: UInt8[Tensor, "*d twice"]) -> UInt8[Tensor, "*d n"]:
    """Return bytes of two values of 0 to 15 each, the first in the low half."""
    return values[..., ::2] | (values[..., 1::2] << 4)


def unpack_nibbles(values: UInt8[Tensor, "*d n"]) -> UInt8[Tensor, "*d twice"]:
    """Return the two values in every byte, the low half first."""
    return torch.stack((values & 15, values >> 4), dim=-1).flatten(-2)


def _scales(steps: Float[Tensor, "d_out n_groups"], dtype: torch.dtype) -> Tensor:
    """Return steps as they will be stored; groups of nothing but zeros get a scale of 1."""
    scales = steps.to(dtype)
    scales = torch.where(scales == 0, torch.ones_like(scales), scales)
    if not bool(scales.isfinite().all()):
        raise ConfigError(
            f"scale_dtype must hold the largest step; got {dtype} and {steps.max().item():.3g}. Use bfloat16."
        )
    return scales


def _check(name: str, x: Tensor, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...]) -> None:
    if tuple(x.shape) != shape or x.dtype not in dtypes:
        wanted = " or ".join(str(dtype) for dtype in dtypes)
        raise ConfigError(f"{name} must be {wanted} of shape {shape}; got {x.dtype} of {tuple(x.shape)}.")
