"""Low-rank deltas in the compiled decode step against those of the network's modules."""

from collections.abc import Callable
from copy import deepcopy
from itertools import cycle

import pytest
import torch
from torch import Tensor, nn

from decoded import advance, by_modules, large_network, make_cache, prefill, quantized, rms, wide_network
from gemsmith.errors import ConfigError
from gemsmith.kernels import native
from gemsmith.model.cache import KVCache
from gemsmith.model.decoding import decode_step
from gemsmith.model.deltas import CurrentStep
from gemsmith.model.linear import Linear, LowRank
from gemsmith.model.transformer import Transformer
from tiny import tiny_network

pytestmark = pytest.mark.skipif(not native.is_loaded(), reason="no compiled kernels here; make kernels builds them")

RANKS = (1, None, 33, 5, 16)  # of five, so that every linear has each of them in some layer


def low_rank(linear: Linear, rank: int, *, n_adapters: int = 2, seed: int = 0, dtype: torch.dtype) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(n_adapters, rank, linear.d_in, generator=generator) * linear.d_in**-0.5
    b = torch.randn(n_adapters, linear.d_out, rank, generator=generator) * rank**-0.5
    return LowRank(a.to(dtype), b.to(dtype), torch.linspace(0.5, 1.0, n_adapters).to(dtype))


def adapt(network: Transformer, ranks: tuple[int | None, ...] = RANKS, *, n_adapters: int = 2) -> Transformer:
    """Attach deltas as users do, of these ranks in turn."""
    left, seeds = cycle(ranks), cycle(range(100))

    def attach(_: str, linear: Linear) -> Linear:
        rank = next(left)
        if rank is not None:
            linear.delta = low_rank(linear, rank, n_adapters=n_adapters, seed=next(seeds), dtype=network.dtype)
        return linear

    network.replace_linears(attach)
    return network


def step_of(network: Transformer, cache: KVCache, n_threads: int = 2) -> CurrentStep:
    current = decode_step(network, cache, n_threads=n_threads)
    assert current is not None
    return current


def twins(network: Transformer) -> tuple[KVCache, KVCache]:
    """Return two caches that hold the same three documents."""
    ours = make_cache(network)
    prefill(network, ours)
    return ours, deepcopy(ours)


def some_linear(network: Transformer, name: str = "layers.1.mlp.up_proj") -> Linear:
    linear = network.get_submodule(name)
    assert isinstance(linear, Linear)
    return linear


def delta_of(network: Transformer, name: str = "layers.1.mlp.up_proj") -> LowRank:
    delta = some_linear(network, name).delta
    assert delta is not None
    return delta


@pytest.mark.parametrize("family", ["gemma", "gemma2", "gemma3"])
@pytest.mark.parametrize("form", ["float32", "bfloat16", "int8", "int4"])
def test_each_row_gets_the_delta_of_its_own_adapter(family: str, form: str) -> None:
    network = wide_network(family, dtype=torch.bfloat16 if form == "bfloat16" else torch.float32)
    if form.startswith("int"):
        quantized(network, 4 if form == "int4" else 8, 32).pack()
    plain = adapt(deepcopy(network).float()) if form == "bfloat16" else None
    adapt(network)
    if plain is not None:
        plain.load_state_dict(network.state_dict())  # rounds nothing between the matrices, as the step does
    reference = plain or network
    ours, theirs = twins(reference)
    current = step_of(network, ours)
    for token_id, adapters in ((5, [1, -1, 0]), (77, [0, 1, 1]), (6, [-1, -1, -1]), (9, None)):
        found = advance(current, ours, [token_id] * 3, [0, 1, 2], adapters)
        expected = by_modules(reference, theirs, [token_id] * 3, [0, 1, 2], adapters)
        if form.startswith("int"):
            assert rms(found, expected) < 0.02
        else:
            torch.testing.assert_close(found, expected, rtol=3e-4, atol=3e-4)


def test_tiny_widths_and_every_rank_alone() -> None:
    for rank in (1, 2, 15, 16, 17, 32, 33):
        network = adapt(tiny_network(), (rank,), n_adapters=3)
        ours, theirs = twins(network)
        found = advance(step_of(network, ours, 3), ours, [5, 6, 7], [0, 1, 2], [2, 0, -1])
        expected = by_modules(network, theirs, [5, 6, 7], [0, 1, 2], [2, 0, -1])
        torch.testing.assert_close(found, expected, rtol=3e-4, atol=3e-4)


def test_deltas_matter_and_a_row_without_one_is_as_if_there_were_none() -> None:
    network = tiny_network()
    ours, theirs = twins(network)
    without = advance(step_of(network, theirs), theirs, [5, 6, 7], [0, 1, 2])
    found = advance(step_of(adapt(network), ours), ours, [5, 6, 7], [0, 1, 2], [1, -1, 0])
    assert torch.equal(found[1], without[1])
    assert rms(found[0], without[0]) > 0.3
    assert rms(found[2], without[2]) > 0.3


@pytest.mark.parametrize("form", ["float32", "bfloat16", "int4"])
def test_neither_threads_nor_neighbors_change_a_row(form: str) -> None:
    network = large_network(torch.bfloat16 if form == "bfloat16" else torch.float32)
    if form == "int4":
        quantized(network, 4, 32).pack()
    adapt(network, (33, None, 16), n_adapters=3)
    caches = [make_cache(network, n_slots=9, capacity=64)]
    prefill(network, caches[0], (3, 13, 30, 1, 9, 20, 2, 5, 8))
    caches += [deepcopy(caches[0]) for _ in range(2)]
    adapters = [2, 2, 2, 2, 2, -1, 0, 1, 1]
    together = advance(step_of(network, caches[0], 1), caches[0], list(range(9)), list(range(9)), adapters)
    shared_out = advance(step_of(network, caches[1], 3), caches[1], list(range(9)), list(range(9)), adapters)
    assert torch.equal(shared_out, together)
    for slot in range(9):
        alone = advance(step_of(network, caches[2]), caches[2], [slot], [slot], [adapters[slot]])
        assert torch.equal(alone[0], together[slot])


def double(network: Transformer) -> None:
    with torch.no_grad():
        delta_of(network).lora_b.mul_(2.0)


def rescale(network: Transformer) -> None:
    delta_of(network).scale.fill_(-3.0)


def other_numbers(network: Transformer) -> None:
    delta = delta_of(network)
    delta.lora_a.data = delta.lora_a.detach() * -1.5


def other_parameter(network: Transformer) -> None:
    delta = delta_of(network)
    delta.lora_b = nn.Parameter(delta.lora_b.detach().flip(1))


def other_rank(network: Transformer) -> None:
    linear = some_linear(network)
    linear.delta = low_rank(linear, 40, n_adapters=3, seed=8, dtype=torch.float32)


def one_less(network: Transformer) -> None:
    some_linear(network).delta = None


def none(network: Transformer) -> None:
    for module in network.modules():
        if isinstance(module, Linear):
            module.delta = None


def test_the_step_follows_deltas_from_token_to_token() -> None:
    network = tiny_network()
    ours, theirs = twins(network)
    current, previous = step_of(network, ours), None
    changes: list[Callable[[Transformer], object]] = [
        lambda network: None, lambda network: adapt(network, (7,)), double, rescale, other_numbers, other_parameter,
        other_rank, one_less, none, adapt,
    ]  # fmt: skip
    for change in changes:
        change(network)
        for adapters in ([0, 1, -1], [1, 1, 0]):
            found = advance(current, ours, [5, 6, 7], [0, 1, 2], adapters)
            expected = by_modules(network, theirs, [5, 6, 7], [0, 1, 2], adapters)
            torch.testing.assert_close(found, expected, rtol=5e-4, atol=5e-4)
            assert previous is None or rms(found, previous) > 1e-3
            previous = found


def test_a_delta_that_moves_to_another_linear_is_followed() -> None:
    network = adapt(tiny_network(), (7,))
    some_linear(network).delta = None
    ours, theirs = twins(network)
    current = step_of(network, ours)
    some_linear(network).delta = delta_of(network, "layers.1.mlp.gate_proj")
    some_linear(network, "layers.1.mlp.gate_proj").delta = None
    found, expected = advance(current, ours, [8, 8, 8], [0, 1, 2]), by_modules(network, theirs, [8, 8, 8], [0, 1, 2])
    torch.testing.assert_close(found, expected, rtol=5e-4, atol=5e-4)


def test_a_rank_that_is_cut_where_its_tensors_lie_is_seen() -> None:
    network = adapt(tiny_network(), (7,), n_adapters=1)
    current, delta = step_of(network, make_cache(network)), delta_of(network)
    for tensor, dim in ((delta.lora_a, 1), (delta.lora_b, 2)):
        address = tensor.data_ptr()
        tensor.data = tensor.detach().narrow(dim, 0, 4)
        assert tensor.data_ptr() == address
    assert current.get() is None  # rows of lora_b have gaps now


@pytest.mark.parametrize("part", ["lora_a", "lora_b", "scale"])
@pytest.mark.parametrize("name", ["self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj"])
def test_nan_in_a_delta_comes_out(part: str, name: str) -> None:
    network = adapt(tiny_network(), (3,))
    cache, _ = twins(network)
    with torch.no_grad():
        getattr(delta_of(network, f"layers.2.{name}"), part)[1].view(-1)[0] = torch.nan
    logits = advance(step_of(network, cache), cache, [4, 4, 4], [0, 1, 2], [0, 1, -1])
    assert logits[0].isfinite().all()
    assert logits[1].isnan().all()
    assert logits[2].isfinite().all()


def test_an_adapter_that_a_delta_lacks_is_refused() -> None:
    network = adapt(tiny_network())
    some_linear(network).delta = low_rank(some_linear(network), 2, n_adapters=1, dtype=torch.float32)
    step = step_of(network, make_cache(network)).get()
    assert step is not None
    with pytest.raises(ConfigError, match=r"adapters must be below 1, as many as every delta has; got \[0, 1\]"):
        step([5, 6], [0, 0], [0, 1], [0, 1])


class Doubled(LowRank):
    def forward(self, x: Tensor, adapters: Tensor | None) -> Tensor:
        return 2 * super().forward(x, adapters)


def unknown_deltas(linear: Linear) -> dict[str, LowRank]:
    """Return deltas that are the modules' matter, by what is the matter with them."""
    a, b, one = torch.randn(2, 3, linear.d_in), torch.randn(2, linear.d_out, 3), torch.ones(2)
    found = {
        "class": Doubled(a, b, one),
        "dtype": LowRank(a.bfloat16(), b.bfloat16(), one),
        "scale's dtype": LowRank(a, b, one.double()),
        "gaps": LowRank(a, torch.randn(2, 3, linear.d_out).transpose(1, 2), one),
        "rank of 0": LowRank(a[:, :0], b[..., :0], one),
        "no adapters": LowRank(a[:0], b[:0], one[:0]),
        "d_in": LowRank(a[..., 1:].contiguous(), b, one),
        "d_out": LowRank(a, b[:, 1:].contiguous(), one),
        **{name: LowRank(a, b, one) for name in ("two ranks", "scales", "hook", "forward", "one tensor more")},
    }
    found["two ranks"].lora_b = nn.Parameter(b[..., 1:].contiguous())
    found["scales"].scale = one[:1]
    found["hook"].register_forward_hook(lambda module, inputs, output: None)
    found["forward"].forward = found["forward"].forward
    found["one tensor more"].register_buffer("dora", torch.ones(2))
    return found


def test_deltas_the_step_does_not_know_are_left_to_the_modules() -> None:
    network = adapt(tiny_network())
    linear, cache = some_linear(network), make_cache(network)
    current = step_of(network, cache)
    known = linear.delta
    for what, delta in unknown_deltas(linear).items():
        linear.delta = delta
        assert current.get() is None, what
        assert decode_step(network, cache, n_threads=1) is None, what
        linear.delta = known
        assert current.get() is not None


def test_a_linear_in_the_place_of_another_is_left_to_the_modules() -> None:
    network = adapt(tiny_network())
    current = step_of(network, make_cache(network))
    assert current.get() is not None
    network.replace_linears(lambda name, linear: deepcopy(linear) if name == "layers.1.mlp.up_proj" else linear)
    assert current.get() is None
