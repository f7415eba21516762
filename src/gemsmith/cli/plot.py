"""`gemsmith plot`: the curves of runs as a picture."""

from pathlib import Path
from typing import Literal

from gemsmith.cli.console import UsageError, write


def plot(
    *runs: Path,
    by: Literal["tokens", "time"] = "tokens",
    out: Path | None = None,
    y: Literal["nll", "bpb"] | None = None,
) -> int:
    """Draw training loss and held-out bits per byte of runs, several on one axis. The picture's path goes to stdout.

    Args:
        runs: Run folders.
        by: What the horizontal axis counts.
        out: The picture, a PNG; plot.png in the run folder, or here for several runs, when left out.
        y: Only the training loss (nll) or only held-out bits per byte (bpb).
    """
    if not runs:
        raise UsageError("plot must have a run folder to draw; got none. Name one or more.")
    from gemsmith.recipes.plot import plot as draw

    path = out or (runs[0] if len(runs) == 1 else Path()) / "plot.png"
    write(str(draw(runs, path, by=by, of=y)))
    return 0
