"""The tensors of a folder: shards against their index, and folders that hold something else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gemsmith.errors import CheckpointError
from gemsmith.weights.folder import save_folder
from gemsmith.weights.tensors import INDEX_FILE, SINGLE_FILE, find_tensors
from tiny import tiny_network

NORM = "model.norm.weight"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    folder = save_folder(tmp_path / "m", tiny_network("gemma2"), max_shard_bytes=100_000)
    (folder / "MANIFEST.json").unlink()
    assert len(shards(folder)) == 3
    return folder


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def edit_index(folder: Path, **changes: Any) -> None:
    raw = json.loads((folder / INDEX_FILE).read_text())
    places = raw["weight_map"] | {name.replace("__", "."): place for name, place in changes.items()}
    places = {name: place for name, place in places.items() if place is not ...}
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": places}))


def test_all_tensors_of_all_shards_are_found(sharded: Path) -> None:
    assert len(find_tensors(sharded)) == 46
    assert {entry.path for entry in find_tensors(sharded).values()} == set(shards(sharded))


def lose_a_shard(folder: Path) -> str:
    shards(folder)[1].unlink()
    return r"got no 'model-00002-of-00003.safetensors' in .*, so only \d+ of 46 tensors. Was the download interrupted"


def lose_the_index(folder: Path) -> str:
    (folder / INDEX_FILE).unlink()
    return "with 'model-00001-of-00003.safetensors' alone. Fetch model.safetensors.index.json"


def double_a_tensor(folder: Path) -> str:
    first = load_file(shards(folder)[0])
    save_file({**first, NORM: torch.zeros(40)}, shards(folder)[0])
    return f"got '{NORM}' in 'model-00001-of-00003.safetensors' and 'model-00003-of-00003.safetensors'"


def drop_from_the_index(folder: Path) -> str:
    edit_index(folder, model__norm__weight=...)
    return f"must list every tensor; got '{NORM}' of 'model-00003-of-00003.safetensors' unlisted"


def drop_from_a_shard(folder: Path) -> str:
    last = load_file(shards(folder)[2])
    save_file({name: tensor for name, tensor in last.items() if name != NORM}, shards(folder)[2])
    return f"must hold the tensors its index lists; got no '{NORM}'"


def point_outside(folder: Path) -> str:
    edit_index(folder, model__norm__weight="../secret.safetensors")
    return f"of its own folder; got '../secret.safetensors' for '{NORM}'"


def point_at_a_pickle(folder: Path) -> str:
    edit_index(folder, model__norm__weight="pytorch_model.bin")
    return f"got 'pytorch_model.bin' for '{NORM}'"


def add_a_single_file(folder: Path) -> str:
    save_file({NORM: torch.zeros(40)}, folder / SINGLE_FILE)
    return f"got both {SINGLE_FILE} and {INDEX_FILE}"


def empty_the_index(folder: Path) -> str:
    (folder / INDEX_FILE).write_text('{"weight_map": []}')
    return r"weight_map must list tensors; got \[\]"


def break_the_index(folder: Path) -> str:
    (folder / INDEX_FILE).write_text('{"weight_map"')
    return "index.json must be a JSON object; got Expecting"


def leave_a_partial_file(folder: Path) -> str:
    for path in shards(folder):
        path.unlink()
    (folder / INDEX_FILE).unlink()
    (folder / "model.safetensors.incomplete").write_bytes(b"")
    return "half-written 'model.safetensors.incomplete'. The download was interrupted"


MISTAKES = [
    lose_a_shard, lose_the_index, double_a_tensor, drop_from_the_index, drop_from_a_shard, point_outside,
    point_at_a_pickle, add_a_single_file, empty_the_index, break_the_index, leave_a_partial_file,
]  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_mistake_in_a_sharded_folder_is_named(mistake: Callable[[Path], str], sharded: Path) -> None:
    message = mistake(sharded)
    with pytest.raises(CheckpointError, match=message):
        find_tensors(sharded)


FOREIGN = [
    ("gemma.gguf", b"GGUF", "holds 'gemma.gguf', a GGUF file. Name the file itself"),
    ("weights", b"GGUF\3", "holds 'weights', a GGUF file"),
    ("pytorch_model.bin", b"PK\3\4", "holds 'pytorch_model.bin', a pickle. A pickle can run code"),
    ("weights", b"PK\3\4", "holds 'weights', a pickle in a zip archive. A pickle can run code"),
    ("weights", b"\x80\x04\x95", "holds 'weights', a pickle. A pickle can run code"),
    ("model.weights.h5", b"", "holds 'model.weights.h5', a Keras weights file"),
    ("adapter_config.json", b"{}", "which holds an adapter only"),
    ("notes.txt", b"hello", "which holds notes.txt"),
]


@pytest.mark.parametrize(("name", "data", "message"), FOREIGN, ids=[f"{n}{i}" for i, (n, _, _) in enumerate(FOREIGN)])
def test_other_kinds_of_weights_are_named(name: str, data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        find_tensors(tmp_path)
    if name != "adapter_config.json" and name != "notes.txt":
        with pytest.raises(CheckpointError, match=rf"model must be a folder; got '.*{name}', which is a"):
            find_tensors(tmp_path / name)


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"which holds nothing\. Name the folder of a model"):
        find_tensors(tmp_path)


def test_a_safetensors_file_is_not_its_folder(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"got the file '.*model.safetensors'\. Name its folder"):
        find_tensors(folder / "model.safetensors")
