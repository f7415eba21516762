"""The kernel chooses the plain path's tokens, over settings, sizes, ties and every instruction set.

Plain and compiled path define everything exactly but exponentials and logarithms in float64, which libraries
round differently in the last bit. That can change a token where sums of probabilities or noisy scores agree
to 1e-15; no test here comes near it.
"""

import itertools
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from gemsmith.infer.noise import completion_streams, gumbel
from gemsmith.infer.penalties import History
from gemsmith.infer.sample import Picker, Sampling, candidates, plain_pick
from gemsmith.kernels import native

pytestmark = pytest.mark.usefixtures("isa")

SETTINGS = [
    Sampling(temperature=0.0),
    Sampling(),
    Sampling(temperature=0.6),
    Sampling(temperature=1e-3),
    Sampling(temperature=1e-45),
    Sampling(temperature=1e39),
    Sampling(top_k=1),
    Sampling(top_k=50),
    Sampling(top_k=200, temperature=2.5),
    Sampling(top_k=10**6),
    Sampling(top_p=0.95),
    Sampling(top_p=0.999, temperature=4.0),
    Sampling(top_p=1e-9),
    Sampling(top_p=1 - 2**-53),
    Sampling(min_p=0.02),
    Sampling(min_p=1e-12, temperature=3.0),
    Sampling(min_p=1e-300),
    Sampling(min_p=1.0),
    Sampling(top_p=0.999, min_p=0.2),
    Sampling(0.9, 50, 0.95, 0.01, 1.1, 0.2, 0.3, {0: 1.5}),
    Sampling(1.2, None, 0.9, 0.0, 0.8, -0.2, 0.1),
    Sampling(temperature=0.0, repetition_penalty=1.3, frequency_penalty=0.7),
]


def random_logits(n_rows: int, vocab_size: int, *, seed: int, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(n_rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * spread


def random_history(n_rows: int, vocab_size: int, *, seed: int, n_prompt: int = 40, n_written: int = 20) -> History:
    generator = torch.Generator().manual_seed(seed)
    prompts = torch.randint(0, vocab_size, (n_rows, n_prompt), generator=generator).tolist()
    history = History(prompts, vocab_size)
    for _ in range(n_written):
        history.add(torch.randint(0, min(vocab_size, 30), (n_rows,), generator=generator))
    return history


def check(logits: torch.Tensor, sampling: Sampling, *, seed: int, history: History | None = None) -> torch.Tensor:
    """Assert that both paths choose the same tokens, and return them."""
    n_rows = len(logits)
    streams = completion_streams(seed, torch.arange(n_rows))
    positions = torch.arange(n_rows) * 7 + seed
    if sampling.has_penalties and history is None:
        history = random_history(*logits.shape, seed=seed)
    picker = Picker(sampling)
    assert picker._rule is not None
    assert picker._rule.serves(logits)
    ours = picker.pick(logits, streams=streams, positions=positions, history=history)
    theirs = plain_pick(logits, sampling, streams=streams, positions=positions, history=history)
    assert ours.tolist() == theirs.tolist()
    return ours


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_tokens_are_those_of_the_plain_path(sampling: Sampling) -> None:
    for vocab_size in (1, 2, 17, 63, 64, 65, 300, 8192):
        for seed, spread in enumerate((3.0, 0.3, 12.0)):
            logits = random_logits(40 if vocab_size < 1000 else 6, vocab_size, seed=seed, spread=spread)
            check(logits, sampling, seed=seed)


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_tokens_are_those_of_the_plain_path_over_a_whole_vocabulary(sampling: Sampling, isa: str) -> None:
    if isa not in (native.available()[0], native.available()[-1]):
        pytest.skip("the plainest and the best set are enough for 256,000 pieces")
    check(random_logits(1, 256_000, seed=5), sampling, seed=5)
    check(random_logits(1, 256_000, seed=6, spread=0.01), sampling, seed=6)


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_ties_are_treated_alike(sampling: Sampling) -> None:
    for seed, levels in enumerate((1, 2, 3, 10)):
        logits = random_logits(20, 500, seed=seed, spread=1.0).mul(levels / 3).round()
        check(logits, sampling, seed=seed)
        check(logits * 0.0, sampling, seed=seed)  # all equal, some of them -0
        check(logits - 1e30, sampling, seed=seed)


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_impossible_tokens_stay_so(sampling: Sampling) -> None:
    logits = random_logits(12, 300, seed=1)
    for n_possible in (1, 2, 40):
        masked = torch.full_like(logits, -math.inf)
        masked[:, 100 : 100 + n_possible] = logits[:, 100 : 100 + n_possible]
        chosen = check(masked, sampling, seed=n_possible, history=History([[5]] * 12, 300))
        assert ((chosen >= 100) & (chosen < 100 + n_possible)).all()


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf, -math.inf])
def test_rows_without_a_finite_best_give_the_first_of_it(sampling: Sampling, bad: float) -> None:
    logits = random_logits(4, 200, seed=2)
    logits[1, [7, 150]] = bad
    logits[2] = bad
    chosen = check(logits, sampling, seed=0, history=History([[5]] * 4, 200))
    if bad != -math.inf:
        assert chosen[1] == 7
    assert chosen[2] == 0


@pytest.mark.parametrize("top_k", [1, 2, 3, 7, 127, 128, 129, 1000, 8191, 8192, 8193])
def test_any_number_of_best_tokens(top_k: int) -> None:
    for seed in range(3):
        sampling = Sampling(top_k=top_k, temperature=5.0)
        check(random_logits(5, 8192, seed=seed), sampling, seed=seed)
        check(random_logits(5, 8192, seed=seed).round(), replace(sampling, top_p=0.5), seed=seed)
        check(random_logits(5, 8192, seed=seed).sort().values, replace(sampling, top_p=0.9), seed=seed)


def test_biased_and_penalized_tokens_are_chosen_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    for seed in range(30):
        biases = {int(i): float(x) for i, x in zip(torch.randperm(8192)[:30], torch.randn(30) * 4, strict=True)}
        repetition, presence, frequency = (torch.rand(3, generator=generator) * 2 + 0.01).tolist()
        sampling = Sampling(0.8, 40, 0.95, 0.001, repetition, presence, frequency, biases)
        history = random_history(4, 8192, seed=seed, n_prompt=600)
        logits = random_logits(4, 8192, seed=seed)
        logits[:, :30] += 6  # among these the completion repeats itself
        check(logits, sampling, seed=seed, history=history)
        check(logits, replace(sampling, temperature=0.0), seed=seed, history=history)


def test_rows_that_are_slices_or_shared_or_bfloat16() -> None:
    wide = random_logits(9, 700, seed=3)
    for logits in (wide[:, :641], wide[::2, 3:70], wide[:1].expand(9, -1), wide.bfloat16(), wide[:, 50:51]):
        for sampling in (Sampling(), Sampling(top_k=5), Sampling(repetition_penalty=1.2, logit_bias={0: 1.0})):
            check(logits, sampling, seed=4)


def test_scores_handed_in_and_history_are_only_read() -> None:
    logits, history = random_logits(2, 100, seed=0), random_history(2, 100, seed=0)
    before = [x.clone() for x in (logits, history.seen, history.counts)]
    check(logits, Sampling(0.7, 20, 0.9, 0.01, 1.2, 0.3, 0.3, {5: 1.0}), seed=0, history=history)
    assert all(x.equal(y) for x, y in zip(before, (logits, history.seen, history.counts), strict=True))


def test_a_picker_serves_batches_of_any_size() -> None:
    sampling = Sampling(0.9, 30, 0.9, repetition_penalty=1.2)
    picker = Picker(sampling)
    for n_rows, vocab_size in ((1, 100), (70, 5000), (3, 17), (1, 20_000)):
        logits, history = random_logits(n_rows, vocab_size, seed=1), random_history(n_rows, vocab_size, seed=1)
        streams, positions = completion_streams(8, torch.arange(n_rows)), torch.arange(n_rows)
        together = picker.pick(logits, streams=streams, positions=positions, history=history)
        assert together.equal(plain_pick(logits, sampling, streams=streams, positions=positions, history=history))


def test_threads_change_nothing() -> None:
    logits = random_logits(64, 3000, seed=2)
    streams, positions = completion_streams(0, torch.arange(64)), torch.arange(64)
    before = torch.get_num_threads()
    try:
        chosen = []
        for n_threads in (1, 2, 3):
            torch.set_num_threads(n_threads)
            picker = Picker(Sampling(top_p=0.9))
            chosen.append(picker.pick(logits, streams=streams, positions=positions).tolist())
    finally:
        torch.set_num_threads(before)
    assert chosen[0] == chosen[1] == chosen[2]


def test_history_is_recorded_as_the_plain_way_does(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = random_history(5, 60, seed=3)
    with monkeypatch.context() as patch:
        patch.setattr(native, "is_loaded", lambda: False)
        theirs = random_history(5, 60, seed=3)
    assert theirs.tables is None
    assert ours.seen.equal(theirs.seen)
    assert ours.counts.equal(theirs.counts)
    for row in range(5):
        listed = ours._token_ids[row, : ours._lengths[row]].tolist()
        assert sorted(listed) == theirs.seen[row].nonzero()[:, 0].tolist()
    ours.keep(torch.tensor([1, 4]))
    assert ours.seen.equal(theirs.seen[[1, 4]])
    sampling = Sampling(repetition_penalty=1.5, presence_penalty=0.5, frequency_penalty=0.1)
    for seed in range(20):
        check(random_logits(2, 60, seed=seed), sampling, seed=seed, history=ours)


# Every combination of these was drawn from a kernel-sized vocabulary: pages left out must be left out rightly.
DRAWN = [
    Sampling(temperature=t, top_k=k, top_p=p, min_p=m)
    for t, k, p, m in itertools.product((0.7, 1.5), (None, 6), (1.0, 0.8), (0.0, 0.05))
]


@pytest.mark.parametrize("sampling", DRAWN, ids=str)
def test_draws_follow_the_distribution_by_chi_square(sampling: Sampling) -> None:
    places = torch.tensor([3, 60, 64, 65, 130, 199, 255, 299])  # over several pages
    logits = torch.full((1, 300), -12.0)
    logits[0, places] = torch.tensor([1.0, 0.0, 2.0, -1.0, 0.5, 1.5, 0.7, -0.5])
    n = 20_000
    values, token_ids = candidates(logits, sampling)
    expected = torch.zeros(300).scatter(0, token_ids[0], values.softmax(-1)[0]) * n
    streams = completion_streams(17, torch.zeros(n, dtype=torch.long))
    chosen = Picker(sampling).pick(logits.expand(n, -1), streams=streams, positions=torch.arange(n))
    counts = Counter(chosen.tolist())
    assert all(expected[token_id] > 0 for token_id in counts)
    likely = [i for i in range(300) if expected[i] > 5]
    statistic = sum((counts[i] - float(expected[i])) ** 2 / float(expected[i]) for i in likely)
    # The 99.99% point of chi-square with 8 degrees of freedom, the most any case has: the rest counts as one.
    rest, found = n - float(expected[likely].sum()), n - sum(counts[i] for i in likely)
    statistic += (found - rest) ** 2 / rest if rest > 5 else 0.0
    assert statistic < 31.8


def test_rare_tokens_of_a_large_vocabulary_are_drawn_as_often_as_they_should_be() -> None:
    logits = torch.zeros(1, 20_000)
    logits[0, 12_345] = 11.7
    n = 2000
    streams = completion_streams(1, torch.zeros(n, dtype=torch.long))
    chosen = Picker(Sampling()).pick(logits.expand(n, -1), streams=streams, positions=torch.arange(n))
    share = 19_999 / (19_999 + math.exp(11.7))
    assert abs(int((chosen != 12_345).sum()) - n * share) < 4 * math.sqrt(n * share)
    rare = chosen[chosen != 12_345].double()
    assert abs(rare.mean() - 10_000) < 4 * 20_000 / math.sqrt(12 * len(rare))


def test_among_equal_scores_noise_alone_decides() -> None:
    logits = torch.full((50, 130), 5.0)
    assert check(logits, Sampling(temperature=0.0), seed=0).tolist() == [0] * 50
    noise = gumbel(
        completion_streams(0, torch.arange(50)), torch.arange(50) * 7, token_ids=torch.arange(130).expand(50, -1)
    )
    for sampling in (Sampling(), Sampling(temperature=1e-3), Sampling(top_k=1), Sampling(top_p=0.01)):
        assert check(logits, sampling, seed=0).equal(noise.argmax(-1))


def test_a_bias_beyond_the_scores_is_an_error_of_the_plain_path() -> None:
    zeros = torch.zeros(1, dtype=torch.long)
    with pytest.raises(RuntimeError, match=r"index 10 is out of bounds"):
        Picker(Sampling(logit_bias={10: 1.0})).pick(torch.zeros(1, 10), streams=zeros, positions=zeros)
