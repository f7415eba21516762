"""Rows out of files: JSON lines, plain text, Markdown and source code, packed or not, alone or in a folder."""

import bz2
import gzip
import importlib
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from gemsmith.errors import DataError

Row = dict[str, object]

_LINE_SUFFIXES = {".jsonl", ".ndjson", ".json"}
_UNREADABLE = (ValueError, lzma.LZMAError, zlib.error, EOFError, OSError)


@dataclass(frozen=True)
class SourceFile:
    """A file of a source and the name its documents carry."""

    path: Path
    name: str

    @property
    def holds_lines(self) -> bool:
        """Whether each line is a JSON object; else the whole file is one text."""
        suffixes = self.path.suffixes
        last = suffixes[-2:-1] if suffixes[-1:] and suffixes[-1] in _OPENERS else suffixes[-1:]
        return bool(last) and last[0] in _LINE_SUFFIXES


def find_files(place: Path, *, name: str, include: Sequence[str]) -> list[SourceFile]:
    """Return the files of a source in the order of their names.

    A folder gives the files its patterns match, each once. Links are not followed, and what starts with a
    dot is passed over unless the pattern says it.

    Raises:
        DataError: The file is missing, or no file of the folder matches.
    """
    if place.is_file() and not include:
        return [SourceFile(place, name)]
    if not place.is_dir():
        what = "a folder, as include is given" if include else "a file of JSON lines or text, or a folder"
        raise DataError(f"data must be {what}; got {str(place)!r}, which is not there. Check the path.")
    patterns = tuple(include) or ("**/*",)
    found = {path for pattern in patterns for path in place.glob(pattern) if _is_wanted(path, place, pattern)}
    if not found:
        raise DataError(
            f"include must match files of {str(place)!r}; got {', '.join(patterns)}, which match none. "
            "Correct the patterns or the path."
        )
    names = sorted((path.relative_to(place).as_posix(), path) for path in found)
    return [SourceFile(path, f"{name}/{relative}") for relative, path in names]


def _is_wanted(path: Path, place: Path, pattern: str) -> bool:
    relative = path.relative_to(place)
    is_hidden = any(part.startswith(".") for part in relative.parts)
    says_hidden = any(part.startswith(".") for part in PurePosixPath(pattern).parts)
    links = [place.joinpath(*relative.parts[: n + 1]).is_symlink() for n in range(len(relative.parts))]
    return path.is_file() and not any(links) and (says_hidden or not is_hidden)


def read_numbered(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield line number and object of a JSON lines file; `.xz`, `.gz`, `.bz2` and `.zst` are unpacked.

    Raises:
        DataError: The file is missing, or a line is not a JSON object in UTF-8; file and line are named.
    """
    if not path.is_file():
        raise DataError(f"data must be a file of JSON lines; got {str(path)!r}, which is not there. Check the path.")
    number = 0
    with open_packed(path) as lines:
        try:
            for line in lines:
                number += 1
                if line.strip():
                    yield number, _object(line.decode("utf-8"))
            number += 1  # the end of a packed file, where it is found whole or broken
        except _UNREADABLE as error:
            raise DataError(
                f"data must hold one JSON object per line, in UTF-8; got an error near line {max(number, 1)} of "
                f"{path.name} ({error}). Repair or remove the line."
            ) from error


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the objects of a JSON lines file, as `read_numbered` does."""
    for _, row in read_numbered(path):
        yield row


def read_texts(path: Path, field: str = "text") -> Iterator[str]:
    """Yield one field of every row.

    Raises:
        DataError: A row has no such field, or it is not text.
    """
    for number, row in read_numbered(path):
        yield text_of(row, field, f"line {number} of {path.name}")


def text_of(row: Row, field: str, place: str) -> str:
    """Return a field of a row as text.

    Raises:
        DataError: It is missing, or neither text nor a whole number.
    """
    value = row.get(field)
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        raise DataError(
            f"field {field!r} must be text; got {str(value)[:60]!r} in {place}. The row's fields are {', '.join(row)}."
        )
    return value


def read_whole(path: Path) -> str:
    """Return a file as one text.

    Raises:
        DataError: It is broken, binary, or not in UTF-8; the file and the byte are named.
    """
    try:
        with open_packed(path) as file:
            data = file.read()
    except _UNREADABLE as error:
        raise DataError(f"file must be readable; got {error} from {str(path)!r}. Repair or remove it.") from error
    try:
        text = data.decode("utf-8")
        if "\0" not in text:
            return text
        found = f"a zero byte at {data.index(0)}"
    except UnicodeDecodeError as error:
        found = f"byte {data[error.start]:#04x} at {error.start}"
    raise BinaryFileError(
        f"file must be text in UTF-8; got {found} of {str(path)!r}. Convert or remove it, narrow include, or write "
        "skips_binary = true."
    )


class BinaryFileError(DataError):
    """A file that is no text."""


def open_packed(path: Path) -> io.BufferedIOBase:
    """Open a file for reading, unpacked by its suffix.

    Raises:
        DataError: It is packed with zstandard, which is not installed.
    """
    return _OPENERS.get(path.suffix, open)(path, "rb")


def _object(line: str) -> Row:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError(f"{line[:40]!r} is not an object")
    return row


def _open_zst(path: Path, mode: str) -> io.BufferedIOBase:
    library = zstandard_module(path)
    return io.BufferedReader(_ZstdFile(path.open(mode), library))  # pyright: ignore[reportArgumentType]


def zstandard_module(path: Path) -> Any:
    """Import zstandard, which only `.zst` files need."""
    try:
        return importlib.import_module("zstandard")
    except ImportError as error:
        raise DataError(
            f"zstandard must be installed to read .zst files; got {path.name!r}. Run pip install 'gemsmith[data]'."
        ) from error


class _ZstdFile(io.RawIOBase):
    """The bytes of a .zst file; unlike the library's own reader it tells a file that was cut off."""

    def __init__(self, file: IO[bytes], library: Any) -> None:
        self.file, self.library = file, library
        self.frame = library.ZstdDecompressor().decompressobj()
        self.ready, self.is_inside = b"", False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.ready:
            packed = self.file.read(1 << 16)
            if not packed:
                if self.is_inside:
                    raise EOFError("the file ends within a zstandard frame")
                return 0
            self.ready = self._unpack(packed)
        n_bytes = min(len(buffer), len(self.ready))
        buffer[:n_bytes], self.ready = self.ready[:n_bytes], self.ready[n_bytes:]
        return n_bytes

    def close(self) -> None:
        self.file.close()
        super().close()

    def _unpack(self, packed: bytes) -> bytes:
        parts = []
        try:
            while packed:
                parts.append(self.frame.decompress(packed))
                self.is_inside = not self.frame.eof
                packed = self.frame.unused_data if self.frame.eof else b""
                if self.frame.eof:
                    self.frame = self.library.ZstdDecompressor().decompressobj()
        except self.library.ZstdError as error:
            raise ValueError(str(error)) from error
        return b"".join(parts)


_OPENERS: dict[str, Callable[..., io.BufferedIOBase]] = {
    ".xz": lzma.open,
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".zst": _open_zst,
}
