"""info counts what a model needs, with weights on this machine or without."""

import json
from pathlib import Path

import pytest

from gemsmith.cli.main import main
from gemsmith.config import preset
from gemsmith.model.cache import cache_bytes
from gemsmith.weights.folder import load_network
from gemsmith.weights.quantized import quantized_modules
from gguf_files import small_gguf, small_network


def info(capsys: pytest.CaptureFixture[str], *argv: str) -> dict:
    assert main(["info", *argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", ["gemma-2-2b", "google/gemma-2-2b-it", "gemma2_instruct_2b_en"])
def test_a_preset_needs_no_weights_and_has_many_names(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = info(capsys, name, "--context", "8192")
    config = preset("gemma-2-2b")
    assert found["n_params"] == 2_614_341_888
    assert found["cache_bytes"] == cache_bytes(config, 8192)
    # 13 local layers hold 4096 + 512 places instead of 8192: 78% of a cache without rings.
    assert found["cache_bytes"] / found["cache_bytes_without_rings"] == pytest.approx((8192 + 4608) / (2 * 8192))
    assert found["memory_bytes"]["bfloat16"] == 2 * found["n_params"] + found["cache_bytes"]
    assert found["memory_bytes"]["float32"] == 2 * found["memory_bytes"]["bfloat16"]
    assert [layer["window"] for layer in found["layers"][:2]] == [4096, None]
    assert found["folder"] is None


def test_context_defaults_to_the_models_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert info(capsys, "gemma-3-1b")["context"] == 32_768


def test_a_folder_is_read_for_what_it_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = info(capsys, str(folder), "--context", "100")
    assert (found["n_layers"], found["d_model"], found["max_seq_len"]) == (4, 40, 256)
    assert found["folder"] == str(folder)


def test_weights_in_few_bits_are_counted_as_they_are_stored(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "q"
    assert main(["quantize", str(folder), str(place), "--scheme", "int8", "--embedding", "int8"]) == 0
    capsys.readouterr()
    found, network = info(capsys, str(place)), load_network(place, dtype="float32").network
    few_bits = quantized_modules(network).values()
    n_norms = sum(parameter.numel() for parameter in network.parameters())
    n_bytes = sum(q.n_bytes for q in few_bits)
    assert found["few_bits"]["n_weights"] == found["n_params"] - n_norms
    # A recorded shape of 16 bytes stands beside each linear.
    assert found["few_bits"]["bytes"] == n_bytes + 16 * (len(few_bits) - 1)
    assert found["weight_bytes"]["float32"] == found["few_bits"]["bytes"] + 4 * n_norms
    assert main(["info", str(place)]) == 0
    assert f"{found['few_bits']['n_weights']:,} of them, in 0.1 MB" in capsys.readouterr().out


def test_a_gguf_file_is_counted_as_it_is_computed_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = small_gguf(tmp_path, kind="q4_0")
    found, network = info(capsys, str(path)), small_network()
    n_norms = sum(p.numel() for name, p in network.named_parameters() if "norm" in name)
    n_matrices = found["n_params"] - n_norms
    assert found["few_bits"] == {"n_weights": n_matrices, "bytes": n_matrices // 32 * 18}
    assert found["weight_bytes"]["bfloat16"] == n_matrices // 32 * 18 + 2 * n_norms
    assert info(capsys, str(small_gguf(tmp_path)))["few_bits"] == {"n_weights": 0, "bytes": 0}


def test_words_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "gemma-2-2b", "--context", "8192"]) == 0
    said = capsys.readouterr().out
    assert "2,614,341,888" in said
    assert "13 local (window 4,096), 13 global" in said


@pytest.mark.parametrize("context", ["0", "8193", "-1"])
def test_a_context_the_model_does_not_have_is_refused(context: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "gemma-2-2b", "--context", context]) != 0
    assert f"1 and the model's 8192 tokens; got {context}" in capsys.readouterr().err


def test_an_unknown_name_is_answered_with_near_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "gemma-2-3b"]) == 1
    assert "gemma-2-2b" in capsys.readouterr().err


def test_a_folder_without_weights_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["info", str(tmp_path / "empty")]) == 1
    assert "empty" in capsys.readouterr().err
