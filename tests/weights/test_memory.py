"""What there is and what is needed, from the accounts the kernel keeps."""

from pathlib import Path

import pytest

from gemsmith.config import preset
from gemsmith.errors import MemoryLimitError
from gemsmith.weights import memory
from tiny import tiny_config

GB = 10**9


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8 GB available and no control groups."""
    (tmp_path / "meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable:  {8 * GB // 1024} kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "_own_group", lambda controller: "a/b")
    return tmp_path


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(str(text))


def test_without_limits_it_is_what_the_kernel_calls_available(machine: Path) -> None:
    assert memory.available_bytes() == 8 * GB // 1024 * 1024


def test_a_container_has_what_its_group_leaves_and_can_reclaim(machine: Path) -> None:
    group = machine / "cgroup" / "a" / "b"
    write(group, memory__max=4 * GB, memory__current=3 * GB, memory__stat=f"anon 1\ninactive_file {GB}\n")
    assert memory.available_bytes() == 2 * GB
    write(machine / "cgroup" / "a", memory__max=GB, memory__current=0)
    assert memory.available_bytes() == GB  # a parent's limit binds
    write(machine / "cgroup" / "a", memory__max="max")
    assert memory.available_bytes() == 2 * GB


def test_a_container_of_version_1_too(machine: Path) -> None:
    root = machine / "cgroup" / "memory"
    write(root, memory__limit_in_bytes=3 * GB, memory__usage_in_bytes=GB, memory__stat="total_inactive_file 0\n")
    assert memory.available_bytes() == 2 * GB
    write(root, memory__limit_in_bytes=1 << 62)
    assert memory.available_bytes() > 7 * GB


def test_a_group_over_its_limit_has_nothing(machine: Path) -> None:
    write(machine / "cgroup", memory__max=GB, memory__current=2 * GB)
    assert memory.available_bytes() == 0


def test_without_kernel_accounts_it_is_the_whole_memory(machine: Path) -> None:
    (machine / "meminfo").unlink()
    assert memory.available_bytes() > GB // 4


def test_own_group_is_read_from_the_kernel() -> None:
    assert isinstance(memory._own_group(""), str)
    assert memory._own_group("no such controller") == ""


def test_need_is_parameters_times_their_size() -> None:
    config = preset("gemma-2-2b")
    assert memory.needed_bytes(config, "bfloat16") - memory.needed_bytes(config, "float16") == 0
    assert memory.needed_bytes(config, "float32") - memory.needed_bytes(config, "bfloat16") == 2 * 2_614_341_888


def test_refusal_names_both_sizes_and_the_dtype_that_fits(machine: Path) -> None:
    config = preset("gemma-2-2b")
    with pytest.raises(
        MemoryLimitError, match=r"gemma must fit .*; got 10.7 GB needed in float32 and 8.0 GB free on cpu"
    ):
        memory.check_fits(config, "float32", name="gemma")
    with pytest.raises(MemoryLimitError, match="Load it with dtype='bfloat16'"):
        memory.check_fits(config, "float32")
    with pytest.raises(MemoryLimitError, match=r"got 18.8 GB needed in bfloat16 .* No dtype would fit"):
        memory.check_fits(preset("gemma-2-9b"), "bfloat16")
    memory.check_fits(tiny_config(), "float32")


def test_sizes_in_words() -> None:
    assert [memory.in_gb(n) for n in (5_228_683_776, 24_000_000)] == ["5.2 GB", "24.0 MB"]
