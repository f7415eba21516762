"""Large pages under packed weights and long caches, brought there in the background.

Memory is read faster on large pages, but while a model opens the kernel would have to make room for each of them
first, and that takes longer than all the packing. So weights are packed on small pages, and a thread of the
lowest class has the kernel exchange them when the processor has nothing better to do.

Source: madvise(2), MADV_COLLAPSE, Linux 6.1.
"""

import ctypes
import errno
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from threading import Thread

from torch import Tensor

THREAD_NAME = "gemsmith-large-pages"
_COLLAPSE = 25
_PAGE = 2 << 20
_PIECE = 4 * _PAGE  # exchanged in one call
_LEAST_BYTES = 64 << 20  # less lies in caches
_UNKNOWN = (errno.EINVAL, errno.ENOSYS, errno.EPERM)  # what a kernel without it says, and others of some pieces


def settle(tensors: Iterable[Tensor]) -> Thread | None:
    """Have the memory of tensors on the CPU brought to large pages in the background.

    Nothing is kept alive for it: a range that has been freed meanwhile is passed over.

    Returns:
        The thread at work; None where there is too little memory, or another system than Linux.
    """
    held = [x for x in tensors if x.device.type == "cpu"]
    if sys.platform != "linux" or sum(x.nbytes for x in held) < _LEAST_BYTES:
        return None
    ranges = whole_pages((x.data_ptr(), x.data_ptr() + x.nbytes) for x in held)
    thread = Thread(target=_exchange, args=(ranges,), name=THREAD_NAME, daemon=True)
    thread.start()
    return thread


def whole_pages(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the large pages that lie within ranges of addresses, those that nearly touch taken as one."""
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if merged and start - merged[-1][1] < _PAGE:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    pages = ((-(-start // _PAGE) * _PAGE, stop // _PAGE * _PAGE) for start, stop in merged)
    return [(start, stop) for start, stop in pages if start < stop]


def _exchange(ranges: list[tuple[int, int]]) -> None:
    """Exchange the pages of ranges, those of them for which there is room."""
    with suppress(OSError):  # where a container forbids it
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))  # of this thread alone
    madvise, is_known = ctypes.CDLL(None, use_errno=True).madvise, False
    for start, stop in ranges:
        for at in range(start, stop, _PIECE):
            size = min(_PIECE, stop - at)
            if not madvise(ctypes.c_void_p(at), ctypes.c_size_t(size), _COLLAPSE):
                is_known = True
            elif not is_known and ctypes.get_errno() in _UNKNOWN:
                return
