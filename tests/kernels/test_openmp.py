import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gemsmith.kernels import native, openmp


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has no /proc")
def test_libraries_are_counted_once_each(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/maps").write_text(
        "7f00 r-xp 1 08:01 2 /a/libgomp.so.1\n7f01 r--p 1 08:01 2 /a/libgomp.so.1\n7f02 r-xp 1 08:01 3 /b/libiomp5.so\n"
    )
    assert openmp.loaded_runtimes(tmp_path) == ["/a/libgomp.so.1", "/b/libiomp5.so"]
    assert openmp.loaded_runtimes(tmp_path / "elsewhere") == []


@pytest.mark.skipif(sys.platform != "linux", reason="threads are shared on Linux only")
def test_kernels_bring_no_openmp_of_their_own() -> None:
    """In a process of its own: other packages of a test run, such as sentencepiece, do bring one."""
    if native.library() is None:
        pytest.skip("no compiled kernels here; make kernels builds them")
    code = (
        "import torch; from gemsmith.kernels import native, openmp; native.library(); print(*openmp.loaded_runtimes())"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert len(said) == 1
    assert Path(torch.__file__).parent in Path(said[0]).parents


@pytest.mark.skipif(sys.platform != "linux", reason="threads are shared on Linux only")
def test_kernels_compute_with_torchs_threads() -> None:
    library = native.library()
    if library is None:
        pytest.skip("no compiled kernels here; make kernels builds them")
    before = torch.get_num_threads()
    for n_threads in (1, 3):
        torch.set_num_threads(n_threads)
        assert library.gs_max_threads() == n_threads
    torch.set_num_threads(before)
