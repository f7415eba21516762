"""What a machine could do with a model at most: limits by the compiled probes, and what a token asks of them."""

from dataclasses import dataclass

import torch

from gemsmith.config import ModelConfig
from gemsmith.kernels import native, probe
from gemsmith.model.linear import Linear
from gemsmith.model.norm import RMSNorm
from gemsmith.model.quantized import QuantizedLinear
from gemsmith.model.transformer import Transformer
from gemsmith.train.cost import token_cost
from gemsmith.weights.memory import available_bytes


@dataclass(frozen=True)
class Limits:
    """The most this machine was seen to do, with torch's threads.

    Attributes:
        read: Bytes of main memory read per second; None without compiled probes.
        products: Multiply-adds per second by kind of product, operands in registers; None where there is no such kind.
    """

    read: float | None
    products: dict[str, float | None]

    def rate(self, kind: str) -> float | None:
        """Return the multiply-adds per second for "float32", "bfloat16" or "int8", by vectors or tiles."""
        rates = (self.products.get(kind), self.products.get(f"{kind} tiles"))
        return max((rate for rate in rates if rate is not None), default=None)


def measure_limits(*, has_int8_tiles: bool) -> Limits:
    """Run the probes; without compiled kernels there are no limits to tell.

    Args:
        has_int8_tiles: The processor says that its tiles multiply int8.
    """
    if not native.is_loaded():
        return Limits(None, {})
    kinds = [kind for kind in probe.KINDS if has_int8_tiles or kind != "int8 tiles"]
    n_bytes = min(probe.READ_BYTES, available_bytes() // 4) // 4096 * 4096
    return Limits(probe.read_rate(n_bytes), {kind: probe.product_rate(kind) for kind in kinds})


def product_kind(network: Transformer) -> str:
    """Return what most products of a network are of: "int8" for matrices in few bits, else its dtype."""
    linears = [module for module in network.modules() if isinstance(module, Linear)]
    n_quantized = sum(isinstance(module, QuantizedLinear) for module in linears)
    return "int8" if 2 * n_quantized > len(linears) else str(network.dtype).removeprefix("torch.")


def weight_bytes(network: Transformer) -> int:
    """Return the bytes of all weights one token reads: every matrix, the head and the norms."""
    modules = [network.embed_tokens, *(module for module in network.modules() if isinstance(module, Linear))]
    norms = [module.weight for module in network.modules() if isinstance(module, RMSNorm)]
    tensors = [x for module in modules for x in module.stored()] + norms
    return sum(x.numel() * x.element_size() for x in tensors)


def cache_read_bytes(config: ModelConfig, context: int, dtype: torch.dtype) -> int:
    """Return the bytes of keys and values one token after `context` others reads: a window at most of local layers."""
    total = 0
    for layer in config.layers:
        seen = context if layer.window is None else min(context, layer.window)
        scale = 4 if dtype == torch.int8 else 0
        total += 2 * layer.n_kv_heads * seen * (layer.head_dim * dtype.itemsize + scale)
    return total


def prefill_products(config: ModelConfig, n_tokens: int) -> float:
    """Return the multiply-adds per token of reading a prompt, the one score over the vocabulary at its end aside."""
    cost = token_cost(config, row=n_tokens)
    return (cost.blocks + cost.attention) / 6  # training counts two operations, three times
