"""A network and its cache as the compiled decode step takes them."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from gemsmith.config import LayerSpec, ModelConfig
from gemsmith.kernels import native
from gemsmith.kernels.decode_step import MAX_HEAD_DIM, DecodeStep, Layer, Network, can_take
from gemsmith.kernels.quantized_linear import Packed
from gemsmith.model import ops
from gemsmith.model.attention import Attention
from gemsmith.model.cache import KVCache
from gemsmith.model.deltas import CurrentStep, is_changed
from gemsmith.model.layers import Block, Embedding, FeedForward
from gemsmith.model.linear import Linear, LowRank
from gemsmith.model.norm import RMSNorm
from gemsmith.model.quantized import Matrix, QuantizedEmbedding, QuantizedLinear
from gemsmith.model.transformer import Transformer

_MATRICES = {
    "q": ("self_attn", "q_proj"), "k": ("self_attn", "k_proj"), "v": ("self_attn", "v_proj"),
    "o": ("self_attn", "o_proj"), "gate": ("mlp", "gate_proj"), "up": ("mlp", "up_proj"), "down": ("mlp", "down_proj"),
}  # fmt: skip
_KNOWN = (
    Transformer, nn.ModuleList, Block, Attention, FeedForward, RMSNorm,
    Linear, LowRank, Embedding, QuantizedLinear, QuantizedEmbedding, Matrix,
)  # fmt: skip

# Width of a head, base and factor of its rotation.
_Turns = tuple[int, float, float]


def decode_step(
    network: Transformer, cache: KVCache, *, n_threads: int, fewer: int | None = None
) -> CurrentStep | None:
    """Return the compiled step over this cache; None where the modules have to run one by one.

    That is so without kernels, off the CPU, with modules, hooks or dtypes the step does not know.
    """
    if not _is_suitable(network, cache):
        return None
    turns = _frequencies(network.config.layers)
    layers = [_layer(cast(Block, block), cache, i, turns) for i, block in enumerate(network.layers)]
    table, last_norm = _stored(network.embed_tokens), network.norm.weight.detach()
    stored = [table, last_norm, *(x for layer in layers for x in (*layer.matrices.values(), *layer.norms.values()))]
    if not all(can_take(x) for x in stored):
        return None
    description = Network(
        layers,
        table,
        last_norm,
        capacity=cache.capacity,
        eps=network.config.norm_eps,
        embedding_scale=float(ops.embedding_scale(network.config.d_model, network.dtype)),
        cap=network.config.final_softcap or 0.0,
    )
    step = DecodeStep(description, max_rows=cache.n_slots, n_threads=n_threads, fewer=fewer)
    current = CurrentStep(step, [_places(cast(Block, block)) for block in network.layers], dtype=network.dtype)
    return current if current.get() is not None else None


def _is_suitable(network: Transformer, cache: KVCache) -> bool:
    if not native.is_loaded() or network.device.type != "cpu" or network.dtype not in native.DTYPES:
        return False
    if cache.dtype not in (*native.DTYPES, torch.int8):
        return False
    if ops.is_plain() or max(layer.head_dim for layer in network.config.layers) > MAX_HEAD_DIM:
        return False
    return all(_is_known(module, network) for module in network.modules()) and all(
        _is_usual(block, network.config, index) for index, block in enumerate(network.layers)
    )


def _is_known(module: nn.Module, network: Transformer) -> bool:
    """Tell whether a module does what its class does, and nothing else."""
    if type(module) not in _KNOWN or is_changed(module):
        return False
    if isinstance(module, RMSNorm):
        return module.weight.dtype == network.dtype and module.eps == network.config.norm_eps
    return True


def _is_usual(block: nn.Module, config: ModelConfig, index: int) -> bool:
    """Tell whether a block is what build_layer makes of its spec; a caller's may have other parts in another order."""
    if not isinstance(block, Block) or [body for _, body, _ in block.steps] != ["self_attn", "mlp"]:
        return False
    norms = [block.get_submodule(name) for before, _, after in block.steps for name in (before, after) if name]
    attention, source = block.get_submodule("self_attn"), config.layers[index].kv_source
    return (
        isinstance(attention, Attention)
        and attention.spec == config.layers[index]
        and attention.source == (index if source is None else source)
        and isinstance(block.get_submodule("mlp"), FeedForward)
        and all(isinstance(norm, RMSNorm) for norm in norms)
    )


def _frequencies(specs: Sequence[LayerSpec]) -> dict[_Turns, Tensor]:
    """Return one tensor for all layers that turn alike: the step works out their angles once where they follow."""
    kinds = {_turns(spec): spec for spec in specs}
    return {
        key: ops.rope_frequencies(head_dim=spec.head_dim, theta=spec.rope_theta, factor=spec.rope_factor)
        for key, spec in kinds.items()
    }


def _turns(spec: LayerSpec) -> _Turns:
    return spec.head_dim, spec.rope_theta, spec.rope_factor


def _stored(module: nn.Module) -> Tensor | Packed:
    """Return the matrix of a linear or of the table in the form it is stored in; plain bits as an empty tensor."""
    if isinstance(module, QuantizedLinear | QuantizedEmbedding):
        stored = module.matrix.stored
        return stored if isinstance(stored, Packed) else torch.empty(0, dtype=torch.uint8)
    return cast(Tensor, module.weight).detach()


def _places(block: Block) -> dict[str, tuple[nn.Module, str]]:
    """Return where the linears a block has stand: the module that holds each, and its name there."""
    has_keys = cast(Attention, block.get_submodule("self_attn")).spec.kv_source is None
    return {
        name: (block.get_submodule(part), key)
        for name, (part, key) in _MATRICES.items()
        if has_keys or name not in ("k", "v")
    }


def _layer(block: Block, cache: KVCache, index: int, frequencies: dict[_Turns, Tensor]) -> Layer:
    spec = cast(Attention, block.get_submodule("self_attn")).spec
    source = index if spec.kv_source is None else spec.kv_source
    matrices = {name: _stored(holder.get_submodule(key)) for name, (holder, key) in _places(block).items()}
    (before, _, after), (before_ff, _, after_ff) = block.steps
    places = {
        "before_attention": before,
        "after_attention": after,
        "before_feed_forward": before_ff,
        "after_feed_forward": after_ff,
        "q_norm": "self_attn.q_norm" if spec.has_qk_norm else None,
        "k_norm": "self_attn.k_norm" if spec.has_qk_norm and spec.kv_source is None else None,
    }
    norms = {
        key: cast(RMSNorm, block.get_submodule(name)).weight.detach()
        for key, name in places.items()
        if name is not None
    }
    stores = {"keys": cache.keys[source], "values": cache.values[source]}
    if cache.keys[source].dtype == torch.int8:
        stores |= {"key_scales": cache.key_scales[source], "value_scales": cache.value_scales[source]}
    return Layer(
        matrices,
        norms,
        frequencies[_turns(spec)],
        stores,
        n_heads=spec.n_heads,
        window=spec.window or 0,
        scale=spec.attn_scale,
        cap=spec.attn_softcap or 0.0,
    )
