"""Every block format against the gguf package's own reading of the same bytes."""

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants

from gemsmith.errors import ConfigError
from gemsmith.weights.gguf_blocks import BY_NAME, FORMATS, dequantize_blocks, split_q4_0, split_q8_0
from gemsmith.weights.gguf_encode import encode_blocks

# Where each format keeps float16 numbers, which random bytes would make infinite.
HALVES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
}  # fmt: skip
N_BLOCKS = 67


def random_blocks(name: str, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (N_BLOCKS, BY_NAME[name].n_bytes), dtype=np.uint8)
    for at in HALVES.get(name, []):
        raw[:, at : at + 2] = rng.normal(size=(N_BLOCKS, 1)).astype(np.float16).view(np.uint8)
    return raw


@pytest.mark.parametrize("name", HALVES)
def test_blocks_hold_what_the_gguf_package_reads(name: str) -> None:
    raw = random_blocks(name)
    wanted = quants.dequantize(raw, GGMLQuantizationType[name])
    got = dequantize_blocks(torch.from_numpy(raw).flatten(), BY_NAME[name], dtype=torch.float32)
    assert np.array_equal(got.view(N_BLOCKS, -1).numpy(), wanted)
    rounded = dequantize_blocks(torch.from_numpy(raw).flatten(), BY_NAME[name], dtype=torch.bfloat16)
    assert torch.equal(rounded, torch.from_numpy(wanted).flatten().bfloat16())


@pytest.mark.parametrize(("name", "dtype"), [("F32", torch.float32), ("F16", torch.float16), ("BF16", torch.bfloat16)])
def test_plain_numbers_stay_what_they_are(name: str, dtype: torch.dtype) -> None:
    numbers = torch.randn(1000, generator=torch.Generator().manual_seed(0)).to(dtype)
    got = dequantize_blocks(numbers.view(torch.uint8), BY_NAME[name], dtype=torch.float32)
    assert torch.equal(got, numbers.float())


def test_sizes_and_numbers_of_formats_are_the_packages() -> None:
    sizes = {block.name: (block.n_items, block.n_bytes) for block in FORMATS.values()}
    assert sizes == {name: gguf.GGML_QUANT_SIZES[GGMLQuantizationType[name]] for name in sizes}
    assert {code: block.name for code, block in FORMATS.items()} == {GGMLQuantizationType[n].value: n for n in sizes}


def test_pieces_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = torch.from_numpy(random_blocks("Q6_K")).flatten()
    whole = dequantize_blocks(raw, BY_NAME["Q6_K"], dtype=torch.float32)
    monkeypatch.setattr("gemsmith.weights.gguf_blocks._PIECE_ITEMS", 256 * 10)
    assert torch.equal(dequantize_blocks(raw, BY_NAME["Q6_K"], dtype=torch.float32), whole)


def test_values_and_scales_apart_give_the_same_numbers() -> None:
    raw = torch.from_numpy(random_blocks("Q8_0"))
    values, scales = split_q8_0(raw)
    assert torch.equal(values.float() * scales.float(), BY_NAME["Q8_0"].decode(raw))
    raw = torch.from_numpy(random_blocks("Q4_0"))
    values, scales = split_q4_0(raw)
    assert torch.equal((values.float() - 8) * scales.float(), BY_NAME["Q4_0"].decode(raw))


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "F16", "F32"])
def test_numbers_are_rounded_as_the_gguf_package_rounds_them(name: str) -> None:
    numbers = np.random.default_rng(1).normal(size=(50, 256)).astype(np.float32)
    numbers[3, :64] = 0.0
    numbers[4, :32] = np.arange(32) - 16  # ties, and a largest magnitude that is negative
    wanted = quants.quantize(numbers, GGMLQuantizationType[name])
    got = encode_blocks(torch.from_numpy(numbers).flatten(), BY_NAME[name])
    assert np.array_equal(got.numpy(), wanted.view(np.uint8).ravel())


@pytest.mark.parametrize(
    ("name", "bad", "message"),
    [
        ("F16", 70_000.0, r"must be finite in F16; got 70000.0. Write another type"),
        ("Q8_0", float("nan"), r"must be finite in Q8_0; got nan. The model is damaged"),
        ("Q4_0", float("-inf"), r"must be finite in Q4_0; got inf. The model is damaged"),
        ("Q4_0", 1e6, r"must be finite in Q4_0; got 1000000.0. Write another type"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(name: str, bad: float, message: str) -> None:
    numbers = torch.ones(64)
    numbers[40] = bad
    with pytest.raises(ConfigError, match=message):
        encode_blocks(numbers, BY_NAME[name])
