import pytest
import torch

from gemsmith.kernels import packed_linear
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


needs_blocked_order = pytest.mark.skipif(not packed_linear.is_available(), reason="no fast bfloat16 on this processor")


@needs_blocked_order
@pytest.mark.parametrize("n_rows", [1, 2, 7, 64])
@pytest.mark.parametrize(("d_in", "d_out"), [(40, 48), (33, 17), (320, 1000)])
def test_packed_weight_gives_the_product_of_the_dense_one(d_in: int, d_out: int, n_rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(d_out, d_in, generator=generator).bfloat16()
    x = torch.randn(n_rows, d_in, generator=generator).bfloat16()
    exact = x.double() @ weight.double().T
    packed = packed_linear.linear(x, packed_linear.pack(weight))
    torch.testing.assert_close(packed.double(), exact, rtol=2**-8, atol=1e-2)


@needs_blocked_order
def test_fused_gate_gives_the_gate_of_two_products() -> None:
    generator = torch.Generator().manual_seed(0)
    x, gate, up = (torch.randn(shape, generator=generator) for shape in ((9, 40), (64, 40), (64, 40)))
    x, gate, up = x.bfloat16(), (gate / 6).bfloat16(), (up / 6).bfloat16()
    exact = torch.nn.functional.gelu(x.double() @ gate.double().T, approximate="tanh") * (x.double() @ up.double().T)
    ours = packed_linear.gated_gelu(x, packed_linear.pack(gate), packed_linear.pack(up))
    torch.testing.assert_close(ours.double(), exact, rtol=2**-6, atol=1e-2)


@needs_blocked_order
def test_packed_network_computes_and_saves_what_the_dense_one_does() -> None:
    network, token_ids = tiny_network(dtype=torch.bfloat16), torch.randint(0, 300, (1, 30))
    before, weights = {}, {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.inference_mode():
        before = network(token_ids)
        network.pack()
        after = network(token_ids)
    assert network.layers[0].self_attn.q_proj.is_packed
    assert (after - before).square().mean().sqrt() < 0.02 * before.std()
    saved = network.state_dict()
    assert saved.keys() == weights.keys()
    assert all(torch.equal(saved[name], weights[name]) for name in weights)
    assert sum(p.numel() for p in network.parameters()) == network.config.n_params


def test_float32_weights_stay_as_they_are() -> None:
    assert not Linear(8, 8).pack()
