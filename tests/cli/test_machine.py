"""What the system tells about itself is read right, on machines other than this one too."""

import subprocess
import sys
from pathlib import Path

import pytest

from gemsmith.cli import machine

X86 = """\
processor	: 0
model name	: Intel(R) Xeon(R) Platinum 8481C
flags		: fpu avx2 avx512f avx512_bf16 avx512_vnni amx_bf16 amx_tile amx_int8

processor	: 1
model name	: another
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp bf16 i8mm sve\n"


def fake_root(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has no /proc")
@pytest.mark.parametrize(
    ("cpuinfo", "present"),
    [
        (X86, {"avx2", "avx512", "vnni", "bf16", "amx"}),
        (ARM, {"neon", "dotprod", "bf16", "i8mm", "sve"}),
        ("flags : sse2", set()),
    ],
)
def test_features_are_those_the_kernel_lists(cpuinfo: str, present: set[str], tmp_path: Path) -> None:
    cpu = machine.read_cpu(fake_root(tmp_path, {"proc/cpuinfo": cpuinfo}))
    assert {name for name, has in cpu.features.items() if has} == present


def test_model_is_that_of_the_first_processor(tmp_path: Path) -> None:
    assert machine.read_cpu(fake_root(tmp_path, {"proc/cpuinfo": X86})).model == "Intel(R) Xeon(R) Platinum 8481C"


def test_macos_features_come_from_sysctl(monkeypatch: pytest.MonkeyPatch) -> None:
    listing = {
        "machdep.cpu.brand_string": "Apple M3",
        "hw.optional.neon": "1",
        "hw.optional.arm.feat_bf16": "1",
        "hw.optional.arm.feat_i8mm": "1",
        "hw.optional.arm.feat_dotprod": "0",
    }
    monkeypatch.setattr(machine, "_sysctl_listing", lambda: listing)
    monkeypatch.setattr(sys, "platform", "darwin")
    cpu = machine.read_cpu()
    assert cpu.model == "Apple M3"
    assert {name for name, has in cpu.features.items() if has} == {"neon", "bf16", "i8mm"}


@pytest.mark.parametrize(("cpu_max", "quota"), [("150000 100000", 1.5), ("max 100000", None)])
def test_cpu_quota_is_that_of_the_control_group(cpu_max: str, quota: float | None, tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": cpu_max}
    assert machine.read_cpu(fake_root(tmp_path, files)).quota == quota


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/memory.max": "max",
                "sys/fs/cgroup/a/memory.max": "1000",
            },
            1000,
        ),
        ({"proc/self/cgroup": "4:memory:/x\n", "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "2000"}, 2000),
        ({"proc/self/cgroup": "0::/elsewhere\n", "sys/fs/cgroup/memory.max": "3000"}, 3000),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": str(1 << 62)}, None),
        ({}, None),
    ],
)
def test_memory_limit_is_the_smallest_above_us(files: dict[str, str], limit: int | None, tmp_path: Path) -> None:
    assert machine.memory_limit(fake_root(tmp_path, files)) == limit


def test_start_is_read_past_a_name_with_spaces(tmp_path: Path) -> None:
    stat = "7 (a (b) c) S " + " ".join(str(field) for field in range(4, 22)) + " 500 1 2"
    root = fake_root(tmp_path, {"proc/self/stat": stat, "proc/uptime": "60.50 100.0"})
    ticks_per_second = __import__("os").sysconf("SC_CLK_TCK")
    assert machine.seconds_since_start(root) == pytest.approx(60.5 - 500 / ticks_per_second)


@pytest.mark.skipif(sys.platform != "linux", reason="the trap is Linux's")
def test_peak_memory_is_our_own_and_not_the_parents() -> None:
    """A child of a large process would otherwise report its parent's size."""
    child = "from gemsmith.cli.machine import peak_rss_bytes; print(peak_rss_bytes())"
    code = f"import subprocess, sys; b = bytearray(300_000_000); subprocess.run([sys.executable, '-c', {child!r}])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 1_000_000 < int(result.stdout) < 100_000_000


def test_peak_memory_counts_what_was_given_back() -> None:
    before = machine.peak_rss_bytes()
    ballast = bytearray(before)
    ballast[::4096] = b"x" * len(ballast[::4096])
    del ballast
    assert machine.peak_rss_bytes() >= 1.5 * before
