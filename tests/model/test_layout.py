import pytest
import torch

from gemsmith.errors import ConfigError
from gemsmith.model.layout import Layout, visible


def test_packed_documents_count_positions_from_their_own_start() -> None:
    layout = Layout.packed([3, 1, 2], starts=[0, 9, 4], slots=[5, 2, 0])
    assert layout.documents.tolist() == [5, 5, 5, 2, 0, 0]
    assert layout.positions.tolist() == [0, 1, 2, 9, 4, 5]
    assert layout.n_rows == 1
    assert [(s.start, s.stop, s.slot, s.position) for s in layout.segments] == [
        (0, 3, 5, 0),
        (3, 4, 2, 9),
        (4, 6, 0, 4),
    ]


def test_equal_lengths_in_consecutive_slots_are_rows() -> None:
    assert Layout.packed([4, 4, 4]).n_rows == 3
    assert Layout.packed([4, 4], slots=[1, 2]).n_rows == 2
    assert Layout.packed([4, 4], slots=[2, 1]).n_rows == 1
    assert Layout.packed([4, 3]).n_rows == 1


def test_chunks_cover_every_row_once_and_in_order() -> None:
    layout = Layout.packed([7, 2, 5], slots=[0, 1, 2])
    passes = layout.chunks(3)
    assert [rows.tolist() for rows, _ in passes] == [[0, 1, 2, 7, 8, 9, 10, 11], [3, 4, 5, 12, 13], [6]]
    for rows, piece in passes:
        assert torch.equal(piece.documents, layout.documents[rows])
        assert torch.equal(piece.positions, layout.positions[rows])
        for segment in piece.segments:
            assert piece.positions[segment.start] == segment.position


@pytest.mark.parametrize(("lengths", "starts"), [([], None), ([3, 0], None), ([3, 1], [0])])
def test_lists_that_disagree_are_refused(lengths: list[int], starts: list[int] | None) -> None:
    with pytest.raises(ConfigError, match=r"equally many and each length at least 1; got \["):
        Layout.packed(lengths, starts=starts)


def slow_visible(q: tuple, k: tuple, window: int | None, direction: str) -> list[list[bool]]:
    rows = []
    for q_doc, q_pos, q_span in zip(*q, strict=True):
        row = []
        for k_doc, k_pos, k_span in zip(*k, strict=True):
            sees = q_doc == k_doc and q_doc >= 0 and k_pos >= 0
            in_span = q_span >= 0 and q_span == k_span
            sees = sees and (direction == "bidirectional" or k_pos <= q_pos or in_span)
            if window is not None:
                sees = sees and k_pos > q_pos - window and (direction == "causal" or k_pos < q_pos + window)
            row.append(bool(sees))
        rows.append(row)
    return rows


@pytest.mark.parametrize("direction", ["causal", "bidirectional"])
@pytest.mark.parametrize("window", [None, 1, 3])
def test_visible_equals_the_rule_read_aloud(window: int | None, direction: str) -> None:
    generator = torch.Generator().manual_seed(window or 0)
    q = tuple(torch.randint(low, high, (17,), generator=generator) for low, high in ((-1, 2), (0, 9), (-1, 2)))
    k = tuple(torch.randint(low, high, (23,), generator=generator) for low, high in ((-1, 2), (-1, 9), (-1, 2)))
    mask = visible(q, k, window=window, direction=direction)
    assert mask.tolist() == slow_visible(tuple(x.tolist() for x in q), tuple(x.tolist() for x in k), window, direction)
    assert mask.any()
    assert not mask.all()


@pytest.mark.parametrize("window", [None, 1, 2, 3])
@pytest.mark.parametrize(
    "layout",
    [
        Layout.rows(
            torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 1, 1, 1, 1, -1, -1]]),
            torch.tensor([[0, 1, 2, 0, 1, 0, 1, 2], [0, 0, 1, 2, 3, 4, 0, 1]]),
        ),
        Layout.packed([3, 1, 5]),
        Layout.packed([3, 4], starts=[2, 5]),
        Layout.packed([1]),
    ],
    ids=["rows", "packed", "starts", "one token"],
)
def test_first_keys_say_what_the_mask_says(layout: Layout, window: int | None) -> None:
    places, facts = torch.arange(layout.n_tokens), (layout.documents, layout.positions, None)
    row = places // (layout.n_tokens // layout.n_rows)
    seen = visible(facts, facts, window=window) & (row[:, None] == row)
    first = layout.first_keys(window)
    assert torch.equal((places >= first[:, None]) & (places <= places[:, None]), seen)
