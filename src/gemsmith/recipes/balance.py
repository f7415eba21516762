"""Channels of unlike size evened out before rounding; what the network computes stays the same.

Between a norm and the linears that read it, up and down, values and output projection, a channel may be
made s times larger if what reads it is made s times smaller. With s = sqrt(reader / writer), in largest
magnitudes, neither side has channels that drown the others of their group.
Source: cross-layer equalization, arXiv:1906.04721, section 4.1, where it is derived for convolutions;
norms take part as in SmoothQuant, arXiv:2211.10438, with the norm's weight for the size of its output.
"""

from collections.abc import Callable, Collection, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gemsmith.model.attention import Attention
from gemsmith.model.layers import Block, FeedForward
from gemsmith.model.linear import Linear
from gemsmith.model.norm import RMSNorm

_READERS = {"self_attn": ("q_proj", "k_proj", "v_proj"), "mlp": ("gate_proj", "up_proj")}
_SMALLEST = 1e-12


@torch.no_grad()
def balance(layer: nn.Module, chosen: Collection[str], *, shares_values: bool = False) -> None:
    """Even out the channels of a block where all linears concerned are about to be rounded.

    Its linears become float32, so that nothing is lost; a norm keeps its dtype, and the readers make up
    for its rounding.

    Args:
        chosen: Names, within the block, of the linears that will be rounded.
        shares_values: Other blocks read the values of this one too, or it reads another's.
    """
    if not isinstance(layer, Block):
        return
    for before, body, _ in layer.steps:
        part = layer.get_submodule(body)
        names = [name for name in _READERS.get(body, ()) if isinstance(getattr(part, name, None), Linear)]
        if names and all(f"{body}.{name}" in chosen for name in names):
            _balance_norm(_norm(layer, before), [_linear(part, name) for name in names])
        if isinstance(part, FeedForward) and {"mlp.up_proj", "mlp.down_proj"} <= set(chosen):
            _balance_pair(part.up_proj, part.down_proj)
        has_pair = {"self_attn.v_proj", "self_attn.o_proj"} <= set(chosen) and not shares_values
        if isinstance(part, Attention) and has_pair:
            _balance_values(part)


def _balance_values(part: Attention) -> None:
    n_groups, n_shared = part.spec.n_kv_heads, part.spec.n_heads // part.spec.n_kv_heads

    # Query heads that share a key head read the same values.
    def fold(x: Tensor) -> Tensor:
        return x.view(n_groups, n_shared, -1).amax(1).reshape(-1)

    def spread(s: Tensor) -> Tensor:
        return s.view(n_groups, 1, -1).expand(-1, n_shared, -1).reshape(-1)

    _balance_pair(part.v_proj, part.o_proj, fold=fold, spread=spread)


def _balance_norm(norm: RMSNorm, readers: Sequence[Linear]) -> None:
    gain = 1.0 + norm.weight.float()
    reads = torch.stack([linear.weight.float().abs().amax(0) for linear in readers]).amax(0)
    wanted = gain * _factors(gain.abs(), reads)
    new = (wanted - 1.0).to(norm.weight.dtype)
    s = (1.0 + new.float()) / gain
    # A gain near 0 can be rounded away altogether; such a norm stays as it is.
    if not bool((s.isfinite() & (s > 0)).all()):
        return
    norm.weight = nn.Parameter(new, requires_grad=False)
    for linear in readers:
        _set(linear, linear.weight.float() / s)


def _balance_pair(
    writer: Linear,
    reader: Linear,
    *,
    fold: Callable[[Tensor], Tensor] = lambda x: x,
    spread: Callable[[Tensor], Tensor] = lambda s: s,
) -> None:
    written, read = writer.weight.float(), reader.weight.float()
    s = _factors(written.abs().amax(1), fold(read.abs().amax(0)))
    _set(writer, written * s[:, None])
    _set(reader, read / spread(s))


def _factors(written: Float[Tensor, " C"], read: Float[Tensor, " C"]) -> Float[Tensor, " C"]:
    """Return by what to make each channel larger where it is written; their geometric mean is 1."""
    is_used = (written > _SMALLEST) & (read > _SMALLEST)
    logs = torch.where(is_used, (read.clamp(min=_SMALLEST) / written.clamp(min=_SMALLEST)).log() / 2, 0.0)
    mean = logs.sum() / is_used.sum().clamp(min=1)
    return torch.where(is_used, (logs - mean).exp(), 1.0)


def _set(linear: Linear, weight: Tensor) -> None:
    linear.weight = nn.Parameter(weight, requires_grad=False)


def _norm(layer: Block, name: str) -> RMSNorm:
    norm = layer.get_submodule(name)
    assert isinstance(norm, RMSNorm)
    return norm


def _linear(part: nn.Module, name: str) -> Linear:
    linear = part.get_submodule(name)
    assert isinstance(linear, Linear)
    return linear
