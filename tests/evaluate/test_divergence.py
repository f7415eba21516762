"""Divergence: against the definition, zero for equals, with an interval that covers."""

import math
from contextlib import suppress
from pathlib import Path

import pytest
import torch

import gemsmith as gs
from gemsmith.errors import ConfigError, DataError, TokenizerError
from gemsmith.evaluate.divergence import check_same_vocabulary, divergence
from gemsmith.model.layout import Layout
from gemsmith.model.transformer import Transformer
from gemsmith.tokenizer import train_tokenizer
from tiny import tiny_network
from vocab import small_tokenizer

TEXTS = ["the fox and the hare", "a brave fox ran over the hill to the river", "é", "", "one day a wolf came " * 30]


def networks() -> tuple[Transformer, Transformer]:
    return tiny_network(vocab_size=2048, max_seq_len=64), tiny_network(vocab_size=2048, max_seq_len=64, seed=1)


def test_equals_the_definition() -> None:
    a, b = networks()
    found = divergence(a, b, small_tokenizer(), TEXTS[:3])
    sums, n_tokens, n_same = [0.0, 0.0, 0.0], 0, 0
    for text in TEXTS[:3]:
        ids = [small_tokenizer().bos_id, *small_tokenizer().encode(text)]
        with torch.no_grad():
            p, q = (network(torch.tensor([ids]))[0].log_softmax(-1).double() for network in (a, b))
        for i, token_id in enumerate(ids[1:]):
            sums[0] -= float(p[i, token_id])
            sums[1] -= float(q[i, token_id])
            sums[2] += float((p[i].exp() * (p[i] - q[i])).sum())
            n_same += int(p[i].argmax() == q[i].argmax())
        n_tokens += len(ids) - 1
    assert (found.n_documents, found.n_tokens) == (3, n_tokens)
    assert found.perplexity == pytest.approx((math.exp(sums[0] / n_tokens), math.exp(sums[1] / n_tokens)), rel=1e-4)
    assert found.kl.value == pytest.approx(sums[2] / n_tokens, rel=1e-4)
    assert found.change.value == pytest.approx(math.exp((sums[1] - sums[0]) / n_tokens) - 1, rel=1e-3)
    assert found.same_choice == n_same / n_tokens


def test_a_model_does_not_differ_from_itself() -> None:
    a, _ = networks()
    found = divergence(a, a, small_tokenizer(), TEXTS)
    assert (found.kl.value, found.kl.high, found.change.low, found.change.high) == (0.0, 0.0, 0.0, 0.0)
    assert found.same_choice == 1.0
    assert found.n_documents == 4


def test_intervals_surround_their_value_and_narrow_with_more_texts() -> None:
    a, b = networks()
    few, many = (divergence(a, b, small_tokenizer(), TEXTS[:2] * n) for n in (1, 20))
    for found in (few, many):
        assert found.kl.low <= found.kl.value <= found.kl.high
        assert found.change.low <= found.change.value <= found.change.high
    assert many.kl.high - many.kl.low < 0.5 * (few.kl.high - few.kl.low)


@pytest.mark.parametrize("n_tokens", [2, 5, 20, 47])
def test_no_more_is_scored_than_was_asked_for(n_tokens: int) -> None:
    a, b = networks()
    found = divergence(a, b, small_tokenizer(), TEXTS[:2] * 30, n_tokens=n_tokens)
    assert found.n_tokens == n_tokens
    assert found.n_documents == min(n_tokens, found.kl.n_units) >= min(n_tokens, 10)


def test_one_long_text_leaves_room_for_others() -> None:
    a, b = networks()
    found = divergence(a, b, small_tokenizer(), ["one day a wolf came " * 30, *TEXTS[:2]], n_tokens=40)
    assert found.n_documents == 3
    assert found.n_tokens == 12
    assert found.kl.is_rough


@pytest.mark.parametrize("of", [0, 1])
def test_ids_stand_where_the_network_stands(of: int, monkeypatch: pytest.MonkeyPatch) -> None:
    places = []

    def hidden(self: Transformer, token_ids: torch.Tensor, layout: Layout, **_: object) -> torch.Tensor:
        places.append((token_ids.device, layout.positions.device, self.device))
        return torch.zeros(len(token_ids), self.config.d_model)

    monkeypatch.setattr(Transformer, "hidden", hidden)
    monkeypatch.setattr(Transformer, "logits", lambda self, x: torch.zeros(len(x), self.config.vocab_size))
    a, b = networks()
    (a, b)[of].to("meta")
    with suppress(RuntimeError, NotImplementedError):  # nothing can be read from this device
        divergence(a, b, small_tokenizer(), TEXTS)
    assert places
    assert all(ids == layout == own for ids, layout, own in places[:2])


@pytest.mark.gpu
@pytest.mark.parametrize("cache_dtype", [None, torch.int8])
def test_an_accelerator_finds_the_same(cache_dtype: torch.dtype | None) -> None:
    a, b = networks()
    wanted = divergence(a, b, small_tokenizer(), TEXTS, cache_dtype=cache_dtype)
    for network in (b, a):
        network.to("cuda")
        found = divergence(a, b, small_tokenizer(), TEXTS, cache_dtype=cache_dtype)
        assert found.kl.value == pytest.approx(wanted.kl.value, rel=1e-3)
        assert found.perplexity == pytest.approx(wanted.perplexity, rel=1e-3)


def test_models_of_other_vocabularies_are_refused() -> None:
    ours = small_tokenizer()
    small = train_tokenizer(["the fox ran home and slept under an old tree"] * 50, vocab_size=440, n_threads=1)
    other = train_tokenizer(["a wolf came by and met one small girl quietly"] * 50, vocab_size=440, n_threads=1)
    check_same_vocabulary(ours, small_tokenizer())
    with pytest.raises(TokenizerError, match=r"the same vocabulary.*; got 2,048 and 440 pieces"):
        check_same_vocabulary(ours, small)
    with pytest.raises(TokenizerError, match=r"got b'.*' and b'.*' for id \d+\."):
        check_same_vocabulary(small, other)
    a, _ = networks()
    with pytest.raises(ConfigError, match=r"vocabularies of one size.*; got 2,048 and 300"):
        divergence(a, tiny_network(vocab_size=300), ours, TEXTS)


def test_one_document_gives_no_interval() -> None:
    a, b = networks()
    with pytest.raises(DataError, match="texts must be at least 2 with something to score; got 1"):
        divergence(a, b, small_tokenizer(), ["the fox", ""])


def test_a_float_cache_changes_nothing_and_an_int8_cache_little() -> None:
    a, b = networks()
    same = divergence(a, a, small_tokenizer(), TEXTS, cache_dtype=torch.float32)
    assert abs(same.kl.value) < 1e-6
    rounded = divergence(a, a, small_tokenizer(), TEXTS, cache_dtype=torch.int8)
    other = divergence(a, b, small_tokenizer(), TEXTS)
    assert 0 < rounded.kl.value < 5e-4 * other.kl.value


def test_pebble_loses_next_to_nothing_by_an_int8_cache() -> None:
    lm = gs.load("pebble")
    card = (Path(gs.__file__).parent / "pebble/README.md").read_text()
    texts = [part for part in card.split("\n\n") if len(part) > 100]
    found = divergence(lm.network, lm.network, lm.tokenizer, texts, n_tokens=6000, cache_dtype=torch.int8)
    plain = divergence(lm.network, lm.network, lm.tokenizer, texts, n_tokens=6000, cache_dtype=lm.dtype)
    assert found.n_tokens > 2000
    assert abs(found.change.value) < 0.002
    assert found.kl.value < plain.kl.value + 5e-4
    assert found.same_choice > 0.97
