import math

import pytest
import torch
from torch import Tensor

from gemsmith.config import ARCHITECTURES, preset
from gemsmith.errors import CacheError
from gemsmith.model.cache import KVCache, cache_bytes, held_positions, n_places
from tiny import WINDOW, tiny_config


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_cache_bytes_follow_the_formula_for_every_preset(name: str) -> None:
    config, capacity = preset(name), min(8192, preset(name).max_seq_len)
    cache = KVCache(config, capacity=capacity, dtype=torch.bfloat16, device="meta")
    by_hand = 0
    for layer in config.layers:
        places = capacity if layer.window is None else min(capacity, layer.window + 512)
        by_hand += 2 * layer.n_kv_heads * layer.head_dim * places * 2
    assert cache.n_bytes == cache_bytes(config, capacity) == by_hand


def test_gemma_2_2b_at_8192_takes_three_quarters_of_a_full_cache_plus_the_slack() -> None:
    config = preset("gemma-2-2b")
    full = 26 * 2 * 4 * 256 * 8192 * 2
    slack = 13 * 2 * 4 * 256 * 512 * 2
    assert cache_bytes(config, 8192) == 0.75 * full + slack


def test_short_contexts_need_no_ring() -> None:
    assert n_places(4096, 1024, 512) == 1024
    assert n_places(4096, 8192, 512) == 4608
    assert n_places(None, 8192, 512) == 8192


@pytest.mark.parametrize(("length", "places"), [(0, 5), (3, 5), (5, 5), (6, 5), (13, 5)])
def test_ring_holds_the_last_positions_each_at_its_own_place(length: int, places: int) -> None:
    ring = [-1] * places
    for position in range(length):
        ring[position % places] = position
    assert held_positions(length, places).tolist() == ring


def test_slots_are_counted_apart() -> None:
    cache = KVCache(tiny_config(), n_slots=3, capacity=40, slack=4)
    cache.reserve(1, 0, 7)
    cache.reserve(2, 0, 2)
    cache.reserve(1, 7, 1)
    assert cache.lengths.tolist() == [0, 8, 2]
    cache.clear(1)
    assert cache.lengths.tolist() == [0, 0, 2]


def test_copied_slot_continues_the_same_document() -> None:
    cache = KVCache(tiny_config(), n_slots=2, capacity=40)
    cache.reserve(0, 0, 7)
    cache.keys[0][0].normal_()
    cache.copy_slot(0, 1)
    assert torch.equal(cache.keys[0][0], cache.keys[0][1])
    assert cache.lengths.tolist() == [7, 7]


def test_cache_refuses_what_does_not_fit() -> None:
    cache = KVCache(tiny_config(), capacity=10)
    with pytest.raises(CacheError, match="fit the cache's 10 tokens; got 0 \\+ 11"):
        cache.reserve(0, 0, 11)
    with pytest.raises(CacheError, match="continue where slot 0 ends, at 0; got 3"):
        cache.reserve(0, 3, 1)
    with pytest.raises(CacheError, match="one of the cache's 1; got 1"):
        cache.reserve(1, 0, 1)
    with pytest.raises(CacheError, match="at least 1; got 0"):
        KVCache(tiny_config(), n_slots=0)


def test_rollback_goes_back_no_further_than_the_slack_from_the_furthest_token() -> None:
    cache = KVCache(tiny_config(), capacity=60, slack=4)
    cache.reserve(0, 0, 4)
    for start in range(4, 40, 4):
        cache.reserve(0, start, 4)
    cache.rollback(3)
    with pytest.raises(CacheError, match=r"return to 36 or later, .*; got a return to 35"):
        cache.rollback(2)
    cache.rollback(1)
    assert cache.lengths.tolist() == [36]
    with pytest.raises(CacheError, match="within the 36 tokens of slot 0; got 37"):
        cache.rollback(37)
    cache.rollback(36)  # back to nothing needs no memory of what was
    assert cache.lengths.tolist() == [0]


def test_rollback_is_free_where_nothing_was_overwritten() -> None:
    cache = KVCache(tiny_config(), capacity=WINDOW + 4, slack=4)
    cache.reserve(0, 0, WINDOW + 4)
    cache.rollback(WINDOW)
    assert cache.lengths.tolist() == [4]


def test_rings_hold_what_was_not_overwritten_also_after_a_rollback() -> None:
    cache = KVCache(tiny_config(), n_slots=2, capacity=60, slack=4)
    cache.reserve(1, 0, 4)
    assert cache.first_held(0, 1) == 0
    for start in range(4, 40, 4):
        cache.reserve(1, start, 4)
    cache.rollback(3, 1)
    assert [cache.first_held(index, 1) for index in cache.keys] == [40 - WINDOW - 4, 0] * 2
    assert cache.first_held(0, 0) == 0


def test_a_resumed_slot_rolls_back_to_what_it_was_given_and_no_further() -> None:
    cache = KVCache(tiny_config(), capacity=60, slack=60)  # its own rings would never overwrite anything
    cache.resume(0, 40, first_held={0: 20, 1: 0, 2: 18, 3: 0})
    assert cache.first_held(0) == cache.first_held(2) == 20
    cache.rollback(40 - 20 - WINDOW)
    with pytest.raises(CacheError, match=f"return to {20 + WINDOW} or later, .*; got a return to {19 + WINDOW}"):
        cache.rollback(1)
    cache.clear()
    cache.resume(0, 40, first_held=dict.fromkeys(range(4), 0))
    cache.rollback(39)


def test_a_resumed_slot_that_holds_the_last_window_alone_stays_as_it_is() -> None:
    cache = KVCache(tiny_config(), capacity=60, slack=4)
    cache.resume(0, 40, first_held={0: 40 - WINDOW + 1})
    cache.rollback(0)
    with pytest.raises(CacheError, match="got a return to 39"):
        cache.rollback(1)


def test_int8_caches_count_their_scales() -> None:
    config = preset("gemma-2-2b")
    cache = KVCache(config, capacity=8192, n_slots=2, dtype=torch.int8, device="meta")
    n_vectors = 2 * (13 * 2 * 4 * 8192 + 13 * 2 * 4 * 4608)
    assert cache.n_bytes == cache_bytes(config, 8192, n_slots=2, dtype=torch.int8) == n_vectors * (256 + 4)
    assert cache.keys[0].dtype == torch.int8
    assert cache.key_scales[1].shape == cache.value_scales[1].shape == (2, 4, 8192)
    assert not KVCache(config, capacity=8, device="meta").key_scales


def written(k: Tensor, v: Tensor) -> KVCache:
    """Return an int8 cache with one pass written at the places 3 and 4 of slot 1."""
    cache = KVCache(tiny_config(), n_slots=2, capacity=6, dtype=torch.int8)
    cache.write(0, (torch.tensor([1, 1]), slice(None), torch.tensor([3, 4])), k, v)
    return cache


def test_vectors_are_rounded_to_their_largest_number_over_127() -> None:
    k, v = torch.randn(2, 2, 2, 12, generator=torch.Generator().manual_seed(0)).unbind(0)
    k[0, 0] = 0.0
    cache = written(k, v)
    for scales, store, x in ((cache.key_scales, cache.keys, k), (cache.value_scales, cache.values, v)):
        found = scales[0][1, :, 3:5].transpose(0, 1)
        torch.testing.assert_close(found, x.abs().amax(-1) / 127)
        values = store[0][1, :, 3:5].transpose(0, 1)
        steps = found.masked_fill(found == 0, 1.0)[..., None]
        torch.testing.assert_close(values.float(), (x / steps).round(), rtol=0, atol=0)
        assert values.abs().amax() == 127
    assert cache.key_scales[0][1, 0, 3] == 0
    keys, values = cache.read(0, slice(1, 2), slice(3, 5), torch.float32)
    assert ((keys[0].transpose(0, 1) - k).abs() <= k.abs().amax(-1, keepdim=True) / 253).all()
    assert ((values[0].transpose(0, 1) - v).abs() <= v.abs().amax(-1, keepdim=True) / 253).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_so(bad: float) -> None:
    k = torch.ones(2, 2, 12)
    k[0, 1, 5] = bad
    cache = written(k, torch.ones(2, 2, 12))
    assert cache.key_scales[0].isnan().nonzero().tolist() == [[1, 1, 3]]
    keys, _ = cache.read(0, slice(1, 2), slice(0, 6), torch.bfloat16)
    assert keys.dtype == torch.bfloat16
    assert keys[0, 1, 3].isnan().all()
    assert keys.isnan().sum() == 12


def test_copied_int8_slot_has_the_scales_too() -> None:
    cache = written(torch.randn(2, 2, 12), torch.randn(2, 2, 12))
    cache.copy_slot(1, 0)
    before, after = (cache.read(0, slice(i, i + 1), slice(0, 6), torch.float32) for i in (1, 0))
    assert before[0].abs().sum() > 0
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])


def test_cache_refuses_dtypes_it_cannot_hold() -> None:
    with pytest.raises(CacheError, match=r"one of float32, bfloat16, float16, int8 for a cache; got torch\.int16"):
        KVCache(tiny_config(), dtype=torch.int16)
