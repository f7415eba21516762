"""What this machine does at most: bytes read per second and products per second, by the compiled probes."""

import ctypes
import mmap
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from gemsmith.kernels import native

# Kind of product -> its number in csrc/probe.h.
KINDS = {"float32": 0, "bfloat16": 1, "int8": 2, "bfloat16 tiles": 3, "int8 tiles": 4}
READ_BYTES = 1 << 29  # several times the caches of all but the largest servers
_N_RUNS = 7
_SECONDS = 0.05  # of one run of products
_FIRST_ROUNDS, _MOST_ROUNDS = 1 << 14, 1 << 30


def read_rate(n_bytes: int = READ_BYTES) -> float:
    """Return the most bytes per second seen in reading a buffer from end to end, with torch's threads."""
    buffer = _huge_pages(n_bytes)
    return max(n_bytes / _seconds(lambda: sum_words(buffer)) for _ in range(_N_RUNS))


def product_rate(kind: str) -> float | None:
    """Return the most multiply-adds per second seen with operands in registers; None where there is no such product.

    Args:
        kind: One of KINDS. Those of tiles are for processors that have them, "int8 tiles" for those with amx_int8.
    """
    n_rounds = _FIRST_ROUNDS
    if not count_products(kind, n_rounds):
        return None
    # Grown step by step: the first runs take longer than their products, for threads have to wake.
    while n_rounds < _MOST_ROUNDS and _seconds(partial(count_products, kind, n_rounds)) < _SECONDS:
        n_rounds *= 4
    found = []
    for _ in range(_N_RUNS):
        start = time.perf_counter()
        n_products = count_products(kind, n_rounds)
        found.append(n_products / (time.perf_counter() - start))
    return max(found)


def sum_words(buffer: Tensor) -> int:
    """Return the sum of the 64-bit words of a uint8 tensor, modulo 2^64."""
    found = ctypes.c_uint64()
    native.need().gs_probe_read(buffer.data_ptr(), ctypes.addressof(found), buffer.numel())
    return found.value


def count_products(kind: str, n_rounds: int) -> int:
    """Multiply ones by ones on all of torch's threads; return how many products there were, 0 for none of the kind."""
    found = ctypes.c_int64()
    native.need().gs_probe_products(ctypes.addressof(found), n_rounds, torch.get_num_threads(), KINDS[kind])
    return found.value


def _huge_pages(n_bytes: int) -> Tensor:
    """Return a buffer that has been written to, in huge pages where the system grants them."""
    memory = mmap.mmap(-1, n_bytes)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8).fill_(1)


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
