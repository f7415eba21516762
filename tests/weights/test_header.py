"""Damaged safetensors files: each is refused by name before anything is allocated."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from gemsmith.errors import CheckpointError
from gemsmith.weights.header import MAX_HEADER_BYTES, read_header

TWO = {"a": torch.arange(6, dtype=torch.float32).reshape(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16)}


def with_header(path: Path, header: Any, data: bytes = bytes(32)) -> Path:
    """Write a file of any header, right or wrong."""
    table = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(table).to_bytes(8, "little") + table + data)
    return path


def entry(dtype: Any = "F32", shape: Any = (2, 3), offsets: Any = (0, 24)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_header_says_what_the_library_says(tmp_path: Path) -> None:
    save_file(TWO, tmp_path / "x.safetensors", metadata={"format": "pt"})
    found = read_header(tmp_path / "x.safetensors")
    data = (tmp_path / "x.safetensors").read_bytes()
    assert {name: (e.dtype, e.shape) for name, e in found.items()} == {"a": ("F32", (2, 3)), "b": ("BF16", (4,))}
    for name, e in found.items():
        stored = torch.frombuffer(bytearray(data[e.start : e.start + e.n_bytes]), dtype=TWO[name].dtype)
        assert torch.equal(stored.view(e.shape), TWO[name])


def test_a_file_without_tensors_is_read(tmp_path: Path) -> None:
    assert read_header(with_header(tmp_path / "x", {}, b"")) == {}


B = entry("BF16", (4,), (24, 32))
WRONG_HEADERS = [
    ({"a": entry(shape=(2, 4)), "b": B}, r"24 bytes where tensor 'a' of shape \[2, 4\] needs 32"),
    ({"a": entry(offsets=(0, 20)), "b": B}, "20 bytes where tensor 'a'"),
    ({"a": entry(), "b": entry("BF16", (4,), (20, 28))}, "a gap or overlap between tensors 'a' and 'b'"),
    ({"a": entry(), "b": entry("BF16", (2,), (28, 32))}, "a gap or overlap between tensors 'a' and 'b'"),
    ({"a": entry(offsets=(8, 32))}, "a gap before tensor 'a'"),
    ({"a": entry()}, "8 bytes after the last tensor"),
    ({"a": entry("F4"), "b": B}, "header entry .*'F4'.* for tensor 'a'"),
    ({"a": entry(["F32"]), "b": B}, r"header entry .*\['F32'\].* for tensor 'a'"),
    ({"a": entry(shape=(-2, -3)), "b": B}, r"header entry .*\[-2, -3\].* for tensor 'a'"),
    ({"a": entry(shape=(True, 6)), "b": B}, r"header entry .* for tensor 'a'"),
    ({"a": entry(offsets=(24, 0)), "b": B}, "-24 bytes where tensor 'a'"),
    ({"a": entry(offsets=(0, 24, 1)), "b": B}, "for tensor 'a'"),
    ({"a": entry(offsets=(0.0, 24.0)), "b": B}, "for tensor 'a'"),
    ({"a": 3, "b": B}, "header entry 3 for tensor 'a'"),
    ({"a": {"dtype": "F32"}}, r"header entry \{'dtype': 'F32'\} for tensor 'a'"),
    (["a"], r"got \['a'\] in its header"),
    (b"{'a'}", "got Expecting property name .* in its header"),
    (b"\xff\xfe\x00", "in its header"),
    (b"[" * 100_000, "nested too deep in its header"),
    (b'{"a": 1, "a": 2}', "got the key 'a' twice in its header"),
]


@pytest.mark.parametrize(("header", "message"), WRONG_HEADERS, ids=[str(i) for i in range(len(WRONG_HEADERS))])
def test_a_wrong_header_is_refused_by_tensor(header: Any, message: str, tmp_path: Path) -> None:
    path = with_header(tmp_path / "x.safetensors", header)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(path)
    assert "x.safetensors" in str(caught.value)


def test_a_header_that_claims_too_much_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes((MAX_HEADER_BYTES + 1).to_bytes(8, "little"))
    with pytest.raises(CheckpointError, match=rf"a header length of {MAX_HEADER_BYTES + 1} in 8 bytes"):
        read_header(path)


@pytest.mark.parametrize("n_bytes", [0, 5])
def test_a_file_of_a_few_bytes_is_refused(n_bytes: int, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\x01" * n_bytes)
    with pytest.raises(CheckpointError, match=rf"in {n_bytes} bytes"):
        read_header(tmp_path / "x")


def test_a_git_lfs_pointer_is_named(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    with pytest.raises(CheckpointError, match=r"got a Git LFS pointer in '.*x'\. Run git lfs pull"):
        read_header(tmp_path / "x")


@pytest.mark.parametrize(
    ("n_left", "message"),
    [(60, "whole header of 1.. bytes; got 60 bytes"), (-5, "cut off in tensor 'b'"), (-20, "cut off in tensor 'a'")],
)
def test_a_cut_off_file_is_named_with_its_tensor(n_left: int, message: str, tmp_path: Path) -> None:
    path = with_header(tmp_path / "x", {"a": entry(), "b": B})
    os.truncate(path, n_left % path.stat().st_size)
    with pytest.raises(CheckpointError, match=message):
        read_header(path)


@given(st.data())
def test_whatever_bytes_change_we_read_no_file_the_library_refuses(data: st.DataObject) -> None:
    path = Path(os.environ["PYTEST_TMP"]) / "fuzz.safetensors"
    save_file(TWO, path, metadata={"format": "pt"})
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw
    path.write_bytes(raw)
    try:
        with safe_open(path, "pt") as theirs:
            slices = {name: theirs.get_slice(name) for name in list(theirs.keys())}
            wanted = {name: (found.get_dtype(), found.get_shape()) for name, found in slices.items()}
    except (SafetensorError, UnicodeError):
        wanted = None
    try:
        found = {name: (e.dtype, list(e.shape)) for name, e in read_header(path).items()}
    except CheckpointError:
        return
    assert found == wanted


@pytest.fixture(autouse=True)
def _fuzz_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_TMP", str(tmp_path_factory.getbasetemp()))
