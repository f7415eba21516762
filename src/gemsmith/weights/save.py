"""A network -> a model folder, whole or not at all."""

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gemsmith.errors import CheckpointError, ConfigError, StorageError
from gemsmith.model.transformer import Transformer
from gemsmith.tokenizer import Tokenizer
from gemsmith.weights.generation import GENERATION_FILE, render_generation_config
from gemsmith.weights.header import WEIGHT_DTYPES
from gemsmith.weights.manifest import MANIFEST_FILE, FileRecord, Manifest, read_manifest, remember_sha256, sha256_of
from gemsmith.weights.memory import in_gb
from gemsmith.weights.names import tensor_name
from gemsmith.weights.render import render_config
from gemsmith.weights.tensors import INDEX_FILE, SINGLE_FILE

_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Tensors start at a multiple of it, so that a mapped file feeds vector loads without a copy.
_ALIGNMENT = 64
_PIECE_ITEMS = 16 << 20
_STALE_SECONDS = 24 * 3600


def save_folder(
    folder: Path | str,
    network: Transformer,
    *,
    tokenizer: Tokenizer | None = None,
    dtype: torch.dtype | str | None = None,
    max_shard_bytes: int = 5_000_000_000,
    generation: Mapping[str, Any] | None = None,
    lineage: Mapping[str, Any] | None = None,
) -> Path:
    """Write a folder that gemsmith and transformers load; return it.

    It is written beside its place and put there in one step: a full disk, a crash or Ctrl-C leaves
    the old folder as it was. Files of the old folder that belong to no model stay.

    Args:
        dtype: Of the stored weights; None keeps the embedding's.
        max_shard_bytes: Larger weights are split into files of at most that length.
        generation: Sampling to suggest, with the keys of generation_config.json.
        lineage: Record of the model's origin, kept in MANIFEST.json.

    Raises:
        CheckpointError: A parameter has no published name, such as an adapter that is not merged.
        ConfigError: The format has no words for the configuration or `dtype`.
        StorageError: The disk is full or not writable, or the place holds something else.
    """
    folder = Path(folder).expanduser().resolve()
    name = _dtype_name(dtype, network)
    tensors = _published(network)
    config = network.config
    texts = {
        "config.json": render_config(config, dtype=name),
        GENERATION_FILE: render_generation_config(config.eos_ids, config.bos_id, config.pad_id, **(generation or {})),
    }
    shards = _split(tensors, _ITEM_BYTES[name], max_shard_bytes)
    with _replacing(folder, n_bytes=config.n_params * _ITEM_BYTES[name]) as temporary:
        records = {file_name: _write_shard(temporary / file_name, part, name) for file_name, part in shards.items()}
        if len(shards) > 1:
            texts[INDEX_FILE] = _index(shards, _ITEM_BYTES[name])
        for file_name, raw in texts.items():
            (temporary / file_name).write_text(json.dumps(raw, indent=2) + "\n")
        if tokenizer is not None:
            tokenizer.save(temporary)
        for path in sorted(temporary.iterdir()):
            if path.name not in records:
                records[path.name] = FileRecord(path.stat().st_size, sha256_of(path))
        (temporary / MANIFEST_FILE).write_text(Manifest(records, lineage or {}).render())
    remember_sha256({folder / file_name: record.sha256 for file_name, record in records.items()})
    return folder


def _dtype_name(dtype: torch.dtype | str | None, network: Transformer) -> str:
    name = str(network.embed_tokens.weight.dtype if dtype is None else dtype).removeprefix("torch.")
    if name not in _ITEM_BYTES:
        raise ConfigError(f"dtype must be one of {', '.join(_ITEM_BYTES)}; got {name!r}. Choose one of them.")
    return name


def _published(network: Transformer) -> dict[str, Tensor]:
    """Return the parameters by their published names, once they are exactly the configuration's."""
    wanted = {name: tuple(p.shape) for name, p in Transformer(network.config, device="meta").named_parameters()}
    found = {name: tuple(p.shape) for name, p in network.named_parameters()}
    for name in [*wanted, *found]:
        if found.get(name) != wanted.get(name):
            raise CheckpointError(
                f"network must hold the parameters of its configuration; got {name!r} of shape {found.get(name)} where "
                f"{wanted.get(name)} is expected. Merge adapters and unpack quantised linears before saving."
            )
    return {tensor_name(name): parameter.detach() for name, parameter in network.named_parameters()}


def _split(tensors: Mapping[str, Tensor], item_bytes: int, max_bytes: int) -> dict[str, dict[str, Tensor]]:
    parts: list[dict[str, Tensor]] = [{}]
    n_bytes = 0
    for name, tensor in tensors.items():
        n_tensor = tensor.numel() * item_bytes
        if parts[-1] and n_bytes + n_tensor > max_bytes:
            parts.append({})
            n_bytes = 0
        parts[-1][name] = tensor
        n_bytes += n_tensor
    if len(parts) == 1:
        return {SINGLE_FILE: parts[0]}
    return {f"model-{index:05}-of-{len(parts):05}.safetensors": part for index, part in enumerate(parts, 1)}


def _index(shards: Mapping[str, Mapping[str, Tensor]], item_bytes: int) -> dict[str, Any]:
    places = {name: file_name for file_name, part in shards.items() for name in part}
    total = sum(tensor.numel() for part in shards.values() for tensor in part.values())
    return {"metadata": {"total_parameters": total, "total_size": total * item_bytes}, "weight_map": places}


def _write_shard(path: Path, tensors: Mapping[str, Tensor], dtype: str) -> FileRecord:
    """Write one safetensors file piece by piece; beside the network only one piece is in memory."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    code = next(code for code, name in WEIGHT_DTYPES.items() if name == dtype)
    start = 0
    for name, tensor in tensors.items():
        stop = start + tensor.numel() * _ITEM_BYTES[dtype]
        header[name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [start, stop]}
        start = stop
    table = json.dumps(header, separators=(",", ":")).encode()
    table += b" " * (-(8 + len(table)) % _ALIGNMENT)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for piece in _pieces(len(table).to_bytes(8, "little") + table, tensors.values(), getattr(torch, dtype)):
            file.write(piece)
            digest.update(piece)
    return FileRecord(path.stat().st_size, digest.hexdigest())


def _pieces(head: bytes, tensors: Any, dtype: torch.dtype) -> Iterator[Any]:
    yield head
    for tensor in tensors:
        dense = tensor.to_dense() if tensor.is_mkldnn else tensor  # packed for inference: one at a time
        for piece in dense.reshape(-1).split(_PIECE_ITEMS):
            yield piece.to(device="cpu", dtype=dtype).view(torch.uint8).numpy()


@contextlib.contextmanager
def _replacing(folder: Path, *, n_bytes: int) -> Iterator[Path]:
    """Give a temporary folder that takes the place of `folder` at the end, or disappears on an error."""
    temporary = folder.with_name(f".{folder.name}.saving-{uuid.uuid4().hex[:8]}")
    try:
        _check_place(folder, n_bytes)
        temporary.mkdir(parents=True)
        yield temporary
        _sync([*temporary.iterdir(), temporary])
        _put(temporary, folder)
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = "Make room or choose another disk." if is_full else "Check the place and its permissions."
        raise StorageError(
            f"folder must be writable; got {error.strerror!r} while saving {str(folder)!r}. "
            f"What was there before is unchanged. {advice}"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_place(folder: Path, n_bytes: int) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists() and not folder.is_dir():
        raise StorageError(f"folder must be a folder; got the file {str(folder)!r}. Choose another name.")
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    if names and "config.json" not in names:
        raise StorageError(
            f"folder must be new, empty or a model's; got {str(folder)!r}, which holds {names[0]!r}. "
            "Choose another name, so that nothing is lost."
        )
    for stale in folder.parent.glob(f".{folder.name}.saving-*"):
        if time.time() - stale.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(stale, ignore_errors=True)
    free = shutil.disk_usage(folder.parent).free
    if n_bytes > free:
        raise StorageError(
            f"disk must have room for the whole folder; got {in_gb(free)} for {in_gb(n_bytes)} at {str(folder)!r}. "
            "What was there before is unchanged. Make room or choose another disk."
        )


def _put(temporary: Path, folder: Path) -> None:
    """Move a finished folder to its place, in one step where the system has one."""
    if not folder.exists():
        temporary.rename(folder)
    elif _exchange(temporary, folder):
        _keep_strangers(temporary, folder)
    else:
        aside = temporary.with_name(f"{temporary.name}.old")
        folder.rename(aside)
        try:
            temporary.rename(folder)
        except OSError:
            aside.rename(folder)
            raise
        _keep_strangers(aside, folder)
        shutil.rmtree(aside, ignore_errors=True)
    _sync([folder.parent])


def _keep_strangers(old: Path, new: Path) -> None:
    """Carry over the files of the old folder that no model owns: notes, a licence, logs."""
    manifest = read_manifest(old)
    owned = set(manifest.files) if manifest is not None else set()
    for path in old.iterdir():
        is_weights = path.name == INDEX_FILE or path.suffix == ".safetensors"
        if not is_weights and path.name not in owned and not (new / path.name).exists():
            path.rename(new / path.name)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders atomically; return whether this system can."""
    if sys.platform != "linux":
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    at_cwd, exchange = -100, 2
    return renameat2 is not None and not renameat2(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), exchange)


def _sync(paths: Sequence[Path]) -> None:
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
