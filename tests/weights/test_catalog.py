"""Names to folders, and the list of what is here."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gemsmith.errors import CheckpointError, ModelNotFoundError
from gemsmith.weights import catalog
from gemsmith.weights.catalog import find_model, hub_cache, list_models
from gemsmith.weights.gguf_load import GgufModel
from gemsmith.weights.memory import WORKSPACE_BYTES
from gguf_files import STRING, gguf, key, small_gguf, text
from tiny import tiny_config

COMMITS = ("a" * 40, "b" * 40)


@pytest.fixture
def cached(folder: Path) -> Path:
    """The same model in the Hugging Face cache, in two revisions."""
    repository = hub_cache() / "models--google--gemma-2-2b-it"
    for commit in COMMITS:
        shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMITS[0])
    return repository


def test_a_folder_is_itself(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_model(str(folder)) == folder
    monkeypatch.chdir(folder.parent)
    assert find_model("model") == Path("model")
    monkeypatch.setenv("HOME", str(folder.parent))
    assert find_model("~/model") == folder


def test_pebble_is_the_box(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "_box", lambda: folder)
    assert find_model("pebble") == folder
    assert list_models(around=folder)[0].place == "box"


@pytest.mark.parametrize("name", ["google/gemma-2-2b-it", "gemma-2-2b-it", "gemma2_instruct_2b_en"])
def test_a_cached_model_is_found_by_every_name_at_its_main_revision(name: str, cached: Path) -> None:
    assert find_model(name) == cached / "snapshots" / COMMITS[0]


def test_without_a_reference_the_newest_snapshot_is_taken(cached: Path) -> None:
    (cached / "refs" / "main").unlink()
    os.utime(cached / "snapshots" / COMMITS[0], (1, 1))
    assert find_model("google/gemma-2-2b-it").name == COMMITS[1]


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({"HF_HUB_CACHE": "/x/hub"}, "/x/hub"),
        ({"HF_HOME": "/x/home"}, "/x/home/hub"),
        ({"HF_HUB_CACHE": "/x/hub", "HF_HOME": "/x/home"}, "/x/hub"),
        ({"XDG_CACHE_HOME": "/x/cache"}, "/x/cache/huggingface/hub"),
        ({"HOME": "/x"}, "/x/.cache/huggingface/hub"),
    ],
)
def test_the_cache_is_where_its_variables_say(
    variables: dict[str, str], place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert hub_cache() == Path(place)


def test_a_half_written_download_says_how_to_complete_it(cached: Path) -> None:
    (cached / "snapshots" / COMMITS[0] / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="To complete the download: gemsmith pull google/gemma-2-2b-it"):
        find_model("gemma-2-2b-it")


UNKNOWN = [
    (
        "google/gemma-2-2b-it",
        "got 'google/gemma-2-2b-it', which is not here yet. Fetch it: gemsmith pull google/gemma-2-2b-it",
    ),
    ("gemma_2b_en", "got 'gemma_2b_en', which is not here yet. Fetch it: gemsmith pull google/gemma-2b"),
    ("peble", "got 'peble'. Did you mean pebble"),
    ("gema-3-1b-it", "Did you mean .*google/gemma-3-1b-it"),
    ("someone/tuned-gemma", "If it is on the hub: gemsmith pull someone/tuned-gemma"),
    ("kaggle:a/b/transformers/c", "Fetch it: gemsmith pull kaggle:a/b/transformers/c"),
    ("./nowhere", "got './nowhere'"),
    ("", "got ''"),
]


@pytest.mark.parametrize(("name", "message"), UNKNOWN, ids=[name or "empty" for name, _ in UNKNOWN])
def test_an_unknown_name_is_told_what_to_do(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFoundError, match=message):
        find_model(name)


def test_a_name_like_a_model_here_is_offered_it(cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFoundError, match=r"Did you mean ./model"):
        find_model("mode1")


def test_files_and_folders_without_weights_are_named(tmp_path: Path) -> None:
    (tmp_path / "gemma.gguf").write_bytes(b"GGUF")
    assert find_model(str(tmp_path / "gemma.gguf")) == tmp_path / "gemma.gguf"
    with pytest.raises(CheckpointError, match=r"holds 'gemma.gguf', a GGUF file"):
        find_model(str(tmp_path))


def test_everything_here_is_listed_with_its_size(cached: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kaggle = Path(os.environ["KAGGLEHUB_CACHE"]) / "models/google/gemma-2/transformers/gemma-2-2b"
    for version in ("2", "10"):
        shutil.copytree(folder, kaggle / version)
    monkeypatch.setattr(catalog, "_box", lambda: folder.parent / "nowhere")
    entries = list_models(around=folder.parent)
    assert [(entry.name, entry.place) for entry in entries] == [
        ("./model", "folder"),
        ("google/gemma-2-2b-it", "hub"),
        ("kaggle:google/gemma-2/transformers/gemma-2-2b", "kaggle"),
    ]
    assert entries[2].path.name == "10"
    n_bytes = (folder / "model.safetensors").stat().st_size
    assert {(e.n_bytes, e.n_params, e.note) for e in entries} == {(n_bytes, tiny_config("gemma2").n_params, "fits")}


def test_a_model_too_large_is_listed_with_what_it_needs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "available_bytes", lambda: 1000)
    assert "needs 268.7 MB here" in {entry.note for entry in list_models(around=folder.parent)}


def test_damaged_models_are_listed_with_the_reason_and_strangers_are_not(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    other = folder.parent / "llama"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "llama"}))
    notes = {entry.name: entry.note for entry in list_models(around=folder.parent)}
    assert "./llama" not in notes
    assert notes["./model"].startswith("folder must hold model.safetensors")
    (folder / "config.json").write_text("{")
    notes = {entry.name: entry.note for entry in list_models(around=folder.parent)}
    assert notes["./model"].startswith("config.json must be a JSON object")


def test_a_folder_in_bits_that_are_not_read_does_not_fit(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "awq"}}))
    (entry,) = (entry for entry in list_models(around=folder.parent) if entry.place == "folder")
    assert "quant_method must be 'compressed-tensors'; got 'awq'" in entry.note


def test_finding_and_listing_need_neither_torch_nor_a_network() -> None:
    script = (
        "import sys, socket; socket.socket.connect = None\n"
        "from gemsmith.weights import catalog, hub\n"
        "catalog.list_models()\n"
        "assert not {'torch', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_gguf_files_are_listed_and_image_towers_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = small_gguf(tmp_path, "gemma2", "q4_0")
    config = GgufModel(path).config
    (tmp_path / "mmproj.gguf").write_bytes(gguf((key("general.architecture", STRING, text("clip")),)))
    (tmp_path / "torn.gguf").write_bytes(path.read_bytes()[:100])
    monkeypatch.setattr(catalog, "_box", lambda: tmp_path / "nowhere")
    listed = {entry.name: entry for entry in list_models(around=tmp_path)}
    assert sorted(listed) == ["./gemma2-q4_0.gguf", "./torn.gguf"]
    entry = listed["./gemma2-q4_0.gguf"]
    assert (entry.place, entry.n_params, entry.n_bytes) == ("file", config.n_params, path.stat().st_size)
    # Norms, a vector each, are all that grows.
    assert 0 < entry.needed_bytes - WORKSPACE_BYTES < path.stat().st_size
    assert "torn.gguf" in listed["./torn.gguf"].note
    monkeypatch.setattr(catalog, "available_bytes", lambda: 1000)
    assert "needs 268.5 MB here" in {entry.note for entry in list_models(around=tmp_path)}
