import pytest
import torch

from gemsmith.kernels import cached_attention, native
from gemsmith.kernels.quantized import Scheme
from gemsmith.model import ops
from gemsmith.model.cache import KVCache
from gemsmith.model.layout import Layout
from gemsmith.model.quantized import quantize_network
from gemsmith.model.transformer import Transformer
from tiny import FAMILIES, tiny_network

needs_library = pytest.mark.skipif(not native.is_loaded(), reason="no compiled kernels here; make kernels builds them")

LENGTHS = (41, 12, 30)
PASSES = ((0, 16), (16, 29), (29, 30), (30, 41))  # of each document; windows are 8


@torch.no_grad()
def read(network: Transformer, dtype: torch.dtype) -> torch.Tensor:
    """Return the states of three documents that a cache takes in passes, its rings wrapped."""
    cache, states = KVCache(network.config, n_slots=4, capacity=64, slack=16, dtype=dtype), []
    for start, stop in PASSES:
        runs = [(slot, min(stop, n)) for slot, n in zip((2, 0, 3), LENGTHS, strict=True) if n > start]
        layout = Layout.packed(
            [n - start for _, n in runs], starts=[start] * len(runs), slots=[slot for slot, _ in runs]
        )
        token_ids = torch.arange(layout.n_tokens) * 7 % 300
        states.append(network.hidden(token_ids, layout, cache=cache))
    return torch.cat(states)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_passes_over_a_cache_equal_plain_ones(family: str, dtype: torch.dtype) -> None:
    network = tiny_network(family)
    found = read(network, dtype)
    with ops.plain_only():
        # A vector of 8 bits may be rounded the other way where keys differ in their last bit.
        torch.testing.assert_close(
            found, read(network, dtype), rtol=1e-4, atol=1e-4 if dtype == torch.float32 else 0.05
        )


@needs_library
def test_passes_over_a_cache_take_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, attention = [], cached_attention.attention
    monkeypatch.setattr(
        cached_attention, "attention", lambda q, *a, **k: (seen.append(len(q)), attention(q, *a, **k))[1]
    )
    network = tiny_network()
    read(network, torch.float32)
    assert seen == [44] * 4 + [26] * 4 + [11] * 4  # not the pass of single tokens


@needs_library
def test_whoever_looks_at_a_linear_sees_its_output() -> None:
    """Linears of one input and gated layers are computed together, but not behind a watcher's back."""
    network = quantize_network(tiny_network(), lambda name, linear: Scheme(8, None))
    network.pack()
    token_ids = torch.arange(20)[None]
    with torch.no_grad():
        alone = network(token_ids)
        names = [f"layers.1.{name}" for name in ("self_attn.k_proj", "mlp.up_proj")]
        logits, captured = network(token_ids, capture=names)
    assert torch.equal(logits, alone)
    assert [captured[name].shape for name in names] == [(1, 20, 24), (1, 20, 64)]
