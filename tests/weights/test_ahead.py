"""Opening a model before torch is imported: nothing changes but the time it takes."""

import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gemsmith.errors import ModelNotFoundError
from gemsmith.infer.load import load
from gemsmith.kernels import early_packing, native
from gemsmith.kernels.quantized import Scheme, quantize
from gemsmith.model.linear import Linear
from gemsmith.weights import ahead
from gemsmith.weights.quantized import put
from gemsmith.weights.save import save_folder
from gemsmith.weights.tensors import find_tensors
from tiny import tiny_network

needs_library = pytest.mark.skipif(not native.is_loaded(), reason="no compiled kernels here; make kernels builds them")

INT4, INT8 = Scheme(4, None), Scheme(8, None)


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    yield
    early_packing.end()
    gc.unfreeze()


def folder_of(tmp_path: Path, linears: Scheme, table: Scheme) -> Path:
    network = tiny_network()
    for name, module in list(network.named_modules()):
        if isinstance(module, Linear):
            put(network, name, quantize(module.weight, linears, scale_dtype=torch.bfloat16))
    put(network, "embed_tokens", quantize(network.get_parameter("embed_tokens.weight"), table))
    return save_folder(tmp_path / "model", network)


@needs_library
@pytest.mark.parametrize(
    ("linears", "table"),
    [(INT4, INT8), (INT8, INT4), (Scheme(4, None, is_symmetric=False), INT8)],
)
def test_a_model_opened_early_is_the_same(linears: Scheme, table: Scheme, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, linears, table)
    wanted = load_packed(folder)
    ahead.begin(str(folder))
    running = early_packing._packing
    assert running is not None
    n_known = len(running.known)
    found = load_packed(folder)
    assert len(running.known) < n_known
    assert wanted.keys() == found.keys()
    for name, tensor in wanted.items():
        assert torch.equal(tensor, found[name]), name


def load_packed(folder: Path) -> dict[str, torch.Tensor]:
    from gemsmith.weights.folder import load_network

    loaded = load_network(folder)
    loaded.network.pack(release=loaded.files.release)
    return {**dict(loaded.network.named_buffers()), **dict(loaded.network.named_parameters())}


@needs_library
def test_all_matrices_of_a_folder_are_found(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, INT4, INT8)
    found = ahead.plain_tensors(find_tensors(folder))
    linears = [module for module in tiny_network().modules() if isinstance(module, Linear)]
    matrices = [plain for plain in found if plain.bits <= 8]
    assert len(matrices) == len(linears) + 1
    assert sorted((p.n_rows, p.width) for p in matrices if p.bits == 4) == sorted((x.d_out, x.d_in) for x in linears)
    assert len([plain for plain in found if plain.bits > 8]) >= len(matrices)
    assert [plain.packed_bytes() for plain in found] == sorted(plain.packed_bytes() for plain in found)


def test_dense_models_are_used_where_they_lie(tmp_path: Path) -> None:
    ahead.begin(str(save_folder(tmp_path / "dense", tiny_network())))
    assert early_packing._packing is None


def test_short_memory_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path, INT4, INT8)
    n_bytes = sum(plain.packed_bytes() for plain in ahead.plain_tensors(find_tensors(folder)))
    monkeypatch.setattr(ahead, "available_bytes", lambda: 2 * n_bytes)
    ahead.begin(str(folder))
    assert early_packing._packing is None


def test_weights_that_may_go_to_a_gpu_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "_GPUS", (tmp_path,))
    assert [ahead._is_for_cpu(device) for device in (None, "cuda", "cpu")] == [False, False, True]


@needs_library
def test_a_wrong_record_of_a_shape_is_left_to_the_loader(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, INT4, INT8)
    entries = find_tensors(folder)
    name = next(name for name in entries if name.endswith(".weight_shape"))
    shape = entries[name]
    n_found = len(ahead.plain_tensors(entries))
    data = bytearray(shape.path.read_bytes())
    data[shape.start : shape.start + 8] = (1 << 40).to_bytes(8, "little")
    shape.path.write_bytes(data)
    assert len(ahead.plain_tensors(find_tensors(folder))) == n_found - 1


def test_a_model_that_is_not_there_is_told_by_the_loader() -> None:
    collects = gc.isenabled()
    with pytest.raises(ModelNotFoundError), ahead.opening("no/such-model", device=None):
        load("no/such-model")
    assert gc.isenabled() == collects
    assert early_packing._packing is None


def test_opening_needs_no_torch() -> None:
    code = "import sys, gemsmith.weights.ahead; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
