"""Mistakes other implementations of Gemma have made, each shown not to be made here."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from gemsmith.config import preset
from gemsmith.model import ops
from gemsmith.model.attention import Attention
from gemsmith.model.cache import KVCache, cache_bytes
from gemsmith.model.layers import Embedding
from gemsmith.model.layout import Layout, visible
from gemsmith.model.transformer import Transformer
from tiny import WINDOW, tiny_config, tiny_network


def ids_of(n_rows: int, n_tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 300, (n_rows, n_tokens), generator=torch.Generator().manual_seed(seed))


def plain_facts(positions: list[int]) -> tuple[torch.Tensor, torch.Tensor, None]:
    places = torch.tensor(positions)
    return torch.zeros_like(places), places, None


def without(network: Transformer, **changes: object) -> Transformer:
    """Return the same weights under a configuration with one thing left out of every layer."""
    config = network.config
    layers = tuple(replace(layer, **changes) for layer in config.layers)
    other = Transformer(config.replace(layers=layers))
    other.load_state_dict(network.state_dict())
    return other.eval()


@torch.inference_mode()
def test_trap_final_cap_is_on_logits_not_on_hidden_state() -> None:
    network = tiny_network("gemma2")
    with torch.no_grad():
        network.norm.weight.fill_(50.0)
        network.embed_tokens.weight.mul_(20)
    token_ids = ids_of(1, 12)
    logits, seen = network(token_ids, capture=["norm"])
    assert seen["norm"].abs().max() > 30  # the state is not capped
    assert logits.abs().max() <= 3.0  # the logits are
    raw = seen["norm"] @ network.embed_tokens.weight.T
    torch.testing.assert_close(logits, 3.0 * torch.tanh(raw / 3.0))


@torch.inference_mode()
def test_trap_missing_final_cap_keeps_every_argmax_but_not_the_logits() -> None:
    network, token_ids = tiny_network("gemma2"), ids_of(1, 20)
    bare = Transformer(network.config.replace(final_softcap=None))
    bare.load_state_dict(network.state_dict())
    ours, uncapped = network(token_ids), bare(token_ids)
    assert torch.equal(ours.argmax(-1), uncapped.argmax(-1))
    assert (ours.log_softmax(-1) - uncapped.log_softmax(-1)).abs().max() > 0.05


@torch.inference_mode()
def test_trap_missing_attention_cap_changes_logits() -> None:
    network, token_ids = tiny_network("gemma2"), ids_of(1, 20)
    assert (network(token_ids) - without(network, attn_softcap=None)(token_ids)).abs().max() > 1e-2


def test_trap_window_counts_from_positions_not_from_rows_of_the_mask() -> None:
    mask = visible(plain_facts([9]), plain_facts(list(range(12))), window=4)
    assert mask[0].nonzero()[:, 0].tolist() == [6, 7, 8, 9]


def test_trap_window_counts_the_token_itself() -> None:
    mask = visible(plain_facts(list(range(30))), plain_facts(list(range(30))), window=WINDOW)
    assert mask.sum(-1).tolist() == [min(i + 1, WINDOW) for i in range(30)]


@torch.inference_mode()
@pytest.mark.parametrize("n_back", [WINDOW - 1, WINDOW])
def test_trap_local_layer_reads_its_oldest_key_and_none_beyond(n_back: int) -> None:
    config = tiny_config("gemma2")
    network = tiny_network("gemma2")
    one = Transformer(config.replace(layers=config.layers[:1]))
    one.load_state_dict({k: v for k, v in network.state_dict().items() if k in one.state_dict()})
    token_ids = ids_of(1, 20)
    changed = token_ids.clone()
    changed[0, 19 - n_back] = (changed[0, 19 - n_back] + 1) % 300
    moved = (one(token_ids) - one(changed))[0, 19].abs().max().item()
    assert (moved > 1e-4) == (n_back < WINDOW)


@torch.inference_mode()
def test_trap_local_layers_are_not_global() -> None:
    network, token_ids = tiny_network("gemma2"), ids_of(1, 3 * WINDOW)
    wide = without(network, kind="global", window=None)
    difference = (network(token_ids) - wide(token_ids)).abs().amax(-1)[0]
    assert difference[:WINDOW].max() < 1e-5
    assert difference[WINDOW:].max() > 1e-2


def test_trap_window_survives_the_presets() -> None:
    assert {layer.window for layer in preset("gemma-2-2b").layers[::2]} == {4096}
    assert {layer.window for layer in preset("gemma-2-2b").layers[1::2]} == {None}
    kinds = [layer.kind for layer in preset("gemma-3-4b").layers]
    assert [i for i, kind in enumerate(kinds) if kind == "global"] == [5, 11, 17, 23, 29]


def test_trap_feed_forward_width_is_of_one_matrix() -> None:
    assert preset("gemma-2-9b").layers[0].d_ff == 14_336
    assert preset("gemma-2-9b").n_params == 9_241_705_984


@pytest.mark.parametrize(
    ("name", "scalar"),
    [("gemma-2-2b", 256), ("gemma-2-9b", 256), ("gemma-2-27b", 144), ("gemma-3-27b", 168), ("gemma-7b", 256)],
)
def test_trap_attention_scale_is_not_always_of_the_head(name: str, scalar: int) -> None:
    assert preset(name).layers[0].attn_scale == pytest.approx(scalar**-0.5, rel=1e-12)


def test_trap_head_size_is_not_the_quotient() -> None:
    network = Transformer(preset("gemma-2-2b"), device="meta")
    attention = network.layers[0].self_attn
    assert isinstance(attention, Attention)
    assert attention.q_proj.weight.shape == (8 * 256, 2304)
    assert attention.k_proj.weight.shape == (4 * 256, 2304)


@pytest.mark.parametrize(
    ("d_model", "rounded"),
    [(640, 25.25), (1152, 34.0), (2048, 45.25), (2304, 48.0), (2560, 50.5), (3072, 55.5), (3584, 59.75),
     (3840, 62.0), (4608, 68.0), (5376, 73.5)],
)  # fmt: skip
def test_trap_embedding_scale_is_rounded_to_bfloat16(d_model: int, rounded: float) -> None:
    assert ops.embedding_scale(d_model, torch.bfloat16) == rounded
    assert float(ops.embedding_scale(d_model, torch.float32)) == pytest.approx(d_model**0.5, rel=1e-6)


def test_trap_norm_weight_is_an_offset_from_one() -> None:
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    unit = ops.rms_norm(x, torch.zeros(16), 1e-6)
    torch.testing.assert_close(unit.square().mean(-1), torch.ones(3), rtol=1e-4, atol=0)
    torch.testing.assert_close(ops.rms_norm(x, torch.full((16,), 0.5), 1e-6), unit * 1.5)


def test_trap_norm_casts_last() -> None:
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(64, 256, generator=generator).bfloat16(), torch.randn(256, generator=generator).bfloat16())
    exact = F.rms_norm(x.double(), (256,), eps=1e-6) * (1 + w.double())
    early = F.rms_norm(x.float(), (256,), eps=1e-6).bfloat16() * (1 + w)
    ours = ops.rms_norm(x, w, 1e-6)
    assert (ours != exact.bfloat16()).sum() <= 2  # of 16,384: ties that float32 falls on the other side of
    assert (early != exact.bfloat16()).sum() > 1000


def test_trap_gelu_is_the_tanh_form() -> None:
    x = torch.linspace(-4, 4, 101)[None]
    by_hand = 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    torch.testing.assert_close(ops.gated_gelu(x, torch.ones_like(x)), by_hand)
    assert (F.gelu(x) - by_hand).abs().max() > 1e-4


def test_trap_rotary_pairs_are_halves_not_neighbors() -> None:
    x = torch.zeros(1, 1, 8)
    x[0, 0, 1] = 1.0
    angles = ops.rope_angles(torch.tensor([3]), head_dim=8, theta=100.0, factor=1.0)
    turned = ops.rotate(x, angles)[0, 0]
    angle = torch.tensor(3 * 100.0 ** (-2 / 8))
    torch.testing.assert_close(turned[1], angle.cos())
    torch.testing.assert_close(turned[5], angle.sin())  # its pair is half a head away
    assert turned[0] == turned[2] == 0


def test_trap_rotary_angles_stay_float32_at_far_positions() -> None:
    cos, _ = ops.rope_angles(torch.tensor([8191]), head_dim=256, theta=10_000.0, factor=1.0)
    frequencies = 10_000.0 ** (-torch.arange(0, 256, 2, dtype=torch.float64) / 256)
    assert cos.dtype == torch.float32
    assert (cos[0].double() - (8191 * frequencies).cos()).abs().max() < 2e-3
    assert ((8191 * frequencies).bfloat16().double().cos() - (8191 * frequencies).cos()).abs().max() > 0.5


@pytest.mark.parametrize(
    ("name", "factor"), [("gemma-3-270m", 1.0), ("gemma-3-1b", 1.0), ("gemma-3-4b", 8.0), ("gemma-3-27b", 8.0)]
)
def test_trap_rope_scaling_is_for_global_layers_of_large_models_only(name: str, factor: float) -> None:
    for layer in preset(name).layers:
        assert layer.rope_factor == (factor if layer.kind == "global" else 1.0)
        assert layer.rope_theta == (1_000_000.0 if layer.kind == "global" else 10_000.0)


def test_trap_rope_factor_divides_positions() -> None:
    far = ops.rope_angles(torch.tensor([80]), head_dim=12, theta=100.0, factor=8.0)
    near = ops.rope_angles(torch.tensor([10]), head_dim=12, theta=100.0, factor=1.0)
    torch.testing.assert_close(far, near)


@pytest.mark.parametrize("function", [ops.plain_attention, ops.attention])
def test_trap_cap_comes_before_the_mask(function: object) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(shape, generator=generator) for shape in ((1, 5, 4, 8), (1, 2, 5, 8), (1, 2, 5, 8)))
    mask = torch.ones(5, 5, dtype=torch.bool).tril()[None]
    before = function(q, k, v, mask, scale=1.0, cap=2.0)
    changed = function(q, k, v.index_fill(2, torch.tensor([4]), 1e6), mask, scale=1.0, cap=2.0)
    # A hidden key capped from -inf to -cap would still leak its value.
    assert torch.equal(before[:, :4], changed[:, :4])


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("function", [ops.plain_attention, ops.attention])
def test_trap_query_that_sees_nothing_gets_zeros_not_nan(function: object, cap: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 3, 4, 8), (2, 2, 6, 8), (2, 2, 6, 8))
    q, k, v = (torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes)
    mask = torch.ones(2, 3, 6, dtype=torch.bool)
    mask[0, 1] = False
    out = function(q, k, v, mask, scale=0.3, cap=cap)
    assert torch.equal(out[0, 1], torch.zeros(4, 8))
    assert out[0, 0].abs().min() > 0
    out.sum().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in (q, k, v))


def test_trap_filler_tokens_see_nothing_and_nobody_sees_them() -> None:
    documents = torch.tensor([0, -1, 0])
    facts = (documents, torch.tensor([0, 1, 1]), None)
    assert visible(facts, facts, window=None).int().tolist() == [[1, 0, 0], [0, 0, 0], [1, 0, 1]]


@torch.inference_mode()
def test_trap_query_and_key_norms_come_before_rotation() -> None:
    network, token_ids = tiny_network("gemma3"), ids_of(1, 6)
    attention = network.layers[0].self_attn
    _, seen = network(token_ids, capture=["layers.0.self_attn.q_proj", "layers.0.self_attn.q_norm"])
    projected = seen["layers.0.self_attn.q_proj"].unflatten(-1, (4, 12))  # not rotated yet
    torch.testing.assert_close(seen["layers.0.self_attn.q_norm"], attention.q_norm(projected))


def test_trap_gemma_3_has_no_caps_and_gemma_2_has_both() -> None:
    assert preset("gemma-3-4b").final_softcap is None
    assert preset("gemma-3-4b").layers[0].attn_softcap is None
    assert (preset("gemma-2-2b").layers[0].attn_softcap, preset("gemma-2-2b").final_softcap) == (50.0, 30.0)
    assert (preset("vaultgemma-1b").layers[0].attn_softcap, preset("vaultgemma-1b").final_softcap) == (50.0, 30.0)


def test_trap_vaultgemma_is_global_everywhere_without_post_norms() -> None:
    config = preset("vaultgemma-1b")
    assert {layer.kind for layer in config.layers} == {"global"}
    names = {
        name.split(".")[-2] for name, _ in Transformer(config, device="meta").named_parameters() if "layernorm" in name
    }
    assert names == {"input_layernorm", "pre_feedforward_layernorm"}


@torch.inference_mode()
def test_trap_post_attention_norm_of_gemma_1_stands_before_the_feed_forward() -> None:
    network, token_ids = tiny_network("gemma"), ids_of(1, 5)
    name = "layers.0.post_attention_layernorm"
    _, seen = network(token_ids, capture=[name, "layers.0.attention", "layers.0", "embedding"])
    stream = seen["embedding"] + seen["layers.0.attention"]  # attention's output is added as it is
    block = network.layers[0]
    torch.testing.assert_close(seen[name], block.post_attention_layernorm(stream))


@torch.inference_mode()
def test_trap_embeddings_that_come_from_elsewhere_are_not_scaled() -> None:
    table = Embedding(10, 16)
    torch.nn.init.normal_(table.weight)
    given = torch.randn(2, 16)
    mixed = table(torch.tensor([3, -1, 4, -1]), given)
    torch.testing.assert_close(mixed[[1, 3]], given)
    torch.testing.assert_close(mixed[[0, 2]], table.weight[[3, 4]] * 4.0)


def test_trap_cache_holds_key_heads_not_query_heads() -> None:
    config = preset("gemma-2-2b")
    per_place = 2 * 4 * 256 * 2  # keys and values, four heads of 256, two bytes
    assert cache_bytes(config, 8192) == 13 * 8192 * per_place + 13 * (4096 + 512) * per_place
    assert KVCache(tiny_config("gemma2"), capacity=32).keys[0].shape[1] == 2


def test_trap_images_see_themselves_both_ways_but_only_within_the_window() -> None:
    positions = torch.arange(8)
    spans = torch.tensor([-1, 0, 0, 0, 0, -1, 1, 1])
    facts = (torch.zeros(8, dtype=torch.long), positions, spans)
    mask = visible(facts, facts, window=3)
    assert mask[1].nonzero()[:, 0].tolist() == [0, 1, 2, 3, 4]  # forward to the end of its span
    assert mask[4].nonzero()[:, 0].tolist() == [2, 3, 4]  # backward no further than the window
    assert mask[5].nonzero()[:, 0].tolist() == [3, 4, 5]
    assert mask[6].nonzero()[:, 0].tolist() == [4, 5, 6, 7]


@torch.inference_mode()
def test_trap_position_zero_is_each_documents_own() -> None:
    network, token_ids = tiny_network("gemma2"), ids_of(1, 11)[0]
    alone = network.hidden(token_ids, Layout.packed([11]))
    behind = network.hidden(torch.cat([ids_of(1, 7, 5)[0], token_ids]), Layout.packed([7, 11]))
    torch.testing.assert_close(behind[7:], alone, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_trap_softmax_runs_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(shape, generator=generator).bfloat16() for shape in ((1, 1, 1, 8), (1, 1, 600, 8), (1, 1, 600, 8))
    )
    exact = ops.plain_attention(q.double(), k.double(), v.double(), None, scale=0.01, cap=5.0)
    for function in (ops.plain_attention, ops.attention):
        ours = function(q, k, v, None, scale=0.01, cap=5.0)
        # 600 nearly equal weights, summed in bfloat16, would be off by tens of percent.
        assert (ours.double() - exact).abs().max() < 2e-3
