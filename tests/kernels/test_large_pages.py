"""Large pages: what is exchanged, that numbers stay, and that it happens at all."""

import re
import sys
from pathlib import Path

import pytest
import torch

from gemsmith.kernels.large_pages import settle, whole_pages

PAGE = 2 << 20


@pytest.mark.parametrize(
    ("ranges", "wanted"),
    [
        ([], []),
        ([(0, PAGE - 1)], []),
        ([(1, 3 * PAGE)], [(PAGE, 3 * PAGE)]),
        ([(PAGE, 2 * PAGE + 5), (2 * PAGE + 9, 3 * PAGE)], [(PAGE, 3 * PAGE)]),
        ([(9 * PAGE, 10 * PAGE), (PAGE, 2 * PAGE)], [(PAGE, 2 * PAGE), (9 * PAGE, 10 * PAGE)]),
        ([(PAGE, 5 * PAGE), (2 * PAGE, 3 * PAGE)], [(PAGE, 5 * PAGE)]),
    ],
)
def test_pages_within_ranges(ranges: list[tuple[int, int]], wanted: list[tuple[int, int]]) -> None:
    assert whole_pages(ranges) == wanted


def test_little_memory_is_left_alone() -> None:
    assert settle([torch.zeros(1 << 20), torch.empty(1 << 30, device="meta")]) is None


def knows_collapse() -> bool:
    """Tell whether this kernel can be asked, and does nothing of its own: Linux 6.1, large pages for those who ask."""
    switch = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    release = re.match(r"(\d+)\.(\d+)", Path("/proc/sys/kernel/osrelease").read_text()) if switch.exists() else None
    return release is not None and (int(release[1]), int(release[2])) >= (6, 1) and "[madvise]" in switch.read_text()


@pytest.mark.skipif(sys.platform != "linux" or not knows_collapse(), reason="needs MADV_COLLAPSE of Linux 6.1")
def test_pages_are_exchanged_and_numbers_stay() -> None:
    x = torch.arange(24 << 20, dtype=torch.int32)
    before = huge_bytes(x.data_ptr())
    thread = settle([x])
    assert thread is not None
    thread.join()
    assert huge_bytes(x.data_ptr()) > before
    assert torch.equal(x, torch.arange(24 << 20, dtype=torch.int32))


def huge_bytes(address: int) -> int:
    """Return how much of the mapping at an address lies on large pages."""
    is_here, kib = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            is_here = int(found[1], 16) <= address < int(found[2], 16)
        elif is_here and line.startswith("AnonHugePages:"):
            kib = int(line.split()[1])
    return kib << 10
