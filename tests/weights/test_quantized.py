"""Networks in few bits: saved, loaded, refused; and read by the library whose layout it is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gemsmith.errors import CheckpointError, ConfigError
from gemsmith.kernels.quantized import Scheme, dequantize, quantize
from gemsmith.model.linear import Linear
from gemsmith.model.transformer import Transformer
from gemsmith.weights.folder import load_network, read_schemes
from gemsmith.weights.quantized import put, quantized_modules
from gemsmith.weights.save import save_folder
from tiny import tiny_network

SCHEMES = [
    (Scheme(4, None), Scheme(8, None)),
    (Scheme(4, 4, is_symmetric=False), Scheme(8, 8, is_symmetric=False)),
    (Scheme(8, None, is_symmetric=False), None),
    (Scheme(8, 8), Scheme(4, 8, is_symmetric=False)),
    (Scheme(4, 2, is_symmetric=False), None),
]


def in_few_bits(linears: Scheme, table: Scheme | None, family: str = "gemma2") -> Transformer:
    network = tiny_network(family)
    for name, module in list(network.named_modules()):
        if isinstance(module, Linear):
            put(network, name, quantize(module.weight, linears, scale_dtype=torch.bfloat16))
    if table is not None:
        put(network, "embed_tokens", quantize(network.get_parameter("embed_tokens.weight"), table))
    return network


def dense(network: Transformer, dtype: torch.dtype = torch.float32) -> Transformer:
    """Return a network with the weights that few bits stand for, computed in a dtype."""
    plain = tiny_network()
    for name, q in quantized_modules(network).items():
        plain.get_parameter(f"{name}.weight").data = dequantize(q, dtype).float()
    return plain


@pytest.fixture
def quantized(tmp_path: Path) -> Path:
    """A folder with int4 linears and an int8 embedding, without a manifest."""
    folder = save_folder(tmp_path / "q", in_few_bits(Scheme(4, 8), Scheme(8, None)))
    (folder / "MANIFEST.json").unlink()
    return folder


@pytest.mark.parametrize(("linears", "table"), SCHEMES)
def test_what_is_saved_loads_bit_for_bit(linears: Scheme, table: Scheme | None, tmp_path: Path) -> None:
    network = in_few_bits(linears, table)
    loaded = load_network(save_folder(tmp_path / "q", network))
    wanted, found = quantized_modules(network), quantized_modules(loaded.network)
    assert wanted.keys() == found.keys() == loaded.report.schemes.keys()
    assert len(found) == 28 + (table is not None)
    for name, q in wanted.items():
        assert found[name].scheme == q.scheme
        assert torch.equal(found[name].values, q.values)
        assert torch.equal(found[name].scales, q.scales)
        assert (q.zeros is None) == (found[name].zeros is None)
        if q.zeros is not None:
            assert torch.equal(found[name].zeros, q.zeros)  # pyright: ignore[reportArgumentType]
    ids = torch.arange(5, 25)[None]
    assert torch.equal(network(ids), loaded.network(ids))


def test_four_bits_are_views_of_the_mapped_file(quantized: Path) -> None:
    loaded = load_network(quantized)
    values = quantized_modules(loaded.network)["layers.0.mlp.up_proj"].values
    assert loaded.files._is_view(values)


def test_packed_networks_are_saved_in_plain_order(tmp_path: Path) -> None:
    network = in_few_bits(Scheme(4, None), Scheme(8, None))
    plain = load_file(save_folder(tmp_path / "a", network) / "model.safetensors")
    network.pack()
    packed = load_file(save_folder(tmp_path / "b", network) / "model.safetensors")
    assert plain.keys() == packed.keys()
    assert all(torch.equal(tensor, packed[name]) for name, tensor in plain.items())


def test_values_lie_where_the_layout_has_them(quantized: Path) -> None:
    stored = load_file(quantized / "model.safetensors")
    words, scale = (stored[f"model.layers.0.mlp.up_proj.{leaf}"] for leaf in ("weight_packed", "weight_scale"))
    # The definition: 8 values in each word, the first in its lowest bits, each 8 too large.
    shifts = torch.arange(0, 32, 4)
    values = ((words.long()[..., None] >> shifts) & 15).flatten(1) - 8
    wanted = dequantize(
        quantize(tiny_network().get_parameter("layers.0.mlp.up_proj.weight"), Scheme(4, 8), scale_dtype=torch.bfloat16)
    )
    assert torch.equal(values.float() * scale.float().repeat_interleave(8, 1), wanted)
    assert stored["model.layers.0.mlp.up_proj.weight_shape"].tolist() == [64, 40]


def test_eight_bits_lie_in_words_as_bytes_128_too_large(tmp_path: Path) -> None:
    network = in_few_bits(Scheme(8, None), None)
    stored = load_file(save_folder(tmp_path / "q", network) / "model.safetensors")
    words = stored["model.layers.0.mlp.up_proj.weight_packed"]
    values = ((words.long()[..., None] >> torch.arange(0, 32, 8)) & 255).flatten(1) - 128
    assert torch.equal(values.to(torch.int8), quantized_modules(network)["layers.0.mlp.up_proj"].values)


def test_schemes_are_told_from_the_configuration(quantized: Path, folder: Path) -> None:
    assert read_schemes(quantized) == {Scheme(4, 8), Scheme(8, None)}
    assert read_schemes(folder) == frozenset()


UP = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({f"{UP}.weight_scale": None}, "has no tensor 'layers.0.mlp.up_proj.weight_scale'"),
        ({f"{UP}.weight_packed": None}, "layers.0.mlp.up_proj"),
        ({f"{UP}.weight_scale": torch.ones(64, 4)}, r"must have the shapes of a declared scheme .* F32 \[64, 4\]"),
        ({f"{UP}.weight_packed": torch.ones(64, 5)}, r"must have the shapes of a declared scheme .* F32 \[64, 5\]"),
        ({f"{UP}.weight_packed": torch.ones(64, 10, dtype=torch.int32)}, r"I32 \[64, 10\]"),
        ({f"{UP}.weight_zero_point": torch.ones(8, 5, dtype=torch.int32)}, r"weight_zero_point I32 \[8, 5\]"),
        ({f"{UP}.weight_shape": torch.tensor([64, 41])}, r"weight_shape must be \[64, 40\]; got \[64, 41\]"),
        ({f"{UP}.weight_g_idx": torch.ones(40, dtype=torch.int32)}, "unexplained '.*weight_g_idx'"),
        ({"lm_head.weight_scale": torch.ones(300, 1)}, "must equal the embedding's"),
        ({"lm_head.weight_packed": torch.ones(300, 5, dtype=torch.int32)}, "must belong to a head tied"),
        ({"model.embed_tokens.weight_scale": None}, "has no tensor 'embed_tokens.weight_scale'"),
    ],
)
def test_damaged_folders_are_refused(
    changes: dict[str, Any], message: str, quantized: Path, edit_tensors: Callable[..., None]
) -> None:
    edit_tensors(quantized, changes)
    with pytest.raises(CheckpointError, match=message):
        load_network(quantized)


def test_integers_without_a_configuration_are_refused(quantized: Path, edit_config: Callable[..., None]) -> None:
    edit_config(quantized, quantization_config=...)
    with pytest.raises(CheckpointError, match=r"unexplained 'model.* of shape|Quantized weights need"):
        load_network(quantized)


def test_unknown_keys_of_the_layout_are_refused(quantized: Path, edit_config: Callable[..., None]) -> None:
    raw = json.loads((quantized / "config.json").read_text())["quantization_config"]
    edit_config(quantized, quantization_config=raw | {"rotation": 1})
    with pytest.raises(ConfigError, match="known keys only; got 'rotation' = 1"):
        load_network(quantized)


@pytest.mark.peers
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("linears", "table"),
    [
        (Scheme(4, 8), Scheme(8, None)),
        (Scheme(8, None), Scheme(8, 8, is_symmetric=False)),
        (Scheme(4, None), None),
        (Scheme(4, 8, is_symmetric=False), None),
    ],
)
def test_transformers_reads_the_same_weights(linears: Scheme, table: Scheme | None, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("compressed_tensors")
    network = in_few_bits(linears, table)
    folder = save_folder(tmp_path / "q", network)
    options, dtype = {}, torch.float32
    if not linears.is_symmetric:
        # Left packed, they are refused: see the next test.
        options["quantization_config"] = transformers.CompressedTensorsConfig(dequantize=True)
        dtype = torch.bfloat16  # of the scales, in which it then multiplies
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", **options
    )
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        wanted, found = dense(network, dtype)(ids), theirs(ids).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.peers
@pytest.mark.filterwarnings("default")
@pytest.mark.xfail(strict=True, raises=RuntimeError, reason="a defect of compressed-tensors 0.20, see the docstring")
@pytest.mark.parametrize("bits", [4, 8])
def test_transformers_reads_packed_zero_points(bits: Any, tmp_path: Path) -> None:
    """Its `PackedQuantizationCompressor.compress` packs zero points, but not on the meta device.

    There transformers lays out the model it loads into, so it expects other shapes than any such file has. Once
    this passes, the advice to pass `dequantize=True` can go.
    """
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("compressed_tensors")
    folder = save_folder(tmp_path / "q", in_few_bits(Scheme(bits, 8, is_symmetric=False), None))
    transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


@pytest.mark.peers
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("is_symmetric", [True, False])
def test_packed_tensors_are_the_library_s_own(bits: Any, is_symmetric: bool) -> None:
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    from gemsmith.kernels.quantized import unpack_nibbles
    from gemsmith.weights.compressed_tensors import store

    weight = torch.randn(13, 24)
    q = quantize(weight, Scheme(bits, 8, is_symmetric=is_symmetric))
    stored = store(q, "pack-quantized")

    def signed(x: torch.Tensor) -> torch.Tensor:
        return x if bits == 8 else (x.to(torch.int8) - 8)

    values = signed(q.values if bits == 8 else unpack_nibbles(q.values))
    assert torch.equal(stored["weight_packed"].make(), helpers.pack_to_int32(values, bits))
    if q.zeros is not None:
        assert torch.equal(
            stored["weight_zero_point"].make(), helpers.pack_to_int32(signed(q.zeros), bits, packed_dim=0)
        )
