"""Noise is a pure function: known values, independence of batch, and the right distribution."""

import math

import torch

from gemsmith.infer.noise import GOLDEN, completion_streams, gumbel, noise_bits, scramble

MASK = (1 << 64) - 1


def slow_scramble(word: int) -> int:
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & MASK
    return word ^ (word >> 31)


def test_scramble_gives_the_published_splitmix64_sequence() -> None:
    # First values of SplitMix64 from the seed 1234567, as printed by Vigna's reference program.
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    counters = 1234567 + torch.arange(1, 5) * GOLDEN
    assert [word & MASK for word in scramble(counters).tolist()] == known


def test_words_of_either_sign_are_scrambled_as_unsigned_ones() -> None:
    words = torch.randint(-(2**63), 2**63 - 1, (1000,), generator=torch.Generator().manual_seed(1))
    assert [w & MASK for w in scramble(words).tolist()] == [slow_scramble(w & MASK) for w in words.tolist()]


def test_noise_belongs_to_seed_completion_position_and_token() -> None:
    token_ids = torch.arange(50)[None]
    base = (7, 0, 3)
    others = [(8, 0, 3), (7, 1, 3), (7, 0, 4)]

    def bits(seed: int, completion: int, position: int) -> torch.Tensor:
        stream = completion_streams(seed, torch.tensor([completion]))
        return noise_bits(stream, torch.tensor([position]), token_ids=token_ids)

    assert bits(*base).equal(bits(*base))
    for other in others:
        assert not (bits(*base) == bits(*other)).any()


def test_noise_does_not_depend_on_neighbors_or_candidate_order() -> None:
    streams = completion_streams(5, torch.arange(4))
    positions = torch.tensor([10, 11, 10, 900])
    token_ids = torch.stack([torch.randperm(30) for _ in range(4)])
    together = gumbel(streams, positions, token_ids=token_ids)
    for row in range(4):
        ordered = gumbel(streams[row : row + 1], positions[row : row + 1], token_ids=torch.arange(30)[None])
        assert together[row].equal(ordered[0, token_ids[row]])


def test_noise_has_the_moments_of_a_gumbel_variable() -> None:
    x = gumbel(completion_streams(3, torch.arange(8)), torch.arange(8), token_ids=torch.arange(50_000).expand(8, -1))
    assert x.isfinite().all()
    assert abs(x.double().mean() - 0.5772156649) < 0.008  # four standard errors of 400,000 draws
    assert abs(x.double().var() - math.pi**2 / 6) < 0.02
    # Gumbel's tail: P(x > t) = 1 - exp(-exp(-t)).
    for t in (2.0, 5.0, 8.0):
        share = 1 - math.exp(-math.exp(-t))
        assert abs((x > t).double().mean() - share) < 5 * math.sqrt(share / x.numel())


def test_neighboring_positions_and_completions_are_uncorrelated() -> None:
    token_ids = torch.arange(2000).expand(2, -1)
    pairs = [
        gumbel(completion_streams(0, torch.tensor([0, 1])), torch.tensor([5, 5]), token_ids=token_ids),
        gumbel(completion_streams(0, torch.tensor([0, 0])), torch.tensor([5, 6]), token_ids=token_ids),
        gumbel(
            completion_streams(torch.tensor([0, 1]), torch.tensor([0, 0])), torch.tensor([5, 5]), token_ids=token_ids
        ),
    ]
    for pair in pairs:
        assert abs(torch.corrcoef(pair)[0, 1]) < 0.1
