"""The network against transformers: an implementation that shares nothing with ours."""

import statistics

import pytest
import torch

from gemsmith.model.cache import KVCache
from gemsmith.model.layout import Layout
from oracle import oracle, oracle_logits
from tiny import FAMILIES, WINDOW, tiny_network

LENGTHS = (WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW + 3)
TOLERANCE = 1e-4


def ids_of(n_rows: int, n_tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 300, (n_rows, n_tokens), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n_tokens", LENGTHS)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_transformers_around_the_window(family: str, n_tokens: int) -> None:
    network, token_ids = tiny_network(family), ids_of(2, n_tokens)
    with torch.inference_mode():
        ours = network(token_ids)
    theirs = oracle_logits(oracle(network), token_ids)
    assert theirs.std() > 0.5  # a model whose logits hardly vary would match anything
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("chunk", [1, WINDOW - 3, WINDOW, 2 * WINDOW + 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_chunked_prefill_then_decode_equals_one_pass_of_transformers(family: str, chunk: int) -> None:
    network, token_ids = tiny_network(family), ids_of(1, 45)
    cache, pieces = KVCache(network.config, slack=WINDOW), []
    with torch.inference_mode():
        for start in range(0, 38, chunk):
            pieces.append(network(token_ids[:, start : min(start + chunk, 38)], cache=cache))
        for place in range(38, 45):
            pieces.append(network(token_ids[:, place : place + 1], cache=cache))
    theirs = oracle_logits(oracle(network), token_ids)
    torch.testing.assert_close(torch.cat(pieces, 1), theirs, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_batch_of_unequal_lengths_equals_each_alone(family: str) -> None:
    network, lengths = tiny_network(family), [3, 2 * WINDOW + 3, 1, WINDOW]
    rows = [ids_of(1, n, seed)[0] for seed, n in enumerate(lengths)]
    judge = oracle(network)
    with torch.inference_mode():
        flat = network.logits(network.hidden(torch.cat(rows), Layout.packed(lengths)))
        cache = KVCache(network.config, n_slots=4)
        cached = network.logits(network.hidden(torch.cat(rows), Layout.packed(lengths), cache=cache))
    for ours in (flat, cached):
        for row, logits in zip(rows, ours.split(lengths), strict=True):
            torch.testing.assert_close(logits, oracle_logits(judge, row[None])[0], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("n_back", [1, 5, WINDOW])
@pytest.mark.parametrize("family", FAMILIES)
def test_rolled_back_cache_equals_never_having_seen_the_tokens(family: str, n_back: int) -> None:
    network, token_ids, other = tiny_network(family), ids_of(1, 33), ids_of(1, 6, seed=9)
    cache = KVCache(network.config, slack=WINDOW)
    with torch.inference_mode():
        network(token_ids, cache=cache)
        cache.rollback(n_back)
        ours = network(other, cache=cache)
    whole = torch.cat([token_ids[:, : 33 - n_back], other], 1)
    theirs = oracle_logits(oracle(network), whole)[:, -6:]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_two_hundred_greedy_tokens_equal_transformers(family: str) -> None:
    network, prompt = tiny_network(family), ids_of(1, 9)
    cache, token_ids = KVCache(network.config, slack=WINDOW), prompt
    ours: list[int] = []
    with torch.inference_mode():
        for _ in range(200):
            token_ids = network(token_ids, cache=cache)[:, -1:].argmax(-1)
            ours.append(int(token_ids))
    theirs = oracle(network).generate(
        prompt, max_new_tokens=200, min_new_tokens=200, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    assert ours == theirs[0, 9:].tolist()
    assert len(set(ours)) > 5  # a loop of one token would prove little


def rms(x: torch.Tensor) -> float:
    return x.square().mean().sqrt().item()


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_error_is_no_larger_than_that_of_transformers(family: str) -> None:
    ratios = []
    for seed in range(5):
        narrow = tiny_network(family, seed=seed, dtype=torch.bfloat16)
        exact = tiny_network(family, seed=seed)
        exact.load_state_dict(narrow.state_dict())
        # The embedding scale is part of the model, not of its error: rounded in both.
        token_ids = ids_of(1, 24, seed)
        with torch.inference_mode():
            ours, truth = narrow(token_ids), exact(token_ids)
        theirs = oracle_logits(oracle(narrow), token_ids)
        ratios.append(rms(ours - truth) / rms(theirs - truth))
    assert statistics.median(ratios) <= 1.1, ratios
