"""What every step of a run saw and found, bit for bit, for the proof that a resumed run is the same run."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gemsmith.data.mixture import Batch
from gemsmith.train.loop import StepReport, TrainState

TRACE_FILE = "trace.jsonl"
NextBatches = Callable[[TrainState, float], Sequence[Batch]]
_TENSORS = ("token_ids", "targets", "loss_mask", "documents", "positions")


class Trace:
    """Writes a line per step: a digest of each micro-batch, the loss and the norm of the gradient.

    A run that goes on after a kill appends to the same file, so a step may have several lines, which
    must be equal.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._digests: list[str] = []

    def over(self, batches: NextBatches) -> NextBatches:
        """Return the same batches, each of them noted as it goes by."""

        def noted(state: TrainState, progress: float) -> Sequence[Batch]:
            found = batches(state, progress)
            self._digests = [batch_digest(batch) for batch in found]
            return found

        return noted

    def __call__(self, state: TrainState, report: StepReport) -> None:
        """Write the line of a step; the numbers keep every bit."""
        row = {"step": report.step, "batches": self._digests, "nll": report.nll, "grad_norm": report.grad_norm}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def batch_digest(batch: Batch) -> str:
    """Return a SHA-256 of everything in a batch that training sees."""
    digest = hashlib.sha256()
    for name in _TENSORS:
        tensor = getattr(batch, name)
        digest.update(f"{name}{list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def read_trace(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a trace; one cut off by a kill is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows
