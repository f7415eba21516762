"""Bits per byte: against the definition, and the same however texts are laid out."""

import json
import math
from pathlib import Path

import pytest
import torch

from gemsmith.config import LayerSpec, ModelConfig
from gemsmith.errors import DataError
from gemsmith.evaluate.bpb import bits_per_byte, file_bits_per_byte
from gemsmith.model.transformer import Transformer
from gemsmith.tokenizer import Tokenizer, train_tokenizer
from gemsmith.train.initial import initial_weights

TEXTS = ["the fox and the hare", "a brave fox ran — and ran — and ran over the hill to the river", "é"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([" ".join(TEXTS)] * 20, vocab_size=430)


@pytest.fixture(scope="module")
def network(tokenizer: Tokenizer) -> Transformer:
    layer = LayerSpec("global", 2, 1, 8, 24, attn_scale=8**-0.5, attn_softcap=3.0)
    config = ModelConfig("gemma2", tokenizer.vocab_size, 16, 64, (layer,), final_softcap=5.0)
    network = Transformer(config)
    network.load_state_dict(initial_weights(config, seed=3))
    return network


def nll(network: Transformer, token_ids: list[int]) -> float:
    """Return the summed nats of all ids but the first, the obvious way."""
    with torch.no_grad():
        logprobs = network(torch.tensor([token_ids])).log_softmax(-1)[0]
    return -sum(float(logprobs[i, token_id]) for i, token_id in enumerate(token_ids[1:]))


def test_equals_the_definition(network: Transformer, tokenizer: Tokenizer) -> None:
    found = bits_per_byte(network, tokenizer, TEXTS)
    ids = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in TEXTS]
    assert found.n_bytes == sum(len(text.encode()) for text in TEXTS)
    assert found.n_tokens == sum(len(i) - 1 for i in ids)
    assert found.bpb == pytest.approx(sum(nll(network, i) for i in ids) / math.log(2) / found.n_bytes, rel=1e-5)


def test_long_text_is_scored_once_in_moving_windows(network: Transformer, tokenizer: Tokenizer) -> None:
    text = TEXTS[1]
    ids = [tokenizer.bos_id, *tokenizer.encode(text)]
    assert len(ids) > 14
    wanted, stop = nll(network, ids[:8]), 8
    while stop < len(ids):
        end = min(stop + 4, len(ids))
        window = ids[end - 8 : end]
        wanted += nll(network, window) - nll(network, window[: 8 - (end - stop)])
        stop = end
    found = bits_per_byte(network, tokenizer, [text], max_seq_len=8)
    assert found.nll == pytest.approx(wanted, rel=1e-5)
    assert found.n_tokens == len(ids) - 1


def test_neighbours_change_nothing(network: Transformer, tokenizer: Tokenizer) -> None:
    together = bits_per_byte(network, tokenizer, TEXTS).nll
    assert together == pytest.approx(sum(bits_per_byte(network, tokenizer, [t]).nll for t in TEXTS), rel=1e-6)


def test_reads_a_field_of_json_lines(network: Transformer, tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"body": text}) + "\n" for text in TEXTS))
    found = file_bits_per_byte(network, tokenizer, path, field="body")
    assert found == bits_per_byte(network, tokenizer, TEXTS)


def test_nothing_to_score_is_refused(network: Transformer, tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="got none in 1 texts"):
        bits_per_byte(network, tokenizer, [""])
    with pytest.raises(DataError, match="max_seq_len must be at least 2; got 1"):
        bits_per_byte(network, tokenizer, TEXTS, max_seq_len=1)
