"""How much memory a model needs, and how much there is."""

import os
from pathlib import Path

from gemsmith.config import ModelConfig
from gemsmith.errors import CheckpointError, MemoryLimitError

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Activations, a short cache and the runtime, beside the parameters.
WORKSPACE_BYTES = 256 << 20
_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")
_STATM = Path("/proc/self/statm")


def needed_bytes(config: ModelConfig, dtype: str) -> int:
    """Return the memory needed to run a model: its parameters and a workspace.

    Args:
        dtype: "float32", "bfloat16" or "float16".
    """
    return config.n_params * DTYPE_BYTES[dtype] + WORKSPACE_BYTES


def available_bytes(device: str = "cpu") -> int:
    """Return the memory that can be taken now.

    On a CPU that is what the kernel calls available, or what the container has left where that is
    less; on a GPU the free memory of that GPU.
    """
    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)[0]
    limits = [limit for limit in (_meminfo_bytes(), _cgroup_bytes(2), _cgroup_bytes(1)) if limit is not None]
    return min(limits) if limits else _total_bytes()


def resident_bytes() -> int:
    """Return the main memory this process holds now; where the system does not tell, the most it ever held."""
    fields = "".join(_lines(_STATM)).split()
    if len(fields) > 1:
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts bytes


def check_fits(
    config: ModelConfig, dtype: str, *, device: str = "cpu", name: str = "model", n_bytes: int | None = None
) -> None:
    """Refuse a model that does not fit, before anything is loaded.

    Args:
        n_bytes: Of its parameters, where they are not all of `dtype`.

    Raises:
        MemoryLimitError: It does not; the dtype that would fit is named.
    """
    available = available_bytes(device)
    needed = needed_bytes(config, dtype) if n_bytes is None else n_bytes + WORKSPACE_BYTES
    if needed <= available:
        return
    smaller = [other for other in ("bfloat16",) if needed_bytes(config, other) <= min(available, needed - 1)]
    advice = f"Load it with dtype={smaller[0]!r}." if smaller else "No dtype would fit: choose a smaller model."
    raise MemoryLimitError(
        f"{name} must fit into memory; got {in_gb(needed)} needed in {dtype} and {in_gb(available)} free on "
        f"{device}. {advice}"
    )


def check_plausible(config: ModelConfig, n_bytes: int, *, source: str) -> None:
    """Refuse sizes that cannot be those of any weights in the files, before a network is laid out by them.

    Args:
        n_bytes: Of all tensors in the files.
        source: Where the configuration stands, for the message.

    Raises:
        CheckpointError: The largest matrix would have less than a bit for each weight.
    """
    if config.largest_matrix > 8 * n_bytes:
        raise CheckpointError(
            f"sizes must be those of the weights that are there; got a matrix of {config.largest_matrix:,} weights in "
            f"{source}, and {n_bytes:,} bytes of tensors. Do configuration and weights belong together?"
        )


def in_gb(n_bytes: int) -> str:
    """Return a size in words: "5.2 GB" (10^9 bytes)."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 5e8 else f"{n_bytes / 1e6:.1f} MB"


def _meminfo_bytes() -> int | None:
    for line in _lines(_MEMINFO):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _cgroup_bytes(version: int) -> int | None:
    """Return what the limits of this process's control group leave, or None without limits."""
    if version == 2:
        root, limit_file, used_file, cached = _CGROUP, "memory.max", "memory.current", "inactive_file"
    else:
        root, limit_file, used_file = _CGROUP / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        cached = "total_inactive_file"
    folder = root / _own_group("" if version == 2 else "memory")
    left = []
    # A parent's limit binds its children.
    for place in (folder, *folder.parents):
        if not place.is_relative_to(root):
            break
        # "max", or in version 1 a number beyond any memory, is no limit.
        limit, used = _number(place / limit_file), _number(place / used_file)
        if limit is not None and used is not None:
            reclaimable = [line.split()[1] for line in _lines(place / "memory.stat") if line.startswith(f"{cached} ")]
            left.append(limit - used + sum(map(int, reclaimable)))
    return max(0, min(left)) if left else None


def _own_group(controller: str) -> str:
    """Return this process's group below a controller's root; version 2 has no controller in its line."""
    for line in _lines(Path("/proc/self/cgroup")):
        _, controllers, group = line.split(":", 2)
        if controller in controllers.split(","):
            return group.lstrip("/")
    return ""


def _number(path: Path) -> int | None:
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _total_bytes() -> int:
    # macOS has no account of available memory in the standard library.
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
