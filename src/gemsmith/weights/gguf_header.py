"""The head of a GGUF file: its metadata and the table of its tensors, checked against the file's length.

A file is the magic, a version, two counts, so many (key, type, value), so many (name, sizes, format,
offset), padding, then the tensors. Whoever wrote it may be an enemy: no count or length is believed
before the bytes it speaks of are known to be there, and the head may hold only so many things.

Source: ggml-org/ggml, docs/gguf.md.
"""

import math
import mmap
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from gemsmith.errors import CheckpointError
from gemsmith.weights.gguf_blocks import FOREIGN, FORMATS, BlockFormat

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
MAX_HEAD_BYTES = 64 << 20
MAX_ENTRIES = 65_536  # keys, and tensors; Gemma 3 27B has 808
MAX_STRINGS = 1 << 20  # of all arrays; Gemma 3 has 262,144 pieces
_MAX_NAME_BYTES = 65_535
_MAX_DIMS = 4
STRING, ARRAY, BOOL = 8, 9, 7
# Type of a value by its number: the struct module's letter for one, numpy's for many.
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

Value = int | float | bool | str | list[bytes] | np.ndarray


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of a file.

    Attributes:
        shape: Rows first, as torch counts; the file counts the other way around.
        start: Its first byte, counted from the beginning of the file.
    """

    path: Path
    name: str
    block: BlockFormat
    shape: tuple[int, ...]
    start: int
    n_bytes: int


@dataclass(frozen=True)
class GgufFile:
    """What the head of a file says; arrays of texts are kept as bytes."""

    path: Path
    metadata: dict[str, Value]
    tensors: dict[str, GgufTensor]


def read_gguf(path: Path) -> GgufFile:
    """Return the metadata and the tensors of a file, without reading the tensors.

    Raises:
        CheckpointError: The file is cut off, of another version, or says something that cannot be;
            the first wrong number is named.
    """
    if not path.is_file():
        raise CheckpointError(f"model must be a folder or a GGUF file; got {str(path)!r}. Check the name.")
    n_file = path.stat().st_size
    if n_file < 24:
        raise _corrupted(path, f"{n_file} bytes, too few for a head")
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), min(n_file, MAX_HEAD_BYTES), access=mmap.ACCESS_READ) as data,
    ):
        return _Reader(path, data, n_file).file()


class _Reader:
    """A place in the head, moving forward only over bytes that are there."""

    def __init__(self, path: Path, data: mmap.mmap, n_file: int) -> None:
        self.path, self.data, self.n_file = path, data, n_file
        self.at, self.n_head, self.n_strings = 4, len(data), 0

    def file(self) -> GgufFile:
        """Return the whole head."""
        self._check_version()
        n_tensors, n_keys = self._number("Q"), self._number("Q")
        # The shortest entries: an empty key with one byte, an empty name with one size.
        self._check_count("number of tensors", n_tensors, 8 + 4 + 8 + 4 + 8, MAX_ENTRIES)
        self._check_count("number of keys", n_keys, 8 + 4 + 1, MAX_ENTRIES)
        metadata: dict[str, Value] = {}
        for _ in range(n_keys):
            key = self._text("a key", _MAX_NAME_BYTES)
            if key in metadata:
                raise self._wrong(f"the key {key!r} twice")
            metadata[key] = self._value(key, self._number("I"))
        listed = [self._tensor() for _ in range(n_tensors)]
        return GgufFile(self.path, metadata, self._placed(listed, metadata.get("general.alignment", ALIGNMENT)))

    def _check_version(self) -> None:
        if self.data[:4] != MAGIC:
            raise CheckpointError(
                f"file must begin with {MAGIC!r}; got {self.data[:4]!r} in {str(self.path)!r}. Is it a GGUF file?"
            )
        version = self._number("I")
        if version not in VERSIONS:
            is_swapped = version & 0xFFFF == 0
            found = f"{version >> 24} of a machine of the other byte order" if is_swapped else version
            raise CheckpointError(
                f"version of a GGUF file must be {' or '.join(map(str, VERSIONS))}; got {found} in {str(self.path)!r}. "
                "Convert the model again with a current llama.cpp."
            )

    def _take(self, n_bytes: int, what: str) -> int:
        """Move over `n_bytes` and return where they begin."""
        start = self.at
        if n_bytes > self.n_head - start:
            if self.n_head < self.n_file:
                raise self._wrong(f"more than {MAX_HEAD_BYTES} bytes before the tensors, at {what} of {n_bytes} bytes")
            raise self._wrong(f"{what} of {n_bytes} bytes where {self.n_head - start} are left")
        self.at = start + n_bytes
        return start

    def _number(self, letter: str) -> Any:
        form = "<" + letter
        return struct.unpack_from(form, self.data, self._take(struct.calcsize(form), "a number"))[0]

    def _check_count(self, what: str, count: int, n_bytes: int, limit: int) -> None:
        """Refuse a count of things that need at least `n_bytes` each."""
        if count > limit or count * n_bytes > self.n_head - self.at:
            raise self._wrong(f"{count} as {what} where {self.n_head - self.at} bytes and at most {limit} can be")

    def _text(self, what: str, limit: int = MAX_HEAD_BYTES) -> str:
        n_bytes = self._number("Q")
        if n_bytes > limit:
            raise self._wrong(f"{what} of {n_bytes} bytes")
        start = self._take(n_bytes, what)
        try:
            return self.data[start : self.at].decode()
        except UnicodeDecodeError as error:
            raise self._wrong(
                f"{what} with {error.object[error.start : error.start + 1]!r}, which is no UTF-8"
            ) from error

    def _value(self, key: str, kind: int) -> Value:
        if kind == STRING:
            return self._text(f"the text of {key!r}")
        if kind == ARRAY:
            return self._array(key)
        letter = self._letter(key, kind)
        value = self._number(letter)
        return bool(value) if kind == BOOL else value

    def _letter(self, key: str, kind: int) -> str:
        if kind not in NUMBERS:
            raise self._wrong(f"the type {kind} for {key!r}")
        return NUMBERS[kind]

    def _array(self, key: str) -> Value:
        kind, count = self._number("I"), self._number("Q")
        if kind == ARRAY:
            raise self._wrong(f"an array of arrays for {key!r}")
        if kind == STRING:
            self._check_count(f"length of {key!r}", count, 8, MAX_STRINGS - self.n_strings)
            self.n_strings += count
            return self._texts(key, count)
        dtype = np.dtype("<" + self._letter(key, kind))
        self._check_count(f"length of {key!r}", count, dtype.itemsize, MAX_HEAD_BYTES)
        start = self._take(count * dtype.itemsize, f"the array {key!r}")
        return np.frombuffer(self.data[start : self.at], dtype)

    def _texts(self, key: str, count: int) -> list[bytes]:
        # The tightest loop of the reader: a vocabulary has a quarter of a million pieces.
        found, data, at, end = [], self.data, self.at, self.n_head
        unpack = struct.Struct("<Q").unpack_from
        for _ in range(count):
            if at > end - 8:
                raise self._wrong(f"the array {key!r} cut off at its text {len(found)}")
            start = at + 8
            at = start + unpack(data, at)[0]
            if at > end:
                raise self._wrong(f"text {len(found)} of {key!r} of {at - start} bytes where {end - start} are left")
            found.append(data[start:at])
        self.at = at
        return found

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Return name, shape, format and offset of the next tensor, as the file says them."""
        name = self._text("the name of a tensor", _MAX_NAME_BYTES)
        n_dims = self._number("I")
        if not 1 <= n_dims <= _MAX_DIMS:
            raise self._wrong(f"{n_dims} dimensions for tensor {name!r}")
        sizes = [self._number("Q") for _ in range(n_dims)]
        return name, tuple(reversed(sizes)), self._number("I"), self._number("Q")

    def _placed(self, listed: list[tuple[str, tuple[int, ...], int, int]], alignment: Value) -> dict[str, GgufTensor]:
        """Return the tensors where the file has them, once none leaves the file or lies on another."""
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise self._wrong(f"{alignment!r} as general.alignment, which is no power of two")
        data_start = -(-self.at // alignment) * alignment
        found: dict[str, GgufTensor] = {}
        for name, shape, code, offset in listed:
            if name in found:
                raise self._wrong(f"the tensor {name!r} twice")
            if offset % alignment:
                raise self._wrong(f"offset {offset} of tensor {name!r}, no multiple of {alignment}")
            block = self._block(name, code)
            n_items = math.prod(shape)
            if min(shape) < 1 or shape[-1] % block.n_items:
                raise self._wrong(f"the shape {list(shape)} for tensor {name!r} in {block.name}")
            n_bytes = n_items // block.n_items * block.n_bytes
            if data_start + offset + n_bytes > self.n_file:
                raise CheckpointError(
                    f"file must hold {data_start + offset + n_bytes} bytes for tensor {name!r}; got {self.n_file} in "
                    f"{str(self.path)!r}. Was the download cut off? Fetch it again."
                )
            found[name] = GgufTensor(self.path, name, block, shape, data_start + offset, n_bytes)
        for before, after in pairwise(sorted(found.values(), key=lambda tensor: tensor.start)):
            if before.start + before.n_bytes > after.start:
                raise self._wrong(f"tensors {before.name!r} and {after.name!r} on the same bytes")
        return found

    def _block(self, name: str, code: int) -> BlockFormat:
        if code not in FORMATS:
            raise CheckpointError(
                f"tensor {name!r} must be in one of {', '.join(block.name for block in FORMATS.values())}; got "
                f"{FOREIGN.get(code, f'format {code}')} in {str(self.path)!r}. "
                "Take a file of the model in one of these."
            )
        return FORMATS[code]

    def _wrong(self, found: str) -> CheckpointError:
        return _corrupted(self.path, found)


def _corrupted(path: Path, found: str) -> CheckpointError:
    return CheckpointError(f"file must be an intact GGUF file; got {found} in {str(path)!r}. Fetch it again.")
