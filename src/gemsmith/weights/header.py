"""The table at the head of a safetensors file: which tensor lies where, checked against the file's length.

A file is 8 bytes with the length of the table, the table in JSON, then the tensors without a gap.
Source: the format's description in huggingface/safetensors, README, "Format".
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from gemsmith.errors import CheckpointError
from gemsmith.weights.json_file import parse_object

MAX_HEADER_BYTES = 25_000_000
# Bytes of one element, of every dtype the format knows in whole bytes.
ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
# The ones a network's weights may have, by torch's names.
WEIGHT_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
# The same with the ones its quantized weights may have.
TORCH_DTYPES = WEIGHT_DTYPES | {"I8": "int8", "U8": "uint8", "I32": "int32", "I64": "int64"}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file.

    Attributes:
        start: Its first byte, counted from the beginning of the file.
        n_bytes: Its length.
    """

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    n_bytes: int


def read_header(path: Path) -> dict[str, Entry]:
    """Return the tensors of a safetensors file by name.

    Raises:
        CheckpointError: The file is cut off, longer than its table says, no safetensors file, or its
            table is corrupted; the first wrong tensor is named.
    """
    n_file = path.stat().st_size
    with path.open("rb") as file:
        raw, n_header = _read_table(path, file, n_file)
    entries = [_entry(path, name, value, 8 + n_header) for name, value in raw.items() if name != "__metadata__"]
    _check_places(path, entries, 8 + n_header, n_file)
    return {entry.name: entry for entry in entries}


def read_metadata(path: Path) -> dict[str, str]:
    """Return the free words of a safetensors file's header.

    Raises:
        CheckpointError: The file is cut off or no safetensors file, or these are no words.
    """
    with path.open("rb") as file:
        raw, _ = _read_table(path, file, path.stat().st_size)
    words = raw.get("__metadata__", {})
    if not isinstance(words, dict) or not all(isinstance(word, str) for word in words.values()):
        raise _corrupted(path, f"{words!r:.60} as its metadata")
    return words


def _read_table(path: Path, file: BinaryIO, n_file: int) -> tuple[dict[str, Any], int]:
    head = file.read(8)
    if head.startswith(b"version "):
        raise CheckpointError(f"weights must be the tensors themselves; got a Git LFS pointer in {str(path)!r}. "
                              "Run git lfs pull in its folder.")  # fmt: skip
    n_header = int.from_bytes(head, "little")
    if len(head) < 8 or n_header > MAX_HEADER_BYTES:
        raise _corrupted(path, f"a header length of {n_header} in {n_file} bytes")
    if 8 + n_header > n_file:
        raise CheckpointError(
            f"file must hold its whole header of {n_header} bytes; got {n_file} bytes in {str(path)!r}. "
            "Was the download or the save interrupted? Fetch it again."
        )
    try:
        return parse_object(file.read(n_header)), n_header
    except ValueError as error:
        raise _corrupted(path, f"{error} in its header") from error


def _entry(path: Path, name: str, value: Any, data_start: int) -> Entry:
    try:
        dtype, shape, (start, stop) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
        item_bytes = ITEM_BYTES[dtype]
    except (TypeError, KeyError, ValueError) as error:
        raise _corrupted(path, f"the header entry {value!r} for tensor {name!r}") from error
    if not all(type(count) is int and count >= 0 for count in (*shape, start, stop)):
        raise _corrupted(path, f"the header entry {value!r} for tensor {name!r}")
    n_bytes = math.prod(shape) * item_bytes
    if stop - start != n_bytes:
        raise _corrupted(path, f"{stop - start} bytes where tensor {name!r} of shape {list(shape)} needs {n_bytes}")
    return Entry(path, name, dtype, shape, data_start + start, n_bytes)


def _check_places(path: Path, entries: list[Entry], data_start: int, n_file: int) -> None:
    """Check that the tensors fill the file: no gap, no overlap, nothing missing, nothing left over."""
    placed = sorted(entries, key=lambda entry: (entry.start, entry.n_bytes))
    for before, after in pairwise(placed):
        if before.start + before.n_bytes != after.start:
            raise _corrupted(path, f"a gap or overlap between tensors {before.name!r} and {after.name!r}")
    if placed and placed[0].start != data_start:
        raise _corrupted(path, f"a gap before tensor {placed[0].name!r}")
    end = placed[-1].start + placed[-1].n_bytes if placed else data_start
    if n_file < end:
        cut = next(entry for entry in placed if entry.start + entry.n_bytes > n_file)
        raise CheckpointError(
            f"file must hold {end} bytes; got {n_file} in {str(path)!r}, cut off in tensor {cut.name!r}. "
            "Was the download or the save interrupted? Fetch it again."
        )
    if n_file > end:
        raise _corrupted(path, f"{n_file - end} bytes after the last tensor")


def _corrupted(path: Path, found: str) -> CheckpointError:
    return CheckpointError(f"file must be an intact safetensors file; got {found} in {str(path)!r}. Fetch it again.")
