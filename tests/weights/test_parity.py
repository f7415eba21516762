"""`compare` calls the same models the same, and says where others part."""

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gemsmith.errors import ConfigError, DataError, ModelNotFoundError
from gemsmith.model.transformer import Transformer
from gemsmith.tokenizer import Tokenizer, train_tokenizer
from gemsmith.weights.folder import save_folder
from gemsmith.weights.parity import TOLERANCES, compare
from gemsmith.weights.parity_texts import fuzz_texts
from tiny import FAMILIES, WINDOW, tiny_config, tiny_network

TEXT = "the quick brown fox jumps over the lazy dog while seven small cats sing about rain. " * 6


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return vocabulary(seed=0)


def vocabulary(seed: int) -> Tokenizer:
    draw = random.Random(seed)
    return train_tokenizer((" ".join(draw.sample(TEXT.split(), 12)) for _ in range(300)), vocab_size=440)


@pytest.fixture
def save(tokenizer: Tokenizer, tmp_path: Path) -> Callable[..., Path]:
    def write(network: Transformer, name: str, *, with_tokenizer: Tokenizer | None = tokenizer) -> Path:
        return save_folder(tmp_path / name, network, tokenizer=with_tokenizer)

    return write


@pytest.fixture
def network() -> Transformer:
    return tiny_network(vocab_size=450)


def test_a_model_is_the_same_as_itself(network: Transformer, save: Callable[..., Path]) -> None:
    report = compare(save(network, "a"), save(network, "b"), text=TEXT)
    assert report.same
    assert report.max_logit_error == report.logit_kl == 0
    assert set(report.max_error_by_layer) == {"embedding", *(f"layers.{i}" for i in range(4))}
    assert report.n_tokens > 2 * WINDOW  # so that a window that differs would show
    assert report.n_texts == len(fuzz_texts())
    assert report.ppl_a == report.ppl_b
    assert report.dtype == "float32"
    assert report.tolerances == TOLERANCES["float32"]


@pytest.mark.parametrize("family", FAMILIES)
def test_our_reading_of_a_folder_is_that_of_transformers(family: str, save: Callable[..., Path]) -> None:
    folder = save(tiny_network(family, vocab_size=450), "a")
    report = compare(folder, f"transformers:{folder}", text=TEXT)
    assert report.same, report
    assert report.ppl_a == pytest.approx(report.ppl_b, rel=1e-4)
    assert 0 < report.max_logit_error < 1e-4
    assert len(report.layers) == 1 + len(tiny_config(family).layers)
    assert all(layer.scale > 0 for layer in report.layers)


def test_perplexity_is_exp_of_the_mean_nll(
    network: Transformer, tokenizer: Tokenizer, save: Callable[..., Path]
) -> None:
    folder = save(network, "a")
    report = compare(folder, folder, text=TEXT)
    ids, n = tokenizer.encode(TEXT), report.ppl_window
    assert n == 256
    total = 0.0
    for start in range(0, len(ids), n - 1):
        window = torch.tensor([[2, *ids[start : start + n - 1]]])
        logprobs = network(window)[0, :-1].double().log_softmax(-1)
        total -= logprobs.gather(1, window[0, 1:, None]).sum().item()
    assert report.ppl_a == pytest.approx(math.exp(total / len(ids)), rel=1e-5)


@pytest.mark.parametrize("place", ["layers.2.mlp.up_proj.weight", "layers.2.self_attn.k_proj.weight"])
def test_the_first_layer_and_token_that_differ_are_named(
    place: str, network: Transformer, save: Callable[..., Path]
) -> None:
    a = save(network, "a")
    with torch.no_grad():
        network.get_parameter(place)[0] += 2.0
    report = compare(a, save(network, "b"))
    assert not report.same
    assert report.first_divergence is not None
    assert report.first_divergence.layer == "layers.2"
    assert report.max_error_by_layer["layers.1"] == 0 < report.max_error_by_layer["layers.2"]
    # A key matters once there is another to be weighed against.
    assert report.first_divergence.token == (0 if "mlp" in place else 1)
    assert report.max_logit_error > 1e-3
    assert report.logit_kl > 1e-6


def test_a_change_behind_the_last_layer_shows_in_the_logits(network: Transformer, save: Callable[..., Path]) -> None:
    a = save(network, "a")
    with torch.no_grad():
        network.norm.weight[3] += 0.5
    report = compare(a, save(network, "b"))
    assert not report.same
    assert report.first_divergence is not None
    assert report.first_divergence.layer == "logits"


def test_one_row_of_the_head_no_probe_contains_is_noticed(network: Transformer, save: Callable[..., Path]) -> None:
    a = save(network, "a")
    with torch.no_grad():
        network.embed_tokens.weight[449] += 0.1  # a row without a piece
    report = compare(a, save(network, "b"))
    assert report.max_error_by_layer["layers.3"] == 0
    assert not report.same


def test_trap_a_missing_final_cap_is_noticed_although_no_token_changes(
    network: Transformer, save: Callable[..., Path]
) -> None:
    other = Transformer(network.config.replace(final_softcap=None))
    other.load_state_dict(network.state_dict())
    report = compare(save(network, "a"), save(other, "b"))
    assert not report.same
    assert [d.name for d in report.config_differences] == ["final_softcap"]
    assert (report.config_differences[0].a, report.config_differences[0].b) == (3.0, None)
    assert report.first_divergence is not None
    assert report.first_divergence.layer == "logits"


def test_trap_a_window_off_by_one_is_noticed_at_the_first_token_it_hides(
    network: Transformer, save: Callable[..., Path]
) -> None:
    layers = tuple(replace(x, window=WINDOW + 1) if x.window else x for x in network.config.layers)
    other = Transformer(network.config.replace(layers=layers))
    other.load_state_dict(network.state_dict())
    report = compare(save(network, "a"), save(other, "b"))
    assert [d.name for d in report.config_differences] == ["layers.0.window", "layers.2.window"]
    assert report.first_divergence is not None
    assert (report.first_divergence.layer, report.first_divergence.token) == ("layers.0", WINDOW)


def test_a_configuration_that_differs_is_enough_although_no_number_does(
    network: Transformer, save: Callable[..., Path]
) -> None:
    other = Transformer(network.config.replace(max_seq_len=128))
    other.load_state_dict(network.state_dict())
    report = compare(save(network, "a"), save(other, "b"))
    assert [d.name for d in report.config_differences] == ["max_seq_len"]
    assert report.max_logit_error == 0
    assert not report.same


def test_tokenizers_that_differ_are_shown_by_text_and_ids(
    network: Transformer, tokenizer: Tokenizer, save: Callable[..., Path]
) -> None:
    other = train_tokenizer(["a completely different vocabulary of other words"] * 50, vocab_size=438)
    report = compare(save(network, "a"), save(network, "b", with_tokenizer=other))
    assert not report.same
    assert report.max_logit_error == 0
    assert 10 == len(report.tokenizer_differences) < report.n_tokenizer_differences <= report.n_texts
    first = report.tokenizer_differences[0]
    assert first.ids_a == tuple(tokenizer.encode(first.text, control=True))
    assert first.ids_b == tuple(other.encode(first.text, control=True))


def test_a_missing_tokenizer_is_a_difference(network: Transformer, save: Callable[..., Path]) -> None:
    report = compare(save(network, "a"), save(network, "b", with_tokenizer=None))
    assert not report.same
    assert report.tokenizer_differences[0].ids_b is None


def test_models_of_other_shapes_are_compared_as_far_as_they_go(network: Transformer, save: Callable[..., Path]) -> None:
    small = tiny_network("gemma", vocab_size=445, max_seq_len=64)
    report = compare(save(network, "a"), save(small, "b"))
    assert not report.same
    assert {"family", "vocab_size", "max_seq_len", "layers.0.window"} <= {d.name for d in report.config_differences}
    assert report.first_divergence is not None


def test_rounding_to_bfloat16_is_a_difference_in_float32_and_none_in_bfloat16(
    network: Transformer, save: Callable[..., Path], tmp_path: Path
) -> None:
    a = save(network, "a")
    b = save_folder(tmp_path / "b", network, tokenizer=Tokenizer.load(a), dtype="bfloat16")
    assert not compare(a, b).same
    report = compare(a, b, dtype="bfloat16")
    assert report.same
    assert report.dtype == "bfloat16"
    assert report.tolerances.logit > TOLERANCES["float32"].logit


def test_weights_that_are_not_numbers_are_never_the_same(network: Transformer, save: Callable[..., Path]) -> None:
    with torch.no_grad():
        network.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    report = compare(save(network, "a"), save(network, "b"))
    assert not report.same
    assert report.first_divergence is not None
    assert report.first_divergence.layer == "layers.1"
    assert report.to_json()["max_logit_error"] is None


def test_the_report_becomes_json(network: Transformer, save: Callable[..., Path]) -> None:
    a = save(network, "a")
    with torch.no_grad():
        network.layers[0].mlp.up_proj.weight[0] += 1.0
    raw = json.loads(json.dumps(compare(a, save(network, "b")).to_json(), allow_nan=False))
    assert raw["same"] is False
    assert raw["max_logit_error"] > 0
    assert raw["first_divergence"]["layer"] == "layers.0"
    assert raw["tolerances"]["logit"] == 1e-3


def test_the_fuzz_corpus_is_fixed_and_hostile() -> None:
    texts = fuzz_texts()
    assert texts == fuzz_texts()
    assert len(texts) > 250
    assert not any(" " * 17 in text or "<bos>" in text for text in texts)  # where readers of one vocabulary differ
    for piece in ("<end_of_turn>", "\t\t", "👨‍👩‍👧‍👦", "e\u0301", "▁", "\r", " " * 16, "</td>", "日本"):
        assert any(piece in text for text in texts), piece


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_another_dtype_is_refused(dtype: str, network: Transformer, save: Callable[..., Path]) -> None:
    a = save(network, "a")
    with pytest.raises(ConfigError, match=rf"dtype must be one of float32, bfloat16; got '{dtype}'"):
        compare(a, a, dtype=dtype)


def test_an_empty_text_or_one_without_a_tokenizer_is_refused(network: Transformer, save: Callable[..., Path]) -> None:
    a = save(network, "a", with_tokenizer=None)
    with pytest.raises(DataError, match=r"text must hold words.*got ' \\n'"):
        compare(a, a, text=" \n")
    with pytest.raises(DataError, match=rf"must have a tokenizer to measure perplexity; got none in '{a}'"):
        compare(a, a, text="words")


def test_a_side_that_is_not_there_is_named() -> None:
    with pytest.raises(ModelNotFoundError, match="got '/no/such/folder'"):
        compare("transformers:/no/such/folder", "pebble")
