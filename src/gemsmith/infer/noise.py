"""The noise of sampling: a pure function of (seed, completion, position, token id).

Nothing is drawn from a generator's state, so a completion is the same alone, in a batch, or
continued later, and on any device that computes 64-bit integers. The function is SplitMix64: a
counter stepped by the golden ratio, scrambled by two multiplications.

Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, section 5.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def _signed(word: int) -> int:
    """Return a 64-bit word as the number torch's int64 holds for it."""
    return word - (1 << 64) if word >> 63 else word


GOLDEN = _signed(0x9E3779B97F4A7C15)
_MULTIPLIERS = (_signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB))


def _shifted(x: Tensor, n_bits: int) -> Tensor:
    """Shift right as unsigned words do: torch's `>>` would copy the sign down."""
    return (x >> n_bits) & ((1 << (64 - n_bits)) - 1)


def scramble(x: Int[Tensor, "*N"]) -> Int[Tensor, "*N"]:
    """Return 64 well-mixed bits for each 64-bit word; int64 products wrap as the function needs."""
    x = (x ^ _shifted(x, 30)) * _MULTIPLIERS[0]
    x = (x ^ _shifted(x, 27)) * _MULTIPLIERS[1]
    return x ^ _shifted(x, 31)


def completion_streams(
    seeds: Int[Tensor, " B"] | int, completions: Int[Tensor, " B"], *, device: torch.device | str | None = None
) -> Int[Tensor, " B"]:
    """Return one word per completion that the noise of all its positions starts from."""
    seed = torch.as_tensor(seeds, dtype=torch.long, device=completions.device)
    return scramble(scramble(seed) + (completions + 1) * GOLDEN).to(device)


def noise_bits(
    streams: Int[Tensor, " B"], positions: Int[Tensor, " B"], *, token_ids: Int[Tensor, "B C"]
) -> Int[Tensor, "B C"]:
    """Return the 64 bits that belong to each token id at a position of a completion."""
    rows = scramble(streams + (positions + 1) * GOLDEN)
    return scramble(rows[:, None] + (token_ids + 1) * GOLDEN)


def wide(device: torch.device) -> torch.dtype:
    """Return the most exact dtype of a device: float64, but where there is none."""
    return torch.float32 if device.type == "mps" else torch.float64


def gumbel(
    streams: Int[Tensor, " B"], positions: Int[Tensor, " B"], *, token_ids: Int[Tensor, "B C"]
) -> Float[Tensor, "B C"]:
    """Return standard Gumbel noise: the argmax of scores + noise is a draw from softmax(scores).

    -log(-log(u)) is largest where u is next to 1, where float32 is coarse; with v = 1 - u small
    numbers keep all their bits, so that even a token of probability 1e-12 is drawn as often as it should be.
    The logarithms are float64, where libraries differ by 1e-16: too little to choose another token.

    Args:
        streams: From `completion_streams`, one per row.
        positions: Absolute position of the token to be chosen.
    """
    v = _shifted(noise_bits(streams, positions, token_ids=token_ids), 1).float() * 2.0**-63
    return -torch.log(-torch.log1p(-v.clamp(2.0**-64, 1 - 2.0**-24).to(wide(v.device))))
