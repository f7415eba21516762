"""A checkpoint on disk: a folder of safetensors and JSON that is there whole or not at all.

RUN/step_00000400/          state.safetensors, state.json, MANIFEST.json: complete, always
RUN/step_00000400.damaged/  its hashes were wrong at a resume; kept for a look
RUN/.step_00000400.part/    being written     RUN/.step_00000400.old/   being replaced
RUN/.step_00000400.gone/    being removed
"""

import contextlib
import errno
import hashlib
import io
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from gemsmith.errors import CheckpointError, StorageError
from gemsmith.train.faults import reach
from gemsmith.train.snapshot import Snapshot
from gemsmith.weights.json_file import read_json
from gemsmith.weights.manifest import MANIFEST_FILE, FileRecord, Manifest, read_manifest, sha256_of, verify_hashes

TENSORS, FACTS = "state.safetensors", "state.json"
_NAME = re.compile(r"step_(\d+)")
_CODES = {
    torch.float64: "F64", torch.int64: "I64", torch.float32: "F32", torch.int32: "I32", torch.bfloat16: "BF16",
    torch.float16: "F16", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_say = logging.getLogger("gemsmith")


def write_checkpoint(run: Path, snapshot: Snapshot, *, identity: Mapping[str, str]) -> Path:
    """Write `step_N` into a run folder and return it.

    Files and their folder are flushed to the disk before the folder gets its name, and the run
    folder after: whenever power fails, what bears the name is complete.

    Args:
        identity: Hashes of what the run is made of; resuming compares them.

    Raises:
        StorageError: The disk is full or not writable; earlier checkpoints are still there.
    """
    final = run / f"step_{snapshot.step:08d}"
    work = _beside(final, "part")
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        files = {TENSORS: _write_tensors(work / TENSORS, snapshot.tensors)}
        (work / FACTS).write_text(json.dumps(snapshot.facts, indent=2) + "\n")
        files[FACTS] = FileRecord((work / FACTS).stat().st_size, sha256_of(work / FACTS))
        reach("before_manifest")
        lineage = {"step": snapshot.step, "saved_at": time.time(), "identity": dict(identity)}
        (work / MANIFEST_FILE).write_text(Manifest(files, lineage).render())
        for path in (work / TENSORS, work / FACTS, work / MANIFEST_FILE, work):
            _flush(path)
        reach("before_rename")
        _put(work, final)
    except OSError as error:
        free = _free_bytes(run)
        shutil.rmtree(work, ignore_errors=True)
        raise _unwritten(error, final, snapshot, free) from error
    reach("after_rename")
    return final


def checkpoints(run: Path) -> list[Path]:
    """List the checkpoints of a run folder that have a manifest, the oldest first."""
    return [path for path in step_folders(run) if (path / MANIFEST_FILE).is_file()]


def step_folders(run: Path) -> list[Path]:
    """List the folders that bear a checkpoint's name, the oldest first."""
    found = [path for path in run.glob("step_*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))


def saved_at(folder: Path) -> float:
    """Return when a checkpoint was written, in seconds since 1970."""
    return float(_lineage(folder)["saved_at"])


def check_whole(folder: Path) -> None:
    """Compare a checkpoint with its manifest, byte by byte.

    Raises:
        CheckpointError: A file is missing or changed since it was written.
    """
    if not verify_hashes(folder).keys() >= {TENSORS, FACTS}:
        raise CheckpointError(
            f"checkpoint must have a {MANIFEST_FILE} that lists its files; got none in {str(folder)!r}. "
            "Use an older checkpoint."
        )


def known_identity(run: Path) -> Mapping[str, str]:
    """Return what the newest readable checkpoint of a run folder was made from; nothing where there is none."""
    for folder in reversed(checkpoints(run)):
        with contextlib.suppress(CheckpointError, OSError, KeyError):  # damaged: resuming deals with it
            return _lineage(folder)["identity"]
    return {}


def check_identity(folder: Path, identity: Mapping[str, str]) -> None:
    """Compare what a checkpoint was made from with what the run is made of now.

    Raises:
        CheckpointError: They differ; everything that does is named.
    """
    refuse_changes(_lineage(folder)["identity"], identity, place=folder)


def refuse_changes(before: Mapping[str, str], now: Mapping[str, str], *, place: Path) -> None:
    """Compare two identities.

    Raises:
        CheckpointError: They differ; everything that does is named.
    """
    if changed := [name for name in {**now, **before} if now.get(name) != before.get(name)]:
        hashes = "; ".join(f"{n} {str(now.get(n))[:12]!r} instead of {str(before.get(n))[:12]!r}" for n in changed)
        raise CheckpointError(
            f"{' and '.join(changed)} must be what the checkpoint was made with; got {hashes} for {str(place)!r}. "
            "Start a new run in another folder, or put the old state back."
        )


def read_checkpoint(folder: Path) -> Snapshot:
    """Return what a checkpoint holds."""
    with safe_open(folder / TENSORS, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return Snapshot(tensors, read_json(folder / FACTS))


def set_aside(folder: Path) -> Path:
    """Give a damaged checkpoint a name under which no run looks for it; return the new place."""
    names = [f"{folder.name}.damaged", *(f"{folder.name}.damaged-{number}" for number in range(2, 1000))]
    place = next(folder.with_name(name) for name in names if not folder.with_name(name).exists())
    folder.rename(place)
    return place


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint; a process that dies here leaves nothing that looks like one."""
    work = _beside(folder, "gone")
    shutil.rmtree(work, ignore_errors=True)
    folder.rename(work)
    reach("removing")
    shutil.rmtree(work, ignore_errors=True)


def tidy(run: Path) -> None:
    """Remove what a process that died left half written or half removed, and put back what it was replacing."""
    for path in sorted(run.glob(".step_*")):
        final = run / path.stem.removeprefix(".")
        if path.suffix == ".old" and not final.exists():
            path.rename(final)
        elif path.suffix in (".part", ".old", ".gone"):
            shutil.rmtree(path, ignore_errors=True)
            _say.info("removed %s, left behind by a run that was stopped", path.name)


def _put(work: Path, final: Path) -> None:
    """Give a finished folder its name; one that has it already steps aside and comes back if we die."""
    old = _beside(final, "old")
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    work.rename(final)
    _flush(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _beside(final: Path, suffix: str) -> Path:
    return final.with_name(f".{final.name}.{suffix}")


def _lineage(folder: Path) -> Mapping:
    manifest = read_manifest(folder)
    return {} if manifest is None else manifest.lineage


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> FileRecord:
    """Write a safetensors file tensor by tensor, the widest numbers first so that all lie aligned."""
    ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())
    header, start = {}, 0
    for name, tensor in ordered:
        stop = start + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, stop]}
        start = stop
    table = json.dumps(header, separators=(",", ":")).encode()
    table += b" " * (-len(table) % 8)
    digest = hashlib.sha256()
    with path.open("wb", buffering=0) as file:
        contents = (tensor.reshape(-1).view(torch.uint8).numpy().data for _, tensor in ordered)
        for data in (memoryview(len(table).to_bytes(8, "little") + table), *contents):
            _write_all(file, data)
            digest.update(data)
            reach("writing")
    return FileRecord(path.stat().st_size, digest.hexdigest())


def _write_all(file: io.FileIO, data: memoryview) -> None:
    while data:
        data = data[file.write(data) :]


def _unwritten(error: OSError, final: Path, snapshot: Snapshot, free: int) -> StorageError:
    n_bytes = sum(tensor.numel() * tensor.element_size() for tensor in snapshot.tensors.values())
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    advice = "Make room on the disk" if is_full else "Check the place and its permissions"
    return StorageError(
        f"checkpoint must be written whole; got {error.strerror or error} at {str(final)!r}, which needs "
        f"{n_bytes / 1e6:,.1f} MB where {free / 1e6:,.1f} MB are free. {advice}; earlier checkpoints are untouched."
    )


def _free_bytes(run: Path) -> int:
    try:
        return shutil.disk_usage(run).free
    except OSError:
        return 0


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
