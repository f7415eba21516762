"""Gemma 3 files as Ollama's converter writes them are the members they say."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gemsmith.config import ModelConfig, preset
from gemsmith.weights import gguf_load
from gemsmith.weights.gguf_config import parse_metadata
from gemsmith.weights.gguf_header import GgufFile, read_gguf
from gemsmith.weights.gguf_load import GgufModel
from gemsmith.weights.gguf_metadata import Metadata
from gemsmith.weights.gguf_ollama import in_common_words
from gguf_files import small_gguf

# convert_gemma3.go, first for a text model, then for one with an image tower.
TEXT_1B = {
    "context_length": 32768, "embedding_length": 1152, "block_count": 26, "feed_forward_length": 6912,
    "attention.head_count": 4, "attention.head_count_kv": 1, "attention.layer_norm_rms_epsilon": 1e-6,
    "attention.key_length": 256, "attention.value_length": 256, "attention.sliding_window": 512,
    "final_logit_softcapping": 30.0, "rope.local.freq_base": 10_000.0, "rope.global.freq_base": 1_000_000.0,
}  # fmt: skip
SEEING_4B = {
    "context_length": 131_072, "embedding_length": 2560, "block_count": 34, "feed_forward_length": 10240,
    "attention.head_count": 8, "attention.head_count_kv": 4, "attention.key_length": 256,
    "attention.value_length": 256, "attention.sliding_window": 1024, "mm.tokens_per_image": 256,
    "vision.block_count": 27, "vision.embedding_length": 1152, "vision.feed_forward_length": 4304,
    "vision.image_size": 896, "vision.patch_size": 14, "vision.num_channels": 3, "vision.attention.head_count": 16,
    "vision.attention.layer_norm_epsilon": 1e-6,
}  # fmt: skip


def file_of(raw: dict[str, Any]) -> GgufFile:
    keys = {f"gemma3.{key}": value for key, value in raw.items()}
    return GgufFile(Path("x.gguf"), {"general.architecture": "gemma3", **keys}, {})


def parse(raw: dict[str, Any], *, n_rows: int) -> ModelConfig:
    special = {"bos_id": 2, "eos_ids": (1,), "pad_id": 0}
    return parse_metadata(Metadata(in_common_words(file_of(raw))), n_rows=n_rows, special=special)


def test_files_of_ollama_are_the_members_they_say() -> None:
    assert parse(TEXT_1B, n_rows=262_144) == preset("gemma-3-1b")
    wanted = preset("gemma-3-4b")
    assert parse(SEEING_4B, n_rows=wanted.vocab_size) == wanted
    assert {layer.rope_factor for layer in wanted.layers if layer.kind == "global"} == {8.0}


def test_what_a_file_says_itself_stays() -> None:
    said = {
        "rope.scaling.type": "linear",
        "rope.scaling.factor": 4.0,
        "rope.freq_base": 5e5,
        "rope.global.freq_base": 7.0,
    }
    layers = parse(SEEING_4B | said | {"rope.local.freq_base": 2e4}, n_rows=262_144).layers
    assert [(layers[i].rope_theta, layers[i].rope_factor) for i in (0, 5)] == [(2e4, 1.0), (5e5, 4.0)]
    without_window = {**SEEING_4B, "final_logit_softcapping": 20.0}
    assert parse(without_window, n_rows=262_144).final_softcap == 20.0  # only the 1B's is a mistake


@pytest.mark.parametrize("family", ["gemma", "gemma2", "gemma3"])
def test_files_of_others_stay_as_they_are(family: str, tmp_path: Path) -> None:
    file = read_gguf(small_gguf(tmp_path, family))
    assert in_common_words(file) is file
    # Without a mark a missing key stays an error: nobody knows who wrote it.
    plain = file_of({key: value for key, value in TEXT_1B.items() if ".freq_base" not in key})
    assert in_common_words(plain) is plain


def test_a_file_spelled_so_loads_as_the_same_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = small_gguf(tmp_path, "gemma3")
    wanted, file = GgufModel(path).config, read_gguf(path)
    spelled = {
        key.replace("rope.freq_base_swa", "rope.local.freq_base").replace("rope.freq_base", "rope.global.freq_base"): v
        for key, v in file.metadata.items()
        if key != "gemma3.attention.layer_norm_rms_epsilon"
    }
    assert {"gemma3.rope.local.freq_base", "gemma3.rope.global.freq_base"} <= set(spelled)
    monkeypatch.setattr(gguf_load, "read_gguf", lambda _: replace(file, metadata=spelled))
    model = GgufModel(path)
    assert model.config == wanted
    assert model.network().network.config == wanted
