"""The log of a run as TensorBoard reads it, where tensorboard is installed."""

import logging
from pathlib import Path

from gemsmith.train.journal import Row

_say = logging.getLogger("gemsmith")


class Board:
    """Writes rows of a run's journal as curves; close it at the end.

    Args:
        folder: Where TensorBoard looks.
        step: Last step that counts; what an interrupted run wrote after it is hidden.
    """

    def __init__(self, folder: Path, *, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(folder, purge_step=step + 1)

    def __call__(self, row: Row) -> None:
        """Write the numbers of one row."""
        kind = "train" if "nll" in row else "held_out"
        for name, value in {**row, **row.get("held_out", {})}.items():
            if isinstance(value, int | float) and name not in ("step", "is_late"):
                self.writer.add_scalar(f"{kind}/{name}", value, row["step"])

    def close(self) -> None:
        """Write the rest to the disk."""
        self.writer.close()


def open_board(folder: Path, *, step: int) -> Board | None:
    """Return a board, or None where tensorboard is missing, which is said in the log."""
    try:
        return Board(folder, step=step)
    except ImportError:
        _say.info("no TensorBoard log, as tensorboard is not installed: pip install 'gemsmith[train]'")
        return None
