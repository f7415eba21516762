"""How a run goes, on one line of the terminal that renews itself."""

import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from gemsmith.train.journal import Pace, duration
from gemsmith.train.loop import StepReport, TrainState
from gemsmith.weights.memory import in_gb, resident_bytes

_RECENT = 16  # steps the speed is measured over


class Bar:
    """A progress bar with what matters beside it; called after every step."""

    def __init__(self, progress: Progress, pace: Pace) -> None:
        self.progress, self.pace = progress, pace
        self.task = progress.add_task("", total=1.0, numbers="")
        self.recent: deque[tuple[int, float]] = deque(maxlen=_RECENT)

    def __call__(self, state: TrainState, report: StepReport) -> None:
        """Renew the line."""
        self.recent.append((state.n_tokens, state.seconds))
        done = self.pace.progress(state)
        self.progress.update(self.task, completed=done, numbers=self._numbers(state, report))

    def _numbers(self, state: TrainState, report: StepReport) -> str:
        (first, start), (last, end) = self.recent[0], self.recent[-1]
        speed = (last - first) / (end - start) if end > start else None
        share = None if speed is None else self.pace.share(speed)
        left = self.pace.seconds_left(state)
        parts = [
            f"step {report.step:,}",
            "" if left is None else f"{duration(left)} left",
            f"{report.nll:.3f} nats/token",
            "" if speed is None else f"{speed:,.0f} tokens/s",
            "" if share is None else f"{share:.0%} of matrix rate",
            f"gradient {report.grad_norm:.2f}",
            in_gb(resident_bytes()),
        ]
        return " · ".join(part for part in parts if part)


@contextmanager
def bars() -> Iterator[Callable[[Pace], Bar]]:
    """Give a function that starts a bar on stderr; lines about steps are not shown meanwhile."""
    lines = logging.getLogger("gemsmith.steps")
    columns = (BarColumn(bar_width=20), TaskProgressColumn(), TextColumn("{task.fields[numbers]}"))
    before = lines.level
    with Progress(*columns, console=Console(stderr=True)) as progress:
        lines.setLevel(logging.WARNING)
        try:
            yield lambda pace: Bar(progress, pace)
        finally:
            lines.setLevel(before)
