"""A budget of bytes is kept, and spent where it does most good."""

from pathlib import Path

import pytest
import torch

from gemsmith.errors import ConfigError
from gemsmith.kernels.quantized import Scheme
from gemsmith.recipes.budget import Choice, choose, measure, parse_size, spend
from gemsmith.recipes.quantize import calibration_windows, quantize_network
from gemsmith.weights.save import save_folder
from tiny import tiny_network
from vocab import small_tokenizer

CANDIDATES = (Scheme(8, None), Scheme(4, 8))
TEXTS = ["Once upon a time a wolf came to the river and met a little girl."] * 4


def windows() -> list:
    return calibration_windows(TEXTS, small_tokenizer(), n_tokens=60, least=10)


def test_the_step_that_costs_least_for_its_bytes_is_taken_first() -> None:
    int8, int4 = CANDIDATES
    choices = {
        ("a",): [Choice(None, 100, 0.0), Choice(int8, 50, 0.1), Choice(int4, 30, 1.0)],
        ("b",): [Choice(None, 100, 0.0), Choice(int8, 50, 0.4), Choice(int4, 30, 0.5)],
    }

    def found(size: int) -> list[Scheme | None] | None:
        chosen = choose(choices, size)
        return None if chosen is None else [choice.scheme for choice in chosen.values()]

    assert found(200) == [None, None]
    assert found(199) == [int8, None]
    assert found(149) == [int8, int4]
    assert found(79) == [int4, int4]
    assert found(59) is None


def test_measuring_leaves_the_network_as_it_was() -> None:
    network = tiny_network(vocab_size=2048)
    ids = torch.arange(5, 25)[None]
    before = network(ids)
    choices = measure(network, windows(), candidates=CANDIDATES)
    assert torch.equal(network(ids), before)
    # Four groups of linears in each block, and the table, which is kept in 8 bits at least.
    assert len(choices) == 4 * network.config.n_layers + 1
    assert [choice.scheme for choice in choices["embed_tokens",]] == [None, CANDIDATES[0]]
    for options in choices.values():
        dense, *others = options
        assert dense.divergence == 0.0
        assert all(other.divergence > 0 for other in others)
        assert [o.n_bytes for o in options] == sorted((o.n_bytes for o in options), reverse=True)


def test_no_more_log_probabilities_are_kept_than_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    from gemsmith.recipes import budget

    network = tiny_network(vocab_size=2048)
    passes = calibration_windows(TEXTS, small_tokenizer(), n_tokens=60, least=10)
    whole = measure(network, passes, candidates=CANDIDATES)
    monkeypatch.setattr(budget, "_SCORES_AT_ONCE", 7 * 2048)
    for names, options in measure(network, passes, candidates=CANDIDATES).items():
        for option, same in zip(options, whole[names], strict=True):
            assert option.divergence == pytest.approx(same.divergence, rel=1e-2, abs=1e-6)
    sizes = []
    plain = budget._logprobs

    def spy(*given: object) -> list[torch.Tensor]:
        parts = list(plain(*given))  # pyright: ignore[reportArgumentType]
        sizes.append((max(part.numel() for part in parts), sum(part.numel() for part in parts)))
        return parts

    monkeypatch.setattr(budget, "_logprobs", spy)
    monkeypatch.setattr(budget, "_SCORES", 19 * 2048)
    measure(network, passes, candidates=CANDIDATES)
    assert set(sizes) == {(7 * 2048, 19 * 2048)}


def test_a_pass_that_is_cut_keeps_its_documents_apart() -> None:
    from gemsmith.recipes.budget import _few

    whole = calibration_windows(TEXTS, small_tokenizer(), n_tokens=60, least=10)
    first = whole[0].layout.segments[0].n_tokens
    cut = _few([*whole, *whole], first + 5)
    assert len(cut) == 1
    assert [segment.n_tokens for segment in cut[0].layout.segments] == [first, 5]
    assert torch.equal(cut[0].token_ids, whole[0].token_ids[: first + 5])
    assert [len(x.token_ids) for x in _few([*whole, *whole], 70)] == [60, 10]


@pytest.mark.parametrize("size", [160_000, 200_000, 300_000])
def test_the_file_is_no_larger_than_the_budget(size: int, tmp_path: Path) -> None:
    network = tiny_network(vocab_size=2048)
    schemes = spend(network, size, windows(), candidates=CANDIDATES)
    quantize_network(network, schemes)
    n_bytes = (save_folder(tmp_path / "m", network) / "model.safetensors").stat().st_size
    assert 0.8 * size < n_bytes <= size


def test_a_budget_below_the_smallest_size_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"size must be at least [\d,]+ bytes for this model; got 9,000"):
        spend(tiny_network(vocab_size=2048), 9000, windows(), candidates=CANDIDATES)


@pytest.mark.parametrize(("text", "size"), [("24MB", 24_000_000), ("1.5 GiB", 3 << 29), ("300", 300), ("2kb", 2000)])
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["0", "-3MB", "24 apples", "", "nan", "inf", "0.2", "MB"])
def test_sizes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=f"size must be a number of bytes above 0; got '{text}'"):
        parse_size(text)
