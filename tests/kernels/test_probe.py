"""Probes read and count what they say, on every instruction set; the rates themselves are this machine's."""

import pytest
import torch

from gemsmith.kernels import native, probe

pytestmark = pytest.mark.skipif(not native.is_loaded(), reason="no compiled kernels")


@pytest.mark.parametrize("n_words", [1, 31, 4096, 300_001])
def test_every_word_is_read(n_words: int, isa: str) -> None:
    words = torch.randint(-(1 << 62), 1 << 62, (n_words,), generator=torch.Generator().manual_seed(n_words))
    assert probe.sum_words(words.view(torch.uint8)) == sum(words.tolist()) % (1 << 64)


def test_products_are_counted_one_by_one(isa: str) -> None:
    lanes = {"portable": 1, "avx2": 8}.get(isa, 16)
    n_threads = torch.get_num_threads()
    assert probe.count_products("float32", 7) == 7 * 12 * lanes * n_threads
    has = {
        "bfloat16": isa in ("avx512_bf16", "amx"),
        "int8": isa != "portable",
        "bfloat16 tiles": isa == "amx",
    }
    per_lane = {"bfloat16": 2 * 12 * lanes, "int8": 4 * 12 * lanes, "bfloat16 tiles": 4 * 16 * 16 * 32}
    for kind, is_there in has.items():
        assert probe.count_products(kind, 5) == (5 * per_lane[kind] * n_threads if is_there else 0)


def test_rates_are_numbers_of_this_machine() -> None:
    assert 1e8 < probe.read_rate(1 << 22) < 1e13
    rate = probe.product_rate("float32")
    assert rate is not None
    assert 1e8 < rate < 1e14


def test_runs_are_long_enough_for_waking_threads_not_to_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose threads take 8 ms to wake and then do a million rounds per second."""
    clock, lengths = [0.0], []

    def count(kind: str, n_rounds: int) -> int:
        clock[0] += 0.008 + n_rounds / 1e6
        lengths.append(n_rounds)
        return 2 * n_rounds

    monkeypatch.setattr(probe, "count_products", count)
    monkeypatch.setattr(probe.time, "perf_counter", lambda: clock[0])
    assert probe.product_rate("float32") == pytest.approx(2 * lengths[-1] / (0.008 + lengths[-1] / 1e6))
    assert lengths[-1] >= 4e4


def test_a_kind_that_is_not_there_has_no_rate() -> None:
    before = native.isa()
    native.select("portable")
    try:
        assert probe.product_rate("bfloat16 tiles") is None
    finally:
        native.select(before)
