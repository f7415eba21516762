"""convert writes a GGUF file, and every verb that takes a model takes it."""

import json
from pathlib import Path

import pytest

from gemsmith.cli.main import main


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "pebble.gguf"
    assert main(["convert", "pebble", str(path), "--type", "q4_0"]) == 0
    return path


def test_the_path_is_the_result(converted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = converted.with_name("other.gguf")
    assert main(["convert", str(converted), str(other), "--type", "f16", "--name", "again"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{other}\n"
    assert "57 tensors in F16, 33 tensors in F32" in err
    assert main(["convert", "pebble", str(other), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["formats"] == {"Q8_0": 57, "F32": 33}
    assert found["n_bytes"] == other.stat().st_size


def test_verbs_take_the_file(converted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(converted), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["family"] == "gemma2"
    words = ["--temperature", "0", "-n", "8", "--json"]
    assert main(["generate", "Once upon a time", "--model", str(converted), *words]) == 0
    assert json.loads(capsys.readouterr().out)["n_tokens"] == 8
    assert main(["verify", str(converted), str(converted)]) == 0
    assert "are the same" in capsys.readouterr().out


def test_a_file_becomes_a_folder(converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["convert", str(converted), str(out), "--type", "f32", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"path": str(out), "n_bytes": found["n_bytes"], "formats": {"F32": 90}}
    assert main(["verify", str(out), str(converted)]) == 0
    assert "are the same" in capsys.readouterr().out


def test_mistakes_are_told(converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert main(["convert", "pebble", str(tmp_path / "x.bin"), "--type", "q8_0"]) == 1
    assert "type must be one of f16, bf16, f32 for a folder; got 'q8_0'. Name a file" in capsys.readouterr().err
    assert main(["convert", "pebble", str(tmp_path / "x.gguf"), "--type", "f32"]) == 1
    assert "type must be one of f16, bf16, q8_0, q4_0; got 'f32'" in capsys.readouterr().err
    assert main(["convert", str(folder), str(tmp_path / "x.gguf")]) == 1
    assert "attn_scale must be what readers of GGUF take" in capsys.readouterr().err
    assert main(["convert", "pebble", str(tmp_path / "x.gguf"), "--type", "q2_k"]) == 2
    assert main(["verify", "--hashes", str(converted)]) == 1
    assert "verify --hashes must be given a folder; got" in capsys.readouterr().err
    (converted.with_name("cut.gguf")).write_bytes(converted.read_bytes()[:100_000])
    assert main(["info", str(converted.with_name("cut.gguf"))]) == 1
    assert "file must be an intact GGUF file" in capsys.readouterr().err
    assert main(["convert", str(bare(folder, tmp_path)), str(tmp_path / "x.gguf")]) == 1
    assert "model must have a tokenizer to be written as GGUF; got none" in capsys.readouterr().err


def bare(folder: Path, tmp_path: Path) -> Path:
    """Return a copy of a model folder without its vocabulary and manifest."""
    place = tmp_path / "bare"
    place.mkdir()
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        (place / name).write_bytes((folder / name).read_bytes())
    return place
