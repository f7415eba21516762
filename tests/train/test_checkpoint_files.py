"""A checkpoint is there whole or not at all, in formats that hold no code."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gemsmith.errors import CheckpointError, StorageError
from gemsmith.train.checkpoint_files import (
    check_identity,
    check_whole,
    checkpoints,
    read_checkpoint,
    remove_checkpoint,
    tidy,
    write_checkpoint,
)
from gemsmith.train.snapshot import Camera, Snapshot
from small_run import IDENTITY, new_state, train


def written(run: Path, step: int = 1) -> Path:
    return write_checkpoint(run, Camera().take(train(new_state(), until=step)), identity=IDENTITY)


def test_others_read_the_tensors(tmp_path: Path) -> None:
    tensors = {
        "half": torch.randn(3).bfloat16(),
        "wide": torch.randn(2, 2, dtype=torch.float64),
        "count": torch.tensor(5),
        "bytes": torch.arange(7, dtype=torch.uint8),
        "none": torch.zeros(0, 3),
        "yes": torch.tensor([True, False, True]),
    }
    folder = write_checkpoint(tmp_path, Snapshot(tensors, {"state": {"step": 1}, "optimizers": {}}), identity={})
    for found in (load_file(folder / "state.safetensors"), read_checkpoint(folder).tensors):
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor), name


def test_only_safetensors_and_json_are_written(tmp_path: Path) -> None:
    folder = written(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["MANIFEST.json", "state.json", "state.safetensors"]
    assert json.loads((folder / "state.json").read_text())["state"]["step"] == 1
    assert json.loads((folder / "MANIFEST.json").read_text())["lineage"]["identity"] == IDENTITY


def test_everything_is_flushed_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gemsmith.train import checkpoint_files

    order: list[str] = []
    rename = Path.rename
    monkeypatch.setattr(checkpoint_files, "_flush", lambda path: order.append(path.name))
    monkeypatch.setattr(Path, "rename", lambda self, to: order.append(f"-> {to.name}") or rename(self, to))
    written(tmp_path)
    files = ["state.safetensors", "state.json", "MANIFEST.json"]
    assert order == [*files, ".step_00000001.part", "-> step_00000001", tmp_path.name]


def test_a_folder_without_a_manifest_does_not_count(tmp_path: Path) -> None:
    folder = written(tmp_path)
    (folder / "MANIFEST.json").unlink()
    assert checkpoints(tmp_path) == []
    with pytest.raises(CheckpointError, match=r"must have a MANIFEST\.json that lists its files; got none in '.*0001'"):
        check_whole(folder)


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    for name in ("step_99999999", "step_100000000", "step_00000002", "step_00000003.damaged", "step_x"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "MANIFEST.json").touch()
    assert [path.name for path in checkpoints(tmp_path)] == ["step_00000002", "step_99999999", "step_100000000"]


@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
def test_changed_bytes_are_named(tmp_path: Path, name: str) -> None:
    path = written(tmp_path) / name
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=f"{name} must have the SHA-256"):
        check_whole(path.parent)


def test_a_hash_that_is_missing_is_a_change(tmp_path: Path) -> None:
    folder = written(tmp_path)
    check_identity(folder, IDENTITY)
    with pytest.raises(CheckpointError, match=r"^data must be .* got data 'None' instead of 'aa'"):
        check_identity(folder, {k: v for k, v in IDENTITY.items() if k != "data"})


def test_a_checkpoint_takes_the_place_of_one_of_its_name(tmp_path: Path) -> None:
    (written(tmp_path) / "state.json").write_text("changed")
    check_whole(written(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


def test_what_a_dead_process_left_is_cleared_away(tmp_path: Path) -> None:
    written(tmp_path)
    for name in (".step_00000002.part", ".step_00000001.old", ".step_00000000.gone"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").touch()
    tidy(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


def test_a_checkpoint_that_was_being_replaced_comes_back(tmp_path: Path) -> None:
    folder = written(tmp_path)
    folder.rename(tmp_path / ".step_00000001.old")
    tidy(tmp_path)
    check_whole(folder)


def test_a_removed_checkpoint_is_gone_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = written(tmp_path)
    monkeypatch.setattr("gemsmith.train.checkpoint_files.shutil.rmtree", lambda *_args, **_options: None)
    remove_checkpoint(folder)  # dies before a file is removed
    assert checkpoints(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(StorageError, match=r"got Not a directory at '.*run/step_00000001'.* Check the place"):
        written(tmp_path / "run")
