"""Matrices in few bits, packed by a thread of their own while the process still imports torch.

`begin` maps the files and starts the thread. Whoever loads the model takes the mapping of a file from `mapped`, so
that what was packed is known by its address, and asks `take` before packing anything itself: what the thread has
not come to is done then and there. Without `begin`, neither has anything to give.
"""

import ctypes
import mmap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from gemsmith.kernels import compiled

# Of csrc/quant.h: outputs and inputs a packed matrix is filled up to.
_BLOCK, _UNIT = 16, 32
_PIECE = 16 << 20  # bytes of a job, about: a large matrix is shared with whoever needs it first
_ALIGNMENT = 64
_DONE, _POLL_S = 2, 0.0005


@dataclass(frozen=True)
class Plain:
    """Rows in a file in plain order: those of a matrix, or what its groups have.

    Attributes:
        start: The first byte, counted from the beginning of the file.
        width: Values of a row; d_in, or the number of groups.
        bits: Of a value: 4 or 8 in a matrix, 16 or 32 of what a group has.
    """

    path: Path
    start: int
    width: int
    n_rows: int
    bits: int

    @property
    def row_bytes(self) -> int:
        """Bytes of a row in the file."""
        return self.width * self.bits // 8

    def packed_bytes(self, n_rows: int | None = None) -> int:
        """Return how long the packed form is, or that of the first rows."""
        width = self.width if self.bits > 8 else -(-self.width // _UNIT) * _UNIT
        return -(-(self.n_rows if n_rows is None else n_rows) // _BLOCK) * _BLOCK * width * self.bits // 8


class _Job(ctypes.Structure):
    """gs_early_job of csrc/kernels.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("plain", "packed")),
        *((name, ctypes.c_int64) for name in ("width", "n_rows")),
        *((name, ctypes.c_int32) for name in ("bits", "state")),
    ]


class _Packing:
    """A thread at work, the files it reads and the memory it fills."""

    def __init__(self, library: ctypes.CDLL, found: Sequence[Plain]) -> None:
        self.library = library
        self.files = {path: _map_file(path) for path in {plain.path for plain in found}}
        n_bytes = sum(_aligned(plain.packed_bytes()) for plain in found)
        self.memory = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        jobs: list[_Job] = []
        # Address of the plain form -> what lies there, where its packed form begins, and its jobs.
        self.known: dict[int, tuple[Plain, int, range]] = {}
        bases, base, at = {path: _address(file) for path, file in self.files.items()}, _address(self.memory), 0
        for plain in found:
            address, first = bases[plain.path] + plain.start, len(jobs)
            jobs += _jobs(plain, address, base + at)
            self.known[address] = plain, at, range(first, len(jobs))
            at += _aligned(plain.packed_bytes())
        self.jobs = (_Job * len(jobs))(*jobs)
        self.is_over = ctypes.c_int32(0)
        arguments = (self.jobs, ctypes.c_int64(len(jobs)), ctypes.byref(self.is_over))
        self.thread = Thread(target=library.gs_pack_early, args=arguments, name="gemsmith-early-packing", daemon=True)
        self.thread.start()

    def take(self, address: int, width: int, n_rows: int, bits: int) -> memoryview | None:
        """Return the packed form of what lies at an address, once, if it is known and of this shape."""
        plain, start, jobs = self.known.pop(address, (None, 0, range(0)))
        if plain is None or (plain.width, plain.n_rows, plain.bits) != (width, n_rows, bits):
            return None
        for index in jobs:
            self.library.gs_do_early(ctypes.byref(self.jobs[index]))
        for index in jobs:
            while self.jobs[index].state != _DONE:
                time.sleep(_POLL_S)
        return memoryview(self.memory)[start : start + plain.packed_bytes()]

    def stop(self) -> None:
        """Let the thread finish the job it is at, and no more."""
        self.is_over.value = 1
        self.thread.join()


_packing: _Packing | None = None


def begin(found: Sequence[Plain]) -> None:
    """Start packing, the first one first, where there are compiled kernels.

    Raises:
        OSError: A file cannot be mapped.
    """
    global _packing
    end()
    library = compiled.load(compiled.PATH)[0] if found else None
    if library is not None:
        _packing = _Packing(library, found)


def mapped(path: Path) -> mmap.mmap | None:
    """Return the mapping a file is read from."""
    return None if _packing is None else _packing.files.get(path)


def take(address: int, width: int, n_rows: int, bits: int) -> memoryview | None:
    """Return the packed form of what lies at `address` in plain order, if it is one of those begun.

    Args:
        width: As in Plain, n_rows and bits too.
    """
    return None if _packing is None else _packing.take(address, width, n_rows, bits)


def end() -> None:
    """Stop the thread; what was taken stays, the rest is given back."""
    global _packing
    if _packing is not None:
        _packing.stop()
        _packing = None


def _aligned(n_bytes: int) -> int:
    return -(-n_bytes // _ALIGNMENT) * _ALIGNMENT


def _jobs(plain: Plain, address: int, packed: int) -> list[_Job]:
    """Return the jobs of a matrix: whole blocks of rows each."""
    step = max(1, _PIECE // (_BLOCK * plain.row_bytes or 1)) * _BLOCK
    return [
        _Job(
            address + row * plain.row_bytes, packed + plain.packed_bytes(row), plain.width,
            min(step, plain.n_rows - row), plain.bits, 0,
        )
        for row in range(0, plain.n_rows, step)
    ]  # fmt: skip


def _map_file(path: Path) -> mmap.mmap:
    """Map a file for this process alone: what is written there never reaches it."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def _address(mapping: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(mapping))
