"""Speeds as a picture: a panel for reading and one for writing, a bar for each program and length."""

from collections.abc import Sequence
from pathlib import Path

from gemsmith.evaluate.speed import Speed
from gemsmith.recipes.plot import blank, save

_LABELS = {"prefill": "reading, tokens/s", "decode": "writing, tokens/s"}


def draw(speeds: Sequence[Speed], path: Path, *, title: str) -> Path:
    """Draw medians as bars, the lowest and the highest run as whiskers, and return the picture's path.

    Raises:
        DataError: matplotlib is missing.
    """
    phases = list(dict.fromkeys(speed.phase for speed in speeds))
    figure, panels = blank(len(phases), shares_x=False)
    colors = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(speed.subject for speed in speeds))}
    for axes, phase in zip(panels, phases, strict=True):
        chosen = [speed for speed in speeds if speed.phase == phase]
        spread = [[s.median - min(s.rates) for s in chosen], [max(s.rates) - s.median for s in chosen]]
        labels = [f"{s.subject}, {s.n_tokens} tokens" for s in chosen]
        bars = axes.barh(labels, [s.median for s in chosen], xerr=spread, color=[colors[s.subject] for s in chosen])
        axes.bar_label(bars, fmt="{:,.1f}", padding=6, fontsize="small")
        axes.set_xlabel(_LABELS[phase])
        axes.invert_yaxis()
        axes.margins(x=0.15)
    panels[0].set_title(title, fontsize="medium")
    return save(figure, path)
