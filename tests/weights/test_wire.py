"""config.json in every spelling its writers have used, and what it refuses."""

import re
from dataclasses import replace
from typing import Any

import pytest
import transformers as hf

from gemsmith.config import ARCHITECTURES, ModelConfig, preset
from gemsmith.errors import ConfigError
from gemsmith.weights.render import render_config
from gemsmith.weights.wire import parse_config
from tiny import FAMILIES, tiny_config

CLASSES = {
    "gemma": hf.GemmaConfig,
    "gemma2": hf.Gemma2Config,
    "gemma3_text": hf.Gemma3TextConfig,
    "vaultgemma": hf.VaultGemmaConfig,
}

# Written as the files on the hub are: the keys their writers stored, in the words of their time.
HUB: dict[str, dict[str, Any]] = {
    "google/gemma-2b": {
        "architectures": ["GemmaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 2,
        "eos_token_id": 1, "head_dim": 256, "hidden_act": "gelu", "hidden_size": 2048, "initializer_range": 0.02,
        "intermediate_size": 16384, "max_position_embeddings": 8192, "model_type": "gemma", "num_attention_heads": 8,
        "num_hidden_layers": 18, "num_key_value_heads": 1, "pad_token_id": 0, "rms_norm_eps": 1e-06,
        "rope_scaling": None, "rope_theta": 10000.0, "torch_dtype": "bfloat16", "transformers_version": "4.38.0.dev0",
        "use_cache": True, "vocab_size": 256000,
    },
    "google/gemma-7b": {"model_type": "gemma", "hidden_activation": None, "hidden_act": "gelu_pytorch_tanh"},
    "google/gemma-2-9b": {
        "attn_logit_softcapping": 50.0, "cache_implementation": "hybrid", "eos_token_id": 1,
        "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 3584, "intermediate_size": 14336,
        "model_type": "gemma2", "num_attention_heads": 16, "num_hidden_layers": 42, "num_key_value_heads": 8,
        "query_pre_attn_scalar": 256, "rope_theta": 10000.0, "sliding_window": 4096, "sliding_window_size": 4096,
        "torch_dtype": "float32", "use_cache": True,
    },
    "google/gemma-2-27b": {
        "model_type": "gemma2", "head_dim": 128, "hidden_size": 4608, "intermediate_size": 36864,
        "num_attention_heads": 32, "num_hidden_layers": 46, "num_key_value_heads": 16, "query_pre_attn_scalar": 144,
    },
    "google/gemma-3-1b-pt": {
        "model_type": "gemma3_text", "attn_logit_softcapping": None, "final_logit_softcapping": None, "head_dim": 256,
        "hidden_size": 1152, "intermediate_size": 6912, "max_position_embeddings": 32768, "num_attention_heads": 4,
        "num_hidden_layers": 26, "num_key_value_heads": 1, "query_pre_attn_scalar": 256, "rope_local_base_freq": 10000,
        "rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6,
        "vocab_size": 262144,
    },
    "google/gemma-3-270m": {
        "model_type": "gemma3_text", "_sliding_window_pattern": 6, "hidden_size": 640, "intermediate_size": 2048,
        "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3, "max_position_embeddings": 32768,
        "num_attention_heads": 4, "num_hidden_layers": 18, "num_key_value_heads": 1, "sliding_window": 512,
        "use_bidirectional_attention": False, "vocab_size": 262144,
    },
    "google/gemma-3-4b-pt": {
        "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999, "eoi_token_index": 256000,
        "image_token_index": 262144, "initializer_range": 0.02, "mm_tokens_per_image": 256, "model_type": "gemma3",
        "text_config": {
            "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
        },
        "torch_dtype": "bfloat16", "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
    },
    "google/vaultgemma-1b": {
        "model_type": "vaultgemma", "hidden_size": 1152, "intermediate_size": 6912, "num_attention_heads": 4,
        "layer_types": ["full_attention"] * 26, "max_position_embeddings": 1024, "num_key_value_heads": 4,
        "sliding_window": 512,
    },
}  # fmt: skip


def raw_of(family: str = "gemma2", **changes: Any) -> dict[str, Any]:
    """Return the file of a small model with some keys changed; ... removes one."""
    raw = render_config(tiny_config(family), dtype="float32") | changes
    return {key: value for key, value in raw.items() if value is not ...}


@pytest.mark.parametrize("name", HUB)
def test_files_of_the_hub_give_the_presets(name: str) -> None:
    wanted = preset(name)
    if name == "google/gemma-3-4b-pt":
        # The hub's file pads the table by 64 rows for the image tokens.
        wanted = wanted.replace(vocab_size=262_208)
    assert parse_config(HUB[name]) == wanted


@pytest.mark.parametrize("model_type", CLASSES)
def test_a_missing_key_is_the_default_of_its_class(model_type: str) -> None:
    assert parse_config({"model_type": model_type}) == parse_config(CLASSES[model_type]().to_dict())


@pytest.mark.parametrize("model_type", CLASSES)
def test_files_of_transformers_are_read_in_full_and_as_differences(model_type: str) -> None:
    changes = {"hidden_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "vocab_size": 99}
    config = CLASSES[model_type](**changes, num_hidden_layers=7, eos_token_id=[1, 9])
    read = parse_config(config.to_dict())
    assert parse_config(config.to_diff_dict()) == read
    assert (read.d_model, read.n_layers, read.vocab_size, read.eos_ids) == (48, 7, 99, (1, 9))
    assert (read.layers[0].n_heads, read.layers[0].n_kv_heads, read.layers[0].head_dim) == (4, 2, 6)


def test_outer_file_of_a_multimodal_model_names_the_special_ids() -> None:
    assert parse_config(HUB["google/gemma-3-4b-pt"] | {"eos_token_id": [1, 106]}).eos_ids == (1, 106)


def test_trap_gelu_of_gemma_1_means_its_tanh_form() -> None:
    assert parse_config(raw_of("gemma", hidden_act="gelu", hidden_activation=...)) == tiny_config("gemma")
    with pytest.raises(ConfigError, match=r"hidden_activation must be .*; got 'gelu'"):
        parse_config(raw_of("gemma2", hidden_activation="gelu"))


def test_trap_head_dim_is_never_derived_from_the_width() -> None:
    read = parse_config({"model_type": "gemma", "hidden_size": 3072, "num_attention_heads": 16})
    assert read.layers[0].head_dim == 256


def test_trap_scale_of_27b_is_not_the_root_of_head_dim() -> None:
    read = parse_config(HUB["google/gemma-2-27b"])
    assert read.layers[0].attn_scale == 144**-0.5 != read.layers[0].head_dim ** -0.5


def test_trap_old_rope_scaling_of_gemma_3_touches_global_layers_only() -> None:
    read = parse_config(HUB["google/gemma-3-4b-pt"])
    assert {(layer.kind, layer.rope_factor) for layer in read.layers} == {("local", 1.0), ("global", 8.0)}


def test_old_and_new_rope_spellings_agree() -> None:
    new = raw_of("gemma3", rope_theta=..., rope_scaling=..., rope_local_base_freq=...)
    old = raw_of("gemma3", rope_parameters=...)
    assert parse_config(new) == parse_config(old) == tiny_config("gemma3")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_preset_survives_the_file(name: str) -> None:
    config = preset(name)
    assert parse_config(render_config(config, dtype="bfloat16")) == config


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_reads_our_files_without_a_key_left_over(family: str) -> None:
    raw = render_config(tiny_config(family), dtype="float32")
    theirs = CLASSES[raw["model_type"]].from_dict(dict(raw))
    assert parse_config(theirs.to_dict()) == tiny_config(family)


def test_two_eos_ids_survive_the_file() -> None:
    config = tiny_config().replace(eos_ids=(1, 107))
    assert parse_config(render_config(config, dtype="float32")).eos_ids == (1, 107)


WRONG_FILES = [
    ({"model_type": "llama"}, "model_type must be one of .*; got 'llama'"),
    ({"model_type": ...}, "model_type must be one of .*; got None"),
    ({"n_experts": 4}, "'n_experts' = 4 .* pass --allow-config-key n_experts"),
    ({"auto_map": {"AutoModel": "x.py"}}, "got 'auto_map', which names code to run"),
    ({"attention_bias": True}, "attention_bias must be None or False; got True"),
    ({"tie_word_embeddings": False}, "tie_word_embeddings must be True; got False"),
    ({"use_bidirectional_attention": True}, "use_bidirectional_attention must be .*; got True"),
    ({"attn_implementation": "org/kernel"}, "attn_implementation must be .*; got 'org/kernel'"),
    ({"quantization_config": {"bits": 4}}, r"quantization_config must be None; got \{'bits': 4\}"),
    ({"hidden_activation": "silu"}, "hidden_activation must be .*; got 'silu'"),
    ({"hidden_size": "40"}, "hidden_size must be a whole number; got '40'"),
    ({"hidden_size": 40.5}, "hidden_size must be a whole number; got 40.5"),
    ({"hidden_size": 10**400}, r"hidden_size must be at most 2147483648; got 10{59} in"),
    ({"rms_norm_eps": -(10**400)}, r"rms_norm_eps must be at most 2147483648; got -10+ in"),
    ({"rms_norm_eps": -1.0}, r"norm_eps must lie between 0 and 1; got -1.0"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers must be at most 512; got 1000000000"),
    ({"num_attention_heads": 2**31 - 1}, "n_heads must be a multiple of n_kv_heads; got 2147483647 and 2"),
    ({"head_dim": None}, "head_dim must be a whole number; got None"),
    ({"rms_norm_eps": True}, "rms_norm_eps must be a number; got True"),
    ({"query_pre_attn_scalar": -1}, "query_pre_attn_scalar must be positive; got -1"),
    ({"eos_token_id": [1, "2"]}, "eos_token_id must be a whole number; got '2'"),
    ({"sliding_window": None}, "sliding_window must be a whole number; got None"),
    ({"sliding_window_size": 9}, r"sliding_window and sliding_window_size must agree; got \[8, 9\]"),
    ({"layer_types": ["full_attention"]}, r"layer_types must list 4 layers; got \['full_attention'\]"),
    ({"layer_types": ["mamba"] * 4}, "layer_types must hold .* only; got 'mamba'"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_type must be 'default' or 'linear'; got 'yarn'"),
    ({"rope_scaling": {"type": "linear"}}, "factor must be a number; got None"),
    ({"rope_scaling": {"low_freq_factor": 1}}, "rope_scaling must be .*; got 'low_freq_factor'"),
    ({"rope_scaling": "linear"}, "rope_scaling must be an object .*; got 'linear'"),
    ({"rope_theta": 500.0}, r"must agree; got bases \[500.0, 10000.0\]"),
    ({"rope_parameters": {"rope_theta": "1e4"}}, "rope_theta must be a number; got '1e4'"),
    ({"num_key_value_heads": 3}, "n_heads must be a multiple of n_kv_heads; got 4 and 3"),
]


@pytest.mark.parametrize(
    ("changes", "message"), WRONG_FILES, ids=[next(iter(c)) + str(i) for i, (c, _) in enumerate(WRONG_FILES)]
)
def test_a_wrong_file_is_refused_by_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(raw_of("gemma2", **changes))


def test_multimodal_file_without_text_model_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"text_config must hold .*; got None"):
        parse_config({"model_type": "gemma3"})


def test_unknown_key_inside_text_config_is_refused_by_name() -> None:
    raw = {"model_type": "gemma3", "text_config": {"altup_num_inputs": 4}}
    with pytest.raises(ConfigError, match=r"'altup_num_inputs' = 4 in text_config of config.json"):
        parse_config(raw)


def test_an_allowed_key_passes_and_code_never_does() -> None:
    raw = raw_of("gemma2", n_experts=4, auto_map={})
    assert parse_config(raw_of("gemma2", n_experts=4), allow_config_keys=["n_experts"]) == tiny_config("gemma2")
    with pytest.raises(ConfigError, match="got 'auto_map'"):
        parse_config(raw, allow_config_keys=["n_experts", "auto_map"])


def mixed(**changes: Any) -> ModelConfig:
    config = tiny_config("gemma2")
    return config.replace(layers=(*config.layers[:-1], replace(config.layers[-1], **changes)))


INEXPRESSIBLE = [
    (mixed(d_ff=80), "d_ff must be the one a config.json of 'gemma2' can say; got 80 in layer 3"),
    (mixed(rope_theta=5.0), "rope_theta must be .*; got 5.0 in layer 3"),
    (mixed(kind="mamba"), "layer_types must hold .*; got 'mamba'"),
    (mixed(norms="pre"), "norms must be .*; got 'pre' in layer 3"),
    (tiny_config("gemma").replace(final_softcap=3.0), "final_softcap must be .*; got 3.0"),
    (tiny_config().replace(family="gemma9"), "family must be one of .*; got 'gemma9'"),
]


@pytest.mark.parametrize(
    ("config", "message"),
    INEXPRESSIBLE,
    ids=[re.sub(r"\W.*", "", m) + str(i) for i, (_, m) in enumerate(INEXPRESSIBLE)],
)
def test_what_the_file_cannot_say_is_not_written(config: ModelConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        render_config(config, dtype="float32")
