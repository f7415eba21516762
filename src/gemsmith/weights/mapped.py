"""Tensors of files: as views of the mapped file, or read one at a time."""

import ctypes
import mmap
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from gemsmith.errors import CheckpointError
from gemsmith.kernels import early_packing
from gemsmith.weights.header import TORCH_DTYPES, Entry

_BUFFER_BYTES = 8 << 20


class MappedFiles:
    """Files mapped into memory: pages are read when they are touched, and are the system's to take back."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._files = {path: _bytes_of(path) for path in set(paths)}
        # One for all tensors: a buffer for each would leave holes between them.
        self._buffer = torch.empty(_BUFFER_BYTES, dtype=torch.uint8)

    def view(self, entry: Entry) -> Tensor:
        """Return a tensor whose memory is the file's; a copy only where the file has it at an odd place."""
        flat = self._files[entry.path][entry.start : entry.start + entry.n_bytes]
        is_aligned = entry.start % stored_dtype(entry).itemsize == 0
        return (flat if is_aligned else flat.clone()).view(stored_dtype(entry)).view(entry.shape)

    def read(self, entry: Entry, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return a tensor read from its file into memory of its own, through one small buffer.

        A view would not do: its pages stay resident beside the copy made of them.

        Raises:
            CheckpointError: The file has become shorter.
        """
        found = torch.empty(entry.shape, dtype=dtype, device=device)
        item_bytes = stored_dtype(entry).itemsize
        with entry.path.open("rb", buffering=0) as file:
            file.seek(entry.start)
            for piece in found.view(-1).split(self._buffer.numel() // item_bytes):
                part = self._buffer[: piece.numel() * item_bytes]
                n_read = file.readinto(memoryview(part.numpy()))  # pyright: ignore[reportArgumentType]
                if n_read != part.numel():
                    raise CheckpointError(
                        f"tensor {entry.name!r} must hold {entry.n_bytes} bytes; got fewer in {str(entry.path)!r}, of "
                        f"{entry.path.stat().st_size} bytes. Did the file change while it was read?"
                    )
                piece.copy_(part.view(stored_dtype(entry)))
        return found

    def release(self, tensor: Tensor) -> None:
        """Give back the memory of a view, as after its packed copy was made; another tensor is left alone.

        The next use reads the file again, so what was written to the view is lost.
        """
        if sys.platform != "linux" or not self._is_view(tensor):
            return
        # Whole pages inside the tensor only: the ones at its edges are its neighbors' too.
        start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        stop = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if stop > start:
            madvise = ctypes.CDLL(None).madvise
            madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), mmap.MADV_DONTNEED)

    def _is_view(self, tensor: Tensor) -> bool:
        if tensor.device.type != "cpu" or tensor.layout != torch.strided:
            return False
        starts = {file.untyped_storage().data_ptr() for file in self._files.values()}
        return tensor.untyped_storage().data_ptr() in starts


def _bytes_of(path: Path) -> Tensor:
    """Map a file, unless it is mapped already. Private: writing there changes pages of this process, never the file."""
    mapping = early_packing.mapped(path)
    if mapping is not None:
        return torch.frombuffer(mapping, dtype=torch.uint8)
    return torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)


def stored_dtype(entry: Entry) -> torch.dtype:
    """Return the dtype a tensor has in its file."""
    return getattr(torch, TORCH_DTYPES[entry.dtype])
