"""Mapped files: what is touched is in memory, what is released is not, and the numbers stay."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gemsmith.weights import mapped
from gemsmith.weights.header import read_header
from gemsmith.weights.mapped import MappedFiles

N_BYTES = 32 << 20


def resident_bytes(path: Path) -> int:
    """Count the memory this process's mappings of one file hold, whatever else the process keeps."""
    n_kib, is_ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if not line.split()[0].endswith(":"):
            is_ours = line.endswith(f" {path}")
        elif is_ours and line.startswith("Rss:"):
            n_kib += int(line.split()[1])
    return 1024 * n_kib


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    large = torch.arange(N_BYTES // 4, dtype=torch.int32).view(torch.float32)
    tensors = {"0 before": torch.ones(3000), "a": large, "b": torch.ones(3)}
    save_file(tensors, tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_fills_when_touched_and_empties_when_released(stored: Path) -> None:
    entry = read_header(stored)["a"]
    files = MappedFiles([stored])
    view = files.view(entry)
    assert resident_bytes(stored) < N_BYTES // 8
    total = view.view(torch.int32).sum()
    assert resident_bytes(stored) > N_BYTES * 7 // 8
    files.release(view)
    assert resident_bytes(stored) < N_BYTES // 8
    assert view.view(torch.int32).sum() == total


def test_only_views_are_released(stored: Path) -> None:
    files = MappedFiles([stored])
    own = torch.full((1 << 20,), 7.0)
    files.release(own)
    files.release(torch.empty(5, device="meta"))
    assert own.sum() == 7 << 20


def test_neighbors_of_a_released_view_keep_what_was_written(stored: Path) -> None:
    files = MappedFiles([stored])
    entries = read_header(stored)
    neighbors = [files.view(entries[name]) for name in ("0 before", "b")]
    assert entries["0 before"].start < entries["a"].start < entries["b"].start
    for neighbor in neighbors:
        neighbor.fill_(5.0)
    files.release(files.view(entries["a"]))
    assert all(neighbor.unique().tolist() == [5.0] for neighbor in neighbors)


def test_a_tensor_read_in_pieces_is_the_tensor(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "_BUFFER_BYTES", (5 << 20) + 4)
    files, entries = MappedFiles([stored]), read_header(stored)
    read = files.read(entries["a"], dtype=torch.float32, device=torch.device("cpu"))
    assert torch.equal(read.view(torch.int32), torch.arange(N_BYTES // 4, dtype=torch.int32))
    halves = files.read(entries["b"], dtype=torch.bfloat16, device=torch.device("cpu"))
    assert halves.dtype == torch.bfloat16
    assert halves.tolist() == [1.0, 1.0, 1.0]
