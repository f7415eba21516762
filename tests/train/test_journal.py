"""The log of a run: what its rows hold, and that a run which goes on leaves the log it would have left."""

import json
from pathlib import Path

import pytest

from gemsmith.train.journal import Journal, Pace, duration, keep_until, read_rows, row_distance, words
from gemsmith.train.loop import StepReport, TrainState


def journal(path: Path, *, matrix_rate: float | None = 1e6) -> Journal:
    return Journal(path, Pace(100.0, matrix_rate, lambda state: state.step / 40))


def steps(log: Journal, first: int, last: int) -> None:
    """Let a log see steps of 50 tokens and half a second, with losses that fall."""
    recent = [[10.0 - 0.1 * step, 1.0] for step in range(1, first)]
    state = TrainState({}, {}, step=first - 1, n_tokens=50 * (first - 1), seconds=0.5 * (first - 1), recent=recent)
    for step in range(first, last + 1):
        state.step, state.n_tokens, state.seconds = step, step * 50, step * 0.5
        state.recent = [*state.recent, [10.0 - 0.1 * step, 1.0]]
        log(state, StepReport(step, 10.0 - 0.1 * step, 0.25, 0.01, state.n_tokens))


def test_a_row_holds_what_plots_need(tmp_path: Path) -> None:
    steps(journal(tmp_path / "log.jsonl"), 1, 25)
    first, second = read_rows(tmp_path / "log.jsonl")
    assert (first["tokens_per_s"], first["matrix_share"]) == (None, None)
    rss = second.pop("rss")
    assert rss > 10_000_000
    assert second == {
        "step": 20, "n_tokens": 1000, "seconds": 10.0, "nll": pytest.approx(10.0 - 0.1 * 15.5), "grad_norm": 0.25,
        "rate": 0.01, "tokens_per_s": 100, "matrix_share": 0.01, "n_skipped": 0, "is_late": False,
    }  # fmt: skip


def test_a_run_that_goes_on_leaves_the_log_of_one_that_never_stopped(tmp_path: Path) -> None:
    steps(journal(tmp_path / "through.jsonl"), 1, 40)
    steps(journal(tmp_path / "killed.jsonl"), 1, 34)
    with (tmp_path / "killed.jsonl").open("a") as file:
        file.write('{"step": 35, "held_out": {"a": 1.0}}\n{"step": 4')  # cut off in the middle of a line
    again = journal(tmp_path / "killed.jsonl")
    again.resume(15)  # the last checkpoint lies in the middle of a row's steps
    steps(again, 16, 40)
    without_memory = [
        [{k: v for k, v in row.items() if k != "rss"} for row in read_rows(tmp_path / f"{name}.jsonl")]
        for name in ("through", "killed")
    ]
    assert without_memory[0] == without_memory[1]


def test_a_run_that_begins_anew_drops_all_rows(tmp_path: Path) -> None:
    log = journal(tmp_path / "log.jsonl")
    steps(log, 1, 20)
    log.resume(0)
    assert log.last is None
    assert read_rows(tmp_path / "log.jsonl") == []
    assert keep_until(tmp_path / "none.jsonl", 3) == []


def test_long_runs_have_few_rows() -> None:
    assert [row_distance(step) for step in (1, 5000, 5001, 10_000, 10_001, 1_000_000)] == [10, 10, 20, 20, 40, 2560]
    n_rows = sum(step % row_distance(step) == 0 for step in range(1, 1_000_001))
    assert n_rows * 260 < 750_000  # bytes


def test_listeners_hear_every_row(tmp_path: Path) -> None:
    heard, log = [], journal(tmp_path / "log.jsonl")
    log.listeners.append(heard.append)
    steps(log, 1, 10)
    log.write({"step": 10, "held_out": {"a": 1.5}})
    assert heard == [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]


def test_lines_tell_pace_memory_and_time_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="gemsmith"):
        steps(journal(tmp_path / "log.jsonl"), 1, 20)
    line = caplog.messages[-1]
    assert line.startswith("step 20: 8.450 nats a token, gradient 0.25, 100 tokens/s, 1% of the matrix rate, ")
    assert line.endswith("0.2 minutes, 10 s to go")
    steps(unmeasured := journal(tmp_path / "other.jsonl", matrix_rate=None), 1, 20)
    assert unmeasured.last is not None
    assert unmeasured.last["matrix_share"] is None
    assert "matrix" not in words(unmeasured.last, None)


@pytest.mark.parametrize(("seconds", "said"), [(40.2, "40 s"), (300.0, "5 min"), (9000.0, "2.5 h")])
def test_times_have_the_right_size(seconds: float, said: str) -> None:
    assert duration(seconds) == said
