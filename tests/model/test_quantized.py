import copy

import pytest
import torch
from torch import Tensor

import gemsmith
from gemsmith.errors import ConfigError
from gemsmith.kernels import native
from gemsmith.kernels.quantized import Scheme, dequantize
from gemsmith.model import ops
from gemsmith.model.layers import Embedding
from gemsmith.model.layout import Layout
from gemsmith.model.linear import Linear, LowRank
from gemsmith.model.quantized import Matrix, QuantizedEmbedding, QuantizedLinear, quantize_network
from gemsmith.model.transformer import Transformer
from tiny import FAMILIES, tiny_network

needs_library = pytest.mark.skipif(not native.is_loaded(), reason="no compiled kernels here; make kernels builds them")


def in_8_bits(name: str, module: Linear | Embedding) -> Scheme:
    return Scheme(8, None)


def in_4_bits(name: str, module: Linear | Embedding) -> Scheme:
    d_in = module.d_in if isinstance(module, Linear) else module.weight.shape[1]
    return Scheme(4, 32 if d_in % 32 == 0 else None, is_symmetric=False)


def dequantized(network: Transformer) -> Transformer:
    """Return the dense network whose weights are those stored."""
    dense = Transformer(network.config, dtype=network.dtype).eval()
    weights = dict(network.named_parameters())
    for name, module in network.named_modules():
        if isinstance(module, QuantizedLinear | QuantizedEmbedding):
            weights[f"{name}.weight"] = torch.nn.Parameter(dequantize(module.quantized, network.dtype))
    dense.load_state_dict(weights)
    return dense


def difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).square().mean().sqrt() / expected.std())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("choose", [in_8_bits, in_4_bits])
def test_network_computes_with_what_is_stored(family: str, choose: object) -> None:
    network = quantize_network(tiny_network(family), choose)  # pyright: ignore[reportArgumentType]
    token_ids = torch.randint(0, 300, (2, 20), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = dequantized(network)(token_ids)
        plain = network(token_ids)
        network.pack()
        packed = network(token_ids)
    assert difference(plain, expected) < 0.1  # activations are rounded to 8 bits, and random weights amplify that
    assert difference(packed, plain) < 0.02  # sums in another order may round an activation to its other neighbour


@needs_library
def test_plain_functions_serve_packed_matrices() -> None:
    network = quantize_network(tiny_network(), in_8_bits)
    network.pack()
    layer, x = network.get_submodule("layers.0.mlp.down_proj"), torch.randn(5, 64)
    assert isinstance(layer, QuantizedLinear)
    assert layer.matrix.is_packed
    with torch.inference_mode():
        ours = layer(x)
        with ops.plain_only():
            torch.testing.assert_close(layer(x), ours, rtol=1e-5, atol=1e-5)


def test_scheme_is_chosen_by_name() -> None:
    def choose(name: str, module: Linear | Embedding) -> Scheme | None:
        return Scheme(8, None) if name.endswith("down_proj") else None

    network = quantize_network(tiny_network(), choose)
    assert isinstance(network.get_submodule("layers.3.mlp.down_proj"), QuantizedLinear)
    assert not isinstance(network.get_submodule("layers.3.mlp.up_proj"), QuantizedLinear)
    assert not isinstance(network.embed_tokens, QuantizedEmbedding)


def test_groups_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"group must divide d_in; got 32 and 40"):
        quantize_network(tiny_network(), lambda name, module: Scheme(4, 32))


def test_deltas_stay_on_top() -> None:
    network = tiny_network()
    linear = network.get_submodule("layers.0.mlp.up_proj")
    assert isinstance(linear, Linear)
    linear.delta = LowRank(torch.randn(2, 3, 40), torch.randn(2, 64, 3), torch.ones(2))
    quantize_network(network, in_8_bits).pack()
    x, adapters = torch.randn(4, 40), torch.tensor([1, -1, 0, 1])
    new = network.get_submodule("layers.0.mlp.up_proj")
    assert isinstance(new, QuantizedLinear)
    with torch.inference_mode():
        torch.testing.assert_close(new(x, adapters) - new.product(x), linear.delta(x, adapters))


def test_inputs_have_gradients() -> None:
    """A delta below may be trained: through the stored matrix, nothing rounded."""
    network = quantize_network(tiny_network(), in_8_bits)
    network.pack()
    layer = network.get_submodule("layers.0.mlp.down_proj")
    assert isinstance(layer, QuantizedLinear)
    x = torch.randn(3, 64, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, dequantize(layer.quantized).sum(0).expand(3, -1))


@pytest.mark.parametrize("is_packed", [False, True])
def test_look_up_gives_the_stored_rows(is_packed: bool) -> None:
    network = quantize_network(tiny_network(), in_4_bits)
    if is_packed:
        network.pack()
    table = network.embed_tokens
    assert isinstance(table, QuantizedEmbedding)
    rows = dequantize(table.quantized)[[7, 299, 7]] * 40**0.5
    torch.testing.assert_close(table(torch.tensor([7, 299, 7])), rows)
    given = table(torch.tensor([7, -1, 7]), torch.ones(1, 40))
    torch.testing.assert_close(given, torch.stack((rows[0], torch.ones(40), rows[2])))


def test_ids_without_a_row_are_refused_packed_or_not() -> None:
    network = quantize_network(tiny_network(), in_4_bits)
    n_rows = network.config.vocab_size
    for _ in range(2):
        for token_id in (-1, n_rows):
            with pytest.raises(IndexError, match=f"token ids must be from 0 to {n_rows - 1}; got {token_id}"):
                network(torch.tensor([[2, token_id]]))
        network.pack()


def test_what_is_in_few_bits_already_is_not_rounded_again() -> None:
    network = quantize_network(tiny_network(), in_8_bits)
    with pytest.raises(ConfigError, match="network must be dense; got one with matrices in few bits"):
        quantize_network(network, in_4_bits)


@needs_library
def test_state_dict_holds_the_plain_order_and_comes_back() -> None:
    network = quantize_network(tiny_network(), in_4_bits)
    before = {name: x.clone() for name, x in network.state_dict().items()}
    network.pack()
    saved = network.state_dict()
    assert saved.keys() == before.keys()
    assert all(torch.equal(saved[name], before[name]) for name in before)
    other = quantize_network(tiny_network(seed=1), in_4_bits)
    other.pack()
    other.load_state_dict(saved)
    assert all(module.is_packed for module in other.modules() if isinstance(module, Matrix))
    token_ids = torch.arange(12)[None]
    with torch.inference_mode():
        assert torch.equal(other(token_ids), network(token_ids))
        assert torch.equal(copy.deepcopy(network)(token_ids), network(token_ids))


@needs_library
def test_packing_tells_what_it_no_longer_needs() -> None:
    network, released = quantize_network(tiny_network(), in_8_bits), []
    stored = [x.data_ptr() for m in network.modules() if isinstance(m, Matrix) for x in m.buffers()]
    network.pack(release=lambda x: released.append(x.data_ptr()))
    assert sorted(released) == sorted(stored)
    network.pack(release=lambda x: released.append(0))
    assert 0 not in released


def test_cast_network_keeps_its_scales() -> None:
    network = quantize_network(tiny_network(), in_8_bits)
    before = {name: x.clone() for name, x in network.state_dict().items() if "matrix" in name}
    network.to(torch.bfloat16)
    assert network.dtype == torch.bfloat16
    after = network.state_dict()
    assert all(torch.equal(after[name], x) for name, x in before.items())
    assert network(torch.arange(5)[None]).dtype == torch.float32
    layout = Layout.packed([5])
    assert network.hidden(torch.arange(5), layout).dtype == torch.bfloat16


def in_8_bits_by_groups(name: str, module: Linear | Embedding) -> Scheme:
    return Scheme(8, 32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pebble_in_8_bits_writes_as_before(dtype: str) -> None:
    lm = gemsmith.load("pebble", device="cpu", dtype=dtype, pack=False)
    text = "Once upon a time, there was a little girl who had a red ball."
    token_ids = torch.tensor([lm.tokenizer.encode(text)])
    with torch.inference_mode():
        before, score = lm.network(token_ids), lm.score(text)
    written = lm.generate("Once upon a time", temperature=0.0, max_new_tokens=12).text
    quantize_network(lm.network, in_8_bits_by_groups)
    with torch.inference_mode():
        exact = dequantized(lm.network)(token_ids)
        lm.network.pack()
        after = lm.network(token_ids)
    assert difference(after, exact) < 0.02
    assert difference(after, before) < 0.02
    assert lm.score(text).nll == pytest.approx(score.nll, rel=0.01)
    assert lm.generate("Once upon a time", temperature=0.0, max_new_tokens=12).text[:20] == written[:20]
