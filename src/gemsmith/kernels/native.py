"""The compiled library of csrc/: found, loaded after torch, and told which instruction set to use.

Without it every caller takes the plain path. GEMSMITH_ISA forces an instruction set, GEMSMITH_REQUIRE_KERNELS=1
makes the library's absence an error.
"""

import ctypes
import logging
import os
from functools import cache

import torch
from torch import Tensor

from gemsmith.errors import KernelError
from gemsmith.kernels.compiled import PATH, load
from gemsmith.kernels.openmp import loaded_runtimes

DTYPES = {torch.float32: 0, torch.bfloat16: 1}
# What GEMSMITH_ISA may say -> the sets that stand for it, the best first.
_ISA_NAMES = {"portable": ("portable",), "avx2": ("avx2",), "avx512": ("avx512_bf16", "avx512"), "amx": ("amx",)}

_logger = logging.getLogger("gemsmith")


@cache
def library() -> ctypes.CDLL | None:
    """Return the library, loaded at the first call; None, said once in the log, where there is none.

    Raises:
        KernelError: GEMSMITH_REQUIRE_KERNELS is set and the library is missing or of another version, or
            GEMSMITH_ISA names what this processor or library lacks.
    """
    loaded, missing = load(PATH)
    if loaded is None:
        if os.environ.get("GEMSMITH_REQUIRE_KERNELS", "0") not in ("", "0"):
            raise KernelError(f"kernels must be compiled where GEMSMITH_REQUIRE_KERNELS is set; {missing}.")
        _logger.warning("Computing with plain torch: %s.", missing)
        return None
    # torch came first, by the import above: its threads serve our kernels too.
    runtimes = [path.encode() for path in loaded_runtimes()]
    loaded.gs_share_openmp(runtimes[0] if len(runtimes) == 1 else None)
    asked = os.environ.get("GEMSMITH_ISA", "")
    if asked:
        _choose(loaded, asked)
    return loaded


def isa() -> str:
    """Return the instruction set in use, "none" without a library."""
    loaded = library()
    return "none" if loaded is None else loaded.gs_isa().decode()


def available() -> list[str]:
    """List the instruction sets of the library that this processor can run, the best last."""
    loaded = library()
    return [] if loaded is None else loaded.gs_available().decode().split(",")


def need() -> ctypes.CDLL:
    """Return the library for a caller who has asked whether it is there."""
    loaded = library()
    if loaded is None:
        raise KernelError("this operator must have compiled kernels; got none. Install with a C++ compiler.")
    return loaded


def is_loaded() -> bool:
    """Tell whether there is a library."""
    return library() is not None


# What torch.compiler.assume_constant_result sets, without importing the compiler: it asks once and looks no further.
is_loaded._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


def has(dtype: torch.dtype) -> bool:
    """Tell whether there are compiled kernels for tensors of this dtype."""
    return dtype in DTYPES and is_loaded()


def serves(*tensors: Tensor) -> bool:
    """Tell whether tensors are such as kernels read: on the CPU, float32 or bfloat16, rows without gaps."""
    return is_loaded() and all(
        x.device.type == "cpu" and x.dtype in DTYPES and (not x.ndim or x.stride(-1) == 1 or x.shape[-1] <= 1)
        for x in tensors
    )


def select(name: str) -> None:
    """Use one instruction set by its exact name from now on, for tests and measurements.

    Raises:
        KernelError: There is no such set, or this processor lacks it.
    """
    loaded = library()
    if loaded is None or loaded.gs_select(name.encode()) != 0:
        raise KernelError(f"the instruction set must be one of {available()}; got {name!r}. Choose one of these.")


def _choose(loaded: ctypes.CDLL, asked: str) -> None:
    """Select what GEMSMITH_ISA names."""
    names = _ISA_NAMES.get(asked)
    if names is None:
        raise KernelError(f"GEMSMITH_ISA must be one of {', '.join(_ISA_NAMES)}; got {asked!r}. Correct or unset it.")
    if all(loaded.gs_select(name.encode()) for name in names):
        here = loaded.gs_available().decode().replace(",", ", ")
        raise KernelError(f"GEMSMITH_ISA must be what this processor can run ({here}); got {asked!r}. Unset it.")
