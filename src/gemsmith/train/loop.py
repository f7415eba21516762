"""The training loop: one step, and many."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gemsmith.data.mixture import Batch
from gemsmith.errors import TrainingError
from gemsmith.kernels.fused_adamw import squared_norm
from gemsmith.train.faults import reach
from gemsmith.train.guard import HISTORY, MAX_SKIPPED, is_outlier, not_finite
from gemsmith.train.optimizer import OptimizerSpec, rate_factor, update

# (weights, batch) -> summed loss of the targets that count
LossFn = Callable[[Mapping[str, Tensor], Batch], Tensor]
# (weights, micro-batches, loss function, scale) -> scaled loss, gradients added
Accumulate = Callable[[Mapping[str, Tensor], Sequence[Batch], LossFn, float], float]


@dataclass
class TrainState:
    """Everything a run consists of, and all that a checkpoint holds.

    Attributes:
        weights: Float32 masters under the network's parameter names.
        seconds: Time spent in steps, pauses of the process left out.
        late_step: Step at which the last part of the run began; None before that.
        n_skipped: Steps left out because their loss or gradient stood out.
        n_skipped_in_row: The same since the last update.
        recent: Loss and gradient norm of the last updates, the oldest first.
    """

    weights: dict[str, Tensor]
    optimizers: dict[str, torch.optim.Optimizer]
    step: int = 0
    n_tokens: int = 0
    seconds: float = 0.0
    late_step: int | None = None
    n_skipped: int = 0
    n_skipped_in_row: int = 0
    recent: list[list[float]] = field(default_factory=list)


@dataclass(frozen=True)
class StepReport:
    """What one step did.

    Attributes:
        step: Steps of the run up to and with this one.
        nll: Mean loss in nats per target.
        grad_norm: Norm of the whole gradient before clipping.
        rate: Rate of the matrices inside blocks.
        n_tokens: Tokens of the run up to and with this step.
        n_targets: Targets of this step that counted.
        is_skipped: Whether loss or gradient stood out and nothing was updated.
        n_skipped: Steps of the run left out so far.
    """

    step: int
    nll: float
    grad_norm: float
    rate: float
    n_tokens: int
    n_targets: int = 0
    is_skipped: bool = False
    n_skipped: int = 0


@dataclass
class Budget:
    """How long a run is, in steps, seconds of steps, or tokens; of several, the first to be spent ends it."""

    steps: int | None = None
    seconds: float | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if not given or not all(value > 0 for value in given.values()):
            raise TrainingError(
                f"a run must have a length in steps, seconds or tokens, above 0; got {given or None!r}. Give one."
            )

    def progress(self, state: TrainState) -> float:
        """Return the share of the run that is done, from 0 to 1."""
        spent = ((state.step, self.steps), (state.seconds, self.seconds), (state.n_tokens, self.tokens))
        return max(min(1.0, used / total) if total > 0 else 1.0 for used, total in spent if total is not None)


@dataclass
class Clock:
    """Measures steps; a step that took far longer than others stood still and counts as a usual one."""

    recent: list[float] = field(default_factory=list)

    def counted(self, seconds: float) -> float:
        """Return how much of a step's duration counts as work."""
        usual = sorted(self.recent)[len(self.recent) // 2] if len(self.recent) >= 8 else None
        if usual is not None and seconds > 5 * usual:
            return usual
        self.recent = [*self.recent[-31:], seconds]
        return seconds


def accumulate(weights: Mapping[str, Tensor], micro_batches: Sequence[Batch], loss_fn: LossFn, scale: float) -> float:
    """Add the gradient of `scale` times the summed losses to the weights' own; return the scaled sum."""
    total = 0.0
    for batch in micro_batches:
        loss = loss_fn(weights, batch)
        if scale != 1.0:
            loss = loss * scale
        loss.backward()
        total += float(loss.detach())
        reach("micro_batch")
    return total


def train_step(
    state: TrainState,
    micro_batches: Sequence[Batch],
    loss_fn: LossFn,
    *,
    spec: OptimizerSpec,
    factor: float = 1.0,
    accumulate: Accumulate = accumulate,
) -> StepReport:
    """Make one update of the mean loss over all targets of all micro-batches.

    Losses are summed and divided by the count of the whole step, so accumulated micro-batches of any
    sizes give the gradient of one big batch. A loss or gradient norm more than six sigma above the
    last steps' is counted and not learned from.

    Args:
        factor: Share of the peak rates.
        accumulate: Another way to the same gradients, such as `Workers.accumulate`.

    Raises:
        TrainingError: Loss or gradient are not finite, no target counts, or too many steps in a row
            stood out; nothing was updated and gradients are cleared.
    """
    n_targets = sum(int(batch.loss_mask.sum()) for batch in micro_batches)
    if n_targets == 0:
        raise TrainingError(f"a step must have targets that count; got none in step {state.step}. Check loss masks.")
    nll = accumulate(state.weights, micro_batches, loss_fn, 1.0) / n_targets
    norm = math.sqrt(squared_norm(w.grad for w in state.weights.values() if w.grad is not None)) / n_targets
    if not (math.isfinite(nll) and math.isfinite(norm)):
        raise not_finite(state.weights, micro_batches, loss_fn, step=state.step, found=(nll, norm))
    is_skipped = is_outlier(state.recent, (nll, norm))
    if is_skipped:
        _skip(state, nll, norm)
    else:
        reach("before_update")
        # The mean and the clipping are one factor, applied while the optimizers step.
        scale = min(1.0, spec.clip / norm if norm else 1.0) / n_targets
        update(state.optimizers.values(), factor=factor, grad_scale=scale)
        state.recent = [*state.recent[1 - HISTORY :], [nll, norm]]
        state.n_skipped_in_row = 0
        reach("after_update")
    state.step += 1
    state.n_tokens += sum(batch.token_ids.numel() for batch in micro_batches)
    rate = spec.matrix_rate * factor
    return StepReport(state.step, nll, norm, rate, state.n_tokens, n_targets, is_skipped, state.n_skipped)


def _skip(state: TrainState, nll: float, norm: float) -> None:
    """Throw the gradient of a step away and count it.

    Raises:
        TrainingError: It is one too many in a row.
    """
    for weight in state.weights.values():
        weight.grad = None
    state.n_skipped += 1
    state.n_skipped_in_row += 1
    if state.n_skipped_in_row >= MAX_SKIPPED:
        raise TrainingError(
            f"loss and gradient must not stay six sigma above the last {HISTORY} steps; got {nll:.4g} and {norm:.4g} "
            f"in step {state.step}, the last of {MAX_SKIPPED} skipped in a row. Look at the data from here on; lower "
            "the rate, or resume from an earlier checkpoint."
        )


def fit(
    state: TrainState,
    batches: Callable[[TrainState, float], Sequence[Batch]],
    loss_fn: LossFn,
    *,
    spec: OptimizerSpec,
    budget: Budget,
    accumulate: Accumulate = accumulate,
    watchers: Iterable[Callable[[TrainState, StepReport], None]] = (),
) -> TrainState:
    """Train until the budget is spent.

    Args:
        batches: Function (state, progress) -> micro-batches of the next step.
        watchers: Called after every step: logs, checkpoints, samples. They may change the budget.
    """
    watchers, clock = list(watchers), Clock()
    while (progress := budget.progress(state)) < 1.0:
        start = time.perf_counter()
        factor = rate_factor(state.step, progress, spec)
        report = train_step(state, batches(state, progress), loss_fn, spec=spec, factor=factor, accumulate=accumulate)
        state.seconds += clock.counted(time.perf_counter() - start)
        for watch in watchers:
            watch(state, report)
    return state
