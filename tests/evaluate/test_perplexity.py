"""Perplexity of a file: against the definition, in windows, with an interval, and with errors that name the length."""

import gzip
import json
import math
from pathlib import Path

import pytest
import torch

from gemsmith.errors import DataError
from gemsmith.evaluate.perplexity import BLOCK, file_perplexity, perplexity
from gemsmith.model.transformer import Transformer
from gemsmith.tokenizer import Tokenizer, train_tokenizer
from tiny import tiny_network

TEXT = "the fox and the hare ran over the hill to the river and slept under an old tree while rain fell softly. " * 6


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([TEXT] * 20, vocab_size=450)


@pytest.fixture(scope="module")
def network(tokenizer: Tokenizer) -> Transformer:
    return tiny_network(vocab_size=tokenizer.vocab_size, max_seq_len=1024)


def nats_of(network: Transformer, token_ids: list[int]) -> list[float]:
    """Return the nats of all ids but the first, the obvious way."""
    with torch.no_grad():
        logprobs = network(torch.tensor([token_ids])).log_softmax(-1)[0]  # pyright: ignore
    return [-float(logprobs[i, token_id]) for i, token_id in enumerate(token_ids[1:])]


def test_equals_the_definition(network: Transformer, tokenizer: Tokenizer) -> None:
    found = perplexity(network, tokenizer, [TEXT])
    nats = nats_of(network, [tokenizer.bos_id, *tokenizer.encode(TEXT)])
    assert found.n_tokens == len(nats)
    assert found.perplexity.value == pytest.approx(math.exp(sum(nats) / len(nats)), rel=1e-5)
    assert found.bpb == pytest.approx(sum(nats) / math.log(2) / len(TEXT.encode()), rel=1e-5)
    assert found.perplexity.low < found.perplexity.value < found.perplexity.high


def test_windows_move_by_half_a_context(network: Transformer, tokenizer: Tokenizer) -> None:
    ids = [tokenizer.bos_id, *tokenizer.encode(TEXT)]
    wanted, stop = nats_of(network, ids[:32]), 32
    while stop < len(ids):
        end = min(stop + 16, len(ids))
        wanted += nats_of(network, ids[end - 32 : end])[-(end - stop) :]
        stop = end
    found = perplexity(network, tokenizer, [TEXT], context=32)
    assert found.context == 32
    assert found.n_tokens == len(wanted) == len(ids) - 1
    assert found.nll == pytest.approx(sum(wanted), rel=1e-5)


def test_a_plain_file_is_one_text_and_lines_are_many(
    network: Transformer, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    plain, lines = tmp_path / "book.txt", tmp_path / "texts.jsonl"
    plain.write_text(TEXT)
    lines.write_text("".join(json.dumps({"text": TEXT[i::3], "n": i}) + "\n" for i in range(3)))
    assert file_perplexity(network, tokenizer, plain) == perplexity(network, tokenizer, [TEXT])
    found = file_perplexity(network, tokenizer, lines)
    assert found.n_texts == 3
    assert found == perplexity(network, tokenizer, [TEXT[i::3] for i in range(3)])


def test_a_text_too_short_is_named_with_its_length(network: Transformer, tokenizer: Tokenizer) -> None:
    text = TEXT[:60]
    n = len(tokenizer.encode(text))
    assert 0 < n < 2 * BLOCK
    with pytest.raises(DataError, match=f"at least {2 * BLOCK} tokens for an interval; got {n} in 60 bytes"):
        perplexity(network, tokenizer, [text])
    with pytest.raises(DataError, match="got 0 in 0 bytes"):
        perplexity(network, tokenizer, [""])


@pytest.mark.parametrize("context", [0, 1, -3, 1025])
def test_a_context_the_model_has_not_is_named(context: int, network: Transformer, tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match=f"2 to 1024 tokens; got {context}"):
        perplexity(network, tokenizer, [TEXT], context=context)


def test_bad_files_are_named(network: Transformer, tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.txt"):
        file_perplexity(network, tokenizer, tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 90)
    with pytest.raises(DataError, match="byte 0xe9 at 3"):
        file_perplexity(network, tokenizer, tmp_path / "latin.txt")
    (tmp_path / "zero.txt").write_text(TEXT + "\0")
    with pytest.raises(DataError, match=f"a zero byte at {len(TEXT)}"):
        file_perplexity(network, tokenizer, tmp_path / "zero.txt")


def test_a_packed_text_is_unpacked(network: Transformer, tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "book.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
    assert file_perplexity(network, tokenizer, tmp_path / "book.txt.gz") == perplexity(network, tokenizer, [TEXT])


def test_units_of_the_interval_are_texts_or_blocks_that_no_two_texts_share(
    network: Transformer, tokenizer: Tokenizer
) -> None:
    short = TEXT[:40]
    n = [len(tokenizer.encode(text)) for text in (TEXT, short)]
    assert perplexity(network, tokenizer, [short] * 30).perplexity.n_units == 30
    found = perplexity(network, tokenizer, [TEXT, short])
    assert found.perplexity.n_units == -(-n[0] // BLOCK) + -(-n[1] // BLOCK)
    assert n[0] % BLOCK + n[1] <= BLOCK  # else blocks of both together would be as many
