from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from against_plain import numbers
from gemsmith.kernels import cached_attention, native
from gemsmith.kernels.cached_attention import Run, Stored
from gemsmith.kernels.quantized import round_vectors
from gemsmith.model import ops

pytestmark = pytest.mark.skipif(not native.is_loaded(), reason="no compiled kernels here; make kernels builds them")

# query heads, key heads, head size
HEADS = [(2, 1, 8), (4, 2, 24), (3, 3, 40), (8, 1, 33)]
CAPS = [None, 2.0, 50.0, 100.0]
# Three documents: one from its start, one far along, filler, one token.
RUNS: list[Run] = [(0, 70, 1, 0), (70, 103, 0, 150), (103, 110, -1, 0), (110, 111, 2, 9)]
N_SLOTS, LENGTHS = 3, {1: 70, 0: 183, 2: 10}
TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


def documents(n_kv_heads: int, head_dim: int, dtype: torch.dtype) -> dict[int, tuple[Tensor, Tensor]]:
    """Return keys and values of each slot's document, [length, K, H]."""
    return {
        slot: (
            numbers(length, n_kv_heads, head_dim, seed=slot, dtype=dtype),
            numbers(length, n_kv_heads, head_dim, seed=slot + 9, dtype=dtype),
        )
        for slot, length in LENGTHS.items()
    }


def stored_as(found: dict[int, tuple[Tensor, Tensor]], n_places: int, dtype: torch.dtype) -> Stored:
    """Put documents into a ring of n_places; what nobody wrote is NaN, as no one may look at it."""
    n_kv_heads, head_dim = found[0][0].shape[1:]
    parts = []
    for which in range(2):
        store = torch.full((N_SLOTS, n_kv_heads, n_places, head_dim), 99 if dtype == torch.int8 else float("nan"))
        store, scales = store.to(dtype), torch.full((N_SLOTS, n_kv_heads, n_places), float("nan"))
        for slot, document in found.items():
            for position, vector in enumerate(document[which]):
                place = (slot, slice(None), position % n_places)
                if dtype == torch.int8:
                    store[place], scales[place] = round_vectors(vector)
                else:
                    store[place] = vector.to(dtype)
        parts.append((store, scales if dtype == torch.int8 else None))
    (keys, key_scales), (values, value_scales) = parts
    return Stored(keys, values, key_scales, value_scales)


def by_the_definition(
    q: Tensor,
    found: dict[int, tuple[Tensor, Tensor]],
    runs: Sequence[Run],
    window: int | None,
    cap: float | None,
    *,
    scale: float = 0.3,
) -> Tensor:
    out = torch.zeros_like(q)
    for start, stop, slot, position in runs:
        if slot < 0:
            continue
        k, v = (x.transpose(0, 1)[None] for x in found[slot])
        distance = torch.arange(position, position + stop - start)[:, None] - torch.arange(k.shape[2])
        seen = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
        out[start:stop] = ops.plain_attention(q[None, start:stop], k, v, seen[None], scale=scale, cap=cap)[0]
    return out


def as_read(stored: Tensor, scales: Tensor | None, dtype: torch.dtype) -> Tensor:
    return (stored.float() * (1.0 if scales is None else scales[..., None])).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize(("window", "n_places"), [(None, 200), (20, 53), (20, 300), (64, 97)])
@pytest.mark.parametrize("cap", CAPS)
def test_attention_equals_the_plain_one(
    isa: str, dtype: torch.dtype, heads: tuple[int, int, int], window: int | None, n_places: int, cap: float | None
) -> None:
    n_heads, n_kv_heads, head_dim = heads
    runs = RUNS if n_places > 70 else RUNS[1:]  # a ring holds a window and the tokens of a pass
    q = numbers(111, n_heads, head_dim, seed=5, dtype=dtype)
    found = documents(n_kv_heads, head_dim, dtype)
    stored = stored_as(found, n_places, dtype)
    assert cached_attention.is_suitable(q, stored, runs)
    out = cached_attention.attention(q, stored, runs, window=window, scale=0.3, cap=cap)
    expected = by_the_definition(q, found, runs, window, cap)
    torch.testing.assert_close(out, expected, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])
    assert not out[103:110].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cache_dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_caches_of_every_dtype_are_read_as_they_are_widened(
    isa: str, dtype: torch.dtype, cache_dtype: torch.dtype
) -> None:
    q, found = numbers(111, 4, 24, seed=5, dtype=dtype), documents(2, 24, dtype)
    stored = stored_as(found, 97, cache_dtype)
    wide = Stored(
        *(as_read(*x, dtype) for x in ((stored.keys, stored.key_scales), (stored.values, stored.value_scales)))
    )
    out = cached_attention.attention(q, stored, RUNS, window=20, scale=0.3, cap=50.0)
    assert torch.equal(out, cached_attention.attention(q, wide, RUNS, window=20, scale=0.3, cap=50.0))
    expected = by_the_definition(q, found, RUNS, 20, 50.0)
    torch.testing.assert_close(out, expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("cap", CAPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_reads_the_same_whatever_pass_it_comes_in(isa: str, dtype: torch.dtype, cap: float | None) -> None:
    q, stored = numbers(600, 4, 24, seed=5, dtype=dtype), stored_as(documents(2, 24, dtype), 200, dtype)

    def read(start: int, stop: int) -> Tensor:
        return cached_attention.attention(
            q[start:stop], stored, [(0, stop - start, 0, start)], window=90, scale=0.3, cap=cap
        )

    whole = read(0, 183)
    assert torch.equal(torch.cat([read(0, 9), read(9, 100), read(100, 101), read(101, 183)]), whole)


def test_threads_change_nothing(isa: str) -> None:
    q, stored = numbers(111, 8, 24, seed=5), stored_as(documents(2, 24, torch.float32), 200, torch.float32)
    found, before = [], torch.get_num_threads()
    for n_threads in (1, 3):
        torch.set_num_threads(n_threads)
        found.append(cached_attention.attention(q, stored, RUNS, window=None, scale=0.3, cap=None))
    torch.set_num_threads(before)
    assert torch.equal(*found)


def test_what_is_not_a_number_stays_so(isa: str) -> None:
    q, found = numbers(111, 4, 24, seed=5), documents(2, 24, torch.float32)
    q[4, 1, 3] = float("nan")
    found[0][1][170] = float("inf")
    out = cached_attention.attention(q, stored_as(found, 200, torch.float32), RUNS, window=8, scale=0.3, cap=None)
    assert out[4, 1].isnan().all()
    assert not out[4, 0].isnan().any()
    assert not out[90:98].isfinite().any()
    assert out[5:70].isfinite().all()


def test_long_documents_and_heads_of_256(isa: str) -> None:
    """More than one chunk of keys, and items that begin within a document."""
    n, q = 1100, numbers(600, 2, 256, seed=5, dtype=torch.bfloat16)
    found = {0: (numbers(n, 1, 256, seed=1, dtype=q.dtype), numbers(n, 1, 256, seed=2, dtype=q.dtype))}
    runs: list[Run] = [(0, 600, 0, 500)]
    for window, n_places in ((None, n), (300, 900)):
        out = cached_attention.attention(
            q, stored_as(found, n_places, q.dtype), runs, window=window, scale=0.06, cap=50.0
        )
        torch.testing.assert_close(
            out, by_the_definition(q, found, runs, window, 50.0, scale=0.06), rtol=2e-2, atol=2e-2
        )


def test_only_what_it_can_do_is_given_to_it() -> None:
    q, stored = numbers(111, 4, 24, seed=5), stored_as(documents(2, 24, torch.float32), 97, torch.float32)
    assert cached_attention.is_suitable(q, stored, RUNS)
    assert not cached_attention.is_suitable(q, stored, [(0, 7, 0, 176)])
    assert not cached_attention.is_suitable(q.half(), stored, RUNS)
    assert not cached_attention.is_suitable(q[:, :3], stored, RUNS)
    assert not cached_attention.is_suitable(q.clone().requires_grad_(), stored, RUNS)
    half = Stored(stored.keys.half(), stored.values.half())
    assert not cached_attention.is_suitable(q, half, RUNS)


def test_shapes_are_known_without_computing() -> None:
    q, stored = numbers(11, 4, 24, seed=5).to("meta"), torch.empty(1, 2, 50, 24, device="meta")
    out = torch.ops.gemsmith.cached_attention(q, stored, stored, None, None, [0, 11, 0, 0], 0, 1.0, 0.0)
    assert (out.shape, out.device.type) == ((11, 4, 24), "meta")
