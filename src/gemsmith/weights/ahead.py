"""What a process can do for a model before it has imported torch."""

import gc
import struct
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from gemsmith.errors import GemsmithError
from gemsmith.kernels import early_packing
from gemsmith.kernels.early_packing import Plain
from gemsmith.weights.catalog import find_model
from gemsmith.weights.header import ITEM_BYTES, WEIGHT_DTYPES, Entry
from gemsmith.weights.keys import PACKED_WEIGHT, SCALE, SHAPE, WEIGHT
from gemsmith.weights.memory import available_bytes
from gemsmith.weights.tensors import find_tensors

# Where Linux shows a GPU of either make: the weights may go there.
_GPUS = (Path("/dev/nvidiactl"), Path("/dev/kfd"))
_WORD_VALUES = 8  # of 4 bits


@contextmanager
def opening(model: str, *, device: str | None) -> Iterator[None]:
    """Make importing torch and loading a model quicker, for a process that has done neither.

    Matrices in few bits are packed meanwhile, and the garbage collector rests: nothing that is imported becomes
    garbage, but it would be searched again and again. Errors are left to whoever loads.

    Args:
        device: Where it was asked for; None where the best one will be taken.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        if "torch" not in sys.modules and _is_for_cpu(device):
            begin(model)
        yield
    finally:
        early_packing.end()
        gc.freeze()
        if collects:
            gc.enable()


def begin(model: str) -> None:
    """Begin to pack a model, where there is something to pack and memory for it; any error is the loader's to tell."""
    try:
        folder = find_model(model)
        found = plain_tensors(find_tensors(folder)) if folder.is_dir() else []
        if 2 * sum(plain.packed_bytes() for plain in found) < available_bytes():
            early_packing.begin(found)
    except (GemsmithError, OSError):
        return


def plain_tensors(entries: Mapping[str, Entry]) -> list[Plain]:
    """Return the matrices in few bits, and their scales, that are packed as they lie in their files; the largest last.

    A file that lies about them is found out by whoever loads it; until then nothing outside of it is read.
    """
    found = []
    for entry in entries.values():
        name, _, leaf = entry.name.rpartition(".")
        if len(entry.shape) != 2 or not entry.n_bytes:
            continue
        n_rows, width = entry.shape
        if leaf == PACKED_WEIGHT and entry.dtype == "I32":
            shape = entries.get(f"{name}.{SHAPE}")
            if shape is None or _numbers(shape) != (n_rows, width * _WORD_VALUES):
                continue
            found.append(Plain(entry.path, entry.start, width * _WORD_VALUES, n_rows, 4))
        elif (leaf == WEIGHT and entry.dtype == "I8") or (leaf == SCALE and entry.dtype in WEIGHT_DTYPES):
            found.append(Plain(entry.path, entry.start, width, n_rows, 8 * ITEM_BYTES[entry.dtype]))
    return sorted(found, key=Plain.packed_bytes)


def _numbers(entry: Entry) -> tuple[int, ...]:
    """Return the integers of a small tensor; none where it has another form."""
    if entry.dtype not in ("I64", "I32") or entry.shape != (2,):
        return ()
    with entry.path.open("rb") as file:
        file.seek(entry.start)
        raw = file.read(entry.n_bytes)
    form = "<2q" if entry.dtype == "I64" else "<2i"
    return struct.unpack(form, raw) if len(raw) == struct.calcsize(form) else ()


def _is_for_cpu(device: str | None) -> bool:
    return device == "cpu" or (device is None and not any(path.exists() for path in _GPUS))
