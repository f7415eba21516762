"""What a token asks of a machine, counted by hand."""

import pytest
import torch

from gemsmith.config import preset
from gemsmith.evaluate.limits import (
    Limits,
    cache_read_bytes,
    measure_limits,
    prefill_products,
    product_kind,
    weight_bytes,
)
from gemsmith.kernels import native
from gemsmith.kernels.quantized import Scheme
from gemsmith.model.quantized import quantize_network
from gemsmith.model.transformer import Transformer
from tiny import WINDOW, tiny_config, tiny_network


def test_a_token_reads_every_weight_once() -> None:
    network = Transformer(preset("gemma-2-2b"), dtype=torch.bfloat16, device="meta")
    assert weight_bytes(network) == 2 * preset("gemma-2-2b").n_params


def test_a_token_reads_a_window_of_local_layers_and_all_of_global_ones() -> None:
    config = tiny_config("gemma2")  # two layers of each kind, 2 heads of 12
    assert cache_read_bytes(config, 100, torch.bfloat16) == 2 * 2 * 12 * 2 * (2 * WINDOW + 2 * 100)
    assert cache_read_bytes(config, 5, torch.float32) == 2 * 2 * 12 * 4 * 4 * 5
    assert cache_read_bytes(config, 100, torch.int8) == 2 * 2 * (12 + 4) * (2 * WINDOW + 2 * 100)


def test_products_of_a_prompt_are_its_matrices_and_the_keys_it_sees() -> None:
    config = tiny_config("gemma")  # 4 global layers, 4 query heads, 1 key head of 12, d_ff 64
    matrices = 4 * (40 * 12 * (2 * 4 + 2 * 1) + 3 * 40 * 64)
    keys = 4 * 2 * 4 * 12 * (10 + 1) / 2
    assert prefill_products(config, 10) == pytest.approx(matrices + keys)


def test_the_kind_of_products_is_that_of_most_matrices() -> None:
    network = tiny_network(dtype=torch.bfloat16)
    assert product_kind(network) == "bfloat16"
    assert product_kind(quantize_network(network, lambda *_: Scheme(8, None))) == "int8"


def test_the_faster_of_vectors_and_tiles_is_the_limit() -> None:
    limits = Limits(1.0, {"int8": 5.0, "int8 tiles": 9.0, "bfloat16": 3.0, "bfloat16 tiles": None})
    assert (limits.rate("int8"), limits.rate("bfloat16"), limits.rate("float32")) == (9.0, 3.0, None)


def test_without_kernels_there_is_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "is_loaded", lambda: False)
    assert measure_limits(has_int8_tiles=True) == Limits(None, {})
