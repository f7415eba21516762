"""verify tells the same from the different, and the whole from the damaged, by its exit status too."""

import json
import shutil
from pathlib import Path

import pytest

from gemsmith.cli.main import main


@pytest.fixture
def other(folder: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny model with one weight of layer 2 changed."""
    from gemsmith.tokenizer import Tokenizer
    from gemsmith.weights.folder import load_network, save_folder

    network = load_network(folder).network
    weight = network.layers[2].mlp.gate_proj.weight
    weight.data = weight.data * 1.5
    return save_folder(tmp_path / "other", network, tokenizer=Tokenizer.load(folder))


def test_a_model_is_the_same_as_itself(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(folder), str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["same"] is True
    assert found["max_logit_error"] == 0
    assert found["first_divergence"] is None


def test_a_changed_weight_is_found_in_its_layer(folder: Path, other: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(folder), str(other), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["same"] is False
    assert found["first_divergence"]["layer"] == "layers.2"


def test_the_report_is_told_in_words(
    folder: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("The fox ran home and slept under an old tree. " * 3)
    assert main(["verify", str(folder), str(other), "--text", str(tmp_path / "text.txt")]) == 1
    said = capsys.readouterr().out
    assert "first divergence: layers.2, token 0" in said
    assert "perplexity: " in said
    assert said.splitlines()[-1].endswith("are not the same")


def test_intact_files_are_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--hashes", str(folder), "--json"]) == 0
    assert "model.safetensors" in json.loads(capsys.readouterr().out)["files"]


def test_a_damaged_file_is_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(folder, tmp_path / "damaged")
    path = tmp_path / "damaged" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert main(["verify", "--hashes", str(tmp_path / "damaged")]) == 1
    assert "model.safetensors" in capsys.readouterr().err


def test_a_folder_without_a_record_is_not_called_intact(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder, tmp_path / "published")
    (tmp_path / "published" / "MANIFEST.json").unlink()
    assert main(["verify", "--hashes", str(tmp_path / "published")]) == 1
    assert "nothing was compared" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["pebble"], ["pebble", "--hashes", "folder"]])
def test_half_a_call_is_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", *argv]) == 2
    assert "verify must" in capsys.readouterr().err


def test_a_difference_of_configuration_is_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder, tmp_path / "wide")
    (tmp_path / "wide" / "MANIFEST.json").unlink()
    config = json.loads((tmp_path / "wide" / "config.json").read_text())
    config["final_logit_softcapping"] = 7.0
    (tmp_path / "wide" / "config.json").write_text(json.dumps(config))
    assert main(["verify", str(folder), str(tmp_path / "wide")]) == 1
    assert "final_softcap: 3.0 and 7.0" in capsys.readouterr().out
