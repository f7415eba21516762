from dataclasses import replace

import pytest
import torch

from gemsmith.config import ARCHITECTURES, ModelConfig, preset
from gemsmith.errors import CacheError, ConfigError
from gemsmith.model import ops
from gemsmith.model.cache import KVCache
from gemsmith.model.layout import Layout
from gemsmith.model.transformer import Transformer
from tiny import FAMILIES, WINDOW, tiny_config, tiny_network

PUBLISHED_COUNTS = {
    "gemma-2b": 2_506_172_416,
    "gemma-7b": 8_537_680_896,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952,
    "gemma-3-4b": 3_880_099_328,
    "gemma-3-12b": 11_765_788_416,
    "gemma-3-27b": 27_009_002_240,
    "vaultgemma-1b": 1_038_741_120,
}


def ids_of(n_rows: int, n_tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 300, (n_rows, n_tokens), generator=torch.Generator().manual_seed(seed))


def test_every_preset_has_a_published_count() -> None:
    assert PUBLISHED_COUNTS.keys() == ARCHITECTURES.keys()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parameter_counts_equal_the_published_ones(name: str) -> None:
    network = Transformer(preset(name), device="meta")
    assert sum(p.numel() for p in network.parameters()) == PUBLISHED_COUNTS[name] == preset(name).n_params


def test_parameters_keep_their_published_names() -> None:
    names = {name for name, _ in tiny_network("gemma3").named_parameters()}
    layer = {name.removeprefix("layers.2.") for name in names if name.startswith("layers.2.")}
    assert layer == {
        *(f"self_attn.{x}_proj.weight" for x in "qkvo"),
        *(f"self_attn.{x}_norm.weight" for x in "qk"),
        *(f"mlp.{x}_proj.weight" for x in ("gate", "up", "down")),
        *(f"{x}_layernorm.weight" for x in ("input", "post_attention", "pre_feedforward", "post_feedforward")),
    }
    assert {name for name in names if not name.startswith("layers.")} == {"embed_tokens.weight", "norm.weight"}


@pytest.mark.parametrize("family", FAMILIES)
def test_future_tokens_have_zero_gradient(family: str) -> None:
    network, token_ids = tiny_network(family), ids_of(1, 20)[0]
    given = torch.randn(20, 40, requires_grad=True)
    hidden = network.hidden(torch.full_like(token_ids, -1), Layout.packed([20]), embeddings=given)
    hidden[11].sum().backward()
    assert given.grad is not None
    assert given.grad[12:].abs().max() == 0
    assert given.grad[11].abs().max() > 0
    assert given.grad[10].abs().max() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_faster_attention_equals_the_plain_one_on_value_and_gradient(family: str) -> None:
    network, token_ids = tiny_network(family), ids_of(2, 21)
    results = []
    for plain in (False, True):
        network.zero_grad()
        if plain:
            with ops.plain_only():
                logits = network(token_ids)
        else:
            logits = network(token_ids)
        logits.square().mean().backward()
        results.append((logits.detach(), [p.grad.clone() for p in network.parameters()]))
    (fast, fast_grads), (slow, slow_grads) = results
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-5 * slow.abs().max().item())
    for ours, theirs in zip(fast_grads, slow_grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * max(1e-3, theirs.abs().max().item()))


@torch.inference_mode()
def test_captured_activations_are_those_of_the_pass() -> None:
    network, token_ids = tiny_network("gemma2"), ids_of(2, 9)
    places = ["embedding", "layers.3.attention", "layers.3.feed_forward", "layers.3", "norm"]
    logits, seen = network(token_ids, capture=places)
    assert list(seen) == places
    assert all(x.shape == (2, 9, 40) for x in seen.values())
    torch.testing.assert_close(network.logits(seen["norm"]), logits)
    torch.testing.assert_close(network.norm(seen["layers.3"]), seen["norm"])
    torch.testing.assert_close(network(token_ids), logits)  # nothing stays behind


@torch.inference_mode()
def test_captured_activations_of_chunks_join_up() -> None:
    network, token_ids = tiny_network("gemma2"), ids_of(1, 30)
    _, whole = network(token_ids, capture=["layers.1.attention"])
    _, pieces = network(token_ids, cache=KVCache(network.config, slack=7), capture=["layers.1.attention"])
    torch.testing.assert_close(pieces["layers.1.attention"], whole["layers.1.attention"], rtol=0, atol=1e-5)


def test_capture_of_a_place_that_is_not_there_names_it() -> None:
    with pytest.raises(ConfigError, match=r"part of the network; got 'layers\.9\.attention'"):
        tiny_network()(ids_of(1, 3), capture=["layers.9.attention"])


@torch.inference_mode()
def test_packed_rows_of_a_training_batch_equal_each_document_alone() -> None:
    network, lengths = tiny_network("gemma2"), [5, 11, 14, 2]
    token_ids = ids_of(1, 32)[0]
    documents = torch.tensor([0] * 5 + [1] * 11 + [0] * 14 + [1] * 2).view(2, 16)
    positions = torch.cat([torch.arange(n) for n in lengths]).view(2, 16)
    rows = network.hidden(token_ids, Layout.rows(documents, positions))
    flat = network.hidden(token_ids, Layout.packed(lengths))
    torch.testing.assert_close(rows, flat, rtol=0, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("chunk", [1, 5, 40])
def test_prefill_of_one_slot_mixes_with_decoding_of_others(chunk: int) -> None:
    network, texts = tiny_network("gemma2"), [ids_of(1, 40, seed)[0] for seed in range(3)]
    cache = KVCache(network.config, n_slots=3, slack=8)
    network.hidden(torch.cat([texts[0][:30], texts[2][:4]]), Layout.packed([30, 4], slots=[0, 2]), cache=cache)
    mixed = Layout.packed([1, chunk, 1], starts=[30, 0, 4], slots=[0, 1, 2])
    hidden = network.hidden(torch.cat([texts[0][30:31], texts[1][:chunk], texts[2][4:5]]), mixed, cache=cache)
    for rows, text, stop in ((slice(0, 1), 0, 31), (slice(1, 1 + chunk), 1, chunk), (slice(1 + chunk, None), 2, 5)):
        alone = network.hidden(texts[text][:stop], Layout.packed([stop]))
        torch.testing.assert_close(
            hidden[rows], alone[-(rows.stop - rows.start if rows.stop else 1) :], rtol=0, atol=1e-5
        )


@torch.inference_mode()
def test_rows_decode_together_past_the_window() -> None:
    network, token_ids = tiny_network("gemma2"), ids_of(3, 40)
    cache = KVCache(network.config, n_slots=3, slack=4)
    for slot, length in enumerate((25, 3, 11)):
        network.hidden(token_ids[slot, :length], Layout.packed([length], slots=[slot]), cache=cache)
    for _ in range(6):
        starts = cache.lengths.tolist()
        ids = torch.stack([token_ids[slot, starts[slot]] for slot in range(3)])
        layout = Layout.packed([1, 1, 1], starts=starts)
        assert layout.n_rows == 3
        hidden = network.hidden(ids, layout, cache=cache)
    for slot, length in enumerate((25, 3, 11)):
        alone = network.hidden(token_ids[slot, : length + 6], Layout.packed([length + 6]))
        torch.testing.assert_close(hidden[slot], alone[-1], rtol=0, atol=1e-5)


def sharing(family: str = "gemma2") -> ModelConfig:
    config = tiny_config(family)
    first, second, third, fourth = config.layers
    return config.replace(layers=(first, second, replace(third, kv_source=0), replace(fourth, kv_source=1)))


@torch.inference_mode()
def test_layers_can_reuse_the_keys_of_an_earlier_one() -> None:
    config = sharing()
    network = Transformer(config)
    for parameter in network.parameters():
        parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    assert "layers.2.self_attn.k_proj.weight" not in network.state_dict()
    assert config.n_params == sum(p.numel() for p in network.parameters())
    token_ids, cache = ids_of(1, 25), KVCache(config, slack=5)
    assert cache.keys.keys() == {0, 1}
    whole = network(token_ids)
    parts = [network(token_ids[:, :11], cache=cache), network(token_ids[:, 11:], cache=cache)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_spans_see_both_ways_also_through_a_cache() -> None:
    network, token_ids = tiny_network("gemma3"), ids_of(1, 16)[0]
    spans = torch.tensor([-1] * 5 + [0] * 6 + [-1] * 5)
    base = Layout.packed([16])
    layout = replace(base, spans=spans)
    flat = network.hidden(token_ids, layout)
    cached = network.hidden(token_ids, layout, cache=KVCache(network.config, slack=20))
    torch.testing.assert_close(cached, flat, rtol=0, atol=1e-5)
    with ops.plain_only():
        torch.testing.assert_close(network.hidden(token_ids, layout), flat, rtol=0, atol=1e-5)
    causal = network.hidden(token_ids, base)
    assert (flat - causal)[5:10].abs().max() > 1e-2
    torch.testing.assert_close(flat[:5], causal[:5], rtol=0, atol=1e-5)
    with pytest.raises(CacheError, match="at once; got 16"):
        network.hidden(token_ids, layout, cache=KVCache(network.config, slack=7))


@torch.inference_mode()
def test_bidirectional_layouts_serve_encoders() -> None:
    network, token_ids = tiny_network("gemma2"), ids_of(1, 20)[0]
    layout = replace(Layout.packed([20]), direction="bidirectional")
    both = network.hidden(token_ids, layout)
    changed = token_ids.clone()
    changed[19] = (changed[19] + 1) % 300
    assert (network.hidden(changed, layout)[0] - both[0]).abs().max() > 1e-4


def test_embeddings_must_be_as_many_as_their_places() -> None:
    network = tiny_network()
    with pytest.raises(ConfigError, match="as many as the ids of -1; got 2 for 1"):
        network.hidden(torch.tensor([1, -1]), Layout.packed([2]), embeddings=torch.zeros(2, 40))


@torch.inference_mode()
@pytest.mark.parametrize("family", FAMILIES)
def test_int8_cache_gives_the_same_in_any_pieces_and_nearly_what_floats_give(family: str) -> None:
    network, token_ids = tiny_network(family), ids_of(1, 40)
    whole = network(token_ids, cache=KVCache(network.config, dtype=torch.int8))
    cache, pieces = KVCache(network.config, slack=WINDOW, dtype=torch.int8), []
    for start, stop in ((0, 13), (13, 14), (14, 15), (15, 23), (23, 40)):
        pieces.append(network(token_ids[:, start:stop], cache=cache))
    # Sums in another order may round a key or two to their neighbours.
    exact = network(token_ids)
    assert (torch.cat(pieces, 1) - whole).norm() < 2e-3 * exact.norm()
    assert 1e-3 < (whole - exact).norm() / exact.norm() < 0.06


@torch.inference_mode()
def test_layers_that_share_keys_read_them_from_an_int8_cache() -> None:
    network = Transformer(sharing())
    for parameter in network.parameters():
        parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    token_ids = ids_of(1, 25)
    found = network(token_ids, cache=KVCache(network.config, dtype=torch.int8))
    exact = network(token_ids)
    assert (found - exact).norm() < 0.06 * exact.norm()
