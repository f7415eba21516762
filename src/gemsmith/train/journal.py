"""The log of a run: a line of JSON every few steps, the same whether or not the run was interrupted."""

import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemsmith.train.loop import StepReport, TrainState
from gemsmith.weights.memory import in_gb, resident_bytes

# Lines about steps have a log of their own, so that a progress bar can take their place.
_say = logging.getLogger("gemsmith.steps")
_EVERY = 10  # steps
_DENSE = 5000  # steps with a row every _EVERY; from there the distance doubles with the step

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Pace:
    """What a run's speed is held against.

    Attributes:
        cost: Operations of one token of training.
        matrix_rate: Operations per second of the machine's matrix product; None where not measured.
        progress: Share of the run that is done.
    """

    cost: float
    matrix_rate: float | None
    progress: Callable[[TrainState], float]

    def share(self, tokens_per_s: float) -> float | None:
        """Return the share of the matrix rate that goes into the model's arithmetic."""
        return None if self.matrix_rate is None else tokens_per_s * self.cost / self.matrix_rate

    def seconds_left(self, state: TrainState) -> float | None:
        """Return how long the rest takes at the mean pace so far."""
        done = self.progress(state)
        return state.seconds * (1.0 - done) / done if done > 0 else None


class Journal:
    """Writes `log.jsonl`; called after every step.

    Attributes:
        listeners: Called with every row, such as another kind of log.
        last: The last row about steps.
    """

    def __init__(self, path: Path, pace: Pace) -> None:
        self.path, self.pace = path, pace
        self.listeners: list[Callable[[Row], None]] = []
        self.last: Row | None = None

    def resume(self, step: int) -> None:
        """Drop what was written after `step`, which will be written again."""
        rows = keep_until(self.path, step)
        self.last = next((row for row in reversed(rows) if "nll" in row), None)

    def __call__(self, state: TrainState, report: StepReport) -> None:
        """Write a row where one is due."""
        every = row_distance(report.step)
        if report.step % every:
            return
        self.last = row = self._row(state, report, every)
        self.write(row)
        _say.info("%s", words(row, self.pace.seconds_left(state)))

    def write(self, row: Row) -> None:
        """Append a row, and tell the listeners."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        for listener in self.listeners:
            listener(row)

    def _row(self, state: TrainState, report: StepReport, every: int) -> Row:
        recent = [nll for nll, _ in state.recent[-every:]] or [report.nll]
        speed = self._tokens_per_s(state)
        share = None if speed is None else self.pace.share(speed)
        return {
            "step": report.step,
            "n_tokens": report.n_tokens,
            "seconds": round(state.seconds, 3),
            "nll": sum(recent) / len(recent),
            "grad_norm": report.grad_norm,
            "rate": report.rate,
            "tokens_per_s": None if speed is None else round(speed),
            "matrix_share": None if share is None else round(share, 4),
            "rss": resident_bytes(),
            "n_skipped": state.n_skipped,
            "is_late": state.late_step is not None,
        }

    def _tokens_per_s(self, state: TrainState) -> float | None:
        """Return the speed since the last row; the first steps of all would count the machine's warm-up."""
        if self.last is None or state.seconds <= self.last["seconds"]:
            return None
        return (state.n_tokens - self.last["n_tokens"]) / (state.seconds - self.last["seconds"])


def row_distance(step: int) -> int:
    """Return how many steps lie between rows around `step`; a million steps make some 2,500 rows."""
    return _EVERY * 2 ** max(0, math.ceil(math.log2(max(step, 1) / _DENSE)))


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a log; a last line that was cut off is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def keep_until(path: Path, step: int) -> list[Row]:
    """Cut a log of rows with steps back to those up to `step`, and return them."""
    if not path.is_file():
        return []
    rows = [row for row in read_rows(path) if row["step"] <= step]
    partial = path.with_name(f".{path.name}.part")
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    partial.replace(path)
    return rows


def words(row: Row, seconds_left: float | None) -> str:
    """Return a row about steps as a line to be read."""
    speed, share = row["tokens_per_s"], row["matrix_share"]
    parts = [
        f"step {row['step']}: {row['nll']:.3f} nats a token",
        f"gradient {row['grad_norm']:.2f}",
        "" if speed is None else f"{speed:,} tokens/s",
        "" if share is None else f"{share:.0%} of the matrix rate",
        in_gb(row["rss"]),
        f"{row['seconds'] / 60:.1f} minutes",
        "" if seconds_left is None else f"{duration(seconds_left)} to go",
    ]
    return ", ".join(part for part in parts if part)


def duration(seconds: float) -> str:
    """Return a time in words of the right size: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
