import math
from dataclasses import replace

import pytest

from gemsmith.config import PUBLISHED, LayerSpec, ModelConfig, canonical_name, nearest_names, preset
from gemsmith.errors import ConfigError, GemsmithError, ModelNotFoundError

LAYER = LayerSpec("global", 4, 2, 8, 16, attn_scale=0.35)
CONFIG = ModelConfig("gemma2", 100, 32, 64, (LAYER,))


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("google/gemma-2-2b-it", "gemma-2-2b"),
        ("gemma-2-2b-it", "gemma-2-2b"),
        ("gemma_2b_en", "gemma-2b"),
        ("gemma_instruct_7b_en", "gemma-7b"),
        ("google/codegemma-7b-it", "gemma-7b"),
        ("google/shieldgemma-27b", "gemma-2-27b"),
        ("google/gemma-2-2b-jpn-it", "gemma-2-2b"),
        ("google/functiongemma-270m-it", "gemma-3-270m"),
        ("gemma3_instruct_12b", "gemma-3-12b"),
        ("vault_gemma_1b_en", "vaultgemma-1b"),
        ("gemma-3-27b", "gemma-3-27b"),
    ],
)
def test_members_are_found_under_the_names_people_know(name: str, architecture: str) -> None:
    assert preset(name) == preset(architecture)


def test_every_published_name_has_a_configuration() -> None:
    for hub_name, (architecture, keras_name) in PUBLISHED.items():
        assert preset(hub_name) == preset(architecture)
        assert canonical_name(hub_name.removeprefix("google/")) == hub_name
        if keras_name is not None:
            assert canonical_name(keras_name) == hub_name


def test_unknown_name_is_answered_with_the_nearest_ones() -> None:
    with pytest.raises(ModelNotFoundError, match=r"got 'google/gema-2-2b-it'\. Did you mean google/gemma-2-2b-it"):
        preset("google/gema-2-2b-it")
    assert nearest_names("qwertz") == ["pebble", "google/gemma-2-2b-it"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_kv_heads": 3}, r"n_heads must be a multiple of n_kv_heads; got 4 and 3\. Use n_kv_heads of 1, 2, 4"),
        ({"n_heads": 2**62, "n_kv_heads": 3}, r"; got 4611686018427387904 and 3\. Use n_kv_heads of 1, 2, .*, 256\.$"),
        ({"head_dim": 7}, "head_dim must be even for rotary positions; got 7"),
        ({"d_ff": 0}, "must be at least 1; got 4, 2, 8 and 0"),
        ({"window": 5}, "None for a global one; got 5 in a 'global' layer"),
        ({"kind": "local"}, "a number for a local layer.*got None in a 'local' layer"),
        ({"kind": "local", "window": 0}, "window must be at least 1.*got 0"),
        ({"attn_softcap": 0.0}, r"attn_softcap must be a positive number; got 0\.0\. Use None to switch the cap off"),
        ({"attn_scale": math.nan}, "attn_scale must be a positive number; got nan"),
        ({"rope_factor": -1.0}, r"rope_factor must be a positive number; got -1\.0"),
        ({"norms": "post"}, "norms must be one of pre, pre_ffw, sandwich; got 'post'"),
    ],
)
def test_layers_that_cannot_be_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(LAYER, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 0}, "vocab_size must be at least 1; got 0"),
        ({"norm_eps": 0.0}, r"norm_eps must lie between 0 and 1; got 0\.0"),
        ({"norm_eps": -1.0}, r"norm_eps must lie between 0 and 1; got -1\.0"),
        ({"norm_eps": 1e300}, r"norm_eps must lie between 0 and 1; got 1e\+300"),
        ({"norm_eps": math.nan}, "norm_eps must lie between 0 and 1; got nan"),
        ({"layers": ()}, "layers must hold at least one LayerSpec; got none"),
        ({"final_softcap": -30.0}, r"final_softcap must be a positive number; got -30\.0"),
        ({"bos_id": 100}, "bos_id must lie within the 100 rows of the embedding; got 100"),
        ({"eos_ids": (1, 106)}, "eos_ids must lie within the 100 rows of the embedding; got 106"),
        ({"layers": (LAYER, replace(LAYER, kv_source=1))}, "kv_source must name an earlier layer.*got 1 in layer 1"),
        (
            {"layers": (LAYER, replace(LAYER, n_kv_heads=4, kv_source=0))},
            "kv_source must name a layer of the same heads and window; got layer 0 for layer 1",
        ),
    ],
)
def test_models_that_cannot_be_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CONFIG.replace(**changes)


def test_every_error_is_one_of_ours_and_prints_its_message() -> None:
    for kind in GemsmithError.__subclasses__():
        assert str(kind("n must be 1; got 2.")) == "n must be 1; got 2."
    assert issubclass(ModelNotFoundError, KeyError)
