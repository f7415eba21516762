import torch

from gemsmith.model.layout import Layout
from gemsmith.model.linear import Linear, LowRank
from tiny import tiny_network


def low_rank(n_adapters: int = 2, seed: int = 0) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(shape, generator=generator) for shape in ((n_adapters, 3, 7), (n_adapters, 5, 3)))
    return LowRank(a, b, torch.tensor([0.5, 2.0][:n_adapters]))


def test_each_row_gets_the_delta_of_its_own_adapter() -> None:
    linear = Linear(7, 5)
    torch.nn.init.normal_(linear.weight)
    linear.delta = low_rank()
    x = torch.randn(4, 7)
    y = linear(x, torch.tensor([1, -1, 0, 1]))
    for row, adapter in enumerate([1, -1, 0, 1]):
        weight = linear.weight
        if adapter >= 0:
            delta = linear.delta
            weight = weight + delta.lora_b[adapter] @ delta.lora_a[adapter] * delta.scale[adapter]
        torch.testing.assert_close(y[row], weight @ x[row])


def test_without_numbers_every_row_uses_the_first_adapter() -> None:
    linear = Linear(7, 5)
    torch.nn.init.normal_(linear.weight)
    linear.delta = low_rank()
    x = torch.randn(4, 7)
    torch.testing.assert_close(linear(x), linear(x, torch.zeros(4, dtype=torch.long)))


def test_adapters_reach_every_linear_from_the_layout() -> None:
    network, token_ids = tiny_network(), torch.arange(6)
    layout = Layout.packed([3, 3])
    with torch.inference_mode():
        plain = network.hidden(token_ids, layout)

    def adapt(_: str, linear: Linear) -> Linear:
        linear.delta = LowRank(torch.randn(1, 2, linear.d_in), torch.randn(1, linear.d_out, 2), torch.ones(1))
        return linear

    network.replace_linears(adapt)
    documents, positions, segments = layout.documents, layout.positions, layout.segments
    adapters = torch.tensor([-1, -1, -1, 0, 0, 0])
    with torch.inference_mode():
        adapted = network.hidden(token_ids, Layout(documents, positions, segments, n_rows=2, adapters=adapters))
    torch.testing.assert_close(adapted[:3], plain[:3])
    assert (adapted[3:] - plain[3:]).abs().max() > 0.1


def test_dense_weights_are_in_their_fastest_form_already() -> None:
    assert not Linear(8, 8).pack()
