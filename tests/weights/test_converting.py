"""Models written in another form: nothing is left out, and what few bits stand for stays what it is."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gemsmith.errors import CheckpointError, ConfigError, MemoryLimitError
from gemsmith.kernels.quantized import Quantized, Scheme, dequantize
from gemsmith.model.linear import LowRank
from gemsmith.model.quantized import QuantizedLinear, quantize_network
from gemsmith.model.transformer import Transformer
from gemsmith.weights.converting import to_folder, to_gguf
from gemsmith.weights.folder import load_network
from gemsmith.weights.gguf_load import GgufModel
from gemsmith.weights.gguf_write import save_gguf
from gemsmith.weights.opening import open_model
from gemsmith.weights.quantized import quantized_modules
from gemsmith.weights.save import save_folder
from gguf_files import byte_vocabulary, small_gguf, small_network

INT4, INT8 = Scheme(4, 32), Scheme(8, 32)
IDS = torch.arange(5, 25)[None]


def few_bits(linears: Scheme = INT4, table: Scheme | None = INT8) -> Transformer:
    return quantize_network(
        small_network(), lambda name, _: table if name == "embed_tokens" else linears, scale_dtype=torch.bfloat16
    )


def few_bits_folder(place: Path, linears: Scheme = INT4, table: Scheme | None = INT8) -> Path:
    return save_folder(place, few_bits(linears, table), tokenizer=byte_vocabulary(), generation={"top_k": 7})


def numbers(network: Transformer) -> dict[str, Tensor]:
    """Return what a network's weights stand for, in float32."""
    found = {name: parameter.detach().float() for name, parameter in network.named_parameters()}
    return found | {f"{name}.weight": dequantize(q) for name, q in quantized_modules(network).items()}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor], *, atol: float = 0.0) -> None:
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert (found[name] - wanted[name]).abs().max() <= atol, name


@pytest.mark.parametrize(("kind", "scheme"), [("q4_0", INT4), ("q8_0", INT8)])
def test_values_in_few_bits_are_kept_where_the_file_has_the_same(kind: str, scheme: Scheme, tmp_path: Path) -> None:
    folder = few_bits_folder(tmp_path / "q", scheme, scheme)
    written = to_gguf(folder, tmp_path / "x.gguf", kind=kind, name="x")
    assert written.formats == {kind.upper(): 29, "F32": 17}
    found, wanted = (
        quantized_modules(n) for n in (GgufModel(written.path).network().network, few_bits(scheme, scheme))
    )
    assert found.keys() == wanted.keys()
    for name, q in wanted.items():
        assert torch.equal(found[name].values, q.values), name
        assert torch.equal(found[name].scales.float(), q.scales.float()), name


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0", "q4_0"])
@pytest.mark.parametrize("linears", [INT4, Scheme(4, 16, is_symmetric=False), Scheme(8, None)])
def test_no_matrix_is_left_out(kind: str, linears: Scheme, tmp_path: Path) -> None:
    folder = few_bits_folder(tmp_path / "q", linears, Scheme(8, None))
    written = to_gguf(folder, tmp_path / "x.gguf", kind=kind, name="x")
    found = numbers(GgufModel(written.path).network(dtype="float32", is_native=False).network)
    wanted = numbers(few_bits(linears, Scheme(8, None)))
    # A step of a block that holds the largest magnitude, or of a float of that size.
    largest = max(float(weight.abs().max()) for name, weight in wanted.items() if "norm" not in name)
    step = {"f16": 2**-11, "bf16": 2**-8, "q8_0": 1 / 250, "q4_0": 1 / 7}[kind]
    assert_same(found, wanted, atol=largest * step)


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_matrices_of_a_file_written_again_are_the_same(kind: str, tmp_path: Path) -> None:
    path = small_gguf(tmp_path, kind=kind)
    again = to_gguf(path, tmp_path / "again.gguf", kind=kind, name="small").path
    wanted, found = (numbers(GgufModel(p).network(dtype="float32").network) for p in (path, again))
    for name in wanted:  # norms pass through bfloat16
        assert torch.allclose(found[name], wanted[name], rtol=0.0, atol=0.01 if "norm" in name else 0.0), name


def test_a_large_scale_is_named(tmp_path: Path) -> None:
    network = few_bits()
    q = quantized_modules(network)["layers.0.mlp.up_proj"]
    large = Quantized(q.scheme, q.shape, q.values, torch.full_like(q.scales, 1e6), None)
    network.get_submodule("layers.0.mlp").up_proj = QuantizedLinear(large)
    with pytest.raises(ConfigError, match=r"weights must be finite in Q4_0; got 999424.0. Write another type"):
        save_gguf(tmp_path / "x.gguf", network, tokenizer=byte_vocabulary(), kind="q4_0", name="x")
    assert list(tmp_path.iterdir()) == []


def test_a_network_with_more_or_less_than_its_configuration_is_refused(tmp_path: Path) -> None:
    network = few_bits()
    linear = network.get_submodule("layers.0.mlp.up_proj")
    linear.delta = LowRank(torch.zeros(1, 2, 64), torch.zeros(1, 64, 2), torch.ones(1))
    words = {"tokenizer": byte_vocabulary(), "kind": "q8_0", "name": "x"}
    with pytest.raises(CheckpointError, match=r"got 'layers.0.mlp.up_proj.delta.lora_a' of shape \(1, 2, 64\)"):
        save_gguf(tmp_path / "x.gguf", network, **words)
    network.get_submodule("layers.0.mlp").up_proj = torch.nn.Identity()
    with pytest.raises(CheckpointError, match=r"got 'layers.0.mlp.up_proj.weight' of shape None where \(64, 64\)"):
        save_gguf(tmp_path / "x.gguf", network, **words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_an_opened_model_is_dense(dtype: str | None, tmp_path: Path) -> None:
    folder = few_bits_folder(tmp_path / "q")
    network = open_model(folder, dtype=dtype)[0].network
    assert quantized_modules(network) == {}
    assert {p.dtype for p in network.parameters()} == {getattr(torch, dtype or "float32")}
    wanted = {name: weight.to(network.norm.weight.dtype).float() for name, weight in numbers(few_bits()).items()}
    assert_same(numbers(network), wanted)
    assert len(quantized_modules(open_model(folder, keep_bits=True)[0].network)) == 29


def test_a_dense_network_that_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = few_bits_folder(tmp_path / "q")
    n_dense = small_network().config.n_params * 4
    monkeypatch.setattr("gemsmith.weights.memory.available_bytes", lambda _: (256 << 20) + n_dense - 1)
    load_network(folder)
    with pytest.raises(MemoryLimitError, match=r"made dense, must fit into memory; got"):
        open_model(folder)


def test_a_gguf_file_becomes_a_folder(tmp_path: Path) -> None:
    path = small_gguf(tmp_path, kind="q4_0")
    written = to_folder(path, tmp_path / "out", kind="f32")
    assert written.formats == {"F32": 46}
    loaded, tokenizer = open_model(tmp_path / "out")
    assert tokenizer is not None
    assert tokenizer.pieces() == byte_vocabulary().pieces()
    wanted = GgufModel(path).network(dtype="float32", is_native=False).network
    assert torch.equal(loaded.network(IDS), wanted(IDS))
    assert loaded.config == wanted.config


def test_few_bits_become_a_dense_folder(tmp_path: Path) -> None:
    folder = few_bits_folder(tmp_path / "q")
    assert to_folder(folder, tmp_path / "out", kind=None).path == tmp_path / "out"
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in raw
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["top_k"] == 7
    assert json.loads((tmp_path / "out" / "MANIFEST.json").read_text())["lineage"]["converted"] == {"model": "q"}
    assert_same(numbers(load_network(tmp_path / "out").network), numbers(few_bits()))


def test_what_no_folder_can_be_is_refused(tmp_path: Path) -> None:
    folder = few_bits_folder(tmp_path / "q")
    with pytest.raises(ConfigError, match=r"type must be one of f16, bf16, f32 for a folder; got 'q4_0'"):
        to_folder(folder, tmp_path / "out", kind="q4_0")
    with pytest.raises(ConfigError, match=r"out must be another place than the model's; got '.*q' twice"):
        to_folder(folder, folder, kind=None)
    path = small_gguf(tmp_path)
    with pytest.raises(ConfigError, match=r"out must be another place than the model's; got '.*gguf' twice"):
        to_gguf(path, path, kind="q4_0", name="x")


def test_only_folders_of_its_own_are_replaced(tmp_path: Path) -> None:
    folder, other = few_bits_folder(tmp_path / "q"), save_folder(tmp_path / "other", small_network())
    with pytest.raises(ConfigError, match=r"a folder written by convert; got '.*other', which holds another model"):
        to_folder(folder, other, kind=None)
    out = to_folder(folder, tmp_path / "out", kind="f32").path
    assert to_folder(folder, out, kind="bf16").formats == {"BF16": 46}
