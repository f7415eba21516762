"""Where a model computes, and in what numbers."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gemsmith.errors import ConfigError
from gemsmith.model.transformer import Transformer

DEVICES = ("cpu", "cuda", "mps")
# torch's names of CPU features that multiply bfloat16 in hardware, x86-64 and Arm.
_BF16_FEATURES = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
_CACHED_BYTES = 64 << 20


def choose_device(device: torch.device | str | None) -> torch.device:
    """Return the device asked for, or the best of this machine: cuda, mps, cpu.

    Raises:
        ConfigError: torch has no such device here.
    """
    present = [name for name in DEVICES if _is_present(name)]
    if device is None:
        return torch.device("cuda" if "cuda" in present else present[-1])
    kind, _, number = str(device).partition(":")
    is_known = kind in present and (not number or number.isdecimal())
    if not is_known or (kind == "cuda" and int(number or 0) >= torch.cuda.device_count()):
        raise ConfigError(
            f"device must be one of {', '.join(present)} on this machine; got {str(device)!r}. "
            "Leave it out for the best one."
        )
    return torch.device(device)


def choose_dtype(dtype: torch.dtype | str | None, *, stored: str, device: torch.device) -> torch.dtype:
    """Return the dtype to compute in.

    Args:
        stored: What most of the file is in.

    Raises:
        ConfigError: The dtype is none of float32 and bfloat16.
    """
    if dtype is None:
        return torch.bfloat16 if stored == "bfloat16" and has_fast_bfloat16(device) else torch.float32
    name = str(dtype).removeprefix("torch.")
    if name == "float16":
        raise ConfigError(
            "dtype must be float32 or bfloat16; got 'float16'. Gemma's residual stream outgrows float16, whose "
            "largest number is 65,504, and the text turns to noise; use 'float32' where bfloat16 is missing."
        )
    if name not in ("float32", "bfloat16"):
        raise ConfigError(f"dtype must be float32 or bfloat16; got {name!r}. Leave it out for the best one.")
    return getattr(torch, name)


def choose_cache_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Return what keys and values are kept in; None for what the network computes in.

    Raises:
        ConfigError: The dtype is none of int8, bfloat16 and float32.
    """
    if dtype is None:
        return None
    name = str(dtype).removeprefix("torch.")
    if name not in ("int8", "bfloat16", "float32"):
        raise ConfigError(f"cache_dtype must be int8, bfloat16 or float32; got {name!r}. Leave it out for the usual.")
    return getattr(torch, name)


def has_fast_bfloat16(device: torch.device) -> bool:
    """Tell whether a device multiplies bfloat16 itself; others emulate it, slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "mps":
        return torch.backends.mps.is_macos_or_newer(14, 0)
    features = torch.cpu.get_capabilities()
    return any(features.get(name, False) for name in _BF16_FEATURES)


def decode_threads(network: Transformer) -> int:
    """Return how many threads the modules write a token with: one where the weights are no more than a cache holds.

    The compiled step tries one and all of them there. By the modules, such products end sooner than a second thread
    is woken, and where others use the cores too, waiting for it costs far more: pebble on two busy cores wrote 3
    tokens/s with two threads, 88 with sleeping ones.
    """
    n_bytes = sum(x.numel() * x.element_size() for x in (*network.parameters(), *network.buffers()))
    return 1 if network.device.type == "cpu" and n_bytes <= _CACHED_BYTES else torch.get_num_threads()


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Let torch use `n` threads inside, and as many as before afterwards."""
    before = torch.get_num_threads()
    if n == before:
        yield
        return
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _is_present(name: str) -> bool:
    if name == "cuda":
        return torch.cuda.is_available()
    return name == "cpu" or torch.backends.mps.is_available()
