"""Networks, caches and tokens for tests of the compiled decode step."""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from gemsmith.kernels.quantized import Scheme
from gemsmith.model.cache import KVCache
from gemsmith.model.decoding import decode_step
from gemsmith.model.deltas import CurrentStep
from gemsmith.model.layers import Embedding
from gemsmith.model.layout import Layout
from gemsmith.model.linear import Linear
from gemsmith.model.quantized import quantize_network
from gemsmith.model.transformer import Transformer
from tiny import WINDOW, tiny_config

LENGTHS = (3, WINDOW + 5, 30)


def make_cache(network: Transformer, *, n_slots: int = len(LENGTHS), capacity: int = 256, slack: int = 4) -> KVCache:
    return KVCache(network.config, n_slots=n_slots, capacity=capacity, slack=slack, dtype=network.dtype)


@torch.inference_mode()
def prefill(network: Transformer, cache: KVCache, lengths: tuple[int, ...] = LENGTHS) -> list[Tensor]:
    prompts = [torch.randint(0, 300, (n,), generator=torch.Generator().manual_seed(n)) for n in lengths]
    for slot, prompt in enumerate(prompts):
        network.hidden(prompt, Layout.packed([len(prompt)], slots=[slot]), cache=cache)
    return prompts


@torch.inference_mode()
def by_modules(
    network: Transformer, cache: KVCache, token_ids: list[int], slots: list[int], adapters: list[int] | None = None
) -> Tensor:
    starts = [int(cache.lengths[slot]) for slot in slots]
    layout = Layout.packed([1] * len(slots), starts=starts, slots=slots)
    layout = replace(layout, adapters=None if adapters is None else torch.tensor(adapters))
    return network.logits(network.hidden(torch.tensor(token_ids), layout, cache=cache))


def by_step(network: Transformer, cache: KVCache, token_ids: list[int], slots: list[int], n_threads: int = 1) -> Tensor:
    step = decode_step(network, cache, n_threads=n_threads)
    assert step is not None
    return advance(step, cache, token_ids, slots)


def advance(
    current: CurrentStep, cache: KVCache, token_ids: list[int], slots: list[int], adapters: list[int] | None = None
) -> Tensor:
    step = current.get()
    assert step is not None
    positions = [int(cache.lengths[slot]) for slot in slots]
    logits = step(token_ids, positions, slots, adapters).clone()
    for slot, position in zip(slots, positions, strict=True):
        cache.reserve(slot, position, 1)
    return logits


def rms(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).square().mean().sqrt() / expected.float().std())


def quantized(network: Transformer, bits: Literal[4, 8], group: int | None, is_symmetric: bool = True) -> Transformer:
    def choose(name: str, module: Linear | Embedding) -> Scheme:
        d_in = module.d_in if isinstance(module, Linear) else module.weight.shape[1]
        return Scheme(bits, group if group and d_in % group == 0 else None, is_symmetric=is_symmetric)

    return quantize_network(network, choose)


def wide_network(family: str = "gemma2", *, dtype: torch.dtype = torch.float32) -> Transformer:
    """Return a network whose widths are multiples of 64, as groups of inputs need them."""
    base = tiny_config(family)
    layers = tuple(replace(layer, n_heads=4, n_kv_heads=2, head_dim=16, d_ff=128) for layer in base.layers)
    network = Transformer(replace(base, d_model=64, layers=layers))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    return network.to(dtype).eval()


def large_network(dtype: torch.dtype = torch.float32) -> Transformer:
    """Return a network whose matrices three threads share out in several pieces each, whatever form they have.

    Pieces go across the borders of q, k and v, and the last block of most matrices is not full. Three queries share
    each key. The root of d_model is a whole number, so that it is the same in every dtype.
    """
    base = tiny_config("gemma2", vocab_size=5003)
    layers = tuple(replace(layer, n_heads=6, n_kv_heads=2, head_dim=70, d_ff=1030) for layer in base.layers[:2])
    network = Transformer(replace(base, d_model=576, layers=layers))
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in network.parameters():
            spread = 0.3 if parameter.ndim == 1 else 2.0 * parameter.shape[1] ** -0.5
            parameter.normal_(0.0, spread, generator=generator)
    return network.to(dtype).eval()
