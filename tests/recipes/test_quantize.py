"""Quantizing a network: within the error of the scheme, channels of unlike size included."""

import pytest
import torch
from torch import nn

import gemsmith as gs
from gemsmith.errors import ConfigError, DataError
from gemsmith.evaluate.divergence import divergence
from gemsmith.infer.sample import Sampling
from gemsmith.kernels.quantized import Scheme, dequantize, quantize
from gemsmith.model.transformer import Transformer
from gemsmith.recipes.balance import balance
from gemsmith.recipes.quantize import calibration_windows, quantize_network, stages_of
from gemsmith.recipes.schemes import check_schemes, parse_scheme, uniform, words_of
from gemsmith.tokenizer import Tokenizer
from gemsmith.weights.catalog import find_model
from gemsmith.weights.folder import load_network
from gemsmith.weights.quantized import quantized_modules
from tiny import FAMILIES, tiny_network
from vocab import small_tokenizer

IDS = torch.arange(5, 45)[None]
TEXTS = ["Once upon a time a wolf came to the river and met a little girl who was looking for her hat. " * 4] * 30


@pytest.mark.parametrize("family", FAMILIES)
def test_evening_out_channels_changes_nothing(family: str) -> None:
    network = tiny_network(family)
    before = network(IDS)
    weights = {name: p.detach().clone() for name, p in network.named_parameters()}
    for layer in network.layers:
        balance(layer, [name for stage in stages_of(layer, "") for name in stage])
    torch.testing.assert_close(network(IDS), before, rtol=1e-4, atol=1e-4)
    assert not torch.equal(network.get_parameter("layers.0.mlp.up_proj.weight"), weights["layers.0.mlp.up_proj.weight"])


def test_only_what_is_rounded_is_evened_out() -> None:
    network = tiny_network()
    weights = {name: p.detach().clone() for name, p in network.named_parameters()}
    balance(network.layers[0], ["self_attn.q_proj", "mlp.up_proj"])
    assert all(torch.equal(p, weights[name]) for name, p in network.named_parameters())


def test_plain_rounding_is_that_of_the_evened_matrix() -> None:
    network, evened = tiny_network(), tiny_network()
    schemes = uniform(network, linears=Scheme(4, 8), table=Scheme(8, None))
    losses = quantize_network(network, schemes)
    for index, layer in enumerate(evened.layers):
        balance(layer, [name.removeprefix(f"layers.{index}.") for name in schemes])
    found = quantized_modules(network)
    assert found.keys() == schemes.keys() == {loss.name for loss in losses}
    for loss in losses:
        weight = evened.get_parameter(f"{loss.name}.weight").detach()
        q = quantize(weight, schemes[loss.name], scale_dtype=torch.bfloat16)
        assert torch.equal(found[loss.name].values, q.values)
        assert loss.error == pytest.approx(float((dequantize(q) - weight).norm() / weight.norm()), rel=1e-3)
        assert (loss.n_items, loss.scheme) == (weight.numel(), words_of(q.scheme))


def test_bits_count_everything_in_the_file() -> None:
    network = tiny_network()
    loss = quantize_network(network, {"layers.0.mlp.up_proj": Scheme(4, 8)})[0]
    # 4 bits, a 16-bit scale for 8 inputs, and the recorded shape.
    assert loss.bits == 4 + 16 / 8 + 8 * 16 / (64 * 40)


def test_calibrated_layers_see_the_rounded_ones_before_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from gemsmith.recipes import quantize as module

    network = tiny_network(vocab_size=2048)
    windows = calibration_windows(TEXTS, small_tokenizer(), n_tokens=400, least=64, context=50)
    place = "layers.1.self_attn.q_proj"
    totals = {}
    plain = module.gptq

    def spy(weight: torch.Tensor, scheme: Scheme, hessian: module.Hessian, **words: torch.dtype) -> object:
        totals[len(totals)] = hessian.total.clone()
        return plain(weight, scheme, hessian, **words)

    monkeypatch.setattr(module, "gptq", spy)
    quantize_network(network, uniform(network, linears=Scheme(4, 8), table=None), windows=windows)
    seen: list[torch.Tensor] = []
    network.get_submodule(place).register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        for window in windows:
            network.hidden(window.token_ids, window.layout)
    x = torch.cat(seen)
    torch.testing.assert_close(totals[7], x.T @ x, rtol=1e-3, atol=1e-2)


def test_calibration_text_is_cut_and_counted() -> None:
    windows = calibration_windows(TEXTS, small_tokenizer(), n_tokens=120, least=64, context=50)
    assert sum(len(window.token_ids) for window in windows) == 120
    assert max(segment.n_tokens for window in windows for segment in window.layout.segments) == 50
    assert windows[0].token_ids[0] == small_tokenizer().bos_id


def test_too_little_calibration_text_is_refused() -> None:
    with pytest.raises(DataError, match=r"must hold at least 64 tokens.*; got \d+\. Give more text"):
        calibration_windows(["A wolf."], small_tokenizer(), n_tokens=1000, least=64)
    with pytest.raises(DataError, match=r"tokens must be at least 64, .*; got 1\. Ask for more"):
        calibration_windows(TEXTS, small_tokenizer(), n_tokens=1, least=64)


@pytest.mark.parametrize("word", ["int8", "int8-g64", "int4-g32", "int4-g128-asym", "int8-asym", "bf16"])
def test_words_of_schemes_read_back(word: str) -> None:
    assert words_of(parse_scheme(word)) == word


@pytest.mark.parametrize("word", ["int5", "int4-g48", "int4-g0", "", "int8 ", "INT8", "int4-asym-g32", "fp8"])
def test_schemes_that_do_not_exist_are_refused(word: str) -> None:
    with pytest.raises(ConfigError, match=f"scheme must be int8, int4 or .*; got '{word}'"):
        parse_scheme(word)


def test_groups_that_do_not_divide_are_refused() -> None:
    network = tiny_network()
    with pytest.raises(ConfigError, match=r"must divide the inputs .*; got 32 and 40 in 'layers.0.self_attn.q_proj'"):
        check_schemes(network, uniform(network, linears=Scheme(4, 32), table=None))


def planted(network: Transformer) -> Transformer:
    """Make four channels of every norm's output and of every feed-forward 100 times larger, and made up for."""
    with torch.no_grad():
        for layer in network.layers:
            for norm, readers in (
                ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
                ("pre_feedforward_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
            ):
                gain = layer.get_parameter(f"{norm}.weight").detach().clone()
                gain[[7, 80, 150, 300]] = 100 * (1 + gain[[7, 80, 150, 300]]) - 1
                _set(layer, norm, gain)
                for name in readers:
                    _scale(layer, name, (slice(None), [7, 80, 150, 300]), 0.01)
            _scale(layer, "mlp.up_proj", [3, 200, 400, 700], 0.01)
            _scale(layer, "mlp.down_proj", (slice(None), [3, 200, 400, 700]), 100.0)
    return network


def _scale(layer: nn.Module, name: str, where: object, factor: float) -> None:
    weight = layer.get_parameter(f"{name}.weight").detach().clone()
    weight[where] *= factor  # pyright: ignore[reportArgumentType]
    _set(layer, name, weight)


def _set(layer: nn.Module, name: str, weight: torch.Tensor) -> None:
    setattr(layer.get_submodule(name), "weight", nn.Parameter(weight, requires_grad=False))  # noqa: B010


@pytest.fixture(scope="module")
def own_texts() -> tuple[list[str], list[str]]:
    """Return texts to calibrate and others to measure on, drawn from pebble's own distribution."""
    lm = gs.load("pebble", dtype="float32")
    sampling = Sampling(temperature=1.0)
    drawn = [
        [found.text for found in lm.generate(BEGINNINGS, sampling=sampling, seed=seed, max_new_tokens=200)]
        for seed in range(1, 14)
    ]
    texts = [[start + end for start, end in zip(BEGINNINGS, part, strict=True)] for part in drawn]
    to_measure = [text for part in texts[1:] for text in part]
    assert not set(texts[0]) & set(to_measure)
    return texts[0], to_measure


BEGINNINGS = [
    "Once upon a time", "The old king", "A long time ago, in a town by the sea,", "One day, a girl named Lily",
    "In the year 1861", "It was a cold night and", "The river", "There are many kinds of", "My dear friend,",
    "Tom and his dog", "She was born in", "When the sun came up,", "The history of", "He opened the door and",
    "A small bird", "The city of", "They had walked all day", "The first",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("is_planted", [False, True])
@pytest.mark.parametrize(
    ("word", "is_calibrated", "target"), [("int8", False, 0.001), ("int4", False, 0.05), ("int4", True, 0.025)]
)
def test_pebble_loses_little(
    word: str, is_calibrated: bool, target: float, is_planted: bool, own_texts: tuple[list[str], list[str]]
) -> None:
    """Over texts drawn from the original the mean change is the divergence itself, which scatters far less."""
    folder = find_model("pebble")
    tokenizer = Tokenizer.load(folder)
    original, network = (load_network(folder, dtype="float32").network for _ in range(2))
    if is_planted:
        planted(network)
    schemes = uniform(network, linears=parse_scheme(word), table=parse_scheme("int8"))
    to_calibrate, to_measure = own_texts
    windows = None
    if is_calibrated:
        windows = calibration_windows(to_calibrate, tokenizer, n_tokens=2000, least=100)
    quantize_network(network, schemes, windows=windows)
    network.pack()
    found = divergence(original, network, tokenizer, to_measure)
    assert found.n_tokens > 30_000
    assert not found.change.is_rough
    # int8: 0.08% and 0.07% of 0.1%, the interval's end at 0.11% and 0.09%; the divergence, 0.044%, is surer.
    assert (found.change.value if word == "int8" else found.change.high) < target
    assert found.kl.high < target
