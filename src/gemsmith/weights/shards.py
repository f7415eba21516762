"""Tensors -> safetensors files, one tensor in memory at a time."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gemsmith.weights.manifest import FileRecord
from gemsmith.weights.tensors import SINGLE_FILE

_CODES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.int32: "I32",
    torch.int64: "I64",
}
# Tensors start at a multiple of it, so that a mapped file feeds vector loads without a copy.
_ALIGNMENT = 64
_PIECE_ITEMS = 16 << 20


@dataclass(frozen=True)
class Stored:
    """A tensor about to be written; `make` gives it, in any dtype, when its turn comes."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]

    @property
    def n_items(self) -> int:
        """How many numbers it has."""
        return prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """Length in the file."""
        return self.n_items * self.dtype.itemsize


def dense(tensor: Tensor, dtype: torch.dtype | None = None) -> Stored:
    """Return a tensor to be written as it is, or in another dtype."""
    return Stored(tuple(tensor.shape), tensor.dtype if dtype is None else dtype, lambda: tensor)


def split(tensors: Mapping[str, Stored], max_bytes: int) -> dict[str, dict[str, Stored]]:
    """Return file names with the tensors each holds; only one tensor alone may be longer than `max_bytes`."""
    parts: list[dict[str, Stored]] = [{}]
    n_bytes = 0
    for name, tensor in tensors.items():
        if parts[-1] and n_bytes + tensor.n_bytes > max_bytes:
            parts.append({})
            n_bytes = 0
        parts[-1][name] = tensor
        n_bytes += tensor.n_bytes
    if len(parts) == 1:
        return {SINGLE_FILE: parts[0]}
    return {f"model-{index:05}-of-{len(parts):05}.safetensors": part for index, part in enumerate(parts, 1)}


def index_of(shards: Mapping[str, Mapping[str, Stored]]) -> dict[str, Any]:
    """Return the contents of the file that says which tensor lies in which file."""
    places = {name: file_name for file_name, part in shards.items() for name in part}
    stored = [tensor for part in shards.values() for tensor in part.values()]
    sizes = {
        "total_parameters": sum(tensor.n_items for tensor in stored),
        "total_size": sum(tensor.n_bytes for tensor in stored),
    }
    return {"metadata": sizes, "weight_map": places}


def write_shard(path: Path, tensors: Mapping[str, Stored], *, metadata: Mapping[str, str] | None = None) -> FileRecord:
    """Write one safetensors file piece by piece; return its length and hash.

    Args:
        metadata: Words for its header; by default those of weights in torch's layout.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"} if metadata is None else dict(metadata)}
    start = 0
    for name, tensor in tensors.items():
        stop = start + tensor.n_bytes
        header[name] = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, stop]}
        start = stop
    table = json.dumps(header, separators=(",", ":")).encode()
    table += b" " * (-(8 + len(table)) % _ALIGNMENT)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for piece in _pieces(len(table).to_bytes(8, "little") + table, tensors.values()):
            file.write(piece)
            digest.update(piece)
    return FileRecord(path.stat().st_size, digest.hexdigest())


def _pieces(head: bytes, tensors: Any) -> Iterator[Any]:
    yield head
    for tensor in tensors:
        for piece in tensor.make().reshape(-1).split(_PIECE_ITEMS):
            yield piece.to(device="cpu", dtype=tensor.dtype).view(torch.uint8).numpy()
