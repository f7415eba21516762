"""The curves of runs, as a picture."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gemsmith.errors import DataError
from gemsmith.recipes.run_folder import LOG_FILE
from gemsmith.train.journal import Row, read_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

By = Literal["tokens", "time"]
Of = Literal["nll", "bpb"]

_SMOOTH = 0.02  # of all rows: how many the training loss is averaged over, at least one
_LABELS = {"nll": "training loss, nats per token", "bpb": "held-out text, bits per byte"}
_FEW = 6  # sources that still get a curve each


@dataclass(frozen=True)
class Curve:
    """A row of numbers over tokens or time, in the unit of its axis."""

    label: str
    x: list[float]
    y: list[float]


@dataclass(frozen=True)
class Scale:
    """The horizontal axis: which field of a row, divided by what, and its name."""

    key: str
    unit: float
    label: str


def plot(runs: Sequence[Path], path: Path, *, by: By = "tokens", of: Of | None = None) -> Path:
    """Draw runs onto one axis per kind of number, and return the picture's path.

    The training loss is smoothed over a fiftieth of the log; held-out bits per byte are points, of a single
    run for every source too.

    Args:
        of: "nll" or "bpb"; both, one above the other, where left out and a run has them.

    Raises:
        DataError: matplotlib is missing, a folder is no run, or no run has such numbers.
    """
    logs = {run.resolve().name: _read(run) for run in runs}
    wanted: list[Of] = [of] if of else ["nll", "bpb"]
    scale = _scale(by, [row for rows in logs.values() for row in rows])
    panels: dict[Of, list[Curve]] = {kind: curves for kind in wanted if (curves := _curves(logs, kind, scale))}
    if not panels:
        raise DataError(f"runs must have rows of {' or '.join(wanted)}; got none in {', '.join(logs)}. Train longer.")
    return _draw(panels, scale, path)


def _read(run: Path) -> list[Row]:
    path = run / LOG_FILE
    if not path.is_file():
        raise DataError(f"run must be the folder of a run, with a {LOG_FILE}; got {str(run)!r}. Check the path.")
    return read_rows(path)


def _scale(by: By, rows: Sequence[Row]) -> Scale:
    """Return the axis in the unit that suits the longest run."""
    if by == "tokens":
        is_large = max((row["n_tokens"] for row in rows), default=0) >= 1e6
        return Scale("n_tokens", 1e6 if is_large else 1e3, "tokens, millions" if is_large else "tokens, thousands")
    longest = max((row["seconds"] for row in rows), default=0)
    for unit, name in ((3600.0, "hours"), (60.0, "minutes")):
        if longest >= 2 * unit:
            return Scale("seconds", unit, f"time in training, {name}")
    return Scale("seconds", 1.0, "time in training, seconds")


def _curves(logs: dict[str, list[Row]], kind: Of, scale: Scale) -> list[Curve]:
    curves = []
    for name, rows in logs.items():
        chosen = [row for row in rows if kind in row]
        if not chosen:
            continue
        x = [row[scale.key] / scale.unit for row in chosen]
        y = [float(row[kind]) for row in chosen]
        curves.append(Curve(name, x, smoothed(y) if kind == "nll" else y))
        sources = list(chosen[-1].get("held_out", {}))
        if len(logs) == 1 and 1 < len(sources) <= _FEW:
            curves += [Curve(source, x, [row["held_out"][source] for row in chosen]) for source in sources]
    return curves


def smoothed(values: Sequence[float]) -> list[float]:
    """Return the mean of each value and those before it, over a fiftieth of all."""
    width = max(1, round(len(values) * _SMOOTH))
    parts = (values[max(0, end - width) : end] for end in range(1, len(values) + 1))
    return [sum(part) / len(part) for part in parts]


def _draw(panels: Mapping[Of, list[Curve]], scale: Scale, path: Path) -> Path:
    figure, rows = blank(len(panels))
    for axes, (kind, curves) in zip(rows, panels.items(), strict=True):
        _fill(axes, kind, curves)
    rows[-1].set_xlabel(scale.label)
    return save(figure, path)


def check_place(path: Path) -> None:
    """Refuse a picture that could not be drawn, before the work it is to show.

    Raises:
        DataError: matplotlib is missing, or the place is a folder or not writable.
    """
    blank(1)
    parent = next(place for place in path.expanduser().resolve().parents if place.exists())
    if path.is_dir() or not parent.is_dir() or not os.access(parent, os.W_OK):
        found = "a folder" if path.is_dir() else "not writable"
        raise DataError(f"picture must be a file that can be written; got {str(path)!r}, {found}. Name another place.")


def blank(n_panels: int, *, shares_x: bool = True) -> "tuple[Figure, list[Axes]]":
    """Return an empty picture with panels one above the other, by default over one horizontal axis.

    Raises:
        DataError: matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DataError(
            f"curves must be drawn with matplotlib; got none ({error}). Install it: pip install 'gemsmith[train]'."
        ) from error
    figure = Figure(figsize=(8.0, 3.6 * n_panels), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(n_panels, 1, sharex=shares_x, squeeze=False)[:, 0])


def save(figure: "Figure", path: Path) -> Path:
    """Write a picture as PNG and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return path


def _fill(axes: "Axes", kind: Of, curves: list[Curve]) -> None:
    for number, curve in enumerate(curves):
        style = "-" if kind == "nll" else "o-" if number == 0 or len(curves) < 2 else "o:"
        axes.plot(curve.x, curve.y, style, markersize=3.5, linewidth=1.3, label=curve.label)
    axes.set_ylabel(_LABELS[kind])
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small")
