"""info counts what a model needs, with weights on this machine or without."""

import json
from pathlib import Path

import pytest

from gemsmith.cli.main import main
from gemsmith.config import preset
from gemsmith.model.cache import cache_bytes


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
