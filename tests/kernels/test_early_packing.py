"""What is packed before torch is there equals what is packed afterwards, whoever does it."""

import ctypes
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gemsmith.kernels import early_packing, native, quantized_linear
from gemsmith.kernels.early_packing import Plain
from gemsmith.kernels.quantized import Quantized, Scheme, quantize

pytestmark = pytest.mark.skipif(not native.is_loaded(), reason="no compiled kernels here; make kernels builds them")

HEAD = 24  # bytes before the first matrix in the file


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    yield
    early_packing.end()


def written(path: Path, *matrices: Quantized) -> list[Plain]:
    """Write values and scales of matrices one behind the other, and say where they lie."""
    data, found = bytearray(HEAD), []
    for q in matrices:
        d_out, d_in = q.shape
        found.append(Plain(path, len(data), d_in, d_out, q.scheme.bits))
        data += q.values.contiguous().view(torch.uint8).numpy().tobytes()
        found.append(Plain(path, len(data), q.scales.shape[1], d_out, 8 * q.scales.element_size()))
        data += q.scales.contiguous().view(torch.uint8).numpy().tobytes()
    path.write_bytes(data)
    return found


def mapped(q: Quantized, plain: list[Plain]) -> Quantized:
    """Return the matrix as views of the file the packing has mapped."""
    values, scales = plain
    mapping = early_packing.mapped(values.path)
    assert mapping is not None
    flat = torch.frombuffer(mapping, dtype=torch.uint8)
    lies = flat[values.start : values.start + values.row_bytes * values.n_rows]
    steps = flat[scales.start : scales.start + scales.row_bytes * scales.n_rows]
    shaped = lies.view(q.values.dtype).view(q.values.shape), steps.view(q.scales.dtype).view(q.scales.shape)
    return Quantized(q.scheme, q.shape, *shaped, None)


def assert_packed_equal(q: Quantized, found: quantized_linear.Packed) -> None:
    wanted = quantized_linear.pack(q)
    assert torch.equal(found.values, wanted.values)
    assert torch.equal(found.scales, wanted.scales)


def random(scheme: Scheme, d_out: int, d_in: int, dtype: torch.dtype = torch.bfloat16) -> Quantized:
    return quantize(torch.randn(d_out, d_in), scheme, scale_dtype=dtype)


@pytest.mark.parametrize("scheme", [Scheme(4, 32), Scheme(8, None), Scheme(8, 32)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("is_waited_for", [True, False])
def test_packed_early_equals_packed_late(
    scheme: Scheme, dtype: torch.dtype, is_waited_for: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(early_packing, "_PIECE", 4096)  # several jobs a matrix
    matrices = [random(scheme, 48, 64, dtype), random(scheme, 133, 96, dtype), random(scheme, 1, 32, dtype)]
    plain = written(tmp_path / "weights", *matrices)
    early_packing.begin(plain)
    running = early_packing._packing
    assert running is not None
    if is_waited_for:
        running.thread.join()
        assert [job.state for job in running.jobs] == [2] * len(running.jobs)
    for i, q in enumerate(matrices):
        assert_packed_equal(q, quantized_linear.pack(mapped(q, plain[2 * i : 2 * i + 2])))
        assert len(running.known) == 2 * (len(matrices) - i - 1)


def test_memory_is_the_early_one_and_outlives_the_packing(tmp_path: Path) -> None:
    q = random(Scheme(4, 32), 32, 64)
    plain = written(tmp_path / "weights", q)
    early_packing.begin(plain)
    running = early_packing._packing
    assert running is not None
    start = ctypes.addressof(ctypes.c_char.from_buffer(running.memory))
    found = quantized_linear.pack(mapped(q, plain))
    assert start <= found.values.data_ptr() < start + len(running.memory)
    assert found.values.data_ptr() % 64 == found.scales.data_ptr() % 64 == 0
    del running
    early_packing.end()
    assert early_packing.mapped(plain[0].path) is None
    assert_packed_equal(q, found)


def test_another_shape_at_the_same_place_is_packed_by_its_owner(tmp_path: Path) -> None:
    q = random(Scheme(8, None), 32, 64)
    plain = written(tmp_path / "weights", q)
    values = plain[0]
    early_packing.begin([Plain(values.path, values.start, 32, 64, 8), plain[1]])
    assert_packed_equal(q, quantized_linear.pack(mapped(q, plain)))


def test_what_the_thread_has_not_come_to_is_done_by_who_asks(tmp_path: Path) -> None:
    q = random(Scheme(4, 32), 64, 64)
    plain = written(tmp_path / "weights", q)
    early_packing.begin(plain)
    running = early_packing._packing
    assert running is not None
    running.stop()
    for job in running.jobs:
        job.state = 0
    ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(running.memory)), 0x55, len(running.memory))
    assert_packed_equal(q, quantized_linear.pack(mapped(q, plain)))


def test_nothing_is_begun_without_matrices_or_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    early_packing.begin([])
    assert early_packing._packing is None
    plain = written(tmp_path / "weights", random(Scheme(4, 32), 16, 32))
    monkeypatch.setattr(early_packing.compiled, "PATH", tmp_path / "_gemsmith.so")
    early_packing.begin(plain)
    assert early_packing._packing is None
    assert early_packing.take(0, 1, 1, 8) is None


def test_a_file_is_never_written(tmp_path: Path) -> None:
    q = random(Scheme(8, None), 16, 32)
    plain = written(tmp_path / "weights", q)
    before = plain[0].path.read_bytes()
    early_packing.begin(plain)
    mapped(q, plain).values.zero_()
    early_packing.end()
    assert plain[0].path.read_bytes() == before
