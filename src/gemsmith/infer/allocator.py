"""Tell the C allocator to keep its memory: fresh pages cost more than the arithmetic on virtual machines.

glibc hands large blocks straight back to the kernel, so every large temporary tensor faults all its
pages in anew. Prefill and training gain a fifth to a factor of two when it keeps them instead.
"""

import ctypes
import os
from functools import cache

# Parameters of mallopt(3), from malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4
_SETTINGS = {
    _M_MMAP_THRESHOLD: 1 << 30,  # blocks below 1 GB come from the heap
    _M_TRIM_THRESHOLD: (1 << 31) - 1,  # whose end is not given back
    _M_TOP_PAD: 64 << 20,  # and which grows in steps of 64 MB, untouched until used
}
# Every step of training asks for the same blocks again, of any size.
_SETTINGS_OF_TRAINING = {**_SETTINGS, _M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1}
_OWN_SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


@cache
def tune_allocator(*, for_training: bool = False) -> bool:
    """Set glibc's thresholds once per process; return whether it was done.

    Left alone where the C library is another, or where the user has set the thresholds.

    Args:
        for_training: Never give memory back at all.
    """
    if any(name in os.environ for name in _OWN_SETTINGS):
        return False
    try:
        if not (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc"):
            return False
        mallopt = ctypes.CDLL(None).mallopt
    except (ValueError, AttributeError, OSError):
        return False
    settings = _SETTINGS_OF_TRAINING if for_training else _SETTINGS
    return all(mallopt(parameter, value) for parameter, value in settings.items())
