"""What a token of training costs, counted by hand and by torch."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gemsmith.model.layout import Layout
from gemsmith.train.cost import mean_keys, measure_matrix_rate, token_cost
from tiny import tiny_config, tiny_network


@pytest.mark.parametrize(
    ("row", "window", "wanted"), [(4, None, 2.5), (4, 2, 1.75), (4, 9, 2.5), (1, 1, 1.0), (512, 1, 1.0)]
)
def test_a_causal_row_sees_so_many_keys(row: int, window: int | None, wanted: float) -> None:
    assert mean_keys(row, window) == wanted


def test_cost_is_that_of_a_layer_by_hand() -> None:
    config = tiny_config(vocab_size=300)
    layer = replace(config.layers[1], n_heads=4, n_kv_heads=2, head_dim=12, d_ff=64)
    cost = token_cost(config.replace(layers=(layer,)), row=3)
    d = config.d_model
    assert cost.blocks == 6 * (2 * d * 48 + 2 * d * 24 + 3 * d * 64)
    assert cost.attention == 6 * 2 * 48 * 2.0  # two products over two keys on average
    assert cost.head == 6 * 300 * d
    assert cost.total == cost.blocks + cost.attention + cost.head


def test_products_with_weights_are_those_torch_counts() -> None:
    network, n_tokens = tiny_network(), 16  # more rows than the kernel for few takes, which torch does not count
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        hidden = network.hidden(torch.arange(n_tokens), Layout.packed([n_tokens]))
        _ = hidden @ network.embed_tokens.weight.T
    cost = token_cost(network.config, row=n_tokens)
    counted = counter.get_flop_counts()["Global"][torch.ops.aten.mm]
    assert counted == pytest.approx((cost.blocks + cost.head) / 3 * n_tokens)


def test_a_machine_multiplies_at_some_rate() -> None:
    assert 1e8 < measure_matrix_rate(torch.float32) < 1e15
