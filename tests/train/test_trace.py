"""A trace tells two runs apart by what their steps saw, and by every bit of what they found."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gemsmith.train.loop import Budget, fit
from gemsmith.train.trace import Trace, batch_digest, read_trace
from small_run import batches, new_state, train


def traced(path: Path, *, until: int) -> list[dict]:
    from small_run import LOSS, SPEC

    trace = Trace(path)
    torch.manual_seed(0)
    fit(new_state(), trace.over(batches), LOSS, spec=SPEC, budget=Budget(steps=until), watchers=[trace])
    return read_trace(path)


def test_every_step_has_its_line(tmp_path: Path) -> None:
    rows = traced(tmp_path / "trace", until=3)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert len({digest for row in rows for digest in row["batches"]}) == 6  # two micro-batches a step
    assert rows == traced(tmp_path / "again", until=3)


def test_numbers_keep_every_bit(tmp_path: Path) -> None:
    reports = []
    trace = Trace(tmp_path / "trace")
    train(new_state(), until=2, watchers=(trace, lambda state, report: reports.append(report)))
    for row, report in zip(read_trace(tmp_path / "trace"), reports, strict=True):
        assert (row["nll"], row["grad_norm"]) == (report.nll, report.grad_norm)


def test_a_line_cut_off_by_a_kill_is_left_out(tmp_path: Path) -> None:
    rows = traced(tmp_path / "trace", until=2)
    with (tmp_path / "trace").open("a") as file:
        file.write('{"step": 3, "batc')
    assert read_trace(tmp_path / "trace") == rows
    assert read_trace(tmp_path / "none") == []


@pytest.mark.parametrize("name", ["token_ids", "targets", "loss_mask", "documents", "positions"])
def test_one_number_changes_the_digest(name: str) -> None:
    (batch, _) = batches(new_state(), 0.0)
    changed = getattr(batch, name).clone()
    changed[1, 3] = ~changed[1, 3] if changed.dtype == torch.bool else changed[1, 3] + 1
    assert batch_digest(replace(batch, **{name: changed})) != batch_digest(batch)
