"""The compiled decode step against the network's modules."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from decoded import LENGTHS, by_modules, by_step, large_network, make_cache, prefill, quantized, rms, wide_network
from gemsmith.config import ModelConfig
from gemsmith.kernels import native
from gemsmith.model import ops
from gemsmith.model.cache import KVCache
from gemsmith.model.decoding import decode_step
from gemsmith.model.layers import Block, build_layer
from gemsmith.model.layout import Layout
from gemsmith.model.norm import RMSNorm
from gemsmith.model.transformer import Transformer
from tiny import FAMILIES, WINDOW, tiny_config, tiny_network

needs_library = pytest.mark.skipif(not native.is_loaded(), reason="no compiled kernels here; make kernels builds them")
pytestmark = needs_library


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("n_threads", [1, 2])
def test_step_equals_the_modules(family: str, n_threads: int) -> None:
    network = tiny_network(family)
    ours, theirs = make_cache(network), make_cache(network)
    for cache in (ours, theirs):
        prefill(network, cache)
    for turn in range(2 * WINDOW):  # past the window of every document, and around each ring
        token_ids, slots = [7 + turn, 20 + turn, 130 + turn], [0, 1, 2]
        found = by_step(network, ours, token_ids, slots, n_threads)
        expected = by_modules(network, theirs, token_ids, slots)
        torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-4)
    for index in ours.keys:
        torch.testing.assert_close(ours.keys[index], theirs.keys[index], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(ours.values[index], theirs.values[index], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("network", [
    pytest.param(lambda: quantized(tiny_network(), 8, None), id="int8"),
    pytest.param(lambda: quantized(tiny_network(), 4, 4), id="int4-without-units"),
    pytest.param(lambda: quantized(wide_network(), 4, 32), id="int4-g32"),
    pytest.param(lambda: quantized(wide_network(), 4, 64, is_symmetric=False), id="int4-g64-asymmetric"),
    pytest.param(lambda: quantized(wide_network(dtype=torch.bfloat16), 8, 32), id="int8-g32-bfloat16"),
    pytest.param(lambda: tiny_network(dtype=torch.bfloat16), id="bfloat16"),
])  # fmt: skip
def test_step_reads_every_form_of_matrix(network: object) -> None:
    made = network()  # pyright: ignore[reportCallIssue]
    made.pack()
    if any(matrix.scheme.group == 4 for matrix in made.modules() if hasattr(matrix, "scheme")):
        assert decode_step(made, make_cache(made), n_threads=1) is None  # no kernel has groups of 4
        return
    ours, theirs = make_cache(made), make_cache(made)
    for cache in (ours, theirs):
        prefill(made, cache)
    for token_id in (5, 77):
        found = by_step(made, ours, [token_id] * 3, [0, 1, 2], 2)
        assert rms(found, by_modules(made, theirs, [token_id] * 3, [0, 1, 2])) < 0.05


def test_row_does_not_depend_on_neighbors_or_threads() -> None:
    network = quantized(wide_network(), 4, 32)
    network.pack()
    caches = [make_cache(network, n_slots=9) for _ in range(3)]
    lengths = (3, 13, 30, 1, 2, 40, 9, 8, 7)
    for cache in caches:
        prefill(network, cache, lengths)
    token_ids, slots = list(range(10, 19)), list(range(9))
    together = by_step(network, caches[0], token_ids, slots, 1)
    assert torch.equal(by_step(network, caches[1], token_ids, slots, 3), together)
    for slot in (0, 2, 8):
        assert torch.equal(by_step(network, caches[2], [token_ids[slot]], [slot])[0], together[slot])


@pytest.mark.parametrize(("form", "tolerance"), [("float32", 2e-4), ("bfloat16", 2e-4), ("int4", 0.02)])
def test_threads_share_out_large_matrices(form: str, tolerance: float) -> None:
    network = large_network(torch.bfloat16 if form == "bfloat16" else torch.float32)
    if form == "int4":
        quantized(network, 4, 32).pack()
    plain = deepcopy(network).float()  # rounds nothing between the matrices, as the step does
    caches = [make_cache(plain, n_slots=6, capacity=64)]
    prefill(plain, caches[0], (3, 13, 30, 1, 9, 20))
    caches += [deepcopy(caches[0]) for _ in range(2)]
    for token_ids in ([5002, 7, 4999, 300, 1], [0, 11, 5001, 2, 4000]):
        slots = [5, 3, 2, 1, 0]
        alone = by_step(network, caches[0], token_ids, slots, 1)
        assert torch.equal(by_step(network, caches[1], token_ids, slots, 3), alone)
        expected = by_modules(plain, caches[2], token_ids, slots)
        torch.testing.assert_close(alone, expected, rtol=0.0, atol=tolerance)
    for kind in caches[0].stores:
        for mine, other in zip(caches[0].stores[kind].values(), caches[1].stores[kind].values(), strict=True):
            assert torch.equal(mine, other)


def test_long_documents_are_put_together_from_chunks() -> None:
    network = tiny_network("gemma2", max_seq_len=2560)  # more chunks than are read in one go
    ours, theirs = (make_cache(network, n_slots=1, capacity=2560, slack=64) for _ in range(2))
    for cache in (ours, theirs):
        prefill(network, cache, (2500,))
    torch.testing.assert_close(
        by_step(network, ours, [5], [0], 2), by_modules(network, theirs, [5], [0]), rtol=2e-4, atol=2e-4
    )


def test_long_documents_in_8_bits() -> None:
    network = tiny_network("gemma2", max_seq_len=2560)
    ours, theirs = (KVCache(network.config, capacity=2560, dtype=torch.int8) for _ in range(2))
    for cache in (ours, theirs):
        prefill(network, cache, (2500,))
    assert rms(by_step(network, ours, [5], [0], 2), by_modules(network, theirs, [5], [0])) < 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_neither_threads_nor_neighbors_nor_the_place_in_a_ring_change_a_row(dtype: torch.dtype) -> None:
    network = tiny_network("gemma2", max_seq_len=1024)
    caches = [KVCache(network.config, n_slots=2, capacity=1024, slack=slack, dtype=dtype) for slack in (16, 16, 16, 61)]
    prompts = [torch.randint(0, 300, (n,), generator=torch.Generator().manual_seed(n)) for n in (530, 40)]
    with torch.inference_mode():
        for slot, prompt in enumerate(prompts):  # in pieces that every ring has room for
            for start, piece in zip(range(0, len(prompt), 10), prompt.split(10), strict=True):
                for cache in caches:
                    layout = Layout.packed([len(piece)], starts=[start], slots=[slot])
                    network.hidden(piece, layout, cache=cache)
    together = by_step(network, caches[0], [5, 6], [0, 1], 1)
    assert torch.equal(by_step(network, caches[1], [5, 6], [0, 1], 3), together)
    assert torch.equal(by_step(network, caches[2], [5], [0])[0], together[0])
    assert torch.equal(by_step(network, caches[3], [5, 6], [0, 1], 2), together)


@pytest.mark.parametrize("kind", ["key_scales", "value_scales"])
def test_nan_in_a_cache_of_8_bits_comes_out(kind: str) -> None:
    network = tiny_network()
    cache = KVCache(network.config, n_slots=2, capacity=64, slack=4, dtype=torch.int8)
    prefill(network, cache, LENGTHS[:2])
    cache.stores[kind][1][1, 0, 2] = torch.nan
    logits = by_step(network, cache, [4, 4], [0, 1])
    assert logits[0].isfinite().all()
    assert logits[1].isnan().all()


def test_nan_in_the_cache_comes_out() -> None:
    network = tiny_network()
    cache = make_cache(network)
    prefill(network, cache)
    cache.keys[1][1, 0, 2, 3] = torch.nan
    logits = by_step(network, cache, [4, 4], [0, 1])
    assert logits[0].isfinite().all()
    assert logits[1].isnan().all()


def test_modules_run_one_by_one_where_the_step_does_not_know_them() -> None:
    def step(network: Transformer, **sizes: int) -> object:
        return decode_step(network, make_cache(network), n_threads=1)

    assert step(tiny_network()) is not None
    watched = tiny_network()
    watched.layers[1].register_forward_hook(lambda module, inputs, output: None)
    assert step(watched) is None
    unpacked = quantized(tiny_network(), 8, None)
    assert step(unpacked) is None
    with ops.plain_only():
        assert step(tiny_network()) is None


def test_a_forward_of_ones_own_is_not_ignored() -> None:
    for path in ("", "layers.1", "layers.0.mlp", "layers.2.self_attn.q_proj"):
        network = tiny_network()
        module = network.get_submodule(path)
        module.forward = module.forward
        assert decode_step(network, make_cache(network), n_threads=1) is None, path


def built(change: Callable[[Block], nn.Module]) -> Transformer:
    """Return a network whose second block has been changed."""

    def build(config: ModelConfig, index: int, **factory: Any) -> nn.Module:
        block = build_layer(config, index, **factory)
        return change(block) if index == 1 else block

    return Transformer(tiny_config(), build_layer=build)


def with_steps(block: Block, *order: int) -> Block:
    return Block(dict(block.named_children()), tuple(block.steps[i] for i in order))


def with_another_scale(block: Block) -> Block:
    config = tiny_config()
    return build_layer(config.replace(layers=tuple(replace(layer, attn_scale=1.0) for layer in config.layers)), 1)


def with_another_eps(block: Block) -> Block:
    norm = block.get_submodule("input_layernorm")
    assert isinstance(norm, RMSNorm)
    norm.eps = 1e-3
    return block


@pytest.mark.parametrize("change", [
    pytest.param(lambda block: with_steps(block, 1, 0), id="another order"),
    pytest.param(lambda block: with_steps(block, 0, 1, 1), id="one step more"),
    pytest.param(lambda block: with_steps(block, 1), id="one step less"),
    pytest.param(with_another_scale, id="another spec"),
    pytest.param(with_another_eps, id="another eps"),
    pytest.param(lambda block: block.get_submodule("mlp"), id="no block"),
])  # fmt: skip
def test_blocks_unlike_their_config_are_left_to_the_modules(change: Callable[[Block], nn.Module]) -> None:
    usual, network = built(lambda block: with_steps(block, 0, 1)), built(change)
    assert decode_step(usual, make_cache(usual), n_threads=1) is not None
    assert decode_step(network, make_cache(network), n_threads=1) is None


@pytest.mark.parametrize(
    "path", ["embed_tokens", "norm", "layers.0.mlp.up_proj", "layers.1.self_attn.o_proj", "layers.1.input_layernorm"]
)
def test_weights_with_gaps_are_left_to_the_modules(path: str) -> None:
    network = tiny_network()
    module = network.get_submodule(path)
    weight = module.weight
    assert isinstance(weight, Tensor)
    twice = torch.stack((weight.detach(), weight.detach()), dim=1)
    module.weight = nn.Parameter(twice[:, 0])
    assert torch.equal(module.weight, weight)
    assert decode_step(network, make_cache(network), n_threads=1) is None


def test_layers_that_turn_alike_share_their_frequencies() -> None:
    network = tiny_network("gemma3")
    current = decode_step(network, make_cache(network), n_threads=1)
    assert current is not None
    step = current.get()
    assert step is not None
    local, *others = (layer.frequencies.data_ptr() for layer in step._kept.layers)
    assert [address == local for address in others] == [True] * 4 + [False, True]


def test_layers_that_read_the_keys_of_another() -> None:
    base = tiny_config("gemma2")
    shared = tuple(
        replace(layer, kv_source=index - 2) if index >= 2 else layer for index, layer in enumerate(base.layers)
    )
    network = Transformer(replace(base, layers=shared)).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    ours, theirs = make_cache(network), make_cache(network)
    for cache in (ours, theirs):
        prefill(network, cache)
    torch.testing.assert_close(
        by_step(network, ours, [5, 6], [0, 2]), by_modules(network, theirs, [5, 6], [0, 2]), rtol=2e-4, atol=2e-4
    )


@pytest.mark.parametrize("network", [tiny_network(), tiny_network("gemma3"), wide_network(dtype=torch.bfloat16)])
def test_step_writes_and_reads_a_cache_of_8_bits(network: Transformer) -> None:
    ours, theirs = (
        KVCache(network.config, n_slots=len(LENGTHS), capacity=256, slack=4, dtype=torch.int8) for _ in range(2)
    )
    for cache in (ours, theirs):
        prefill(network, cache)
    for token_id in (5, 6, 7):
        found = by_step(network, ours, [token_id] * 3, [0, 1, 2], 2)
        assert rms(found, by_modules(network, theirs, [token_id] * 3, [0, 1, 2])) < 0.03
    for index in ours.keys:
        assert (ours.keys[index].int() - theirs.keys[index].int()).abs().max() <= 1 + 5 * (
            network.dtype == torch.bfloat16
        )
        torch.testing.assert_close(ours.value_scales[index], theirs.value_scales[index], rtol=0.05, atol=1e-3)
