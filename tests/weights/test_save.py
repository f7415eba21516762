"""Saving: whole or not at all, and nothing of the user's is lost."""

import errno
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from gemsmith.errors import CheckpointError, ConfigError, StorageError
from gemsmith.model.linear import LowRank
from gemsmith.model.transformer import Transformer
from gemsmith.weights import save, shards
from gemsmith.weights.folder import load_network
from gemsmith.weights.generation import read_generation_config
from gemsmith.weights.manifest import read_manifest, verify_hashes
from gemsmith.weights.save import save_folder
from tiny import tiny_config, tiny_network


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", torch.float16])
def test_stored_tensors_are_the_parameters_in_the_dtype_asked_for(dtype: Any, tmp_path: Path) -> None:
    network = tiny_network("gemma3")
    folder = save_folder(tmp_path / "m", network, dtype=dtype)
    wanted = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype)
    with safe_open(folder / "model.safetensors", "pt") as stored:
        assert stored.metadata() == {"format": "pt"}
        for name, parameter in network.named_parameters():
            assert torch.equal(stored.get_tensor(f"model.{name}"), parameter.to(wanted))


def test_large_tensors_are_written_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_PIECE_ITEMS", 7)
    network = tiny_network("gemma2")
    loaded = load_network(save_folder(tmp_path / "m", network)).network
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), network.parameters(), strict=True))


def test_tensors_start_at_multiples_of_64_bytes(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "m", tiny_network("gemma2"))
    n_header = int.from_bytes((folder / "model.safetensors").read_bytes()[:8], "little")
    assert (8 + n_header) % 64 == 0


def test_shards_stay_below_the_limit_and_the_index_lists_them(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "m", tiny_network("gemma2"), max_shard_bytes=60_000)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert files == [f"model-{i:05}-of-00005.safetensors" for i in (1, 2, 3, 4, 5)]
    assert set(index["weight_map"].values()) == set(files)
    assert index["metadata"]["total_size"] == 4 * tiny_config("gemma2").n_params
    assert all((folder / name).stat().st_size < 60_000 + 5_000 for name in files)


def test_manifest_lists_every_file_and_the_lineage(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "m", tiny_network("gemma2"), lineage={"parent": "pebble"})
    manifest = read_manifest(folder)
    assert manifest is not None
    assert set(manifest.files) == set(snapshot(folder)) - {"MANIFEST.json"}
    assert manifest.lineage == {"parent": "pebble"}
    assert verify_hashes(folder).keys() == manifest.files.keys()


def test_generation_suggestions_survive(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "m", tiny_network("gemma2"), generation={"temperature": 0.7, "top_k": 40})
    assert read_generation_config(folder) == {"eos_ids": (1,), "temperature": 0.7, "top_k": 40}


def test_a_second_save_replaces_the_model_and_keeps_what_is_not_its(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "m", tiny_network("gemma2"), max_shard_bytes=60_000)
    (folder / "notes.md").write_text("mine")
    (folder / "runs").mkdir()
    save_folder(folder, tiny_network("gemma3"))
    assert (folder / "notes.md").read_text() == "mine"
    assert sorted(snapshot_names(folder)) == [
        "MANIFEST.json", "config.json", "generation_config.json", "model.safetensors", "notes.md", "runs",
    ]  # fmt: skip
    assert load_network(folder).config == tiny_config("gemma3")
    assert snapshot_names(tmp_path) == {"m", "cache"}


def snapshot_names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_without_an_atomic_exchange_two_renames_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(save, "_exchange", lambda one, other: False)
    test_a_second_save_replaces_the_model_and_keeps_what_is_not_its(tmp_path)


def test_a_network_loaded_from_a_folder_can_be_saved_over_it(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "m", tiny_network("gemma2"))
    loaded = load_network(folder).network
    with torch.no_grad():
        loaded.norm.weight.add_(1.0)
    save_folder(folder, loaded)
    again = load_network(folder).network
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("step", ["shard", "json", "sync", "put"])
def test_a_failing_disk_leaves_the_old_folder(
    code: int, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_folder(tmp_path / "m", tiny_network("gemma2"))
    before = snapshot(folder)
    place = {
        "shard": (save, "write_shard"),
        "json": (Path, "write_text"),
        "sync": (save, "_sync"),
        "put": (save, "_put"),
    }

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(*place[step], fail)
    advice = "Make room" if code in (errno.ENOSPC, errno.EDQUOT) else "Check the place"
    with pytest.raises(StorageError, match=rf"got '{os.strerror(code)}' while saving .*m'. What was there .* {advice}"):
        save_folder(folder, tiny_network("gemma3"))
    monkeypatch.undo()
    assert snapshot(folder) == before
    assert not [name for name in snapshot_names(tmp_path) if "saving" in name]


def test_a_file_the_system_cuts_leaves_the_old_folder(tmp_path: Path) -> None:
    """A real write error in the middle of a file: the system's own limit on file sizes."""
    folder = save_folder(tmp_path / "m", tiny_network("gemma2"))
    before = snapshot(folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"got 'File too large' while saving .* Make room"):
            save_folder(folder, tiny_network("gemma2", seed=1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert snapshot(folder) == before


def test_a_disk_without_room_is_refused_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(StorageError, match=r"room for the whole folder; got 0.0 MB for 0.3 MB at '.*m'"):
        save_folder(tmp_path / "m", tiny_network("gemma2"))
    assert "m" not in snapshot_names(tmp_path)


def test_an_interrupted_save_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_folder(tmp_path / "m", tiny_network("gemma2"))
    before = snapshot(folder)

    def interrupt(paths: Sequence[Path]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(save, "_sync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_folder(folder, tiny_network("gemma3"))
    assert snapshot(folder) == before
    assert not [name for name in snapshot_names(tmp_path) if "saving" in name]


KILLED = """
import os, signal, sys
from pathlib import Path
from gemsmith.weights import save, shards
from tiny import tiny_network
step = getattr(save, sys.argv[2])
def die(*args, **kwargs):
    if sys.argv[3] == "after":
        step(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(save, sys.argv[2], die)
save.save_folder(sys.argv[1], tiny_network("gemma3"))
"""


@pytest.mark.slow
@pytest.mark.parametrize("step", ["write_shard before", "_sync before", "_put before", "_exchange after", "_put after"])
def test_a_killed_save_leaves_one_whole_folder(step: str, tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "m", tiny_network("gemma2"))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    arguments = [sys.executable, "-c", KILLED, str(folder), *step.split()]
    assert subprocess.run(arguments, env=environment).returncode == -9
    family = "gemma3" if step.endswith("after") else "gemma2"
    assert load_network(folder).config == tiny_config(family)


def test_leftovers_of_a_killed_save_are_swept_after_a_day(tmp_path: Path) -> None:
    old, young = tmp_path / ".m.saving-1", tmp_path / ".m.saving-2"
    for path in (old, young):
        path.mkdir()
    os.utime(old, (time.time() - 90_000,) * 2)
    save_folder(tmp_path / "m", tiny_network("gemma2"))
    assert (old.exists(), young.exists()) == (False, True)


def test_a_folder_of_something_else_is_not_overwritten(tmp_path: Path) -> None:
    thesis = tmp_path / "work" / "thesis.tex"
    thesis.parent.mkdir()
    thesis.write_text("")
    with pytest.raises(StorageError, match=r"must be new, empty or a model's; got '.*work', which holds 'thesis.tex'"):
        save_folder(tmp_path / "work", tiny_network("gemma2"))
    with pytest.raises(StorageError, match=r"must be a folder; got the file '.*thesis.tex'"):
        save_folder(thesis, tiny_network("gemma2"))


@pytest.mark.parametrize("dtype", ["int8", torch.float64])
def test_a_dtype_the_format_does_not_carry_is_refused(dtype: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"dtype must be one of .*; got '{str(dtype).removeprefix('torch.')}'"):
        save_folder(tmp_path / "m", tiny_network("gemma2"), dtype=dtype)


def test_an_adapter_must_be_merged_before_saving(tmp_path: Path) -> None:
    network = tiny_network("gemma2")
    linear = network.layers[0].self_attn.q_proj
    linear.delta = LowRank(torch.zeros(1, 2, 40), torch.zeros(1, 48, 2), torch.ones(1))
    with pytest.raises(CheckpointError, match=r"got 'layers.0.self_attn.q_proj.delta.lora_a' of shape \(1, 2, 40\)"):
        save_folder(tmp_path / "m", network)


def test_an_inexpressible_network_is_refused_before_writing(tmp_path: Path) -> None:
    config = tiny_config("gemma2")
    network = Transformer(config.replace(layers=(replace(config.layers[0], d_ff=8), *config.layers[1:])))
    with pytest.raises(ConfigError, match=r"d_ff must be .*; got 64 in layer 1"):
        save_folder(tmp_path / "m", network)
    assert "m" not in snapshot_names(tmp_path)
