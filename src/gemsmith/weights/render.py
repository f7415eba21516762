"""ModelConfig -> config.json of the Hugging Face layout, in the spellings old and new readers know."""

from dataclasses import fields
from typing import Any

from gemsmith.config import LayerSpec, ModelConfig
from gemsmith.errors import ConfigError
from gemsmith.weights.wire import DEFAULTS, FAMILIES, LAYER_KINDS, parse_config, pattern_words

_ARCHITECTURES = {
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "vaultgemma": "VaultGemmaForCausalLM",
}
_WORDS = {kind: word for word, kind in LAYER_KINDS.items()}


def render_config(config: ModelConfig, *, dtype: str) -> dict[str, Any]:
    """Return the config.json of a model, in the spellings of old and new transformers.

    Args:
        dtype: Of the stored weights, such as "bfloat16".

    Raises:
        ConfigError: The format has no words for this model; the first such layer or field is named.
    """
    model_type = next((wire for wire, family in FAMILIES.items() if family == config.family), config.family)
    if model_type not in DEFAULTS:
        raise ConfigError(
            f"family must be one of gemma, gemma2, gemma3, vaultgemma to be written as config.json; "
            f"got {config.family!r}. Choose the generation whose layers it has."
        )
    first = config.layers[0]
    wide = next((layer for layer in config.layers if layer.kind == "global"), first)
    local = next((layer for layer in config.layers if layer.kind == "local"), wide)
    eos = list(config.eos_ids)
    raw: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[model_type]],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": first.d_ff,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": first.n_heads,
        "num_key_value_heads": first.n_kv_heads,
        "head_dim": first.head_dim,
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "bos_token_id": config.bos_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos,
        "pad_token_id": config.pad_id,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "dtype": dtype,
        "torch_dtype": dtype,
        **_render_rope(model_type, local, wide),
    }
    raw["hidden_activation"] = "gelu_pytorch_tanh"
    if model_type == "gemma":
        raw["hidden_act"] = "gelu_pytorch_tanh"
    else:
        raw |= _render_attention(config, local)
    _check_expressible(config, parse_config(raw))
    return raw


def _render_attention(config: ModelConfig, local: LayerSpec) -> dict[str, Any]:
    scalar = local.attn_scale**-2
    words = [_WORDS.get(layer.kind, layer.kind) for layer in config.layers]
    raw: dict[str, Any] = {
        # Of 144 the double inverse square root is 144.00000000000003; transformers wants the integer.
        "query_pre_attn_scalar": round(scalar) if abs(scalar - round(scalar)) < 1e-9 * scalar else scalar,
        # transformers wants a window even where no layer has one.
        "sliding_window": local.window or DEFAULTS["gemma2"]["sliding_window"],
        "layer_types": words,
        "attn_logit_softcapping": local.attn_softcap,
        "final_logit_softcapping": config.final_softcap,
    }
    pattern = words.index("full_attention") + 1 if "full_attention" in words else 0
    if config.family == "gemma3" and words == pattern_words(pattern, len(words)):
        raw["sliding_window_pattern"] = pattern
    return raw


def _render_rope(model_type: str, local: LayerSpec, wide: LayerSpec) -> dict[str, Any]:
    def rope(layer: LayerSpec) -> dict[str, Any]:
        scaling = {"rope_type": "default"}
        if layer.rope_factor != 1.0:
            scaling = {"rope_type": "linear", "factor": layer.rope_factor}
        return {"rope_theta": layer.rope_theta, **scaling}

    scaling = {"rope_type": "linear", "factor": wide.rope_factor} if wide.rope_factor != 1.0 else None
    old = {"rope_theta": wide.rope_theta, "rope_scaling": scaling}
    if model_type != "gemma3_text":
        return {"rope_parameters": rope(wide), **old}
    new = {"sliding_attention": rope(local), "full_attention": rope(wide)}
    return {"rope_parameters": new, **old, "rope_local_base_freq": local.rope_theta}


def _check_expressible(config: ModelConfig, reread: ModelConfig) -> None:
    if reread == config:
        return
    for index, (wanted, got) in enumerate(zip(config.layers, reread.layers, strict=True)):
        for field in fields(wanted):
            if getattr(wanted, field.name) != getattr(got, field.name):
                raise ConfigError(
                    f"{field.name} must be the one a config.json of {config.family!r} can say; got "
                    f"{getattr(wanted, field.name)!r} in layer {index}, which would read back as "
                    f"{getattr(got, field.name)!r}. Give the layers one size, or choose another family."
                )
    field = next(f.name for f in fields(config) if getattr(config, f.name) != getattr(reread, f.name))
    raise ConfigError(
        f"{field} must be one a config.json of {config.family!r} can say; got {getattr(config, field)!r}, which would "
        f"read back as {getattr(reread, field)!r}. Change it or choose another family."
    )
