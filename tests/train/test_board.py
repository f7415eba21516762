"""A run's journal as TensorBoard reads it."""

import sys
import warnings
from pathlib import Path

import pytest

from gemsmith.train.board import open_board

ROWS = (
    {"step": 10, "nll": 3.5, "rate": 0.1, "matrix_share": None, "is_late": False},
    {"step": 12, "bpb": 1.25, "held_out": {"tales": 1.5}},
)


def test_rows_become_curves(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tensorboard's own imports
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        board = open_board(tmp_path, step=0)
    assert board is not None
    for row in ROWS:
        board(row)
    board.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    found = {
        tag: [(event.step, round(event.value, 6)) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }
    assert found == {
        "train/nll": [(10, 3.5)],
        "train/rate": [(10, 0.1)],
        "held_out/bpb": [(12, 1.25)],
        "held_out/tales": [(12, 1.5)],
    }


def test_without_tensorboard_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with caplog.at_level("INFO", logger="gemsmith"):
        assert open_board(tmp_path, step=0) is None
    assert "tensorboard is not installed" in caplog.text
