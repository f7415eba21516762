"""quantization_config: what is written reads back, and nothing unknown passes."""

import re
from typing import Any

import pytest

from gemsmith.errors import ConfigError
from gemsmith.kernels.quantized import Scheme
from gemsmith.weights.compressed import parse_quantization, render_quantization

LINEARS = ("layers.0.self_attn.q_proj", "layers.0.mlp.up_proj")
INT4, INT8 = Scheme(4, 32, is_symmetric=False), Scheme(8, None)


def rendered(**changes: Any) -> dict[str, Any]:
    return render_quantization(dict.fromkeys(LINEARS, INT4) | {"embed_tokens": INT8}, LINEARS) | changes


def test_what_is_written_reads_back() -> None:
    assert parse_quantization(rendered()) == {INT4, INT8}
    mixed = render_quantization({LINEARS[0]: INT4, LINEARS[1]: Scheme(8, 64)}, LINEARS)
    assert parse_quantization(mixed) == {INT4, Scheme(8, 64)}


def test_one_scheme_for_all_linears_is_named_by_their_kind() -> None:
    raw = rendered()
    assert raw["config_groups"]["group_0"]["targets"] == ["Linear"]
    assert raw["config_groups"]["group_1"]["targets"] == ["model.embed_tokens", "lm_head"]
    assert [group["format"] for group in raw["config_groups"].values()] == ["pack-quantized", "naive-quantized"]
    assert raw["format"] == "mixed-precision"


def test_dense_tensors_are_listed() -> None:
    raw = render_quantization({LINEARS[0]: INT4}, LINEARS)
    assert raw["ignore"] == ["model.layers.0.mlp.up_proj", "lm_head"]
    assert raw["format"] == "pack-quantized"


def test_several_schemes_name_their_tensors() -> None:
    raw = render_quantization({LINEARS[0]: INT4, LINEARS[1]: INT8}, LINEARS)
    assert [group["targets"] for group in raw["config_groups"].values()] == [[f"model.{name}"] for name in LINEARS]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quant_method": "gptq"}, "quant_method must be 'compressed-tensors'; got 'gptq' in quantization_config"),
        ({"format": "marlin-24"}, "format must be .*; got 'marlin-24'"),
        ({"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme must be None or {} or []; got {'num_bits': 8}"),
        ({"rotation": "hadamard"}, "must have known keys only; got 'rotation' = 'hadamard' in quantization_config"),
        ({"quantization_status": "frozen"}, "quantization_status must be 'compressed'; got 'frozen'"),
        ({"config_groups": {}}, "config_groups must be an object of groups; got {}"),
        ({"config_groups": {"g": 3}}, "must be described by an object; got 3 in config_groups.g"),
    ],
)
def test_what_could_change_the_numbers_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message) if "*" not in message else message):
        parse_quantization(rendered(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_bits": 5}, "num_bits must be 4 or 8; got 5"),
        ({"num_bits": 4.0}, "num_bits must be 4 or 8; got 4.0"),
        ({"type": "float"}, "type must be 'int'; got 'float'"),
        ({"actorder": "group"}, "actorder must be .*; got 'group'"),
        ({"group_size": -1}, "group_size must be a count for groups alone; got -1"),
        ({"strategy": "channel"}, "group_size must be a count for groups alone; got 32"),
        ({"dynamic": True}, "dynamic must be False; got True"),
        ({"permutation": [1]}, r"known keys only; got 'permutation' = \[1\]"),
    ],
)
def test_weights_of_other_kinds_are_refused(changes: dict[str, Any], message: str) -> None:
    raw = rendered()
    raw["config_groups"]["group_0"]["weights"] |= changes
    with pytest.raises(ConfigError, match=message):
        parse_quantization(raw)


def test_rounded_inputs_are_refused() -> None:
    raw = rendered()
    raw["config_groups"]["group_0"]["input_activations"] = {"num_bits": 8}
    with pytest.raises(ConfigError, match=r"input_activations must be None; got \{'num_bits': 8\}"):
        parse_quantization(raw)
