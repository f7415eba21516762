"""What this machine has, read from the operating system without torch."""

import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# What we look for -> the names it goes by: Linux /proc/cpuinfo on x86-64 and on Arm, macOS sysctl.
CPU_FEATURES = {
    "avx2": ("avx2", "hw.optional.avx2_0"),
    "avx512": ("avx512f", "hw.optional.avx512f"),
    "vnni": ("avx512_vnni", "avx_vnni", "hw.optional.avx512vnni"),
    "bf16": ("avx512_bf16", "amx_bf16", "bf16", "hw.optional.arm.feat_bf16"),
    "amx": ("amx_tile",),
    "neon": ("asimd", "neon", "hw.optional.neon", "hw.optional.advsimd"),
    "dotprod": ("asimddp", "hw.optional.arm.feat_dotprod"),
    "i8mm": ("i8mm", "hw.optional.arm.feat_i8mm"),
    "sve": ("sve",),
}


@dataclass(frozen=True)
class Cpu:
    """The processor and how much of it we may use.

    Attributes:
        n_cores: Cores this process may be scheduled on.
        quota: Cores' worth of time a container grants, None without a limit.
    """

    model: str
    features: dict[str, bool]
    n_cores: int
    quota: float | None


def read_cpu(root: Path = Path("/")) -> Cpu:
    """Return the processor of this machine, or of the one whose /proc and /sys lie under `root`."""
    if sys.platform == "darwin":
        listing = _sysctl_listing()
        model, present = listing.get("machdep.cpu.brand_string", platform.machine()), listing
    else:
        fields = _fields(_text(root / "proc/cpuinfo"))
        model = fields.get("model name", platform.machine())
        present = dict.fromkeys((fields.get("flags") or fields.get("features", "")).split(), "1")
    features = {
        name: any(present.get(alias, "0") not in ("0", "") for alias in aliases)
        for name, aliases in CPU_FEATURES.items()
    }
    return Cpu(model, features, _n_cores(), _cpu_quota(root))


def total_memory() -> int:
    """Return the bytes of main memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def memory_limit(root: Path = Path("/")) -> int | None:
    """Return the bytes a container grants, None where that is no less than the machine has."""
    limits = [int(text) for text in _cgroup_texts(root, "memory.max", "memory.limit_in_bytes") if text.isdigit()]
    return min((limit for limit in limits if limit < total_memory()), default=None)


def peak_rss_bytes(root: Path = Path("/")) -> int:
    """Return the most memory this process has held since it started.

    Linux's getrusage also counts what the parent held when it forked, so the kernel's own high-water
    mark of this program comes first.
    """
    fields = _fields(_text(root / "proc/self/status"))
    if "vmhwm" in fields:
        return int(fields["vmhwm"].split()[0]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def seconds_since_start(root: Path = Path("/")) -> float | None:
    """Return how long ago this process was started, None where the system does not tell."""
    stat = _text(root / "proc/self/stat")
    uptime = _text(root / "proc/uptime").split()
    if not stat or not uptime:
        return None
    # The program's name, in brackets, may hold spaces; the start time is the 20th field after it.
    start_ticks = int(stat.rpartition(")")[2].split()[19])
    return float(uptime[0]) - start_ticks / os.sysconf("SC_CLK_TCK")


def _n_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_quota(root: Path) -> float | None:
    """Return the smallest number of cores any control group above us grants."""
    quotas = []
    for text in _cgroup_texts(root, "cpu.max"):
        budget, _, period = text.partition(" ")
        if budget.isdigit() and period.isdigit():
            quotas.append(int(budget) / int(period))
    return min(quotas, default=None)


def _cgroup_texts(root: Path, *names: str) -> list[str]:
    """Read files of our control group and of those above it, the nearest first."""
    texts = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        base = root / "sys/fs/cgroup" / controllers
        folder = base / path.lstrip("/")
        for place in (folder, *folder.parents):
            texts += [_text(place / name).strip() for name in names]
            if place == base:
                break
    # Inside a container the path above may not exist while the mounted root shows our own group.
    texts += [_text(root / "sys/fs/cgroup" / name).strip() for name in names]
    return [text for text in texts if text]


def _fields(text: str) -> dict[str, str]:
    """Read "key: value" lines into lower-case keys; of several processors the first counts."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip().lower(), value.strip())
    return fields


def _sysctl_listing() -> dict[str, str]:
    result = subprocess.run(["/usr/sbin/sysctl", "-a"], capture_output=True, text=True, check=False)
    return _fields(result.stdout)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
