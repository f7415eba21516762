"""Metadata <-> configuration: the family's members, llama.cpp's rules, and keys that are missing or wrong."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemsmith.config import ARCHITECTURES, ModelConfig, preset
from gemsmith.errors import CheckpointError, ConfigError
from gemsmith.weights.gguf_config import check_expressible, parse_metadata, render_metadata
from gemsmith.weights.gguf_header import GgufFile
from gemsmith.weights.gguf_metadata import Metadata

EPSILON = float(np.float32(1e-6))
# What llama.cpp's converter writes for Gemma 2 2B.
GEMMA2 = {
    "context_length": 8192, "embedding_length": 2304, "block_count": 26, "feed_forward_length": 9216,
    "attention.head_count": 8, "attention.head_count_kv": 4, "attention.layer_norm_rms_epsilon": EPSILON,
    "attention.key_length": 256, "attention.value_length": 256, "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0, "attention.sliding_window": 4096,
}  # fmt: skip
GEMMA3_1B = {
    "context_length": 32768, "embedding_length": 1152, "block_count": 26, "feed_forward_length": 6912,
    "attention.head_count": 4, "attention.head_count_kv": 1, "attention.layer_norm_rms_epsilon": EPSILON,
    "attention.key_length": 256, "attention.value_length": 256, "rope.freq_base": 1e6, "attention.sliding_window": 512,
}  # fmt: skip
GEMMA_2B = {
    "context_length": 8192, "embedding_length": 2048, "block_count": 18, "feed_forward_length": 16384,
    "attention.head_count": 8, "attention.head_count_kv": 1, "attention.layer_norm_rms_epsilon": EPSILON,
    "attention.key_length": 256, "attention.value_length": 256,
}  # fmt: skip


def parse(family: str, raw: dict[str, Any], *, n_rows: int = 256_000, allowed: tuple[str, ...] = ()) -> ModelConfig:
    """Return what the keys mean; a value of ... removes one."""
    keys = {key if "." in key and key.startswith(("gen", "split")) else f"{family}.{key}": v for key, v in raw.items()}
    keys = {"general.architecture": family, **keys}
    file = GgufFile(Path("x.gguf"), {key: value for key, value in keys.items() if value is not ...}, {})
    special = {"bos_id": 2, "eos_ids": (1,), "pad_id": 0}
    return parse_metadata(Metadata(file), n_rows=n_rows, special=special, allow_config_keys=allowed)


def test_files_of_the_converter_are_the_members_they_say() -> None:
    assert parse("gemma", GEMMA_2B) == preset("gemma-2b")
    assert parse("gemma2", GEMMA2) == preset("gemma-2-2b")
    assert parse("gemma3", GEMMA3_1B, n_rows=262_144) == preset("gemma-3-1b")


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "vaultgemma-1b"])
def test_every_member_is_written_and_read_back(name: str) -> None:
    config = preset(name)
    assert parse(config.family, render_metadata(config), n_rows=config.vocab_size) == config


@pytest.mark.parametrize(("name", "scalar"), [("gemma-2-27b", 144), ("gemma-3-27b", 168), ("gemma-3-12b", 256)])
def test_the_scale_of_27b_is_known_by_its_layers(name: str, scalar: int) -> None:
    config = preset(name)
    read = parse(config.family, render_metadata(config), n_rows=config.vocab_size)
    assert read.layers[0].attn_scale == scalar**-0.5


def test_gemma2_has_the_documented_defaults() -> None:
    missing = ("attn_logit_softcapping", "final_logit_softcapping", "attention.sliding_window")
    assert parse("gemma2", GEMMA2 | dict.fromkeys(missing, ...)) == preset("gemma-2-2b")
    off = parse("gemma2", GEMMA2 | {"attn_logit_softcapping": 0.0, "final_logit_softcapping": 0.0})
    assert off.final_softcap is None
    assert off.layers[0].attn_softcap is None


def test_layers_are_local_and_global_as_the_file_says() -> None:
    def kinds(family: str, raw: dict[str, Any]) -> str:
        return "".join(layer.kind[0] for layer in parse(family, raw).layers)

    assert kinds("gemma2", GEMMA2) == "lg" * 13
    assert kinds("gemma3", GEMMA3_1B) == "lllllg" * 4 + "ll"
    assert kinds("gemma3", GEMMA3_1B | {"attention.sliding_window_pattern": 2}) == "lg" * 13
    assert kinds("gemma3", GEMMA3_1B | {"attention.sliding_window": ...}) == "g" * 26
    said = np.array([index % 5 == 0 for index in range(26)])
    assert kinds("gemma3", GEMMA3_1B | {"attention.sliding_window_pattern": said}) == "lgggg" * 5 + "l"


def test_scaling_binds_global_layers_of_gemma3_only() -> None:
    layers = parse("gemma3", GEMMA3_1B | {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}).layers
    assert [(layers[i].rope_theta, layers[i].rope_factor) for i in (0, 5)] == [(10_000.0, 1.0), (1_000_000.0, 8.0)]
    layers = parse("gemma3", GEMMA3_1B | {"rope.scaling.type": "none", "rope.scaling.factor": 8.0}).layers
    assert layers[5].rope_factor == 1.0
    layers = parse("gemma2", GEMMA2 | {"rope.scale_linear": 4.0, "rope.freq_base": 5000.0}).layers
    assert {(layer.rope_theta, layer.rope_factor) for layer in layers} == {(5000.0, 4.0)}


def test_layers_may_differ_in_width_and_heads() -> None:
    widths, heads = np.arange(1, 27, dtype=np.int32), np.array([4, 8] * 13, np.uint32)
    layers = parse("gemma2", GEMMA2 | {"feed_forward_length": widths, "attention.head_count_kv": heads}).layers
    assert [layer.d_ff for layer in layers] == widths.tolist()
    assert [layer.n_kv_heads for layer in layers] == heads.tolist()


ERRORS = [
    ("gemma2", {"context_length": ...}, r"gemma2.context_length must be a whole number up to \d+; got no such key"),
    ("gemma2", {"block_count": 2**32 - 1}, r"gemma2.block_count must be a whole number up to 512; got 4294967295"),
    ("gemma2", {"block_count": 0}, r"attention.head_count must be at least 1 in at least one layer"),
    ("gemma2", {"embedding_length": -1}, r"embedding_length must be a whole number"),
    ("gemma2", {"embedding_length": 1.5}, r"embedding_length must be a whole number up to \d+; got 1.5"),
    ("gemma2", {"attention.layer_norm_rms_epsilon": ...}, r"layer_norm_rms_epsilon must be a number; got no such key"),
    ("gemma2", {"attention.layer_norm_rms_epsilon": "x"}, r"layer_norm_rms_epsilon must be a number; got 'x'"),
    ("gemma2", {"attention.head_count": 0}, r"head_count must be at least 1 in at least one layer; got \[0"),
    ("gemma2", {"attention.value_length": 128}, r"value_length must be the width of a head, 256; got 128"),
    ("gemma2", {"rope.dimension_count": 128}, r"rope.dimension_count must be the width of a head, 256; got 128"),
    ("gemma2", {"attention.causal": False}, r"attention.causal must be true"),
    ("gemma2", {"attention.causal": 1}, r"attention.causal must be true or false; got 1"),
    ("gemma2", {"vocab_size": 99}, r"vocab_size must be the 256000 rows of the embedding; got 99"),
    ("gemma2", {"rope.scaling.type": "yarn"}, r"rope.scaling.type must be 'none' or 'linear'; got 'yarn'"),
    ("gemma2", {"feed_forward_length": np.ones(3, np.int32)}, r"or 26 of them, up to 2147483648; got \[1, 1, 1\]"),
    ("gemma2", {"feed_forward_length": -np.ones(26, np.int32)}, r"or 26 of them, up to 2147483648; got \[-1"),
    ("gemma2", {"expert_count": 8}, r"got 'gemma2.expert_count' = 8 in .* pass --allow-config-key gemma2.expert_count"),
    ("gemma3", {"rope.freq_base": ...}, r"gemma3.rope.freq_base must be a number; got no such key"),
    ("gemma3", {"attn_logit_softcapping": 50.0}, r"attn_logit_softcapping must be 0 in a 'gemma3'; got 50.0"),
    ("gemma3", {"attention.sliding_window_pattern": np.ones(3, bool)}, r"must say yes or no for 26 layers"),
    ("gemma2", {"attn_logit_softcapping": float("nan")}, r"attn_softcap must be a positive number; got nan"),
    ("gemma2", {"attention.layer_norm_rms_epsilon": -1.0}, r"norm_eps must lie between 0 and 1; got -1.0"),
    ("gemma2", {"attention.layer_norm_rms_epsilon": 1e300}, r"norm_eps must lie between 0 and 1; got inf"),
    ("gemma2", {"attention.head_count": 2**31 - 1}, r"n_heads must be a multiple of n_kv_heads; got 2147483647 and"),
    ("gemma2", {"feed_forward_length": np.full(26, 2**40)}, r"or 26 of them, up to 2147483648; got"),
    ("gemma2", {"rope.freq_base": -5.0}, r"rope_theta must be a positive number; got -5.0"),
    ("llama", {}, r"general.architecture must be one of gemma, gemma2, gemma3; got 'llama'"),
    ("gemma4", {}, r"general.architecture must be one of gemma, gemma2, gemma3; got 'gemma4'"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "change", "message"), ERRORS, ids=[str(place) for place in range(len(ERRORS))])
def test_a_wrong_or_missing_key_is_named(family: str, change: dict[str, Any], message: str) -> None:
    base = {"gemma2": GEMMA2, "gemma3": GEMMA3_1B}.get(family, {})
    with pytest.raises(ConfigError, match=message):
        parse(family, base | change)


def test_an_unknown_key_may_be_allowed() -> None:
    read = parse("gemma2", GEMMA2 | {"expert_count": 8}, allowed=("gemma2.expert_count",))
    assert read == preset("gemma-2-2b")


def test_a_part_of_a_model_is_no_model() -> None:
    with pytest.raises(CheckpointError, match="must be one file; got the first or another of 3 parts"):
        parse("gemma2", GEMMA2 | {"split.count": 3})


def test_a_file_without_an_architecture_is_no_model() -> None:
    with pytest.raises(ConfigError, match=r"general.architecture must be a text; got no such key"):
        Metadata(GgufFile(Path("x.gguf"), {}, {}))


def test_a_model_the_format_has_no_words_for_is_not_written() -> None:
    with pytest.raises(ConfigError, match="family must be gemma, gemma2 or gemma3 to be written as GGUF; got 'vault"):
        render_metadata(preset("vaultgemma-1b"))
    config = preset("gemma-2-2b")
    layers = tuple(replace(layer, attn_scale=0.5) for layer in config.layers)
    with pytest.raises(
        ConfigError, match=r"attn_scale must be what .* got 0.5 in layer 0, which would be read as 0.06"
    ):
        check_expressible(config.replace(layers=layers), config)
    with pytest.raises(ConfigError, match=r"norm_eps must be what readers of GGUF take .* got 0.01, which would be"):
        check_expressible(config.replace(norm_eps=0.01), config)
