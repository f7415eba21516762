"""Sampling against slow obvious versions, against transformers' processors, and in distribution."""

import math
import re
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process as hf

from gemsmith.errors import SamplingError
from gemsmith.infer.noise import completion_streams
from gemsmith.infer.penalties import History
from gemsmith.infer.sample import Sampling, adjusted, candidates, logprobs_of, pick, top_logprobs

PROMPT = [3, 3, 17, 40]


def random_logits(n_rows: int = 3, vocab_size: int = 300, *, seed: int = 0, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(n_rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * spread


def draw(logits: torch.Tensor, sampling: Sampling, n: int, *, seed: int = 0) -> list[int]:
    streams = completion_streams(seed, torch.zeros(n, dtype=torch.long))
    return pick(logits.expand(n, -1), sampling, streams=streams, positions=torch.arange(n)).tolist()


def dense(scores: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Lay the surviving candidates out over the vocabulary."""
    values, token_ids = candidates(scores, sampling)
    return torch.full_like(scores, -math.inf).scatter(1, token_ids, values)


def slow_survivors(scores: list[float], sampling: Sampling) -> set[int]:
    """Do what the docstring of Sampling says, one token at a time."""
    scores = [x / sampling.temperature for x in scores]
    kept = sorted(range(len(scores)), key=lambda i: -scores[i])
    if sampling.top_k is not None and sampling.top_k < len(kept):
        edge = scores[kept[sampling.top_k - 1]]
        kept = [i for i in kept if scores[i] >= edge]
    total = math.fsum(math.exp(scores[i] - scores[kept[0]]) for i in kept)
    share = {i: math.exp(scores[i] - scores[kept[0]]) / total for i in kept}
    if sampling.top_p < 1:
        mass, edge = 0.0, 0.0
        for i in kept:
            mass += share[i]
            if mass >= sampling.top_p:
                edge = share[i]
                break
        kept = [i for i in kept if share[i] >= edge]
    return {i for i in kept if share[i] >= sampling.min_p * share[kept[0]]}


CASES = [
    Sampling(top_k=1),
    Sampling(top_k=5),
    Sampling(top_k=5, temperature=0.3),
    Sampling(top_p=0.5),
    Sampling(top_p=0.9, temperature=1.7),
    Sampling(top_p=0.99, temperature=9.0),  # more tokens than the first look takes
    Sampling(top_p=1e-9),
    Sampling(top_k=100, top_p=0.99, temperature=5.0),
    Sampling(min_p=0.05),
    Sampling(min_p=1.0),
    Sampling(top_k=40, top_p=0.8, min_p=0.1, temperature=1.3),
    Sampling(top_k=1000),
]


@pytest.mark.parametrize("sampling", CASES, ids=str)
def test_survivors_equal_a_slow_obvious_version(sampling: Sampling) -> None:
    logits = random_logits(4)
    ours = dense(logits, sampling)
    for row in range(4):
        kept = set(ours[row].isfinite().nonzero()[:, 0].tolist())
        assert kept == slow_survivors(logits[row].double().tolist(), sampling)


@pytest.mark.parametrize("sampling", CASES, ids=str)
def test_survivors_and_their_probabilities_equal_transformers(sampling: Sampling) -> None:
    logits = random_logits(4, seed=1)
    chain = hf.LogitsProcessorList([hf.TemperatureLogitsWarper(float(sampling.temperature))])
    if sampling.top_k is not None:
        chain.append(hf.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        chain.append(hf.TopPLogitsWarper(sampling.top_p))
    if sampling.min_p > 0:
        chain.append(hf.MinPLogitsWarper(sampling.min_p))
    theirs = chain(torch.zeros(4, 1, dtype=torch.long), logits.clone())
    torch.testing.assert_close(dense(logits, sampling).softmax(-1), theirs.softmax(-1), rtol=1e-5, atol=1e-7)


def test_bias_then_repetition_penalty_equal_transformers() -> None:
    logits = random_logits(2)
    bias = {17: 2.5, 200: -4.0, 3: 0.5}
    sampling = Sampling(logit_bias=bias, repetition_penalty=1.3)
    chain = hf.LogitsProcessorList(
        [
            hf.SequenceBiasLogitsProcessor([[[token_id], value] for token_id, value in bias.items()]),
            hf.RepetitionPenaltyLogitsProcessor(1.3),
        ]
    )
    history = History([PROMPT, [5]], 300)
    history.add(torch.tensor([200, 201]))
    for row, seen in enumerate(([*PROMPT, 200], [5, 201])):
        theirs = chain(torch.tensor([seen]), logits[row : row + 1].clone())
        torch.testing.assert_close(adjusted(logits, sampling, history)[row], theirs[0])


def test_presence_and_frequency_count_the_completion_only() -> None:
    logits = random_logits(1)
    history = History([PROMPT], 300)
    for token_id in (9, 9, 9, 11):
        history.add(torch.tensor([token_id]))
    change = adjusted(logits, Sampling(presence_penalty=0.5, frequency_penalty=0.25), history) - logits
    expected = torch.zeros(1, 300)
    expected[0, 9], expected[0, 11] = -0.5 - 3 * 0.25, -0.5 - 0.25
    torch.testing.assert_close(change, expected, atol=1e-6, rtol=0)


def test_repetition_comes_before_presence_and_frequency() -> None:
    history = History([[0]], 2)
    history.add(torch.tensor([1]))
    sampling = Sampling(repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25)
    assert adjusted(torch.tensor([[4.0, 4.0]]), sampling, history).tolist() == [[2.0, 1.25]]
    assert adjusted(torch.tensor([[-4.0, -4.0]]), sampling, history).tolist() == [[-8.0, -8.75]]


def test_history_keeps_rows_apart_when_some_drop_out() -> None:
    history = History([[1], [2], [3]], 5)
    history.add(torch.tensor([4, 0, 0]))
    history.keep(torch.tensor([0, 2]))
    assert history.seen.nonzero().tolist() == [[0, 1], [0, 4], [1, 0], [1, 3]]
    assert history.counts.nonzero().tolist() == [[0, 4], [1, 0]]


def test_the_logits_handed_in_are_not_changed() -> None:
    logits = random_logits(2)
    before = logits.clone()
    history = History([PROMPT, PROMPT], 300)
    sampling = Sampling(0.7, 20, 0.9, 0.01, 1.2, 0.3, 0.3, {5: 1.0}, seed=1)
    pick(
        logits,
        sampling,
        streams=torch.zeros(2, dtype=torch.long),
        positions=torch.zeros(2, dtype=torch.long),
        history=history,
    )
    assert logits.equal(before)


def test_greedy_takes_the_best_token_after_penalties() -> None:
    logits = torch.tensor([[1.0, 5.0, 4.9]])
    zeros = torch.zeros(1, dtype=torch.long)
    greedy = Sampling(temperature=0.0)
    assert pick(logits, greedy, streams=zeros, positions=zeros).tolist() == [1]
    history = History([[1]], 3)
    repetitive = replace(greedy, repetition_penalty=1.5)
    assert pick(logits, repetitive, streams=zeros, positions=zeros, history=history).tolist() == [2]


def test_a_temperature_next_to_zero_is_greedy_and_never_nan() -> None:
    logits = random_logits(1)
    for temperature in (1e-6, 1e-30, 1e-45):
        assert set(draw(logits, Sampling(temperature=temperature), 20)) == {int(logits.argmax())}


@pytest.mark.parametrize(
    "sampling", [Sampling(top_k=2), Sampling(top_p=0.5), Sampling(top_p=0.5, top_k=3), Sampling(min_p=1.0)], ids=str
)
def test_tokens_that_tie_with_the_last_admitted_are_admitted(sampling: Sampling) -> None:
    scores = torch.tensor([[0.0, 2.0, 2.0, 2.0, -1.0, 2.0]])
    assert dense(scores, sampling).isfinite().tolist() == [[False, True, True, True, False, True]]


def test_many_ties_beyond_the_first_look_are_all_found() -> None:
    scores = torch.zeros(1, 5000)
    for sampling in (Sampling(top_k=3), Sampling(top_p=0.01)):
        assert dense(scores, sampling).isfinite().all()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-40, 40), min_size=1, max_size=150),
    st.one_of(st.none(), st.integers(1, 160)),
    st.floats(0.01, 1.0),
    st.floats(0.0, 1.0),
    st.sampled_from([0.25, 0.5, 1.0, 2.0]),
)
def test_survivors_are_never_none_and_always_the_best(
    quarters: list[int], top_k: int | None, top_p: float, min_p: float, temperature: float
) -> None:
    scores = torch.tensor([[x / 4 for x in quarters]])
    kept = dense(scores, Sampling(temperature, top_k, top_p, min_p))[0].isfinite()
    assert kept.any()
    if not kept.all():
        assert scores[0, kept].min() > scores[0, ~kept].max()


@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(temperature=0.6), Sampling(top_k=4), Sampling(top_p=0.8), Sampling(min_p=0.1)],
    ids=str,
)
def test_draws_follow_the_distribution_by_chi_square(sampling: Sampling) -> None:
    logits = torch.tensor([[1.0, 0.0, 2.0, -1.0, 0.5, 1.5, -3.0]])
    n = 20_000
    expected = dense(logits, sampling).softmax(-1)[0] * n
    counts = Counter(draw(logits, sampling, n, seed=11))
    assert all(expected[token_id] > 0 for token_id in counts)
    possible = (expected > 0).nonzero()[:, 0].tolist()
    statistic = sum((counts[i] - float(expected[i])) ** 2 / float(expected[i]) for i in possible)
    assert statistic < 24.3  # the 99.95% point of chi-square with 6 degrees of freedom, the most any case has


def test_a_rare_token_is_drawn_as_often_as_it_should_be() -> None:
    logits = torch.zeros(1, 20_000)
    logits[0, 0] = 11.7  # the other 19,999 share 14%
    n_rare = sum(token_id != 0 for token_id in draw(logits, Sampling(), 300))
    share = 19_999 / (19_999 + math.exp(11.7))
    assert abs(n_rare - 300 * share) < 4 * math.sqrt(300 * share)


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(top_k=7), Sampling(top_p=0.9), Sampling(top_p=0.98, temperature=3.0)]
)
def test_a_row_is_chosen_alone_as_in_a_batch(sampling: Sampling) -> None:
    logits = random_logits(6, 500)
    logits[0] *= 0.05  # so flat that the batch takes the bisecting path, which other rows alone do not
    streams, positions = completion_streams(2, torch.arange(6)), torch.tensor([4, 9, 9, 100, 0, 7])
    together = pick(logits, sampling, streams=streams, positions=positions).tolist()
    alone = [
        pick(logits[i : i + 1], sampling, streams=streams[i : i + 1], positions=positions[i : i + 1]).item()
        for i in range(6)
    ]
    assert together == alone


def test_logprobs_are_those_of_the_model() -> None:
    logits = random_logits(3)
    expected = logits.double().log_softmax(-1).float()
    chosen = torch.tensor([5, 0, 299])
    torch.testing.assert_close(logprobs_of(logits, chosen), expected.gather(1, chosen[:, None])[:, 0])
    values, token_ids = top_logprobs(logits, 4, n_pieces=300)
    torch.testing.assert_close(values, expected.sort(descending=True).values[:, :4])
    assert token_ids.equal(expected.sort(descending=True).indices[:, :4])


BAD = [
    ("temperature", math.nan, "nan"),
    ("temperature", math.inf, "inf"),
    ("temperature", -0.5, "-0.5"),
    ("top_k", 0, "0"),
    ("top_k", -3, "-3"),
    ("top_p", 0.0, "0.0"),
    ("top_p", 1.01, "1.01"),
    ("top_p", math.nan, "nan"),
    ("min_p", -0.1, "-0.1"),
    ("min_p", 1.5, "1.5"),
    ("repetition_penalty", 0.0, "0.0"),
    ("repetition_penalty", -1.0, "-1.0"),
    ("presence_penalty", math.inf, "inf"),
    ("frequency_penalty", math.nan, "nan"),
    ("logit_bias", {7: math.inf}, "inf"),
    ("logit_bias", {7: -math.inf}, "-inf"),
    ("logit_bias", {-7: 1.0}, "-7"),
    ("seed", -1, "-1"),
    ("seed", 2**63, str(2**63)),
]


@pytest.mark.parametrize(("name", "value", "shown"), BAD, ids=lambda x: str(x))
def test_a_setting_outside_its_range_is_refused_by_name_and_value(name: str, value: object, shown: str) -> None:
    with pytest.raises(SamplingError) as caught:
        Sampling(**{name: value})
    assert str(caught.value).startswith(name)
    assert f"got {shown}. " in str(caught.value)


@pytest.mark.parametrize(("name", "value"), [("temperature", "1"), ("top_p", True), ("top_k", 2.5), ("seed", 0.0)])
def test_a_setting_of_another_type_is_refused_too(name: str, value: object) -> None:
    sampling = Sampling()
    object.__setattr__(sampling, name, value)  # past the type checker of the test run, as users call it
    with pytest.raises(SamplingError, match=re.escape(f"got {value!r}. ")):
        sampling.__post_init__()


def test_sampling_is_frozen_and_hashable_and_owns_its_bias() -> None:
    bias = {1: 2.0}
    sampling = Sampling(logit_bias=bias)
    bias[1] = math.nan
    assert sampling.logit_bias == {1: 2.0}
    assert hash(sampling) == hash(Sampling(logit_bias={1: 2.0}))
    with pytest.raises(AttributeError):
        sampling.temperature = 2.0  # pyright: ignore[reportAttributeAccessIssue]
