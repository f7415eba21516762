"""Metadata of a GGUF file <-> ModelConfig, by the rules llama.cpp has for Gemma 1, 2 and 3.

A file says less than a config.json: that every second layer of Gemma 2 is global, what the local base
of Gemma 3 is and how queries are scaled stands in llama.cpp's own code, so those rules are part of the
format. Where the rule of the program and that of the family differ, a missing key is an error.

Source: ggml-org/llama.cpp, src/models/gemma{,2,3}.cpp (`load_arch_hparams`) and src/llama-model.cpp.
"""

from collections.abc import Collection
from dataclasses import fields
from typing import Any

import numpy as np

from gemsmith.config import MAX_LAYERS, LayerSpec, ModelConfig
from gemsmith.errors import ConfigError
from gemsmith.weights.gguf_metadata import Metadata, unknown_keys

_LOCAL_THETA = 10_000.0  # of Gemma 3's local layers
# Layer i is global when i + 1 is a multiple of it.
_PATTERNS = {"gemma2": 2, "gemma3": 6}
# Queries are divided by the root of d_model / n_heads, not of head_dim, in these: Gemma 2 and 3 27B.
_N_LAYERS_27B = {"gemma2": 46, "gemma3": 62}
_READ = (
    "context_length", "embedding_length", "block_count", "feed_forward_length", "vocab_size",
    "attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length",
    "attention.key_length_swa", "attention.value_length_swa", "attention.layer_norm_rms_epsilon",
    "attention.sliding_window", "attention.sliding_window_pattern", "attention.causal",
    "attn_logit_softcapping", "final_logit_softcapping", "rope.freq_base", "rope.freq_base_swa",
    "rope.dimension_count", "rope.dimension_count_swa", "rope.scaling.type", "rope.scaling.factor", "rope.scale_linear",
)  # fmt: skip
# How the file was made, or of its image tower.
_HARMLESS = (
    "rope.scaling.original_context_length", "rope.scaling.finetuned", "attention.layer_norm_epsilon",
    "mm.tokens_per_image", "vision.block_count", "vision.embedding_length", "vision.feed_forward_length",
    "vision.image_size", "vision.patch_size", "vision.num_channels", "vision.attention.head_count",
    "vision.attention.layer_norm_epsilon",
)  # fmt: skip


def parse_metadata(
    metadata: Metadata,
    *,
    n_rows: int,
    special: dict[str, Any],
    allow_config_keys: Collection[str] = (),
) -> ModelConfig:
    """Return the configuration a file's metadata describes.

    Args:
        n_rows: Rows of the embedding.
        special: Fields bos_id, eos_ids and pad_id.
        allow_config_keys: Unknown keys to pass over although they could change the numbers.

    Raises:
        ConfigError: A key is missing, unknown, or has a value this network cannot compute.
    """
    unknown_keys(metadata, (*_READ, *_HARMLESS), frozenset(allow_config_keys))
    vocab_size = metadata.count("vocab_size", default=n_rows)
    if vocab_size != n_rows:
        raise metadata.wrong("vocab_size", f"be the {n_rows} rows of the embedding", vocab_size)
    if not metadata.flag("attention.causal", default=True):
        raise metadata.wrong("attention.causal", "be true, as this network computes nothing else", False)
    return ModelConfig(
        family=metadata.architecture,
        vocab_size=n_rows,
        d_model=metadata.count("embedding_length"),
        max_seq_len=metadata.count("context_length"),
        layers=_layers(metadata),
        norm_eps=_single(metadata.number("attention.layer_norm_rms_epsilon")),
        final_softcap=_cap(metadata, "final_logit_softcapping", 30.0),
        **special,
    )


def render_metadata(config: ModelConfig) -> dict[str, int | float | bool | str]:
    """Return the keys of the architecture that say what a model is made of.

    Raises:
        ConfigError: Readers of the format would compute another model; the first such field is named.
    """
    if config.family not in ("gemma", "gemma2", "gemma3"):
        raise ConfigError(
            f"family must be gemma, gemma2 or gemma3 to be written as GGUF; got {config.family!r}. "
            "Keep the folder: no other program reads such a GGUF file."
        )
    first = config.layers[0]
    local = next((layer for layer in config.layers if layer.kind == "local"), None)
    wide = next((layer for layer in config.layers if layer.kind == "global"), first)
    raw: dict[str, int | float | bool | str] = {
        "context_length": config.max_seq_len,
        "embedding_length": config.d_model,
        "block_count": config.n_layers,
        "feed_forward_length": first.d_ff,
        "attention.head_count": first.n_heads,
        "attention.head_count_kv": first.n_kv_heads,
        "attention.key_length": first.head_dim,
        "attention.value_length": first.head_dim,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "rope.dimension_count": first.head_dim,
        "rope.freq_base": wide.rope_theta,
        "vocab_size": config.vocab_size,
    }
    if wide.rope_factor != 1.0:
        raw |= {"rope.scaling.type": "linear", "rope.scaling.factor": wide.rope_factor}
    if local is not None and local.window is not None:
        raw["attention.sliding_window"] = local.window
    if config.family == "gemma2":
        raw["attn_logit_softcapping"] = first.attn_softcap or 0.0
        raw["final_logit_softcapping"] = config.final_softcap or 0.0
    if config.family == "gemma3" and local is not None:
        raw["rope.freq_base_swa"] = local.rope_theta
    return raw


def check_expressible(config: ModelConfig, reread: ModelConfig) -> None:
    """Refuse a model that would read back as another one.

    Raises:
        ConfigError: The first field that differs is named.
    """
    for index, (wanted, got) in enumerate(zip(config.layers, reread.layers, strict=True)):
        for field in fields(wanted):
            ours, theirs = getattr(wanted, field.name), getattr(got, field.name)
            if ours != theirs:
                raise _inexpressible(field.name, ours, theirs, config, f" in layer {index}")
    for field in fields(config):
        ours, theirs = getattr(config, field.name), getattr(reread, field.name)
        if ours != theirs:
            raise _inexpressible(field.name, ours, theirs, config, "")


def _inexpressible(name: str, ours: object, theirs: object, config: ModelConfig, where: str) -> ConfigError:
    return ConfigError(
        f"{name} must be what readers of GGUF take for a {config.family!r}; got {ours!r}{where}, which would be "
        f"read as {theirs!r}. Keep the folder: the format has no word for it."
    )


def _layers(metadata: Metadata) -> tuple[LayerSpec, ...]:
    n_layers = metadata.count("block_count", limit=MAX_LAYERS)
    family = metadata.architecture
    heads = metadata.counts("attention.head_count", n_layers)
    if not heads or min(heads) < 1:
        raise metadata.wrong("attention.head_count", "be at least 1 in at least one layer", heads[:8])
    kv_heads = metadata.counts("attention.head_count_kv", n_layers, default=heads[0])
    widths = metadata.counts("feed_forward_length", n_layers)
    head_dim, scale = _head_dim(metadata, heads[0]), _attn_scale(metadata, heads[0], n_layers)
    cap = _cap(metadata, "attn_logit_softcapping", 50.0) if family == "gemma2" else _no_cap(metadata)
    locals_ = _local_layers(metadata, n_layers)
    window = metadata.count("attention.sliding_window", default=4096) if any(locals_) else None
    ropes = {is_local: _rope(metadata, is_local=is_local) for is_local in set(locals_)}
    return tuple(
        LayerSpec(
            kind="local" if is_local else "global",
            n_heads=heads[index],
            n_kv_heads=kv_heads[index],
            head_dim=head_dim,
            d_ff=widths[index],
            attn_scale=scale,
            window=window if is_local else None,
            attn_softcap=cap,
            rope_theta=ropes[is_local][0],
            rope_factor=ropes[is_local][1],
            has_qk_norm=family == "gemma3",
            norms="pre" if family == "gemma" else "sandwich",
        )
        for index, is_local in enumerate(locals_)
    )


def _head_dim(metadata: Metadata, n_heads: int) -> int:
    head_dim = metadata.count("attention.key_length", default=metadata.count("embedding_length") // n_heads)
    for key in (
        "attention.value_length", "attention.key_length_swa", "attention.value_length_swa",
        "rope.dimension_count", "rope.dimension_count_swa",
    ):  # fmt: skip
        other = metadata.count(key, default=head_dim)
        if other != head_dim:
            raise metadata.wrong(key, f"be the width of a head, {head_dim}", other)
    return head_dim


def _attn_scale(metadata: Metadata, n_heads: int, n_layers: int) -> float:
    if n_layers == _N_LAYERS_27B.get(metadata.architecture):
        scalar = metadata.count("embedding_length") // n_heads
    else:
        scalar = _head_dim(metadata, n_heads)
    if scalar < 1:
        raise metadata.wrong("embedding_length", f"be at least the {n_heads} heads", metadata.get("embedding_length"))
    return float(scalar) ** -0.5


def _local_layers(metadata: Metadata, n_layers: int) -> list[bool]:
    """Tell of every layer whether it has a window."""
    family = metadata.architecture
    # Without a window Gemma 3's layers are all global; that of Gemma 2 has a default.
    if family == "gemma" or (family == "gemma3" and metadata.count("attention.sliding_window", default=0) == 0):
        return [False] * n_layers
    pattern = metadata.get("attention.sliding_window_pattern")
    if isinstance(pattern, np.ndarray):
        if pattern.dtype.kind != "b" or len(pattern) != n_layers:
            raise metadata.wrong("attention.sliding_window_pattern", f"say yes or no for {n_layers} layers", pattern)
        return pattern.tolist()
    every = metadata.count("attention.sliding_window_pattern", default=_PATTERNS[family])
    return [every == 0 or (index + 1) % every != 0 for index in range(n_layers)]


def _rope(metadata: Metadata, *, is_local: bool) -> tuple[float, float]:
    """Return base and position divisor of a kind of layer."""
    # llama.cpp takes 10,000 where Gemma 3's base of 1,000,000 is missing: neither is the file's word.
    default = None if metadata.architecture == "gemma3" else 10_000.0
    theta, factor = _single(metadata.number("rope.freq_base", default=default)), _rope_factor(metadata)
    if is_local and metadata.architecture == "gemma3":
        return _single(metadata.number("rope.freq_base_swa", default=_LOCAL_THETA)), 1.0
    if is_local:
        theta = _single(metadata.number("rope.freq_base_swa", default=theta))
    return theta, factor


def _rope_factor(metadata: Metadata) -> float:
    kind = metadata.get("rope.scaling.type")
    if kind not in (None, "none", "linear"):
        raise metadata.wrong("rope.scaling.type", "be 'none' or 'linear'", kind)
    factor = metadata.number("rope.scaling.factor", default=metadata.number("rope.scale_linear", default=0.0))
    return _single(factor) if factor and kind != "none" else 1.0


def _cap(metadata: Metadata, key: str, gemma2: float) -> float | None:
    """Return a soft cap; Gemma 2's where it leaves it out, and 0 means none."""
    default = gemma2 if metadata.architecture == "gemma2" else 0.0
    return _single(metadata.number(key, default=default)) or None


def _no_cap(metadata: Metadata) -> None:
    cap = metadata.number("attn_logit_softcapping", default=0.0)
    if cap:
        raise metadata.wrong("attn_logit_softcapping", f"be 0 in a {metadata.architecture!r}", cap)


def _single(value: float) -> float:
    """Return the shortest decimal a float32 of the file stands for: 1e-6, not 9.999999974752427e-07."""
    with np.errstate(over="ignore"):  # to infinity, which is refused as such
        return float(str(np.float32(value)))
