"""Checkpoints: everything a run needs to go on, in safetensors and JSON, written whole or not at all."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gemsmith.errors import CheckpointError, StorageError
from gemsmith.train.loop import TrainState

_TENSORS, _FACTS, _MANIFEST = "state.safetensors", "state.json", "MANIFEST.json"


def save_checkpoint(run: Path, state: TrainState, *, identity: Mapping[str, str], keep: int = 2) -> Path:
    """Write `step_N` into a run folder and return it; the newest `keep` stay.

    The folder appears under its name only when all of it is on disk.

    Args:
        identity: Hashes of what the run is made of; resuming compares them.

    Raises:
        StorageError: The disk is full or not writable; earlier checkpoints are still there.
    """
    final, work = run / f"step_{state.step:08d}", run / f".step_{state.step:08d}.part"
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        save_file(_tensors(state), work / _TENSORS)
        facts = {name: getattr(state, name) for name in ("step", "n_tokens", "seconds", "late_step")}
        (work / _FACTS).write_text(json.dumps({**facts, "identity": dict(identity)}, indent=2))
        hashes = {name: _sha256(work / name) for name in (_TENSORS, _FACTS)}
        (work / _MANIFEST).write_text(json.dumps(hashes, indent=2))
        for name in (_TENSORS, _FACTS, _MANIFEST):
            _flush(work / name)
        shutil.rmtree(final, ignore_errors=True)
        work.rename(final)
        _flush(run)
    except OSError as error:
        shutil.rmtree(work, ignore_errors=True)
        raise StorageError(
            f"checkpoint must be written whole; got {error} at {str(final)!r}. "
            "Make room on the disk; earlier checkpoints are untouched."
        ) from error
    for old in checkpoints(run)[:-keep]:
        shutil.rmtree(old)
    return final


def checkpoints(run: Path) -> list[Path]:
    """List the complete checkpoints of a run folder, the oldest first."""
    return sorted(path for path in run.glob("step_*") if (path / _MANIFEST).is_file())


def load_checkpoint(folder: Path, state: TrainState, *, identity: Mapping[str, str]) -> None:
    """Put a checkpoint into `state`, whose weights and optimizers must have the same shapes.

    Raises:
        CheckpointError: A file changed since it was written, or the run is made of something else now.
    """
    for name, wanted in json.loads((folder / _MANIFEST).read_text()).items():
        if (found := _sha256(folder / name)) != wanted:
            raise CheckpointError(
                f"{name} must have SHA-256 {wanted[:12]}; got {found[:12]} in {str(folder)!r}. Use an older checkpoint."
            )
    facts = json.loads((folder / _FACTS).read_text())
    for name, wanted in facts.pop("identity").items():
        if (found := identity.get(name)) != wanted:
            raise CheckpointError(
                f"{name} must be what the checkpoint was made with, {wanted[:12]!r}; got {str(found)[:12]!r} for "
                f"{str(folder)!r}. Start a new run, or put the old {name} back."
            )
    tensors = load_file(folder / _TENSORS)
    for name, weight in state.weights.items():
        weight.data.copy_(tensors[f"weights/{name}"])
    for name, optimizer in state.optimizers.items():
        _restore(optimizer, {k.split("/", 1)[1]: v for k, v in tensors.items() if k.startswith(f"{name}/")})
    for name, value in facts.items():
        setattr(state, name, value)


def _tensors(state: TrainState) -> dict[str, Tensor]:
    """Name every tensor of a state: weights by name, optimizer state by place in its groups."""
    tensors = {f"weights/{name}": weight.detach() for name, weight in state.weights.items()}
    for name, optimizer in state.optimizers.items():
        for index, parts in optimizer.state_dict()["state"].items():
            for part, value in parts.items():
                tensors[f"{name}/{index}/{part}"] = value.contiguous()
    return tensors


def _restore(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, part = key.split("/")
        state.setdefault(int(index), {})[part] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
