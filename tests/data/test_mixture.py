"""Rows: nothing lost, little wasted, and an order that depends on seed and number alone."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemsmith.data.mixture import _BLOCK, Mixture, _draw
from gemsmith.data.packing import Piece, cut, fit, pack_epoch
from gemsmith.data.shards import Joined, Shard, build_shard
from gemsmith.data.sources import Source
from gemsmith.errors import DataError

NO_BREAKS = np.zeros(1000, np.bool_)


def shard(lengths: list[int], *, is_chat: bool = False, first: int = 10) -> Shard:
    """Return documents of ids that are all different."""
    starts = np.cumsum([first, *lengths])
    return build_shard(
        ((list(range(s, s + n)), [True] * n) for s, n in zip(starts, lengths, strict=False)), is_chat=is_chat
    )


def mixture(seed: int = 7) -> Mixture:
    shards = {"a": shard([30, 50, 20, 64, 9]), "b": shard([40] * 6, first=300), "c": shard([5] * 9, first=600)}
    shares = {"a": (5.0, 1.0), "b": (3.0, 1.0), "c": (2.0, -1.0)}
    sources = [Source(name, "", "", *both, max_epochs=10**6) for name, both in shares.items()]
    return Mixture(sources, shards, NO_BREAKS, seed)


@given(st.lists(st.integers(1, 64), min_size=1, max_size=60))
@settings(max_examples=60, deadline=None)
def test_fit_loses_nothing_and_overfills_nothing(lengths: list[int]) -> None:
    pieces = [Piece(100 * i, 100 * i + n) for i, n in enumerate(lengths)]
    rows = fit(pieces, row=64)
    assert sorted(p.start for row in rows for p in row) == [p.start for p in pieces]
    assert all(sum(p.n_tokens for p in row) <= 64 for row in rows)
    assert sum(sum(p.n_tokens for p in row) <= 32 for row in rows) <= 1  # two such rows would be one


def test_long_text_is_cut_after_a_break_and_covered_once() -> None:
    breaks = NO_BREAKS.copy()
    breaks[10 + 57] = True
    pieces = cut(shard([150]), 0, row=64, breaks=breaks)
    assert [(p.start, p.stop) for p in pieces] == [(0, 58), (58, 122), (122, 150)]


def test_conversation_longer_than_a_row_gives_nothing() -> None:
    chats = shard([20, 65], is_chat=True)
    assert cut(chats, 0, row=64, breaks=NO_BREAKS) == [Piece(0, 20)]
    assert cut(chats, 1, row=64, breaks=NO_BREAKS) == []


def test_epoch_backward_begins_where_forward_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemsmith.data.packing._GROUP", 2)
    many = shard([32] * 8)
    forward, backward = (
        [row[0].start for row in pack_epoch(many, row=32, breaks=NO_BREAKS, seed=(1,), is_backward=b)]
        for b in (False, True)
    )
    assert sorted(forward) == sorted(backward) == list(range(0, 256, 32))
    assert set(backward[:2]) == set(forward[-2:])


def test_every_row_comes_from_its_number_alone() -> None:
    one, other = mixture(), mixture()
    stage = one.stage(row=64)
    forward = [one.pieces(stage, number) for number in range(40)]
    backward = [other.pieces(stage, number) for number in reversed(range(40))]
    assert forward == backward[::-1]
    assert [mixture(seed=8).pieces(stage, number) for number in range(40)] != forward


def test_batches_do_not_depend_on_their_size() -> None:
    stage = mixture().stage(row=64)
    big = mixture().batch(stage, 0, 6)
    small = [mixture().batch(stage, first, 2) for first in (0, 2, 4)]
    for part in ("token_ids", "targets", "loss_mask", "documents", "positions"):
        assert (getattr(big, part).numpy() == np.concatenate([getattr(b, part) for b in small])).all()


def test_shares_are_kept() -> None:
    mixed = mixture()
    counts = Counter(mixed.place(mixed.stage(row=64), number)[0] for number in range(2000))
    assert [round(counts[name] / 2000, 1) for name in "abc"] == [0.5, 0.3, 0.2]


def test_late_shares_replace_the_main_ones() -> None:
    mixed = mixture()
    counts = Counter(mixed.place(mixed.stage(row=64, is_late=True), number)[0] for number in range(2000))
    assert counts["c"] / 2000 == pytest.approx(0.5, abs=0.05)  # 1 : 1 : 2, its share having no late value


def test_place_counts_rows_of_its_source_over_blocks() -> None:
    mixed = mixture(seed=1234)
    stage = mixed.stage(row=64)
    counts: Counter[str] = Counter()
    for number in range(_BLOCK + 300):
        name, index = mixed.place(stage, number)
        assert index == counts[name]
        counts[name] += 1


def test_place_far_into_a_run_is_found_without_what_lies_before_it() -> None:
    mixed = mixture(seed=5)
    stage = mixed.stage(row=64)
    _draw.cache_clear()
    name, index = mixed.place(stage, 10**12)
    assert _draw.cache_info().misses == 1
    assert index / 10**12 == pytest.approx({"a": 0.5, "b": 0.3, "c": 0.2}[name], abs=1e-4)


def test_share_that_never_gets_a_row_is_refused() -> None:
    sources = [Source("a", "", "", 1.0), Source("b", "", "", 1e-7)]
    mixed = Mixture(sources, {"a": shard([9]), "b": shard([9])}, NO_BREAKS, 1)
    with pytest.raises(DataError, match=r"share must be above 1/65536 of all; got .*e-0[78] .* in source 'b'"):
        mixed.stage(row=64)
    with pytest.raises(DataError, match="share must be above 0 for one source at least; got 0 for all"):
        Mixture([Source("a", "", "", 0.0)], {"a": shard([9])}, NO_BREAKS, 1).stage(row=64)


def test_row_holds_documents_after_bos_with_the_next_ids_as_targets() -> None:
    mixed = mixture()
    stage = mixed.stage(row=64)
    number = next(n for n in range(40) if len(mixed.pieces(stage, n)[1]) > 1)
    name, pieces = mixed.pieces(stage, number)
    batch = mixed.batch(stage, number, 1)
    start = 0
    for index, piece in enumerate(pieces):
        ids = mixed.shards[name].token_ids[piece.start : piece.stop].tolist()
        here = slice(start, start + len(ids))
        assert batch.token_ids[0, here].tolist() == [2, *ids[:-1]]
        assert batch.targets[0, here].tolist() == ids
        assert batch.positions[0, here].tolist() == list(range(len(ids)))
        assert set(batch.documents[0, here].tolist()) == {index}
        start += len(ids)
    assert batch.loss_mask[0].tolist() == [True] * start + [False] * (64 - start)
    assert not set(batch.documents[0, start:].tolist()) & set(range(len(pieces)))


def test_too_many_epochs_are_refused() -> None:
    few = Mixture([Source("a", "", "", 1.0, max_epochs=2)], {"a": shard([60, 60])}, NO_BREAKS, 1)
    stage = few.stage(row=64)
    assert [few.pieces(stage, number)[0] for number in range(4)] == ["a"] * 4
    with pytest.raises(DataError, match="'a' must not be seen more than 2 times; got row 4"):
        few.pieces(stage, 4)


def test_rows_too_short_for_every_conversation_are_refused() -> None:
    chats = Mixture([Source("a", "", "", 1.0)], {"a": shard([60, 70], is_chat=True)}, NO_BREAKS, 1)
    with pytest.raises(DataError, match="conversations of 'a'; got 32"):
        chats.batch(chats.stage(row=32), 0, 1)


def test_source_without_documents_is_refused() -> None:
    with pytest.raises(DataError, match="at least one document to train on; got none"):
        build_shard([], is_chat=False)


def test_ids_take_two_bytes_as_long_as_they_fit() -> None:
    assert build_shard([([65535], [True])], is_chat=False).token_ids[:1].dtype == np.uint16
    assert build_shard([([65536], [True])], is_chat=False).token_ids[:1].dtype == np.uint32


def test_id_beyond_the_vocabulary_is_named_with_its_document() -> None:
    for lengths in ([9, 60], [9, 70]):  # found when a row is filled, and when a long text is cut
        mixed = Mixture([Source("a", "", "", 1.0)], {"a": shard(lengths, first=950)}, NO_BREAKS, 1)
        with pytest.raises(DataError, match=r"below the vocabulary's 1000; got 1\d\d\d in document 2"):
            mixed.batch(mixed.stage(row=64), 0, 3)


def test_epoch_holds_every_token_once_as_a_target() -> None:
    """Each with what precedes it in its document, or BOS, and its place from where its document was cut."""
    many = shard([30, 150, 64, 1, 65, 9, 9, 400], first=10)
    mixed = Mixture([Source("a", "", "", 1.0, max_epochs=1)], {"a": many}, NO_BREAKS, 3)
    stage = mixed.stage(row=64)
    n_rows = len(pack_epoch(many, row=64, breaks=NO_BREAKS, seed=(1,)))
    batch = mixed.batch(stage, 0, n_rows)
    assert sorted(batch.targets[batch.loss_mask].tolist()) == many.token_ids[:].tolist()
    for row in range(n_rows):
        for place in range(64):
            target, position = int(batch.targets[row, place]), int(batch.positions[row, place])
            if not batch.loss_mask[row, place]:
                continue
            if position == 0:
                assert batch.token_ids[row, place] == 2
                assert place == 0 or batch.documents[row, place] != batch.documents[row, place - 1]
            else:
                assert batch.token_ids[row, place] == target - 1
                assert batch.documents[row, place] == batch.documents[row, place - 1]
    with pytest.raises(DataError, match="'a' must not be seen more than 1 times"):
        mixed.batch(stage, n_rows, 1)


def test_conversations_keep_their_loss_masks() -> None:
    chats = build_shard([([20, 21, 22, 1], [False, False, True, True]), ([30, 1], [False, True])], is_chat=True)
    mixed = Mixture([Source("a", "", "", 1.0)], {"a": chats}, NO_BREAKS, 1)
    batch = mixed.batch(mixed.stage(row=8), 0, 1)
    assert batch.targets[0, :6].tolist() == [20, 21, 22, 1, 30, 1]
    assert batch.loss_mask[0].tolist() == [False, False, True, True, False, True, False, False]


def test_batch_says_what_lies_in_each_row() -> None:
    mixed = Mixture([Source("a", "", "", 1.0)], {"a": shard([60, 70])}, NO_BREAKS, 1)
    assert mixed.batch(mixed.stage(row=64), 0, 3).sources == ("a: document 2", "a: document 1", "a: document 2")


def test_arrays_in_several_files_read_as_one() -> None:
    whole = np.arange(10)
    joined = Joined([whole[:4], whole[4:5], whole[5:]])
    for start in range(11):
        for stop in range(start, 11):
            assert joined[start:stop].tolist() == whole[start:stop].tolist()
    assert len(joined) == 10


def test_old_epochs_leave_memory_and_come_back_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemsmith.data.mixture._MAX_EPOCHS_HELD", 0)
    few = Mixture([Source("a", "", "", 1.0)], {"a": shard([60, 50, 40])}, NO_BREAKS, 1)
    stage = few.stage(row=64)
    places = [few.pieces(stage, number) for number in range(9)]
    assert len(few._held) == 1
    assert [few.pieces(stage, number) for number in range(9)] == places
