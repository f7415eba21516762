"""A network -> a model folder, whole or not at all."""

import contextlib
import ctypes
import errno
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

from gemsmith.errors import ConfigError, StorageError
from gemsmith.model.linear import Linear
from gemsmith.model.transformer import Transformer
from gemsmith.tokenizer import Tokenizer
from gemsmith.weights.compressed import render_quantization
from gemsmith.weights.generation import GENERATION_FILE, render_generation_config
from gemsmith.weights.keys import QUANTIZATION
from gemsmith.weights.manifest import MANIFEST_FILE, FileRecord, Manifest, read_manifest, remember_sha256, sha256_of
from gemsmith.weights.memory import DTYPE_BYTES, in_gb
from gemsmith.weights.names import tensor_name
from gemsmith.weights.quantized import check_whole, quantized_modules, store_module
from gemsmith.weights.render import render_config
from gemsmith.weights.shards import Stored, dense, index_of, split, write_shard
from gemsmith.weights.tensors import INDEX_FILE
from gemsmith.weights.tokenizer_config import TOKENIZER_CONFIG_FILE, render_tokenizer_config

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
        dtype: Of the stored weights that are not in few bits; None keeps the last norm's.
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
    tensors = _published(network, getattr(torch, name))
    config = network.config
    texts = {
        "config.json": render_config(config, dtype=name) | _quantization(network),
        GENERATION_FILE: render_generation_config(config.eos_ids, config.bos_id, config.pad_id, **(generation or {})),
    }
    if tokenizer is not None:
        texts[TOKENIZER_CONFIG_FILE] = render_tokenizer_config(tokenizer)
    shards = split(tensors, max_shard_bytes)
    with _replacing(folder, n_bytes=sum(tensor.n_bytes for tensor in tensors.values())) as temporary:
        records = {file_name: write_shard(temporary / file_name, part) for file_name, part in shards.items()}
        if len(shards) > 1:
            texts[INDEX_FILE] = index_of(shards)
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
    name = str(network.norm.weight.dtype if dtype is None else dtype).removeprefix("torch.")
    if name not in DTYPE_BYTES:
        raise ConfigError(f"dtype must be one of {', '.join(DTYPE_BYTES)}; got {name!r}. Choose one of them.")
    return name


def _quantization(network: Transformer) -> dict[str, Any]:
    schemes = {name: q.scheme for name, q in quantized_modules(network).items()}
    linears = [name for name, module in network.named_modules() if isinstance(module, Linear)]
    return {QUANTIZATION: render_quantization(schemes, linears)} if schemes else {}


def _published(network: Transformer, dtype: torch.dtype) -> dict[str, Stored]:
    """Return what is stored of a network by published names, once that is exactly its configuration."""
    quantized = quantized_modules(network)
    parameters = dict(network.named_parameters())
    tensors: dict[str, Stored] = {}
    for name in check_whole(network):
        module = name.removesuffix(".weight")
        if module in quantized:
            tensors |= store_module(module, quantized[module])
        else:
            tensors[tensor_name(name)] = dense(parameters[name].detach(), dtype)
    return tensors


@contextlib.contextmanager
def _replacing(folder: Path, *, n_bytes: int) -> Iterator[Path]:
    """Give a temporary folder that takes the place of `folder` at the end, or disappears on an error."""
    temporary = folder.with_name(f".{folder.name}.saving-{uuid.uuid4().hex[:8]}")
    try:
        check_place(folder, n_bytes=n_bytes)
        _clear_stale(folder)
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


def check_place(folder: Path, *, n_bytes: int = 0) -> None:
    """Refuse a place that cannot take a model folder; nothing is made there.

    Raises:
        StorageError: It holds something else, or the disk is full or not writable.
    """
    if folder.exists() and not folder.is_dir():
        raise StorageError(f"folder must be a folder; got the file {str(folder)!r}. Choose another name.")
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    if names and "config.json" not in names:
        raise StorageError(
            f"folder must be new, empty or a model's; got {str(folder)!r}, which holds {names[0]!r}. "
            "Choose another name, so that nothing is lost."
        )
    parent = next(path for path in folder.resolve().parents if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise StorageError(
            f"folder must be writable; got {str(folder)!r} below {str(parent)!r}, which is not. "
            "Check the place and its permissions."
        )
    free = shutil.disk_usage(parent).free
    if n_bytes > free:
        raise StorageError(
            f"disk must have room for the whole folder; got {in_gb(free)} for {in_gb(n_bytes)} at {str(folder)!r}. "
            "What was there before is unchanged. Make room or choose another disk."
        )


def _clear_stale(folder: Path) -> None:
    """Remove what saves that were cut off long ago have left."""
    for stale in folder.parent.glob(f".{folder.name}.saving-*"):
        if time.time() - stale.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(stale, ignore_errors=True)


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
