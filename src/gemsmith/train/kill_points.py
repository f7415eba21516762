"""The points at which the proof of resuming kills a run."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Kill:
    """Where a run dies: at the count-th arrival at a point of `train.faults`."""

    what: str
    point: str
    count: int
    n_data_workers: int = 0


def kill_points(
    steps: int, *, n_micro: int, n_tensors: int, turns: Sequence[int], late_step: int, save_every: int
) -> list[Kill]:
    """Return twenty places to die at; every second run makes its batches with two workers.

    Args:
        n_micro: Micro-batches of a step.
        n_tensors: Tensors of a checkpoint.
        turns: Steps, counted from 1, in which a source begins its next epoch.
        late_step: Steps before the last part of the run.
        save_every: Steps between checkpoints.
    """
    n_saves, n_writes = steps // save_every, n_tensors + 1
    turning = ", in which an epoch of the data turns" if min(turns, default=steps) < steps else " (no epoch turned)"
    inner = [step for step in turns if step < steps] or [steps // 2, steps - 1]
    points = [
        ("after the first micro-batch of all", "micro_batch", 1),
        ("before the first update", "before_update", 1),
        ("after the first update", "after_update", 1),
        ("in the middle of the accumulation of step 3", "micro_batch", 2 * n_micro + max(1, n_micro // 2)),
        ("after the last micro-batch of step 3", "micro_batch", 3 * n_micro),
        ("after the update of step 4, before it is saved", "after_update", 4),
        ("before the copy for the second checkpoint", "before_snapshot", 2),
        ("after the copy for the second checkpoint", "after_snapshot", 2),
        ("at the first tensor of the first checkpoint", "writing", 1),
        ("in the middle of the tensors of the second checkpoint", "writing", n_writes + n_writes // 2),
        ("before the manifest of the first checkpoint", "before_manifest", 1),
        ("before the manifest of the third checkpoint", "before_manifest", 3),
        ("before the second checkpoint gets its name", "before_rename", 2),
        ("after the first checkpoint got its name", "after_rename", 1),
        ("after the last checkpoint got its name", "after_rename", n_saves),
        ("while an old checkpoint is removed", "removing", 1),
        (f"in step {inner[0]}{turning}", "micro_batch", inner[0] * n_micro),
        (f"after step {inner[-1]}{turning}", "after_update", inner[-1]),
        ("before the first update of the last part", "before_update", late_step + 1),
        ("after the last update of all", "after_update", steps),
    ]
    return [Kill(*point, n_data_workers=2 * (number % 2)) for number, point in enumerate(points)]
