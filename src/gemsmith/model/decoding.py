"""A network and its cache as the compiled decode step takes them."""

from typing import cast

import torch
from torch import Tensor, nn

from gemsmith.config import LayerSpec
from gemsmith.kernels import native
from gemsmith.kernels.decode_step import MAX_HEAD_DIM, DecodeStep, Layer, Network, can_take
from gemsmith.kernels.quantized_linear import Packed
from gemsmith.model import ops
from gemsmith.model.attention import Attention
from gemsmith.model.cache import KVCache
from gemsmith.model.layers import Block, Embedding, FeedForward
from gemsmith.model.linear import Linear
from gemsmith.model.norm import RMSNorm
from gemsmith.model.quantized import QuantizedEmbedding, QuantizedLinear
from gemsmith.model.transformer import Transformer

_MATRICES = {
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
}  # fmt: skip
_PLAIN = (Transformer, nn.ModuleList, Block, Attention, FeedForward, RMSNorm, Linear, Embedding)


def decode_step(network: Transformer, cache: KVCache, *, n_threads: int, tries_one: bool = False) -> DecodeStep | None:
    """Return the compiled step over this cache; None where the modules have to run one by one.

    That is so without kernels, off the CPU, with low-rank deltas, with modules, hooks or dtypes the step does not know.
    """
    if not _is_suitable(network, cache):
        return None
    layers = [_layer(cast(Block, block), network.config.layers[i], cache, i) for i, block in enumerate(network.layers)]
    table = _stored(network.embed_tokens)
    matrices = [table, *(matrix for layer in layers for matrix in layer.matrices.values())]
    if not all(can_take(matrix) for matrix in matrices):
        return None
    description = Network(
        layers,
        table,
        network.norm.weight.detach(),
        capacity=cache.capacity,
        eps=network.config.norm_eps,
        embedding_scale=float(ops.embedding_scale(network.config.d_model, network.dtype)),
        cap=network.config.final_softcap or 0.0,
    )
    return DecodeStep(description, max_rows=cache.n_slots, n_threads=n_threads, tries_one=tries_one)


def _is_suitable(network: Transformer, cache: KVCache) -> bool:
    if not native.is_loaded() or network.device.type != "cpu" or network.dtype not in native.DTYPES:
        return False
    if cache.dtype not in (*native.DTYPES, torch.int8):
        return False
    if ops.is_plain() or max(layer.head_dim for layer in network.config.layers) > MAX_HEAD_DIM:
        return False
    known = (*_PLAIN, QuantizedLinear, QuantizedEmbedding)
    modules = [module for name, module in network.named_modules() if not name.endswith(".matrix")]
    return all(
        type(module) in known
        and not (module._forward_hooks or module._forward_pre_hooks)
        and getattr(module, "delta", None) is None
        and (not isinstance(module, RMSNorm) or module.weight.dtype == network.dtype)
        for module in modules
        if module is not getattr(network.embed_tokens, "matrix", None)
    )


def _stored(module: nn.Module) -> Tensor | Packed:
    """Return the matrix of a linear or of the table in the form it is stored in; plain bits as an empty tensor."""
    if isinstance(module, QuantizedLinear | QuantizedEmbedding):
        stored = module.matrix.stored
        return stored if isinstance(stored, Packed) else torch.empty(0, dtype=torch.uint8)
    return cast(Tensor, module.weight).detach()


def _layer(block: Block, spec: LayerSpec, cache: KVCache, index: int) -> Layer:
    source = index if spec.kv_source is None else spec.kv_source
    matrices = {
        name: _stored(block.get_submodule(path))
        for name, path in _MATRICES.items()
        if spec.kv_source is None or name not in ("k", "v")
    }
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
        ops.rope_frequencies(head_dim=spec.head_dim, theta=spec.rope_theta, factor=spec.rope_factor),
        stores,
        n_heads=spec.n_heads,
        window=spec.window or 0,
        scale=spec.attn_scale,
        cap=spec.attn_softcap or 0.0,
    )
